//! Names inside the state directory of a container, which the shim and its helpers share.

/// libcontainer's root directory.
pub const LIBCONTAINER: &str = "lc";
/// Name of the container in libcontainer's root: short, for a socket's path must fit into 108 bytes.
pub const NAME: &str = "c";
/// Bundle with the rewritten spec.
pub const BUNDLE: &str = "bundle";
/// Socket that receives the terminal's master.
pub const CONSOLE: &str = "console.sock";
/// Source of the guest's `/run/host`.
pub const HOST: &str = "host";
/// What libcontainer logged.
pub const LOG: &str = "create.log";
