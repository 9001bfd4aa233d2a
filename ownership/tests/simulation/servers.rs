//! The API server and the stores, as linearizable models: each request takes effect at one instant.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use vivarium_ownership::node::Lease;

/// A volume's object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    pub version: u64,
    pub holder: Option<(usize, String)>,
    pub epoch: u64,
}

#[derive(Default)]
pub struct Api {
    pub down: bool,
    pub clock: u64,
    pub leases: BTreeMap<usize, (u64, Lease)>,
    pub volumes: Vec<Volume>,
}

/// A transaction: who wrote it, and what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub epoch: u64,
    pub barrier: bool,
    pub content: u64,
    pub acknowledged: bool,
}

#[derive(Default)]
pub struct Store {
    pub down: bool,
    pub fences: BTreeSet<String>,
    pub beats: BTreeMap<String, u64>,
    /// By volume; the first has number 1.
    pub logs: BTreeMap<usize, Vec<Entry>>,
}

/// What a server is asked.
#[derive(Clone, Debug)]
pub enum Request {
    ReadLease { node: usize },
    Renew { node: usize, version: u64, lease: Lease, sent: u64 },
    ReadVolumes,
    Leases,
    CloseLease { node: usize, session: String },
    Give { volume: usize, version: u64, to: (usize, String), blindly: bool },
    LookForFence { store: usize, session: String, sent: u64 },
    Beat { store: usize, session: String, number: u64 },
    NewestBeat { store: usize, node: usize, session: String },
    CreateFence { store: usize, session: String },
    Tail { store: usize, volume: usize },
    Append { store: usize, volume: usize, number: u64, entry: Entry },
}

/// What it answers.
#[derive(Clone, Debug)]
pub enum Answer {
    Lease(Option<(u64, Lease)>),
    Written(u64, Lease),
    Conflict,
    Volumes(Vec<Volume>, BTreeMap<usize, (u64, Lease)>),
    Leases(BTreeMap<usize, (u64, Lease)>),
    Closed(Duration),
    NotThere,
    Done,
    Fence(bool),
    Newest(Option<u64>),
    Tail(u64, u64),
    Appended(bool),
}

impl Request {
    /// The store that is asked; none: the API server.
    pub fn store(&self) -> Option<usize> {
        match self {
            Self::LookForFence { store, .. }
            | Self::Beat { store, .. }
            | Self::NewestBeat { store, .. }
            | Self::CreateFence { store, .. }
            | Self::Tail { store, .. }
            | Self::Append { store, .. } => Some(*store),
            _ => None,
        }
    }
}

impl Api {
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
                self.leases.insert(*node, (self.clock, lease.clone()));
                Answer::Written(self.clock, lease)
            }
            Request::ReadVolumes => Answer::Volumes(self.volumes.clone(), self.leases.clone()),
            Request::Leases => Answer::Leases(self.leases.clone()),
            Request::CloseLease { node, session } => match self.leases.get_mut(node) {
                Some((version, lease)) if lease.session == *session => {
                    lease.fenced = true;
                    *version = self.clock;
                    Answer::Closed(lease.duration)
                }
                _ => Answer::NotThere,
            },
            Request::Give { volume, version, to, blindly } => {
                let found = &mut self.volumes[*volume];
                if found.version != *version && !blindly {
                    return Answer::Conflict;
                }
                *found = Volume { version: self.clock, holder: Some(to.clone()), epoch: found.epoch + 1 };
                Answer::Done
            }
            other => unreachable!("{other:?} is not for the API server"),
        }
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
            Request::Tail { volume, .. } => {
                let log = self.logs.entry(*volume).or_default();
                Answer::Tail(log.len() as u64, log.last().map_or(0, |entry| entry.epoch))
            }
            Request::Append { volume, number, entry, .. } => {
                let log = self.logs.entry(*volume).or_default();
                match log.get(*number as usize - 1) {
                    Some(found) => Answer::Appended(found.epoch == entry.epoch && found.content == entry.content),
                    None if *number == log.len() as u64 + 1 => {
                        log.push(entry.clone());
                        Answer::Appended(true)
                    }
                    None => unreachable!("a number was left out"),
                }
            }
            other => unreachable!("{other:?} is not for a store"),
        }
    }
}
