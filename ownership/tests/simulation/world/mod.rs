//! A cluster in one thread: nodes with drivers and environments, operators, servers, and messages between them that take
//! their time, are lost, arrive twice, or have their effect long after whoever sent them gave them up. The machines of the
//! crate decide; everything around them is modelled here.
//!
//! | file | models |
//! |---|---|
//! | [`node`] | the node driver: its session and its promises |
//! | [`commit`] | its commits |
//! | [`change`] | changes of the stores that a volume's journal is in |
//! | [`kubelet`] | mounts, starts, stops and releases on a node |
//! | [`network`] | messages, and what becomes of them |
//! | [`operator`] | a replica of the operator, and what the leader does; every replica does it here |
//! | [`faults`] | what goes wrong |
//! | [`check`] | what must hold |

mod change;
mod check;
mod commit;
mod faults;
mod kubelet;
mod network;
mod node;
mod operator;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use vivarium_ownership::book::{Book, Task};
use vivarium_ownership::shim::{Permit, Published, judge};
use vivarium_ownership::{Instant, Timing};

pub use check::{Invariant, Violation};
pub use faults::Fault;

use crate::chance::Chance;
use crate::mutation::Mutation;
use crate::servers::{Answer, Api, Objects, Place, Request, Store};
use check::Ghost;
use node::Node;
use operator::Operator;

pub const MS: u64 = 1_000_000;
pub const S: u64 = 1000 * MS;

#[derive(Clone, Debug)]
enum Event {
    Arrive {
        message: Rc<Message>,
        back: Option<u64>,
    },
    /// None: it was given up.
    Answer {
        message: Rc<Message>,
        answer: Option<Answer>,
    },
    Tick(Who, u64),
    Push(Who, Rc<Objects>),
    Bind(String),
    StartDriver {
        node: usize,
        generation: u64,
    },
    StartOperator {
        operator: usize,
    },
    GuestUp {
        node: usize,
        generation: u64,
        volume: usize,
        uid: String,
    },
    SessionEnded {
        node: usize,
        generation: u64,
    },
    Fault(Fault),
}

#[derive(Debug)]
struct Message {
    id: u64,
    from: Who,
    generation: u64,
    sent: u64,
    request: Request,
    task: Option<Task>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Node(usize),
    Operator(usize),
}

/// A world to begin with.
pub struct Setup {
    pub nodes: usize,
    pub volumes: usize,
    pub operators: usize,
    pub timing: Timing,
    pub mutation: Option<Mutation>,
    /// Clocks run as far apart as they may: nodes are slow and operators fast.
    pub apart: bool,
    /// Environments start in no time, as from a copy that stands by: nothing is hidden by slowness.
    pub quick: bool,
    /// Journals are in both stores, and may be changed to one and back.
    pub sets: bool,
}

#[derive(Clone)]
pub struct World {
    pub now: u64,
    pub api: Api,
    pub stores: [Store; 2],
    pub trace: Option<Vec<String>>,
    /// Guests that were killed or found frozen since they were last counted.
    pub disturbed: u64,
    /// Guests that were killed.
    pub killed: u64,
    pub violation: Option<Violation>,
    pub chance: Chance,
    pub events: u64,
    volumes: usize,
    sets: bool,
    quick: bool,
    nodes: Vec<Node>,
    operators: Vec<Operator>,
    timing: Timing,
    mutation: Option<Mutation>,
    queue: BTreeMap<(u64, u64), Event>,
    serial: u64,
    sessions: u64,
    /// Messages that somebody still waits for.
    pending: BTreeSet<u64>,
    ghost: Vec<Ghost>,
    /// How volumes and pods were before each change.
    history: Vec<Rc<Objects>>,
}

const STORES: [&str; 2] = ["a", "b"];
const NODES: [&str; 3] = ["n0", "n1", "n2"];

/// Volumes lie in both stores by turns, or each in both of them.
fn first_place(volume: usize, sets: bool) -> Place {
    let store = volume % 2;
    Place { set: if sets { vec![store, 1 - store] } else { vec![store] }, log: 0 }
}

fn node_number(name: &str) -> usize {
    NODES.iter().position(|node| *node == name).unwrap_or_default()
}

impl World {
    pub fn new(setup: &Setup, mut chance: Chance) -> Self {
        // Two clocks are apart by less than the 2 % that the margin is for.
        let mut rate = |extreme: i64| if setup.apart { extreme } else { chance.between(0, 19_000) as i64 - 9_500 };
        let nodes: Vec<_> = (0..setup.nodes).map(|_| Node::new(rate(-9_500))).collect();
        let operators: Vec<_> =
            (0..setup.operators).map(|_| Operator::new(rate(9_500), Book::new(setup.timing))).collect();
        let mut world = Self {
            now: 0,
            api: Api::new((0..setup.volumes).map(|volume| first_place(volume, setup.sets)).collect()),
            stores: [Store::default(), Store::default()],
            trace: None,
            disturbed: 0,
            killed: 0,
            violation: None,
            chance,
            events: 0,
            volumes: setup.volumes,
            sets: setup.sets,
            quick: setup.quick,
            nodes,
            operators,
            timing: setup.timing,
            mutation: setup.mutation,
            queue: BTreeMap::new(),
            serial: 0,
            sessions: 0,
            pending: BTreeSet::new(),
            ghost: (0..setup.volumes).map(|_| Ghost::default()).collect(),
            history: Vec::new(),
        };
        for node in 0..setup.nodes {
            let after = world.chance.between(0, S);
            world.later(after, Event::StartDriver { node, generation: 0 });
        }
        for operator in 0..setup.operators {
            let after = world.chance.between(0, S);
            world.later(after, Event::StartOperator { operator });
        }
        world
    }

    /// Runs until an instant, or until something is wrong.
    pub fn run(&mut self, until: u64) {
        while self.violation.is_none() {
            let Some(entry) = self.queue.first_entry() else { return };
            let at = entry.key().0;
            if at > until {
                self.now = until;
                return;
            }
            let event = entry.remove();
            self.now = at;
            if let Some(until) = self.paused_until(&event) {
                // Whatever waits for somebody who stands still waits in the order in which it came.
                self.serial += 1;
                self.queue.insert((until, self.serial), event);
                continue;
            }
            self.events += 1;
            if let Some(trace) = &mut self.trace {
                trace.push(format!("{:>9.3} {event:?}", at as f64 / S as f64));
            }
            self.handle(event);
            self.check();
        }
    }

    /// How many messages were sent, as far as a script counts them.
    pub fn sent(&self) -> u32 {
        self.chance.script.as_ref().map_or(0, |script| script.count)
    }

    /// Whether a node acts under a session that nobody ended.
    pub fn is_back(&self, node: usize) -> bool {
        let lease = self.api.leases.get(&node).map(|(_, lease)| lease);
        let fenced = |session: &String| self.stores.iter().any(|store| store.fences.contains(session));
        self.nodes[node].session.as_ref().is_some_and(|session| {
            !fenced(session) && lease.is_some_and(|lease| lease.session == *session && !lease.fenced)
        })
    }

    /// The node that a volume's environment runs on.
    pub fn runs_on(&self, volume: usize) -> Option<usize> {
        (0..self.nodes.len()).find(|node| self.runs(*node, volume))
    }

    /// Where a volume's journal is.
    pub fn place(&self, volume: usize) -> &Place {
        &self.api.objects.places[volume].now
    }

    /// Whether every journal is where it is wanted.
    pub fn all_placed(&self) -> bool {
        self.api.objects.places.iter().all(|place| place.now.set == place.wanted)
    }

    /// Whether every environment runs.
    pub fn all_run(&self) -> bool {
        (0..self.volumes).all(|volume| self.runs_on(volume).is_some())
    }

    fn mutated(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    fn later(&mut self, after: u64, event: Event) {
        self.serial += 1;
        self.queue.insert((self.now + after, self.serial), event);
    }

    fn clock(&self, rate: i64) -> Instant {
        Instant(self.now.saturating_add_signed((i128::from(self.now) * i128::from(rate) / 1_000_000) as i64))
    }

    fn local(&self, node: usize) -> Instant {
        self.clock(self.nodes[node].rate)
    }

    fn of_operator(&self, operator: usize) -> Instant {
        self.clock(self.operators[operator].rate)
    }

    /// What the shim of a guest says.
    fn permit(&self, node: usize, guest: &node::Guest) -> Permit {
        let (session, boot) = (guest.session.as_str(), guest.boot);
        let machine = &self.nodes[node];
        let name = |of: u32| if of == machine.boot { "this boot" } else { "a former one" };
        let published = machine.session.as_ref().and_then(|session| {
            // Whoever is bound by a set may run only as long as each of its stores grants.
            let promised = guest.binds.iter().map(|store| machine.promised.get(STORES[*store]).copied());
            let until =
                if self.mutated(Mutation::AnyStoreGrants) { promised.flatten().max()? } else { promised.min()?? };
            Some(Published { session, boot: name(machine.boot), until })
        });
        judge(published, session, name(boot), self.local(node))
    }

    /// Whether an environment runs on a node. One whose shim is dead is held by nobody.
    fn runs(&self, node: usize, volume: usize) -> bool {
        let machine = &self.nodes[node];
        let stands = !machine.on || machine.paused > self.now;
        let Some(guest) = machine.guests.get(&volume).filter(|guest| !stands && !guest.dead) else { return false };
        guest.orphan || matches!(self.permit(node, guest), Permit::Run { .. })
    }

    fn paused_until(&self, event: &Event) -> Option<u64> {
        let of_node = |node: &usize| self.nodes[*node].driver_paused.max(self.nodes[*node].paused);
        let until = match event {
            Event::Answer { message: from, .. } => match &from.from {
                Who::Node(node) => of_node(node),
                Who::Operator(operator) => self.operators[*operator].paused,
            },
            Event::Tick(Who::Node(node), _) | Event::Push(Who::Node(node), _) => of_node(node),
            Event::Tick(Who::Operator(operator), _) | Event::Push(Who::Operator(operator), _) => {
                self.operators[*operator].paused
            }
            Event::GuestUp { node, .. } | Event::SessionEnded { node, .. } | Event::StartDriver { node, .. } => {
                of_node(node)
            }
            _ => 0,
        };
        (until > self.now).then_some(until)
    }

    fn generation(&self, who: Who) -> u64 {
        match who {
            Who::Node(node) => self.nodes[node].generation,
            Who::Operator(operator) => self.operators[operator].generation,
        }
    }

    fn bind(&mut self, uid: String) {
        let Some(pod) = self.api.objects.pod(&uid).filter(|pod| pod.node.is_none()) else { return };
        let fits = |node: &usize| match pod.pin {
            Some(pin) => *node == pin,
            None => !pod.shun.contains(node),
        };
        let fitting: Vec<usize> = (0..self.nodes.len()).filter(fits).collect();
        match fitting.len() as u64 {
            0 => self.later(S, Event::Bind(uid)),
            all => {
                let node = fitting[self.chance.between(0, all) as usize];
                self.api.bind(&uid, node);
                self.push();
            }
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Arrive { message, back } => self.arrive(&message, back),
            Event::Answer { message, answer } => {
                let server = message.request.store().map_or(0, |store| store + 1);
                if answer.is_some() && !self.reaches(message.from, server) {
                    let after = (message.sent + network::timeout(&message.request)).saturating_sub(self.now);
                    return self.later(after, Event::Answer { message, answer: None });
                }
                if !self.pending.remove(&message.id) || self.generation(message.from) != message.generation {
                    return;
                }
                match message.from {
                    Who::Node(node) => self.answer_to_node(node, &message.request, answer),
                    Who::Operator(operator) => {
                        self.answer_to_operator(operator, &message.request, answer, message.task.as_ref());
                    }
                }
            }
            Event::Tick(who, generation) => {
                if self.generation(who) == generation {
                    match who {
                        Who::Node(node) => self.tick_node(node),
                        Who::Operator(operator) => self.tick_operator(operator),
                    }
                    let pace = if matches!(who, Who::Node(_)) { S } else { 500 * MS };
                    self.later(pace, Event::Tick(who, generation));
                }
            }
            Event::Push(who, objects) => {
                if self.reaches(who, 0) && !self.api.down {
                    match who {
                        Who::Node(node) => self.saw_objects(node, objects),
                        Who::Operator(operator) => self.operators[operator].unsettled = true,
                    }
                }
            }
            Event::Bind(uid) => self.bind(uid),
            Event::StartDriver { node, generation } => {
                if self.nodes[node].on && self.nodes[node].generation == generation {
                    self.start_driver(node);
                }
            }
            Event::StartOperator { operator } => self.start_operator(operator),
            Event::GuestUp { node, generation, volume, uid } => {
                if self.nodes[node].generation == generation {
                    self.guest_up(node, volume, &uid);
                }
            }
            Event::SessionEnded { node, generation } => {
                if self.nodes[node].generation == generation {
                    self.end_session(node);
                }
            }
            Event::Fault(fault) => self.strike(fault),
        }
    }
}

/// Timing of a world with another lease.
pub fn with_lease(seconds: u64) -> Timing {
    Timing::with(Duration::from_secs(seconds), Timing::default().silence).unwrap()
}
