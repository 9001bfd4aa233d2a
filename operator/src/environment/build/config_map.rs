//! The config map that tells an incarnation how to boot.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use vivarium_api::names;
use vivarium_api::v1alpha1::VirtualEnvironment;

use super::{StartedWith, child};

/// The config map for an incarnation that is started with `started_with`.
pub fn config_map(
    environment: &VirtualEnvironment,
    started_with: &StartedWith,
) -> Result<ConfigMap, serde_json::Error> {
    let boot = serde_json::to_string(&started_with.boot)?;
    let name = environment.metadata.name.as_deref().unwrap_or_default();
    Ok(ConfigMap {
        metadata: child(environment, names::boot_config_map(name)),
        data: Some(BTreeMap::from([(names::BOOT_CONFIG_FILE.to_owned(), boot)])),
        ..ConfigMap::default()
    })
}
