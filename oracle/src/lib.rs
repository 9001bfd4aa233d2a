//! The oracle: judges whether a volume that went through transaction files is still the same volume.
//!
//! A [`plan::Plan`] is a seed and a sequence of steps: changes of a tree, and commits. A [`workload::Workload`] carries
//! the changes out as a tenant might, on real btrfs; [`bench::Bench`] commits with the node driver's own code and
//! compares trees line by line ([`vivarium_node::journal::tree`]). What fails is made smaller by [`plan::shrink`] and
//! printed as a plan that can be run again.
//!
//! The program `vivarium-oracle-node` is a node with one volume that lives one [`life`] and says on a pipe what it knows for
//! certain ([`said`]). A [`ledger`] tells from that what the next node may find. `tests/cases.rs` runs lives step by step,
//! over a store that fails ([`limbo`]) and ended at every fail point; `tests/crashes.rs` kills nodes while their tenant writes.
//! Of nodes whose power is cut, in `hack/test-power`, the program `vivarium-oracle-judge` reads a [`transcript`].

pub mod application;
pub mod bench;
pub mod bytes;
pub mod change;
pub mod ledger;
pub mod life;
pub mod limbo;
pub mod measure;
pub mod names;
pub mod object;
pub mod place;
pub mod plan;
pub mod records;
pub mod rng;
pub mod said;
pub mod template;
pub mod transcript;
pub mod workload;
