//! `cargo test`, by the compiler that lints: what is linted is what runs, and the workspace is compiled once for both.
//!
//! It takes always the whole workspace, and a caller picks among the tests: another choice of packages would have other
//! features of what they depend on, and all of that would be compiled again.

use std::{path::Path, process::Command};

use crate::command;

/// Clippy is not installed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot ask the compiler where it is; install Rust (rustup.rs)")]
    Compiler(#[from] command::Error),
    #[error("clippy is not installed with this compiler; install it: rustup component add clippy")]
    NoClippy,
}

/// Between the arguments that clippy is given in [`ARGUMENTS`].
const BREAK: &str = "__CLIPPY_HACKERY__";
/// How `cargo clippy` hands on what is behind `--`.
const ARGUMENTS: &str = "CLIPPY_ARGS";

/// Makes `cargo test` of a command that runs `cargo`. A warning is an error.
pub fn test<'a>(cargo: &'a mut Command, root: &Path) -> Result<&'a mut Command, Error> {
    let sysroot = command::run(&mut command::command("rustc", ["--print", "sysroot"]))?;
    let clippy = Path::new(sysroot.trim()).join("bin/clippy-driver");
    if !clippy.exists() {
        return Err(Error::NoClippy);
    }
    cargo.env("RUSTC_WORKSPACE_WRAPPER", clippy).env(ARGUMENTS, ["-D", "warnings", ""].join(BREAK));
    Ok(cargo.args(["test", "--workspace", "--locked"]).current_dir(root))
}
