//! Drills: daemons and disks of a node that die or hang, and come back or do not. See [`vivarium_e2e::drill`].
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and a drill tells what it measured"
)]

use std::time::Duration;

use vivarium_e2e::drill::{Drill, Promise, count, kill_leader};
use vivarium_e2e::{kubectl_ok, lab};

/// Kubelet and containerd are dead, and nobody starts them: the environments go on. Then the node dies as well.
fn without_daemons(seconds: u64) {
    let drill = Drill::new(count(3));
    lab::lab_ok(&["node", "stop", &drill.node, "kubelet"]);
    drill.undisturbed("a dead kubelet", seconds);
    lab::lab_ok(&["node", "stop", &drill.node, "containerd"]);
    drill.undisturbed("a dead kubelet and a dead containerd", seconds);
    let cut = drill.cut_power();
    drill.moved("power cut of a node without kubelet and containerd", &cut, Promise::Dead);
}

#[test]
fn kubelet_and_containerd_are_dead_and_then_the_node() {
    without_daemons(12);
}

#[test]
#[ignore = "long: hack/drill run kubelet_and_containerd_are_dead_for_minutes"]
fn kubelet_and_containerd_are_dead_for_minutes() {
    without_daemons(180);
}

/// They come back, and what ran is what runs.
#[test]
#[ignore = "long: hack/drill run kubelet_and_containerd_come_back"]
fn kubelet_and_containerd_come_back() {
    let drill = Drill::new(count(3));
    for daemon in ["kubelet", "containerd"] {
        lab::lab_ok(&["node", "stop", &drill.node, daemon]);
        drill.undisturbed(&format!("a dead {daemon}"), 90);
        lab::lab_ok(&["node", "heal", &drill.node]);
        drill.undisturbed(&format!("a {daemon} that is back"), 30);
    }
}

#[test]
fn a_node_driver_that_hangs() {
    let drill = Drill::new(count(3));
    let cut = drill.cut();
    lab::node_sh(&drill.node, "pkill -STOP -x vivarium-node");
    drill.moved("a node driver that hangs", &cut, Promise::Isolated);
    lab::node_sh(&drill.node, "pkill -CONT -x vivarium-node");
    drill.back_and_still_there(&cut);
}

/// The node lives in the eyes of everybody else, until its driver has had no answer of the disk for so long that it does
/// not say any more that it lives.
#[test]
fn a_disk_that_hangs_for_good() {
    let drill = Drill::new(count(3));
    let cut = drill.cut();
    lab::lab_ok(&["node", "hang-disk", &drill.node]);
    // Nothing is written from here on, and so nothing is acknowledged: that is as good as dead.
    drill.moved("a disk that hangs for good", &cut, Promise::Dead);
    lab::lab_ok(&["node", "heal", &drill.node]);
    drill.back_and_still_there(&cut);
}

/// A node is not given up for a disk that answers again in time.
#[test]
fn a_disk_that_hangs_for_a_moment() {
    let drill = Drill::new(count(3));
    let cut = drill.cut();
    lab::lab_ok(&["node", "hang-disk", &drill.node]);
    // Half of the patience that the chart has by default (`node.pool.patienceSeconds`).
    std::thread::sleep(Duration::from_secs(5));
    lab::lab_ok(&["node", "heal", &drill.node]);
    drill.nothing_since("a disk that hangs for a moment", &cut);
    // Longer than it takes until a silent node is fenced.
    drill.undisturbed("a disk that answers again", 10);
    drill.nothing_since("a disk that answers again", &cut);
}

/// What of ours dies and comes back.
#[test]
fn deaths_that_disturb_nothing() {
    let drill = Drill::new(count(3));
    // The driver proper, not what starts it again.
    lab::node_sh(&drill.node, "pkill -KILL -n -x vivarium-node");
    drill.undisturbed("a node driver that was killed", 12);
    let leader = kill_leader();
    drill.undisturbed(&format!("the death of the operator's leader {leader}"), 12);
    kubectl_ok(&["-n", "vivarium-system", "rollout", "restart", "daemonset/vivarium-node"]);
    kubectl_ok(&["-n", "vivarium-system", "rollout", "status", "daemonset/vivarium-node", "--timeout=180s"]);
    drill.undisturbed("new node drivers", 5);
}
