//! System calls that no safe crate wraps, each as a safe function. The only crate of the workspace with unsafe code:
//! every unsafe block says why it is sound. What `rustix` has is used from there and not repeated here.

pub mod btrfs;
pub mod extents;
pub mod inode;
pub mod kernel;
pub mod loopdev;
pub mod mount;
pub mod pagecache;
pub mod process;
pub mod seccomp;
pub mod watch;
