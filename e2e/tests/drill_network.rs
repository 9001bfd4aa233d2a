//! Drills: nodes that are cut off from a part of the others, in each direction. See [`vivarium_e2e::drill`].
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and a drill tells what it measured"
)]

use vivarium_e2e::drill::{Drill, Promise, count};
use vivarium_e2e::{kubectl_ok, lab};

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

/// The hardest one: the node lives and its environments can be heard, but nobody that counts hears of it. They must have
/// fallen silent before the others begin, and must not speak again.
fn cut_off(direction: &str) {
    let drill = Drill::new(count(3));
    let cut = drill.cut();
    let partition = Partition::new(&drill.node, &format!("{direction} --from api --from store"));
    drill.moved(&format!("cut off from API server and store, {direction}"), &cut, Promise::Isolated);
    drop(partition);
    drill.back_and_still_there(&cut);
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
    others(14, &["--from api --out", "--from api --in", "--from store --out", "--from store --in", "--from nodes"]);
}

/// Two nodes of three: the last one takes everything over.
#[test]
fn two_nodes_at_once() {
    let drill = Drill::new(count(3));
    let last = lab::nodes().into_iter().find(|node| *node != drill.node && *node != drill.refuge).unwrap();
    kubectl_ok(&["uncordon", &last]);
    let cut = drill.cut();
    // Their networks: the store keeps its data on the nodes themselves, and two of three copies of it would be gone.
    let partitions = [&drill.node, &drill.refuge].map(|node| Partition::new(node, "--out --from api --from store"));
    drill.moved("two nodes of three cut off", &cut, Promise::Isolated);
    drop(partitions);
    let _ = drill.one_each(&cut);
}
