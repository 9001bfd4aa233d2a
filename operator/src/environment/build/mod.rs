//! The objects that an environment consists of, built from its spec. Nothing here looks at time or at the cluster: the
//! same spec gives the same objects.

mod claim;
mod persistent_volume;
mod pod;
mod service;
mod started_with;
mod volume;

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;
use vivarium_api::names;
use vivarium_api::v1alpha1::VirtualEnvironment;

pub use claim::claim;
pub use persistent_volume::persistent_volume;
pub use pod::{Place, bound_to, pod, resources, shunned};
pub use service::service;
pub use started_with::StartedWith;
pub use volume::{adopted, branched, copied, grown, let_go, stored, volume};

/// Metadata of a namespaced child.
fn child(environment: &VirtualEnvironment, name: String) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: environment.metadata.namespace.clone(),
        labels: Some(labels(environment)),
        owner_references: owner(environment),
        ..ObjectMeta::default()
    }
}

fn labels(environment: &VirtualEnvironment) -> BTreeMap<String, String> {
    let name = environment.metadata.name.clone().unwrap_or_default();
    BTreeMap::from([(names::LABEL_ENVIRONMENT.to_owned(), name)])
}

fn owner(environment: &VirtualEnvironment) -> Option<Vec<OwnerReference>> {
    environment.controller_owner_ref(&()).map(|owner| vec![owner])
}
