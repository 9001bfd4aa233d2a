//! What the driver does in the cluster. Each file is one concern with its own watch; none of them decides who may write a
//! volume, that is the operator's.

pub mod departures;
pub mod directory;
pub mod garbage;
pub mod guests;
mod journals;
pub mod keeping;
pub mod lease;
pub mod proving;
pub mod restores;
pub mod standby;
pub mod stores;
pub mod templates;
pub mod trials;
pub mod volumes;

use std::fmt::{Debug, Display};

use ::kube::core::DeserializeGuard;
use ::kube::runtime::WatchStreamExt;
use ::kube::runtime::watcher::{self, Event, watcher};
use ::kube::{Api, Resource, ResourceExt};
use futures::{Stream, TryStreamExt, future};
use serde::de::DeserializeOwned;

/// Field manager of what the driver applies; each concern adds its name, so that none takes back what another said.
const FIELD_MANAGER: &str = "vivarium-node";

/// An error of the API server about an object.
#[derive(Debug, thiserror::Error)]
#[error("cannot {attempt} {object}: {source}")]
pub struct ApiError {
    attempt: &'static str,
    object: String,
    #[source]
    source: ::kube::Error,
}

fn failed(attempt: &'static str, object: impl Display) -> impl FnOnce(::kube::Error) -> ApiError {
    let object = object.to_string();
    move |source| ApiError { attempt, object, source }
}

/// Whether the API server said that there is no such object.
fn is_gone(error: &::kube::Error) -> bool {
    matches!(error, ::kube::Error::Api(status) if status.is_not_found())
}

/// Whether the API server said that the object is not as it was read.
fn is_conflict(error: &::kube::Error) -> bool {
    matches!(error, ::kube::Error::Api(status) if status.is_conflict())
}

/// Watches all objects that can be read. One that cannot, because another version wrote it or because a node in foreign
/// hands wrote its status, would otherwise end the watch of all others on every node.
fn watch_readable<K>(api: Api<DeserializeGuard<K>>) -> impl Stream<Item = Result<Event<K>, watcher::Error>> + Send
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let events = watcher(api, watcher::Config::default()).default_backoff();
    events.try_filter_map(|event| future::ready(Ok(readable(event))))
}

fn readable<K: Resource<DynamicType = ()>>(event: Event<DeserializeGuard<K>>) -> Option<Event<K>> {
    let object = |object: DeserializeGuard<K>| {
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        let read = object.0;
        if let Err(invalid) = &read {
            let kind = K::kind(&());
            tracing::warn!(%kind, namespace, name, error = invalid.error, "an object cannot be read and is left alone");
        }
        read.ok()
    };
    match event {
        Event::Apply(it) => object(it).map(Event::Apply),
        Event::InitApply(it) => object(it).map(Event::InitApply),
        Event::Delete(it) => object(it).map(Event::Delete),
        Event::Init => Some(Event::Init),
        Event::InitDone => Some(Event::InitDone),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use vivarium_api::v1alpha1::EnvironmentVolume;

    use super::*;

    #[test]
    fn what_cannot_be_read_is_passed_over() {
        let volume = |name: &str, time: &str| -> DeserializeGuard<EnvironmentVolume> {
            let condition =
                json!({"type": "Odd", "status": "True", "reason": "Odd", "message": "", "lastTransitionTime": time});
            serde_json::from_value(json!({"apiVersion": "vivarium.dev/v1alpha1", "kind": "EnvironmentVolume",
                "metadata": {"name": name},
                "spec": {"template": {"name": "t", "image": "i", "layers": ["l"]}, "size": "1Gi"},
                "status": {"conditions": [condition]}}))
            .unwrap()
        };
        let fine = || volume("fine", "2026-01-01T00:00:00Z");
        // The API server takes this for a time.
        let odd = || volume("odd", "2026-01-01T00:00:00+99:00");
        for (event, expected) in [
            (Event::Init, true),
            (Event::InitApply(fine()), true),
            (Event::InitApply(odd()), false),
            (Event::InitDone, true),
            (Event::Apply(fine()), true),
            (Event::Apply(odd()), false),
            (Event::Delete(odd()), false),
        ] {
            assert_eq!(readable(event).is_some(), expected);
        }
    }
}
