//! What a node's `Lease` says of its session.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use vivarium_ownership::node;

use crate::names;

/// The part of a node's `Lease` that the ownership protocol is about.
#[must_use]
pub fn content(lease: &Lease) -> node::Lease {
    let spec = lease.spec.as_ref();
    let session = spec.and_then(|spec| spec.holder_identity.clone()).unwrap_or_default();
    let seconds = spec.and_then(|spec| spec.lease_duration_seconds).and_then(|seconds| u64::try_from(seconds).ok());
    let annotations = lease.metadata.annotations.as_ref();
    let annotation = |name| annotations.and_then(|all| all.get(name));
    let fenced = annotation(names::ANNOTATION_FENCED) == Some(&session);
    let renewed = annotation(names::ANNOTATION_RENEWED).and_then(|at| at.parse().ok()).unwrap_or(0);
    node::Lease { session, duration: Duration::from_secs(seconds.unwrap_or(0)), fenced, renewed }
}
