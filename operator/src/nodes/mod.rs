//! Nodes that die: each replica of the operator watches the leases of all nodes, and ends the session of one that fell
//! silent (ownership protocol, rules 5 and 7 to 9). What it knows is in [`Known`]; the pipeline of an environment reads
//! it, and takes volumes over ([`crate::environment`]).
//!
//! | file | does |
//! |---|---|
//! | [`watch`] | asks the API server twice a second, and carries out what the book says |
//! | [`ask`] | one question or request, to the API server or to a store |
//! | [`stores`] | opens the stores that journals are in |
//!
//! What is known of each node and session is in [`vivarium_ownership::book`], which decides.
//!
//! Every replica does this, whether it leads or not: waiting for an election first would take longer than the whole
//! failover may. Each step can be done by several at once. Only the leader gives volumes to other nodes.

pub mod ask;
pub mod stores;
pub mod watch;

use std::collections::BTreeSet;

use jiff::Timestamp;
pub use vivarium_ownership::book::is_superseded;

/// A session that is being ended, for good.
pub type Death = vivarium_ownership::book::Death<Timestamp>;
/// Sessions that are over or being ended, by session.
pub type Deaths = vivarium_ownership::book::Deaths<Timestamp>;

/// What a replica knows of nodes that are dead or may be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Sessions whose end cannot be stopped any more.
    pub deaths: Deaths,
    /// Nodes on which nothing should be started: those above that are not back, and those that are silent.
    pub silent: BTreeSet<String>,
}
