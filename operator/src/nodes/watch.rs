//! Carries out what the [`Book`] says: asks the API server for all leases twice a second, and the stores when a node is
//! silent.
//!
//! Leases are listed and not watched: a watch that says nothing may be one that is broken, and what is read from a list
//! without a resource version is as of now, whichever API server answers.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{ListParams, PostParams};
use kube::{Api, Client, ResourceExt};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use vivarium_api::lease::content;
use vivarium_api::names;
use vivarium_api::v1alpha1::EnvironmentVolume;
use vivarium_ownership::Timing;
use vivarium_ownership::book::{Book, Task};
use vivarium_store::{Key, Name, Prefix, Source, Store};

use super::stores::Stores;
use super::{Deaths, is_superseded};
use crate::error::brief;

/// From one question to the next.
const PACE: Duration = Duration::from_millis(500);
/// An API server or a store that does not answer for so long does not answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How often the stores are opened anew, if anything about them changed.
const STORES_AGAIN: Duration = Duration::from_secs(30);

/// `CLOCK_BOOTTIME`, so that a suspended machine does not take its own sleep for that of others.
fn now() -> vivarium_ownership::Instant {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    vivarium_ownership::Instant(now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs())
}

/// What came of a task.
enum Found {
    Stores { session: String, stores: BTreeSet<String> },
    Beat { node: String, session: String, number: u64 },
    Fenced { session: String, store: String },
    Closed { session: String, duration: Duration },
    Nothing,
}

/// The watch of one replica.
pub struct Watch {
    client: Client,
    namespace: String,
    timing: Timing,
    book: Book<Timestamp>,
    stores: Stores,
    shared: Vec<Arc<Store>>,
    looked: Option<Instant>,
    deaths: watch::Sender<Deaths>,
    asking: JoinSet<(Task, Found)>,
    /// What is being asked, and what was asked a moment ago: nothing is asked twice at the same time, or all the time.
    asked: HashMap<Task, Asked>,
}

struct Asked {
    at: Instant,
    answered: bool,
}

impl Watch {
    /// Watches the nodes of an installation. What it finds goes to `deaths`.
    #[must_use]
    pub fn new(client: Client, namespace: &str, deaths: watch::Sender<Deaths>) -> Self {
        let timing = Timing::default();
        Self {
            stores: Stores::new(client.clone(), namespace),
            client,
            namespace: namespace.into(),
            timing,
            book: Book::new(timing),
            shared: Vec::new(),
            looked: None,
            deaths,
            asking: JoinSet::new(),
            asked: HashMap::new(),
        }
    }

    /// Watches for ever.
    pub async fn run(mut self) {
        let mut tick = tokio::time::interval(PACE);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => self.look().await,
                Some(done) = self.asking.join_next() => self.done(done),
            }
            self.asked.retain(|_, asked| !asked.answered || asked.at.elapsed() < PACE);
            for task in self.book.next(now(), Timestamp::now()) {
                if !self.asked.contains_key(&task) {
                    self.ask(task).await;
                }
            }
            let deaths = self.book.deaths();
            self.deaths.send_if_modified(|known| {
                let news = *known != deaths;
                *known = deaths;
                news
            });
        }
    }

    async fn look(&mut self) {
        if self.looked.is_none_or(|looked| looked.elapsed() > STORES_AGAIN) {
            match tokio::time::timeout(TIMEOUT, self.stores.open_shared()).await {
                Ok(Ok(shared)) => (self.shared, self.looked) = (shared, Some(Instant::now())),
                Ok(Err(error)) => tracing::warn!("the stores of journals cannot be listed: {}", brief(&error)),
                Err(_) => tracing::warn!("the stores of journals cannot be listed: the API server does not answer"),
            }
        }
        let api: Api<Lease> = Api::namespaced(self.client.clone(), &self.namespace);
        let leases = match tokio::time::timeout(TIMEOUT, api.list(&ListParams::default())).await {
            Ok(Ok(leases)) => leases,
            Ok(Err(error)) => return tracing::warn!("the leases of nodes cannot be listed: {}", brief(&error)),
            Err(_) => return tracing::warn!("the leases of nodes cannot be listed: the API server does not answer"),
        };
        let of_nodes = leases.iter().filter_map(|lease| {
            let node = names::node_of_lease(lease.metadata.name.as_deref()?)?;
            Some((node.to_owned(), lease.resource_version()?, content(lease)))
        });
        self.book.saw_leases(of_nodes, now());
    }

    async fn ask(&mut self, task: Task) {
        self.asked.insert(task.clone(), Asked { at: Instant::now(), answered: false });
        let found: futures::future::BoxFuture<'static, Found> = match task.clone() {
            Task::FindStores { session } => Box::pin(find_stores(self.client.clone(), session)),
            Task::LookForBeats { node, session } => Box::pin(look_for_beats(self.shared.clone(), node, session)),
            Task::CreateFence { session, store } => match self.stores.get(&store).await {
                Ok(opened) => Box::pin(create_fence(opened, session)),
                Err(error) => {
                    tracing::error!(%error, session, "a node cannot be fenced");
                    self.answered(&task);
                    return;
                }
            },
            Task::CloseLease { session, node } => {
                let api = Api::namespaced(self.client.clone(), &self.namespace);
                Box::pin(close_lease(api, session, node, self.timing))
            }
        };
        self.asking.spawn(async move {
            let found = tokio::time::timeout(TIMEOUT, found).await.unwrap_or(Found::Nothing);
            (task, found)
        });
    }

    fn answered(&mut self, task: &Task) {
        if let Some(asked) = self.asked.get_mut(task) {
            asked.answered = true;
        }
    }

    fn done(&mut self, done: Result<(Task, Found), tokio::task::JoinError>) {
        let (task, found) = match done {
            Ok(done) => done,
            Err(error) => {
                // It is not known which; all may be asked again.
                tracing::error!(%error, "a question ended by itself");
                self.asked.clear();
                return;
            }
        };
        self.answered(&task);
        match found {
            Found::Stores { session, stores } => self.book.holds(&session, stores),
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

async fn find_stores(client: Client, session: String) -> Found {
    let volumes: Api<EnvironmentVolume> = Api::all(client);
    match volumes.list(&ListParams::default()).await {
        Ok(volumes) => {
            let held = volumes.into_iter().filter(|volume| {
                let holder = volume.status.as_ref().and_then(|status| status.holder.as_ref());
                holder.is_some_and(|holder| holder.session == session)
            });
            Found::Stores { stores: held.filter_map(|volume| volume.spec.store).collect(), session }
        }
        Err(error) => {
            tracing::warn!(session, "the volumes of a silent node cannot be listed: {}", brief(&error));
            Found::Nothing
        }
    }
}

async fn look_for_beats(stores: Vec<Arc<Store>>, node: String, session: String) -> Found {
    let Ok(name) = Name::new(&session) else { return Found::Nothing };
    let mut newest = None;
    for store in stores {
        match store.list(&Prefix::Beats(name.clone()), None, Instant::now() + TIMEOUT).await {
            Ok(listed) => {
                newest = newest.max(
                    listed
                        .iter()
                        .filter_map(|entry| match entry.key {
                            Key::Beat { number, .. } => Some(number),
                            _ => None,
                        })
                        .max(),
                );
            }
            Err(error) => tracing::warn!(%error, node, "whether a silent node lives cannot be seen in a store"),
        }
    }
    newest.map_or(Found::Nothing, |number| Found::Beat { node, session, number })
}

async fn create_fence(store: Arc<Store>, session: String) -> Found {
    let Ok(name) = Name::new(&session) else { return Found::Nothing };
    // The content says nothing that matters, but has to be the same for all who fence: any of them may be first.
    let content = format!("{session}\n").into_bytes();
    let digest = *blake3::hash(&content).as_bytes();
    let key = Key::Fence { session: name };
    match store.create(&key, Source::Bytes(content.into()), digest, Instant::now() + TIMEOUT).await {
        Ok(_) | Err(vivarium_store::CreateError::Conflict { .. }) => {
            Found::Fenced { session, store: store.name().to_owned() }
        }
        Err(error) => {
            tracing::error!(%error, session, "a silent node cannot be fenced yet");
            Found::Nothing
        }
    }
}

async fn close_lease(api: Api<Lease>, session: String, node: String, timing: Timing) -> Found {
    let name = names::node_lease(&node);
    let lease = match api.get_opt(&name).await {
        Ok(lease) => lease,
        Err(error) => {
            tracing::warn!(node, "the lease of a silent node cannot be read: {}", brief(&error));
            return Found::Nothing;
        }
    };
    let fresh = lease.is_none();
    let mut lease = lease.unwrap_or_else(|| {
        let mut lease = Lease::default();
        lease.metadata.name = Some(name.clone());
        let seconds = i32::try_from(timing.extension.as_secs()).ok();
        let spec = lease.spec.get_or_insert_default();
        (spec.holder_identity, spec.lease_duration_seconds) = (Some(session.clone()), seconds);
        lease
    });
    let found = content(&lease);
    if found.fenced && found.session == session {
        return Found::Closed { session, duration: found.duration };
    }
    if found.session != session {
        // The session cannot renew it any more. How long it may act at most is not known.
        return if is_superseded(&session, &found.session) {
            Found::Nothing
        } else {
            Found::Closed { session, duration: timing.extension }
        };
    }
    lease.annotations_mut().insert(names::ANNOTATION_FENCED.into(), session.clone());
    let params = PostParams::default();
    let written = if fresh { api.create(&params, &lease).await } else { api.replace(&name, &params, &lease).await };
    match written {
        Ok(written) => Found::Closed { session, duration: content(&written).duration },
        // It was renewed meanwhile, or somebody else was first.
        Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => Found::Nothing,
        Err(error) => {
            tracing::warn!(node, "the lease of a silent node cannot be closed: {}", brief(&error));
            Found::Nothing
        }
    }
}
