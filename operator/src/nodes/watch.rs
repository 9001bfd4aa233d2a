//! Carries out what the [`Book`] says: asks the API server for all leases twice a second, and the stores when a node is
//! silent. Nothing that is asked holds up anything else.
//!
//! Leases are listed and not watched: a watch that says nothing may be one that is broken, and what is read from a list
//! without a resource version is as of now, whichever API server answers.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::{Client, ResourceExt};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use vivarium_api::lease::content;
use vivarium_api::names;
use vivarium_ownership::Timing;
use vivarium_ownership::book::{Book, Task};
use vivarium_store::Store;

use super::Known;
use super::ask::{Asker, Found, TIMEOUT};
use super::stores::Stores;
use crate::error::brief;

/// From one question to the next.
const PACE: Duration = Duration::from_millis(500);
/// How often the stores are opened anew, if anything about them changed.
const STORES_AGAIN: Duration = Duration::from_secs(30);
/// How often the nodes are looked at while all are heard, and while one is not.
const NODES_AGAIN: Duration = Duration::from_secs(30);
const NODES_AGAIN_IF_SILENT: Duration = Duration::from_secs(1);
/// The taint by which somebody says that a node is off and stays so
/// (<https://kubernetes.io/docs/concepts/cluster-administration/node-shutdown/#non-graceful-node-shutdown>).
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// Label of a node with its zone.
const ZONE: &str = "topology.kubernetes.io/zone";

/// `CLOCK_BOOTTIME`, so that a suspended machine does not take its own sleep for that of others.
fn now() -> vivarium_ownership::Instant {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    vivarium_ownership::Instant(now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs())
}

/// An answer.
enum Answer {
    /// To a task of the book.
    Task(Task, Found),
    Leases(Option<Vec<Lease>>),
    Nodes(Option<Vec<Node>>),
}

/// The watch of one replica.
pub struct Watch {
    asker: Asker,
    shared: watch::Sender<Vec<Arc<Store>>>,
    book: Book<Timestamp>,
    known: watch::Sender<Known>,
    asking: JoinSet<Answer>,
    /// What is being asked, and what was asked a moment ago: nothing is asked twice at the same time, or all the time.
    asked: HashMap<Task, Asked>,
    leases: Asked,
    nodes: Asked,
    /// The nodes that there are; none: not known yet.
    existing: Option<BTreeSet<String>>,
    /// Sessions that somebody wants to be ended, and has been told of.
    condemned: BTreeMap<String, String>,
}

struct Asked {
    at: Option<Instant>,
    answered: bool,
}

impl Asked {
    const NEVER: Self = Self { at: None, answered: true };

    fn now() -> Self {
        Self { at: Some(Instant::now()), answered: false }
    }

    /// Whether it was answered, and so long ago that it may be asked again.
    fn is_due(&self, pace: Duration) -> bool {
        self.answered && self.at.is_none_or(|at| at.elapsed() >= pace)
    }
}

impl Watch {
    /// Watches the nodes of an installation. What it finds goes to `known`.
    #[must_use]
    pub fn new(client: Client, namespace: &str, timing: Timing, known: watch::Sender<Known>) -> Self {
        let (shared, of_asker) = watch::channel(Vec::new());
        let asker = Asker {
            stores: Stores::new(client.clone(), namespace),
            client,
            namespace: namespace.into(),
            timing,
            shared: of_asker,
        };
        Self {
            asker,
            shared,
            book: Book::new(timing),
            known,
            asking: JoinSet::new(),
            asked: HashMap::new(),
            leases: Asked::NEVER,
            nodes: Asked::NEVER,
            existing: None,
            condemned: BTreeMap::new(),
        }
    }

    /// Watches for ever.
    pub async fn run(mut self) {
        tokio::spawn(open_stores(self.asker.stores.clone(), self.shared.clone()));
        let mut tick = tokio::time::interval(PACE);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => self.look(),
                Some(done) = self.asking.join_next() => self.done(done),
            }
            self.asked.retain(|_, asked| !asked.is_due(PACE));
            for task in self.book.next(now(), Timestamp::now()) {
                if !self.asked.contains_key(&task) {
                    self.asked.insert(task.clone(), Asked::now());
                    let asker = self.asker.clone();
                    self.asking.spawn(async move { Answer::Task(task.clone(), asker.ask(task).await) });
                }
            }
            let mut silent = self.book.silent();
            // A lease outlives its node, which nobody has to shun then.
            silent.retain(|node| self.existing.as_ref().is_none_or(|existing| existing.contains(node)));
            let found = Known { deaths: self.book.deaths(), silent };
            self.known.send_if_modified(|known| {
                let news = *known != found;
                *known = found;
                news
            });
        }
    }

    /// Asks for what is due. One question for the leases at a time: an answer tells what is so since the one before.
    fn look(&mut self) {
        if self.leases.is_due(Duration::ZERO) {
            self.leases = Asked::now();
            let asker = self.asker.clone();
            self.asking.spawn(async { Answer::Leases(asker.leases().await) });
        }
        let pace = if self.book.silent().is_empty() { NODES_AGAIN } else { NODES_AGAIN_IF_SILENT };
        if self.nodes.is_due(pace) {
            self.nodes = Asked::now();
            let asker = self.asker.clone();
            self.asking.spawn(async { Answer::Nodes(asker.nodes().await) });
        }
    }

    fn done(&mut self, done: Result<Answer, tokio::task::JoinError>) {
        match done {
            Ok(Answer::Leases(leases)) => {
                self.leases.answered = true;
                if let Some(leases) = leases {
                    self.saw_leases(&leases);
                }
            }
            Ok(Answer::Nodes(nodes)) => {
                self.nodes.answered = true;
                if let Some(nodes) = nodes {
                    self.existing = Some(nodes.iter().map(ResourceExt::name_any).collect());
                    self.book.are_off(nodes.iter().filter(|node| is_out_of_service(node)).map(ResourceExt::name_any));
                    let zone = |node: &Node| Some((node.name_any(), node.labels().get(ZONE)?.clone()));
                    self.book.zones(nodes.iter().filter_map(zone).collect());
                }
            }
            Ok(Answer::Task(task, found)) => {
                if let Some(asked) = self.asked.get_mut(&task) {
                    asked.answered = true;
                }
                self.found(found);
            }
            Err(error) => {
                // It is not known which; all may be asked again.
                tracing::error!(%error, "a question ended by itself");
                self.asked.clear();
                (self.leases, self.nodes) = (Asked::NEVER, Asked::NEVER);
            }
        }
    }

    fn saw_leases(&mut self, leases: &[Lease]) {
        let of_nodes = leases.iter().filter_map(|lease| {
            let node = names::node_of_lease(lease.metadata.name.as_deref()?)?;
            Some((node.to_owned(), lease.resource_version()?, content(lease)))
        });
        self.book.saw_leases(of_nodes, now());
        let condemned: BTreeMap<_, _> = leases.iter().filter_map(condemned).collect();
        for (node, session) in &condemned {
            if self.condemned.get(node) != Some(session) {
                tracing::warn!(node, session, "the session is ended: somebody asked for it");
            }
            self.book.end(node, Timestamp::now());
        }
        self.condemned = condemned;
    }

    fn found(&mut self, found: Found) {
        match found {
            Found::Holders(holdings) => self.book.holds(&holdings, now()),
            Found::Beat { node, session, number } => self.book.saw_beat(&node, &session, number, now()),
            Found::Fenced { session, store } => {
                tracing::warn!(session, store, "the session is fenced");
                self.book.fenced(&session, &store, now());
            }
            Found::Closed { session, duration } => {
                tracing::warn!(session, ?duration, "the lease of the session is closed; its time is waited out");
                self.book.closed(&session, duration, now());
            }
            Found::Nothing => {}
        }
    }
}

/// Opens the stores again and again, so that none has to be opened while a node is dead.
async fn open_stores(stores: Stores, shared: watch::Sender<Vec<Arc<Store>>>) {
    loop {
        let again = match tokio::time::timeout(STORES_AGAIN, stores.open_shared()).await {
            Ok(Ok(opened)) => {
                shared.send_replace(opened);
                STORES_AGAIN
            }
            Ok(Err(error)) => {
                tracing::warn!("the stores of journals cannot be listed: {}", brief(&error));
                TIMEOUT
            }
            Err(_) => {
                tracing::warn!("the stores of journals cannot be listed: the API server does not answer");
                TIMEOUT
            }
        };
        tokio::time::sleep(again).await;
    }
}

/// The node whose present session somebody wants to be ended, and the session. One that was asked for a former session
/// is over.
fn condemned(lease: &Lease) -> Option<(String, String)> {
    let node = names::node_of_lease(lease.metadata.name.as_deref()?)?;
    let session = content(lease).session;
    let wanted = lease.annotations().get(names::ANNOTATION_END)?;
    (!session.is_empty() && *wanted == session).then(|| (node.to_owned(), session))
}

fn is_out_of_service(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    taints.is_some_and(|taints| taints.iter().any(|taint| taint.key == OUT_OF_SERVICE))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn somebody_can_end_the_session_that_a_node_has_and_no_other() {
        for (name, wanted, expected) in [
            ("vivarium-node-n1", Some("s"), Some(("n1".to_owned(), "s".to_owned()))),
            ("vivarium-node-n1", Some("former"), None),
            ("vivarium-node-n1", None, None),
            ("vivarium-operator", Some("s"), None),
        ] {
            let annotations = wanted.map_or_else(|| json!({}), |wanted| json!({names::ANNOTATION_END: wanted}));
            let lease =
                json!({"metadata": {"name": name, "annotations": annotations}, "spec": {"holderIdentity": "s"}});
            assert_eq!(condemned(&serde_json::from_value(lease).unwrap()), expected, "{name} {wanted:?}");
        }
    }

    #[test]
    fn a_node_is_off_when_it_has_the_taint_that_says_so() {
        for (taints, expected) in [
            (
                json!([{"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"}]),
                true,
            ),
            (json!([{"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}]), false),
            (json!([]), false),
        ] {
            let node = serde_json::from_value(json!({"metadata": {"name": "n1"}, "spec": {"taints": taints}})).unwrap();
            assert_eq!(is_out_of_service(&node), expected, "{taints}");
        }
    }
}
