//! The controller of `EnvironmentVolume`: takes the finalizer off a deleted volume that never was on a node. The data of
//! all others is destroyed by the driver of the node that holds it, which takes the finalizer off itself.

use std::sync::Arc;
use std::time::Duration;

use kube::api::PostParams;
use kube::core::DeserializeGuard;
use kube::runtime::controller::Action as Requeue;
use kube::{Api, ResourceExt};
use vivarium_api::names;
use vivarium_api::v1alpha1::EnvironmentVolume;

use crate::environment::controller::Context;
use crate::error::brief;

const AFTER_FAILURE: Duration = Duration::from_secs(5);

/// A run failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot let EnvironmentVolume {volume} go: {}", brief(.source))]
pub struct Error {
    volume: String,
    source: kube::Error,
}

/// Whether nothing but the operator can take the finalizer off.
#[must_use]
pub fn never_placed(volume: &EnvironmentVolume) -> bool {
    let placed = volume.status.as_ref().is_some_and(|s| s.node.is_some() || s.holder.is_some());
    volume.metadata.deletion_timestamp.is_some()
        && !placed
        && volume.finalizers().iter().any(|f| f == names::FINALIZER_VOLUME)
}

/// One run for one volume.
pub async fn reconcile(
    object: Arc<DeserializeGuard<EnvironmentVolume>>,
    context: Arc<Context>,
) -> Result<Requeue, Error> {
    if !object.0.as_ref().is_ok_and(never_placed) {
        return Ok(Requeue::await_change());
    }
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let error = |source| Error { volume: format!("{namespace}/{name}"), source };
    let api: Api<EnvironmentVolume> = Api::namespaced(context.client.clone(), &namespace);
    // The cache may be older than its placement: only the volume as it is now is let go.
    let Some(mut volume) = api.get_opt(&name).await.map_err(error)? else { return Ok(Requeue::await_change()) };
    if !never_placed(&volume) {
        return Ok(Requeue::await_change());
    }
    volume.metadata.finalizers.iter_mut().for_each(|all| all.retain(|f| f != names::FINALIZER_VOLUME));
    context.metrics.acted("ReleaseVolume");
    match api.replace(&name, &PostParams::default(), &volume).await {
        Err(kube::Error::Api(status)) if status.is_conflict() => Ok(Requeue::requeue(Duration::from_secs(1))),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(Requeue::await_change()),
        Err(source) => Err(error(source)),
        Ok(_) => Ok(Requeue::await_change()),
    }
}

/// What follows from a failed run.
#[allow(clippy::needless_pass_by_value, reason = "kube's Controller gives it by value")]
pub fn on_error(_object: Arc<DeserializeGuard<EnvironmentVolume>>, error: &Error, _context: Arc<Context>) -> Requeue {
    tracing::warn!("{error}");
    Requeue::requeue(AFTER_FAILURE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use serde_json::json;

    #[test]
    fn only_a_deleted_volume_that_was_nowhere_is_let_go() {
        let volume = |deleted: bool, status: serde_json::Value| {
            let mut volume: EnvironmentVolume = serde_json::from_value(json!({
                "apiVersion": "vivarium.dev/v1alpha1", "kind": "EnvironmentVolume",
                "metadata": {"name": "v", "finalizers": [names::FINALIZER_VOLUME]},
                "spec": {"template": {"name": "t", "image": "i@sha256:d", "layers": ["l"]}, "size": "1Gi"}, "status": status}))
            .unwrap();
            volume.metadata.deletion_timestamp = deleted.then_some(Time(jiff::Timestamp::UNIX_EPOCH));
            volume
        };
        let nowhere = json!({"observedGeneration": -1});
        assert!(never_placed(&volume(true, nowhere.clone())));
        assert!(!never_placed(&volume(false, nowhere)));
        assert!(!never_placed(&volume(true, json!({"observedGeneration": 1, "node": "n1"}))));
        assert!(!never_placed(&volume(true, json!({"holder": {"node": "n1", "session": "s"}}))));
    }
}
