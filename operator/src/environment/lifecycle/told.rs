//! What the status says of an incarnation that has a pod.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use vivarium_api::names;
use vivarium_api::v1alpha1::environment::Phase;
use vivarium_api::v1alpha1::{ConditionStatus, EnvironmentVolume, condition};

use super::Life;
use crate::environment::build::{self, StartedWith};
use crate::environment::resize::{self, Resize};
use crate::environment::status::{Outlook, Progress, Verdict};
use crate::environment::world::{NodeState, World};
use crate::environment::{holder, incarnation, placement};

impl Life<'_> {
    /// The outlook of an environment that has a pod.
    pub(super) fn of_pod(&self, pod: &Pod, phase: Phase, progress: Progress, ready: Verdict) -> Outlook {
        let status = self.world.environment.status.clone().unwrap_or_default();
        let scheduled = match incarnation::node(pod) {
            Some(node) => Verdict::yes("Scheduled", format!("pod {} is on node {node}", pod.name_any())),
            None => Verdict::unknown("Scheduling", "the pod has no node yet"),
        };
        Outlook {
            phase,
            progress,
            ready,
            scheduled,
            storage: self.storage_verdict(pod),
            booted: booted(pod),
            up_to_date: self.up_to_date(pod),
            failures: (status.failures, status.failed_epoch),
            epoch: self.world.epoch(),
            failover: None,
            moved: None,
        }
    }

    /// What the node driver says of the volume, as long as it speaks of this incarnation.
    pub(super) fn storage_verdict(&self, pod: &Pod) -> Verdict {
        let Some(volume) = self.volume else { return Verdict::no("NotPublished", "there is no volume") };
        if !holder::holds(volume, pod.metadata.uid.as_deref()) {
            return Verdict::no("NotPublished", "the volume is not yet given to the node of this incarnation");
        }
        let conditions = volume.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
        match condition::find(conditions, "Published") {
            Some(c) => Verdict { status: c.status, reason: c.reason.clone(), message: c.message.clone() },
            None => Verdict::unknown("NotPublished", "the node driver has not said anything of the volume yet"),
        }
    }

    fn up_to_date(&self, pod: &Pod) -> Verdict {
        let mut fields = self.differences(pod);
        let refused = self.world.met.resize_refused.as_ref().map(|why| format!("spec.resources ({why})"));
        match resize::resize(pod, &self.world.environment.spec.resources) {
            Resize::NeedsRestart(field) => fields.push(field),
            Resize::Wanted(_) if refused.is_some() => fields.extend(refused.as_deref()),
            Resize::Infeasible(message) => {
                let message = format!("the node cannot give what spec.resources asks for: {message}");
                return Verdict::no("ResizeInfeasible", message);
            }
            Resize::Pending(message) if fields.is_empty() => {
                let message = format!("the node is changing the pod's resources. {message}");
                return Verdict::no("ResizePending", message.trim_end());
            }
            Resize::Wanted(_) if fields.is_empty() => {
                return Verdict::no("ResizePending", "the pod is being told to take the new resources");
            }
            _ => {}
        }
        if fields.is_empty() {
            return Verdict::yes("UpToDate", "the running incarnation is as the spec says");
        }
        Verdict::no(
            "RestartRequired",
            format!(
                "changed since the start, and taken over by the next one: {}. To start anew: kubectl delete pod {}",
                fields.join(", "),
                pod.name_any()
            ),
        )
    }

    /// Fields of the spec that the pod was not started with and that cannot be changed while it runs.
    pub(super) fn differences(&self, pod: &Pod) -> Vec<&'static str> {
        let wanted = StartedWith::of(&self.world.environment);
        // A pod whose annotation cannot be read was made by another version: it is not replaced for that.
        StartedWith::of_pod(pod).map(|had| wanted.differences(&had)).unwrap_or_default()
    }
}

pub(super) fn booted(pod: &Pod) -> Verdict {
    match incarnation::condition(pod, names::CONDITION_BOOTED) {
        Some(c) => {
            let status = match c.status.as_str() {
                "True" => ConditionStatus::True,
                "False" => ConditionStatus::False,
                _ => ConditionStatus::Unknown,
            };
            let reason = c.reason.clone().filter(|r| !r.is_empty()).unwrap_or_else(|| "Booting".into());
            Verdict { status, reason, message: c.message.clone().unwrap_or_default() }
        }
        None => Verdict::no("Booting", "the guest has not reported yet"),
    }
}

/// Why a pod has no node, as far as it can be told better than the scheduler does.
pub(super) fn scheduling(world: &World, volume: Option<&EnvironmentVolume>, pod: &Pod, message: String) -> Verdict {
    let node = volume.and_then(|v| v.status.as_ref()).and_then(|s| s.node.as_deref()).unwrap_or_default();
    match world.nodes.of_volume {
        Some(NodeState::Gone) => {
            return Verdict::no(
                "NodeGone",
                format!(
                    "the data of this environment is on node {node}, which is not in the cluster any more: bring the \
                     node back"
                ),
            );
        }
        Some(NodeState::NotReady) => {
            return Verdict::no(
                "NodeGone",
                format!(
                    "the data of this environment is on node {node}, which is not ready: the environment starts when \
                     the node is back. {message}"
                ),
            );
        }
        _ => {}
    }
    if !world.nodes.any_pool {
        return Verdict::no(
            "NoNodeWithPool",
            format!(
                "no node of this cluster has a Vivarium pool (label {}=true): is the node driver running? See the \
                 DaemonSet of the node driver",
                names::TOPOLOGY_POOL
            ),
        );
    }
    if message.is_empty() {
        return Verdict::unknown("Scheduling", "the scheduler has not looked at the pod yet");
    }
    if world.nodes.candidates.is_empty() {
        return Verdict::no("Unschedulable", message);
    }
    let why = placement::explain(pod, &world.nodes.candidates, &world.silent, &build::shunned(pod));
    let message = format!("no node takes it; it starts as soon as one does. {why}. The scheduler says: {message}");
    Verdict::no("Unschedulable", message)
}
