//! Drills: nodes that are cut off from a part of the others, in each direction. See [`vivarium_e2e::drill`].
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and a drill tells what it measured"
)]

use serde_json::Value;
use vivarium_e2e::drill::{Cut, Drill, Promise, count};
use vivarium_e2e::{DEADLINE, Environment, eventually, get, kubectl_ok, lab};

/// Drops what a node and its pods send or are sent, until it is dropped itself.
struct Partition<'a>(&'a str);

impl<'a> Partition<'a> {
    /// `how` are words of `hack/lab node partition`.
    fn new(node: &'a str, how: &str) -> Self {
        let mut all = vec!["node", "partition", node];
        all.extend(how.split(' '));
        lab::lab_ok(&all);
        Self(node)
    }
}

impl Drop for Partition<'_> {
    fn drop(&mut self) {
        lab::lab_ok(&["node", "heal", self.0]);
    }
}

/// Where an environment leaves a file five times a second.
const TRACES: &str = "/srv/traces";
/// What does: each file has the time as its name and as its content. It ends with the incarnation.
const TRACER: &str = "#!/bin/sh\nwhile now=$(date +%s%3N); do echo $now > /srv/traces/$now; sleep 0.2; done\n";

/// The hardest one: the node lives and its environments can be heard, but nobody that counts hears of it. They must have
/// fallen silent before the others begin, and must not speak again. What they wrote meanwhile can be read later.
fn cut_off(direction: &str) {
    let drill = Drill::new(count(3));
    let epoch = |(_, ve): &(String, Environment)| ve.object()["status"]["epoch"].as_u64().unwrap();
    let epochs: Vec<u64> = drill.environments.iter().map(epoch).collect();
    let (_, first) = &drill.environments[0];
    first.install("tracer", TRACER.as_bytes());
    first.sh(&format!("rm -rf {TRACES} && mkdir {TRACES} && systemd-run --quiet /usr/local/bin/tracer"));
    let cut = drill.cut();
    let partition = Partition::new(&drill.node, &format!("{direction} --from api --from store"));
    drill.moved(&format!("cut off from API server and store, {direction}"), &cut, Promise::Isolated);
    drop(partition);
    drill.back_and_still_there(&cut);
    for ((name, ve), epoch) in drill.environments.iter().zip(&epochs) {
        eventually(&format!("what {} alone had of {name} is set aside", drill.node), DEADLINE, || {
            let volume = get(&["-n", &ve.namespace, "evol", &ve.name]).unwrap_or_default();
            let diverged = &volume["status"]["diverged"];
            let is_it = |one: &Value| one["node"] == drill.node.as_str() && one["epoch"] == *epoch;
            let told = diverged.as_array().is_some_and(|all| all.iter().any(is_it));
            if told { Ok(()) } else { Err(diverged.to_string()) }
        });
    }
    what_was_set_aside_is_read(first, &format!("{}/{}", drill.node, epochs[0]), &cut);
}

/// There is something that was written after the cut and that the next incarnation does not have. `diverged` is as
/// `kubectl ve` takes it.
fn what_was_set_aside_is_read(ve: &Environment, diverged: &str, cut: &Cut) {
    let read = |how: &str, path: &str| {
        let place = format!("{}:{path}", ve.name);
        kubectl_ok(&["ve", "-n", &ve.namespace, how, &place, "--diverged", diverged])
    };
    let listed = read("ls", TRACES);
    // The directory may be gone with what is in it.
    let left = ve.sh(&format!("ls {TRACES} 2>/dev/null || true"));
    let mut names = listed.lines().filter_map(|line| line.rsplit(' ').next());
    let is_lost = |name: &&str| {
        let after = name.parse::<u64>().is_ok_and(|at| at > cut.at);
        after && left.lines().all(|kept| kept != *name)
    };
    let lost = names.find(is_lost).unwrap_or_else(|| panic!("nothing is lost: set aside is {listed}; left is {left}"));
    assert_eq!(read("cat", &format!("{TRACES}/{lost}")), format!("{lost}\n"));
    println!("    {diverged} of {} has {TRACES}/{lost}, which the next incarnation has not", ve.name);
    ve.sh(&format!("rm -rf {TRACES}"));
}

#[test]
fn cut_off_from_both_witnesses() {
    cut_off("--out");
}

/// What the node says arrives: it is the answers that do not.
#[test]
#[ignore = "long: hack/drill run answers_of_both_witnesses_are_lost"]
fn answers_of_both_witnesses_are_lost() {
    cut_off("--in");
}

/// The whole cable: the witness does not hear the environments either, which go on until the promise is over.
#[test]
fn the_cable_is_pulled() {
    let drill = Drill::new(count(3));
    let cut = drill.cut();
    lab::lab_ok(&["node", "partition", &drill.node]);
    // What is written without an answer of the witness is not acknowledged.
    drill.moved("cable pulled", &cut, Promise::Dead);
    lab::lab_ok(&["node", "heal", &drill.node]);
    drill.back_and_still_there(&cut);
}

/// What one witness alone, or the way to other nodes, must not disturb, in each direction.
#[test]
fn partitions_that_disturb_nothing() {
    let drill = Drill::new(count(3));
    let others = |seconds, all: &[&str]| {
        for how in all {
            let partition = Partition::new(&drill.node, how);
            drill.undisturbed(&format!("partition {how}"), seconds);
            drop(partition);
            drill.undisturbed("the return of the network", 5);
        }
    };
    // Longer than it takes until a silent node is fenced.
    others(14, &["--from api --out", "--from api --in", "--from store --out", "--from store --in"]);
    others(14, &["--from nodes", "--from nodes --out", "--from nodes --in"]);
}

/// Two nodes of three: the last one takes everything over.
#[test]
fn two_nodes_at_once() {
    let drill = Drill::new(count(3));
    kubectl_ok(&["uncordon", &drill.third()]);
    let cut = drill.cut();
    // Their networks: the store keeps its data on the nodes themselves, and two of three copies of it would be gone.
    let partitions = [&drill.node, &drill.refuge].map(|node| Partition::new(node, "--out --from api --from store"));
    drill.moved("two nodes of three cut off", &cut, Promise::Isolated);
    drop(partitions);
    let _ = drill.one_each(&cut);
}
