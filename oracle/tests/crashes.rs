//! A node is killed while its tenant writes and it commits, again and again; it comes back, or another takes over. What the
//! other then has must be the tree of one committed instant, not an older one than was ever acknowledged, with every record
//! in it whose fsync(2) had returned when a commit began that was acknowledged.
//!
//! `VIVARIUM_ORACLE_CRASHES` is how many cases are run (or `FIRST..END`).

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what must hold by unwrapping it")]

mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use support::Cluster;
use vivarium_node::journal::begin::Origin;
use vivarium_oracle::ledger::Records;
use vivarium_oracle::life::Life;
use vivarium_oracle::place::{Conditions, Place};
use vivarium_oracle::records;
use vivarium_oracle::rng::Rng;
use vivarium_oracle::said::Said;
use vivarium_store::faults::Faults;

const CASES: u64 = 6;
const AT_A_TIME: usize = 2;
/// Lives of nodes in a case.
const LIVES: u32 = 6;
/// A node that has not begun by then hangs.
const BEGIN: Duration = Duration::from_secs(60);
const VOLUME: &str = "volume";

/// Another node that keeps the journal short all the time.
struct Keeping {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<u64>,
}

static CHECKPOINTS: AtomicU64 = AtomicU64::new(0);

impl Keeping {
    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        CHECKPOINTS.fetch_add(self.thread.join().unwrap(), Ordering::Relaxed);
    }
}

impl Keeping {
    fn beside(place: Place) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let mut checkpoints = std::collections::BTreeSet::new();
            while !stopped.load(Ordering::Relaxed) {
                // A transaction that is gone when it is fetched: the journal went on meanwhile. The next attempt sees that.
                if let Ok(kept) = runtime.block_on(place.keep()) {
                    checkpoints.insert(kept.checkpoint);
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            checkpoints.remove(&0);
            checkpoints.len() as u64
        });
        Self { stop, thread }
    }
}

/// What is known of a case.
struct Case {
    cluster: Cluster,
    seed: u64,
    conditions: Conditions,
    records: Records,
    /// The newest transaction that a node was sure of.
    acked: u64,
    /// Longest time of what had been synced and was lost, while the store was well.
    window: Duration,
}

impl Case {
    /// Lets a node live for a while.
    fn live(&mut self, node: usize, life: Life, rng: &mut Rng) {
        // Now and then it does not even live to begin.
        let early = rng.once_in(5);
        let keeping = Keeping::beside(self.cluster.place(1 - node, &self.conditions));
        let mut running = self.cluster.start("race", node, VOLUME, life, None);
        let begin = Instant::now();
        while !early && running.said().is_empty() {
            assert!(begin.elapsed() < BEGIN, "case {}: the node has not begun", self.seed);
            assert!(running.ended().is_none(), "case {}: the node has ended before it began", self.seed);
            std::thread::sleep(Duration::from_millis(2));
        }
        std::thread::sleep(Duration::from_micros(rng.between(1_000, 900_000)));
        let ended = running.ended();
        let said = running.kill();
        keeping.end();
        assert!(ended.is_none(), "case {}: the node has ended by itself: {ended:?}", self.seed);
        self.records.hear(&said).unwrap_or_else(|violation| panic!("case {}: {violation}", self.seed));
        let is_well = life.is_well();
        for line in said {
            match line.said {
                Said::Acked(sequence) => self.acked = self.acked.max(sequence),
                // With a store that is well every commit is acknowledged, so no more than the last can be lost.
                Said::Failed => assert!(!is_well, "case {}: a commit failed for no reason", self.seed),
                _ => {}
            }
        }
    }

    async fn take_over(&mut self, from: usize, to: usize, epoch: u64) {
        let what = format!("case {}, epoch {epoch}", self.seed);
        let (dead, heir) = (self.cluster.place(from, &self.conditions), self.cluster.place(to, &self.conditions));
        let (_, origin) = heir.begin(epoch).await.unwrap();
        // A commit could add something by now: overlayfs's work directory was emptied.
        let barrier = heir.tail().await.unwrap();
        let (last, acked) = (barrier - 1, self.acked);
        assert!(last >= acked, "{what}: transaction {acked} was acknowledged, and {last} is the last");
        let found = records::read(&heir.live().join("data/records")).unwrap();
        let gone = self.records.restored(found).unwrap_or_else(|violation| panic!("{what}: {violation}"));
        self.window = self.window.max(gone.unwrap_or_default());
        // Nothing was ever there: the dead one did not even live to make the volume.
        if matches!(origin, Origin::New) {
            return;
        }
        let expected = dead.tree_at(last).unwrap();
        let found = heir.tree_at(barrier).unwrap();
        if expected != found {
            let (expected, found) = (expected.unwrap_or_default(), found.unwrap_or_default());
            let missing: Vec<_> = expected.iter().filter(|line| !found.contains(line)).take(5).collect();
            let more: Vec<_> = found.iter().filter(|line| !expected.contains(line)).take(5).collect();
            panic!("{what}: the tree is not that of transaction {last}:\n- {missing:#?}\n+ {more:#?}");
        }
    }
}

/// Runs a case.
fn judge(seed: u64) -> Case {
    let conditions = Life { seed, number: 0, epoch: 0 }.conditions(VOLUME);
    // Whoever judges has a store that is well.
    let conditions = Conditions { faults: Faults::NONE, held_up: 0, ..conditions };
    let (cluster, records) = (Cluster::new(), Records::default());
    let mut case = Case { cluster, seed, conditions, records, acked: 0, window: Duration::ZERO };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut rng = Rng::new(seed, u64::MAX - 1);
    let (mut owner, mut epoch) = (0, 1);
    for number in 0..LIVES {
        case.live(owner, Life { seed, number, epoch }, &mut rng);
        match rng.below(4) {
            // The process comes back.
            0 => {}
            // The next incarnation, on the same node.
            1 => epoch += 1,
            _ => {
                epoch += 1;
                runtime.block_on(case.take_over(owner, 1 - owner, epoch));
                owner = 1 - owner;
            }
        }
    }
    runtime.block_on(case.take_over(owner, 1 - owner, epoch + 1));
    case
}

#[test]
fn whoever_takes_over_has_the_tree_of_a_committed_instant() {
    let cases = support::cases("VIVARIUM_ORACLE_CRASHES", CASES);
    let (next, acked, window) = (AtomicU64::new(cases.start), AtomicU64::new(0), Mutex::new(Duration::ZERO));
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= cases.end {
                        return;
                    }
                    let case = judge(seed);
                    acked.fetch_add(case.acked, Ordering::Relaxed);
                    let mut window = window.lock().unwrap();
                    *window = window.max(case.window);
                }
            });
        }
    });
    let (acked, window) = (acked.into_inner(), window.into_inner().unwrap());
    let checkpoints = CHECKPOINTS.load(Ordering::Relaxed);
    println!("{acked} transactions were acknowledged, and {checkpoints} checkpoints made meanwhile");
    println!(
        "the longest time between the last acknowledged commit's begin and an end that lost something: {window:?}"
    );
    assert!(checkpoints >= cases.end - cases.start, "too few checkpoints to say anything: {checkpoints}");
    assert!(acked >= (cases.end - cases.start) * 4, "too little was committed to say anything: {acked} transactions");
}
