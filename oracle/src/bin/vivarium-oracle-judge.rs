//! Judges a [`vivarium_oracle::transcript`]: prints what there was to judge, or what does not hold and exits with 1.

use std::process::ExitCode;

use vivarium_oracle::transcript::judge;

fn main() -> ExitCode {
    let Some(path) = std::env::args().nth(1) else {
        eprintln!("usage: vivarium-oracle-judge TRANSCRIPT");
        return ExitCode::FAILURE;
    };
    let judged = std::fs::read_to_string(&path).map_err(|error| format!("cannot read {path}: {error}"));
    match judged.and_then(|text| judge(&text).map_err(|error| error.to_string())) {
        Ok(figures) => {
            println!("{figures}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
