//! The CSI services on the driver's socket: identity ([`identity`]) and node ([`node`]). A call enters here, becomes plain
//! values, and ends as success or one [`crate::publish::Refusal`].

pub mod identity;
pub mod node;
pub mod server;
