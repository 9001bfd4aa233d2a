//! Caches of everything that is watched, without the parts that nobody reads.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Node, PersistentVolume, PersistentVolumeClaim, Pod, Service};
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
    /// Boot configurations.
    pub config_maps: Store<ConfigMap>,
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

/// Keeps of a node what decisions read: its name, labels and conditions.
pub fn prune_node(node: &mut Node) {
    prune(node);
    node.metadata.annotations = None;
    node.spec = None;
    if let Some(status) = node.status.take() {
        let conditions = status.conditions;
        node.status.get_or_insert_default().conditions = conditions;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
