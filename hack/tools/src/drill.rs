//! `hack/drill`: disasters in a lab that is up (`hack/quickstart` or `hack/test --only install --keep-lab`), one by one or
//! again and again. Each is a test of `e2e/tests/drills.rs`; it prints how long environments were silent and what they lost.

use std::process::Command;

use clap::{Args, Subcommand};

use crate::install;
use crate::workspace;

/// Arguments of `hack/drill`.
#[derive(Args)]
pub struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Print the names of the drills.
    List,
    /// Run one drill.
    Run {
        /// Its name.
        name: String,
        /// How many environments are on the node that is hit.
        #[arg(long, default_value_t = 3)]
        environments: usize,
    },
    /// Cut the power of a node again and again.
    Soak {
        /// How often.
        #[arg(default_value_t = 100)]
        times: usize,
        /// How many environments are on the node that is hit.
        #[arg(long, default_value_t = 3)]
        environments: usize,
    },
}

/// Why a drill could not be run, or was not passed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no lab, or nothing is installed in it.
    #[error(transparent)]
    Install(#[from] install::Error),
    /// The workspace could not be found.
    #[error(transparent)]
    Workspace(#[from] workspace::Error),
    /// cargo could not be run.
    #[error("cannot run cargo: {0}")]
    Cargo(std::io::Error),
    /// The drill was not passed.
    #[error("drill `{name}` failed in round {round} of {rounds}; its messages are above")]
    Failed {
        /// Which.
        name: String,
        /// In which round.
        round: usize,
        /// Of how many.
        rounds: usize,
    },
}

/// Runs drills.
pub fn run(arguments: &Arguments) -> Result<(), Error> {
    match &arguments.what {
        What::List => {
            cargo(&["--list"], 0)?;
            Ok(())
        }
        What::Run { name, environments } => repeat(name, *environments, 1),
        What::Soak { times, environments } => repeat("power_cut", *environments, *times),
    }
}

fn repeat(name: &str, environments: usize, rounds: usize) -> Result<(), Error> {
    for round in 1..=rounds {
        if rounds > 1 {
            println!("=== {name}: {round} of {rounds}");
        }
        if !cargo(&["--exact", name, "--nocapture", "--test-threads=1"], environments)? {
            return Err(Error::Failed { name: name.into(), round, rounds });
        }
    }
    Ok(())
}

fn cargo(arguments: &[&str], environments: usize) -> Result<bool, Error> {
    let root = workspace::root()?;
    let mut command: Command = install::connect()?.command("cargo");
    command.args(["test", "--quiet", "-p", "vivarium-e2e", "--locked", "--test", "drills", "--"]).args(arguments);
    command.env("VIVARIUM_DRILL_ENVIRONMENTS", environments.to_string()).current_dir(root);
    command.status().map(|status| status.success()).map_err(Error::Cargo)
}
