//! Who may write a volume and when a node is dead: the ownership protocol as state machines without IO.
//!
//! Time comes in as [`Instant`]s of the caller's own clock, observations come in as calls, what is to be done comes out
//! as values. Node driver and operator carry it out; the same machines run under a simulator. The protocol itself, with
//! its invariants, is in `docs/src/protocol/ownership.md`, which also says which of the machines are written out once more
//! where they are carried out.
//!
//! | machine | runs in | rules |
//! |---|---|---|
//! | [`node::Authority`] | node driver | 1 to 6: how long environments may run on its node |
//! | [`shim::judge`] | each shim | 2: whether its environment runs, stands still or ends |
//! | [`mount::Mount`] | node driver, per volume | 12: what stands between holding a volume and starting on it |
//! | [`change::Change`] | node driver, per volume | what stands between one set of stores and the next |
//! | [`observer::Observer`] | each operator replica, per node | 5, 7: when a node is suspect |
//! | [`fence::Fencing`] | each operator replica, per session | 8, 9: when a session is certainly over |
//! | [`storm::is_storm`] | each operator replica | whether many nodes fell silent at once |
//! | [`book::Book`] | each operator replica | all of that, for all nodes |
//! | [`holder`] | operator, node driver | 9 to 12: who gets a volume, and who holds it |

pub mod book;
pub mod change;
pub mod fence;
pub mod holder;
pub mod mount;
pub mod node;
pub mod observer;
pub mod shim;
pub mod storm;
pub mod time;

pub use time::{BadTiming, Instant, Timing};
