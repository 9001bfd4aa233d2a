//! The subcommand `lab`.

use std::{error::Error, process::ExitCode};

/// Arguments of `lab`.
#[derive(clap::Args)]
pub struct Args {}

pub fn run(_arguments: Args) -> Result<ExitCode, Box<dyn Error>> {
    Err("this subcommand is not built yet".into())
}
