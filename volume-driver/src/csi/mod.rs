//! The CSI services on the driver's socket: identity ([`identity`]), controller ([`controller`]) and node ([`node`]). A call enters here, becomes plain
//! values, and ends as success or one [`crate::publish::Refusal`].

pub mod controller;
pub mod identity;
pub mod node;
pub mod server;
mod wire;
