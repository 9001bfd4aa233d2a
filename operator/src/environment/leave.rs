//! An environment that somebody wants to leave its node now, by the annotation [`names::ANNOTATION_MOVE_FROM`]: the epoch of
//! the incarnation that is meant. It is shut down in order, what it wrote last is committed, and the next incarnation is
//! started on any other node. A later incarnation is not meant, so nobody has to take the annotation off.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use vivarium_api::names;

use super::incarnation;
use super::status::Verdict;
use super::world::World;

/// What follows for the incarnation that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leave {
    /// Nobody asked for it.
    No,
    /// It cannot, and why.
    Refused(Verdict),
    /// It is stopped.
    Now,
}

fn epoch(world: &World) -> Option<u64> {
    world.environment.annotations().get(names::ANNOTATION_MOVE_FROM)?.parse().ok()
}

/// Whether the incarnation of a pod shall leave its node, and can.
#[must_use]
pub fn leave(world: &World, pod: &Pod) -> Leave {
    if epoch(world) != Some(world.epoch_of(pod)) {
        return Leave::No;
    }
    let refused = |why: String| {
        Leave::Refused(Verdict::no("CannotMove", format!("{} asks for a move: {why}", names::ANNOTATION_MOVE_FROM)))
    };
    let node = incarnation::node(pod).unwrap_or_default();
    if !world.volume.as_deref().is_some_and(|volume| world.is_shared(volume)) {
        return refused(format!(
            "no other node than {node} can have the data of this environment, because its journal is in no store that all \
             nodes reach"
        ));
    }
    if world.silent.contains(node) {
        return refused(format!(
            "node {node} is silent, so nobody there can stop the environment in order. If the node does not come back, it \
             is ended by itself; to end it now with all that runs on it: kubectl ve fence {node}"
        ));
    }
    Leave::Now
}

/// The node that the next incarnation must not go to.
#[must_use]
pub fn left(world: &World) -> Option<String> {
    let status = world.own_volume()?.status.as_ref()?;
    epoch(world).filter(|epoch| *epoch >= status.epoch).and(status.node.clone())
}
