//! `hack/bench journal`: what journals cost. Needs root, btrfs-progs, zstd, git, dpkg and `PostgreSQL`.

use std::path::Path;
use std::process::ExitCode;

use vivarium_oracle::measure::{self, Effort};
use vivarium_oracle::place::Error;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vivarium-oracle-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [directory, runs, transactions] = &arguments[..] else {
        return Err("usage: vivarium-oracle-bench DIRECTORY RUNS TRANSACTIONS".into());
    };
    measure::run(Path::new(directory), Effort { runs: runs.parse()?, transactions: transactions.parse()? })
}
