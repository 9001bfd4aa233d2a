//! Everything that a decision about one environment looks at, as plain values. [`super::dereference`] fills it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Service};
use kube::ResourceExt;
use vivarium_api::names;
use vivarium_api::v1alpha1::{EnvironmentTemplate, EnvironmentVolume, JournalStore, VirtualEnvironment};

use super::placement::Candidate;
use super::standby::Host;
use super::{holder, incarnation, leave};
use crate::nodes::{Death, Deaths, is_superseded};

/// What is observed around one environment.
#[derive(Clone, Debug)]
pub struct World {
    /// The environment.
    pub environment: Arc<VirtualEnvironment>,
    /// The template that it names.
    pub template: Option<Arc<EnvironmentTemplate>>,
    /// The volume that it names, whosever it is.
    pub volume: Option<Arc<EnvironmentVolume>>,
    /// The volume of the environment that `spec.source` names, while the volume is still to be made.
    pub source: Option<Arc<EnvironmentVolume>>,
    /// Persistent volume of that volume.
    pub persistent_volume: Option<Arc<PersistentVolume>>,
    /// Claim of that volume.
    pub claim: Option<Arc<PersistentVolumeClaim>>,
    /// Service with the name of the environment.
    pub service: Option<Arc<Service>>,
    /// Pods with the environment's label that it owns, in no order.
    pub pods: Vec<Arc<Pod>>,
    /// Keys of the Secrets that the spec names; `None` when they were not looked at.
    pub secrets: Option<Secrets>,
    /// The stores of journals, in the order of their names.
    pub stores: Vec<Arc<JournalStore>>,
    /// What is known of nodes.
    pub nodes: Nodes,
    /// Sessions of nodes that are over or being ended.
    pub deaths: Arc<Deaths>,
    /// Nodes on which nothing should be started, because they are silent or their session is being ended.
    pub silent: BTreeSet<String>,
    /// What acting on this world met already.
    pub met: Met,
}

/// What the API server answered in the same run, and what no object says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Met {
    /// Highest epoch whose pod name is taken by somebody else's pod.
    pub taken: u64,
    /// Why the API server does not let the pod of the next incarnation be made.
    pub pod_refused: Option<String>,
    /// Why the resources of the running pod cannot be changed in place.
    pub resize_refused: Option<String>,
}

/// Keys by name of Secret; `None`: there is no such Secret.
pub type Secrets = BTreeMap<String, Option<BTreeSet<String>>>;

/// What is known of nodes.
#[derive(Clone, Debug, Default)]
pub struct Nodes {
    /// Whether any node has a pool.
    pub any_pool: bool,
    /// The node that holds the volume's data; `None` before it was placed.
    pub of_volume: Option<NodeState>,
    /// Session of the driver on the node that the newest pod is bound to; `None`: no lease, or not bound.
    pub session: Option<String>,
    /// Session of the driver on the node that holds the volume; `None`: no lease, or nobody holds it.
    pub of_holder: Option<String>,
    /// The nodes with a pool, while the newest pod has none.
    pub candidates: Vec<Candidate>,
    /// Nodes with a pool, in no order; empty where no decision needs them.
    pub hosts: Vec<Host>,
}

/// Whether whoever held a volume last can still run on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tenure {
    /// For all that is known.
    Lives,
    /// Its end cannot be stopped any more, but has not come yet.
    Ends,
    /// Not any more, and for ever.
    Over,
}

/// Whether a node can run pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeState {
    /// There is no such node.
    Gone,
    /// It does not report, or reports that it is not ready.
    NotReady,
    /// It is ready.
    Ready,
}

impl World {
    /// Name of the environment.
    #[must_use]
    pub fn name(&self) -> &str {
        self.environment.metadata.name.as_deref().unwrap_or_default()
    }

    /// UID of the environment.
    #[must_use]
    pub fn uid(&self) -> &str {
        self.environment.metadata.uid.as_deref().unwrap_or_default()
    }

    /// Whether an object is a child of this very environment, not of a former one of the same name.
    pub fn owns<K: ResourceExt>(&self, object: &K) -> bool {
        object.owner_references().iter().any(|owner| owner.uid == self.uid())
    }

    /// The volume, if it is this environment's.
    #[must_use]
    pub fn own_volume(&self) -> Option<&EnvironmentVolume> {
        self.volume.as_deref().filter(|v| v.spec.environment.as_deref() == Some(self.name()))
    }

    /// The store of that name.
    #[must_use]
    pub fn store(&self, name: &str) -> Option<&JournalStore> {
        self.stores.iter().map(AsRef::as_ref).find(|store| store.metadata.name.as_deref() == Some(name))
    }

    /// Name of the store that a volume's journal is in, if every node reaches it.
    fn shared_store(&self, volume: &EnvironmentVolume) -> Option<String> {
        let name = volume.log()?.store;
        self.store(&name).filter(|store| store.spec.s3.is_some()).map(|_| name)
    }

    /// Whether the journal of a volume is in a store that every node reaches.
    #[must_use]
    pub fn is_shared(&self, volume: &EnvironmentVolume) -> bool {
        self.shared_store(volume).is_some()
    }

    /// Whether any node can bring a volume back: all that counts is in a store that every node reaches. It is not while an
    /// incarnation has it, or ended without a last commit on a node that may still make it.
    #[must_use]
    pub fn is_movable(&self, volume: &EnvironmentVolume) -> bool {
        let released = volume.status.as_ref().is_some_and(|s| s.released_epoch >= s.epoch);
        self.shared_store(volume).is_some() && (released || self.tenure(volume) == Tenure::Over)
    }

    /// Whether whoever held a volume last can still run on it. Without a store that every node reaches nobody else could
    /// take it over, so nothing ends it.
    #[must_use]
    pub fn tenure(&self, volume: &EnvironmentVolume) -> Tenure {
        let (Some(store), Some(status)) = (self.shared_store(volume), &volume.status) else { return Tenure::Lives };
        let death = match &status.holder {
            Some(holder) => {
                if self.nodes.of_holder.as_ref().is_some_and(|now| is_superseded(&holder.session, now)) {
                    return Tenure::Over;
                }
                self.deaths.get(&holder.session)
            }
            // Released, but perhaps not committed to the end: under the session that its node has now.
            None => status.node.as_deref().and_then(|node| self.death_of(node)),
        };
        match death {
            None => Tenure::Lives,
            Some(death) if death.over.get(&store).is_some_and(Option::is_some) => Tenure::Over,
            Some(_) => Tenure::Ends,
        }
    }

    /// The death of a node, unless it is back.
    #[must_use]
    pub fn death_of(&self, node: &str) -> Option<&Death> {
        self.deaths.values().find(|death| death.node == node && !death.is_back)
    }

    /// Whether nothing of a pod can run, because its node is dead and its time was waited out.
    #[must_use]
    pub fn is_dead(&self, pod: &Pod) -> bool {
        let log = self.volume.as_ref().and_then(|volume| volume.log());
        let death = incarnation::node(pod).and_then(|node| self.death_of(node));
        log.is_some_and(|log| death.is_some_and(|death| death.over.get(&log.store).is_some_and(Option::is_some)))
    }

    /// Whether nothing of a pod can run or write any more: its node is dead and its time was waited out, the session is over
    /// under which it had the volume, or it never had it and its node is silent.
    #[must_use]
    pub fn is_over(&self, pod: &Pod) -> bool {
        let had = |volume: &&EnvironmentVolume| holder::holds(volume, pod.metadata.uid.as_deref());
        let ended = self.own_volume().filter(had).is_some_and(|volume| self.tenure(volume) == Tenure::Over);
        ended || self.is_dead(pod) || self.is_unreached(pod)
    }

    /// Whether a pod that is being deleted has had the volume for the last time: it is unmounted, and what was written last
    /// is committed. What the kubelet still clears away then is in nobody's way.
    #[must_use]
    pub fn has_given_back(&self, pod: &Pod) -> bool {
        let released = self.own_volume().and_then(|v| v.status.as_ref()).map_or(0, |status| status.released_epoch);
        pod.metadata.deletion_timestamp.is_some() && released > 0 && self.epoch_of(pod) <= released
    }

    /// Whether a pod is on a node that is silent and never got the volume, so that nothing of it can run there.
    #[must_use]
    pub fn is_unreached(&self, pod: &Pod) -> bool {
        let has_volume =
            self.volume.as_deref().is_some_and(|volume| holder::holds(volume, pod.metadata.uid.as_deref()));
        let silent = incarnation::node(pod).is_some_and(|node| self.silent.contains(node));
        silent && !has_volume && !incarnation::was_started(pod)
    }

    /// Nodes on which nothing should be started.
    #[must_use]
    pub fn dead_nodes(&self) -> BTreeSet<String> {
        let dead = self.deaths.values().filter(|death| !death.is_back).map(|death| &death.node);
        dead.chain(&self.silent).cloned().collect()
    }

    /// Nodes that the next incarnation must not go to: those, and the one that it shall leave.
    #[must_use]
    pub fn avoided(&self) -> BTreeSet<String> {
        let mut avoided = self.dead_nodes();
        avoided.extend(leave::left(self));
        avoided
    }

    /// Epoch of a pod of this environment; 0 if its name is not one that the operator gives.
    #[must_use]
    pub fn epoch_of(&self, pod: &Pod) -> u64 {
        names::epoch_of_pod(self.name(), pod.metadata.name.as_deref().unwrap_or_default()).unwrap_or(0)
    }

    /// The pod of the newest incarnation.
    #[must_use]
    pub fn newest_pod(&self) -> Option<&Arc<Pod>> {
        self.pods.iter().max_by_key(|pod| self.epoch_of(pod))
    }

    /// Highest epoch that was ever seen to be used.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        let of_status = self.environment.status.as_ref().map_or(0, |s| s.epoch);
        let of_volume = self.own_volume().and_then(|v| v.status.as_ref()).map_or(0, |s| s.epoch);
        let of_pods = self.newest_pod().map_or(0, |pod| self.epoch_of(pod));
        of_status.max(of_volume).max(of_pods)
    }
}

/// Name of the volume that an environment uses.
#[must_use]
pub fn volume_name(environment: &VirtualEnvironment) -> &str {
    let own = environment.metadata.name.as_deref().unwrap_or_default();
    environment.spec.volume.name.as_deref().unwrap_or(own)
}
