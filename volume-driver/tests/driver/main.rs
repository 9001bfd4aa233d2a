//! The node driver in front of real pools and of stores that fail: one program for all of it, which is linked once.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::needless_pass_by_value,
    clippy::unused_self,
    clippy::too_many_lines,
    reason = "helpers of tests say what must hold by unwrapping it, and tables are long"
)]

mod branch;
mod change;
mod claims;
mod csi;
mod csi_sanity;
mod epochs;
mod garbage;
mod health;
mod journal;
mod keep;
mod keeper;
mod layers;
mod merges;
mod mirrored;
mod paths;
mod pool;
mod prove;
mod rejoin;
mod revert;
mod standby;
mod stored;
mod support;
mod views;
