//! A node with one volume, which is made to end in some way. What it knows for certain it says on standard output
//! ([`vivarium_oracle::said`]). Exit codes: 0 it has done what it was to do, 4 the volume is somebody else's, 1 and others it
//! failed.

use std::path::Path;
use std::process::ExitCode;

use vivarium_node::journal::JournalError;
use vivarium_node::pool::PoolSource;
use vivarium_oracle::life::{self, Life};
use vivarium_oracle::place::{Error, Mirror, Place};
use vivarium_oracle::said::Mouth;

const USAGE: &str =
    "usage: vivarium-oracle-node step|endure|race|undead|PROGRAM STATE STORE VOLUME EPOCH SEED LIFE [POOL]";
const SUPERSEDED: u8 = 4;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if matches!(error.downcast_ref(), Some(JournalError::Superseded { .. })) {
                return SUPERSEDED.into();
            }
            eprintln!("vivarium-oracle-node: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [what, state, store, volume, epoch, seed, number, device @ ..] = &arguments[..] else {
        return Err(USAGE.into());
    };
    let life = Life { seed: seed.parse()?, number: number.parse()?, epoch: epoch.parse()? };
    let mouth = Mouth::open();
    let mut conditions = life.conditions(volume);
    if what == "endure" {
        // On a machine that is emulated every answer may be slow.
        (conditions.faults.slow, conditions.faults.answer_late) = (0.0, 0.0);
    }
    if what != "step" && conditions.mirror == Mirror::Alone {
        // Who lost the volume was not told that the first store is given up, and in the other tests it is not.
        conditions.mirror = Mirror::There;
    }
    if let Some(device) = device.first() {
        conditions.pool = PoolSource::Device(device.into());
    }
    let place = Place::open(Path::new(state), Path::new(store), &conditions)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    match what.as_str() {
        "step" => runtime.block_on(life::step_by_step(&place, life, mouth)),
        "endure" => runtime.block_on(life::endure(&place, life, mouth)),
        "race" => runtime.block_on(life::race(&place, life, mouth)),
        "undead" => runtime.block_on(life::undead(&place, life, mouth)),
        program => runtime.block_on(life::work(&place, life, mouth, program.parse()?)),
    }
}
