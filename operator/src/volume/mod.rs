//! The controller of `EnvironmentVolume`s that are being deleted: takes the finalizer off one that never was on a node,
//! and takes one out of the hands of an environment that is gone. The data of all others is destroyed by the driver of
//! the node that holds it, once nobody may write it any more; the driver takes the finalizer off itself. If that node is gone
//! for good, another one is named to do so.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{ListParams, PostParams};
use kube::core::DeserializeGuard;
use kube::runtime::controller::Action as Requeue;
use kube::{Api, Client, ResourceExt};
use vivarium_api::names;
use vivarium_api::v1alpha1::{EnvironmentVolume, JournalStore, VirtualEnvironment};

use crate::environment::controller::Context;
use crate::environment::dereference::{has_pool, node_state};
use crate::environment::holder;
use crate::environment::world::NodeState;
use crate::error::brief;

const AFTER_FAILURE: Duration = Duration::from_secs(5);
/// How often a volume that is being deleted is looked at while its environment is there.
const WHILE_USED: Duration = Duration::from_secs(10);
/// How often one is looked at whose node has to destroy it: the node may go before it does.
const WHILE_NODE_IS_THERE: Duration = Duration::from_secs(30);

/// A run failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot let EnvironmentVolume {volume} go: {}", brief(.source))]
pub struct Error {
    volume: String,
    source: kube::Error,
}

/// What only the operator can do for a volume that is being deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duty {
    /// Take the finalizer off: it never was on a node.
    LetGo,
    /// Take it out of the hands of its environment, should that be gone. One that is there does so itself.
    Release,
    /// See that somebody destroys it, should its node be gone.
    Bequeath,
}

/// Who destroys a volume whose node is gone for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heir {
    /// Nobody has to: its data went with the node.
    Nobody,
    /// This node: the journal is in a store that it reaches.
    Node(String),
    /// One that has yet to come.
    NotYet,
}

/// Decides that from the nodes and the stores that there are.
#[must_use]
pub fn heir(volume: &EnvironmentVolume, nodes: &[Node], stores: &[JournalStore]) -> Heir {
    let named = volume.log().map(|log| log.store);
    let store = stores.iter().find(|store| store.metadata.name == named);
    if store.is_none_or(|store| store.spec.s3.is_none()) {
        return Heir::Nobody;
    }
    let living = nodes.iter().filter(|node| has_pool(node) && node_state(Some(node)) == NodeState::Ready);
    living.map(ResourceExt::name_any).min().map_or(Heir::NotYet, Heir::Node)
}

/// What is to be done about a volume; `None`: nothing.
#[must_use]
pub fn duty(volume: &EnvironmentVolume) -> Option<Duty> {
    let guarded = volume.finalizers().iter().any(|f| f == names::FINALIZER_VOLUME);
    if volume.metadata.deletion_timestamp.is_none() || !guarded {
        return None;
    }
    let status = volume.status.as_ref();
    match (status.and_then(|s| s.holder.as_ref()), status.and_then(|s| s.node.as_ref())) {
        (Some(_), _) => Some(Duty::Release),
        (None, None) => Some(Duty::LetGo),
        (None, Some(_)) => Some(Duty::Bequeath),
    }
}

/// One run for one volume.
pub async fn reconcile(
    object: Arc<DeserializeGuard<EnvironmentVolume>>,
    context: Arc<Context>,
) -> Result<Requeue, Error> {
    if object.0.as_ref().ok().and_then(duty).is_none() {
        return Ok(Requeue::await_change());
    }
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let error = |source| Error { volume: format!("{namespace}/{name}"), source };
    let api: Api<EnvironmentVolume> = Api::namespaced(context.client.clone(), &namespace);
    // The cache may be older than its placement: only the volume as it is now is let go.
    let Some(mut volume) = api.get_opt(&name).await.map_err(error)? else { return Ok(Requeue::await_change()) };
    let written = match duty(&volume) {
        None => return Ok(Requeue::await_change()),
        Some(Duty::Bequeath) => match find_heir(&context.client, &volume).await.map_err(error)? {
            None | Some(Heir::NotYet) => return Ok(Requeue::requeue(WHILE_NODE_IS_THERE)),
            Some(Heir::Nobody) => {
                tracing::warn!(namespace, name, "the data of a deleted volume went with its node");
                let_go(&mut volume);
                context.metrics.acted("ReleaseVolume");
                api.replace(&name, &PostParams::default(), &volume).await
            }
            Some(Heir::Node(heir)) => {
                volume.status.get_or_insert_default().node = Some(heir);
                context.metrics.acted("ReplaceVolumeStatus");
                api.replace_status(&name, &PostParams::default(), &volume).await
            }
        },
        Some(Duty::LetGo) => {
            let_go(&mut volume);
            context.metrics.acted("ReleaseVolume");
            api.replace(&name, &PostParams::default(), &volume).await
        }
        Some(Duty::Release) => {
            if has_user(&context, &namespace, volume.spec.environment.as_deref()).await.map_err(error)? {
                return Ok(Requeue::requeue(WHILE_USED));
            }
            let Some(released) = holder::released(&volume) else { return Ok(Requeue::await_change()) };
            context.metrics.acted("ReplaceVolumeStatus");
            api.replace_status(&name, &PostParams::default(), &released).await
        }
    };
    match written {
        Err(kube::Error::Api(status)) if status.is_conflict() => Ok(Requeue::requeue(Duration::from_secs(1))),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(Requeue::await_change()),
        Err(source) => Err(error(source)),
        Ok(_) => Ok(Requeue::await_change()),
    }
}

fn let_go(volume: &mut EnvironmentVolume) {
    volume.metadata.finalizers.iter_mut().for_each(|all| all.retain(|f| f != names::FINALIZER_VOLUME));
}

/// Who destroys a volume, if its node is gone; `None`: the node itself. Read afresh: an object that is only missing in a
/// cache would be taken for a node that is gone.
async fn find_heir(client: &Client, volume: &EnvironmentVolume) -> Result<Option<Heir>, kube::Error> {
    let nodes: Api<Node> = Api::all(client.clone());
    let node = volume.status.as_ref().and_then(|status| status.node.as_deref());
    let Some(node) = node else { return Ok(None) };
    if nodes.get_metadata_opt(node).await?.is_some() {
        return Ok(None);
    }
    let stores: Api<JournalStore> = Api::all(client.clone());
    let all = ListParams::default();
    let (nodes, stores) = futures::try_join!(nodes.list(&all), stores.list(&all))?;
    Ok(Some(heir(volume, &nodes.items, &stores.items)))
}

/// Whether the environment of a volume, or a pod of it, is still there.
async fn has_user(context: &Context, namespace: &str, environment: Option<&str>) -> Result<bool, kube::Error> {
    let Some(environment) = environment else { return Ok(false) };
    let metadata: Api<VirtualEnvironment> = Api::namespaced(context.client.clone(), namespace);
    // Its name is enough, so that one that cannot be read counts as well.
    if metadata.get_metadata_opt(environment).await?.is_some() {
        return Ok(true);
    }
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
    let labelled = ListParams::default().labels(&format!("{}={environment}", names::LABEL_ENVIRONMENT));
    Ok(!pods.list_metadata(&labelled).await?.items.is_empty())
}

/// What follows from a failed run.
#[allow(clippy::needless_pass_by_value, reason = "kube's Controller gives it by value")]
pub fn on_error(_object: Arc<DeserializeGuard<EnvironmentVolume>>, error: &Error, _context: Arc<Context>) -> Requeue {
    tracing::warn!("{error}");
    Requeue::requeue(AFTER_FAILURE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use serde_json::json;

    #[test]
    fn only_a_deleted_volume_that_is_nowhere_or_in_hands_is_the_operators() {
        let volume = |deleted: bool, status: serde_json::Value| {
            let mut volume: EnvironmentVolume = serde_json::from_value(json!({
                "apiVersion": "vivarium.dev/v1alpha1", "kind": "EnvironmentVolume",
                "metadata": {"name": "v", "finalizers": [names::FINALIZER_VOLUME]},
                "spec": {"template": {"name": "t", "image": "i@sha256:d", "layers": ["l"]}, "size": "1Gi"}, "status": status}))
            .unwrap();
            volume.metadata.deletion_timestamp = deleted.then_some(Time(jiff::Timestamp::UNIX_EPOCH));
            volume
        };
        let nowhere = json!({"observedGeneration": -1});
        assert_eq!(duty(&volume(true, nowhere.clone())), Some(Duty::LetGo));
        assert_eq!(duty(&volume(false, nowhere)), None);
        assert_eq!(duty(&volume(true, json!({"observedGeneration": 1, "node": "n1"}))), Some(Duty::Bequeath));
        let held = json!({"node": "n1", "holder": {"node": "n1", "session": "s"}});
        assert_eq!(duty(&volume(true, held.clone())), Some(Duty::Release));
        assert_eq!(duty(&volume(false, held)), None);
    }

    #[test]
    fn a_volume_whose_node_is_gone_is_destroyed_by_a_node_that_lives() {
        let node = |name: &str, pool: &str, ready: &str| -> Node {
            serde_json::from_value(json!({"metadata": {"name": name, "labels": {names::TOPOLOGY_POOL: pool}},
                "status": {"conditions": [{"type": "Ready", "status": ready}]}}))
            .unwrap()
        };
        let nodes = [
            node("n1", "true", "False"),
            node("n2", "no", "True"),
            node("n4", "true", "True"),
            node("n3", "true", "True"),
        ];
        let store = |name: &str, spec: serde_json::Value| -> JournalStore {
            serde_json::from_value(json!({"apiVersion": "vivarium.dev/v1alpha1", "kind": "JournalStore",
                "metadata": {"name": name}, "spec": spec}))
            .unwrap()
        };
        let stores = [
            store(
                "ceph",
                json!({"s3": {"endpoint": "https://s3", "bucket": "abc", "credentialsSecret": {"name": "c"}}}),
            ),
            store("local", json!({"local": {"path": "/x"}})),
        ];
        let volume = |store: Option<&str>| -> EnvironmentVolume {
            serde_json::from_value(json!({
                "apiVersion": "vivarium.dev/v1alpha1", "kind": "EnvironmentVolume", "metadata": {"name": "v"},
                "spec": {"template": {"name": "t", "image": "i@sha256:d", "layers": ["l"]}, "size": "1Gi", "store": store},
                "status": {"observedGeneration": 1, "node": "gone"}}))
            .unwrap()
        };
        let n3 = Heir::Node("n3".into());
        for (named, nodes, expected) in [
            (Some("ceph"), &nodes[..], n3),
            (Some("ceph"), &nodes[..2], Heir::NotYet),
            (Some("local"), &nodes, Heir::Nobody),
            (Some("deleted"), &nodes, Heir::Nobody),
            (None, &nodes, Heir::Nobody),
        ] {
            assert_eq!(heir(&volume(named), nodes, &stores), expected, "{named:?}");
        }
    }
}
