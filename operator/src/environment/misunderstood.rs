//! An environment that is stored but cannot be read: another version of the API wrote it, or somebody wrote a status by
//! hand. It is left alone, which harms no other; this says what is wrong with it, by the path of the field.

use kube::api::{ApiResource, DynamicObject};
use kube::{Api, Client};
use serde_json::Value;
use vivarium_api::v1alpha1::VirtualEnvironment;

use super::status::Note;

/// The object as it is stored; `None` if it is gone.
///
/// # Errors
/// The API server does not answer.
pub async fn read(client: &Client, namespace: &str, name: &str) -> Result<Option<Value>, kube::Error> {
    let kind = ApiResource::erase::<VirtualEnvironment>(&());
    let found = Api::<DynamicObject>::namespaced_with(client.clone(), namespace, &kind).get_opt(name).await?;
    found.map(|object| serde_json::to_value(object).map_err(kube::Error::SerdeError)).transpose()
}

/// Path of the field that cannot be read, and why; `None` if all can be.
#[must_use]
pub fn why(raw: Value) -> Option<String> {
    let read: Result<VirtualEnvironment, _> = serde_path_to_error::deserialize(raw);
    read.err().map(|error| error.to_string())
}

/// What people are told.
#[must_use]
pub fn note(why: &str) -> Note {
    let message = format!(
        "the environment is left as it is, because this version of the operator cannot read it: {why}. Correct the \
         field, or upgrade the operator"
    );
    Note::warning("NotUnderstood", message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_field_is_named() {
        let fine = json!({"apiVersion": "vivarium.dev/v1alpha1", "kind": "VirtualEnvironment",
            "metadata": {"name": "shop"}, "spec": {"template": {"name": "debian-13"}},
            "status": {"observedGeneration": 1, "conditions": [{"type": "Ready", "status": "True", "reason": "Running",
                "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
        assert_eq!(why(fine.clone()), None);
        for (pointer, value, expected) in [
            ("/spec/runMode", json!("Sleeping"), "spec.runMode: unknown variant `Sleeping`"),
            ("/status/failures", json!(1u64 << 40), "status.failures: invalid value"),
            (
                "/status/conditions/0/lastTransitionTime",
                json!("2026-01-01T00:00:00+99:00"),
                "status.conditions[0].lastTransitionTime: ",
            ),
        ] {
            let mut odd = fine.clone();
            let (above, field) = pointer.rsplit_once('/').unwrap();
            odd.pointer_mut(above).unwrap()[field] = value;
            let why = why(odd).unwrap_or_else(|| panic!("{pointer} was read"));
            assert!(why.starts_with(expected), "{why}");
        }
    }
}
