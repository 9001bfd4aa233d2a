//! What the two programs of this crate share. `kubectl-ve` is a plugin of kubectl and works through it, so contexts, users,
//! proxies and login programs are those that kubectl has. To read trees of the past it makes a pod for a short while, with
//! a read-only volume of the CSI driver in it, and runs `ve-reader` there: so what somebody may read is what he may mount,
//! which the API server and the node driver decide, and no server of ours lies on the way of the data.
//!
//! Trees belong to tenants: names are any bytes, and nothing in a tree is followed out of it.

pub mod compare;
pub mod quote;
pub mod tree;
pub mod wire;
