//! Which incarnation has the volume.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use vivarium_api::names;
use vivarium_api::v1alpha1::EnvironmentVolume;
use vivarium_api::v1alpha1::condition::{self, Condition, ConditionStatus};

use super::Life;
use crate::environment::decision::{Action, Refusal};
use crate::environment::holder::{self, Bidder, Claim};
use crate::environment::incarnation;
use crate::environment::storage::doomed;
use crate::environment::world::Tenure;

impl Life<'_> {
    /// Gives the volume to the pod. An error while it cannot have it yet.
    pub(super) fn hold(&mut self, pod: &Pod) -> Result<(), Refusal> {
        let (Some(volume), Some(node)) = (self.volume, incarnation::node(pod)) else { return Ok(()) };
        let session = self.world.nodes.session.as_deref();
        let epoch = self.world.epoch_of(pod);
        // An older pod may have the volume and run. A pod that is late under an old name can be there beside the newest.
        let uid = pod.metadata.uid.as_deref();
        if !holder::holds(volume, uid) && self.world.tenure(volume) == Tenure::Ends {
            let message = format!(
                "pod {} gets the volume as soon as it is certain that nothing runs any more on node {}",
                pod.name_any(),
                volume.status.as_ref().and_then(|s| s.node.as_deref()).unwrap_or_default()
            );
            return Err(Refusal::waiting("NodeLost", message));
        }
        let mut others = self.world.pods.iter().filter(|other| other.metadata.uid != pod.metadata.uid);
        let others = others.any(|other| !self.world.is_over(other) && !self.world.has_given_back(other));
        if others && !holder::holds(volume, uid) {
            let message = format!("pod {} waits until the pod of the former incarnation is gone", pod.name_any());
            return Err(Refusal::waiting("Terminating", message));
        }
        let bidder = Bidder { uid: uid.unwrap_or_default(), epoch, node, started: incarnation::was_started(pod) };
        match holder::claim(volume, bidder, session, self.world.is_movable(volume)) {
            Claim::Holds => Ok(()),
            Claim::Take(mut volume) => {
                not_published(&mut volume, node, self.now);
                self.actions.push(Action::ReplaceVolumeStatus(volume));
                Ok(())
            }
            Claim::Stale => {
                self.actions.push(Action::DeletePod(doomed(pod)));
                let message = format!("pod {} belongs to an incarnation that is over, and is deleted", pod.name_any());
                Err(Refusal::waiting("Terminating", message))
            }
            Claim::NoSession => Err(Refusal::waiting(
                "NodeDriverNotReady",
                format!(
                    "pod {} is on node {node}, whose node driver has not announced itself (Lease {}): see whether the \
                     pod of the node driver runs there",
                    pod.name_any(),
                    names::node_lease(node)
                ),
            )),
        }
    }

    /// Releases the volume: no pod is left. Also one that is of no use any more, because it is being deleted: its data is
    /// destroyed once nobody holds it.
    pub(super) fn release(&mut self) {
        // Not beside another change of the same object, which would make this one's resourceVersion stale.
        let changes = self.actions.iter().any(|a| matches!(a, Action::ReplaceVolume(..)));
        if let Some(volume) = self.world.own_volume().filter(|_| !changes).and_then(holder::released) {
            self.actions.push(Action::ReplaceVolumeStatus(Box::new(volume)));
        }
    }
}

/// What was said of the former incarnation's mount is not true of this one's.
fn not_published(volume: &mut EnvironmentVolume, node: &str, now: Timestamp) {
    let observed_generation = volume.metadata.generation;
    let conditions = &mut volume.status.get_or_insert_default().conditions;
    if condition::find(conditions, "Published").is_some() {
        let published = Condition {
            type_: "Published".into(),
            status: ConditionStatus::Unknown,
            observed_generation,
            last_transition_time: now,
            reason: "NotPublished".into(),
            message: format!("given to node {node}, whose driver has not mounted it yet"),
        };
        condition::set(conditions, published);
    }
}
