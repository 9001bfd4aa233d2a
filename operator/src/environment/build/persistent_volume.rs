//! The persistent volume through which the kubelet reaches an `EnvironmentVolume`. It has no node affinity, since that
//! could never be changed; the pod has one instead.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{CSIPersistentVolumeSource, ObjectReference, PersistentVolume, PersistentVolumeSpec};
use kube::ResourceExt;
use kube::api::ObjectMeta;
use vivarium_api::names;
use vivarium_api::v1alpha1::{EnvironmentVolume, VirtualEnvironment};

use super::labels;

/// The persistent volume of `volume`. `None` if the volume has no UID, that is, does not exist yet.
#[must_use]
pub fn persistent_volume(environment: &VirtualEnvironment, volume: &EnvironmentVolume) -> Option<PersistentVolume> {
    let uid = volume.uid()?;
    let namespace = volume.namespace()?;
    let name = volume.name_any();
    let csi = CSIPersistentVolumeSource {
        driver: names::CSI_DRIVER.into(),
        volume_handle: uid.clone(),
        volume_attributes: Some(BTreeMap::from([(names::ATTRIBUTE_VOLUME.to_owned(), format!("{namespace}/{name}"))])),
        ..CSIPersistentVolumeSource::default()
    };
    let spec = PersistentVolumeSpec {
        access_modes: Some(vec!["ReadWriteOnce".into()]),
        capacity: Some(BTreeMap::from([("storage".to_owned(), volume.spec.size.clone())])),
        claim_ref: Some(ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("PersistentVolumeClaim".into()),
            name: Some(names::claim(&name)),
            namespace: Some(namespace),
            ..ObjectReference::default()
        }),
        csi: Some(csi),
        persistent_volume_reclaim_policy: Some("Retain".into()),
        storage_class_name: Some(String::new()),
        volume_mode: Some("Filesystem".into()),
        ..PersistentVolumeSpec::default()
    };
    let metadata = ObjectMeta {
        name: Some(names::persistent_volume(&uid)),
        labels: Some(labels(environment)),
        ..ObjectMeta::default()
    };
    Some(PersistentVolume { metadata, spec: Some(spec), status: None })
}
