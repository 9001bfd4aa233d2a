//! The oracle through the whole cluster: tenants that change their trees in every way there is while something goes wrong, and
//! then their node dies. What the next node has must be the tree of one instant that the dead one had committed, not older
//! than the last that it was sure of, with everything in it that was synced before the time that is promised.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and a drill tells what it measured"
)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vivarium_e2e::drill::{Drill, Promise, allowance, count};
use vivarium_e2e::witness::{now, stripped};
use vivarium_e2e::{DEADLINE, Environment, eventually, get, lab, run_with};

/// Where the tenant works.
const HOME: &str = "srv/oracle";
const NAME: &str = "vivarium-oracle-tenant";
/// Volumes on a node.
const VOLUMES: &str = "/var/lib/vivarium/pool/volumes";

fn program() -> PathBuf {
    let folder = std::env::var("VIVARIUM_ORACLE").expect("VIVARIUM_ORACLE names the oracle's programs: run hack/drill");
    Path::new(&folder).join(NAME)
}

/// A tenant at work, and the records that it said to be on disk, each with when that was heard.
struct Tenant {
    child: Child,
    synced: Arc<Mutex<Vec<(u64, u64)>>>,
}

impl Tenant {
    /// Begins a life of the tenant of `seed` in an environment.
    fn start(ve: &Environment, seed: u64, life: usize) -> Self {
        let mut command = Command::new("kubectl");
        command.args(["-n", &ve.namespace, "exec", &ve.pod(), "--", &format!("/usr/local/bin/{NAME}"), "work"]);
        command.args([format!("/{HOME}"), seed.to_string(), life.to_string()]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let synced: Arc<Mutex<Vec<(u64, u64)>>> = Arc::default();
        let (lines, sink) = (BufReader::new(child.stdout.take().unwrap()), synced.clone());
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                let words: Vec<&str> = line.split(' ').collect();
                let ["synced", record] = words[1..] else { panic!("a tenant said: {line}") };
                sink.lock().unwrap().push((now(), record.parse().unwrap()));
            }
        });
        Self { child, synced }
    }

    /// The last record that it said before an instant; 0: none.
    fn synced_before(&self, instant: u64) -> u64 {
        let synced = self.synced.lock().unwrap();
        synced.iter().rev().find(|(at, _)| *at < instant).map_or(0, |(_, record)| *record)
    }
}

impl Drop for Tenant {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A tree, and the last record beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Tree {
    digest: String,
    records: u64,
}

fn parse(printed: &str) -> Vec<Tree> {
    let tree = |line: &str| {
        let (digest, records) = line.split_once(' ').unwrap_or_else(|| panic!("no tree: {line}"));
        Tree { digest: digest.into(), records: records.parse().unwrap() }
    };
    printed.lines().map(tree).collect()
}

/// What a dead node has of volumes: of each the committed state, and the one of which nobody knew whether it was committed.
/// Its disk is mounted as the node itself would do it at its next start.
fn left_behind(node: &str, volumes: &[String]) -> Vec<Vec<Tree>> {
    let image = lab::directory().join(format!("nodes/{node}/var-lib-vivarium/pool.img"));
    let directory = tempfile::tempdir().unwrap();
    let (image, at, program) = (image.display(), directory.path().display(), program());
    let program = program.display();
    let per_volume = |volume: &String| {
        let of = |name: &str| format!("$at/volumes/{volume}/{name}/upper/{HOME}");
        format!(
            "cd $at/volumes/{volume}; noted=$(sed -n 's/^ *\"base\": \\([0-9]*\\).*/\\1/p' journal.json); : ${{noted:?journal.json has no base}}; {program} tree {}; \
             for base in base.*; do [ ! -e attempt.vtx ] || [ ${{base#base.}} -le $noted ] || {program} tree {}; done; echo",
            of("base.$noted"),
            of("$base")
        )
    };
    let lines: Vec<String> = volumes.iter().map(per_volume).collect();
    let line = format!("set -e; at={at}; mount -t btrfs -o loop {image} $at; {}; cd /; umount $at", lines.join("; "));
    let printed = eventually("the disk of the dead node", DEADLINE, || {
        let ran = run_with("unshare", &["--mount", "--propagation", "private", "--", "sh", "-c", &line], "");
        if ran.ok { Ok(ran.stdout) } else { Err(ran.stderr) }
    });
    let all: Vec<_> = printed.trim_end().split("\n\n").map(parse).collect();
    assert_eq!(all.len(), volumes.len(), "{printed}");
    all
}

/// What a node has of a volume that it holds. Nobody works in that tree there.
fn found(node: &str, volume: &str) -> Tree {
    let line = format!("{} tree {VOLUMES}/{volume}/live/upper/{HOME}", program().display());
    parse(&lab::node_sh(node, &line)).remove(0)
}

/// What goes wrong before the power is cut; what is promised then. Drivers that are killed again and again may not come to
/// commit anything.
fn harass(drill: &Drill, round: usize) -> Promise {
    std::thread::sleep(Duration::from_secs(10));
    let begun = Instant::now();
    if round == 0 {
        for pause in [1300, 2900, 700, 2100] {
            lab::node_sh(&drill.node, "pkill -KILL -n -x vivarium-node");
            std::thread::sleep(Duration::from_millis(pause));
        }
    } else {
        lab::signal("ceph-gateway", "STOP");
        std::thread::sleep(Duration::from_secs(3));
        lab::signal("ceph-gateway", "CONT");
        std::thread::sleep(Duration::from_millis(700));
    }
    Promise::Hindered(begun.elapsed())
}

#[test]
fn twenty_cases_of_the_oracle() {
    let mut drill = Drill::new(count(10));
    let tenant = stripped(&program());
    let volumes: Vec<String> = drill
        .environments
        .iter()
        .map(|(_, ve)| {
            let volume = get(&["-n", &ve.namespace, "environmentvolume", &ve.name]).expect("its volume");
            volume["metadata"]["uid"].as_str().expect("a UID").to_owned()
        })
        .collect();
    let (mut lost, mut records) = (Duration::ZERO, 0);
    for round in 0..2 {
        let start = |(number, (_, ve)): (usize, &(String, Environment))| {
            ve.install(NAME, &tenant);
            Tenant::start(ve, number as u64, round)
        };
        let tenants: Vec<Tenant> = drill.environments.iter().enumerate().map(start).collect();
        let promise = harass(&drill, round);
        let cut = drill.cut_power();
        let left = left_behind(&drill.node, &volumes);
        drill.moved(&format!("round {round} of the oracle"), &cut, promise);
        for (((name, ve), tenant), (volume, left)) in
            drill.environments.iter().zip(&tenants).zip(volumes.iter().zip(&left))
        {
            let found = found(&ve.node(), volume);
            assert!(left.contains(&found), "{name}: {found:?} is none of {left:?}");
            let must =
                tenant.synced_before(cut.at - u64::try_from((promise.window() + allowance()).as_millis()).unwrap());
            assert!(must > 0, "{name}: its tenant has synced nothing");
            assert!(found.records >= must, "{name}: record {must} was synced in time, {} is the last", found.records);
            let first_lost = tenant.synced.lock().unwrap().iter().find(|(_, record)| *record > found.records).copied();
            lost = lost.max(Duration::from_millis(first_lost.map_or(0, |(at, _)| cut.at.saturating_sub(at))));
            records += found.records;
        }
        drop(tenants);
        lab::lab_ok(&["node", "power-on", &drill.node]);
        drill.turn();
    }
    println!("=== {} cases: {records} records found, at most {lost:?} of synced ones lost", 2 * volumes.len());
}
