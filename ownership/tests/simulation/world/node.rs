//! The node driver: its session, its promises and its commits.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use vivarium_ownership::Instant;
use vivarium_ownership::mount::Mount;
use vivarium_ownership::node::Authority;

use super::change::{Change, Doubt};
use super::{Event, MS, STORES, Who, World};
use crate::mutation::Mutation;
use crate::servers::{Answer, Entry, Objects, Place, Request, Why};

/// An environment on a node.
#[derive(Clone)]
pub struct Guest {
    pub uid: String,
    pub epoch: u64,
    pub session: String,
    pub boot: u32,
    /// Stores that it was bound by when it was started.
    pub binds: Vec<usize>,
    /// How new what was known of pods was when it was started.
    pub clock: u64,
    /// It was killed, and its pod is still there.
    pub dead: bool,
    /// Its shim is dead, and containerd too.
    pub orphan: bool,
}

/// What ended and is not released yet.
#[derive(Clone)]
pub struct Leaving {
    pub uid: String,
    pub epoch: u64,
    /// Everything that it wrote is committed.
    pub committed: bool,
}

/// A transaction that may or may not be in the store.
#[derive(Clone, Copy)]
pub struct Attempt {
    pub number: u64,
    pub entry: Entry,
    /// How many stores of the set have it.
    pub stored: usize,
}

/// What is on the disk of a node of one volume.
#[derive(Clone, Default)]
pub struct Disk {
    /// The last transaction that is known to be in the store: number, epoch, content.
    pub head: (u64, u64, u64),
    pub attempts: Vec<Attempt>,
    /// The log that both are of.
    pub place: Place,
    /// It may have been changed to another log: nothing is committed until that is known.
    pub doubt: Option<Doubt>,
}

/// A mount that is under way.
#[derive(Clone)]
pub struct Mounting {
    pub uid: String,
    pub mount: Mount,
    pub place: Place,
}

#[derive(Clone)]
pub struct Driver {
    pub authority: Authority,
    established: bool,
    version: Option<u64>,
    renewing: bool,
    ticks: u64,
    /// Commits that were sent and are not answered.
    pub committing: BTreeSet<(usize, u64)>,
    pub mounts: BTreeMap<usize, Mounting>,
    pub changes: BTreeMap<usize, Change>,
    pub releasing: BTreeSet<usize>,
    pub seen: Option<Rc<Objects>>,
    pub ending: bool,
    /// The process ends once its restart is announced, and is away for so long.
    pub restart: Option<u64>,
}

#[derive(Clone)]
pub struct Node {
    pub on: bool,
    pub boot: u32,
    /// By how many millionths its clock is fast.
    pub rate: i64,
    /// 0: the API server; 1 and 2: the stores.
    pub links: [bool; 3],
    pub generation: u64,
    /// It stands still until then, or its driver does.
    pub paused: u64,
    pub driver_paused: u64,
    pub session: Option<String>,
    pub promised: BTreeMap<String, Instant>,
    /// Stores by which whoever is bound by another one is bound as well.
    pub also: BTreeSet<(usize, usize)>,
    pub guests: BTreeMap<usize, Guest>,
    pub leaving: BTreeMap<usize, Leaving>,
    pub begun: BTreeSet<String>,
    pub disks: BTreeMap<usize, Disk>,
    pub driver: Option<Driver>,
}

impl Node {
    pub fn new(rate: i64) -> Self {
        Self {
            on: true,
            boot: 1,
            rate,
            links: [true; 3],
            generation: 0,
            paused: 0,
            driver_paused: 0,
            session: None,
            promised: BTreeMap::new(),
            also: BTreeSet::new(),
            guests: BTreeMap::new(),
            leaving: BTreeMap::new(),
            begun: BTreeSet::new(),
            disks: BTreeMap::new(),
            driver: None,
        }
    }
}

impl World {
    pub(super) fn stores_in_use(&self) -> usize {
        if self.sets { 2 } else { self.volumes.min(2) }
    }

    pub(super) fn crash_driver(&mut self, node: usize, away: u64) {
        if self.nodes[node].driver.take().is_some() {
            self.nodes[node].generation += 1;
            let generation = self.nodes[node].generation;
            self.later(away, Event::StartDriver { node, generation });
        }
    }

    pub(super) fn start_driver(&mut self, node: usize) {
        let now = self.local(node);
        let resumed = self.nodes[node].session.is_some();
        if !resumed {
            self.sessions += 1;
            let session = format!("{}.m{node}.b{}", self.sessions, self.nodes[node].boot);
            self.begin_session(node, session);
        }
        let stores = self.stores_in_use();
        let machine = &mut self.nodes[node];
        let session = machine.session.clone().unwrap_or_default();
        let mut authority = Authority::new(self.timing, &session, machine.promised.clone(), now);
        STORES.iter().take(stores).for_each(|store| authority.uses(store));
        for (store, other) in &machine.also {
            authority.also(STORES[*store], STORES[*other]);
        }
        machine.driver = Some(Driver {
            authority,
            established: resumed,
            version: None,
            renewing: false,
            ticks: 0,
            committing: BTreeSet::new(),
            mounts: BTreeMap::new(),
            changes: BTreeMap::new(),
            releasing: BTreeSet::new(),
            seen: None,
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
            machine.guests.values_mut().for_each(|guest| guest.dead = true);
            machine.promised.clear();
        }
        for guest in machine.guests.values_mut() {
            guest.session.clone_from(&session);
        }
        machine.session = Some(session);
    }

    /// Rule 4.
    pub(super) fn end_session(&mut self, node: usize) {
        let (kills, keeps) = (!self.mutated(Mutation::NoKillFirst), self.mutated(Mutation::SessionReused));
        let machine = &mut self.nodes[node];
        if kills {
            for guest in machine.guests.values_mut().filter(|guest| !guest.dead) {
                guest.dead = true;
                self.disturbed += 1;
                self.killed += 1;
            }
            machine.promised.clear();
        }
        let session = if keeps { machine.session.clone() } else { machine.session.take() };
        machine.driver = None;
        machine.generation += 1;
        let generation = machine.generation;
        let after = self.chance.between(100 * MS, 400 * MS);
        self.later(after, Event::StartDriver { node, generation });
        if let Some(session) = session.filter(|_| keeps) {
            self.stores.iter_mut().for_each(|store| _ = store.fences.remove(&session));
            self.api.reopen(node);
        }
    }

    /// Nobody else would end it: an environment without a shim knows of no lease.
    pub(super) fn end_orphans(&mut self, node: usize) {
        let leaves = self.mutated(Mutation::OrphansLeft);
        let machine = &mut self.nodes[node];
        if leaves || machine.driver.is_none() || machine.driver_paused.max(machine.paused) > self.now {
            return;
        }
        for guest in machine.guests.values_mut().filter(|guest| guest.orphan) {
            (guest.orphan, guest.dead) = (false, true);
        }
    }

    pub(super) fn tick_node(&mut self, node: usize) {
        let now = self.local(node);
        let (early, beats) = (self.mutated(Mutation::LoweredEarly), !self.mutated(Mutation::NoBeats));
        let (timing, stores) = (self.timing, self.stores_in_use());
        self.end_orphans(node);
        let machine = &mut self.nodes[node];
        let session = machine.session.clone().unwrap_or_default();
        let Some(driver) = machine.driver.as_mut().filter(|driver| !driver.ending) else { return };
        driver.ticks += 1;
        let mut requests = Vec::new();
        if driver.ticks % 5 == 1 {
            requests.push(Request::Objects(Why::List));
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
        for store in 0..stores {
            requests.push(Request::LookForFence { store, session: session.clone(), sent: now.0 });
            if beats && driver.authority.beat_is_due(now) {
                requests.push(Request::Beat { store, session: session.clone(), number: now.as_millis() });
            }
        }
        for request in requests {
            self.send(Who::Node(node), request);
        }
        self.work(node);
        self.commit(node);
        self.change(node);
    }

    pub(super) fn answer_to_node(&mut self, node: usize, request: &Request, answer: Option<Answer>) {
        if self.nodes[node].driver.as_ref().is_none_or(|driver| driver.ending) {
            return;
        }
        match (request, answer) {
            (Request::ReadLease { .. } | Request::Renew { .. }, answer) => self.renewal_answered(node, request, answer),
            (Request::LookForFence { store, sent, .. }, Some(Answer::Fence(there))) => {
                let counted = self.counted(node, *sent);
                if let Some(driver) = &mut self.nodes[node].driver {
                    if there {
                        driver.authority.fenced();
                    } else {
                        driver.authority.not_fenced(STORES[*store], counted);
                    }
                }
            }
            (Request::Objects(Why::Change(volume)), answer) => {
                let objects = match answer {
                    Some(Answer::Objects(objects, _)) => Some(objects),
                    _ => None,
                };
                self.change_read(node, *volume, objects.as_deref());
            }
            (Request::Objects(why), answer) => {
                let objects = match answer {
                    Some(Answer::Objects(objects, _)) => Some(objects),
                    _ => None,
                };
                self.objects_answered(node, *why, objects);
            }
            (Request::Tail { volume, .. }, answer) => self.tail_answered(node, *volume, answer.as_ref()),
            (Request::Append { store, volume, log, number, entry }, answer) => {
                let taken = match answer {
                    Some(Answer::Appended(appended)) => Some(!appended),
                    _ => None,
                };
                if self.copy_answered(node, *volume, (*store, *log), *number, taken) {
                    // It was for the log that is changed to.
                } else if !self.barrier_answered(node, *volume, *number, *entry, taken) {
                    self.commit_answered(node, *volume, (*store, *log), *number, *entry, taken);
                    self.drive_settled(node, *volume);
                }
                self.release(node);
            }
            (Request::Seed { store, volume, log, number, .. }, answer) => {
                let taken = matches!(answer, Some(Answer::Appended(true))).then_some(false);
                self.copy_answered(node, *volume, (*store, *log), *number, taken);
            }
            (Request::Mend { store, volume, log, entries }, answer) => {
                if matches!(answer, Some(Answer::Appended(false))) {
                    self.differs(*volume);
                }
                let done = matches!(answer, Some(Answer::Appended(true)));
                let to = entries.last().map(|(number, _)| *number).filter(|_| done);
                self.mend_answered(node, *volume, (*store, *log), to);
            }
            (Request::Place { volume, to, .. }, answer) => self.place_answered(node, *volume, to, answer.as_ref()),
            (Request::Write { volume, .. }, answer) => self.release_answered(node, *volume, answer.as_ref()),
            _ => {}
        }
        self.after_answer(node);
    }

    fn counted(&self, node: usize, sent: u64) -> Instant {
        if self.mutated(Mutation::PromiseFromAnswer) { self.local(node) } else { Instant(sent) }
    }

    fn renewal_answered(&mut self, node: usize, request: &Request, answer: Option<Answer>) {
        let now = self.local(node);
        let counted = |sent| self.counted(node, sent);
        let at = match request {
            Request::Renew { sent, .. } => counted(*sent),
            _ => now,
        };
        let Some(driver) = &mut self.nodes[node].driver else { return };
        driver.renewing = false;
        let mut again = None;
        match (request, answer) {
            (Request::ReadLease { .. }, Some(Answer::Lease(found))) => {
                let version = found.as_ref().map_or(0, |(version, _)| *version);
                if let Some((_, lease)) = found.filter(|_| driver.established) {
                    driver.authority.saw(&lease);
                }
                driver.version = Some(version);
                if !driver.authority.is_over() {
                    again = Some(Request::Renew { node, version, lease: driver.authority.lease(now), sent: now.0 });
                }
            }
            (Request::ReadLease { .. }, _) => {}
            (_, Some(Answer::Written(version, lease))) => {
                (driver.version, driver.established) = (Some(version), true);
                driver.authority.saw(&lease);
                driver.authority.renewed(at, &lease);
            }
            // A conflict, or nothing is known: it is read again at once.
            _ => {
                driver.version = None;
                again = Some(Request::ReadLease { node });
            }
        }
        if let Some(request) = again {
            driver.renewing = true;
            self.send(Who::Node(node), request);
        }
    }

    /// What follows from every answer: promises are published, the end is begun, an announced restart happens.
    fn after_answer(&mut self, node: usize) {
        let machine = &mut self.nodes[node];
        let Some(driver) = &mut machine.driver else { return };
        if driver.authority.is_over() {
            if !std::mem::replace(&mut driver.ending, true) {
                let (generation, after) = (machine.generation, self.chance.between(5 * MS, 200 * MS));
                self.later(after, Event::SessionEnded { node, generation });
            }
            return;
        }
        if machine.promised != *driver.authority.promised() {
            machine.promised.clone_from(driver.authority.promised());
        }
        if driver.authority.is_announced()
            && let Some(away) = driver.restart
        {
            self.crash_driver(node, away);
        }
    }
}
