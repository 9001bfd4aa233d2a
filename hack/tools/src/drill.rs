//! `hack/drill`: disasters in a lab that is up (`hack/quickstart` or `hack/test --only install --keep-lab`), one by one or
//! again and again. Each is a test of `e2e/tests/drill_*.rs`; it tells what was seen, how long environments were silent and
//! what they lost. Those that take long are not among the tests that `hack/test` runs.

use std::process::Command;

use clap::{Args, Subcommand};

use crate::test::DRILLS;
use crate::{checked, install, oracle, workspace};

/// The drill that needs the programs of the oracle.
const ORACLE: &str = "twenty_cases_of_the_oracle";

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
        /// How many environments are on the node that is hit; by itself each drill has what it needs.
        #[arg(long)]
        environments: Option<usize>,
        /// Fail it also when it takes longer than promised. The machine must have nothing else to do.
        #[arg(long)]
        judge: bool,
    },
    /// Cut the power of a node again and again. Fails when two incarnations ran at once, when more was lost than promised,
    /// and when 1 of 100 environments took longer than promised to answer.
    Soak {
        /// How often.
        #[arg(default_value_t = 100)]
        times: usize,
        /// How many environments are on the node that is hit.
        #[arg(long, default_value_t = 10)]
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
    /// There is no way to run tests.
    #[error(transparent)]
    Checked(#[from] checked::Error),
    /// The oracle could not be built.
    #[error(transparent)]
    Oracle(#[from] oracle::Error),
    /// Another name.
    #[error("there is no drill `{0}`; hack/drill list prints them")]
    NoSuchDrill(String),
    /// The drill was not passed.
    #[error("drill `{0}` failed; its messages are above")]
    Failed(String),
}

/// What a drill is told beside its name, by variables that `e2e/src/drill.rs` reads.
#[derive(Default)]
struct Told {
    environments: Option<usize>,
    rounds: Option<usize>,
    judge: bool,
}

/// Runs drills.
pub fn run(arguments: &Arguments) -> Result<(), Error> {
    match &arguments.what {
        What::List => {
            for name in names()? {
                println!("{name}");
            }
            Ok(())
        }
        What::Run { name, environments, judge } => {
            drill(name, &Told { environments: *environments, judge: *judge, ..Told::default() })
        }
        What::Soak { times, environments } => {
            drill("power_cuts", &Told { environments: Some(*environments), rounds: Some(*times), judge: true })
        }
    }
}

fn drill(name: &str, told: &Told) -> Result<(), Error> {
    if !names()?.iter().any(|known| known == name) {
        return Err(Error::NoSuchDrill(name.into()));
    }
    let mut command = cargo()?;
    if name == ORACLE {
        command.env(oracle::VARIABLE, oracle::programs()?);
    }
    command.args(["--exact", name, "--nocapture", "--test-threads=1", "--include-ignored"]);
    for (variable, number) in [
        ("VIVARIUM_DRILL_ENVIRONMENTS", told.environments),
        ("VIVARIUM_DRILL_ROUNDS", told.rounds),
        ("VIVARIUM_DRILL_JUDGE", told.judge.then_some(1)),
    ] {
        if let Some(number) = number {
            command.env(variable, number.to_string());
        }
    }
    let status = command.status().map_err(Error::Cargo)?;
    if status.success() { Ok(()) } else { Err(Error::Failed(name.into())) }
}

fn names() -> Result<Vec<String>, Error> {
    let mut command = cargo()?;
    let printed = install::output(command.args(["--list", "--include-ignored"]))?;
    Ok(listed(&printed))
}

/// Names in what a test program lists.
pub fn listed(printed: &str) -> Vec<String> {
    printed.lines().filter_map(|line| line.strip_suffix(": test")).map(Into::into).collect()
}

fn cargo() -> Result<Command, Error> {
    let mut command = install::connect()?.command("cargo");
    checked::test(&mut command, &workspace::root()?)?.arg("--quiet");
    command.args(DRILLS.iter().flat_map(|file| ["--test", file])).arg("--");
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_tests() {
        assert_eq!(listed("power_cuts: test\nb: benchmark\n\n1 test, 0 benchmarks\n"), ["power_cuts"]);
    }
}
