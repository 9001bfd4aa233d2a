//! What one replica of the operator knows of the nodes and their sessions, and what it has to do next (rules 5 and 7 to 9):
//! the [`Observer`] of each node and the [`Fencing`] of each session that is being ended, put together.
//!
//! `W` is a time for people, which is kept and given back and never looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::fence::{Fencing, Step};
use crate::node::Lease;
use crate::observer::Observer;
use crate::{Instant, Timing};

/// A session that is being ended, for good: its fence is in a store.
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
struct Node<W> {
    observer: Observer,
    lease: Lease,
    /// Since when it is suspect without a break.
    suspect: Option<(Instant, W)>,
}

/// The end of one session.
struct Ending<W> {
    node: String,
    detected: W,
    fencing: Fencing,
    stores: BTreeMap<String, Option<W>>,
    /// When it was last asked which stores the volumes are in.
    asked: Option<Instant>,
    /// A fence is in a store: the node will end the session itself as soon as it can.
    irrevocable: bool,
}

/// What has to be done, and then told to the [`Book`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Task {
    /// Find out in which stores the volumes are that a session holds, and call [`Book::holds`].
    FindStores {
        /// The session.
        session: String,
    },
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
pub struct Book<W> {
    timing: Timing,
    nodes: BTreeMap<String, Node<W>>,
    endings: BTreeMap<String, Ending<W>>,
}

/// Share of the nodes that may fall silent at once before it is taken for a storm rather than for dead nodes.
const STORM_SHARE: usize = 3;
/// How much longer is waited then: an outage that hits many nodes mostly passes, and so much would have to be restarted.
const STORM_WAIT: Duration = Duration::from_secs(10);

/// How often it is asked again which stores the volumes of an ended session are in: one may have been given to it late.
const STORES_AGAIN: Duration = Duration::from_secs(10);

impl<W: Copy> Book<W> {
    /// Nothing is known.
    #[must_use]
    pub fn new(timing: Timing) -> Self {
        Self { timing, nodes: BTreeMap::new(), endings: BTreeMap::new() }
    }

    /// The API server gave all leases: node, version, content. The question was asked after the answer before it.
    pub fn saw_leases(&mut self, leases: impl IntoIterator<Item = (String, String, Lease)>, now: Instant) {
        let mut seen = BTreeSet::new();
        for (name, version, lease) in leases {
            seen.insert(name.clone());
            let node = self.nodes.entry(name.clone()).or_insert_with(|| Node {
                observer: Observer::new(self.timing),
                lease: lease.clone(),
                suspect: None,
            });
            if node.lease.session != lease.session {
                node.observer.new_session(now);
            }
            node.observer.saw_lease(&version, lease.duration, now);
            node.lease = lease;
            let current = &node.lease.session;
            for (session, ending) in self.endings.iter_mut().filter(|(_, ending)| ending.node == name) {
                if is_superseded(session, current) {
                    ending.fencing.prove();
                }
            }
        }
        self.nodes.retain(|name, _| seen.contains(name));
    }

    /// The newest beat of a node's session.
    pub fn saw_beat(&mut self, node: &str, session: &str, number: u64, now: Instant) {
        if let Some(node) = self.nodes.get_mut(node).filter(|node| node.lease.session == session) {
            node.observer.saw_beat(number, now);
        }
    }

    /// The stores that volumes are in which a session holds.
    pub fn holds(&mut self, session: &str, stores: impl IntoIterator<Item = String>) {
        if let Some(ending) = self.endings.get_mut(session) {
            for store in stores {
                ending.fencing.add_store(&store);
                ending.stores.entry(store).or_default();
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

    /// Ends a session without waiting for silence: somebody asked for it.
    pub fn end(&mut self, node: &str, wall: W) {
        if let Some(known) = self.nodes.get(node) {
            begin(&mut self.endings, self.timing, node, &known.lease.session, wall);
        }
    }

    /// What has to be done now. `wall` is for people.
    pub fn next(&mut self, now: Instant, wall: W) -> Vec<Task> {
        let mut tasks = Vec::new();
        for node in self.nodes.values_mut() {
            node.suspect = node.observer.is_suspect(now).then(|| node.suspect.unwrap_or((now, wall)));
        }
        let silent = self.nodes.values().filter(|node| node.suspect.is_some()).count();
        let storm = silent > 1 && silent * STORM_SHARE > self.nodes.len();
        for (name, node) in &self.nodes {
            let session = &node.lease.session;
            if node.observer.wants_beats(now) {
                tasks.push(Task::LookForBeats { node: name.clone(), session: session.clone() });
            }
            // One that somebody else began to end, or this replica before it was started anew, is ended here too.
            let condemned = node.lease.fenced.then_some(wall);
            let suspect = node.suspect.filter(|(since, _)| !storm || now.since(*since) >= STORM_WAIT);
            if let Some(detected) = condemned.or(suspect.map(|(_, wall)| wall)) {
                begin(&mut self.endings, self.timing, name, session, detected);
            }
        }
        // A node that is heard again before anything was done to it lives.
        let nodes = &self.nodes;
        self.endings.retain(|session, ending| {
            let lives = nodes
                .get(&ending.node)
                .is_some_and(|node| node.lease.session == *session && !node.lease.fenced && node.suspect.is_none());
            ending.irrevocable || !lives
        });
        for (session, ending) in &mut self.endings {
            if ending.asked.is_none_or(|asked| now.since(asked) > STORES_AGAIN) {
                ending.asked = Some(now);
                tasks.push(Task::FindStores { session: session.clone() });
            }
            if ending.stores.is_empty() {
                continue;
            }
            for (store, over) in &mut ending.stores {
                if over.is_none() && ending.fencing.is_over(store, now) {
                    *over = Some(wall);
                }
            }
            match ending.fencing.next(now) {
                Step::CreateFence { store } => tasks.push(Task::CreateFence { session: session.clone(), store }),
                Step::CloseLease => {
                    tasks.push(Task::CloseLease { session: session.clone(), node: ending.node.clone() });
                }
                Step::WaitUntil(_) | Step::Done => {}
            }
        }
        tasks
    }

    /// Sessions whose end cannot be stopped any more.
    #[must_use]
    pub fn deaths(&self) -> Deaths<W> {
        let ended = self.endings.iter().filter(|(_, ending)| ending.irrevocable);
        let death = |session: &str, ending: &Ending<W>| Death {
            node: ending.node.clone(),
            is_back: self.nodes.get(&ending.node).is_some_and(|node| node.lease.session != session),
            detected: ending.detected,
            over: ending.stores.clone(),
        };
        ended.map(|(session, ending)| (session.clone(), death(session, ending))).collect()
    }
}

fn begin<W>(endings: &mut BTreeMap<String, Ending<W>>, timing: Timing, node: &str, session: &str, detected: W) {
    endings.entry(session.to_owned()).or_insert_with(|| Ending {
        node: node.into(),
        detected,
        fencing: Fencing::new(timing, []),
        stores: BTreeMap::new(),
        asked: None,
        irrevocable: false,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(tenths: u64) -> Instant {
        Instant(tenths * 100_000_000)
    }

    fn wall(tenths: u64) -> u64 {
        tenths
    }

    fn lease(session: &str, fenced: bool) -> Lease {
        Lease { session: session.into(), duration: Duration::from_secs(4), fenced }
    }

    /// Nodes n0, n1, ... of which those in `silent` never renew; looked at twice a second.
    struct Cluster {
        book: Book<u64>,
        nodes: usize,
        silent: Vec<usize>,
        now: u64,
    }

    impl Cluster {
        fn new(nodes: usize, silent: &[usize]) -> Self {
            Self { book: Book::new(Timing::default()), nodes, silent: silent.to_vec(), now: 0 }
        }

        fn look(&mut self) -> Vec<Task> {
            let (now, silent) = (self.now, &self.silent);
            let leases = (0..self.nodes).map(|number| {
                let version = if silent.contains(&number) { 0 } else { now };
                (format!("n{number}"), version.to_string(), lease(&format!("s{number}.m{number}.b"), false))
            });
            self.book.saw_leases(leases.collect::<Vec<_>>(), at(now));
            self.now += 5;
            self.book.next(at(now), wall(now))
        }

        fn until(&mut self, wanted: impl Fn(&[Task]) -> bool) -> (u64, Vec<Task>) {
            for _ in 0..200 {
                let now = self.now;
                let tasks = self.look();
                if wanted(&tasks) {
                    return (now, tasks);
                }
            }
            panic!("nothing happened");
        }
    }

    fn ends(tasks: &[Task]) -> bool {
        tasks.iter().any(|task| matches!(task, Task::FindStores { .. }))
    }

    #[test]
    fn a_silent_node_is_fenced_store_first_and_dead_once_everything_is_waited_out() {
        let mut cluster = Cluster::new(3, &[1]);
        let (now, tasks) = cluster.until(ends);
        assert_eq!(now, 40);
        let session = "s1.m1.b".to_owned();
        assert!(tasks.contains(&Task::LookForBeats { node: "n1".into(), session: session.clone() }));
        assert!(tasks.contains(&Task::FindStores { session: session.clone() }));
        cluster.book.holds(&session, ["a".to_owned()]);
        assert!(cluster.look().contains(&Task::CreateFence { session: session.clone(), store: "a".into() }));
        assert!(cluster.book.deaths().is_empty(), "nothing was done to it yet");
        cluster.book.fenced(&session, "a", at(50));
        assert!(cluster.look().contains(&Task::CloseLease { session: session.clone(), node: "n1".into() }));
        assert_eq!(cluster.book.deaths()[&session].over["a"], None);
        cluster.book.closed(&session, Duration::from_secs(4), at(60));
        while cluster.now <= 105 {
            cluster.look();
            assert_eq!(cluster.book.deaths()[&session].over["a"], None, "at {}", cluster.now);
        }
        cluster.look();
        let death = cluster.book.deaths()[&session].clone();
        assert_eq!((death.node.as_str(), death.detected, death.over["a"]), ("n1", wall(40), Some(wall(110))));
    }

    #[test]
    fn a_node_that_is_heard_again_in_time_lives() {
        let mut cluster = Cluster::new(3, &[1]);
        cluster.until(ends);
        cluster.silent.clear();
        assert_eq!(cluster.look(), []);
        // Once a fence is there, there is no way back.
        cluster.silent = vec![1];
        cluster.until(ends);
        cluster.book.holds("s1.m1.b", ["a".to_owned()]);
        cluster.book.fenced("s1.m1.b", "a", at(cluster.now));
        cluster.silent.clear();
        cluster.look();
        assert_eq!(cluster.look(), [Task::CloseLease { session: "s1.m1.b".into(), node: "n1".into() }]);
    }

    #[test]
    fn beats_keep_a_node_that_the_api_server_does_not_hear() {
        let mut cluster = Cluster::new(3, &[1]);
        for _ in 0..100 {
            let now = cluster.now;
            let tasks = cluster.look();
            assert!(!ends(&tasks), "at {now}");
            if tasks.iter().any(|task| matches!(task, Task::LookForBeats { .. })) {
                cluster.book.saw_beat("n1", "s1.m1.b", now, at(now));
            }
        }
    }

    #[test]
    fn a_storm_is_waited_out_a_while() {
        let (one, _) = Cluster::new(4, &[1]).until(ends);
        let (storm, _) = Cluster::new(4, &[1, 2]).until(ends);
        assert_eq!((one, storm), (40, 140));
    }

    #[test]
    fn a_new_session_of_the_same_machine_is_proof_and_a_fence_that_is_found_is_brought_to_its_end() {
        let mut book = Book::<u64>::new(Timing::default());
        book.saw_leases([("n1".to_owned(), "1".to_owned(), lease("s.m.b", true))], at(0));
        assert_eq!(book.next(at(0), wall(0)), [Task::FindStores { session: "s.m.b".into() }]);
        book.holds("s.m.b", ["a".to_owned()]);
        book.fenced("s.m.b", "a", at(1));
        book.saw_leases([("n1".to_owned(), "2".to_owned(), lease("t.m.c", false))], at(2));
        assert_eq!(book.next(at(2), wall(2)), []);
        let death = &book.deaths()["s.m.b"];
        assert_eq!((death.over["a"], death.is_back), (Some(wall(2)), true));
    }

    #[test]
    fn only_a_session_of_the_same_machine_supersedes() {
        for (then, now, expected) in [
            ("a.m.b", "c.m.d", true),
            ("a.m.b", "c.m.b", true),
            ("a.m.b", "a.m.b", false),
            ("a.m.b", "c.n.d", false),
            ("a..b", "c..d", false),
            ("a", "b", false),
        ] {
            assert_eq!(is_superseded(then, now), expected, "{then} {now}");
        }
    }

    #[test]
    fn another_machine_under_the_same_name_proves_nothing() {
        let mut book = Book::<u64>::new(Timing::default());
        book.saw_leases([("n1".to_owned(), "1".to_owned(), lease("s.m.b", true))], at(0));
        book.next(at(0), wall(0));
        book.holds("s.m.b", ["a".to_owned()]);
        book.fenced("s.m.b", "a", at(1));
        book.saw_leases([("n1".to_owned(), "2".to_owned(), lease("t.other.c", false))], at(2));
        assert_eq!(book.next(at(2), wall(2)), [Task::CloseLease { session: "s.m.b".into(), node: "n1".into() }]);
    }
}
