//! The claim that the pod names. It is bound to its persistent volume from the start; no provisioner is involved.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimSpec, VolumeResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::ResourceExt;
use vivarium_api::names;
use vivarium_api::v1alpha1::{EnvironmentVolume, VirtualEnvironment};

use super::child;

/// What every claim asks for. The real size is the persistent volume's, which can grow; a claim that is bound by name
/// could not be changed any more.
const REQUEST: &str = "1Mi";

/// The claim of `volume`. `None` if the volume does not exist yet.
#[must_use]
pub fn claim(environment: &VirtualEnvironment, volume: &EnvironmentVolume) -> Option<PersistentVolumeClaim> {
    let uid = volume.uid()?;
    let spec = PersistentVolumeClaimSpec {
        access_modes: Some(vec!["ReadWriteOnce".into()]),
        resources: Some(VolumeResourceRequirements {
            requests: Some(BTreeMap::from([("storage".to_owned(), Quantity(REQUEST.into()))])),
            ..VolumeResourceRequirements::default()
        }),
        storage_class_name: Some(String::new()),
        volume_mode: Some("Filesystem".into()),
        volume_name: Some(names::persistent_volume(&uid)),
        ..PersistentVolumeClaimSpec::default()
    };
    let metadata = child(environment, names::claim(&volume.name_any()));
    Some(PersistentVolumeClaim { metadata, spec: Some(spec), status: None })
}
