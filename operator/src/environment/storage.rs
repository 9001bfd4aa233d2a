//! What an environment needs beside its pod: its volume, the way to it, its boot configuration, its Service. Decides what
//! is missing or different; the first thing that cannot be had is the refusal.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::ResourceExt;
use serde::Serialize;
use vivarium_api::v1alpha1::EnvironmentVolume;

use super::build;
use super::compare::covers;
use super::decision::{Action, Child, ChildKind, Doomed, Refusal, VolumeChange};
use super::validate;
use super::world::World;

/// The volume of the environment, ready to be given to an incarnation; on the way to that, what has to be done.
pub fn volume<'a>(world: &'a World, actions: &mut Vec<Action>) -> Result<&'a EnvironmentVolume, Refusal> {
    let Some(volume) = world.volume.as_deref() else {
        validate::volume_not_lost(world)?;
        let template = validate::template(world)?;
        let store = validate::store(world)?;
        let source = validate::source(world)?;
        if source.is_some() && store.is_none() {
            let message = "an environment with spec.source needs a JournalStore for its own journal: create one with the \
                           name `default`, or name another one in spec.durability";
            return Err(Refusal::stalled("StoreNotFound", message.into()));
        }
        let made = build::volume(&world.environment, template, store)
            .map(|made| build::branched(made, source, &world.environment));
        let made = made.ok_or_else(|| {
            let name = template.name_any();
            Refusal::waiting("TemplateNotReady", format!("EnvironmentTemplate `{name}` is being resolved to a digest"))
        })?;
        actions.push(Action::CreateVolume(Box::new(made)));
        return Err(Refusal::waiting("Preparing", "the volume is being made".into()));
    };
    let volume = validate::volume(world, volume)?;
    if volume.spec.environment.is_none() {
        let adopted = Box::new(build::adopted(&world.environment, volume));
        actions.push(Action::ReplaceVolume(adopted, VolumeChange::Adopted));
        return Err(Refusal::waiting("Preparing", "the volume is being taken over".into()));
    }
    if let Some(grown) = build::grown(&world.environment, volume) {
        actions.push(Action::ReplaceVolume(Box::new(grown), VolumeChange::Grown));
    } else if let Some(copied) = build::copied(&world.environment, volume) {
        actions.push(Action::ReplaceVolume(Box::new(copied), VolumeChange::Copied));
    // A store that cannot be had is no reason to stop anything: the condition `Durable` says so.
    } else if let Some(stored) = validate::store_of(world, volume).ok().and_then(|wanted| build::stored(volume, wanted))
    {
        actions.push(Action::ReplaceVolume(Box::new(stored), VolumeChange::Stored));
    }
    Ok(volume)
}

/// The other children. What can be done is done also when something else is refused.
pub fn children(world: &World, volume: &EnvironmentVolume, actions: &mut Vec<Action>) -> Result<(), Refusal> {
    service(world, actions);
    validate::names_free(world)?;
    persistent_volume(world, volume, actions)?;
    claim(world, volume, actions)
}

/// The Service follows the spec at any time.
fn service(world: &World, actions: &mut Vec<Action>) {
    let observed = world.service.as_deref();
    match build::service(&world.environment) {
        Some(wanted) => {
            if observed.is_none_or(|o| world.owns(o) && differs(&wanted, Some(o))) {
                actions.push(Action::Apply(Child::Service(Box::new(as_known(wanted, observed)))));
            }
        }
        None => {
            if let Some(observed) = observed.filter(|o| world.owns(*o) && o.metadata.deletion_timestamp.is_none()) {
                actions.push(Action::Delete(ChildKind::Service, doomed(observed)));
            }
        }
    }
}

fn persistent_volume(world: &World, volume: &EnvironmentVolume, actions: &mut Vec<Action>) -> Result<(), Refusal> {
    let observed = world.persistent_volume.as_deref();
    if observed.is_some_and(|pv| pv.metadata.deletion_timestamp.is_some()) {
        return Err(Refusal::waiting("Preparing", "the former PersistentVolume is being deleted".into()));
    }
    // Once its claim was deleted it stays `Released` and would never be bound again.
    if let Some(released) = observed.filter(|pv| is_released(pv)) {
        actions.push(Action::Delete(ChildKind::PersistentVolume, doomed(released)));
        return Err(Refusal::waiting("Preparing", "the PersistentVolume is being made anew".into()));
    }
    match build::persistent_volume(&world.environment, volume) {
        Some(wanted) if differs(&wanted, observed) => {
            actions.push(Action::Apply(Child::PersistentVolume(Box::new(as_known(wanted, observed)))));
        }
        _ => {}
    }
    Ok(())
}

fn claim(world: &World, volume: &EnvironmentVolume, actions: &mut Vec<Action>) -> Result<(), Refusal> {
    let observed = world.claim.as_deref();
    if observed.is_some_and(|claim| claim.metadata.deletion_timestamp.is_some()) {
        return Err(Refusal::waiting("Preparing", "the former claim of the volume is being deleted".into()));
    }
    let Some(wanted) = build::claim(&world.environment, volume) else { return Ok(()) };
    match observed {
        // A claim cannot be changed. One that leads elsewhere, or nowhere any more, is made anew.
        Some(claim) if is_lost(claim) || differs(&wanted, Some(claim)) => {
            if world.pods.is_empty() {
                actions.push(Action::Delete(ChildKind::Claim, doomed(claim)));
            }
            Err(Refusal::waiting("Preparing", "the claim of the volume is being made anew".into()))
        }
        Some(claim) => validate::bound(Some(claim)),
        None => {
            actions.push(Action::Apply(Child::Claim(Box::new(wanted))));
            validate::bound(None)
        }
    }
}

fn is_released(volume: &PersistentVolume) -> bool {
    matches!(volume.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Released" | "Failed"))
}

fn is_lost(claim: &PersistentVolumeClaim) -> bool {
    claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Lost")
}

/// The wanted object as a change of the observed one and of no other that has its name by then: the API server refuses
/// to apply to an object of another UID.
fn as_known<K: ResourceExt>(mut wanted: K, observed: Option<&K>) -> K {
    wanted.meta_mut().uid = observed.and_then(ResourceExt::uid);
    wanted
}

/// An object by name and UID.
pub fn doomed<K: ResourceExt>(object: &K) -> Doomed {
    Doomed { name: object.name_any(), uid: object.uid() }
}

/// Whether the observed object lacks something that is wanted. Objects that cannot be compared are applied again.
fn differs<K: Serialize>(wanted: &K, observed: Option<&K>) -> bool {
    let Some(observed) = observed else { return true };
    match (serde_json::to_value(wanted), serde_json::to_value(observed)) {
        (Ok(wanted), Ok(observed)) => !covers(&observed, &wanted),
        _ => true,
    }
}
