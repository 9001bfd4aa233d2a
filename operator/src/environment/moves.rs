//! Planned moves: the annotation [`names::ANNOTATION_MOVE_TO`] of an environment names the node that it is to go to.
//!
//! The node makes a copy that follows the journal ([`super::standby`]) while the environment goes on. Once that has caught
//! up the environment is shut down in order, what it wrote last is committed, and the next incarnation is started on that
//! node and no other. Then the annotation is taken off. The environment does not answer for as long as it takes to shut
//! down and to boot; `status.lastMove` has the instants.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::ResourceExt;
use vivarium_api::names;
use vivarium_api::v1alpha1::EnvironmentVolume;
use vivarium_api::v1alpha1::environment::LastMove;

use super::status::Verdict;
use super::world::World;
use super::{incarnation, leave, standby};

/// How long until a move is tried again that ended where it began.
const RETRY: Duration = Duration::from_secs(600);

/// The node that the environment is to be moved to; `None`: it is not to be moved. An error says why it cannot be.
///
/// # Errors
/// A sentence for people.
pub fn target(world: &World) -> Result<Option<&str>, String> {
    let Some(node) = world.environment.annotations().get(names::ANNOTATION_MOVE_TO) else { return Ok(None) };
    let what = format!("the annotation {} asks for node `{node}`", names::ANNOTATION_MOVE_TO);
    let Some(host) = world.nodes.hosts.iter().find(|host| host.name == *node) else {
        return Err(format!("{what}, and there is no such node with a pool: correct the annotation, or take it off"));
    };
    if !host.fits || world.dead_nodes().contains(node) {
        return Err(format!(
            "{what}, which is not ready, is cordoned or silent, or does not have the labels of spec.placement.nodeSelector"
        ));
    }
    if leave::left(world).as_ref() == Some(node) {
        return Err(format!("{what}, and {} for the environment to leave that node", names::ANNOTATION_MOVE_FROM));
    }
    if world.own_volume().is_some_and(|volume| !world.is_shared(volume)) {
        return Err(format!(
            "{what}, and no other node than its own can have the data of this environment: its journal is in no store \
             that all nodes reach"
        ));
    }
    Ok(Some(node))
}

/// What is to be done about a move while an incarnation runs on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// There is no move.
    None,
    /// It is where it shall be.
    Done,
    /// Not yet, or not at all, for this reason.
    Waits(Verdict),
    /// Not before that time, for this reason.
    Later(Duration, Verdict),
    /// The copy is there: the incarnation can be stopped.
    Stop(LastMove),
}

/// Decides for incarnation `epoch` on `node`.
#[must_use]
pub fn step(world: &World, volume: &EnvironmentVolume, epoch: u64, node: &str, now: Timestamp) -> Step {
    // It is there, also if it could not be brought there now.
    if world.environment.annotations().get(names::ANNOTATION_MOVE_TO).is_some_and(|target| target == node) {
        return Step::Done;
    }
    let target = match target(world) {
        Ok(None) => return Step::None,
        Ok(Some(target)) => target,
        Err(why) => return Step::Waits(Verdict::no("CannotMove", why)),
    };
    if !standby::is_ready(volume, target) {
        let message =
            format!("node {target} prepares a copy; the environment is stopped and started there once it is ready");
        return Step::Waits(Verdict::no("Moving", message));
    }
    if let Some(pause) = failed_lately(world, volume, epoch, target, now) {
        let message = format!(
            "the environment was stopped to be moved to {target}, and what it had written last did not reach the store: it \
             was started on {node} again. It is tried again in {} s; the condition Journaled of its volume says what is \
             wrong",
            pause.as_secs()
        );
        return Step::Later(pause, Verdict::no("CannotMove", message));
    }
    let (from_node, to_node) = (node.to_owned(), target.to_owned());
    let stopping = MicroTime(now);
    Step::Stop(LastMove { epoch, from_node, to_node, stopping, stopped: None, started: None, ready: None })
}

/// How long it is too early after a move to that node that ended where it began.
fn failed_lately(
    world: &World,
    volume: &EnvironmentVolume,
    epoch: u64,
    target: &str,
    now: Timestamp,
) -> Option<Duration> {
    let last = world.environment.status.as_ref()?.last_move.as_ref()?;
    let released = volume.status.as_ref().map_or(0, |status| status.released_epoch);
    let failed = last.to_node == target && last.epoch < epoch && released < last.epoch;
    let rest = RETRY.saturating_sub(now.duration_since(last.stopping.0).unsigned_abs());
    (failed && !rest.is_zero()).then_some(rest)
}

/// Notes the instants of a move that were reached since. What was noted stays.
#[must_use]
pub fn follow(world: &World, last: LastMove, ready: bool, now: Timestamp) -> LastMove {
    let mut last = last;
    let reached = |instant: &mut Option<MicroTime>, reached: bool| {
        if reached {
            instant.get_or_insert(MicroTime(now));
        }
    };
    let released = world.own_volume().and_then(|volume| volume.status.as_ref()).map_or(0, |s| s.released_epoch);
    reached(&mut last.stopped, released >= last.epoch);
    let next = world.newest_pod().filter(|pod| world.epoch_of(pod) > last.epoch);
    reached(&mut last.started, next.is_some_and(|pod| incarnation::began(pod)));
    reached(&mut last.ready, next.is_some() && ready);
    last
}
