//! A kubelet that has just heard of a pod asks for the pod's claim, and may do so before the API server's own picture says
//! that this node may read it (node authorizer: "no relationship found between node and this object"). It then looks at
//! the pod again after ten seconds or more, or at once when the pod changes. A failover has no ten seconds, so a pod
//! whose sandbox does not come is changed, once.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use vivarium_api::names;

use super::incarnation::condition;

/// How long a kubelet that has not stumbled takes at most to begin with a sandbox.
const PATIENCE: SignedDuration = SignedDuration::from_secs(1);

/// What is to be done about a pod that is bound to a node and not started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaken {
    /// Nothing.
    No,
    /// Look again after this time.
    After(Duration),
    /// Change it.
    Now,
}

/// Decides for a pod.
#[must_use]
pub fn awaken(pod: &Pod, now: Timestamp) -> Awaken {
    let has_sandbox = condition(pod, "PodReadyToStartContainers").is_some_and(|c| c.status == "True");
    let was_changed = pod.metadata.annotations.iter().flatten().any(|(name, _)| name == names::ANNOTATION_AWAITED);
    let bound =
        condition(pod, "PodScheduled").filter(|c| c.status == "True").and_then(|c| c.last_transition_time.as_ref());
    let Some(bound) = bound.filter(|_| !has_sandbox && !was_changed) else { return Awaken::No };
    match Duration::try_from(bound.0 + PATIENCE - now) {
        Ok(left) if !left.is_zero() => Awaken::After(left),
        _ => Awaken::Now,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_whose_sandbox_does_not_come_is_changed_once() {
        let now = "2026-01-01T12:00:10Z".parse().unwrap();
        for (bound, sandbox, changed, expected) in [
            (Some("2026-01-01T12:00:09Z"), "False", false, Awaken::Now),
            (Some("2026-01-01T11:00:00Z"), "False", false, Awaken::Now),
            (Some("2026-01-01T12:00:09.6Z"), "False", false, Awaken::After(Duration::from_millis(600))),
            (Some("2026-01-01T12:00:00Z"), "True", false, Awaken::No),
            (Some("2026-01-01T12:00:00Z"), "False", true, Awaken::No),
            (None, "False", false, Awaken::No),
        ] {
            let mut conditions = vec![json!({"type": "PodReadyToStartContainers", "status": sandbox})];
            conditions
                .extend(bound.map(|at| json!({"type": "PodScheduled", "status": "True", "lastTransitionTime": at})));
            let annotations = if changed { json!({(names::ANNOTATION_AWAITED): "true"}) } else { json!({}) };
            let pod = serde_json::from_value(
                json!({"metadata": {"annotations": annotations}, "status": {"conditions": conditions}}),
            );
            assert_eq!(awaken(&pod.unwrap(), now), expected, "{bound:?} {sandbox} {changed}");
        }
    }
}
