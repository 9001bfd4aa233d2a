//! What goes wrong in the classes in which only that must hold which always does.

use super::SETTLED;
use crate::chance::Rng;
use crate::world::{Fault, MS, S, Who, World};

pub fn any(world: &mut World, rng: &mut Rng) {
    for _ in 0..rng.between(1, 5) {
        let at = rng.between(SETTLED, 25 * S);
        let lasts = rng.between(S / 2, 12 * S);
        let (node, server, operator) = (rng.index(2), rng.index(3), rng.index(2));
        match rng.between(0, 14) {
            0 | 1 => {
                world.fault(at, Fault::PowerOff { node });
                world.fault(at + lasts, Fault::PowerOn { node });
            }
            2 => world.cut(Who::Node(node), server, at, lasts),
            3 | 4 => (0..3).for_each(|server| world.cut(Who::Node(node), server, at + rng.between(0, 2 * S), lasts)),
            5 => {
                world.fault(at, Fault::Server { server, up: false });
                world.fault(at + lasts, Fault::Server { server, up: true });
            }
            6 => world.fault(at, Fault::DriverCrash { node, away: lasts }),
            7 => world.fault(at, Fault::DriverRestart { node, away: lasts }),
            8 => world.fault(at, Fault::OperatorCrash { operator, away: lasts }),
            9 => world.cut(Who::Operator(operator), server, at, lasts),
            10 => world.fault(at, Fault::OperatorPause { operator, lasts }),
            11 => world.fault(at, Fault::DriverPause { node, lasts }),
            12 => world.fault(at, Fault::NodePause { node, lasts }),
            _ => world.fault(at, Fault::Move { volume: 0 }),
        }
    }
    garbage(world, rng, 30 * S);
}

pub fn sets(world: &mut World, rng: &mut Rng) {
    match rng.between(0, 5) {
        4 => {
            let at = rng.between(SETTLED, SETTLED + 3 * S);
            let store = 1 + rng.index(2);
            hears_one(world, rng, store, at);
        }
        0 => late(world, rng),
        1 => moves(world, rng),
        2 => adversary(world, rng),
        _ => any(world, rng),
    }
}

/// A node hears nobody but one store, which nobody who ends the node reaches.
fn hears_one(world: &mut World, rng: &mut Rng, store: usize, at: u64) {
    let node = world.runs_on(0).unwrap_or(0);
    (0..3).filter(|server| *server != store).for_each(|server| world.cut(Who::Node(node), server, at, 20 * S));
    for operator in 0..2 {
        world.cut(Who::Operator(operator), store, at - S, 20 * S);
        world.fault(at + rng.between(0, S), Fault::FenceByHand { operator, node });
    }
}

pub fn changes(world: &mut World, rng: &mut Rng) {
    let mut at = SETTLED;
    while at < 30 * S {
        world.fault(at, Fault::Want { volume: 0, first: rng.index(2), both: rng.one_in(3) });
        let soon = at + rng.between(0, 2 * S);
        let node = rng.index(2);
        match rng.between(0, 8) {
            0 | 1 => world.fault(soon, Fault::DriverCrash { node, away: rng.between(S / 10, 2 * S) }),
            2 => world.fault(soon, Fault::Move { volume: 0 }),
            3 => world.cut(Who::Node(node), 0, soon, rng.between(S / 4, 5 * S)),
            4 => world.cut(Who::Node(node), 1 + rng.index(2), soon, rng.between(S, 8 * S)),
            _ => {}
        }
        at += rng.between(S / 2, 7 * S);
    }
    if rng.one_in(3) {
        let store = 1 + rng.index(2);
        world.fault(31 * S, Fault::Want { volume: 0, first: 2 - store, both: false });
        let at = 33 * S + rng.between(0, 2 * S);
        hears_one(world, rng, store, at);
    } else if rng.one_in(2) {
        sets(world, rng);
    } else {
        garbage(world, rng, 30 * S);
    }
}

fn garbage(world: &mut World, rng: &mut Rng, until: u64) {
    let mut at = SETTLED;
    while at < until {
        world.fault(at, Fault::Garbage { volume: 0 });
        at += rng.between(S, 4 * S);
    }
}

pub fn adversary(world: &mut World, rng: &mut Rng) {
    let node = world.runs_on(0).unwrap_or(0);
    let at = rng.between(SETTLED, SETTLED + 4 * S);
    if rng.one_in(2) {
        // A longer promise is outstanding.
        world.fault(at - S * rng.between(0, 2), Fault::DriverRestart { node, away: rng.between(S / 2, 18 * S) });
    }
    let ends = at + rng.between(0, 25 * S);
    let close = if rng.one_in(2) { 300 * MS } else { 1500 * MS };
    for server in 0..3 {
        let from = at + rng.between(0, close);
        world.cut(Who::Node(node), server, from, ends.saturating_sub(from).max(S));
    }
    if rng.one_in(3) {
        let server = rng.index(3);
        let from = at + rng.between(0, S);
        world.fault(from, Fault::Server { server, up: false });
        world.fault(from + rng.between(S, 8 * S), Fault::Server { server, up: true });
    }
    for operator in 0..2 {
        world.fault(at + rng.between(0, 2 * close), Fault::FenceByHand { operator, node });
    }
    if rng.one_in(4) {
        world.fault(at + rng.between(0, 4 * S), Fault::PowerOff { node });
        world.fault(at + rng.between(4 * S, 6 * S), Fault::PowerOn { node });
    }
}

pub fn split(world: &mut World, rng: &mut Rng) {
    let node = world.runs_on(0).unwrap_or(0);
    let at = rng.between(SETTLED, SETTLED + 2 * S);
    // It never hears of the fence, and of the mark neither.
    world.cut_stores(Who::Node(node), at - S, 60 * S);
    let lasts = rng.between(3 * S, 8 * S);
    for operator in 0..2 {
        world.fault(at, Fault::FenceByHand { operator, node });
        world.cut(Who::Operator(operator), 0, at + rng.between(20 * MS, 120 * MS), lasts);
    }
    world.cut(Who::Node(node), 0, at + lasts + rng.between(0, S) - S / 4, 10 * S);
}

pub fn late(world: &mut World, rng: &mut Rng) {
    let node = world.runs_on(0).unwrap_or(0);
    let mut at = rng.between(SETTLED, SETTLED + 3 * S);
    for _ in 0..rng.between(1, 3) {
        let from = at + rng.between(0, S);
        match rng.between(0, 3) {
            0 => world.fault(from, Fault::PowerOff { node }),
            1 => world.cut(Who::Node(node), 0, from, 14 * S),
            _ => world.fault(from, Fault::DriverPause { node, lasts: 12 * S }),
        }
        let lasts = rng.between(8 * S, 16 * S);
        world.cut(Who::Node(node), 1, at, lasts);
        if rng.one_in(2) {
            let operator = rng.index(2);
            world.fault(at + rng.between(0, 2 * S), Fault::FenceByHand { operator, node });
        }
        world.fault(at + lasts, Fault::PowerOn { node });
        at += rng.between(10 * S, 20 * S);
    }
    garbage(world, rng, 40 * S);
}

pub fn sleepy(world: &mut World, rng: &mut Rng) {
    let node = world.runs_on(0).unwrap_or(0);
    for _ in 0..rng.between(1, 4) {
        let at = rng.between(SETTLED, SETTLED + 6 * S);
        let lasts = rng.between(3 * S, 15 * S);
        match rng.between(0, 5) {
            0 | 1 => world.fault(at, Fault::DriverPause { node, lasts }),
            2 => world.fault(at, Fault::NodePause { node, lasts }),
            3 => world.fault(at, Fault::OperatorPause { operator: rng.index(2), lasts }),
            _ => world.isolate(Who::Node(node), at, lasts),
        }
    }
}

pub fn moves(world: &mut World, rng: &mut Rng) {
    let mut at = SETTLED;
    while at < 26 * S {
        let node = rng.index(3).min(1);
        let soon = at + rng.between(0, 2 * S);
        match rng.between(0, 8) {
            0..=2 => {}
            3 => world.fault(soon, Fault::DriverCrash { node, away: rng.between(S / 10, 2 * S) }),
            4 => world.fault(soon, Fault::LateCreate { volume: 0 }),
            5 => {
                world.fault(soon, Fault::PowerOff { node });
                world.fault(soon + rng.between(S / 10, 2 * S), Fault::PowerOn { node });
            }
            6 => world.fault(soon, Fault::FenceByHand { operator: rng.index(2), node }),
            _ => {
                let lasts = rng.between(S, 9 * S);
                world.isolate(Who::Node(node), soon, lasts);
            }
        }
        world.fault(at, Fault::Move { volume: 0 });
        at += rng.between(S, 5 * S);
    }
}

pub fn swaps(world: &mut World, rng: &mut Rng) {
    let mut at = SETTLED;
    while at < 30 * S {
        world.fault(at, Fault::Move { volume: 0 });
        let soon = at + rng.between(S / 2, 4 * S);
        let node = rng.index(2);
        if rng.one_in(2) {
            world.isolate(Who::Node(node), soon, 9 * S);
            (0..2).for_each(|operator| world.fault(soon, Fault::FenceByHand { operator, node }));
        }
        at += rng.between(3 * S, 10 * S);
    }
}

pub fn stale(world: &mut World, rng: &mut Rng) {
    let mut at = SETTLED;
    while at < 30 * S {
        world.fault(at, Fault::Move { volume: 0 });
        let again = at + rng.between(200 * MS, 3 * S);
        world.fault(again, Fault::Move { volume: 0 });
        for node in 0..2 {
            world.fault(
                again + rng.between(0, 800 * MS),
                Fault::DriverCrash { node, away: rng.between(20 * MS, 500 * MS) },
            );
            if rng.one_in(4) {
                let lasts = rng.between(1500 * MS, 3500 * MS);
                world.fault(again + rng.between(500 * MS, 2 * S), Fault::DriverPause { node, lasts });
            }
        }
        at = again + rng.between(S, 4 * S);
    }
}

pub fn skew(world: &mut World, rng: &mut Rng) {
    let node = world.runs_on(0).unwrap_or(0);
    let at = rng.between(SETTLED, SETTLED + S);
    world.isolate(Who::Node(node), at, 80 * S);
    (0..2).for_each(|operator| world.fault(at, Fault::FenceByHand { operator, node }));
}

pub fn shims(world: &mut World, rng: &mut Rng) {
    let node = world.runs_on(0).unwrap_or(0);
    let at = rng.between(SETTLED, SETTLED + 5 * S);
    let containerd = rng.one_in(3);
    world.fault(at, Fault::ShimCrash { node, volume: 0, containerd });
    let from = at - rng.between(0, 2 * S);
    match rng.between(0, 3) {
        // The driver is away, and back before anybody misses the node.
        0 => world.fault(from, Fault::DriverRestart { node, away: rng.between(S, 10 * S) }),
        1 => world.fault(from, Fault::DriverCrash { node, away: rng.between(S, 3 * S) }),
        _ => {
            world.isolate(Who::Node(node), from, 20 * S);
            if rng.one_in(2) {
                (0..2).for_each(|operator| world.fault(from, Fault::FenceByHand { operator, node }));
            }
        }
    }
}
