//! Drills: nodes without power, alone, with the operator's leader, with copies of what they had on others. See
//! [`vivarium_e2e::drill`].
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and a drill tells what it measured"
)]

use std::time::Duration;

use serde_json::{Value, json};
use vivarium_e2e::drill::{Drill, Figures, Leader, Promise, count, driver_log, rounds, times_count};
use vivarium_e2e::story::{self, PHASES};
use vivarium_e2e::witness::now;
use vivarium_e2e::{DEADLINE, Environment, apply, condition_of, eventually, get, kubectl_ok, lab};

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

/// The taint by which somebody says that a node is off and stays so, until this is dropped.
struct OutOfService<'a>(&'a str);

impl<'a> OutOfService<'a> {
    const TAINT: &'static str = "node.kubernetes.io/out-of-service";

    fn new(node: &'a str) -> Self {
        kubectl_ok(&["taint", "node", node, &format!("{}=nodeshutdown:NoExecute", Self::TAINT)]);
        Self(node)
    }
}

impl Drop for OutOfService<'_> {
    fn drop(&mut self) {
        kubectl_ok(&["taint", "node", self.0, &format!("{}-", Self::TAINT)]);
    }
}

/// From the instant at which a node is found silent until nothing can run on it any more it takes at least this long,
/// unless somebody knows better: 1.02 times its lease, and half a second.
const WAIT: Duration = Duration::from_millis(4580);

/// Nobody waits for the last promise of a node of which somebody who knows says that it has no power.
#[test]
fn a_machine_that_is_said_to_be_off_is_not_waited_for() {
    let drill = Drill::new(count(3));
    drill.lead_from_elsewhere();
    let cut = drill.cut_power();
    let taint = OutOfService::new(&drill.node);
    drill.moved("power cut, and somebody says so", &cut, Promise::Dead);
    let waited = |(name, ve): &(String, Environment)| {
        let told = story::instants(&ve.object()["status"]["lastFailover"]);
        let [detected, fenced, ..] = told.unwrap_or_else(|why| panic!("{name}: {why}"));
        Duration::from_millis(fenced - detected)
    };
    // All of them wait for the same.
    let shortest = drill.environments.iter().map(waited).min().unwrap();
    println!("    from silence to the end of the node: {:.1} s", shortest.as_secs_f32());
    assert!(shortest < WAIT, "its last promise was waited out: {shortest:?}");
    drop(taint);
    lab::lab_ok(&["node", "power-on", &drill.node]);
    drill.back_and_still_there(&cut);
}

/// The node that keeps a copy which follows the journal of an environment, and the volume's UID.
fn copy(ve: &Environment, from: &str) -> (String, String) {
    eventually(&format!("a copy of {} follows", ve.name), DEADLINE, || {
        let volume = get(&["-n", &ve.namespace, "evol", &ve.name]).unwrap_or_default();
        let (status, reason, message) = condition_of(&volume, "Standby");
        let standby = &volume["status"]["standby"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let node = text(&standby["node"]);
        let follows = status == "True" && standby["sequence"].is_u64() && !node.is_empty() && node != from;
        if follows { Ok((node, text(&volume["metadata"]["uid"]))) } else { Err(format!("{node}: {reason}: {message}")) }
    })
}

/// Each environment goes to the node that has had a copy of it all the time, whichever that is, and the copy becomes
/// the volume.
#[test]
fn environments_go_to_their_hot_standby() {
    let drill = Drill::new(count(3));
    kubectl_ok(&["uncordon", &drill.third()]);
    let manifest = |(_, ve): &(String, Environment)| ve.clone().with("/durability", json!({"standby": 1})).manifest();
    let ran = apply(&drill.environments.iter().map(manifest).collect::<Vec<_>>());
    assert!(ran.ok, "{}", ran.stderr);
    let copies: Vec<_> = drill.environments.iter().map(|(_, ve)| copy(ve, &drill.node)).collect();
    let cut = drill.cut_power();
    drill.moved("power cut, each environment with a hot standby", &cut, Promise::Dead);
    for ((name, ve), (node, id)) in drill.environments.iter().zip(&copies) {
        assert_eq!(ve.node(), *node, "{name} is not where its copy was");
        let log = driver_log(node, (now() - cut.at).div_ceil(1000));
        let line = |what: &str| log.lines().find(|line| line.contains(what) && line.contains(id.as_str()));
        let opened = line("opened the journal");
        assert!(opened.is_some_and(|line| line.contains("TakenOver")), "{name} is not made of the copy: {opened:?}");
        // Without a hot standby one is made while the last promise of the dead node is waited out.
        assert_eq!(line("made a standby copy"), None, "{name} had no copy that was of any use");
    }
}

/// The operator's leader dies in the middle of a failover, after each of its phases.
#[test]
#[ignore = "long: hack/drill run the_leader_is_killed_in_each_phase"]
fn the_leader_is_killed_in_each_phase() {
    let mut drill = Drill::new(count(3));
    for (number, &phase) in PHASES[..4].iter().enumerate() {
        let ve = drill.environments[0].1.clone();
        let epoch = ve.object()["status"]["epoch"].as_u64().unwrap() + 1;
        let killer = std::thread::spawn(move || {
            let wait = |condition: &str| {
                let condition = format!("--for=jsonpath={condition}");
                kubectl_ok(&["-n", &ve.namespace, "wait", &format!("ve/{}", ve.name), &condition, "--timeout=120s"]);
            };
            wait(&format!("{{.status.lastFailover.epoch}}={epoch}"));
            // Found out before the phase comes: the next one may be over in no time.
            let leader = Leader::find().unwrap();
            wait(&format!("{{.status.lastFailover.{phase}}}"));
            let who = leader.kill();
            (now(), who)
        });
        // The watch is there before something happens.
        std::thread::sleep(Duration::from_secs(1));
        let cut = drill.cut_power();
        let outages = drill.moved(&format!("power cut, leader killed once {phase}"), &cut, Promise::Dead);
        let (at, who) = killer.join().unwrap();
        let failover = drill.environments[0].1.object()["status"]["lastFailover"].clone();
        let instants = story::instants(&failover).unwrap();
        let (phase_at, next_at) = (instants[number], instants[number + 1]);
        assert!(at >= phase_at, "{who} was dead at {at}, before {phase}: {failover}");
        println!("    killed {who} {} ms after the cut, {} ms after {phase}", at - cut.at, at - phase_at);
        if at > next_at {
            println!("    that was {} ms after {}", at - next_at, PHASES[number + 1]);
        }
        // The last promise of the node is waited out in between. The other phases may follow each other at once.
        assert!(phase != "detected" || at <= next_at, "{who} had given the volume on already: {failover}");
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
    let leader = || Leader::find().map(|leader| leader.node);
    kubectl_ok(&["cordon", &drill.refuge]);
    scale("0");
    scale("1");
    eventually("the leader is on the node", DEADLINE, || {
        let on = leader()?;
        if on == drill.node { Ok(()) } else { Err(on) }
    });
    kubectl_ok(&["uncordon", &drill.refuge]);
    scale("2");
    kubectl_ok(&["-n", "vivarium-system", "rollout", "status", "deployment/vivarium-operator", "--timeout=120s"]);
    assert_eq!(leader(), Ok(drill.node.clone()));
    let cut = drill.cut_power();
    drill.moved("power cut of the leader's node", &cut, Promise::Dead);
}
