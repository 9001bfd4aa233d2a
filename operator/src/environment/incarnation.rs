//! What a pod says about the incarnation that it is: one state out of a few, read from the pod alone.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, Pod, PodCondition};
use vivarium_api::names;

/// Where an incarnation is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The scheduler has not yet found a node; why, in its words.
    Unscheduled {
        /// What the scheduler says.
        message: String,
    },
    /// On a node; its container was not started yet. What hinders it, if the kubelet says so.
    Starting {
        /// Reason and message of the kubelet, when it is more than "being created".
        trouble: Option<Trouble>,
    },
    /// The container runs.
    Running {
        /// Whether its guest booted and its container is well. The pod is Ready then, or is about to be.
        ready: bool,
    },
    /// The container ended with success: the guest was powered off from inside.
    PoweredOff,
    /// It ended in any other way.
    Failed {
        /// Why.
        trouble: Trouble,
        /// When; none if nobody noted it.
        at: Option<Timestamp>,
    },
    /// Its pod is being deleted.
    Terminating,
}

/// Why something does not go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// One word of the kubelet or of Kubernetes.
    pub reason: String,
    /// Its explanation.
    pub message: String,
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.message.is_empty() { f.write_str(&self.reason) } else { write!(f, "{}: {}", self.reason, self.message) }
    }
}

/// Reads a pod's stage.
#[must_use]
pub fn stage(pod: &Pod) -> Stage {
    if pod.metadata.deletion_timestamp.is_some() {
        return Stage::Terminating;
    }
    let status = pod.status.clone().unwrap_or_default();
    match status.phase.as_deref() {
        Some("Succeeded") => return Stage::PoweredOff,
        Some("Failed") => return failed(pod),
        _ => {}
    }
    if node(pod).is_none() {
        let message = condition(pod, "PodScheduled").and_then(|c| c.message.clone()).unwrap_or_default();
        return Stage::Unscheduled { message };
    }
    let state = container_state(pod).unwrap_or_default();
    if state.running.is_some() {
        return Stage::Running { ready: is_well(pod) };
    }
    // The container has ended and the pod's phase lags behind: it decides in a moment.
    if let Some(ended) = state.terminated {
        return Stage::Starting { trouble: Some(of_end(&ended)) };
    }
    let waiting = state.waiting.unwrap_or_default();
    let reason = waiting.reason.unwrap_or_default();
    let harmless = reason.is_empty() || matches!(reason.as_str(), "ContainerCreating" | "PodInitializing");
    let trouble = (!harmless).then(|| Trouble { reason, message: waiting.message.unwrap_or_default() });
    Stage::Starting { trouble }
}

/// Whether the container of the pod was ever started.
#[must_use]
pub fn was_started(pod: &Pod) -> bool {
    container_state(pod).is_some_and(|state| state.running.is_some() || state.terminated.is_some())
}

/// Whether the container of the pod runs.
#[must_use]
pub fn began(pod: &Pod) -> bool {
    container_state(pod).is_some_and(|state| state.running.is_some())
}

/// Node that the pod is bound to.
#[must_use]
pub fn node(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|node| !node.is_empty())
}

/// A condition of the pod.
#[must_use]
pub fn condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == type_)
}

fn is_true(pod: &Pod, type_: &str) -> bool {
    condition(pod, type_).is_some_and(|c| c.status == "True")
}

/// What makes a pod Ready is known before the kubelet says so: it looks at the readiness gate again only when it has next
/// asked the runtime for all its containers, which is once a second. Any other reason for a pod that is not Ready counts,
/// that of the node controller for one, which finds the node silent.
fn is_well(pod: &Pod) -> bool {
    let of_gate = condition(pod, "Ready").is_some_and(|c| c.reason.as_deref() == Some("ReadinessGatesNotReady"));
    let ready = is_true(pod, "Ready") || (of_gate && is_true(pod, "ContainersReady"));
    ready && is_true(pod, names::CONDITION_BOOTED)
}

fn container_state(pod: &Pod) -> Option<ContainerState> {
    let containers = pod.status.as_ref()?.container_statuses.as_ref()?;
    containers.iter().find(|c| c.name == names::CONTAINER)?.state.clone()
}

fn failed(pod: &Pod) -> Stage {
    let ended = container_state(pod).and_then(|state| state.terminated);
    let at = ended.as_ref().and_then(|e| e.finished_at.as_ref()).map(|t| t.0);
    // A pod that ended before its container began has a time stamp of 1970 or none: the last change of its conditions.
    let noted = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let changed = noted.filter_map(|c| c.last_transition_time.as_ref()).map(|t| t.0).max();
    let at = at.filter(|at| at.as_second() > 0).or(changed);
    let of_pod = pod.status.as_ref().and_then(|s| {
        let reason = s.reason.clone()?;
        Some(Trouble { reason, message: s.message.clone().unwrap_or_default() })
    });
    let trouble = of_pod.or_else(|| ended.as_ref().map(of_end)).unwrap_or_else(|| Trouble {
        reason: "Failed".into(),
        message: "the pod ended without giving a reason".into(),
    });
    Stage::Failed { trouble, at }
}

fn of_end(ended: &ContainerStateTerminated) -> Trouble {
    let reason = ended.reason.clone().filter(|r| !r.is_empty()).unwrap_or_else(|| "Ended".into());
    let said = ended.message.as_deref().unwrap_or_default().trim();
    let how = match ended.signal.filter(|signal| *signal != 0) {
        Some(signal) => format!("init was ended by signal {signal}"),
        None => format!("init ended with status {}", ended.exit_code),
    };
    Trouble { reason, message: if said.is_empty() { how } else { format!("{how}: {said}") } }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_incarnation_is_well_when_its_guest_booted_and_nobody_says_otherwise_of_its_pod() {
        for (ready, reason, containers, booted, well) in [
            ("True", "", "True", "True", true),
            ("False", "ReadinessGatesNotReady", "True", "True", true),
            ("False", "ReadinessGatesNotReady", "True", "False", false),
            ("True", "", "True", "False", false),
            ("False", "ReadinessGatesNotReady", "False", "True", false),
            ("False", "ContainersNotReady", "False", "True", false),
            // The node controller, of a node that is silent.
            ("False", "", "True", "True", false),
            ("False", "NodeNotReady", "True", "True", false),
        ] {
            let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": {"nodeName": "n1", "containers": []}, "status": {
                "phase": "Running",
                "containerStatuses": [{"name": names::CONTAINER, "image": "", "imageID": "", "ready": true, "restartCount": 0,
                    "state": {"running": {}}}],
                "conditions": [
                    {"type": "Ready", "status": ready, "reason": reason},
                    {"type": "ContainersReady", "status": containers},
                    {"type": names::CONDITION_BOOTED, "status": booted}]}}))
            .unwrap();
            assert_eq!(stage(&pod), Stage::Running { ready: well }, "{ready} {reason} {containers} {booted}");
        }
    }
}
