//! What one replica of the operator knows of the nodes and their sessions, and what it has to do next (rules 5 and 7 to 9):
//! the [`Observer`] of each node and the [`Fencing`] of each session that is being ended, put together.
//!
//! A session is ended because its node is suspect, because somebody has begun to end it or asks for it, or because it holds
//! volumes and is not what its node acts under. What a session holds is looked up for all of them at once: when one begins
//! to be ended, and now and then.
//!
//! `W` is a time for people, which is kept and given back and never looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::fence::{Fencing, Step};
use crate::node::Lease;
use crate::observer::Observer;
use crate::storm;
use crate::{Instant, Timing};

#[cfg(test)]
mod tests;

/// A session that is being ended, for good: its fence is in a store, or its node has begun another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Death<W> {
    /// Name of the node.
    pub node: String,
    /// Whether the node has begun another session since.
    pub is_back: bool,
    /// When the node was found to be silent.
    pub detected: W,
    /// Stores that the session's volumes are in, and since when nothing of the session runs on them; none: not yet.
    pub over: BTreeMap<String, Option<W>>,
}

/// Sessions that are over or being ended, by session.
pub type Deaths<W> = BTreeMap<String, Death<W>>;

/// Who has a volume.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Holder {
    /// Name of the node.
    pub node: String,
    /// The session that holds it; none: whatever session the node acts under, since nobody holds it any more but what was
    /// written last may be on that node alone.
    pub session: Option<String>,
}

/// The stores that volumes are in, by who has them.
pub type Holdings = BTreeMap<Holder, BTreeSet<String>>;

/// The machine that a session is of: a session is `<random id>.<machine id>.<boot id>`.
fn machine(session: &str) -> Option<&str> {
    session.split('.').nth(1).filter(|machine| !machine.is_empty())
}

/// Whether a node that acts under session `now` can run nothing of session `then` any more: a driver kills everything
/// before it begins a session on the same machine, and a new boot of it runs nothing of the one before (rule 9).
#[must_use]
pub fn is_superseded(then: &str, now: &str) -> bool {
    then != now && machine(then).is_some() && machine(then) == machine(now)
}

/// What is known of one node.
#[derive(Clone)]
struct Node<W> {
    observer: Observer,
    lease: Lease,
    /// The lease was fenced when this replica saw its session first: nobody knows since when.
    found_fenced: bool,
    /// Since when it is suspect, or fenced, without a break.
    suspect: Option<(Instant, W)>,
    /// There was a storm since it fell silent. When that passes, not all are heard at the same instant, and the last must not
    /// pay for it. Nor must one of which an old beat arrives now, so that it is suspect again a moment later, and then alone.
    storm: bool,
}

impl<W> Node<W> {
    fn state(&self, now: Instant) -> storm::State {
        match &self.suspect {
            None if self.observer.falls_silent(now) => storm::State::Silent,
            None => storm::State::Heard,
            Some((since, _)) if !self.found_fenced && now.since(*since) < storm::MEMORY => storm::State::Silent,
            Some(_) => storm::State::Dead,
        }
    }
}

/// The end of one session.
#[derive(Clone)]
struct Ending<W> {
    node: String,
    detected: W,
    fencing: Fencing,
    stores: BTreeMap<String, Option<W>>,
    /// Whether it holds anything, as far as that was looked up.
    holds: Option<bool>,
    /// Somebody asked for it, so that it goes on although the node lives.
    asked_for: bool,
    /// A fence is in a store: the node will end the session itself as soon as it can.
    irrevocable: bool,
}

/// A session that holds volumes and is not what its node acts under.
#[derive(Clone)]
struct Stranger {
    node: String,
    since: Instant,
    /// How often the leases were seen since.
    seen: u32,
}

/// What has to be done, and then told to the [`Book`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Task {
    /// Find out who has which volumes, of those whose stores other nodes reach too, and call [`Book::holds`].
    FindHolders,
    /// Look for the newest beat of a session in all stores, and call [`Book::saw_beat`].
    LookForBeats {
        /// The node.
        node: String,
        /// The session.
        session: String,
    },
    /// Create the fence, and call [`Book::fenced`].
    CreateFence {
        /// The session.
        session: String,
        /// The store.
        store: String,
    },
    /// Mark the node's lease, and call [`Book::closed`].
    CloseLease {
        /// The session.
        session: String,
        /// The node.
        node: String,
    },
}

/// What one replica knows.
#[derive(Clone)]
pub struct Book<W> {
    timing: Timing,
    nodes: BTreeMap<String, Node<W>>,
    zones: BTreeMap<String, String>,
    endings: BTreeMap<String, Ending<W>>,
    strangers: BTreeMap<String, Stranger>,
    /// Nodes of which somebody who knows says that they are off.
    off: BTreeSet<String>,
    /// When it was last learnt who has which volumes.
    looked: Option<Instant>,
}

/// How often it is looked up who has which volumes while a session is being ended: one may be given to it late.
const AGAIN: Duration = Duration::from_secs(10);
/// How often otherwise: a volume can be in the hands of a session that nobody ended.
const SELDOM: Duration = Duration::from_secs(30);

impl<W: Copy> Book<W> {
    /// Nothing is known.
    #[must_use]
    pub fn new(timing: Timing) -> Self {
        Self {
            timing,
            nodes: BTreeMap::new(),
            zones: BTreeMap::new(),
            endings: BTreeMap::new(),
            strangers: BTreeMap::new(),
            off: BTreeSet::new(),
            looked: None,
        }
    }

    /// The API server gave all leases: node, version, content. The question was asked after the answer before it.
    pub fn saw_leases(&mut self, leases: impl IntoIterator<Item = (String, String, Lease)>, now: Instant) {
        let mut seen = BTreeSet::new();
        for (name, version, lease) in leases {
            seen.insert(name.clone());
            let node = self.nodes.entry(name.clone()).or_insert_with(|| Node {
                observer: Observer::new(self.timing),
                lease: lease.clone(),
                found_fenced: lease.fenced,
                suspect: None,
                storm: false,
            });
            if node.lease.session != lease.session {
                node.observer.new_session(now);
                node.found_fenced = false;
                // What the former one held has to be taken from it.
                self.looked = None;
            }
            node.observer.saw_lease(&version, &lease, now);
            node.lease = lease;
            let current = &node.lease.session;
            for (session, ending) in self.endings.iter_mut().filter(|(_, ending)| ending.node == name) {
                if is_superseded(session, current) {
                    ending.fencing.prove();
                }
            }
        }
        self.nodes.retain(|name, _| seen.contains(name));
        let nodes = &self.nodes;
        self.strangers.retain(|session, stranger| {
            stranger.seen += 1;
            nodes.get(&stranger.node).is_none_or(|node| node.lease.session != *session)
        });
    }

    /// The zones that nodes are in, by node.
    pub fn zones(&mut self, zones: BTreeMap<String, String>) {
        self.zones = zones;
    }

    /// The newest beat of a node's session.
    pub fn saw_beat(&mut self, node: &str, session: &str, number: u64, now: Instant) {
        if let Some(node) = self.nodes.get_mut(node).filter(|node| node.lease.session == session) {
            node.observer.saw_beat(number, now);
        }
    }

    /// Who has which volumes.
    pub fn holds(&mut self, holdings: &Holdings, now: Instant) {
        self.looked = Some(now);
        for (session, ending) in &mut self.endings {
            let current = self.nodes.get(&ending.node).is_none_or(|node| node.lease.session == *session);
            let own = holdings.iter().filter(|(holder, _)| {
                let of_node = holder.session.is_none() && holder.node == ending.node && current;
                of_node || holder.session.as_ref() == Some(session)
            });
            ending.holds = Some(false);
            for store in own.flat_map(|(_, stores)| stores) {
                ending.holds = Some(true);
                ending.fencing.add_store(store);
                ending.stores.entry(store.clone()).or_default();
            }
        }
        let mut before = std::mem::take(&mut self.strangers);
        for (node, session) in holdings.keys().filter_map(|holder| Some((&holder.node, holder.session.as_ref()?))) {
            let current = self.nodes.get(node).is_some_and(|node| node.lease.session == *session);
            if !current && !self.endings.contains_key(session) {
                let known = before.remove(session);
                let new = || Stranger { node: node.clone(), since: now, seen: 0 };
                self.strangers.insert(session.clone(), known.unwrap_or_else(new));
            }
        }
    }

    /// The fence of a session is in a store.
    pub fn fenced(&mut self, session: &str, store: &str, now: Instant) {
        if let Some(ending) = self.endings.get_mut(session) {
            ending.irrevocable = true;
            ending.fencing.fence_created(store, now);
        }
    }

    /// The lease of a session is closed; `duration` is what it said.
    pub fn closed(&mut self, session: &str, duration: Duration, now: Instant) {
        if let Some(ending) = self.endings.get_mut(session) {
            ending.fencing.lease_closed(duration, now);
        }
    }

    /// Ends the present session of a node without waiting for silence: somebody asked for it.
    pub fn end(&mut self, node: &str, wall: W) {
        if let Some(known) = self.nodes.get(node) {
            let session = known.lease.session.clone();
            self.begin(node, &session, wall);
            if let Some(ending) = self.endings.get_mut(&session) {
                ending.asked_for = true;
            }
        }
    }

    /// The session that a node has now.
    #[must_use]
    pub fn session(&self, node: &str) -> Option<&str> {
        self.nodes.get(node).map(|node| node.lease.session.as_str())
    }

    /// The nodes of which somebody who knows says that they are off; all others are not. It is believed of nodes that
    /// are silent, and spares the wait: what is heard is not off.
    pub fn are_off(&mut self, nodes: impl IntoIterator<Item = String>) {
        self.off = nodes.into_iter().collect();
    }

    /// Nodes on which nothing can be started, for all that is known: those that are silent, also before anything is done
    /// to them, and those whose present session is being ended.
    #[must_use]
    pub fn silent(&self) -> BTreeSet<String> {
        let ended = |session: &str| self.endings.contains_key(session);
        let silent = self.nodes.iter().filter(|(_, node)| node.suspect.is_some() || ended(&node.lease.session));
        let gone = self.endings.values().map(|ending| &ending.node).filter(|node| !self.nodes.contains_key(*node));
        silent.map(|(name, _)| name).chain(gone).cloned().collect()
    }

    /// What has to be done now. `wall` is for people.
    pub fn next(&mut self, now: Instant, wall: W) -> Vec<Task> {
        let mut tasks = Vec::new();
        for (node, session, detected) in self.condemned(now, wall, &mut tasks) {
            self.begin(&node, &session, detected);
        }
        let nodes = &self.nodes;
        self.endings.retain(|session, ending| !is_done_with(session, ending, nodes.get(&ending.node)));
        let pause = if self.endings.is_empty() { SELDOM } else { AGAIN };
        let unknown = self.endings.values().any(|ending| ending.holds.is_none());
        if unknown || self.looked.is_none_or(|looked| now.since(looked) > pause) {
            tasks.push(Task::FindHolders);
        }
        for (session, ending) in &mut self.endings {
            if self.off.contains(&ending.node) && nodes.get(&ending.node).is_none_or(|node| node.suspect.is_some()) {
                ending.fencing.is_off();
            }
            // What holds nothing that another node could take over is ended only if somebody wants that.
            if ending.stores.is_empty() && !(ending.asked_for && ending.holds.is_some()) {
                continue;
            }
            for (store, over) in &mut ending.stores {
                if over.is_none() && ending.fencing.is_over(store, now) {
                    *over = Some(wall);
                }
            }
            let session = || session.clone();
            tasks.extend(ending.fencing.steps().into_iter().map(|step| match step {
                Step::CreateFence { store } => Task::CreateFence { session: session(), store },
                Step::CloseLease => Task::CloseLease { session: session(), node: ending.node.clone() },
            }));
        }
        tasks
    }

    /// The sessions whose end has to begin: node, session, and when that was found.
    fn condemned(&mut self, now: Instant, wall: W, tasks: &mut Vec<Task>) -> Vec<(String, String, W)> {
        for node in self.nodes.values_mut() {
            // Who marks the lease of a silent node changes it, which is no sign of life.
            let suspect = node.lease.fenced || node.observer.is_suspect(now);
            node.suspect = suspect.then(|| node.suspect.unwrap_or((now, wall)));
        }
        let zone = |name: &String| self.zones.get(name).map(String::as_str);
        let storm = storm::is_storm(self.nodes.iter().map(|(name, node)| (node.state(now), zone(name))));
        let mut ends = Vec::new();
        for (name, node) in &mut self.nodes {
            node.storm = node.observer.falls_silent(now) && (node.storm || node.suspect.is_some() && storm);
            let session = &node.lease.session;
            if node.observer.wants_beats(now) {
                tasks.push(Task::LookForBeats { node: name.clone(), session: session.clone() });
            }
            // One that somebody else began to end, or this replica before it was started anew, is ended here too.
            let fenced = node.lease.fenced.then_some(wall);
            let suspect = node.suspect.filter(|(since, _)| !node.storm || now.since(*since) >= storm::WAIT);
            if let Some(detected) = fenced.or(suspect.map(|(_, wall)| wall)) {
                ends.push((name.clone(), session.clone(), detected));
            }
        }
        // A session was in its node's lease before any volume was given to it. So one that is not there when the leases are
        // asked for after the volumes is there no more. A lease that somebody deleted comes back at once if its node lives.
        let strange = |stranger: &&Stranger| stranger.seen > 1 && now.since(stranger.since) > self.timing.silence;
        let strangers = self.strangers.iter().filter(|(_, stranger)| strange(stranger));
        ends.extend(strangers.map(|(session, stranger)| (stranger.node.clone(), session.clone(), wall)));
        ends
    }

    fn begin(&mut self, node: &str, session: &str, detected: W) {
        let ending = self.endings.entry(session.to_owned()).or_insert_with(|| Ending {
            node: node.into(),
            detected,
            fencing: Fencing::new(self.timing, []),
            stores: BTreeMap::new(),
            holds: None,
            asked_for: false,
            irrevocable: false,
        });
        if self.nodes.get(node).is_some_and(|node| is_superseded(session, &node.lease.session)) {
            ending.fencing.prove();
        }
        self.strangers.remove(session);
    }

    /// Sessions whose end cannot be stopped any more.
    #[must_use]
    pub fn deaths(&self) -> Deaths<W> {
        let ended = self.endings.iter().filter(|(_, ending)| ending.irrevocable || ending.fencing.is_proven());
        let death = |session: &str, ending: &Ending<W>| Death {
            node: ending.node.clone(),
            is_back: self.nodes.get(&ending.node).is_some_and(|node| node.lease.session != session),
            detected: ending.detected,
            over: ending.stores.clone(),
        };
        ended.map(|(session, ending)| (session.clone(), death(session, ending))).collect()
    }
}

/// Whether nothing is left to be done about a session, nor to be known of it. `node`: what is known of its node, if that
/// has a lease.
fn is_done_with<W>(session: &str, ending: &Ending<W>, node: Option<&Node<W>>) -> bool {
    match node.filter(|node| node.lease.session == session) {
        // A node that is heard again before anything was done to it lives.
        Some(node) => !ending.irrevocable && !ending.asked_for && !node.lease.fenced && node.suspect.is_none(),
        None => ending.holds == Some(false) && ending.stores.values().all(Option::is_some),
    }
}
