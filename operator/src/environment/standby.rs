//! Which node keeps the copy that follows a volume's journal: another one than that which has the volume, best in another
//! zone, and always the same while nothing speaks against it.
//!
//! The node of a move ([`super::moves`]) comes first, because the environment is stopped only when its copy is there.

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use vivarium_api::v1alpha1::EnvironmentVolume;
use vivarium_api::v1alpha1::condition;
use vivarium_api::v1alpha1::volume::StandbyStatus;

use super::decision::Action;
use super::dereference::node_state;
use super::moves;
use super::world::{NodeState, World};

/// Label of the zone that a node is in.
const ZONE: &str = "topology.kubernetes.io/zone";
/// Type of the condition that the node with the copy writes.
const STANDBY: &str = "Standby";

/// A node that could run environments, or did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// Its zone.
    pub zone: Option<String>,
    /// Whether the environment could be started there now.
    pub fits: bool,
}

impl Host {
    /// What matters for an environment of a node with a pool.
    #[must_use]
    pub fn of(node: &Node, world: &World) -> Self {
        let labels = node.labels();
        let selector = world.environment.spec.placement.iter().flat_map(|placement| &placement.node_selector);
        let selected = selector.into_iter().all(|(key, value)| labels.get(key) == Some(value));
        let closed = node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true);
        let fits = selected && !closed && node_state(Some(node)) == NodeState::Ready;
        Self { name: node.name_any(), zone: labels.get(ZONE).cloned(), fits }
    }
}

/// The node that is to keep the copy; `None`: no node is, or none can.
#[must_use]
pub fn choose(world: &World, volume: &EnvironmentVolume) -> Option<String> {
    let status = volume.status.as_ref()?;
    // Before it was first placed there is nothing to follow.
    let holder = status.node.as_deref()?;
    if !world.is_shared(volume) {
        return None;
    }
    if let Ok(Some(target)) = moves::target(world)
        && target != holder
    {
        return Some(target.to_owned());
    }
    if volume.spec.standby == 0 {
        return None;
    }
    let hosts = &world.nodes.hosts;
    let can = |host: &&Host| host.fits && host.name != holder && world.death_of(&host.name).is_none();
    let current = status.standby.as_ref().map(|standby| standby.node.as_str());
    // Also while it is silent: it may be back in a moment, and another copy costs as much as the volume.
    if let Some(host) = hosts.iter().filter(can).find(|host| Some(host.name.as_str()) == current) {
        return Some(host.name.clone());
    }
    let dead = world.dead_nodes();
    let can = |host: &&Host| can(host) && !dead.contains(&host.name);
    let zone = hosts.iter().find(|host| host.name == holder).and_then(|host| host.zone.as_deref());
    let uid = volume.uid().unwrap_or_default();
    let rank = |host: &&Host| {
        let elsewhere = zone.is_some() && host.zone.as_deref() != zone;
        (elsewhere, *blake3::hash(format!("{uid}/{}", host.name).as_bytes()).as_bytes())
    };
    hosts.iter().filter(can).max_by_key(rank).map(|host| host.name.clone())
}

/// Whether a node keeps a copy that holds all that was in the journal a moment ago.
#[must_use]
pub fn is_ready(volume: &EnvironmentVolume, node: &str) -> bool {
    let Some(status) = &volume.status else { return false };
    status.standby.as_ref().is_some_and(|standby| standby.node == node && standby.sequence.is_some())
        && condition::is_true(&status.conditions, STANDBY)
}

/// What is to be written so that the chosen node is the one that is named. Nothing beside another change of the same object,
/// which would make this one's resourceVersion stale.
#[must_use]
pub fn settle(world: &World, actions: &[Action]) -> Option<Action> {
    let changes = |action: &Action| {
        matches!(action, Action::ReplaceVolume(..) | Action::ReplaceVolumeStatus(_) | Action::DeleteVolume(_))
    };
    let volume = world.own_volume().filter(|volume| volume.metadata.deletion_timestamp.is_none())?;
    if actions.iter().any(changes) {
        return None;
    }
    let current = volume.status.as_ref().and_then(|status| status.standby.as_ref()).map(|standby| &standby.node);
    let wanted = choose(world, volume);
    if current == wanted.as_ref() {
        return None;
    }
    let mut volume = volume.clone();
    let status = volume.status.get_or_insert_default();
    status.standby = wanted.map(|node| StandbyStatus { node, sequence: None });
    // It spoke of the copy on the other node.
    status.conditions.retain(|condition| condition.type_ != STANDBY);
    Some(Action::ReplaceVolumeStatus(Box::new(volume)))
}
