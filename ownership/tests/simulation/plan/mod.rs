//! Kinds of schedules: which worlds, what goes wrong in them and when, and what must hold beyond what always does.

mod faults;
mod promises;

use crate::chance::{Chance, Rng, Weather};
use crate::mutation::Mutation;
use crate::world::{S, Setup, Violation, World, with_lease};

/// By then everything runs.
pub const SETTLED: u64 = 7 * S;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Anything, at any time.
    Any,
    /// One thing is wrong, or a driver restarts as it should: nothing is disturbed (I4, I5).
    Harmless,
    /// A node loses power while everything else works: what it ran runs elsewhere soon, and the node is of use again when it
    /// is back (I6).
    PowerCut,
    /// Nodes that may live are ended by hand while they cannot hear of it, and everything is quick: whoever waits too short
    /// is found.
    Adversary,
    /// A node hears only the API server, and the operator loses that after it has closed the store.
    Split,
    /// A node is cut off with transactions under way, which arrive when nobody expects them any more.
    Late,
    /// Nodes, drivers and operators stand still for a while.
    Sleepy,
    /// Environments are stopped and moved, pods come back, drivers crash, machines boot.
    Moves,
    /// Environments are moved while nodes are ended by hand, and writes to volumes take their time.
    Swaps,
    /// Environments are moved again while they are being mounted, drivers crash, and what they learn after that is old.
    Stale,
    /// A long lease, clocks that are as far apart as they may be, and a node that is cut off and ended at once.
    Skew,
    /// Shims die, and containerd, while their node is cut off.
    Shims,
    /// Two of three nodes hear nobody for a while: nothing is ended. Or they are dead: what they ran runs again.
    Storm,
    /// A node dies, or is ended, with volumes in two stores, one of which is away: each volume depends on its own store.
    Stores,
    /// A journal in two stores, and anything that goes wrong.
    Sets,
    /// The stores of a volume are changed again and again while anything goes wrong.
    Changes,
    /// The stores of a volume are changed, perhaps because the former one is away: it is done soon, and nobody notices.
    Placed,
}

pub const ALL: [Class; 17] = [
    Class::Any,
    Class::Harmless,
    Class::PowerCut,
    Class::Adversary,
    Class::Split,
    Class::Late,
    Class::Sleepy,
    Class::Moves,
    Class::Swaps,
    Class::Stale,
    Class::Skew,
    Class::Shims,
    Class::Storm,
    Class::Stores,
    Class::Sets,
    Class::Changes,
    Class::Placed,
];

type Plan = fn(&mut World, &mut Rng);

pub struct Judged {
    pub violation: Option<Violation>,
    /// From the power cut to the instant at which everything runs again, in a schedule of that class.
    pub recovered: Option<u64>,
    pub trace: Vec<String>,
    pub events: u64,
}

fn setup(class: Class, rng: &mut Rng, mutation: Option<Mutation>) -> Setup {
    let (nodes, volumes) = match class {
        Class::Storm | Class::Stores => (3, 2),
        Class::Any | Class::Harmless | Class::PowerCut if rng.one_in(3) => (3, 2),
        Class::Moves | Class::Late | Class::Sets | Class::Changes if rng.one_in(2) => (3, 1),
        _ => (2, 1),
    };
    let mut timing = with_lease(match class {
        Class::Skew => 60,
        Class::Any if rng.one_in(4) => [3, 10][rng.index(2)],
        _ => 4,
    });
    match mutation {
        Some(Mutation::NoMargin) => (timing.margin, timing.skew_percent) = (std::time::Duration::ZERO, 0),
        Some(Mutation::BlindTimers) => timing.contact = std::time::Duration::from_secs(3600),
        _ => {}
    }
    let quick =
        !matches!(class, Class::Any | Class::Harmless | Class::PowerCut | Class::Storm | Class::Stale | Class::Stores);
    let sets = matches!(class, Class::Sets | Class::Changes | Class::Placed);
    let apart = matches!(class, Class::Adversary | Class::Skew);
    Setup { nodes, volumes, operators: 2, timing, mutation, apart, quick, sets }
}

fn weather(class: Class, rng: &mut Rng) -> Weather {
    match class {
        // Where one thing is wrong, it is the one that the class is about.
        Class::Harmless | Class::Stores => Weather::CALM,
        // An answer that is a second late hides from its observer that nodes fell silent together, and two of them in a row
        // make it take a node for dead that lives.
        Class::Storm | Class::Placed => Weather { slow: 0, ..Weather::CALM },
        Class::PowerCut | Class::Adversary | Class::Split | Class::Skew | Class::Shims => Weather::FAIR,
        Class::Any if rng.one_in(2) => Weather::FAIR,
        Class::Changes => Weather { late: 30, lost: 60, writes: 4, ..Weather::FOUL },
        Class::Any | Class::Sleepy => Weather::FOUL,
        Class::Late | Class::Sets => Weather { late: 30, ..Weather::FOUL },
        Class::Swaps => Weather { writes: 3, ..Weather::FAIR },
        Class::Stale => Weather { stale: 2, ..Weather::FAIR },
        Class::Moves => Weather { late: 15, lost: 100, ..Weather::FOUL },
    }
}

/// Runs one schedule.
pub fn judge(class: Class, seed: u64, mutation: Option<Mutation>, traced: bool) -> Judged {
    let mut rng = Rng::new(seed ^ 0x1234_5678);
    let mut world = World::new(&setup(class, &mut rng, mutation), Chance::random(seed));
    world.trace = traced.then(Vec::new);
    if matches!(class, Class::Harmless | Class::Storm | Class::Stores | Class::Placed) {
        world.chance.weather = weather(class, &mut rng);
    }
    world.run(SETTLED);
    world.chance.weather = weather(class, &mut rng);
    (world.disturbed, world.killed) = (0, 0);
    let mut recovered = None;
    let plan: Option<(Plan, u64)> = match class {
        Class::Any => Some((faults::any, 45 * S)),
        Class::Swaps => Some((faults::swaps, 40 * S)),
        Class::Skew => Some((faults::skew, 80 * S)),
        Class::Stale => Some((faults::stale, 36 * S)),
        Class::Adversary => Some((faults::adversary, 45 * S)),
        Class::Split => Some((faults::split, 30 * S)),
        Class::Late => Some((faults::late, 50 * S)),
        Class::Sleepy => Some((faults::sleepy, 35 * S)),
        Class::Moves => Some((faults::moves, 40 * S)),
        Class::Shims => Some((faults::shims, 30 * S)),
        Class::Sets => Some((faults::sets, 45 * S)),
        Class::Changes => Some((faults::changes, 50 * S)),
        Class::Harmless | Class::PowerCut | Class::Storm | Class::Stores | Class::Placed => None,
    };
    if let Some((plan, until)) = plan {
        plan(&mut world, &mut rng);
        world.run(until);
    }
    match class {
        Class::Harmless => {
            let invariant = promises::harmless(&mut world, &mut rng);
            promises::undisturbed(&mut world, 45 * S, invariant);
        }
        Class::PowerCut => recovered = promises::power_cut(&mut world, &mut rng),
        Class::Storm => promises::storm(&mut world, &mut rng),
        Class::Stores => promises::stores(&mut world, &mut rng),
        Class::Placed => promises::placed(&mut world, &mut rng),
        _ => {}
    }
    let events = world.events;
    Judged { violation: world.violation.take(), recovered, trace: world.trace.take().unwrap_or_default(), events }
}
