//! The custom resource definitions as they are installed.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSON, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt;

use super::{EnvironmentRestore, EnvironmentTemplate, EnvironmentVolume, JournalStore, VirtualEnvironment};

/// Every definition, in the order of installation.
#[must_use]
pub fn all() -> Vec<CustomResourceDefinition> {
    let all = [
        VirtualEnvironment::crd(),
        EnvironmentTemplate::crd(),
        EnvironmentVolume::crd(),
        JournalStore::crd(),
        EnvironmentRestore::crd(),
    ];
    all.map(finish).into()
}

/// Adds what the derive cannot say: the default status, without which a fresh object that no controller has seen
/// counts as current for kstatus; and takes away what it says too much.
fn finish(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    for version in &mut crd.spec.versions {
        let Some(root) = version.schema.as_mut().and_then(|s| s.open_api_v3_schema.as_mut()) else { continue };
        tidy(root);
        if let Some(status) = root.properties.as_mut().and_then(|p| p.get_mut("status")) {
            status.default = Some(JSON(serde_json::json!({"observedGeneration": -1})));
            // A default of 0 inside the default status would be noise.
            if let Some(property) = status.properties.as_mut().and_then(|p| p.get_mut("observedGeneration")) {
                property.default = None;
            }
        }
    }
    crd
}

/// An optional field is left out, never null: the API server drops nulls of fields that are not nullable. And it knows
/// no unsigned formats; `minimum: 0` says the same.
fn tidy(schema: &mut JSONSchemaProps) {
    schema.nullable = None;
    schema.format = match schema.format.take().as_deref() {
        Some("uint64") => Some("int64".into()),
        Some("uint32" | "uint16" | "uint8") => Some("int32".into()),
        format => format.map(Into::into),
    };
    schema.properties.iter_mut().flatten().for_each(|(_, property)| tidy(property));
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        tidy(items);
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        tidy(values);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    const KINDS: [&str; 5] =
        ["VirtualEnvironment", "EnvironmentTemplate", "EnvironmentVolume", "JournalStore", "EnvironmentRestore"];

    fn schema(kind: &str) -> Value {
        let crd = super::all().into_iter().find(|crd| crd.spec.names.kind == kind).unwrap();
        serde_json::to_value(&crd.spec.versions[0].schema).unwrap()["openAPIV3Schema"]["properties"].clone()
    }

    #[test]
    fn defaults_are_in_the_schema_so_that_everyone_sees_them() {
        let spec = schema("VirtualEnvironment")["spec"]["properties"].clone();
        assert_eq!(spec["resources"]["default"], json!({"disk": "10Gi"}));
        assert_eq!(spec["resources"]["properties"]["disk"]["default"], json!("10Gi"));
        assert_eq!(spec["runMode"]["default"], json!("Running"));
        assert_eq!(spec["volume"]["default"], json!({"deletionPolicy": "Delete"}));
    }

    #[test]
    fn a_fresh_object_is_not_current() {
        for kind in KINDS {
            assert_eq!(schema(kind)["status"]["default"], json!({"observedGeneration": -1}), "{kind}");
        }
    }

    #[test]
    fn every_list_says_how_it_is_merged_and_every_walked_one_how_long_it_can_be() {
        fn walk(at: &str, schema: &Value) {
            if schema["type"] == "array" {
                assert!(schema["x-kubernetes-list-type"].is_string(), "{at} has no list type");
            }
            if schema["x-kubernetes-validations"].is_array() && schema["type"] == "array" {
                assert!(schema["maxItems"].is_number(), "{at} has rules and no maxItems");
            }
            assert!(schema["nullable"].is_null(), "{at} is nullable");
            assert!(!schema["format"].as_str().unwrap_or_default().starts_with("uint"), "{at}");
            for (name, property) in schema["properties"].as_object().into_iter().flatten() {
                walk(&format!("{at}.{name}"), property);
            }
            for inner in ["items", "additionalProperties"] {
                if schema[inner].is_object() {
                    walk(&format!("{at}[]"), &schema[inner]);
                }
            }
        }
        for kind in KINDS {
            for (name, property) in schema(kind).as_object().unwrap() {
                walk(&format!("{kind}.{name}"), property);
            }
        }
    }
}
