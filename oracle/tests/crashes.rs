//! A node is killed while its tenant writes and it commits, again and again; it comes back, or another takes over. What the
//! other then has must be the tree of one committed instant, and not an older one than was ever acknowledged.
//!
//! `VIVARIUM_ORACLE_CRASHES` is how many cases are run (or `FIRST..END`).

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what must hold by unwrapping it")]

use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vivarium_node::journal::begin::Origin;
use vivarium_oracle::place::Place;
use vivarium_oracle::rng::Rng;
use vivarium_store::faults::Faults;

const CASES: u64 = 6;
const AT_A_TIME: usize = 2;
/// Lives of nodes in a case.
const LIVES: u32 = 6;
/// Changes that no life reaches, so that each has numbers of its own.
const CHANGES: u32 = 100_000;
/// A node that has not begun by then hangs.
const BEGIN: Duration = Duration::from_secs(60);

fn cases() -> Range<u64> {
    let number = |text: &str| text.parse().unwrap_or_else(|_| panic!("VIVARIUM_ORACLE_CRASHES: '{text}' is no number"));
    match std::env::var("VIVARIUM_ORACLE_CRASHES") {
        Ok(text) => match text.split_once("..") {
            Some((first, end)) => number(first)..number(end),
            None => 0..number(&text),
        },
        Err(_) => 0..CASES,
    }
}

/// Two nodes and a store.
struct Cluster {
    directory: TempDir,
    seed: u64,
}

impl Cluster {
    fn state(&self, node: usize) -> PathBuf {
        self.directory.path().join(format!("node{node}"))
    }

    fn store(&self) -> PathBuf {
        self.directory.path().join("store")
    }

    fn place(&self, node: usize) -> Place {
        Place::open(&self.state(node), &self.store(), 0, Faults::NONE).unwrap()
    }

    /// Lets a node live for a while; tells the newest transaction that it was sure of.
    fn live(&self, node: usize, epoch: u64, first: u32, rng: &mut Rng) -> u64 {
        let mut child = Running(
            Command::new(env!("CARGO_BIN_EXE_vivarium-oracle-node"))
                .args([self.state(node).as_os_str(), self.store().as_os_str()])
                .args([epoch.to_string(), self.seed.to_string(), first.to_string()])
                .stdout(Stdio::piped())
                .spawn()
                .unwrap(),
        );
        let said = Arc::new(Mutex::new((false, 0)));
        let reader = {
            let (said, out) = (said.clone(), child.0.stdout.take().unwrap());
            std::thread::spawn(move || {
                for line in BufReader::new(out).lines().map_while(Result::ok) {
                    let mut said = said.lock().unwrap();
                    match line.strip_prefix("acked ") {
                        Some(number) => said.1 = number.parse().unwrap(),
                        None => said.0 = true,
                    }
                }
            })
        };
        // Now and then it does not even live to begin.
        let early = rng.once_in(5);
        let keeping = self.keep_beside(1 - node);
        let begin = Instant::now();
        while !early && !said.lock().unwrap().0 {
            assert!(begin.elapsed() < BEGIN, "the node has not begun");
            assert!(child.0.try_wait().unwrap().is_none(), "the node has ended by itself before it began");
            std::thread::sleep(Duration::from_millis(2));
        }
        std::thread::sleep(Duration::from_micros(rng.between(1_000, 900_000)));
        let ended = child.0.try_wait().unwrap();
        drop(child);
        reader.join().unwrap();
        keeping.end();
        assert!(ended.is_none(), "the node has ended by itself: {ended:?}");
        said.lock().unwrap().1
    }
}

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

impl Cluster {
    fn keep_beside(&self, node: usize) -> Keeping {
        let stop = Arc::new(AtomicBool::new(false));
        let (place, stopped) = (self.place(node), stop.clone());
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
        Keeping { stop, thread }
    }
}

/// Killed when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in 0..2 {
            let _ = rustix::mount::unmount(self.state(node).join("pool"), rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// Runs a case; tells the newest transaction that was acknowledged.
fn judge(seed: u64) -> u64 {
    let directory = tempfile::Builder::new().prefix("vivarium-oracle").tempdir().unwrap();
    let cluster = Cluster { directory, seed };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut rng = Rng::new(seed, u64::MAX - 1);
    let (mut owner, mut epoch, mut acked) = (0, 1, 0);
    for life in 0..LIVES {
        acked = cluster.live(owner, epoch, life * CHANGES, &mut rng).max(acked);
        match rng.below(4) {
            // The process comes back.
            0 => {}
            // The next incarnation, on the same node.
            1 => epoch += 1,
            _ => {
                epoch += 1;
                let other = 1 - owner;
                runtime.block_on(take_over(&cluster, owner, other, epoch, acked));
                owner = other;
            }
        }
    }
    epoch += 1;
    runtime.block_on(take_over(&cluster, owner, 1 - owner, epoch, acked));
    acked
}

async fn take_over(cluster: &Cluster, from: usize, to: usize, epoch: u64, acked: u64) {
    let what = format!("case {}, epoch {epoch}", cluster.seed);
    let (dead, heir) = (cluster.place(from), cluster.place(to));
    let (mut journal, origin) = heir.begin(epoch).await.unwrap();
    let barrier = journal.commit().await.unwrap().head.sequence;
    let last = barrier - 1;
    assert!(last >= acked, "{what}: transaction {acked} was acknowledged, and {last} is the last");
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

#[test]
fn whoever_takes_over_has_the_tree_of_a_committed_instant() {
    assert!(rustix::process::geteuid().is_root(), "this test mounts btrfs file systems of its own: run it as root");
    let cases = cases();
    let (next, acked) = (AtomicU64::new(cases.start), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= cases.end {
                        return;
                    }
                    acked.fetch_add(judge(seed), Ordering::Relaxed);
                }
            });
        }
    });
    let acked = acked.into_inner();
    let checkpoints = CHECKPOINTS.load(Ordering::Relaxed);
    println!("{acked} transactions were acknowledged, and {checkpoints} checkpoints made meanwhile");
    assert!(checkpoints >= cases.end - cases.start, "too few checkpoints to say anything: {checkpoints}");
    assert!(acked >= (cases.end - cases.start) * 4, "too little was committed to say anything: {acked} transactions");
}
