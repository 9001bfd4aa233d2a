//! Deletion of an environment: in the order in which things depend on each other, each step waited for, nothing left.

use jiff::Timestamp;
use kube::ResourceExt;
use vivarium_api::names;
use vivarium_api::v1alpha1::environment::{DeletionPolicy, Phase};

use super::build;
use super::decision::{Action, ChildKind, Decision, VolumeChange};
use super::holder;
use super::status::{Outlook, Progress, Verdict, compose};
use super::storage::doomed;
use super::validate;
use super::world::World;

/// Decides the next step.
#[must_use]
pub fn decide(world: &World, now: Timestamp) -> Decision {
    let held = world.environment.finalizers().iter().any(|f| f == names::FINALIZER_ENVIRONMENT);
    let mut actions = Vec::new();
    let waits = if held { next(world, &mut actions) } else { None };
    if held && waits.is_none() && actions.is_empty() {
        actions.push(Action::RemoveFinalizer);
    }
    let message = waits.unwrap_or_else(|| "everything that belonged to the environment is gone".into());
    let ready = Verdict::no("Deleting", message);
    let outlook = Outlook::idle(world, Phase::Deleting, Progress::Reconciling, ready);
    Decision { status: compose(world, outlook, now), actions, again: None }
}

/// Pushes what can be done now and says what is waited for; `None` when nothing is left.
fn next(world: &World, actions: &mut Vec<Action>) -> Option<String> {
    if !world.pods.is_empty() {
        for pod in &world.pods {
            if world.is_over(pod) {
                actions.push(Action::RemovePod(doomed(pod.as_ref())));
            } else if pod.metadata.deletion_timestamp.is_none() {
                actions.push(Action::DeletePod(doomed(pod.as_ref())));
            }
        }
        let names: Vec<_> = world.pods.iter().map(|pod| pod.name_any()).collect();
        return Some(format!("shutting down: waiting until pod {} is gone", names.join(", ")));
    }
    let mut left = Vec::new();
    delete(world.service.as_deref().filter(|o| world.owns(*o)), ChildKind::Service, actions, &mut left);
    delete(world.claim.as_deref().filter(|o| world.owns(*o)), ChildKind::Claim, actions, &mut left);
    let own = world.own_volume();
    let persistent = world.persistent_volume.as_deref().filter(|o| own.is_some() && validate::is_for(world, o));
    delete(persistent, ChildKind::PersistentVolume, actions, &mut left);
    if !left.is_empty() {
        return Some(format!("waiting until {} is gone", left.join(", ")));
    }
    let volume = own?;
    let name = volume.name_any();
    if let Some(released) = holder::released(volume) {
        actions.push(Action::ReplaceVolumeStatus(Box::new(released)));
        return Some(format!("releasing EnvironmentVolume {name}"));
    }
    match world.environment.spec.volume.deletion_policy {
        DeletionPolicy::Delete => {
            if volume.metadata.deletion_timestamp.is_none() {
                actions.push(Action::DeleteVolume(doomed(volume)));
            }
            let node = volume.status.as_ref().and_then(|s| s.node.as_deref());
            let on = node.map(|node| format!(" on node {node}")).unwrap_or_default();
            Some(format!("waiting until the data of EnvironmentVolume {name}{on} is destroyed"))
        }
        // Somebody deleted the volume itself: it is not kept against that will, nor waited for.
        DeletionPolicy::Retain if volume.metadata.deletion_timestamp.is_some() => None,
        DeletionPolicy::Retain => {
            actions.push(Action::ReplaceVolume(Box::new(build::let_go(volume)), VolumeChange::LetGo));
            Some(format!("leaving EnvironmentVolume {name} to itself"))
        }
    }
}

fn delete<K: ResourceExt>(object: Option<&K>, kind: ChildKind, actions: &mut Vec<Action>, left: &mut Vec<String>) {
    let Some(object) = object else { return };
    if object.meta().deletion_timestamp.is_none() {
        actions.push(Action::Delete(kind, doomed(object)));
    }
    left.push(format!("{} {}", kind.as_str(), object.name_any()));
}
