//! The ownership protocol under a simulator: the very machines that node drivers, shims and operators use, in clusters where
//! nodes lose power, links and servers fail, processes crash, stand still and restart, clocks run apart, and messages are
//! late, lost, arrive twice, or have their effect long after they were given up.
//!
//! `VIVARIUM_SCHEDULES` is how many random schedules are run, of all classes together. A schedule that goes wrong is printed
//! with its class, its seed and its last events; `VIVARIUM_SCHEDULE=CLASS:SEED` runs one, also with `VIVARIUM_MUTATION`. One of the
//! small world is `SCENARIO:OPERATORS:NUMBER-OPTION,...`.
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

mod chance;
mod exhaustive;
mod mutation;
mod plan;
mod servers;
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use exhaustive::Explored;
use mutation::{Mutation, Row, TABLE};
use plan::{Class, judge};
use world::{S, Violation};

fn schedules() -> u64 {
    std::env::var("VIVARIUM_SCHEDULES").map_or(100_000, |text| text.parse().unwrap())
}

/// Runs schedules on all processors; the first that goes wrong, by seed.
fn search(class: Class, count: u64, mutation: Option<Mutation>) -> (Option<(u64, Violation)>, u64) {
    let (next, events, found) = (AtomicU64::new(0), AtomicU64::new(0), Mutex::new(None::<(u64, Violation)>));
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= count || found.lock().unwrap().is_some() {
                        return;
                    }
                    let judged = judge(class, seed, mutation, false);
                    events.fetch_add(judged.events, Ordering::Relaxed);
                    if let Some(violation) = judged.violation {
                        let mut found = found.lock().unwrap();
                        if found.as_ref().is_none_or(|(first, _)| seed < *first) {
                            *found = Some((seed, violation));
                        }
                    }
                }
            });
        }
    });
    (found.into_inner().unwrap(), events.into_inner())
}

fn tell(class: Class, seed: u64, mutation: Option<Mutation>) {
    let again = judge(class, seed, mutation, true);
    let last: Vec<_> = again
        .trace
        .iter()
        .rev()
        .take(if std::env::var("VIVARIUM_TRACE").is_ok() { usize::MAX } else { 150 })
        .rev()
        .cloned()
        .collect();
    println!("{}", last.join("\n"));
    if let Some(violation) = again.violation {
        println!("{class:?}, seed {seed}: {:?} is violated: {}", violation.invariant, violation.what);
    }
}

fn holds(class: Class, percent: u64) {
    let begun = std::time::Instant::now();
    let count = schedules() * percent / 100;
    let (found, events) = search(class, count, None);
    if let Some((seed, violation)) = found {
        tell(class, seed, None);
        panic!("{class:?}, seed {seed}: {:?} is violated: {}", violation.invariant, violation.what);
    }
    println!("{count} schedules of {class:?}, {events} events, in {:.1} s", begun.elapsed().as_secs_f32());
}

#[test]
fn nothing_runs_twice_and_nothing_acknowledged_is_lost_in_any_schedule() {
    for (class, percent) in [
        (Class::Any, 21),
        (Class::Late, 10),
        (Class::Sleepy, 8),
        (Class::Moves, 10),
        (Class::Shims, 2),
        (Class::Split, 2),
        (Class::Swaps, 4),
        (Class::Stale, 4),
        (Class::Skew, 1),
        (Class::Stores, 2),
    ] {
        holds(class, percent);
    }
}

#[test]
fn a_journal_in_two_stores_and_one_that_leaves_its_stores_lose_nothing_and_stop_nobody() {
    for (class, percent) in [(Class::Sets, 3), (Class::Changes, 4), (Class::Placed, 1)] {
        holds(class, percent);
    }
}

#[test]
fn one_thing_that_is_wrong_and_a_restart_that_was_announced_disturb_nothing() {
    holds(Class::Harmless, 12);
}

#[test]
fn whoever_is_ended_while_it_runs_is_waited_out() {
    holds(Class::Adversary, 13);
}

#[test]
fn an_outage_of_many_nodes_at_once_that_passes_ends_none() {
    holds(Class::Storm, 1);
}

#[test]
fn what_a_dead_node_ran_runs_again_soon() {
    let count = schedules() * 2 / 100;
    let mut took: Vec<u64> = Vec::new();
    for seed in 0..count {
        let judged = judge(Class::PowerCut, seed, None, false);
        if let Some(violation) = judged.violation {
            tell(Class::PowerCut, seed, None);
            panic!("seed {seed}: {:?} is violated: {}", violation.invariant, violation.what);
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

/// Every scenario with one and with two operators, and whether one goes wrong.
fn explore_all(most: usize, mutation: Option<Mutation>) -> Explored {
    let next = AtomicU64::new(0);
    let result = Mutex::new(Explored::default());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                loop {
                    // The larger ones come first.
                    let number = next.fetch_add(1, Ordering::Relaxed) as usize;
                    let scenarios = exhaustive::SCENARIOS.len();
                    let Some(operators) = 2_usize.checked_sub(number / scenarios).filter(|n| *n > 0) else { return };
                    if result.lock().unwrap().violation.is_some() {
                        return;
                    }
                    let scenario = exhaustive::SCENARIOS[number % scenarios];
                    let explored = exhaustive::explore(scenario, operators, most, mutation);
                    let mut result = result.lock().unwrap();
                    result.schedules += explored.schedules;
                    result.states += explored.states;
                    result.violation = result.violation.take().or(explored.violation);
                }
            });
        }
    });
    result.into_inner().unwrap()
}

#[test]
fn a_small_world_is_explored_completely() {
    let begun = std::time::Instant::now();
    let explored = explore_all(2, None);
    if let Some((schedule, violation)) = &explored.violation {
        let (trace, _) = exhaustive::run(schedule, None);
        println!("{}", trace.join("\n"));
        panic!("schedule {schedule}: {:?} is violated: {}", violation.invariant, violation.what);
    }
    println!(
        "{} schedules, {} states: {} scenarios, one or two operators, up to 2 of the messages of 5.5 s late, later than the \
         time-out, lost or without an answer ({:.1} s)",
        explored.schedules,
        explored.states,
        exhaustive::SCENARIOS.len(),
        begun.elapsed().as_secs_f32()
    );
    assert!(explored.schedules > 480_000 && explored.states > 145_000_000, "less was explored than is said to be");
}

/// What the small world is enough for.
#[test]
fn rules_that_are_left_out_are_found_in_the_small_world() {
    let mut missed = Vec::new();
    for mutation in TABLE.iter().filter(|row| row.small).map(|row| row.mutation) {
        let explored = explore_all(1, Some(mutation));
        match explored.violation {
            Some((schedule, violation)) => {
                println!("{mutation:?}: {:?} ({schedule}): {}", violation.invariant, violation.what);
            }
            None => missed.push(mutation),
        }
    }
    assert!(missed.is_empty(), "nothing goes wrong without these rules: {missed:?}");
}

/// Runs the one schedule that somebody asks for.
#[test]
fn the_schedule_that_is_asked_for() {
    let Ok(asked) = std::env::var("VIVARIUM_SCHEDULE") else { return };
    let mutation = std::env::var("VIVARIUM_MUTATION").ok();
    let mutation = TABLE.iter().map(|row| row.mutation).find(|m| Some(format!("{m:?}")) == mutation);
    if let Ok(schedule) = asked.parse() {
        let (trace, violation) = exhaustive::run(&schedule, mutation);
        println!("{}\n{violation:?}", trace.join("\n"));
        return;
    }
    let (name, seed) = asked.split_once(':').unwrap();
    let class = plan::ALL.into_iter().find(|class| format!("{class:?}") == name).unwrap();
    tell(class, seed.parse().unwrap(), mutation);
}

/// By so many schedules each has to be found.
const BOUND: u64 = 50_000;

/// A checker that finds nothing proves nothing.
#[test]
fn every_rule_that_is_left_out_is_found() {
    let mut missed = Vec::new();
    let only = std::env::var("VIVARIUM_MUTATION").ok();
    for Row { mutation, class, .. } in TABLE {
        if only.as_ref().is_some_and(|only| *only != format!("{mutation:?}")) {
            continue;
        }
        let begun = std::time::Instant::now();
        match search(class, BOUND, Some(mutation)).0 {
            Some((seed, violation)) => println!(
                "{mutation:?}: {:?} ({class:?}, seed {seed}, {:.1} s): {}",
                violation.invariant,
                begun.elapsed().as_secs_f32(),
                violation.what
            ),
            None => missed.push(mutation),
        }
    }
    assert!(missed.is_empty(), "nothing goes wrong without these rules: {missed:?}");
}
