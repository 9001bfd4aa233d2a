//! The subcommand `lab`.

use std::{error::Error, process::ExitCode};

/// Arguments of `lab`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Build the programs into the cache without starting anything.
    Build,
}

pub fn run(arguments: Args) -> Result<ExitCode, Box<dyn Error>> {
    match arguments.command {
        Command::Build => {
            crate::build::ensure_packages()?;
            for (name, path) in crate::build::ensure_programs()?.iter() {
                println!("{name} {}", path.display());
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
