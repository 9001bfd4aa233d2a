//! Nodes that die: each replica of the operator watches the leases of all nodes, and ends the session of one that fell
//! silent (ownership protocol, rules 5 and 7 to 9). What it knows of ended sessions is in [`Deaths`]; the pipeline of an
//! environment reads it, and takes volumes over ([`crate::environment`]).
//!
//! | file | does |
//! |---|---|
//! | [`watch`] | asks the API server twice a second, and the stores for beats and fences; carries out what the book says |
//! | [`stores`] | opens the stores that journals are in |
//!
//! What is known of each node and session is in [`vivarium_ownership::book`], which decides.
//!
//! Every replica does this, whether it leads or not: waiting for an election first would take longer than the whole
//! failover may. Each step can be done by several at once. Only the leader gives volumes to other nodes.

pub mod stores;
pub mod watch;

use jiff::Timestamp;
pub use vivarium_ownership::book::is_superseded;

/// A session that is being ended, for good.
pub type Death = vivarium_ownership::book::Death<Timestamp>;
/// Sessions that are over or being ended, by session.
pub type Deaths = vivarium_ownership::book::Deaths<Timestamp>;
