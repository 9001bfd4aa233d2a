//! The ownership protocol under a simulator: the very machines that node drivers and operators use, in clusters where nodes
//! lose power, links and servers fail, processes crash and restart, clocks run apart, and messages are late or lost.
//!
//! `VIVARIUM_SCHEDULES` is how many random schedules are run. A schedule that goes wrong is printed with its seed and its
//! last events; `VIVARIUM_SCHEDULE=SEED` runs one.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_possible_wrap,
    clippy::print_stdout,
    clippy::too_many_lines,
    reason = "a test says what must hold by unwrapping it, and tells what it measured"
)]

mod mutation;
mod rng;
mod servers;
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use mutation::Mutation;
use rng::Rng;
use world::{Fault, MS, S, Violation, World};

/// By then everything runs.
const SETTLED: u64 = 15 * S;

/// Schedules of one kind, and what must hold in them beyond what always does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// Anything, at any time.
    Any,
    /// One witness of all or of one node is away, or a driver restarts as it should: nothing is disturbed (I4, I5).
    Harmless,
    /// A node loses power while everything else works: what it ran runs elsewhere soon, and the node is of use again when it
    /// is back (I6).
    PowerCut,
    /// Nodes that may live are ended by hand while they cannot hear of it, and everything is quick: whoever waits too short
    /// is found.
    Adversary,
}

fn world(seed: u64, mutation: Option<Mutation>) -> World {
    let mut rng = Rng::new(seed ^ 0xabcd);
    let (nodes, volumes) = if rng.one_in(3) { (2, 1) } else { (3, 2) };
    World::new(seed, nodes, volumes, 2, mutation)
}

fn plan_any(world: &mut World, rng: &mut Rng) {
    for _ in 0..rng.between(1, 5) {
        let at = rng.between(SETTLED, 45 * S);
        let lasts = rng.between(S / 2, 15 * S);
        let (node, server, operator) =
            (rng.between(0, 2) as usize, rng.between(0, 3) as usize, rng.between(0, 2) as usize);
        match rng.between(0, 9) {
            0 | 1 => {
                world.fault(at, Fault::PowerOff { node });
                world.fault(at + lasts, Fault::PowerOn { node });
            }
            2 => {
                world.fault(at, Fault::Link { node, server, up: false });
                world.fault(at + lasts, Fault::Link { node, server, up: true });
            }
            3 | 4 => {
                // Cut off from everything, one server a little after the other.
                for server in 0..3 {
                    let from = at + rng.between(0, 2 * S);
                    world.fault(from, Fault::Link { node, server, up: false });
                    world.fault(from + lasts, Fault::Link { node, server, up: true });
                }
            }
            5 => {
                world.fault(at, Fault::Server { server, up: false });
                world.fault(at + lasts, Fault::Server { server, up: true });
            }
            6 => world.fault(at, Fault::DriverCrash { node, away: lasts }),
            7 => world.fault(at, Fault::DriverRestart { node, away: lasts }),
            _ => world.fault(at, Fault::OperatorCrash { operator, away: lasts }),
        }
    }
}

fn plan_harmless(world: &mut World, rng: &mut Rng) {
    let at = rng.between(SETTLED, 20 * S);
    let lasts = rng.between(S, 30 * S);
    let node = rng.between(0, 2) as usize;
    match rng.between(0, 6) {
        0 => {
            // The stores are away, and a driver is for a moment.
            for server in [1, 2] {
                world.fault(at, Fault::Server { server, up: false });
                world.fault(at + lasts + 5 * S, Fault::Server { server, up: true });
            }
            world.fault(at + 2 * S, Fault::DriverCrash { node, away: rng.between(S, 2500 * MS) });
        }
        5 => {
            world.fault(at, Fault::Server { server: 0, up: false });
            world.fault(at + lasts, Fault::Server { server: 0, up: true });
        }
        1 => {
            for server in [1, 2] {
                world.fault(at, Fault::Server { server, up: false });
                world.fault(at + lasts, Fault::Server { server, up: true });
            }
        }
        2 => {
            world.fault(at, Fault::Link { node, server: 0, up: false });
            world.fault(at + lasts, Fault::Link { node, server: 0, up: true });
        }
        3 => {
            // The stores are away, and then the node from the API server, shorter than anybody takes it for dead.
            for server in [1, 2] {
                world.fault(at, Fault::Link { node, server, up: false });
                world.fault(at + lasts, Fault::Link { node, server, up: true });
            }
        }
        _ => world.fault(at, Fault::DriverRestart { node, away: rng.between(S, 14 * S) }),
    }
}

fn plan_adversary(world: &mut World, rng: &mut Rng) {
    let node = world.runs_on(0).unwrap_or(0);
    let at = rng.between(SETTLED, SETTLED + 4 * S);
    if rng.one_in(2) {
        // A longer promise is outstanding.
        world.fault(at - S * rng.between(0, 2), Fault::DriverRestart { node, away: rng.between(S / 2, 18 * S) });
    }
    let ends = at + rng.between(0, 25 * S);
    for server in 0..3 {
        let from = at + rng.between(0, 1500 * MS);
        world.fault(from, Fault::Link { node, server, up: false });
        world.fault(ends.max(from + S), Fault::Link { node, server, up: true });
    }
    if rng.one_in(3) {
        let server = rng.between(0, 3) as usize;
        let from = at + rng.between(0, S);
        world.fault(from, Fault::Server { server, up: false });
        world.fault(from + rng.between(S, 8 * S), Fault::Server { server, up: true });
    }
    for operator in 0..2 {
        world.fault(at + rng.between(0, 3 * S), Fault::FenceByHand { operator, node });
    }
    if rng.one_in(4) {
        world.fault(at + rng.between(0, 4 * S), Fault::PowerOff { node });
        world.fault(at + rng.between(4 * S, 6 * S), Fault::PowerOn { node });
    }
}

struct Judged {
    violation: Option<Violation>,
    /// From the power cut to the instant at which everything runs again, in a schedule of that class.
    recovered: Option<u64>,
    trace: Vec<String>,
}

fn judge(class: Class, seed: u64, mutation: Option<Mutation>, traced: bool) -> Judged {
    let mut world = world(seed, mutation);
    world.trace = traced.then(Vec::new);
    let mut rng = Rng::new(seed ^ 0x1234_5678);
    let mut recovered = None;
    // Where one thing is wrong, it is the one that the class is about.
    world.lossy = class != Class::Harmless;
    world.run(SETTLED);
    world.disturbed = 0;
    match class {
        Class::Any => {
            plan_any(&mut world, &mut rng);
            world.run(90 * S);
        }
        Class::Adversary => {
            world.quick = true;
            plan_adversary(&mut world, &mut rng);
            world.run(60 * S);
        }
        Class::Harmless => {
            plan_harmless(&mut world, &mut rng);
            while world.now < 75 * S && world.disturbed == 0 && world.violation.is_none() {
                let next = world.now + S;
                world.run(next);
            }
            if world.disturbed > 0 && world.violation.is_none() {
                let what = format!("environments were frozen or killed ({} times seen)", world.disturbed);
                world.violation = Some(Violation { invariant: "I4/I5", what });
            }
        }
        Class::PowerCut => {
            let at = SETTLED + rng.between(0, S);
            let node = world.runs_on(0).unwrap_or(0);
            world.fault(at, Fault::PowerOff { node });
            if rng.one_in(2) {
                world.fault(at, Fault::OperatorCrash { operator: 0, away: 60 * S });
            }
            world.run(at);
            let end = at + 40 * S;
            while recovered.is_none() && world.now < end && world.violation.is_none() {
                let next = world.now + 50 * MS;
                world.run(next);
                let all = (0..world.api.volumes.len()).all(|volume| world.runs_on(volume).is_some());
                recovered = all.then(|| world.now - at);
            }
            let mut what = recovered.is_none().then_some("what the dead node ran does not run again");
            let back = world.now.max(at + 10 * S);
            world.fault(back, Fault::PowerOn { node });
            world.run(back + 15 * S);
            what = what.or((!world.is_back(node)).then_some("the node is back, and of no use"));
            if let Some(what) = what.filter(|_| world.violation.is_none()) {
                world.violation = Some(Violation { invariant: "I6", what: what.into() });
            }
        }
    }
    Judged { violation: world.violation.clone(), recovered, trace: world.trace.take().unwrap_or_default() }
}

fn schedules(default: u64) -> u64 {
    std::env::var("VIVARIUM_SCHEDULES").map_or(default, |text| text.parse().unwrap())
}

/// Runs schedules on all processors; the first that goes wrong, by seed.
fn search(class: Class, count: u64, mutation: Option<Mutation>) -> Option<(u64, Violation)> {
    let (next, found) = (AtomicU64::new(0), Mutex::new(None::<(u64, Violation)>));
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= count || found.lock().unwrap().is_some() {
                        return;
                    }
                    if let Some(violation) = judge(class, seed, mutation, false).violation {
                        let mut found = found.lock().unwrap();
                        if found.as_ref().is_none_or(|(first, _)| seed < *first) {
                            *found = Some((seed, violation));
                        }
                    }
                }
            });
        }
    });
    found.into_inner().unwrap()
}

fn holds(class: Class, count: u64) {
    let begun = std::time::Instant::now();
    if let Some((seed, violation)) = search(class, count, None) {
        let again = judge(class, seed, None, true);
        let last: Vec<_> = again.trace.iter().rev().take(120).rev().cloned().collect();
        panic!("{class:?}, seed {seed}: {} is violated: {}\n{}", violation.invariant, violation.what, last.join("\n"));
    }
    println!("{count} schedules of {class:?} in {:.1} s", begun.elapsed().as_secs_f32());
}

#[test]
fn nothing_runs_twice_and_nothing_acknowledged_is_lost_in_any_schedule() {
    holds(Class::Any, schedules(100_000));
}

#[test]
fn one_witness_that_is_away_and_a_restart_that_was_announced_disturb_nothing() {
    holds(Class::Harmless, schedules(100_000) / 10);
}

#[test]
fn whoever_is_ended_while_it_runs_is_waited_out() {
    holds(Class::Adversary, schedules(100_000) / 5);
}

#[test]
fn what_a_dead_node_ran_runs_again_soon() {
    let count = schedules(100_000) / 50;
    let mut took: Vec<u64> = Vec::new();
    for seed in 0..count {
        let judged = judge(Class::PowerCut, seed, None, false);
        if let Some(violation) = judged.violation {
            panic!("seed {seed}: {} is violated: {}", violation.invariant, violation.what);
        }
        took.extend(judged.recovered);
    }
    took.sort_unstable();
    let at = |percent: usize| took[took.len() * percent / 100] as f64 / S as f64;
    println!(
        "from the power cut until everything runs: median {:.1} s, P99 {:.1} s ({count} schedules)",
        at(50),
        at(99)
    );
}

/// Rules that are left out, and the schedules that show it.
const FOUND: [(Mutation, Class); 11] = [
    (Mutation::NoWait, Class::Adversary),
    (Mutation::LeaseOpen, Class::Any),
    (Mutation::StoreOpen, Class::Any),
    (Mutation::WaitConfigured, Class::Adversary),
    (Mutation::SessionReused, Class::PowerCut),
    (Mutation::NoKillFirst, Class::Any),
    (Mutation::LoweredEarly, Class::Any),
    (Mutation::LargerRetry, Class::Any),
    (Mutation::LeaseFirst, Class::Harmless),
    (Mutation::NoBeats, Class::Harmless),
    (Mutation::AnnouncementIgnored, Class::Harmless),
];

/// A checker that finds nothing proves nothing.
#[test]
fn rules_that_are_left_out_are_found() {
    println!("no schedule leads to: {:?}", Mutation::COVERED);
    let mut missed = Vec::new();
    for (mutation, class) in FOUND {
        match search(class, 10_000, Some(mutation)) {
            Some((seed, violation)) => {
                println!("{mutation:?}: {} (seed {seed}): {}", violation.invariant, violation.what);
            }
            None => missed.push(mutation),
        }
    }
    assert!(missed.is_empty(), "nothing goes wrong without these rules: {missed:?}");
}
