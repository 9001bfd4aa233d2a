//! The API server and the stores, as linearizable models: each request takes effect at one instant.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use vivarium_ownership::holder::Volume;
use vivarium_ownership::node::Lease;

/// The pod of an incarnation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub uid: String,
    pub volume: usize,
    pub epoch: u64,
    pub node: Option<usize>,
    /// The only node that it may be bound to, or those that it may not.
    pub pin: Option<usize>,
    pub shun: Vec<usize>,
    /// It is to be deleted.
    pub doomed: bool,
    /// What its kubelet said of it.
    pub started: bool,
    pub ended: bool,
}

/// A log: the stores that it is in, of which the first decides, and its number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub set: Vec<usize>,
    pub log: u32,
}

/// Where a volume's journal is, as its object says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Where {
    pub now: Place,
    /// The log that the holder is about to change to.
    pub next: Option<Place>,
    /// How many logs were named.
    pub logs: u32,
    /// The set that somebody wants.
    pub wanted: Vec<usize>,
}

/// Volumes with their versions, and pods.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    pub clock: u64,
    pub volumes: Vec<(u64, Volume)>,
    /// Where their journals are. A change of that is a change of the volume.
    pub places: Vec<Where>,
    pub pods: Vec<Pod>,
}

impl Objects {
    pub fn pod(&self, uid: &str) -> Option<&Pod> {
        self.pods.iter().find(|pod| pod.uid == uid)
    }
}

pub type Leases = BTreeMap<usize, (u64, Lease)>;

#[derive(Clone, Default)]
pub struct Api {
    pub down: bool,
    clock: u64,
    pub leases: Rc<Leases>,
    pub objects: Rc<Objects>,
}

/// A transaction: who wrote it, and what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub epoch: u64,
    pub barrier: bool,
    pub content: u64,
}

/// An entry that is stored, and the newest epoch that was started with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    pub entry: Entry,
    pub restored: u64,
}

/// What is stored of a volume, by number, and the number before which it may be deleted.
#[derive(Clone, Default)]
pub struct Log {
    pub entries: BTreeMap<u64, Stored>,
    /// What was deleted. Whoever sends it again brings back what every later incarnation was started with.
    pub deleted: BTreeMap<u64, Stored>,
    pub boundary: u64,
}

#[derive(Clone, Default)]
pub struct Store {
    pub down: bool,
    pub fences: BTreeSet<String>,
    pub beats: BTreeMap<String, u64>,
    /// By volume and log.
    pub logs: BTreeMap<(usize, u32), Log>,
}

/// Why a node asks for volumes and pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    List,
    /// Whether a volume that is being mounted is still its own.
    Reread(usize),
    /// To release a volume.
    Release(usize),
    /// To change its stores.
    Change(usize),
}

/// What a server is asked.
#[derive(Clone, Debug)]
pub enum Request {
    ReadLease {
        node: usize,
    },
    Renew {
        node: usize,
        version: u64,
        lease: Lease,
        sent: u64,
    },
    Leases,
    CloseLease {
        node: usize,
        session: String,
    },
    Objects(Why),
    /// A volume, by compare-and-swap or not.
    Write {
        volume: usize,
        version: Option<u64>,
        to: Volume,
    },
    /// Where its journal is, by compare-and-swap or not.
    Place {
        volume: usize,
        version: Option<u64>,
        to: Where,
    },
    CreatePod {
        volume: usize,
        epoch: u64,
        pin: Option<usize>,
        shun: Vec<usize>,
    },
    DeletePod {
        uid: String,
    },
    RemovePod {
        uid: String,
    },
    Report {
        uid: String,
        ended: bool,
    },
    LookForFence {
        store: usize,
        session: String,
        sent: u64,
    },
    Beat {
        store: usize,
        session: String,
        number: u64,
    },
    NewestBeat {
        store: usize,
        node: usize,
        session: String,
    },
    CreateFence {
        store: usize,
        session: String,
    },
    Tail {
        store: usize,
        volume: usize,
        log: u32,
    },
    Append {
        store: usize,
        volume: usize,
        log: u32,
        number: u64,
        entry: Entry,
    },
    /// A log begins with the state after this transaction.
    Seed {
        store: usize,
        volume: usize,
        log: u32,
        number: u64,
        entry: Entry,
    },
    /// What another store has is brought into this one.
    Mend {
        store: usize,
        volume: usize,
        log: u32,
        entries: Vec<(u64, Entry)>,
    },
    /// A checkpoint was made; what lies before it is deleted later.
    Raise {
        store: usize,
        volume: usize,
        log: u32,
    },
    Collect {
        store: usize,
        volume: usize,
        log: u32,
        barriers: bool,
    },
}

/// What it answers.
#[derive(Clone, Debug)]
pub enum Answer {
    Lease(Option<(u64, Lease)>),
    Written(u64, Lease),
    Conflict,
    Leases(Rc<Leases>),
    Objects(Rc<Objects>, Rc<Leases>),
    Closed(Duration),
    NotThere,
    Done,
    Fence(bool),
    Newest(Option<u64>),
    /// Number, epoch and content of the last; 0: there is none.
    Tail(u64, u64, u64),
    Appended(bool),
}

/// Transactions that a checkpoint leaves behind it.
const KEPT: u64 = 3;

impl Request {
    /// The store that is asked; none: the API server.
    pub fn store(&self) -> Option<usize> {
        match self {
            Self::LookForFence { store, .. }
            | Self::Beat { store, .. }
            | Self::NewestBeat { store, .. }
            | Self::CreateFence { store, .. }
            | Self::Tail { store, .. }
            | Self::Append { store, .. }
            | Self::Seed { store, .. }
            | Self::Mend { store, .. }
            | Self::Raise { store, .. }
            | Self::Collect { store, .. } => Some(*store),
            _ => None,
        }
    }
}

impl Api {
    pub fn new(places: Vec<Place>) -> Self {
        let volumes = vec![(0, Volume::default()); places.len()];
        let begin = |now: Place| Where { wanted: now.set.clone(), now, next: None, logs: 0 };
        let places = places.into_iter().map(begin).collect();
        Self { objects: Rc::new(Objects { volumes, places, ..Objects::default() }), ..Self::default() }
    }

    pub fn answer(&mut self, request: &Request) -> Answer {
        self.clock += 1;
        match request {
            Request::ReadLease { node } => Answer::Lease(self.leases.get(node).cloned()),
            Request::Renew { node, version, lease, .. } => {
                let found = self.leases.get(node).map_or(0, |(version, _)| *version);
                if found != *version {
                    return Answer::Conflict;
                }
                // What somebody else wrote stays: the mark of a fence counts for the session that it names.
                let fenced = self.leases.get(node).is_some_and(|(_, old)| old.fenced && old.session == lease.session);
                let lease = Lease { fenced, ..lease.clone() };
                Rc::make_mut(&mut self.leases).insert(*node, (self.clock, lease.clone()));
                Answer::Written(self.clock, lease)
            }
            Request::Objects(_) => Answer::Objects(self.objects.clone(), self.leases.clone()),
            Request::Leases => Answer::Leases(self.leases.clone()),
            Request::CloseLease { node, session } => match Rc::make_mut(&mut self.leases).get_mut(node) {
                Some((_, lease)) if lease.fenced && lease.session == *session => Answer::Closed(lease.duration),
                Some((version, lease)) if lease.session == *session => {
                    (lease.fenced, *version) = (true, self.clock);
                    Answer::Closed(lease.duration)
                }
                _ => Answer::NotThere,
            },
            other => self.change(other),
        }
    }

    fn change(&mut self, request: &Request) -> Answer {
        let objects = Rc::make_mut(&mut self.objects);
        match request {
            Request::Write { volume, version, to } => {
                let found = &mut objects.volumes[*volume];
                if version.is_some_and(|version| version != found.0) {
                    return Answer::Conflict;
                }
                *found = (self.clock, to.clone());
            }
            Request::Place { volume, version, to } => {
                let found = &mut objects.volumes[*volume];
                if version.is_some_and(|version| version != found.0) {
                    return Answer::Conflict;
                }
                found.0 = self.clock;
                let wanted = objects.places[*volume].wanted.clone();
                objects.places[*volume] = Where { wanted, ..to.clone() };
            }
            Request::CreatePod { volume, epoch, pin, shun } => {
                if objects.pods.iter().any(|pod| (pod.volume, pod.epoch) == (*volume, *epoch)) {
                    return Answer::Conflict;
                }
                objects.pods.push(Pod {
                    uid: format!("u{}", self.clock),
                    volume: *volume,
                    epoch: *epoch,
                    node: None,
                    pin: *pin,
                    shun: shun.clone(),
                    doomed: false,
                    started: false,
                    ended: false,
                });
            }
            Request::DeletePod { uid } => {
                let Some(pod) = objects.pods.iter_mut().find(|pod| pod.uid == *uid) else { return Answer::NotThere };
                pod.doomed = true;
                objects.pods.retain(|pod| pod.node.is_some() || !pod.doomed);
            }
            Request::RemovePod { uid } => objects.pods.retain(|pod| pod.uid != *uid),
            Request::Report { uid, ended } => {
                let Some(pod) = objects.pods.iter_mut().find(|pod| pod.uid == *uid) else { return Answer::NotThere };
                pod.started = true;
                pod.ended |= *ended;
            }
            other => unreachable!("{other:?} is not for the API server"),
        }
        objects.clock = self.clock;
        Answer::Done
    }

    /// What no rule allows: the mark of a fence is taken away.
    pub fn reopen(&mut self, node: usize) {
        self.clock += 1;
        if let Some((version, lease)) = Rc::make_mut(&mut self.leases).get_mut(&node) {
            (*version, lease.fenced) = (self.clock, false);
        }
    }

    /// Somebody wants a volume's journal in other stores.
    pub fn want(&mut self, volume: usize, set: Vec<usize>) {
        self.clock += 1;
        let objects = Rc::make_mut(&mut self.objects);
        objects.clock = self.clock;
        objects.volumes[volume].0 = self.clock;
        objects.places[volume].wanted = set;
    }

    /// The scheduler binds a pod.
    pub fn bind(&mut self, uid: &str, node: usize) {
        self.clock += 1;
        let objects = Rc::make_mut(&mut self.objects);
        objects.clock = self.clock;
        if let Some(pod) = objects.pods.iter_mut().find(|pod| pod.uid == uid) {
            pod.node = Some(node);
        }
    }
}

impl Log {
    /// Creates an entry if its number is free; whether it is there then.
    fn add(&mut self, number: u64, entry: Entry) -> bool {
        let restored = self.deleted.get(&number).filter(|old| old.entry == entry).map_or(0, |old| old.restored);
        self.entries.entry(number).or_insert(Stored { entry, restored }).entry == entry
    }
}

impl Store {
    pub fn answer(&mut self, request: &Request) -> Answer {
        match request {
            Request::LookForFence { session, .. } => Answer::Fence(self.fences.contains(session)),
            Request::Beat { session, number, .. } => {
                let newest = self.beats.entry(session.clone()).or_default();
                *newest = (*newest).max(*number);
                Answer::Done
            }
            Request::NewestBeat { session, .. } => Answer::Newest(self.beats.get(session).copied()),
            Request::CreateFence { session, .. } => {
                self.fences.insert(session.clone());
                Answer::Done
            }
            Request::Tail { volume, log, .. } => {
                let last = self.logs.entry((*volume, *log)).or_default().entries.last_key_value();
                last.map_or(Answer::Tail(0, 0, 0), |(number, Stored { entry, .. })| {
                    Answer::Tail(*number, entry.epoch, entry.content)
                })
            }
            Request::Append { volume, log, number, entry, .. } => {
                Answer::Appended(self.logs.entry((*volume, *log)).or_default().add(*number, *entry))
            }
            Request::Seed { volume, log, number, entry, .. } => {
                let log = self.logs.entry((*volume, *log)).or_default();
                log.boundary = log.boundary.max(*number);
                Answer::Appended(log.add(*number, *entry))
            }
            Request::Mend { volume, log, entries, .. } => {
                let log = self.logs.entry((*volume, *log)).or_default();
                let missing = entries.iter().filter(|(number, _)| *number >= log.boundary).copied();
                let missing: Vec<_> = missing.collect();
                Answer::Appended(missing.into_iter().fold(true, |all, (number, entry)| log.add(number, entry) && all))
            }
            Request::Raise { volume, log, .. } => {
                let log = self.logs.entry((*volume, *log)).or_default();
                let last = log.entries.last_key_value().map_or(0, |(number, _)| *number);
                log.boundary = log.boundary.max(last.saturating_sub(KEPT));
                Answer::Done
            }
            Request::Collect { volume, log, barriers, .. } => {
                let log = self.logs.entry((*volume, *log)).or_default();
                let boundary = log.boundary;
                let goes = |number: u64, stored: &Stored| number < boundary && (!stored.entry.barrier || *barriers);
                log.deleted.extend(log.entries.iter().filter(|(number, stored)| goes(**number, stored)));
                log.entries.retain(|number, stored| !goes(*number, stored));
                Answer::Done
            }
            other => unreachable!("{other:?} is not for a store"),
        }
    }
}
