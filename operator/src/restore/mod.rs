//! The controller of `EnvironmentRestore`: hands what a person asks for to the volume, one restore after the other, and
//! tells what became of it.
//!
//! 1. [`decide`] gives the volume an order, if it has none that is under way. The node driver looks the state up, or refuses.
//! 2. The life cycle of the environment ([`crate::environment::lifecycle`]) ends the incarnation that runs and starts the next
//!    one, whose node driver brings the state back before anything runs. It says in the volume's status that it did.
//! 3. [`decide`] turns that into the status here.
//!
//! Everything that is under way is in the volume, so that it goes on whoever dies, and whatever becomes of the object.

pub mod controller;
pub mod decide;
