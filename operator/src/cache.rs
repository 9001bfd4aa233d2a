//! Caches of everything that is watched, without the parts that nobody reads.

use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, PoisonError};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeSpec, NodeStatus, PersistentVolume, PersistentVolumeClaim, Pod, Service};
use kube::core::DeserializeGuard;
use kube::runtime::reflector::Store;
use kube::{Resource, ResourceExt};
use vivarium_api::names;
use vivarium_api::v1alpha1::{EnvironmentTemplate, EnvironmentVolume, JournalStore, VirtualEnvironment};

/// Readers of all caches.
pub struct Caches {
    /// Environments.
    pub environments: Store<DeserializeGuard<VirtualEnvironment>>,
    /// Templates.
    pub templates: Store<DeserializeGuard<EnvironmentTemplate>>,
    /// Stores of journals.
    pub stores: Store<DeserializeGuard<JournalStore>>,
    /// Volumes.
    pub volumes: Store<DeserializeGuard<EnvironmentVolume>>,
    /// Pods of environments.
    pub pods: Store<Pod>,
    /// Which pods an environment has.
    pub pod_names: PodNames,
    /// Claims of environments.
    pub claims: Store<PersistentVolumeClaim>,
    /// Persistent volumes of environments.
    pub persistent_volumes: Store<PersistentVolume>,
    /// Services of environments.
    pub services: Store<Service>,
    /// Nodes.
    pub nodes: Store<Node>,
    /// Leases of node drivers.
    pub leases: Store<Lease>,
}

/// Names of pods by namespace and environment, so that finding an environment's pods does not cost a walk over all.
#[derive(Default)]
pub struct PodNames(Mutex<HashMap<(String, String), BTreeSet<String>>>);

impl PodNames {
    /// Notes a pod that was seen.
    pub fn saw(&self, pod: &Pod) {
        let Some(key) = environment_of(pod) else { return };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default().insert(pod.name_any());
    }

    /// Names that were seen; those for which `still_there` is false are forgotten.
    pub fn of(&self, namespace: &str, environment: &str, still_there: impl Fn(&str) -> bool) -> Vec<String> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (namespace.to_owned(), environment.to_owned());
        let Some(names) = all.get_mut(&key) else { return Vec::new() };
        names.retain(|name| still_there(name));
        if names.is_empty() {
            all.remove(&key);
            return Vec::new();
        }
        names.iter().cloned().collect()
    }
}

/// Namespace and name of the environment that an object is labelled with.
pub fn environment_of<K: ResourceExt>(object: &K) -> Option<(String, String)> {
    Some((object.namespace()?, object.labels().get(names::LABEL_ENVIRONMENT)?.clone()))
}

/// Drops what no decision reads. Half of an object's memory is its managed fields.
pub fn prune<K: Resource>(object: &mut K) {
    object.meta_mut().managed_fields = None;
}

/// Keeps of a node what decisions read: its name, labels, conditions, what it has for pods and what keeps them away.
pub fn prune_node(node: &mut Node) {
    prune(node);
    node.metadata.annotations = None;
    if let Some(spec) = node.spec.take() {
        node.spec = Some(NodeSpec { taints: spec.taints, unschedulable: spec.unschedulable, ..NodeSpec::default() });
    }
    if let Some(status) = node.status.take() {
        let NodeStatus { conditions, allocatable, .. } = status;
        node.status = Some(NodeStatus { conditions, allocatable, ..NodeStatus::default() });
    }
}

/// What has to change about a node for a pod to fit that did not: nodes tell every few seconds that they live.
#[must_use]
pub fn room(node: &Node) -> u64 {
    let mut hasher = DefaultHasher::new();
    node.labels().hash(&mut hasher);
    // Types of the API server have no hash.
    let ready = node.status.iter().flat_map(|s| s.conditions.iter().flatten()).find(|c| c.type_ == "Ready");
    ready.map(|ready| &ready.status).hash(&mut hasher);
    let allocatable = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
    format!("{:?} {allocatable:?}", node.spec).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_only_says_that_it_lives_makes_no_room() {
        let node = |heartbeat: &str, ready: &str, taints: serde_json::Value| -> Node {
            let mut node: Node = serde_json::from_value(serde_json::json!({
                "metadata": {"name": "n1", "resourceVersion": heartbeat}, "spec": {"podCIDR": heartbeat, "taints": taints},
                "status": {"allocatable": {"memory": "1Gi"},
                    "conditions": [{"type": "Ready", "status": ready, "lastHeartbeatTime": heartbeat}]}}))
            .unwrap();
            prune_node(&mut node);
            node
        };
        let (one, two) = ("2026-01-01T00:00:00Z", "2026-01-01T00:00:10Z");
        let untainted = serde_json::json!([]);
        let taint = serde_json::json!([{"key": "k", "effect": "NoSchedule"}]);
        assert_eq!(room(&node(one, "True", untainted.clone())), room(&node(two, "True", untainted.clone())));
        assert_ne!(room(&node(one, "True", untainted.clone())), room(&node(one, "False", untainted.clone())));
        assert_ne!(room(&node(one, "True", untainted)), room(&node(one, "True", taint)));
    }

    #[test]
    fn pods_are_found_by_environment_and_forgotten_when_gone() {
        let pod = |name: &str, environment: &str| {
            let mut pod = Pod::default();
            pod.metadata.name = Some(name.into());
            pod.metadata.namespace = Some("a".into());
            pod.metadata.labels = Some([(names::LABEL_ENVIRONMENT.to_owned(), environment.to_owned())].into());
            pod
        };
        let names = PodNames::default();
        names.saw(&pod("shop-1", "shop"));
        names.saw(&pod("shop-2", "shop"));
        names.saw(&pod("other-1", "other"));
        assert_eq!(names.of("a", "shop", |_| true), ["shop-1", "shop-2"]);
        assert_eq!(names.of("a", "shop", |name| name == "shop-2"), ["shop-2"]);
        assert_eq!(names.of("a", "shop", |_| true), ["shop-2"]);
        assert_eq!(names.of("b", "shop", |_| true), Vec::<String>::new());
    }
}
