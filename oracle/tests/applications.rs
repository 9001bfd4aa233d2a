//! Real programs lose their node while they work: databases, a repository, a package manager. Where another node takes over,
//! each must find its own data whole, with every transaction that it had made last when a commit began that was acknowledged.
//!
//! Needs sqlite3, `PostgreSQL`, git and dpkg on this machine: `hack/test` installs them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what must hold by unwrapping it")]

mod support;

use std::time::{Duration, Instant};

use support::Cluster;
use vivarium_oracle::application::{Application, Home};
use vivarium_oracle::ledger::Records;
use vivarium_oracle::life::Life;
use vivarium_oracle::place::Conditions;
use vivarium_oracle::rng::Rng;
use vivarium_oracle::said::{Line, Said};
use vivarium_store::faults::Faults;

const LIVES: u32 = 3;
/// Transactions of a life, at least.
const LEAST: usize = 3;
const VOLUME: &str = "volume";
/// A node that has not begun, or not committed, by then hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Lets a program lose its node again and again. Tells how many transactions it has done.
fn judge(application: Application) -> u64 {
    let cluster = Cluster::new();
    let seed = Application::ALL.iter().position(|other| *other == application).unwrap() as u64;
    let mut rng = Rng::new(seed, u64::MAX - 2);
    let (mut records, mut node, mut done) = (Records::default(), 0, 0);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let conditions = Life { seed, number: 0, epoch: 0 }.conditions(VOLUME);
    let conditions = Conditions { faults: Faults::NONE, held_up: 0, ..conditions };
    for number in 0..LIVES {
        let what = format!("{application:?}, life {number}");
        let epoch = u64::from(number) * 2 + 1;
        let mut running = cluster.start(&format!("{application:?}"), node, VOLUME, Life { seed, number, epoch }, None);
        let begun = Instant::now();
        // Some transactions, a commit that began after them, and its acknowledgement.
        let acked_work = |said: &[Line]| {
            let mut rest = said.iter().filter(|line| !matches!(line.said, Said::Failed));
            rest.by_ref().filter(|line| matches!(line.said, Said::Synced(_))).nth(LEAST - 1).is_some()
                && rest.any(|line| line.said == Said::Tick)
                && rest.any(|line| matches!(line.said, Said::Acked(_)))
        };
        while !acked_work(&running.said()) {
            assert!(running.ended().is_none() && begun.elapsed() < PATIENCE, "{what}: it does not work");
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(rng.between(0, 700)));
        assert!(running.ended().is_none(), "{what}: it ended by itself");
        records.hear(&running.kill()).unwrap_or_else(|violation| panic!("{what}: {violation}"));
        node = 1 - node;
        let heir = cluster.place(node, &conditions);
        runtime.block_on(heir.begin(epoch + 1)).unwrap();
        let home = Home::open(application, &heir.live().join("data"), &heir.aside()).unwrap();
        done = home.verify().unwrap_or_else(|error| panic!("{what}: {error}"));
        records.restored(done).unwrap_or_else(|violation| panic!("{what}: {violation}"));
    }
    done
}

#[test]
fn a_program_finds_its_data_whole_and_nothing_acknowledged_missing() {
    std::thread::scope(|scope| {
        let (one, other) = Application::ALL.split_at(2);
        let judged = [one, other].map(|some| {
            scope.spawn(move || {
                for application in some {
                    let done = judge(*application);
                    println!("{application:?}: {done} transactions");
                    assert!(
                        done >= u64::from(LIVES) * LEAST as u64,
                        "{application:?} has done too little to say anything: {done}"
                    );
                }
            })
        });
        for judged in judged {
            judged.join().unwrap();
        }
    });
}
