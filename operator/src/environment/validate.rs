//! What an environment needs before it can start, checked one by one. Each check gives a [`Refusal`] that says what to do.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::{Resource, ResourceExt};
use vivarium_api::names;
use vivarium_api::v1alpha1::store::Tolerance;
use vivarium_api::v1alpha1::{
    Condition, EnvironmentTemplate, EnvironmentVolume, JournalStore, VirtualEnvironment, condition,
};

use super::build;
use super::decision::Refusal;
use super::world::{World, volume_name};
use crate::quantity::Amount;

/// How often Secrets are looked up again: the operator may read those that a spec names, and watch none.
const SECRETS_AGAIN: Duration = Duration::from_secs(5);

/// How often a source that is not there is looked up again.
const SOURCE_AGAIN: Duration = Duration::from_secs(10);

/// `JournalStore` of environments that do not say what they want.
const DEFAULT_STORE: &str = "default";

/// The template, if a volume can be made from it.
pub fn template(world: &World) -> Result<&EnvironmentTemplate, Refusal> {
    let name = &world.environment.spec.template.name;
    let Some(template) = world.template.as_deref() else {
        return Err(Refusal::stalled(
            "TemplateNotFound",
            format!(
                "there is no EnvironmentTemplate `{name}`: create it, or name another one (kubectl get et lists them)"
            ),
        ));
    };
    let conditions = template.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    let current = template.status.as_ref().map(|s| s.observed_generation) >= template.metadata.generation;
    if current && condition::is_true(conditions, "Ready") {
        return Ok(template);
    }
    let ready: Option<&Condition> = condition::find(conditions, "Ready");
    let why = ready.filter(|c| !c.message.is_empty()).map_or_else(
        || "no node has looked at it yet; if that stays so, see whether the node driver runs".to_owned(),
        |c| format!("{}: {}", c.reason, c.message),
    );
    Err(Refusal {
        reason: "TemplateNotReady",
        message: format!("EnvironmentTemplate `{name}` is not ready. {why}"),
        stalled: condition::is_true(conditions, "Stalled"),
        again: None,
    })
}

/// The store that is to keep the journal of a new volume; `None`: there is none, and the data is on its node alone.
pub fn store(world: &World) -> Result<Option<String>, Refusal> {
    let durability = world.environment.spec.durability.clone().unwrap_or_default();
    if let Some(name) = durability.store {
        return match world.store(&name) {
            Some(_) => Ok(Some(name)),
            None => Err(Refusal::stalled(
                "StoreNotFound",
                format!(
                    "there is no JournalStore `{name}`, which spec.durability.store names: create it, or name another \
                     one (kubectl get js lists them)"
                ),
            )),
        };
    }
    let Some(wanted) = durability.tolerate else { return Ok(world.store(DEFAULT_STORE).map(ResourceExt::name_any)) };
    let rank = |tolerates: &Tolerance| (tolerates.domain, tolerates.failures);
    let enough = |store: &&Arc<JournalStore>| store.spec.tolerates.is_enough_for(&wanted);
    let chosen = world.stores.iter().filter(enough).min_by_key(|store| rank(&store.spec.tolerates));
    chosen.map(|store| Some(store.name_any())).ok_or_else(|| {
        Refusal::stalled(
            "NoStoreTolerates",
            format!(
                "no JournalStore tolerates {} failures of a {:?}, as spec.durability wants: create one, or want less \
                 (kubectl get js shows what each tolerates)",
                wanted.failures, wanted.domain
            ),
        )
    })
}

/// The store that the journal of a volume should be in by what its environment must survive now. The one that it is in, as
/// long as that is enough.
pub fn store_of(world: &World, volume: &EnvironmentVolume) -> Result<Option<String>, Refusal> {
    let current = volume.spec.store.clone();
    let is_enough = |wanted: &Tolerance| {
        let store = current.as_deref().and_then(|name| world.store(name));
        store.is_some_and(|store| store.spec.tolerates.is_enough_for(wanted))
    };
    match world.environment.spec.durability.as_ref().map(|wanted| (&wanted.store, &wanted.tolerate)) {
        Some((Some(_), _)) => store(world),
        Some((None, Some(wanted))) if !is_enough(wanted) => store(world),
        _ => Ok(current),
    }
}

/// The volume whose state a new one is to begin with; `None`: it begins with the bare template.
pub fn source(world: &World) -> Result<Option<&EnvironmentVolume>, Refusal> {
    let Some(source) = &world.environment.spec.source else { return Ok(None) };
    let name = &source.environment;
    let Some(volume) = world.source.as_deref() else {
        let message = format!(
            "there is no VirtualEnvironment `{name}` with a volume in this namespace, which spec.source names: \
             correct it (kubectl get ve lists those that there are), or create that one"
        );
        return Err(Refusal { again: Some(SOURCE_AGAIN), ..Refusal::stalled("SourceNotFound", message) });
    };
    if volume.log().is_none() {
        let message = format!(
            "environment `{name}`, which spec.source names, has no journal: its former states are not known, and its \
             volume is on its node alone. Name another one, or give that one a store (spec.durability.store)"
        );
        return Err(Refusal::stalled("NotJournaled", message));
    }
    let (wanted, template) = (&world.environment.spec.template.name, &volume.spec.template.name);
    if wanted != template {
        let message = format!(
            "environment `{name}`, which spec.source names, lies on template `{template}`, and this one on `{wanted}`: \
             create it anew with the template of its source"
        );
        return Err(Refusal::stalled("VolumeTemplateMismatch", message));
    }
    let made = world.environment.metadata.creation_timestamp.as_ref();
    let at = source.at.parse::<Timestamp>().ok();
    if let (Some(made), Some(at)) = (made, at)
        && at > made.0
    {
        let message = format!(
            "spec.source.at {at} had not come yet when this environment was made ({}): create it anew with a time \
             that has passed",
            made.0
        );
        return Err(Refusal::stalled("NoSuchState", message));
    }
    Ok(Some(volume))
}

/// The volume that already exists, if this environment has it or can take it.
pub fn volume<'a>(world: &World, volume: &'a EnvironmentVolume) -> Result<&'a EnvironmentVolume, Refusal> {
    let name = volume.name_any();
    if let Some(user) = volume.spec.environment.as_deref().filter(|user| *user != world.name()) {
        return Err(Refusal::stalled(
            "VolumeInUse",
            format!(
                "EnvironmentVolume `{name}` is used by environment `{user}`: name another volume, or delete that \
                 environment with deletionPolicy Retain"
            ),
        ));
    }
    if volume.metadata.deletion_timestamp.is_some() {
        return Err(Refusal::stalled(
            "VolumeDeleted",
            format!(
                "EnvironmentVolume `{name}` is being deleted with all data: delete the environment and create it anew"
            ),
        ));
    }
    if volume.spec.template.name != world.environment.spec.template.name {
        return Err(Refusal::stalled(
            "VolumeTemplateMismatch",
            format!(
                "EnvironmentVolume `{name}` holds changes against template `{}`, and the environment names template \
                 `{}`: create the environment anew with the volume's template, or without the volume",
                volume.spec.template.name, world.environment.spec.template.name
            ),
        ));
    }
    if volume.spec.environment.is_none() && world.environment.spec.source.is_some() {
        return Err(Refusal::stalled(
            "NameConflict",
            format!(
                "EnvironmentVolume `{name}` was retained and has a tree of its own, and spec.source asks for another: create \
                 the environment anew under another name, or without spec.source to take that volume over, or delete it"
            ),
        ));
    }
    let used = volume.status.as_ref().and_then(|s| s.used_bytes);
    let disk = &world.environment.spec.resources.disk;
    match (used, Amount::of(disk)) {
        (Some(used), Some(wanted)) if volume.spec.environment.is_none() && wanted < Amount::from_units(used) => {
            Err(Refusal::stalled(
                "DiskTooSmall",
                format!(
                    "EnvironmentVolume `{name}` holds {used} bytes, more than spec.resources.disk {} allows: ask for a \
                     larger disk",
                    disk.0
                ),
            ))
        }
        _ => Ok(volume),
    }
}

/// A volume that an environment ran on before must not be replaced by an empty one.
pub fn volume_not_lost(world: &World) -> Result<(), Refusal> {
    let status = world.environment.status.as_ref();
    let name = volume_name(&world.environment);
    if status.is_some_and(|s| s.epoch > 0 && s.volume_name.as_deref() == Some(name)) {
        return Err(Refusal::stalled(
            "VolumeLost",
            format!(
                "EnvironmentVolume `{name}`, which held everything that was changed in this environment, is gone. \
                 Nothing is started without it: delete the environment and create it anew to start from the template"
            ),
        ));
    }
    Ok(())
}

/// Whether an environment names Secrets.
#[must_use]
pub fn names_secrets(environment: &VirtualEnvironment) -> bool {
    environment.spec.root.as_ref().is_some_and(|root| !root.authorized_keys_from.is_empty())
}

/// Every Secret that the spec names exists and has the key.
pub fn secrets(world: &World) -> Result<(), Refusal> {
    let (Some(root), Some(known)) = (&world.environment.spec.root, &world.secrets) else { return Ok(()) };
    for source in &root.authorized_keys_from {
        let wanted = &source.secret_ref;
        let refusal = match known.get(&wanted.name) {
            Some(Some(keys)) if keys.contains(&wanted.key) => continue,
            Some(Some(keys)) => {
                let there = keys.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
                let there = if there.is_empty() { "no keys".to_owned() } else { format!("only {there}") };
                let message = format!(
                    "Secret `{}` has no key `{}` ({there}): add it, or name another key in spec.root.authorizedKeysFrom",
                    wanted.name, wanted.key
                );
                Refusal::stalled("SecretKeyNotFound", message)
            }
            _ => Refusal::stalled(
                "SecretNotFound",
                format!(
                    "there is no Secret `{}` in this namespace: create it with key `{}`, or take it out of \
                     spec.root.authorizedKeysFrom",
                    wanted.name, wanted.key
                ),
            ),
        };
        return Err(Refusal { again: Some(SECRETS_AGAIN), ..refusal });
    }
    Ok(())
}

/// No object of somebody else has a name that this environment needs.
pub fn names_free(world: &World) -> Result<(), Refusal> {
    let needs_service = build::service(&world.environment).is_some();
    let taken = [
        world.claim.as_deref().filter(|o| !world.owns(*o)).map(|o| ("PersistentVolumeClaim", o.name_any())),
        world.service.as_deref().filter(|o| needs_service && !world.owns(*o)).map(|o| ("Service", o.name_any())),
        world.persistent_volume.as_deref().filter(|o| !is_for(world, o)).map(|o| ("PersistentVolume", o.name_any())),
    ];
    match taken.into_iter().flatten().next() {
        Some((kind, name)) => Err(Refusal::stalled(
            "NameConflict",
            format!(
                "a {kind} `{name}` exists that does not belong to this environment, which needs the name: delete it, or \
                 create the environment under another name"
            ),
        )),
        None => Ok(()),
    }
}

/// Whether a persistent volume is for this environment's namespace. It has no owner reference: it is not namespaced.
#[must_use]
pub fn is_for(world: &World, volume: &PersistentVolume) -> bool {
    let claim = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
    claim.is_some_and(|c| {
        c.namespace == world.environment.meta().namespace
            && c.name.as_deref() == Some(&names::claim(volume_name(&world.environment)))
    })
}

/// The claim is bound, so that the scheduler will not look at the pod in vain.
pub fn bound(claim: Option<&PersistentVolumeClaim>) -> Result<(), Refusal> {
    let Some(claim) = claim else {
        return Err(Refusal::waiting("Preparing", "the claim of the volume is being made".into()));
    };
    match claim.status.as_ref().and_then(|s| s.phase.as_deref()) {
        Some("Bound") => Ok(()),
        Some("Lost") => Err(Refusal::stalled(
            "ClaimLost",
            format!(
                "PersistentVolumeClaim `{}` lost its PersistentVolume: delete the claim, it is made again",
                claim.name_any()
            ),
        )),
        _ => Err(Refusal::waiting("Preparing", "the claim of the volume is being bound".into())),
    }
}
