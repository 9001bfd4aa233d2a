//! A cluster in one thread: nodes with drivers and environments, operators, servers, and messages between them that take
//! their time or are lost. The machines of the crate decide; everything around them is modelled here.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use vivarium_ownership::book::{Book, Task, is_superseded};
use vivarium_ownership::node::Authority;
use vivarium_ownership::{Instant, Timing};

use crate::mutation::Mutation;
use crate::rng::Rng;
use crate::servers::{Answer, Api, Entry, Request, Store, Volume};

pub const MS: u64 = 1_000_000;
pub const S: u64 = 1000 * MS;
/// A request that has no answer by then has none; a renewal is given up earlier, so that there is time for another.
const TIMEOUT: u64 = 2 * S;
const RENEWAL_TIMEOUT: u64 = 1500 * MS;

/// What happens to the cluster, and for how long.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    PowerOff {
        node: usize,
    },
    PowerOn {
        node: usize,
    },
    /// 0: the API server; 1 and 2: the stores.
    Link {
        node: usize,
        server: usize,
        up: bool,
    },
    Server {
        server: usize,
        up: bool,
    },
    DriverCrash {
        node: usize,
        away: u64,
    },
    DriverRestart {
        node: usize,
        away: u64,
    },
    OperatorCrash {
        operator: usize,
        away: u64,
    },
    /// Somebody asks for the end of a node that may well live.
    FenceByHand {
        operator: usize,
        node: usize,
    },
}

#[derive(Clone, Debug)]
enum Event {
    Arrive { from: Who, generation: u64, request: Request, purpose: Option<Task> },
    Answer { to: Who, generation: u64, request: Request, answer: Option<Answer>, purpose: Option<Task> },
    Tick(Who, u64),
    StartDriver { node: usize, generation: u64 },
    StartOperator { operator: usize },
    GuestUp { node: usize, generation: u64, volume: usize, epoch: u64, barrier: u64 },
    SessionEnded { node: usize, generation: u64 },
    Fault(Fault),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Node(usize),
    Operator(usize),
}

struct Guest {
    epoch: u64,
    session: String,
    newest: u64,
    /// A commit whose outcome is not known.
    attempt: Option<(u64, u64)>,
}

enum Mount {
    Tail,
    Barrier,
    Reread { barrier: u64 },
    Starting,
}

struct Driver {
    authority: Authority,
    established: bool,
    version: Option<u64>,
    renewing: bool,
    committing: BTreeSet<usize>,
    mounts: BTreeMap<usize, (u64, Mount)>,
    ending: bool,
    /// The process ends once its restart is announced, and is away for so long.
    restart: Option<u64>,
}

struct Node {
    on: bool,
    boot: u32,
    /// By how many millionths its clock is fast.
    rate: i64,
    links: [bool; 3],
    generation: u64,
    session: Option<String>,
    promised: BTreeMap<String, Instant>,
    guests: BTreeMap<usize, Guest>,
    begun: BTreeMap<usize, u64>,
    driver: Option<Driver>,
}

struct Operator {
    generation: u64,
    alive: bool,
    rate: i64,
    book: Book<u64>,
    /// What was asked, and when: nothing is asked all the time.
    asking: Vec<(Task, u64)>,
    listing: bool,
    first_closed: BTreeMap<String, Instant>,
}

/// What went wrong: which invariant, and how.
#[derive(Clone, Debug)]
pub struct Violation {
    pub invariant: &'static str,
    pub what: String,
}

pub struct World {
    pub now: u64,
    pub api: Api,
    pub stores: [Store; 2],
    pub trace: Option<Vec<String>>,
    /// Guests that were killed or found frozen since they were last counted.
    pub disturbed: u64,
    pub violation: Option<Violation>,
    /// Whether messages are lost although nothing is wrong.
    pub lossy: bool,
    /// Whether environments start in no time, as from a copy that stands by: nothing is hidden by slowness.
    pub quick: bool,
    nodes: Vec<Node>,
    operators: Vec<Operator>,
    timing: Timing,
    rng: Rng,
    mutation: Option<Mutation>,
    queue: BTreeMap<(u64, u64), Event>,
    serial: u64,
    sessions: u64,
    /// Newest epoch that was started of each volume, and what it started from.
    newest: BTreeMap<usize, (u64, u64)>,
}

fn store_name(store: usize) -> String {
    ["a", "b"][store].to_owned()
}

/// Volumes lie in both stores by turns.
fn store_of(volume: usize) -> usize {
    volume % 2
}

impl World {
    pub fn new(seed: u64, nodes: usize, volumes: usize, operators: usize, mutation: Option<Mutation>) -> Self {
        let mut rng = Rng::new(seed);
        let mut timing = Timing::default();
        match mutation {
            Some(Mutation::NoMargin) => (timing.margin, timing.skew_percent) = (Duration::ZERO, 0),
            Some(Mutation::BlindTimers) => timing.contact = Duration::from_secs(3600),
            _ => {}
        }
        // Two clocks are apart by less than the 2 % that the margin is for.
        let mut rate = || rng.between(0, 19_000) as i64 - 9_500;
        let nodes: Vec<_> = (0..nodes)
            .map(|_| Node {
                on: true,
                boot: 1,
                rate: rate(),
                links: [true; 3],
                generation: 0,
                session: None,
                promised: BTreeMap::new(),
                guests: BTreeMap::new(),
                begun: BTreeMap::new(),
                driver: None,
            })
            .collect();
        let operators: Vec<_> = (0..operators)
            .map(|_| Operator {
                generation: 0,
                alive: false,
                rate: rate(),
                book: Book::new(timing),
                asking: Vec::new(),
                listing: false,
                first_closed: BTreeMap::new(),
            })
            .collect();
        let volumes = vec![Volume { version: 0, holder: None, epoch: 0 }; volumes];
        let api = Api { volumes, ..Api::default() };
        let mut world = Self {
            now: 0,
            api,
            stores: [Store::default(), Store::default()],
            trace: None,
            disturbed: 0,
            violation: None,
            lossy: true,
            quick: false,
            nodes,
            operators,
            timing,
            rng,
            mutation,
            queue: BTreeMap::new(),
            serial: 0,
            sessions: 0,
            newest: BTreeMap::new(),
        };
        for node in 0..world.nodes.len() {
            let after = world.rng.between(0, S);
            world.later(after, Event::StartDriver { node, generation: 0 });
        }
        for operator in 0..world.operators.len() {
            let after = world.rng.between(0, S);
            world.later(after, Event::StartOperator { operator });
        }
        world
    }

    pub fn fault(&mut self, at: u64, fault: Fault) {
        let after = at.saturating_sub(self.now);
        self.later(after, Event::Fault(fault));
    }

    /// Runs until an instant, or until something is wrong.
    pub fn run(&mut self, until: u64) {
        while self.violation.is_none() {
            let Some(((at, _), event)) = self.queue.pop_first() else { return };
            if at > until {
                self.serial += 1;
                self.queue.insert((at, self.serial), event);
                self.now = until;
                return;
            }
            self.now = at;
            if let Some(trace) = &mut self.trace {
                trace.push(format!("{:>9.3} {event:?}", at as f64 / S as f64));
            }
            self.handle(event);
            self.check();
        }
    }

    /// Whether a node acts under a session that nobody ended.
    pub fn is_back(&self, node: usize) -> bool {
        let machine = &self.nodes[node];
        let lease = self.api.leases.get(&node).map(|(_, lease)| lease);
        let fenced = |session: &String| self.stores.iter().any(|store| store.fences.contains(session));
        machine.session.as_ref().is_some_and(|session| {
            !fenced(session) && lease.is_some_and(|lease| lease.session == *session && !lease.fenced)
        })
    }

    /// The node that a volume's environment runs on.
    pub fn runs_on(&self, volume: usize) -> Option<usize> {
        (0..self.nodes.len()).find(|node| self.runs(*node, volume))
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

    /// The shim's rule.
    fn runs(&self, node: usize, volume: usize) -> bool {
        let machine = &self.nodes[node];
        let Some(guest) = machine.guests.get(&volume).filter(|_| machine.on) else { return false };
        machine.session.as_ref() == Some(&guest.session)
            && machine.promised.get(&store_name(store_of(volume))).is_some_and(|until| self.local(node) < *until)
    }

    fn check(&mut self) {
        for volume in 0..self.api.volumes.len() {
            let mut running = 0;
            for node in 0..self.nodes.len() {
                let there = self.nodes[node].guests.contains_key(&volume);
                let runs = there && self.runs(node, volume);
                running += u32::from(runs);
                self.disturbed += u64::from(there && !runs && self.nodes[node].on);
            }
            if running > 1 {
                self.wrong("I1", format!("volume {volume} runs {running} times"));
            }
        }
    }

    fn wrong(&mut self, invariant: &'static str, what: String) {
        self.violation.get_or_insert(Violation { invariant, what });
    }

    fn loses(&mut self) -> bool {
        self.lossy && self.rng.one_in(1000)
    }

    fn start_takes(&mut self) -> u64 {
        if self.quick { self.rng.between(0, 5 * MS) } else { self.rng.between(200 * MS, 2500 * MS) }
    }

    fn delay(&mut self) -> u64 {
        if self.rng.one_in(100) { self.rng.between(50 * MS, 800 * MS) } else { self.rng.between(MS, 30 * MS) }
    }

    fn send(&mut self, from: Who, request: Request, purpose: Option<Task>) {
        let generation = match from {
            Who::Node(node) => self.nodes[node].generation,
            Who::Operator(operator) => self.operators[operator].generation,
        };
        let after = self.delay();
        self.later(after, Event::Arrive { from, generation, request, purpose });
    }

    fn reaches(&self, who: Who, server: usize) -> bool {
        let up = if server == 0 { !self.api.down } else { !self.stores[server - 1].down };
        up && match who {
            Who::Node(node) => self.nodes[node].on && self.nodes[node].links[server],
            Who::Operator(_) => true,
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Arrive { from, generation, request, purpose } => {
                let server = request.store().map_or(0, |store| store + 1);
                let lost = self.loses() || !self.reaches(from, server);
                let answer = (!lost).then(|| match request.store() {
                    Some(store) => self.stores[store].answer(&request),
                    None => self.api.answer(&request),
                });
                let lost_answer = self.loses();
                let (after, answer) = match answer.filter(|_| !lost_answer) {
                    Some(answer) => (self.delay(), Some(answer)),
                    None if matches!(request, Request::Renew { .. } | Request::ReadLease { .. }) => {
                        (RENEWAL_TIMEOUT, None)
                    }
                    None => (TIMEOUT, None),
                };
                self.later(after, Event::Answer { to: from, generation, request, answer, purpose });
            }
            Event::Answer { to: Who::Node(node), generation, request, answer, .. } => {
                let (up, alive) = (self.nodes[node].on, self.nodes[node].driver.is_some());
                if up && alive && self.nodes[node].generation == generation {
                    self.answer_to_node(node, &request, answer);
                    self.after_answer(node);
                }
            }
            Event::Answer { to: Who::Operator(operator), generation, request, answer, purpose } => {
                if self.operators[operator].alive && self.operators[operator].generation == generation {
                    self.answer_to_operator(operator, &request, answer, purpose.as_ref());
                }
            }
            Event::Tick(Who::Node(node), generation) => {
                if self.nodes[node].driver.is_some() && self.nodes[node].generation == generation {
                    self.tick_node(node);
                    self.later(S, Event::Tick(Who::Node(node), generation));
                }
            }
            Event::Tick(Who::Operator(operator), generation) => {
                if self.operators[operator].alive && self.operators[operator].generation == generation {
                    self.tick_operator(operator);
                    self.later(500 * MS, Event::Tick(Who::Operator(operator), generation));
                }
            }
            Event::StartDriver { node, generation } => {
                if self.nodes[node].on && self.nodes[node].generation == generation {
                    self.start_driver(node);
                }
            }
            Event::StartOperator { operator } => {
                let timing = self.timing;
                let it = &mut self.operators[operator];
                (it.alive, it.book, it.listing) = (true, Book::new(timing), false);
                it.asking.clear();
                it.first_closed.clear();
                let generation = it.generation;
                self.later(0, Event::Tick(Who::Operator(operator), generation));
            }
            Event::GuestUp { node, generation, volume, epoch, barrier } => {
                self.guest_up(node, generation, volume, epoch, barrier);
            }
            Event::SessionEnded { node, generation } => {
                if self.nodes[node].generation == generation {
                    self.end_session(node);
                }
            }
            Event::Fault(fault) => self.strike(fault),
        }
    }

    fn strike(&mut self, fault: Fault) {
        match fault {
            Fault::PowerOff { node } => {
                let keeps = self.mutated(Mutation::SessionReused);
                let machine = &mut self.nodes[node];
                machine.on = false;
                machine.generation += 1;
                machine.driver = None;
                machine.guests.clear();
                machine.promised.clear();
                machine.begun.clear();
                if !keeps {
                    machine.session = None;
                }
            }
            Fault::PowerOn { node } => {
                let machine = &mut self.nodes[node];
                if !machine.on {
                    machine.on = true;
                    machine.boot += 1;
                    let generation = machine.generation;
                    let after = self.rng.between(S, 3 * S);
                    self.later(after, Event::StartDriver { node, generation });
                }
            }
            Fault::Link { node, server, up } => self.nodes[node].links[server] = up,
            Fault::Server { server: 0, up } => self.api.down = !up,
            Fault::Server { server, up } => self.stores[server - 1].down = !up,
            Fault::DriverCrash { node, away } => self.crash_driver(node, away),
            Fault::DriverRestart { node, away } => {
                if let Some(driver) = &mut self.nodes[node].driver {
                    driver.authority.announce_restart();
                    driver.restart = Some(away);
                }
            }
            Fault::FenceByHand { operator, node } => {
                let wall = self.now;
                self.operators[operator].book.end(&format!("n{node}"), wall);
                self.work(operator);
            }
            Fault::OperatorCrash { operator, away } => {
                self.operators[operator].alive = false;
                self.operators[operator].generation += 1;
                self.later(away, Event::StartOperator { operator });
            }
        }
    }

    fn crash_driver(&mut self, node: usize, away: u64) {
        if self.nodes[node].driver.take().is_some() {
            self.nodes[node].generation += 1;
            let generation = self.nodes[node].generation;
            self.later(away, Event::StartDriver { node, generation });
        }
    }

    fn start_driver(&mut self, node: usize) {
        let now = self.local(node);
        let resumed = self.nodes[node].session.is_some();
        if !resumed {
            self.sessions += 1;
            let session = format!("{}.m{node}.b{}", self.sessions, self.nodes[node].boot);
            self.begin_session(node, session);
        }
        let machine = &mut self.nodes[node];
        let session = machine.session.clone().unwrap_or_default();
        let mut authority = Authority::new(self.timing, &session, machine.promised.clone(), now);
        (0..2).for_each(|store| authority.uses(&store_name(store)));
        machine.driver = Some(Driver {
            authority,
            established: resumed,
            version: None,
            renewing: false,
            committing: BTreeSet::new(),
            mounts: BTreeMap::new(),
            ending: false,
            restart: None,
        });
        let generation = machine.generation;
        self.later(0, Event::Tick(Who::Node(node), generation));
    }

    fn begin_session(&mut self, node: usize, session: String) {
        let kills = !self.mutated(Mutation::NoKillFirst);
        let machine = &mut self.nodes[node];
        if kills {
            machine.guests.clear();
            machine.promised.clear();
        }
        for guest in machine.guests.values_mut() {
            guest.session.clone_from(&session);
        }
        machine.session = Some(session);
    }

    /// Rule 4.
    fn end_session(&mut self, node: usize) {
        let (kills, keeps) = (!self.mutated(Mutation::NoKillFirst), self.mutated(Mutation::SessionReused));
        let machine = &mut self.nodes[node];
        if kills {
            self.disturbed += machine.guests.len() as u64;
            machine.guests.clear();
            machine.promised.clear();
        }
        if !keeps {
            machine.session = None;
        }
        machine.driver = None;
        machine.generation += 1;
        let generation = machine.generation;
        let after = self.rng.between(100 * MS, 400 * MS);
        self.later(after, Event::StartDriver { node, generation });
    }

    fn tick_node(&mut self, node: usize) {
        let now = self.local(node);
        let early = self.mutated(Mutation::LoweredEarly);
        let beats = !self.mutated(Mutation::NoBeats);
        let (larger, timing) = (self.mutated(Mutation::LargerRetry), self.timing);
        let mut requests = vec![Request::ReadVolumes];
        let session = self.nodes[node].session.clone().unwrap_or_default();
        let running: Vec<usize> =
            self.nodes[node].guests.keys().copied().filter(|volume| self.runs(node, *volume)).collect();
        let content = self.rng.next();
        let machine = &mut self.nodes[node];
        let Some(driver) = &mut machine.driver else { return };
        if driver.ending {
            return;
        }
        if !driver.renewing {
            driver.renewing = true;
            requests.push(match driver.version {
                Some(version) => {
                    let mut lease = driver.authority.lease(now);
                    if early && driver.restart.is_none() {
                        lease.duration = timing.lease;
                    }
                    Request::Renew { node, version, lease, sent: now.0 }
                }
                None => Request::ReadLease { node },
            });
        }
        for store in 0..2 {
            requests.push(Request::LookForFence { store, session: session.clone(), sent: now.0 });
            if beats && driver.authority.beat_is_due(now) {
                requests.push(Request::Beat { store, session: session.clone(), number: now.0 / MS });
            }
        }
        for volume in running {
            let Some(guest) = machine.guests.get_mut(&volume).filter(|_| driver.committing.insert(volume)) else {
                continue;
            };
            let fresh = (guest.newest + 1, content ^ volume as u64);
            let (number, content) = match guest.attempt {
                Some((number, _)) if larger => (number, fresh.1),
                Some(attempt) => attempt,
                None => fresh,
            };
            guest.attempt = Some((number, content));
            let entry = Entry { epoch: guest.epoch, barrier: false, content, acknowledged: false };
            requests.push(Request::Append { store: store_of(volume), volume, number, entry });
        }
        for request in requests {
            self.send(Who::Node(node), request, None);
        }
    }

    fn answer_to_node(&mut self, node: usize, request: &Request, answer: Option<Answer>) {
        let now = self.local(node);
        let from_answer = self.mutated(Mutation::PromiseFromAnswer);
        let counted = |sent: u64| if from_answer { now } else { Instant(sent) };
        let mut again = None;
        let Some(driver) = self.nodes[node].driver.as_mut().filter(|driver| !driver.ending) else { return };
        match (request, answer) {
            (Request::ReadLease { .. }, answer) => {
                driver.renewing = false;
                if let Some(Answer::Lease(found)) = answer {
                    let version = found.as_ref().map_or(0, |(version, _)| *version);
                    if let Some((_, lease)) = found.filter(|_| driver.established) {
                        driver.authority.saw(&lease);
                    }
                    driver.version = Some(version);
                    if !driver.authority.is_over() {
                        driver.renewing = true;
                        again = Some(Request::Renew { node, version, lease: driver.authority.lease(now), sent: now.0 });
                    }
                }
            }
            (Request::Renew { sent, .. }, answer) => {
                driver.renewing = false;
                if let Some(Answer::Written(version, lease)) = answer {
                    (driver.version, driver.established) = (Some(version), true);
                    driver.authority.saw(&lease);
                    driver.authority.renewed(counted(*sent), &lease);
                } else {
                    // A conflict, or nothing is known: it is read again at once.
                    (driver.version, driver.renewing) = (None, true);
                    again = Some(Request::ReadLease { node });
                }
            }
            (Request::LookForFence { store, sent, .. }, Some(Answer::Fence(there))) => {
                if there {
                    driver.authority.fenced();
                } else {
                    driver.authority.not_fenced(&store_name(*store), counted(*sent));
                }
            }
            (Request::ReadVolumes, Some(Answer::Volumes(volumes, _))) => self.saw_volumes(node, &volumes),
            (Request::Tail { volume, .. }, answer) => self.saw_tail(node, *volume, answer.as_ref()),
            (Request::Append { volume, number, entry, .. }, answer) => {
                let appended = match answer {
                    Some(Answer::Appended(appended)) => Some(appended),
                    _ => None,
                };
                if entry.barrier {
                    self.barrier_answered(node, *volume, *number, entry, appended);
                } else {
                    self.commit_answered(node, *volume, *number, entry, appended);
                }
            }
            _ => {}
        }
        if let Some(request) = again {
            self.send(Who::Node(node), request, None);
        }
    }

    /// What follows from every answer: promises are published, the end is begun, an announced restart happens.
    fn after_answer(&mut self, node: usize) {
        let machine = &mut self.nodes[node];
        let Some(driver) = &mut machine.driver else { return };
        if driver.authority.is_over() {
            if !std::mem::replace(&mut driver.ending, true) {
                let (generation, after) = (machine.generation, self.rng.between(5 * MS, 200 * MS));
                self.later(after, Event::SessionEnded { node, generation });
            }
            return;
        }
        machine.promised.clone_from(driver.authority.promised());
        if driver.authority.is_announced()
            && let Some(away) = driver.restart
        {
            self.crash_driver(node, away);
        }
    }

    fn saw_volumes(&mut self, node: usize, volumes: &[Volume]) {
        let mut starts = Vec::new();
        let mut tails = Vec::new();
        let machine = &mut self.nodes[node];
        let (Some(session), Some(driver)) = (machine.session.clone(), &mut machine.driver) else { return };
        for (volume, object) in volumes.iter().enumerate() {
            let mine = object.holder == Some((node, session.clone()));
            let epoch = object.epoch;
            match driver.mounts.get_mut(&volume) {
                Some((mounting, step)) if *mounting == epoch && mine => {
                    if let Mount::Reread { barrier } = *step {
                        *step = Mount::Starting;
                        starts.push((volume, epoch, barrier));
                    }
                }
                Some(_) if !mine => drop(driver.mounts.remove(&volume)),
                _ if mine && machine.begun.get(&volume).is_none_or(|begun| *begun < epoch) => {
                    driver.mounts.insert(volume, (epoch, Mount::Tail));
                    tails.push(volume);
                }
                _ => {}
            }
        }
        let generation = machine.generation;
        for volume in tails {
            self.send(Who::Node(node), Request::Tail { store: store_of(volume), volume }, None);
        }
        for (volume, epoch, barrier) in starts {
            let after = self.start_takes();
            self.later(after, Event::GuestUp { node, generation, volume, epoch, barrier });
        }
    }

    fn saw_tail(&mut self, node: usize, volume: usize, answer: Option<&Answer>) {
        let (no_barrier, generation) = (self.mutated(Mutation::NoBarrier), self.nodes[node].generation);
        let content = self.rng.next();
        let after = self.start_takes();
        let Some(driver) = &mut self.nodes[node].driver else { return };
        let Some((epoch, step)) = driver.mounts.get_mut(&volume) else { return };
        let epoch = *epoch;
        match answer {
            Some(Answer::Tail(_, newest)) if *newest > epoch => drop(driver.mounts.remove(&volume)),
            Some(Answer::Tail(number, _)) if no_barrier => {
                *step = Mount::Starting;
                self.later(after, Event::GuestUp { node, generation, volume, epoch, barrier: *number });
            }
            Some(Answer::Tail(number, _)) => {
                *step = Mount::Barrier;
                let entry = Entry { epoch, barrier: true, content, acknowledged: false };
                let append = Request::Append { store: store_of(volume), volume, number: number + 1, entry };
                self.send(Who::Node(node), append, None);
            }
            // The kubelet comes again.
            _ => drop(driver.mounts.remove(&volume)),
        }
    }

    fn barrier_answered(&mut self, node: usize, volume: usize, number: u64, entry: &Entry, appended: Option<bool>) {
        let (no_reread, generation) = (self.mutated(Mutation::NoReread), self.nodes[node].generation);
        let after = self.start_takes();
        let Some(driver) = &mut self.nodes[node].driver else { return };
        let Some((epoch, step)) = driver.mounts.get_mut(&volume) else { return };
        if *epoch != entry.epoch {
            return;
        }
        match appended {
            Some(true) if no_reread => {
                *step = Mount::Starting;
                let epoch = entry.epoch;
                self.later(after, Event::GuestUp { node, generation, volume, epoch, barrier: number });
            }
            Some(true) => *step = Mount::Reread { barrier: number },
            Some(false) => {
                *step = Mount::Tail;
                self.send(Who::Node(node), Request::Tail { store: store_of(volume), volume }, None);
            }
            None => drop(driver.mounts.remove(&volume)),
        }
    }

    fn guest_up(&mut self, node: usize, generation: u64, volume: usize, epoch: u64, barrier: u64) {
        let now = self.local(node);
        let machine = &mut self.nodes[node];
        if machine.generation != generation || !machine.on {
            return;
        }
        let Some(driver) = machine.driver.as_mut().filter(|driver| !driver.ending) else { return };
        driver.mounts.remove(&volume);
        if !driver.authority.may_start(&store_name(store_of(volume)), now)
            || machine.begun.get(&volume).is_some_and(|begun| *begun >= epoch)
        {
            return;
        }
        machine.begun.insert(volume, epoch);
        let session = machine.session.clone().unwrap_or_default();
        machine.guests.insert(volume, Guest { epoch, session, newest: barrier, attempt: None });
        let log = self.stores[store_of(volume)].logs.entry(volume).or_default();
        let missing = log.iter().enumerate().find(|(at, entry)| entry.acknowledged && *at as u64 + 1 > barrier);
        if let Some((at, entry)) = missing.filter(|(_, entry)| entry.epoch < epoch) {
            let what =
                format!("epoch {epoch} of volume {volume} starts from {barrier} without {} of {}", at + 1, entry.epoch);
            self.wrong("I2", what);
        }
        let newest = self.newest.entry(volume).or_default();
        *newest = (*newest).max((epoch, barrier));
    }

    fn commit_answered(&mut self, node: usize, volume: usize, number: u64, entry: &Entry, appended: Option<bool>) {
        let larger = self.mutated(Mutation::LargerRetry);
        let machine = &mut self.nodes[node];
        if let Some(driver) = &mut machine.driver {
            driver.committing.remove(&volume);
        }
        let Some(guest) = machine.guests.get_mut(&volume).filter(|guest| guest.epoch == entry.epoch) else { return };
        let found =
            self.stores[store_of(volume)].logs.get_mut(&volume).and_then(|log| log.get_mut(number as usize - 1));
        let taken = appended == Some(false);
        let own = larger && taken && found.as_ref().is_some_and(|found| found.epoch == entry.epoch);
        if appended == Some(true) || own {
            (guest.newest, guest.attempt) = (number, None);
            let mut wrong = None;
            if let Some(found) = found {
                found.acknowledged = true;
                if found.content != entry.content {
                    wrong =
                        Some(("I2", format!("transaction {number} of volume {volume} is not what was acknowledged")));
                }
            }
            let (epoch, barrier) = self.newest.get(&volume).copied().unwrap_or_default();
            if epoch > entry.epoch && number > barrier {
                wrong = Some((
                    "I3",
                    format!("{number} of epoch {} is acknowledged after epoch {epoch} began", entry.epoch),
                ));
            }
            if let Some((invariant, what)) = wrong {
                self.wrong(invariant, what);
            }
        } else if taken {
            // Somebody else has the volume.
            machine.guests.remove(&volume);
            self.disturbed += 1;
            let log = self.stores[store_of(volume)].logs.get(&volume);
            if log.and_then(|log| log.last()).is_none_or(|last| last.epoch <= entry.epoch) {
                let what = format!("epoch {} of volume {volume}, which has it, finds {number} taken", entry.epoch);
                self.wrong("holder", what);
            }
        }
    }

    fn tick_operator(&mut self, operator: usize) {
        if !self.operators[operator].listing {
            self.operators[operator].listing = true;
            self.send(Who::Operator(operator), Request::Leases, None);
            self.send(Who::Operator(operator), Request::ReadVolumes, None);
        }
        self.work(operator);
    }

    fn work(&mut self, operator: usize) {
        let (now, wall) = (self.of_operator(operator), self.now);
        self.operators[operator].asking.retain(|(_, at)| wall - at < 500 * MS);
        let tasks = self.operators[operator].book.next(now, wall);
        for task in tasks {
            if self.operators[operator].asking.iter().any(|(asking, _)| *asking == task) {
                continue;
            }
            let index = |store: &str| usize::from(store == "b");
            let number = |node: &str| node.trim_start_matches('n').parse::<usize>().unwrap_or_default();
            let mutation = self.mutation;
            let book = &mut self.operators[operator].book;
            let requests = match (&task, mutation) {
                (Task::CreateFence { session, store }, Some(Mutation::StoreOpen)) => {
                    book.fenced(session, store, now);
                    continue;
                }
                (Task::CloseLease { session, .. }, Some(Mutation::LeaseOpen)) => {
                    book.closed(session, Duration::from_secs(4), now);
                    continue;
                }
                (Task::FindStores { .. }, Some(Mutation::LeaseFirst)) => {
                    let Task::FindStores { session } = &task else { continue };
                    let node = session.split('.').nth(1).map_or(0, |m| m.trim_start_matches('m').parse().unwrap_or(0));
                    vec![Request::CloseLease { node, session: session.clone() }, Request::ReadVolumes]
                }
                (Task::FindStores { .. }, _) => vec![Request::ReadVolumes],
                (Task::LookForBeats { node, session }, _) => (0..2)
                    .map(|store| Request::NewestBeat { store, node: number(node), session: session.clone() })
                    .collect(),
                (Task::CreateFence { session, store }, _) => {
                    vec![Request::CreateFence { store: index(store), session: session.clone() }]
                }
                (Task::CloseLease { session, node }, _) => {
                    vec![Request::CloseLease { node: number(node), session: session.clone() }]
                }
            };
            self.operators[operator].asking.push((task.clone(), self.now));
            for request in requests {
                self.send(Who::Operator(operator), request, Some(task.clone()));
            }
        }
    }

    fn answer_to_operator(
        &mut self,
        operator: usize,
        request: &Request,
        answer: Option<Answer>,
        purpose: Option<&Task>,
    ) {
        let now = self.of_operator(operator);
        let (timing, mutation) = (self.timing, self.mutation);
        let it = &mut self.operators[operator];
        match (request, answer, purpose) {
            (Request::Leases, answer, _) => {
                it.listing = false;
                if let Some(Answer::Leases(leases)) = answer {
                    let leases: Vec<_> = leases
                        .into_iter()
                        .map(|(node, (version, mut lease))| {
                            if mutation == Some(Mutation::AnnouncementIgnored) {
                                lease.duration = timing.lease;
                            }
                            (format!("n{node}"), version.to_string(), lease)
                        })
                        .collect();
                    it.book.saw_leases(leases, now);
                }
            }
            (Request::ReadVolumes, Some(Answer::Volumes(volumes, _)), Some(Task::FindStores { session })) => {
                let held = volumes
                    .iter()
                    .enumerate()
                    .filter(|(_, volume)| volume.holder.as_ref().is_some_and(|(_, holder)| holder == session));
                it.book.holds(session, held.map(|(volume, _)| store_name(store_of(volume))).collect::<Vec<_>>());
            }
            (Request::ReadVolumes, Some(Answer::Volumes(volumes, leases)), None) => {
                let leases = leases.into_iter().map(|(node, (_, lease))| (node, lease)).collect();
                self.give(operator, &volumes, &leases);
            }
            (Request::NewestBeat { node, session, .. }, Some(Answer::Newest(Some(number))), _) => {
                it.book.saw_beat(&format!("n{node}"), session, number, now);
            }
            (Request::CreateFence { store, session }, Some(Answer::Done), _) => {
                it.first_closed.entry(session.clone()).or_insert(now);
                it.book.fenced(session, &store_name(*store), now);
            }
            (
                Request::CloseLease { session, .. },
                Some(answer @ (Answer::Closed(_) | Answer::NotThere)),
                Some(Task::CloseLease { .. }),
            ) => {
                let duration = match answer {
                    Answer::Closed(_) if mutation == Some(Mutation::WaitConfigured) => timing.lease,
                    Answer::Closed(duration) => duration,
                    _ => timing.extension,
                };
                let first = it.first_closed.get(session).copied().unwrap_or(now);
                let at = if mutation == Some(Mutation::WaitFromFirst) { first } else { now };
                it.book.closed(session, duration, at);
                if mutation == Some(Mutation::WaitFromFirst) {
                    for store in 0..2 {
                        it.book.fenced(session, &store_name(store), first);
                    }
                }
            }
            _ => {}
        }
        self.work(operator);
    }

    /// Gives volumes on whose holder can run nothing any more (rule 10).
    fn give(&mut self, operator: usize, volumes: &[Volume], leases: &BTreeMap<usize, vivarium_ownership::node::Lease>) {
        let deaths = self.operators[operator].book.deaths();
        let living: Vec<(usize, String)> = leases
            .iter()
            .filter(|(_, lease)| !lease.fenced && !deaths.contains_key(&lease.session))
            .map(|(node, lease)| (*node, lease.session.clone()))
            .collect();
        if living.is_empty() {
            return;
        }
        let (no_wait, blindly) = (self.mutated(Mutation::NoWait), self.mutated(Mutation::NoCompareAndSwap));
        for (volume, object) in volumes.iter().enumerate() {
            let free = match &object.holder {
                None => true,
                Some((node, session)) => {
                    let now = leases.get(node).map(|lease| lease.session.as_str());
                    let over = deaths.get(session).is_some_and(|death| {
                        no_wait || death.over.get(&store_name(store_of(volume))).is_some_and(Option::is_some)
                    });
                    over || now.is_some_and(|now| is_superseded(session, now))
                }
            };
            if free {
                let to = living[self.rng.between(0, living.len() as u64) as usize].clone();
                let give = Request::Give { volume, version: object.version, to, blindly };
                self.send(Who::Operator(operator), give, None);
            }
        }
    }
}
