//! The programs of this repository as static executables: one file of an image, and a shim that runs on any node.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use crate::{cache, progress::Step, workspace};

/// The target whose executables can be linked statically while build scripts and macros stay as they are.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Where each executable is.
#[derive(Debug)]
pub struct Binaries {
    /// `vivarium-operator`.
    pub operator: PathBuf,
    /// `vivarium-node`.
    pub node: PathBuf,
    /// `containerd-shim-vivarium-v1`.
    pub shim: PathBuf,
}

/// Builds what changed since the last build.
pub fn build() -> Result<Binaries, BuildError> {
    let _step = Step::begin("building operator, node driver and runtime shim (some minutes when nothing is cached)");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| cache::root().join("target"), PathBuf::from);
    let status = Command::new("cargo")
        .args(["build", "--release", "--locked", "--quiet", "--target", TARGET])
        .args(["-p", "vivarium-operator", "-p", "vivarium-node", "-p", "vivarium-shim", "--bins"])
        .current_dir(workspace::root()?)
        .env("CARGO_TARGET_DIR", &target)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .map_err(BuildError::Cargo)?;
    if !status.success() {
        return Err(BuildError::Failed);
    }
    let at = |name: &str| target.join(TARGET).join("release").join(name);
    Ok(Binaries {
        operator: at("vivarium-operator"),
        node: at("vivarium-node"),
        shim: at("containerd-shim-vivarium-v1"),
    })
}

/// Why the programs are not there.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// cargo did not run.
    #[error("cannot run cargo to build the programs; install Rust (rustup.rs)")]
    Cargo(#[source] std::io::Error),
    /// The build failed.
    #[error("the programs could not be built; the compiler's messages are above")]
    Failed,
    /// The checkout was not found.
    #[error(transparent)]
    Workspace(#[from] workspace::Error),
}
