//! What is asked of the API server and of the stores for the [`Book`](vivarium_ownership::book::Book), each question for
//! itself, with a time after which it counts as not answered.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::api::{ListParams, PostParams};
use kube::{Api, Client, ResourceExt};
use tokio::sync::watch;
use tokio::time::Instant;
use vivarium_api::lease::content;
use vivarium_api::names;
use vivarium_api::v1alpha1::volume::VolumeLog;
use vivarium_api::v1alpha1::{EnvironmentVolume, JournalStore};
use vivarium_ownership::Timing;
use vivarium_ownership::book::{Holder, Holdings, Task};
use vivarium_store::{Key, Name, Prefix, Source, Store};

use super::is_superseded;
use super::stores::Stores;
use crate::error::brief;

/// An API server or a store that does not answer for so long does not answer.
pub const TIMEOUT: Duration = Duration::from_secs(2);
/// The same for a fence, from opening its store on: each repetition costs time that a failover does not have, and an
/// answer that is lost is found by the next.
const FENCE_TIMEOUT: Duration = Duration::from_millis(900);

/// What came of a task.
pub enum Found {
    /// Who has which volumes.
    Holders(Holdings),
    /// A sign of life.
    Beat {
        /// The node.
        node: String,
        /// Its session.
        session: String,
        /// The newest.
        number: u64,
    },
    /// The fence is there.
    Fenced {
        /// The session.
        session: String,
        /// The store.
        store: String,
    },
    /// The lease is closed.
    Closed {
        /// The session.
        session: String,
        /// What a promise under it was at most.
        duration: Duration,
    },
    /// No answer; it is asked again.
    Nothing,
}

/// Who asks.
#[derive(Clone)]
pub struct Asker {
    /// API server.
    pub client: Client,
    /// Namespace that Vivarium is installed in.
    pub namespace: String,
    /// Times of the protocol.
    pub timing: Timing,
    /// The stores.
    pub stores: Stores,
    /// Those that several nodes reach, as they were when they were last looked at.
    pub shared: watch::Receiver<Vec<Arc<Store>>>,
}

impl Asker {
    /// Asks one question. Takes no longer than [`TIMEOUT`].
    pub async fn ask(self, task: Task) -> Found {
        let limit = if matches!(task, Task::CreateFence { .. }) { FENCE_TIMEOUT } else { TIMEOUT };
        let what = task.clone();
        let answer = async {
            match task {
                Task::FindHolders => find_holders(self.client).await,
                Task::LookForBeats { node, session } => {
                    let shared = self.shared.borrow().clone();
                    look_for_beats(shared, node, session).await
                }
                Task::CreateFence { session, store } => match self.stores.get(&store).await {
                    Ok(opened) => create_fence(opened, session).await,
                    Err(error) => {
                        tracing::error!(%error, session, "a node cannot be fenced");
                        Found::Nothing
                    }
                },
                Task::CloseLease { session, node } => {
                    let api = Api::namespaced(self.client, &self.namespace);
                    close_lease(api, session, node, self.timing).await
                }
            }
        };
        tokio::time::timeout(limit, answer).await.unwrap_or_else(|_| {
            tracing::warn!(?what, "no answer in {} ms", limit.as_millis());
            Found::Nothing
        })
    }

    /// The leases of all nodes; `None` if the API server does not say.
    pub async fn leases(self) -> Option<Vec<Lease>> {
        let api: Api<Lease> = Api::namespaced(self.client, &self.namespace);
        match tokio::time::timeout(TIMEOUT, api.list(&ListParams::default())).await {
            Ok(Ok(leases)) => return Some(leases.items),
            Ok(Err(error)) => tracing::warn!("the leases of nodes cannot be listed: {}", brief(&error)),
            Err(_) => tracing::warn!("the leases of nodes cannot be listed: the API server does not answer"),
        }
        None
    }

    /// The nodes, perhaps as they were a moment ago; `None` if the API server does not say.
    pub async fn nodes(self) -> Option<Vec<Node>> {
        let api: Api<Node> = Api::all(self.client);
        match tokio::time::timeout(TIMEOUT, api.list(&ListParams::default().match_any())).await {
            Ok(Ok(nodes)) => return Some(nodes.items),
            Ok(Err(error)) => tracing::warn!("the nodes cannot be listed: {}", brief(&error)),
            Err(_) => tracing::warn!("the nodes cannot be listed: the API server does not answer"),
        }
        None
    }
}

async fn find_holders(client: Client) -> Found {
    let volumes: Api<EnvironmentVolume> = Api::all(client.clone());
    let stores: Api<JournalStore> = Api::all(client);
    let everything = ListParams::default();
    match futures::try_join!(volumes.list(&everything), stores.list(&everything)) {
        Ok((volumes, stores)) => {
            let (holdings, missing) = holdings(volumes.items, &stores.items);
            for (store, volumes) in missing {
                tracing::error!(
                    store,
                    volumes,
                    "no other node could take over what is in a JournalStore that does not exist: create it again"
                );
            }
            Found::Holders(holdings)
        }
        Err(error) => {
            tracing::warn!("the volumes of sessions that are ended cannot be listed: {}", brief(&error));
            Found::Nothing
        }
    }
}

/// Who has which volumes, and how many volumes there are of stores that do not exist. Those in a store that no other node
/// reaches cannot be taken over, so nobody is asked for them.
fn holdings(volumes: Vec<EnvironmentVolume>, stores: &[JournalStore]) -> (Holdings, BTreeMap<String, usize>) {
    let (mut all, mut missing) = (Holdings::new(), BTreeMap::new());
    for volume in volumes {
        let (Some(VolumeLog { store: name, .. }), Some(status)) = (volume.log(), volume.status) else { continue };
        let holder = match (status.holder, status.node) {
            (Some(holder), _) => Holder { node: holder.node, session: Some(holder.session) },
            (None, Some(node)) if status.released_epoch < status.epoch => Holder { node, session: None },
            _ => continue,
        };
        match stores.iter().find(|store| store.metadata.name.as_ref() == Some(&name)) {
            Some(store) if store.spec.s3.is_some() => drop(all.entry(holder).or_default().insert(name)),
            Some(_) => {}
            None => *missing.entry(name).or_default() += 1,
        }
    }
    (all, missing)
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
    match store.create(&key, Source::Bytes(content.into()), digest, Instant::now() + FENCE_TIMEOUT).await {
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn who_has_a_volume_is_whoever_holds_it_or_did_not_commit_it_to_the_end() {
        let volume = |store: &str, status: serde_json::Value| -> EnvironmentVolume {
            serde_json::from_value(json!({
                "apiVersion": "vivarium.dev/v1alpha1", "kind": "EnvironmentVolume", "metadata": {"name": "v"},
                "spec": {"template": {"name": "t", "image": "i", "layers": []}, "size": "1Gi", "store": store},
                "status": status,
            }))
            .unwrap()
        };
        let s3 = json!({"s3": {"endpoint": "https://s3", "bucket": "abc", "credentialsSecret": {"name": "c"}}});
        let store = |name: &str, spec: serde_json::Value| -> JournalStore {
            let object = json!({"apiVersion": "vivarium.dev/v1alpha1", "kind": "JournalStore",
                "metadata": {"name": name}, "spec": spec});
            serde_json::from_value(object).unwrap()
        };
        let held = json!({"holder": {"node": "n1", "session": "s1"}, "node": "n1", "epoch": 3, "releasedEpoch": 2});
        let volumes = vec![
            volume("a", held.clone()),
            volume("local", held.clone()),
            volume("deleted", held.clone()),
            volume("deleted", held),
            volume("b", json!({"node": "n1", "epoch": 3, "releasedEpoch": 2})),
            volume("c", json!({"node": "n1", "epoch": 3, "releasedEpoch": 3})),
        ];
        let stores = [
            store("a", s3.clone()),
            store("b", s3.clone()),
            store("c", s3),
            store("local", json!({"local": {"path": "/x"}})),
        ];
        let holder = |session: Option<&str>| Holder { node: "n1".into(), session: session.map(str::to_owned) };
        let expected = [(holder(Some("s1")), "a"), (holder(None), "b")];
        let expected: Holdings = expected.map(|(holder, store)| (holder, [store.to_owned()].into())).into();
        assert_eq!(holdings(volumes, &stores), (expected, BTreeMap::from([("deleted".to_owned(), 2)])));
    }
}
