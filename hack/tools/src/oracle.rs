//! The programs of the oracle: what judges volumes outside of cargo's own tests.

use std::path::PathBuf;
use std::process::Command;

use crate::{cache, checked, command, progress::Step, workspace};

/// They could not be built.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the programs of the oracle could not be built")]
    Cargo(#[from] command::Error),
    #[error(transparent)]
    Checked(#[from] checked::Error),
    #[error(transparent)]
    Workspace(#[from] workspace::Error),
}

/// What names the folder of the programs to tests in the lab.
pub const VARIABLE: &str = "VIVARIUM_ORACLE";

/// Builds them together with one of the oracle's tests and in the same way as the step `unit` of `hack/test`, so that after
/// that nothing is left to build; gives the folder that they are in.
pub fn programs() -> Result<PathBuf, Error> {
    let _step = Step::begin("building the programs of the oracle");
    let mut cargo = Command::new("cargo");
    let build = checked::test(&mut cargo, &workspace::root()?)?;
    command::run(build.args(["--quiet", "--no-run", "--test", "cases"]))?;
    Ok(cache::target().join("debug"))
}
