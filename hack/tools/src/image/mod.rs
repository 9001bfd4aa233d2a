//! The subcommand `images`.

use std::{error::Error, process::ExitCode};

/// Arguments of `images`.
#[derive(clap::Args)]
pub struct Args {}

pub fn run(_arguments: Args) -> Result<ExitCode, Box<dyn Error>> {
    Err("this subcommand is not built yet".into())
}
