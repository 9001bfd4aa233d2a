//! Drills: nodes without power, alone, two at once, with the operator's leader. See [`vivarium_e2e::drill`].
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and a drill tells what it measured"
)]

use std::time::Duration;

use serde_json::json;
use vivarium_e2e::drill::{Drill, Figures, Promise, count, kill_leader, rounds, times_count};
use vivarium_e2e::witness::now;
use vivarium_e2e::{DEADLINE, Environment, apply, eventually, kubectl_ok, lab};

/// From the cut to the first answer, in 99 of 100 cases, with ten environments on the node.
const BAR: Duration = Duration::from_secs(15);

/// The soak: again and again, between two nodes, with the same environments.
#[test]
fn power_cuts() {
    let mut drill = Drill::new(count(10));
    let (mut figures, rounds) = (Figures::default(), rounds(5));
    for round in 1..=rounds {
        let cut = drill.cut_power();
        figures.add(cut.at, &drill.moved(&format!("power cut {round} of {rounds}"), &cut, Promise::Dead));
        lab::lab_ok(&["node", "power-on", &drill.node]);
        drill.turn();
        // What is back does not take anything away again.
        let _ = drill.one_each(&cut);
    }
    println!("=== {rounds} power cuts: {}", figures.told());
    if times_count() {
        assert!(figures.p99() < BAR, "99 of 100 must answer within {BAR:?} of the cut");
    }
}

/// More than the processors can start at once: measured against a cold start of as many.
#[test]
#[ignore = "long: hack/drill run power_cut_and_cold_start"]
fn power_cut_and_cold_start() {
    let drill = Drill::new(count(30));
    let all = |mode: &str| {
        let manifest = |(_, ve): &(String, Environment)| ve.clone().with("/runMode", json!(mode)).manifest();
        let ran = apply(&drill.environments.iter().map(manifest).collect::<Vec<_>>());
        assert!(ran.ok, "{}", ran.stderr);
    };
    all("Stopped");
    for (_, ve) in &drill.environments {
        ve.wait_phase("Stopped");
    }
    kubectl_ok(&["cordon", &drill.refuge]);
    let start = drill.cut();
    all("Running");
    drill.all_speak(start.at);
    kubectl_ok(&["uncordon", &drill.refuge]);
    let cold = Figures::of(start.at, &drill.one_each(&start));
    println!("--- a cold start of {}: {}", drill.environments.len(), cold.told());
    std::thread::sleep(Duration::from_secs(10));
    let cut = drill.cut_power();
    let hot = Figures::of(cut.at, &drill.moved("power cut", &cut, Promise::Dead));
    let bar = Duration::from_secs(9) + cold.longest().mul_f32(1.1);
    println!(
        "=== the last one answers after {:.1} s; a cold start takes {:.1} s; bar 9 s + 1.1 times that: {:.1} s, of which it is {:.2}",
        hot.longest().as_secs_f32(),
        cold.longest().as_secs_f32(),
        bar.as_secs_f32(),
        hot.longest().as_secs_f32() / bar.as_secs_f32()
    );
    if times_count() {
        assert!(hot.longest() <= bar);
    }
}

/// The operator's leader dies in the middle of a failover, after each of its phases.
#[test]
#[ignore = "long: hack/drill run the_leader_is_killed_in_each_phase"]
fn the_leader_is_killed_in_each_phase() {
    let mut drill = Drill::new(count(3));
    for phase in ["detected", "fenced", "restored", "started"] {
        let ve = drill.environments[0].1.clone();
        let epoch = ve.object()["status"]["epoch"].as_u64().unwrap() + 1;
        let killer = std::thread::spawn(move || {
            let wait = |condition: &str| {
                let condition = format!("--for=jsonpath={condition}");
                kubectl_ok(&["-n", &ve.namespace, "wait", &format!("ve/{}", ve.name), &condition, "--timeout=120s"]);
            };
            wait(&format!("{{.status.lastFailover.epoch}}={epoch}"));
            wait(&format!("{{.status.lastFailover.{phase}}}"));
            (now(), kill_leader())
        });
        // The watch is there before something happens.
        std::thread::sleep(Duration::from_secs(1));
        let cut = drill.cut_power();
        let outages = drill.moved(&format!("power cut, leader killed once {phase}"), &cut, Promise::Dead);
        let (at, who) = killer.join().unwrap();
        println!("    killed {who} {} ms after the cut", at - cut.at);
        assert!(outages.iter().all(|outage| outage.answered > cut.at));
        lab::lab_ok(&["node", "power-on", &drill.node]);
        drill.turn();
        let _ = drill.one_each(&cut);
    }
}

/// The operator's leader dies with the node.
#[test]
#[ignore = "long: hack/drill run the_leader_dies_with_the_node"]
fn the_leader_dies_with_the_node() {
    let drill = Drill::new(count(3));
    // Leadership goes to the replica on that node: the only one there is until another is made.
    let scale = |replicas: &str| {
        kubectl_ok(&["-n", "vivarium-system", "scale", "deployment/vivarium-operator", "--replicas", replicas]);
    };
    let leader = || {
        let lease = vivarium_e2e::get(&["-n", "vivarium-system", "lease", "vivarium-operator"]).unwrap();
        let pod = lease["spec"]["holderIdentity"].as_str().filter(|pod| !pod.is_empty()).unwrap_or("nobody").to_owned();
        let found = vivarium_e2e::get(&["-n", "vivarium-system", "pod", &pod]);
        found.and_then(|pod| pod["spec"]["nodeName"].as_str().map(str::to_owned)).unwrap_or_default()
    };
    kubectl_ok(&["cordon", &drill.refuge]);
    scale("0");
    scale("1");
    eventually("the leader is on the node", DEADLINE, || {
        let on = leader();
        if on == drill.node { Ok(()) } else { Err(on) }
    });
    kubectl_ok(&["uncordon", &drill.refuge]);
    scale("2");
    kubectl_ok(&["-n", "vivarium-system", "rollout", "status", "deployment/vivarium-operator", "--timeout=120s"]);
    assert_eq!(leader(), drill.node);
    let cut = drill.cut_power();
    drill.moved("power cut of the leader's node", &cut, Promise::Dead);
}
