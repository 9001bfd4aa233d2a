//! What goes wrong in the classes that are about more than safety, and what must hold then: I4, I5, I6 and the storm brake.

use super::SETTLED;
use crate::chance::Rng;
use crate::world::{Fault, Invariant, MS, S, Who, World};

/// One thing that is wrong, and what says that it disturbs nobody.
pub fn harmless(world: &mut World, rng: &mut Rng) -> Invariant {
    let at = rng.between(SETTLED, 10 * S);
    let lasts = rng.between(S, 22 * S);
    let (node, operator) = (rng.index(2), rng.index(2));
    let outage = |world: &mut World, server: usize, from: u64, lasts: u64| {
        world.fault(from, Fault::Server { server, up: false });
        world.fault(from + lasts, Fault::Server { server, up: true });
    };
    let kind = rng.between(0, 9);
    match kind {
        0 => {
            // The stores are away, and so is a driver, for long enough to be missed and not for longer than its lease. What
            // is sent to the stores meanwhile is given up before they are back.
            outage(world, 1, at, 25 * S);
            outage(world, 2, at, 25 * S);
            world.fault(at + 2 * S, Fault::DriverCrash { node, away: rng.between(S, 2800 * MS) });
            world.chance.weather.slow = 0;
        }
        1 => {
            outage(world, 1, at, lasts);
            outage(world, 2, at, lasts);
        }
        2 => outage(world, 0, at, lasts),
        3 => world.cut(Who::Node(node), 0, at, lasts),
        4 => world.cut_stores(Who::Node(node), at, lasts),
        5 => world.fault(at, Fault::DriverRestart { node, away: rng.between(S, 14 * S) }),
        6 => world.cut(Who::Operator(operator), 0, at, lasts),
        7 => world.fault(at, Fault::OperatorPause { operator, lasts }),
        _ => {
            // An operator is cut off from everything, and pauses.
            world.isolate(Who::Operator(operator), at, lasts);
            world.fault(at + S, Fault::OperatorPause { operator, lasts: lasts / 2 });
        }
    }
    if kind < 5 { Invariant::I4 } else { Invariant::I5 }
}

/// Until then nothing is frozen or killed on a node that is on.
pub fn undisturbed(world: &mut World, until: u64, invariant: Invariant) {
    while world.now < until && world.disturbed == 0 && world.violation.is_none() {
        let next = world.now + S;
        world.run(next.min(until));
    }
    if world.disturbed > 0 {
        world.wrong(invariant, format!("environments were frozen or killed ({} times seen)", world.disturbed));
    }
}

/// Runs until an environment runs, or all of them do, but not for longer than that; when it was so.
fn runs_again(world: &mut World, volume: Option<usize>, until: u64) -> Option<u64> {
    while world.now < until && world.violation.is_none() {
        let next = world.now + 50 * MS;
        world.run(next);
        if volume.map_or_else(|| world.all_run(), |volume| world.runs_on(volume).is_some()) {
            return Some(world.now);
        }
    }
    if world.violation.is_none() {
        world.wrong(Invariant::I6, "what the dead node ran does not run again".into());
    }
    None
}

pub fn power_cut(world: &mut World, rng: &mut Rng) -> Option<u64> {
    let at = SETTLED + rng.between(0, S);
    let node = world.runs_on(0).unwrap_or(0);
    world.fault(at, Fault::PowerOff { node });
    if rng.one_in(2) {
        world.fault(at, Fault::OperatorCrash { operator: 0, away: 60 * S });
    }
    world.run(at);
    let recovered = runs_again(world, None, at + 40 * S).map(|now| now - at);
    let back = world.now.max(at + 10 * S);
    world.fault(back, Fault::PowerOn { node });
    world.run(back + 12 * S);
    if !world.is_back(node) && world.violation.is_none() {
        world.wrong(Invariant::I6, "the node is back, and of no use".into());
    }
    recovered
}

pub fn storm(world: &mut World, rng: &mut Rng) {
    let at = SETTLED + rng.between(0, S);
    if rng.one_in(3) {
        (0..2).for_each(|node| world.fault(at, Fault::PowerOff { node }));
        world.run(at);
        runs_again(world, None, at + 40 * S);
        return;
    }
    let lasts = rng.between(5 * S, 10 * S);
    (0..2).for_each(|node| world.isolate(Who::Node(node), at, lasts));
    world.run(at + 30 * S);
    if world.killed > 0 {
        world.wrong(Invariant::Storm, "environments were killed that were only cut off with many others".into());
    }
}

/// Volume 0 is in the first store, volume 1 in the second.
pub fn stores(world: &mut World, rng: &mut Rng) {
    let node = world.runs_on(0).unwrap_or(0);
    let at = rng.between(SETTLED + 3 * S, SETTLED + 6 * S);
    if rng.one_in(2) {
        // The node hears only the second store, in which nobody who ends it can put a fence.
        (0..2).for_each(|server| world.cut(Who::Node(node), server, at, 30 * S));
        for operator in 0..2 {
            world.cut(Who::Operator(operator), 2, at - S, 20 * S + rng.between(0, S));
            world.fault(at + rng.between(0, S), Fault::FenceByHand { operator, node });
        }
        return world.run(at + 40 * S);
    }
    world.fault(at - rng.between(0, 3 * S), Fault::Server { server: 2, up: false });
    world.fault(at + 30 * S, Fault::Server { server: 2, up: true });
    world.fault(at, Fault::PowerOff { node });
    world.run(at);
    if let Some(now) = runs_again(world, Some(0), at + 25 * S) {
        undisturbed(world, now.max(at + 29 * S), Invariant::I4);
    }
    world.run(at + 30 * S);
    runs_again(world, None, at + 60 * S);
}

/// The stores of a volume are changed, one after the other or for both of them.
pub fn placed(world: &mut World, rng: &mut Rng) {
    let first = rng.index(2);
    let mut at = world.now;
    let away = rng.one_in(2);
    for step in 0..3 {
        let (store, both) = (if step % 2 == 0 { first } else { 1 - first }, step > 0 && !away && rng.one_in(3));
        if away && step == 1 {
            // Whoever leaves a store does not need it.
            world.fault(at - rng.between(0, 5 * S), Fault::Server { server: 1 + first, up: false });
            world.fault(at + 24 * S, Fault::Server { server: 1 + first, up: true });
        }
        world.fault(at, Fault::Want { volume: 0, first: store, both });
        at += 25 * S;
        undisturbed(world, at, Invariant::I4);
        if !world.all_placed() && world.violation.is_none() {
            world.wrong(Invariant::I6, format!("the journal is not where it is wanted after change {step}"));
        }
    }
}
