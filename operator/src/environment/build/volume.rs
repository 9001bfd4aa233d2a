//! `EnvironmentVolume`: made for an environment, adopted by it, grown, and let go. It has no owner reference, because it
//! may outlive the environment.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use vivarium_api::names;
use vivarium_api::v1alpha1::volume::{VolumeLog, VolumeSource, VolumeTemplate};
use vivarium_api::v1alpha1::{EnvironmentTemplate, EnvironmentVolume, EnvironmentVolumeSpec, VirtualEnvironment};

use super::labels;
use crate::environment::world::volume_name;
use crate::quantity::Amount;

/// A new volume on the template's present content, with its journal in a store. `None` if the template is not resolved yet.
#[must_use]
pub fn volume(
    environment: &VirtualEnvironment,
    template: &EnvironmentTemplate,
    store: Option<String>,
) -> Option<EnvironmentVolume> {
    let status = template.status.as_ref()?;
    let digest = status.digest.as_deref()?;
    if status.layers.is_empty() {
        return None;
    }
    let spec = EnvironmentVolumeSpec {
        template: VolumeTemplate {
            name: environment.spec.template.name.clone(),
            image: by_digest(status.resolved_image.as_deref().unwrap_or(&template.spec.image), digest),
            layers: status.layers.clone(),
        },
        size: environment.spec.resources.disk.clone(),
        environment: environment.metadata.name.clone(),
        store,
        source: None,
        restore: None,
        standby: standby(environment),
    };
    let metadata = ObjectMeta {
        name: Some(volume_name(environment).to_owned()),
        namespace: environment.metadata.namespace.clone(),
        labels: Some(labels(environment)),
        finalizers: Some(vec![names::FINALIZER_VOLUME.to_owned()]),
        ..ObjectMeta::default()
    };
    Some(EnvironmentVolume { metadata, spec, status: None })
}

/// How many copies the environment wants.
fn standby(environment: &VirtualEnvironment) -> u32 {
    environment.spec.durability.as_ref().map_or(0, |durability| durability.standby)
}

/// The same volume, if it is to begin with a state of another one: on the very layers that the other one lies on, and at
/// least as large.
#[must_use]
pub fn branched(
    mut made: EnvironmentVolume,
    source: Option<&EnvironmentVolume>,
    environment: &VirtualEnvironment,
) -> EnvironmentVolume {
    if let (Some(source), Some(wanted)) = (source, &environment.spec.source) {
        made.spec.template = source.spec.template.clone();
        if Amount::of(&source.spec.size) > Amount::of(&made.spec.size) {
            made.spec.size = source.spec.size.clone();
        }
        let volume = source.metadata.uid.clone().unwrap_or_default();
        let mut logs = source.past().into_iter();
        made.spec.source = logs.next().map(|VolumeLog { store, name }| VolumeSource {
            log: Some(name).filter(|name| *name != volume),
            left: logs.collect(),
            volume,
            store,
            at: wanted.at.clone(),
        });
    }
    made
}

/// `registry/repository@digest` of a reference with a tag, a digest, or neither.
fn by_digest(image: &str, digest: &str) -> String {
    let bare = image.split_once('@').map_or(image, |(bare, _)| bare);
    // A colon after the last slash begins a tag; one before it belongs to the registry's port.
    let repository = match bare.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => bare,
    };
    format!("{repository}@{digest}")
}

/// A retained volume in the hands of an environment; as large as the larger of the two wishes.
#[must_use]
pub fn adopted(environment: &VirtualEnvironment, volume: &EnvironmentVolume) -> EnvironmentVolume {
    let mut volume = grown(environment, volume).unwrap_or_else(|| volume.clone());
    volume.spec.environment.clone_from(&environment.metadata.name);
    volume.metadata.labels.get_or_insert_default().extend(labels(environment));
    volume
}

/// The volume with as many copies as the environment asks for, if that is something else than it has.
#[must_use]
pub fn copied(environment: &VirtualEnvironment, volume: &EnvironmentVolume) -> Option<EnvironmentVolume> {
    let wanted = standby(environment);
    (wanted != volume.spec.standby).then(|| {
        let mut volume = volume.clone();
        volume.spec.standby = wanted;
        volume
    })
}

/// The volume with its journal in another store, if one is wanted: once it was begun in the first one.
#[must_use]
pub fn stored(volume: &EnvironmentVolume, wanted: Option<String>) -> Option<EnvironmentVolume> {
    let begun = volume.status.as_ref().is_some_and(|status| status.log.is_some());
    (begun && wanted.is_some() && wanted != volume.spec.store).then(|| {
        let mut volume = volume.clone();
        volume.spec.store = wanted;
        volume
    })
}

/// The volume with the size that the environment asks for, if that is more than it has.
#[must_use]
pub fn grown(environment: &VirtualEnvironment, volume: &EnvironmentVolume) -> Option<EnvironmentVolume> {
    let wanted = &environment.spec.resources.disk;
    (Amount::of(wanted)? > Amount::of(&volume.spec.size)?).then(|| {
        let mut volume = volume.clone();
        volume.spec.size = wanted.clone();
        volume
    })
}

/// The volume as nobody's.
#[must_use]
pub fn let_go(volume: &EnvironmentVolume) -> EnvironmentVolume {
    let mut volume = volume.clone();
    volume.spec.environment = None;
    // Whoever takes it wants it as it is.
    volume.spec.restore = None;
    if let Some(labels) = volume.metadata.labels.as_mut() {
        labels.remove(names::LABEL_ENVIRONMENT);
    }
    volume
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_named_by_its_digest() {
        for (image, wanted) in [
            ("debian", "debian@sha256:d"),
            ("debian:13", "debian@sha256:d"),
            ("10.0.0.1:5000/a/debian", "10.0.0.1:5000/a/debian@sha256:d"),
            ("10.0.0.1:5000/a/debian:13", "10.0.0.1:5000/a/debian@sha256:d"),
            ("example.org/debian@sha256:old", "example.org/debian@sha256:d"),
            ("example.org/debian:13@sha256:old", "example.org/debian@sha256:d"),
        ] {
            assert_eq!(by_digest(image, "sha256:d"), wanted);
        }
    }
}
