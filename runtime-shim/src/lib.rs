//! The runtime of Vivarium: runs the containers of a pod on libcontainer, and gives an environment its root file system,
//! its init and its life cycle. The binary `containerd-shim-vivarium-v1` serves containerd's task API v3 with it.
//!
//! ```text
//! containerd ── ttrpc ──> service ──> supervisor (pure: events in, notices out) ──> publisher ──> containerd
//!                            │
//!                            ├──> helper processes (single-threaded: namespaces, mounts, fork)
//!                            ├──> io (fifos, pipes, terminals)      ├──> cgroup
//!                            └──> journal (what delete has to undo) └──> environment
//! ```

pub mod cgroup;
pub mod environment;
pub mod error;
pub mod helper;
pub mod info;
pub mod io;
pub mod journal;
pub mod launch;
pub mod logger;
pub mod publisher;
pub mod reaper;
pub mod rootfs;
pub mod seccomp;
pub mod service;
pub mod supervisor;
pub mod volumes;
