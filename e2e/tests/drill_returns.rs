//! Drills: nodes that come back, are emptied, are upgraded, are ended by a person. See [`vivarium_e2e::drill`].
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and a drill tells what it measured"
)]

use std::time::Duration;

use vivarium_e2e::drill::{Drill, Figures, Promise, count, times_count};
use vivarium_e2e::{DEADLINE, kubectl_ok, lab};

/// The node is there again while its environments are being brought back elsewhere.
#[test]
fn a_node_comes_back_while_its_environments_are_restored() {
    let drill = Drill::new(count(3));
    let (_, ve) = &drill.environments[0];
    let cut = drill.cut_power();
    // Its authority is over, the next incarnation is on its way: from here on it is too late for the node.
    let condition = format!("--for=jsonpath={{.status.lastFailover.fromNode}}={}", drill.node);
    let epoch = format!("--for=jsonpath={{.status.epoch}}={}", ve.object()["status"]["epoch"].as_u64().unwrap() + 1);
    for condition in [condition.as_str(), epoch.as_str(), "--for=jsonpath={.status.lastFailover.fenced}"] {
        kubectl_ok(&["-n", &ve.namespace, "wait", &format!("ve/{}", ve.name), condition, "--timeout=120s"]);
    }
    lab::lab_ok(&["node", "power-on", &drill.node]);
    drill.moved("power cut, node on again at once", &cut, Promise::Dead);
    drill.back_and_still_there(&cut);
}

#[test]
#[ignore = "long: hack/drill run a_node_comes_back_after_a_minute"]
fn a_node_comes_back_after_a_minute() {
    let drill = Drill::new(count(3));
    let cut = drill.cut_power();
    std::thread::sleep(Duration::from_mins(1));
    lab::lab_ok(&["node", "power-on", &drill.node]);
    drill.moved("power cut, node on again after a minute", &cut, Promise::Dead);
    drill.back_and_still_there(&cut);
}

/// The node lives, and somebody knows that it is of no use.
#[test]
fn a_node_that_somebody_fences() {
    let drill = Drill::new(count(3));
    // It begins a new session at once, under which its environments could be started as well.
    kubectl_ok(&["cordon", &drill.node]);
    let cut = drill.cut();
    let told = kubectl_ok(&["ve", "fence", &drill.node, "--yes"]);
    for (_, ve) in &drill.environments {
        let (namespace, name) = (&ve.namespace, &ve.name);
        assert!(told.contains(&format!("{namespace}/{name}")), "{name} is not named: {told}");
    }
    drill.moved("kubectl ve fence", &cut, Promise::Isolated);
    drill.back_and_still_there(&cut);
}

/// One environment after the other is told to leave, and takes with it all that it has.
#[test]
fn environments_that_somebody_sends_to_other_nodes() {
    let drill = Drill::new(count(3));
    let cut = drill.cut();
    for (_, ve) in &drill.environments {
        let told = kubectl_ok(&["ve", "-n", &ve.namespace, "failover", &ve.name, "--yes"]);
        assert!(told.contains(&format!(" on {})", drill.node)), "{told}");
    }
    drill.moved("kubectl ve failover", &cut, Promise::Nothing);
}

fn drain(node: &str) {
    kubectl_ok(&["drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=240s"]);
}

/// Each of three nodes in turn is emptied, switched off, on, and opened again. Nothing is lost, and no environment is away
/// longer than when it reboots: at each node the drill tells the two, measured in the same run.
#[test]
fn nodes_are_upgraded_one_after_another() {
    let mut drill = Drill::new(count(3));
    // What a reboot of all of them takes here.
    let boot = drill.cut();
    for (_, ve) in &drill.environments {
        ve.sh("systemd-run --quiet --on-active=1 systemctl reboot");
    }
    std::thread::sleep(Duration::from_secs(2));
    for (name, _) in &drill.environments {
        vivarium_e2e::eventually(&format!("{name} is back"), DEADLINE, || {
            if drill.witness.of(name).outages()?.is_empty() { Err("no new life".into()) } else { Ok(()) }
        });
    }
    let reboots = drill.one_each(&boot);
    assert!(reboots.iter().all(|reboot| reboot.lost == 0), "{reboots:?}");
    let reboot = reboots.iter().map(vivarium_e2e::witness::Outage::silent).max().unwrap();
    let mut longest = Duration::ZERO;
    for _ in 0..lab::nodes().len() {
        let cut = drill.cut();
        drain(&drill.node);
        let outages = drill.moved(&format!("drain of {}", drill.node), &cut, Promise::Nothing);
        longest = outages.iter().map(vivarium_e2e::witness::Outage::silent).fold(longest, Duration::max);
        println!("    {}", Figures::of(cut.at, &outages).told());
        let off = drill.cut();
        lab::lab_ok(&["node", "power-off", &drill.node]);
        lab::lab_ok(&["node", "power-on", &drill.node]);
        drill.next();
        drill.nothing_since("the restart of an empty node", &off);
    }
    println!(
        "=== the longest silence of a node upgrade: {:.1} s; of a reboot of all: {:.1} s; ratio {:.2}",
        longest.as_secs_f32(),
        reboot.as_secs_f32(),
        longest.as_secs_f32() / reboot.as_secs_f32()
    );
    if times_count() {
        assert!(longest <= reboot);
    }
}
