//! A node that commits while its tenant writes, until it is killed. Arguments: directory of its state, directory of the
//! store, epoch, seed, number of the first change. What it knows for certain it says on standard output, a line at a time:
//! `begun`, then `acked <number>` for each transaction that the store has.

use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use vivarium_node::journal::JournalError;
use vivarium_oracle::place::{Error, Place};
use vivarium_oracle::rng::Rng;
use vivarium_oracle::workload::Workload;
use vivarium_store::faults::Faults;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vivarium-oracle-node: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [state, store, epoch, seed, first] = &arguments[..] else {
        return Err("usage: vivarium-oracle-node STATE STORE EPOCH SEED FIRST".into());
    };
    let (epoch, seed, first) = (epoch.parse()?, seed.parse::<u64>()?, first.parse::<u32>()?);
    let mut rng = Rng::new(seed, u64::from(first) << 32);
    let faults = if rng.once_in(3) {
        Faults::NONE
    } else {
        Faults { fails: 0.1, answer_lost: 0.2, stale_list: 0.3, full: 0.05, loser_told_500: 0.3, ..Faults::NONE }
    };
    let place = Place::open(Path::new(state), Path::new(store), rng.number(), faults)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let (mut journal, _) = loop {
        match runtime.block_on(place.begin(epoch)) {
            Err(JournalError::Store { .. }) => {}
            begun => break begun?,
        }
    };
    say("begun")?;
    let upper = place.upper()?;
    std::thread::spawn(move || {
        let mut workload = Workload::new(upper.as_fd(), "upper/".len(), &[], seed);
        for number in first.. {
            if let Err(error) = workload.change(number) {
                eprintln!("change {number}: {error}");
                std::process::exit(3);
            }
            std::thread::sleep(Duration::from_micros(rng.below(4000)));
        }
    });
    loop {
        place.pool.sync()?;
        match runtime.block_on(journal.commit()) {
            Ok(committed) if committed.bytes > 0 => say(&format!("acked {}", committed.head.sequence))?,
            Ok(_) | Err(JournalError::Store { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn say(line: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}
