//! The custom resource definitions as they are installed.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSON, JSONSchemaProps,
};
use kube::CustomResourceExt;

use super::{EnvironmentTemplate, EnvironmentVolume, VirtualEnvironment};

/// Every definition, in the order of installation.
#[must_use]
pub fn all() -> Vec<CustomResourceDefinition> {
    [VirtualEnvironment::crd(), EnvironmentTemplate::crd(), EnvironmentVolume::crd()].map(finish).into()
}

/// Adds what the derive cannot say: the default status, without which a fresh object that no controller has seen
/// counts as current for kstatus.
fn finish(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    for version in &mut crd.spec.versions {
        let status = version
            .schema
            .as_mut()
            .and_then(|s| s.open_api_v3_schema.as_mut())
            .and_then(|s| s.properties.as_mut())
            .and_then(|p| p.get_mut("status"));
        if let Some(status) = status {
            status.nullable = None;
            status.default = Some(JSON(serde_json::json!({"observedGeneration": -1})));
            drop_default(status, "observedGeneration");
        }
    }
    crd
}

/// A default of 0 inside the default status would be noise.
fn drop_default(schema: &mut JSONSchemaProps, property: &str) {
    if let Some(property) = schema.properties.as_mut().and_then(|p| p.get_mut(property)) {
        property.default = None;
    }
}
