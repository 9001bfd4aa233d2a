//! The oracle: judges whether a volume that went through transaction files is still the same volume.
//!
//! A [`plan::Plan`] is a seed and a sequence of steps: changes of a tree, and commits. A [`workload::Workload`] carries
//! the changes out as a tenant might, on real btrfs; [`bench::Bench`] commits with the node driver's own code and
//! compares trees line by line ([`vivarium_node::journal::tree`]). What fails is made smaller by [`plan::shrink`] and
//! printed as a plan that can be run again.
//!
//! The program `vivarium-oracle-node` is a node with one volume that is written to and committed at the same time, to be
//! killed at any moment; `tests/crashes.rs` kills it and has another [`place::Place`] take over.

pub mod bench;
pub mod bytes;
pub mod change;
pub mod names;
pub mod place;
pub mod plan;
pub mod rng;
pub mod workload;
