//! A thousand volumes, each through several lives on two nodes over a store that fails in every way that a store fails in,
//! each life ended at a fail point or by itself, each taken over in the end. Everything goes through the node driver's own
//! code; what was found is judged by [`vivarium_oracle::ledger`].
//!
//! `VIVARIUM_ORACLE_CASES` is how many cases are run (or `FIRST..END`).

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what must hold by unwrapping it")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use support::Cluster;
use vivarium_oracle::ledger::Trees;
use vivarium_oracle::life::Life;
use vivarium_oracle::place::Conditions;
use vivarium_oracle::rng::Rng;
use vivarium_oracle::said::Said;

const CASES: u64 = 1000;
/// Most of the time they wait, for stores that are slow and for disks.
const AT_A_TIME: usize = 8;
/// A life that takes longer hangs.
const LONGEST: Duration = Duration::from_secs(120);
/// Exit code of a node that knows that it has lost the volume.
const SUPERSEDED: i32 = 4;
const KILLED: i32 = 9;

/// Fail points that only a node passes that had the volume before: they would come up too seldom.
const COMING_BACK: [&str; 10] = [
    "diverged-set-aside",
    "superseded-deleted",
    "left-over-in-store",
    "former-log-settled",
    "log-adopted",
    "base-copied",
    "copy-of-base-named",
    "volume-is-copy",
    "copy-stripped",
    "volume-unnamed",
];

/// Every fail point that the source has.
fn points() -> Vec<String> {
    let mut points = BTreeSet::new();
    let root = Path::new("..");
    let mut folders = vec![root.join("store/src"), root.join("volume-driver/src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            for call in text.split("passed(\"").skip(1) {
                let name = call.split('"').next().unwrap().to_owned();
                assert!(points.insert(name.clone()), "two fail points are called {name}");
            }
        }
    }
    points.into_iter().collect()
}

/// What became of all cases.
#[derive(Default)]
struct Tally {
    /// How often which point ended a life.
    hit: BTreeMap<String, u64>,
    lives: u64,
    acked: u64,
    restored: u64,
    undead: u64,
}

struct Case<'a> {
    cluster: &'a Cluster,
    seed: u64,
    volume: String,
    trees: Trees,
    lives: u32,
    tally: Tally,
    story: String,
}

impl Case<'_> {
    /// A life on a node, and whether it could open its epoch.
    fn live(&mut self, node: usize, epoch: u64, armed: Option<(&str, u64)>) -> Result<bool, String> {
        let life = Life { seed: self.seed, number: self.lives, epoch };
        self.lives += 1;
        let (status, said) = self.cluster.start("step", node, &self.volume, life, armed).wait(LONGEST);
        let _ = writeln!(self.story, "life {} on node {node}, epoch {epoch}, {armed:?}: {status:?}", life.number);
        for line in &said {
            let _ = writeln!(self.story, "  {line}");
        }
        let status = status.ok_or("it hung")?;
        match (status.code(), status.signal(), armed) {
            (Some(0), ..) => {}
            (_, Some(KILLED), Some((point, _))) => *self.tally.hit.entry(point.to_owned()).or_default() += 1,
            _ => return Err(format!("it ended with {status}")),
        }
        self.trees.hear(node, &said).map_err(|violation| violation.to_string())?;
        self.tally.lives += 1;
        for line in &said {
            self.tally.acked += u64::from(matches!(line.said, Said::Acked(_)));
            self.tally.restored +=
                u64::from(matches!(line.said, Said::Begun(vivarium_oracle::said::Origin::Restored, _)));
        }
        Ok(said.iter().any(|line| matches!(line.said, Said::Begun(..))))
    }

    /// A node that does not know that another has the volume: nothing that it does may succeed.
    fn undead(&mut self, node: usize, epoch: u64) -> Result<(), String> {
        let life = Life { seed: self.seed, number: self.lives, epoch };
        self.lives += 1;
        let (status, said) = self.cluster.start("undead", node, &self.volume, life, None).wait(LONGEST);
        let _ = writeln!(self.story, "undead life {} on node {node}, epoch {epoch}: {status:?} {said:?}", life.number);
        self.tally.undead += 1;
        match status.and_then(|status| status.code()) {
            // Over a store that fails, it may not have found out.
            Some(0 | SUPERSEDED) if said.is_empty() => Ok(()),
            _ => Err("a node that lost the volume had something acknowledged".into()),
        }
    }

    fn run(&mut self, points: &[String]) -> Result<(), String> {
        let mut rng = Rng::new(self.seed, u64::MAX - 1);
        let (mut node, mut epoch) = (0, 1);
        // Who has opened an epoch, and which.
        let (mut opened, mut been) = (None, BTreeSet::new());
        for _ in 0..rng.between(2, 6) {
            let (point, times) = match rng.pick(&COMING_BACK) {
                // A life passes these once, if at all.
                Some(point) if been.contains(&node) && !rng.once_in(4) => (*point, 1),
                _ => {
                    let point = rng.pick(points).map(String::as_str).unwrap_or_default();
                    (point, *rng.pick(&[1, 1, 2, 5]).unwrap_or(&1))
                }
            };
            been.insert(node);
            let armed = (!rng.once_in(4)).then_some((point, times));
            let before = opened;
            if self.live(node, epoch, armed)? {
                opened = Some((node, epoch));
            }
            if let Some((old, old_epoch)) = before.filter(|(old, _)| *old != node && opened == Some((node, epoch)))
                && rng.once_in(3)
            {
                self.undead(old, old_epoch)?;
            }
            match rng.below(6) {
                // The process comes back.
                0 => {}
                // The next incarnation, on the same node.
                1 => epoch += 1,
                _ => (node, epoch) = (1 - node, epoch + 1),
            }
        }
        if self.live(1 - node, epoch + 1, None)? { Ok(()) } else { Err("the last epoch could not be opened".into()) }
    }
}

fn judge(cluster: &Cluster, seed: u64, points: &[String]) -> Result<Tally, String> {
    let volume = format!("case-{seed}");
    let conditions = Conditions::plain(&volume);
    let nodes = [cluster.place(0, &conditions), cluster.place(1, &conditions)];
    let (trees, tally, story) = Default::default();
    let mut case = Case { cluster, seed, volume, trees, lives: 0, tally, story };
    case.run(points).map_err(|what| {
        format!(
            "case {seed}: {what}\n{}repeat it with: VIVARIUM_ORACLE_CASES={seed}..{} cargo test -p vivarium-oracle --test cases\n",
            case.story,
            seed + 1
        )
    })?;
    for node in nodes {
        node.clear().unwrap();
    }
    std::fs::remove_dir_all(cluster.store()).unwrap();
    Ok(case.tally)
}

#[test]
fn whatever_dies_and_fails_a_volume_is_that_of_a_committed_instant() {
    let (cases, points) = (support::cases("VIVARIUM_ORACLE_CASES", CASES), points());
    assert!(points.len() > 20, "too few fail points in the source: {points:?}");
    let (next, failures, sum) = (AtomicU64::new(cases.start), Mutex::new(Vec::new()), Mutex::new(Tally::default()));
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                let mut cluster = Cluster::new();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= cases.end || failures.lock().unwrap().len() >= 5 {
                        return;
                    }
                    match judge(&cluster, seed, &points) {
                        Ok(tally) => sum.lock().unwrap().add(tally),
                        Err(report) => {
                            eprintln!("{report}");
                            failures.lock().unwrap().push(report);
                            // What is left over is of no use to the next.
                            cluster = Cluster::new();
                        }
                    }
                }
            });
        }
    });
    let (failures, sum) = (failures.into_inner().unwrap(), sum.into_inner().unwrap());
    println!(
        "{} lives, {} commits acknowledged, {} restores, {} undead",
        sum.lives, sum.acked, sum.restored, sum.undead
    );
    println!("ended at: {:?}", sum.hit);
    assert!(failures.is_empty(), "{} of {cases:?} failed:\n{}", failures.len(), failures.join("\n"));
    // A few cases cannot pass everywhere.
    if cases.end - cases.start >= CASES {
        let missed: Vec<&String> = points.iter().filter(|point| !sum.hit.contains_key(*point)).collect();
        assert!(missed.is_empty(), "no life ended at {missed:?}: make it happen in `life`, or take the point away");
        assert!(sum.restored > CASES / 2 && sum.undead > 100, "too few cases of what matters");
    }
}

impl Tally {
    fn add(&mut self, other: Self) {
        for (point, times) in other.hit {
            *self.hit.entry(point).or_default() += times;
        }
        self.lives += other.lives;
        self.acked += other.acked;
        self.restored += other.restored;
        self.undead += other.undead;
    }
}
