//! Changes of compute resources while an environment runs: by in-place resize of its pod (KEP-1287) where Kubernetes
//! allows it, otherwise at the next start.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use vivarium_api::names;
use vivarium_api::v1alpha1::environment::Resources;

use super::build;
use super::incarnation;
use crate::quantity::same;

/// How a pod's resources stand to those that the spec asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Resize {
    /// The pod has them.
    Done,
    /// The pod should be told to take these.
    Wanted(Box<ResourceRequirements>),
    /// Kubernetes refuses such a change while the pod runs; why.
    NeedsRestart(&'static str),
    /// The node takes its time.
    Pending(String),
    /// The node cannot give them.
    Infeasible(String),
}

/// Compares.
#[must_use]
pub fn resize(pod: &Pod, wanted: &Resources) -> Resize {
    let wanted = build::resources(wanted);
    let Some(present) = present(pod) else { return Resize::Done };
    let empty = BTreeMap::new();
    let of = |map: &Option<BTreeMap<String, Quantity>>| map.clone().unwrap_or_else(|| empty.clone());
    let (old, new) = ((of(&present.requests), of(&present.limits)), (of(&wanted.requests), of(&wanted.limits)));
    if equal(&old.0, &new.0) && equal(&old.1, &new.1) {
        return in_progress(pod);
    }
    if old.1.keys().any(|name| !new.1.contains_key(name)) {
        return Resize::NeedsRestart("spec.resources.limits (a limit cannot be removed from a running pod)");
    }
    if guaranteed(&old) != guaranteed(&new) {
        return Resize::NeedsRestart(
            "spec.resources (requests equal to limits in cpu and memory are another quality of service, which a \
             running pod cannot change)",
        );
    }
    Resize::Wanted(Box::new(wanted))
}

/// What the node says of a resize that was asked for.
fn in_progress(pod: &Pod) -> Resize {
    let said = |type_: &str| incarnation::condition(pod, type_).filter(|c| c.status == "True");
    if let Some(pending) = said("PodResizePending") {
        let message = pending.message.clone().unwrap_or_default();
        return match pending.reason.as_deref() {
            Some("Infeasible") => Resize::Infeasible(message),
            _ => Resize::Pending(message),
        };
    }
    match said("PodResizeInProgress") {
        Some(progress) => Resize::Pending(progress.message.clone().unwrap_or_default()),
        None => Resize::Done,
    }
}

/// Whether the pod was made with what the spec asks for, whether or not that can be changed.
#[must_use]
pub fn matches(pod: &Pod, wanted: &Resources) -> bool {
    matches!(resize(pod, wanted), Resize::Done | Resize::Pending(_) | Resize::Infeasible(_))
}

fn present(pod: &Pod) -> Option<ResourceRequirements> {
    let container = pod.spec.as_ref()?.containers.iter().find(|c| c.name == names::CONTAINER)?;
    Some(container.resources.clone().unwrap_or_default())
}

type Amounts = BTreeMap<String, Quantity>;

fn equal(one: &Amounts, other: &Amounts) -> bool {
    one.len() == other.len() && one.iter().all(|(name, amount)| other.get(name).is_some_and(|o| same(amount, o)))
}

/// Quality of service `Guaranteed`: cpu and memory limited, and requested in full.
fn guaranteed((requests, limits): &(Amounts, Amounts)) -> bool {
    ["cpu", "memory"].iter().all(|name| match (requests.get(*name), limits.get(*name)) {
        (Some(request), Some(limit)) => same(request, limit),
        _ => false,
    })
}
