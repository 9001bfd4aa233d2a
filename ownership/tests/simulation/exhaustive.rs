//! A small world, explored completely within bounds: two nodes, one volume, one or two operators, something that goes wrong,
//! and then every way in which up to two messages have another fate than the rest: late, later than whoever sent it waits,
//! lost, or without an answer.

use crate::chance::{Chance, Deviations, OPTIONS, Script};
use crate::mutation::Mutation;
use crate::world::{Fault, MS, S, Setup, Violation, Who, World, with_lease};

/// By then everything runs: in a script everything is quick.
const BEGINS: u64 = 5 * S;
/// Messages that are sent in this time may have another fate.
const FROM: u64 = BEGINS - 500 * MS;
const UNTIL: u64 = BEGINS + 5 * S;
const ENDS: u64 = BEGINS + 13 * S;
/// So often a world is kept for the schedules that part from it.
const STRIDE: u64 = 100 * MS;

/// What goes wrong in a scenario; the environment runs on `node`.
pub const SCENARIOS: [&str; 9] = [
    "power",
    "cut",
    "fenced while cut",
    "half cut",
    "driver pause",
    "restart and cut",
    "move",
    "move and crash",
    "change",
];

/// A schedule of the small world, as it is printed and asked for: `SCENARIO:OPERATORS:NUMBER-OPTION,NUMBER-OPTION`.
#[derive(Clone, Debug)]
pub struct Schedule {
    pub scenario: &'static str,
    pub operators: usize,
    pub deviations: Deviations,
}

impl std::fmt::Display for Schedule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let deviations: Vec<_> = self.deviations.iter().map(|(at, option)| format!("{at}-{option}")).collect();
        write!(f, "{}:{}:{}", self.scenario, self.operators, deviations.join(","))
    }
}

impl std::str::FromStr for Schedule {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split(':');
        let mut part = || parts.next().ok_or(());
        let (name, operators, list) = (part()?, part()?.parse().map_err(|_| ())?, part()?);
        let scenario = SCENARIOS.into_iter().find(|scenario| *scenario == name).ok_or(())?;
        let deviation = |text: &str| {
            let (at, option) = text.split_once('-').ok_or(())?;
            Ok((at.parse().map_err(|_| ())?, option.parse().map_err(|_| ())?))
        };
        let deviations = list.split(',').filter(|text| !text.is_empty()).map(deviation).collect::<Result<_, ()>>()?;
        Ok(Self { scenario, operators, deviations })
    }
}

/// What became of a scenario.
#[derive(Default)]
pub struct Explored {
    /// Schedules that were run to the end.
    pub schedules: u64,
    /// States in which it was looked whether all holds. What schedules have in common is run, and counted, once.
    pub states: u64,
    /// A schedule that goes wrong.
    pub violation: Option<(Schedule, Violation)>,
}

fn begin(world: &mut World, scenario: &str, at: u64) {
    let node = world.runs_on(0).unwrap_or(0);
    let fence = |world: &mut World, at| world.fault(at, Fault::FenceByHand { operator: 0, node });
    match scenario {
        "power" => {
            world.fault(at, Fault::PowerOff { node });
            world.fault(at + 2 * S, Fault::PowerOn { node });
        }
        "cut" => world.isolate(Who::Node(node), at, 6 * S),
        "fenced while cut" => {
            world.isolate(Who::Node(node), at, 6 * S);
            fence(world, at);
        }
        "half cut" => {
            // It hears only the API server when it is ended, and nobody later.
            world.cut(Who::Node(node), 1, at - S, 12 * S);
            fence(world, at);
            world.cut(Who::Node(node), 0, at + 4 * S, 8 * S);
        }
        "driver pause" => {
            world.fault(at, Fault::DriverPause { node, lasts: 7 * S });
            fence(world, at);
        }
        "restart and cut" => {
            world.fault(at - 1500 * MS, Fault::DriverRestart { node, away: 3 * S });
            world.isolate(Who::Node(node), at, 8 * S);
            fence(world, at);
        }
        "change" => {
            // From both stores to the second, and the driver crashes in between.
            world.fault(at - S, Fault::Want { volume: 0, first: 1, both: false });
            world.fault(at + 500 * MS, Fault::DriverCrash { node, away: 100 * MS });
        }
        "move" => world.fault(at, Fault::Move { volume: 0 }),
        _ => {
            world.fault(at, Fault::Move { volume: 0 });
            world.fault(at + 300 * MS, Fault::Move { volume: 0 });
            (0..2).for_each(|node| world.fault(at + 310 * MS, Fault::DriverCrash { node, away: 100 * MS }));
        }
    }
}

/// The world of a schedule, shortly before its scenario begins.
fn world(schedule: &Schedule, mutation: Option<Mutation>, traced: bool) -> World {
    let operators = schedule.operators;
    let sets = schedule.scenario == "change";
    let setup =
        Setup { nodes: 2, volumes: 1, operators, timing: with_lease(4), mutation, apart: true, quick: true, sets };
    let script = Script { deviations: schedule.deviations.clone(), from: FROM, until: UNTIL, count: 0 };
    let mut world = World::new(&setup, Chance::scripted(script));
    world.trace = traced.then(Vec::new);
    world.run(BEGINS - 2 * S);
    begin(&mut world, schedule.scenario, BEGINS);
    world.run(FROM);
    world
}

/// Runs one schedule, and tells everything that happens.
pub fn run(schedule: &Schedule, mutation: Option<Mutation>) -> (Vec<String>, Option<Violation>) {
    let mut world = world(schedule, mutation, true);
    world.run(ENDS);
    (world.trace.take().unwrap_or_default(), world.violation)
}

/// Explores a scenario with up to `most` messages that have another fate.
pub fn explore(scenario: &'static str, operators: usize, most: usize, mutation: Option<Mutation>) -> Explored {
    let schedule = Schedule { scenario, operators, deviations: Vec::new() };
    let world = world(&schedule, mutation, false);
    let mut explored = Explored { states: world.events, ..Explored::default() };
    explored.walk(world, &schedule, most, 0);
    explored
}

impl Explored {
    /// Goes on with a schedule that has got as far as `world`, and with all that have another `left` deviations from message
    /// `first` on. All that part from it within a while begin anew from where that while began.
    fn walk(&mut self, mut world: World, schedule: &Schedule, left: usize, first: u32) {
        let seen = world.events;
        while left > 0 && world.now < UNTIL && world.violation.is_none() {
            let before = world.clone();
            world.run(before.now + STRIDE);
            for at in first.max(before.sent())..world.sent() {
                for option in 0..OPTIONS.len() as u8 {
                    if self.violation.is_some() {
                        return;
                    }
                    let mut other = schedule.clone();
                    other.deviations.push((at, option));
                    let mut next = before.clone();
                    if let Some(script) = &mut next.chance.script {
                        script.deviations.clone_from(&other.deviations);
                    }
                    self.walk(next, &other, left - 1, at + 1);
                }
            }
        }
        world.run(ENDS);
        self.schedules += 1;
        self.states += world.events - seen;
        if let Some(violation) = world.violation {
            self.violation.get_or_insert((schedule.clone(), violation));
        }
    }
}
