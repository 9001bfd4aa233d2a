//! The controller of `EnvironmentVolume`s that are being deleted: takes the finalizer off one that never was on a node,
//! and takes one out of the hands of an environment that is gone. The data of all others is destroyed by the driver of
//! the node that holds it, once nobody may write it any more; the driver takes the finalizer off itself.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, PostParams};
use kube::core::DeserializeGuard;
use kube::runtime::controller::Action as Requeue;
use kube::{Api, ResourceExt};
use vivarium_api::names;
use vivarium_api::v1alpha1::{EnvironmentVolume, VirtualEnvironment};

use crate::environment::controller::Context;
use crate::environment::holder;
use crate::error::brief;

const AFTER_FAILURE: Duration = Duration::from_secs(5);
/// How often a volume that is being deleted is looked at while its environment is there.
const WHILE_USED: Duration = Duration::from_secs(10);

/// A run failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot let EnvironmentVolume {volume} go: {}", brief(.source))]
pub struct Error {
    volume: String,
    source: kube::Error,
}

/// What only the operator can do for a volume that is being deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duty {
    /// Take the finalizer off: it never was on a node.
    LetGo,
    /// Take it out of the hands of its environment, should that be gone. One that is there does so itself.
    Release,
}

/// What is to be done about a volume; `None`: nothing.
#[must_use]
pub fn duty(volume: &EnvironmentVolume) -> Option<Duty> {
    let guarded = volume.finalizers().iter().any(|f| f == names::FINALIZER_VOLUME);
    if volume.metadata.deletion_timestamp.is_none() || !guarded {
        return None;
    }
    let status = volume.status.as_ref();
    match (status.and_then(|s| s.holder.as_ref()), status.and_then(|s| s.node.as_ref())) {
        (Some(_), _) => Some(Duty::Release),
        (None, None) => Some(Duty::LetGo),
        (None, Some(_)) => None,
    }
}

/// One run for one volume.
pub async fn reconcile(
    object: Arc<DeserializeGuard<EnvironmentVolume>>,
    context: Arc<Context>,
) -> Result<Requeue, Error> {
    if object.0.as_ref().ok().and_then(duty).is_none() {
        return Ok(Requeue::await_change());
    }
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let error = |source| Error { volume: format!("{namespace}/{name}"), source };
    let api: Api<EnvironmentVolume> = Api::namespaced(context.client.clone(), &namespace);
    // The cache may be older than its placement: only the volume as it is now is let go.
    let Some(mut volume) = api.get_opt(&name).await.map_err(error)? else { return Ok(Requeue::await_change()) };
    let written = match duty(&volume) {
        None => return Ok(Requeue::await_change()),
        Some(Duty::LetGo) => {
            volume.metadata.finalizers.iter_mut().for_each(|all| all.retain(|f| f != names::FINALIZER_VOLUME));
            context.metrics.acted("ReleaseVolume");
            api.replace(&name, &PostParams::default(), &volume).await
        }
        Some(Duty::Release) => {
            if has_user(&context, &namespace, volume.spec.environment.as_deref()).await.map_err(error)? {
                return Ok(Requeue::requeue(WHILE_USED));
            }
            let Some(released) = holder::released(&volume) else { return Ok(Requeue::await_change()) };
            context.metrics.acted("ReplaceVolumeStatus");
            api.replace_status(&name, &PostParams::default(), &released).await
        }
    };
    match written {
        Err(kube::Error::Api(status)) if status.is_conflict() => Ok(Requeue::requeue(Duration::from_secs(1))),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(Requeue::await_change()),
        Err(source) => Err(error(source)),
        Ok(_) => Ok(Requeue::await_change()),
    }
}

/// Whether the environment of a volume, or a pod of it, is still there.
async fn has_user(context: &Context, namespace: &str, environment: Option<&str>) -> Result<bool, kube::Error> {
    let Some(environment) = environment else { return Ok(false) };
    let metadata: Api<VirtualEnvironment> = Api::namespaced(context.client.clone(), namespace);
    // Its name is enough, so that one that cannot be read counts as well.
    if metadata.get_metadata_opt(environment).await?.is_some() {
        return Ok(true);
    }
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
    let labelled = ListParams::default().labels(&format!("{}={environment}", names::LABEL_ENVIRONMENT));
    Ok(!pods.list_metadata(&labelled).await?.items.is_empty())
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
    fn only_a_deleted_volume_that_is_nowhere_or_in_hands_is_the_operators() {
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
        assert_eq!(duty(&volume(true, nowhere.clone())), Some(Duty::LetGo));
        assert_eq!(duty(&volume(false, nowhere)), None);
        assert_eq!(duty(&volume(true, json!({"observedGeneration": 1, "node": "n1"}))), None);
        let held = json!({"node": "n1", "holder": {"node": "n1", "session": "s"}});
        assert_eq!(duty(&volume(true, held.clone())), Some(Duty::Release));
        assert_eq!(duty(&volume(false, held)), None);
    }
}
