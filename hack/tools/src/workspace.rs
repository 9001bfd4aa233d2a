//! Where things are: the checkout, this program, the cache.

use std::path::{Path, PathBuf};

/// Why a place could not be found.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot find the checkout: no Cargo.toml with a workspace in {0} or above it; run the commands in hack/ from the checkout"
)]
pub struct Error(PathBuf);

/// Root of the checkout that the command was started in.
pub fn root() -> Result<PathBuf, Error> {
    // `hack/run` says where it stands; by hand, the working directory tells.
    let start = std::env::var_os("VIVARIUM_SOURCE")
        .map(PathBuf::from)
        .or_else(|| std::env::current_dir().ok())
        .unwrap_or_default();
    let found = start.ancestors().find(|folder| folder.join("hack/run").is_file()).map(Path::to_path_buf);
    found.ok_or(Error(start))
}

/// This program, to start it again with another subcommand.
pub fn program() -> PathBuf {
    std::env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into())
}
