//! Who may write a volume and when a node is dead: the ownership protocol as state machines without IO.
//!
//! Time comes in as [`Instant`]s of the caller's own clock, observations come in as calls, what is to be done comes out
//! as values. Node driver and operator carry it out; the same machines run under a simulator. The protocol itself, with
//! its invariants, is in `docs/src/protocol/ownership.md`.
//!
//! | machine | runs in | rules |
//! |---|---|---|
//! | [`node::Authority`] | node driver | 1 to 6: how long environments may run on its node |
//! | [`observer::Observer`] | each operator replica, per node | 5, 7: when a node is suspect |
//! | [`fence::Fencing`] | each operator replica, per session | 8, 9: when a session is certainly over |
//! | [`book::Book`] | each operator replica | both of them, for all nodes |

pub mod book;
pub mod fence;
pub mod node;
pub mod observer;
pub mod time;

pub use time::{Instant, Timing};
