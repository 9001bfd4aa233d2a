//! Random workloads: a volume that went through transaction files must be the same volume.
//!
//! `VIVARIUM_ORACLE_SEEDS` is how many cases are run (or `FIRST..END`), `VIVARIUM_ORACLE_PLAN` runs one plan as a failed
//! case printed it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what must hold by unwrapping it")]

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use vivarium_oracle::bench::Bench;
use vivarium_oracle::plan::{Plan, shrink};

/// As many as fit into a minute on two cores.
const SEEDS: u64 = 150;
/// Cases at a time, each with a pool of its own.
const AT_A_TIME: usize = 2;
/// Runs that are spent on making a failed case smaller.
const TRIES: usize = 150;

fn seeds() -> Range<u64> {
    let number = |text: &str| text.parse().unwrap_or_else(|_| panic!("VIVARIUM_ORACLE_SEEDS: '{text}' is no number"));
    match std::env::var("VIVARIUM_ORACLE_SEEDS") {
        Ok(text) => match text.split_once("..") {
            Some((first, end)) => number(first)..number(end),
            None => 0..number(&text),
        },
        Err(_) => 0..SEEDS,
    }
}

/// Runs a plan; tells what went wrong, with the smallest plan that goes wrong the same way.
fn judge(bench: &mut Bench, plan: &Plan) -> Result<(), String> {
    let (result, _) = bench.run(plan);
    let Err(failure) = result else { return Ok(()) };
    let kind = std::mem::discriminant(&failure);
    let smallest = shrink(plan, TRIES, |plan| bench.run(plan).0.is_err_and(|e| std::mem::discriminant(&e) == kind));
    let (result, log) = bench.run(&smallest);
    let shown = match result {
        Err(small) => format!("{small}\nsteps:\n  {}", log.join("\n  ")),
        Ok(()) => "it does not fail every time".into(),
    };
    Err(format!("seed {}: {failure}\nsmallest: VIVARIUM_ORACLE_PLAN='{smallest}'\n{shown}\n", plan.seed))
}

#[test]
fn a_volume_that_went_through_transactions_is_the_same() {
    assert!(rustix::process::geteuid().is_root(), "this test mounts btrfs file systems of its own: run it as root");
    if let Ok(text) = std::env::var("VIVARIUM_ORACLE_PLAN") {
        let plan = text.parse().unwrap();
        let (result, log) = Bench::new().unwrap().run(&plan);
        println!("steps:\n  {}", log.join("\n  "));
        return result.unwrap_or_else(|failure| panic!("{failure}"));
    }
    let seeds = seeds();
    let next = AtomicU64::new(seeds.start);
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                let mut bench = Bench::new().unwrap();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || failures.lock().unwrap().len() >= 5 {
                        return;
                    }
                    if let Err(report) = judge(&mut bench, &Plan::of(seed)) {
                        eprintln!("{report}");
                        failures.lock().unwrap().push(report);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} of {:?} failed:\n{}", failures.len(), seeds, failures.join("\n"));
}
