//! `JournalStore`s: opens each, tries it out once in the life of this process and again when the object or its credentials
//! change, and meanwhile uses one that was proven in this session ([`super::trials`]); says in its status what was found, and hands out those that did what they have to.
//!
//! Each node writes its own entry; the conditions follow from all entries ([`conditions`], pure), whoever writes last.
//! A store that was proven stays in use while it does not answer: only its own misbehaviour takes it out.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::{BoxStream, SelectAll};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, PostParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watch_object, watcher};
use kube::{Client, ResourceExt};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use vivarium_api::v1alpha1::JournalStore;
use vivarium_api::v1alpha1::condition::{self, Condition, ConditionStatus};
use vivarium_api::v1alpha1::store::NodeStore;
use vivarium_store::Store;
use vivarium_store::object::{self, ACCESS_KEY, SECRET_KEY, StoreError};

use super::trials::Trials;
use super::{ApiError, failed, is_conflict, is_gone};

/// How long a trial may take.
const TRIAL: Duration = Duration::from_mins(1);
/// How long until a store that failed is tried again by itself: what may pass, and what somebody has to change.
const RETRY_SOON: Duration = Duration::from_secs(15);
const RETRY_LATE: Duration = Duration::from_mins(2);
const READY: &str = "Ready";
const STALLED: &str = "Stalled";
const PROVEN: &str = "Proven";

/// The stores of this node. Clones are the same.
#[derive(Clone, Debug)]
pub struct Stores {
    proven: watch::Sender<HashMap<String, Arc<Store>>>,
}

impl Default for Stores {
    fn default() -> Self {
        Self { proven: watch::Sender::new(HashMap::new()) }
    }
}

impl Stores {
    /// The store of that name, if it was opened and proven.
    pub fn get(&self, name: &str) -> Option<Arc<Store>> {
        self.proven.borrow().get(name).cloned()
    }

    /// Every store that other nodes reach as well.
    #[must_use]
    pub fn shared(&self) -> Vec<Arc<Store>> {
        self.proven.borrow().values().filter(|store| store.is_shared()).cloned().collect()
    }

    /// The store of that name, as soon as it is proven, until the deadline.
    pub async fn wait_for(&self, name: &str, deadline: Instant) -> Option<Arc<Store>> {
        let mut changes = self.proven.subscribe();
        let found = async { changes.wait_for(|proven| proven.contains_key(name)).await.ok()?.get(name).cloned() };
        tokio::time::timeout_at(deadline, found).await.ok().flatten()
    }

    /// From now on a store is proven; none: it is not any more. Whoever uses one of that name goes on with this one, which has
    /// other credentials, or is what is left of a set.
    pub fn put(&self, name: &str, store: Option<Arc<Store>>) {
        self.proven.send_modify(|proven| match (store, proven.get(name)) {
            (Some(store), Some(former)) => former.become_like(&store),
            (Some(store), None) => drop(proven.insert(name.into(), store)),
            (None, _) => drop(proven.remove(name)),
        });
    }
}

/// What works on the objects.
#[derive(Clone)]
pub struct StoreObjects {
    /// The cluster.
    pub client: Client,
    /// Name of this node.
    pub node: String,
    /// Namespace that Vivarium is installed in: the Secrets are there.
    pub namespace: String,
    /// Where proven stores go.
    pub stores: Stores,
    /// What former processes of the session found.
    pub trials: Trials,
}

/// Versions of Secrets, by their names.
type Versions = BTreeMap<String, String>;

/// One object that is worked on.
struct Work {
    object: watch::Sender<JournalStore>,
    task: JoinHandle<()>,
}

impl Drop for Work {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl StoreObjects {
    fn api(&self) -> Api<JournalStore> {
        Api::all(self.client.clone())
    }

    /// Works on every store until the process ends.
    pub async fn run(self) {
        let mut work: HashMap<String, Work> = HashMap::new();
        let mut listed = Vec::new();
        let events = watcher(self.api(), watcher::Config::default()).default_backoff();
        tokio::pin!(events);
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => listed.clear(),
                Ok(Event::InitApply(object)) => {
                    listed.push(object.name_any());
                    self.seen(&mut work, object);
                }
                Ok(Event::Apply(object)) => self.seen(&mut work, object),
                Ok(Event::InitDone) => {
                    let gone: Vec<String> = work.keys().filter(|name| !listed.contains(name)).cloned().collect();
                    for name in &gone {
                        self.gone(&mut work, name);
                    }
                }
                Ok(Event::Delete(object)) => self.gone(&mut work, &object.name_any()),
                Err(error) => tracing::warn!(%error, "journal stores cannot be watched"),
            }
        }
    }

    fn seen(&self, work: &mut HashMap<String, Work>, object: JournalStore) {
        let name = object.name_any();
        if let Some(known) = work.get(&name) {
            // Statuses of many nodes change all the time.
            known.object.send_if_modified(|old| {
                let changed =
                    old.metadata.generation != object.metadata.generation || old.metadata.uid != object.metadata.uid;
                if changed {
                    *old = object;
                }
                changed
            });
            return;
        }
        let (sender, receiver) = watch::channel(object);
        let this = self.clone();
        let task = tokio::spawn(async move { this.keep(receiver).await });
        work.insert(name, Work { object: sender, task });
    }

    fn gone(&self, work: &mut HashMap<String, Work>, name: &str) {
        work.remove(name);
        self.stores.put(name, None);
    }

    /// Keeps one store open and its status true, until it is gone.
    async fn keep(self, mut objects: watch::Receiver<JournalStore>) {
        loop {
            let object = objects.borrow_and_update().clone();
            let name = object.name_any();
            let mut secrets = self.secret_changes(&object);
            let (found, versions) = self.open(&object).await;
            let version = together(&versions);
            let retry = match &found {
                Ok(_) => None,
                Err(StoreError::Unreachable(_)) => Some(RETRY_SOON),
                Err(_) => Some(RETRY_LATE),
            };
            let result = match found {
                Ok(store) => {
                    tracing::info!(store = name, "the store was tried and is in use");
                    self.note(&object, version.as_deref(), true);
                    self.stores.put(&name, Some(store));
                    Ok(())
                }
                Err(error) => {
                    tracing::warn!(store = name, reason = error.reason(), "{error}");
                    if matches!(error, StoreError::NotAtomic(_)) {
                        self.note(&object, version.as_deref(), false);
                        self.stores.put(&name, None);
                    }
                    Err(error)
                }
            };
            let retry = match self.report(&object, &result).await {
                Ok(()) => retry,
                Err(error) => {
                    tracing::warn!(%error, "the status of a store is written later");
                    Some(RETRY_SOON)
                }
            };
            let again = async {
                match retry {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => std::future::pending().await,
                }
            };
            let other_secret = async {
                while let Some((secret, seen)) = secrets.next().await {
                    if seen.as_ref() != versions.get(&secret) {
                        return;
                    }
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                changed = objects.changed() => if changed.is_err() { return },
                () = other_secret => tracing::info!(store = name, "the credentials of the store changed"),
                () = again => {}
            }
        }
    }

    fn note(&self, object: &JournalStore, secret: Option<&str>, proven: bool) {
        if let Err(error) = self.trials.note(object, secret, proven) {
            tracing::warn!(%error, store = object.name_any(), "what the store is like is not known to the next process");
        }
    }

    /// Versions of the Secrets that hold the credentials, beginning with the present ones. An absent one has none.
    fn secret_changes(&self, object: &JournalStore) -> SelectAll<BoxStream<'static, (String, Option<String>)>> {
        let changes = object::secrets(object).into_iter().map(|name| {
            let named = name.to_owned();
            let seen = watch_object(self.secrets(), name).default_backoff();
            seen.filter_map(move |seen| {
                let version = match seen {
                    Ok(secret) => Some((named.clone(), secret.and_then(|secret: Secret| secret.resource_version()))),
                    Err(error) => {
                        tracing::debug!(%error, secret = named, "the credentials of a store cannot be watched");
                        None
                    }
                };
                std::future::ready(version)
            })
            .boxed()
        });
        changes.collect()
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Opens and tries a store. Also the versions of the Secrets that were read.
    async fn open(&self, object: &JournalStore) -> (Result<Arc<Store>, StoreError>, Versions) {
        let mut versions = Versions::new();
        let opened = async {
            let mut secrets = object::Secrets::new();
            for name in object::secrets(object) {
                let secret = self.secret(name).await?;
                versions.extend(secret.resource_version().map(|version| (name.to_owned(), version)));
                secrets.insert(name.to_owned(), secret);
            }
            let config = object::config(object, &secrets)?;
            let opened = tokio::task::spawn_blocking(move || Store::open(&config)).await;
            let store = Arc::new(opened.map_err(|error| StoreError::Invalid(error.to_string()))??);
            if self.trials.has(object, together(&versions).as_deref()) {
                self.stores.put(&object.name_any(), Some(store.clone()));
            }
            store.prove(Instant::now() + TRIAL).await?;
            Ok(store)
        }
        .await;
        (opened, versions)
    }

    async fn secret(&self, name: &str) -> Result<Secret, StoreError> {
        let namespace = &self.namespace;
        match self.secrets().get_opt(name).await {
            Ok(Some(secret)) => Ok(secret),
            Ok(None) => Err(StoreError::CredentialsMissing(format!(
                "there is no Secret '{name}' in namespace {namespace}: create it with the keys {ACCESS_KEY} and {SECRET_KEY}"
            ))),
            Err(kube::Error::Api(status)) if status.is_forbidden() => Err(StoreError::CredentialsMissing(format!(
                "the nodes may not read Secret '{name}' in namespace {namespace}: add its name to store.secrets in the chart's values"
            ))),
            Err(error) => Err(StoreError::Unreachable(format!("Secret '{name}' cannot be read: {error}"))),
        }
    }

    /// Writes what this node found, by compare-and-swap, if it is not so already.
    async fn report(&self, seen: &JournalStore, result: &Result<(), StoreError>) -> Result<(), ApiError> {
        let name = seen.name_any();
        let entry = NodeStore {
            name: self.node.clone(),
            observed_generation: seen.metadata.generation.unwrap_or_default(),
            proven: result.is_ok(),
            reason: result.as_ref().err().map_or(PROVEN, StoreError::reason).into(),
            message: result.as_ref().err().map(ToString::to_string),
        };
        loop {
            let Some(mut latest) = self.api().get_opt(&name).await.map_err(failed("read store", &name))? else {
                return Ok(());
            };
            // What was found of an older spec, or of another object of that name, is told by nobody.
            if latest.metadata.uid != seen.metadata.uid || latest.metadata.generation != seen.metadata.generation {
                return Ok(());
            }
            let before = latest.status.clone();
            apply(&mut latest, entry.clone(), Timestamp::now());
            if latest.status == before {
                return Ok(());
            }
            match self.api().replace_status(&name, &PostParams::default(), &latest).await {
                Ok(_) => return Ok(()),
                Err(error) if is_conflict(&error) => {}
                Err(error) if is_gone(&error) => return Ok(()),
                Err(error) => return Err(failed("write the status of store", &name)(error)),
            }
        }
    }
}

/// The versions of all Secrets of a store as one; none if it needs none.
fn together(versions: &Versions) -> Option<String> {
    let all: Vec<&str> = versions.values().map(String::as_str).collect();
    (!all.is_empty()).then(|| all.join(" "))
}

/// Puts a node's entry into the status, and what follows from all of them.
fn apply(object: &mut JournalStore, entry: NodeStore, now: Timestamp) {
    let generation = object.metadata.generation.unwrap_or_default();
    let is_local = object.spec.local.is_some();
    let status = object.status.get_or_insert_default();
    status.observed_generation = generation;
    status.type_ = Some(if is_local { "Local" } else { "S3" }.into());
    match status.nodes.iter_mut().find(|node| node.name == entry.name) {
        Some(node) => *node = entry,
        None => status.nodes.push(entry),
    }
    status.nodes.sort_by(|a, b| a.name.cmp(&b.name));
    let new = conditions(&status.nodes, generation, is_local, now);
    // Stalled is there only while it is True.
    status.conditions.retain(|old| new.iter().any(|new| new.type_ == old.type_));
    for condition in new {
        condition::set(&mut status.conditions, condition);
    }
}

/// What the entries of all nodes say together. One node that found the store wanting spoils it for all; one that cannot
/// reach it does not spoil it for those that can.
fn conditions(nodes: &[NodeStore], generation: i64, is_local: bool, now: Timestamp) -> Vec<Condition> {
    let condition = |type_: &str, holds: bool, reason: &str, message: String| Condition {
        type_: type_.into(),
        status: if holds { ConditionStatus::True } else { ConditionStatus::False },
        observed_generation: Some(generation),
        last_transition_time: now,
        reason: reason.into(),
        message,
    };
    let current: Vec<&NodeStore> = nodes.iter().filter(|node| node.observed_generation == generation).collect();
    let proven = current.iter().filter(|node| node.proven).count();
    let unproven: BTreeMap<&str, &NodeStore> =
        current.iter().filter(|node| !node.proven).map(|node| (node.reason.as_str(), *node)).collect();
    let told = |node: &NodeStore| format!("node {}: {}", node.name, node.message.as_deref().unwrap_or("no message"));
    let not_atomic = unproven.get("NotAtomic");
    if proven > 0 && not_atomic.is_none() {
        let mut message = format!("{proven} of {} nodes tried the store and can use it", current.len());
        if is_local && current.len() > 1 {
            message.push_str(
                ". It is a directory of its own on each of them: what one node writes no other can read, so no environment can be brought back elsewhere. Use an S3 store for several nodes",
            );
        } else if is_local {
            message.push_str(". It is a directory of this one node and is lost with it");
        }
        for node in unproven.values() {
            message.push_str("; ");
            message.push_str(&told(node));
        }
        return vec![condition(READY, true, PROVEN, message)];
    }
    // What somebody has to change goes before what may pass.
    let worst = ["NotAtomic", "Invalid", "CredentialsMissing"].iter().find_map(|reason| unproven.get(reason));
    let Some(node) = worst.or_else(|| unproven.values().next()) else { return Vec::new() };
    let mut all = vec![condition(READY, false, &node.reason, told(node))];
    if worst.is_some() {
        all.push(condition(STALLED, true, &node.reason, told(node)));
    }
    all
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn entry(name: &str, generation: i64, reason: &str) -> NodeStore {
        let proven = reason == PROVEN;
        let message = (!proven).then(|| format!("because {reason}"));
        NodeStore { name: name.into(), observed_generation: generation, proven, reason: reason.into(), message }
    }

    fn object(spec: &serde_json::Value) -> JournalStore {
        let object = json!({"apiVersion": "vivarium.dev/v1alpha1", "kind": "JournalStore",
            "metadata": {"name": "default", "generation": 2}, "spec": spec});
        serde_json::from_value(object).unwrap()
    }

    fn s3() -> JournalStore {
        object(&json!({"s3": {"endpoint": "https://x", "bucket": "abc", "credentialsSecret": {"name": "s"}}}))
    }

    #[test]
    fn the_conditions_follow_from_what_all_nodes_found() {
        for (reasons, ready, reason, stalled) in [
            (&["Proven", "Proven"][..], ConditionStatus::True, "Proven", false),
            (&["Proven", "Unreachable"], ConditionStatus::True, "Proven", false),
            (&["Proven", "NotAtomic"], ConditionStatus::False, "NotAtomic", true),
            (&["Unreachable", "NotAtomic"], ConditionStatus::False, "NotAtomic", true),
            (&["Unreachable"], ConditionStatus::False, "Unreachable", false),
            (&["Unreachable", "Invalid"], ConditionStatus::False, "Invalid", true),
            (&["CredentialsMissing"], ConditionStatus::False, "CredentialsMissing", true),
        ] {
            let mut object = s3();
            for (number, reason) in reasons.iter().enumerate() {
                apply(&mut object, entry(&format!("n{number}"), 2, reason), Timestamp::UNIX_EPOCH);
            }
            let status = object.status.unwrap();
            let found = condition::find(&status.conditions, READY).unwrap();
            assert_eq!((found.status, found.reason.as_str()), (ready, reason), "{reasons:?}");
            assert_eq!(condition::is_true(&status.conditions, STALLED), stalled, "{reasons:?}");
            assert_eq!((status.type_.as_deref(), status.observed_generation), (Some("S3"), 2));
        }
    }

    #[test]
    fn what_was_found_of_an_older_spec_does_not_count() {
        let mut object = s3();
        apply(&mut object, entry("n1", 1, "NotAtomic"), Timestamp::UNIX_EPOCH);
        assert_eq!(object.status.as_ref().unwrap().conditions, []);
        apply(&mut object, entry("n2", 2, "Proven"), Timestamp::UNIX_EPOCH);
        assert!(condition::is_true(&object.status.unwrap().conditions, READY));
    }

    #[test]
    fn a_node_that_recovers_takes_its_complaint_back() {
        let mut object = s3();
        apply(&mut object, entry("n1", 2, "Invalid"), Timestamp::UNIX_EPOCH);
        apply(&mut object, entry("n1", 2, "Proven"), Timestamp::UNIX_EPOCH);
        let status = object.status.unwrap();
        assert_eq!((status.nodes.len(), status.conditions.len()), (1, 1));
    }

    #[test]
    fn a_directory_says_that_it_is_no_store_for_several_nodes() {
        let mut object = object(&json!({"local": {"path": "/var/lib/vivarium/store"}}));
        let message = |object: &JournalStore| {
            condition::find(&object.status.as_ref().unwrap().conditions, READY).unwrap().message.clone()
        };
        apply(&mut object, entry("n1", 2, "Proven"), Timestamp::UNIX_EPOCH);
        assert!(message(&object).contains("lost with it"), "{}", message(&object));
        apply(&mut object, entry("n2", 2, "Proven"), Timestamp::UNIX_EPOCH);
        assert!(message(&object).contains("no other can read"), "{}", message(&object));
    }

    #[tokio::test]
    async fn a_store_is_handed_out_as_soon_as_it_is_proven() {
        let stores = Stores::default();
        assert!(stores.get("default").is_none());
        let deadline = Instant::now() + Duration::from_secs(10);
        let waiting = tokio::spawn({
            let stores = stores.clone();
            async move { stores.wait_for("default", deadline).await.map(|store| store.name().to_owned()) }
        });
        stores.put("default", Some(Arc::new(Store::memory("default"))));
        assert_eq!(waiting.await.unwrap().as_deref(), Some("default"));
        // Who has it already sees what it becomes: here one that has an object more.
        let used = stores.get("default").unwrap();
        let other = Store::memory("default");
        let key = vivarium_store::Key::Fence { session: vivarium_store::Name::new("s").unwrap() };
        let digest = blake3::hash(b"x").into();
        other.create(&key, vivarium_store::Source::Bytes(b"x"[..].into()), digest, deadline).await.unwrap();
        assert!(!used.exists(&key, deadline).await.unwrap());
        stores.put("default", Some(Arc::new(other)));
        assert!(used.exists(&key, deadline).await.unwrap());
        stores.put("default", None);
        assert!(stores.wait_for("default", Instant::now()).await.is_none());
    }
}
