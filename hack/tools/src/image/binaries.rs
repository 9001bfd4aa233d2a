//! The programs of this repository as static executables: one file of an image, and a shim that runs on any node.

use std::{io::IsTerminal, path::PathBuf, process::Stdio};

use crate::{cache, command, progress::Step, workspace};

/// The target whose executables can be linked statically while build scripts and macros stay as they are.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The variable that makes a process die at a point of the code. Only programs of tests may know it.
const FAIL_POINT: &[u8] = b"VIVARIUM_FAIL_POINT";

/// Where each executable is.
#[derive(Debug)]
pub struct Binaries {
    /// `vivarium-operator`.
    pub operator: PathBuf,
    /// `vivarium-node`.
    pub node: PathBuf,
    /// `containerd-shim-vivarium-v1`.
    pub shim: PathBuf,
    /// `kubectl-ve`.
    pub plugin: PathBuf,
    /// `ve-reader`.
    pub reader: PathBuf,
}

/// Builds what changed since the last build.
pub fn build() -> Result<Binaries, BuildError> {
    let _step =
        Step::begin("building operator, node driver, runtime shim and plugin (some minutes when nothing is cached)");
    let folder = cargo(&["vivarium-operator", "vivarium-node", "vivarium-shim", "vivarium-cli"])?;
    let node = std::fs::read(folder.join("vivarium-node")).map_err(BuildError::Unreadable)?;
    if node.windows(FAIL_POINT.len()).any(|window| window == FAIL_POINT) {
        return Err(BuildError::Armed);
    }
    Ok(Binaries {
        operator: folder.join("vivarium-operator"),
        node: folder.join("vivarium-node"),
        shim: folder.join("containerd-shim-vivarium-v1"),
        plugin: folder.join("kubectl-ve"),
        reader: folder.join("ve-reader"),
    })
}

/// Builds one executable of another package in the same way.
pub fn build_one(package: &str, executable: &str) -> Result<PathBuf, BuildError> {
    let _step = Step::begin(format!("building {executable}"));
    Ok(cargo(&[package])?.join(executable))
}

/// Builds the executables of some packages; gives the folder that they are in. Packages that are built together share
/// the features of what they depend on, so the same ones should always be named together.
fn cargo(packages: &[&str]) -> Result<PathBuf, BuildError> {
    let target = cache::target();
    let status = command::mortal("TERM", "cargo")
        .args(["build", "--release", "--locked", "--bins", "--target", TARGET])
        // Its progress is for a terminal; elsewhere it would be hundreds of lines.
        .args(if std::io::stderr().is_terminal() { None } else { Some("--quiet") })
        .args(packages.iter().flat_map(|package| ["-p", package]))
        .current_dir(workspace::root()?)
        .env("CARGO_TARGET_DIR", &target)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .map_err(BuildError::Cargo)?;
    if status.success() { Ok(target.join(TARGET).join("release")) } else { Err(BuildError::Failed) }
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
    /// A program could not be looked at.
    #[error("cannot read what was built: {0}")]
    Unreadable(#[source] std::io::Error),
    /// A program for tests would be shipped.
    #[error(
        "the node driver was built with fail points: no package that it is built with may have the feature `armed`"
    )]
    Armed,
    /// The checkout was not found.
    #[error(transparent)]
    Workspace(#[from] workspace::Error),
}
