//! Runs [`super::decide`] for one restore: from the caches to see whether anything is to be done, and from the API server
//! to do it.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::DeserializeGuard;
use kube::runtime::controller::Action as Requeue;
use kube::{Api, Resource, ResourceExt};
use serde_json::json;
use vivarium_api::v1alpha1::{
    EnvironmentRestore, EnvironmentRestoreStatus, EnvironmentVolume, VirtualEnvironment, condition,
};

use super::decide::{World, decide, is_over};
use crate::environment::apply::{MANAGER, STATUS_MANAGER};
use crate::environment::controller::Context;
use crate::environment::status::Note;
use crate::environment::world::volume_name;
use crate::error::brief;

const AFTER_FAILURE: Duration = Duration::from_secs(5);
/// Pause after somebody else changed the volume.
const AGAIN: Duration = Duration::from_millis(200);
/// How often a restore that is under way is looked at although nothing is heard.
const WHILE_UNDER_WAY: Duration = Duration::from_secs(30);

/// A run failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {attempt} for EnvironmentRestore {restore}: {}", brief(.source))]
pub struct Error {
    attempt: &'static str,
    restore: String,
    source: kube::Error,
}

/// One run for one restore.
pub async fn reconcile(
    object: Arc<DeserializeGuard<EnvironmentRestore>>,
    context: Arc<Context>,
) -> Result<Requeue, Error> {
    let Ok(seen) = &object.0 else { return Ok(Requeue::await_change()) };
    if is_over(seen) || seen.metadata.deletion_timestamp.is_some() {
        return Ok(Requeue::await_change());
    }
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let failed = |attempt| {
        let restore = format!("{namespace}/{name}");
        move |source| Error { attempt, restore, source }
    };
    let client = || context.client.clone();
    let restores: Api<EnvironmentRestore> = Api::namespaced(client(), &namespace);
    let environments: Api<VirtualEnvironment> = Api::namespaced(client(), &namespace);
    let volumes: Api<EnvironmentVolume> = Api::namespaced(client(), &namespace);
    let restore = restores.get_opt(&name).await.map_err(failed("read the object"))?;
    let Some(restore) = restore.filter(|restore| !is_over(restore)) else { return Ok(Requeue::await_change()) };
    let environment = environments.get_opt(&restore.spec.environment).await.map_err(failed("read the environment"))?;
    let volume = match &environment {
        Some(environment) => volumes.get_opt(volume_name(environment)).await.map_err(failed("read the volume"))?,
        None => None,
    };
    let world = World { restore: &restore, environment: environment.as_ref(), volume: volume.as_ref() };
    let decision = decide(world, Timestamp::now());
    if let Some(volume) = &decision.order {
        context.metrics.acted("OrderRestore");
        let post = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
        match volumes.replace(&volume.name_any(), &post, volume).await {
            // The driver writes its status now and then.
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_not_found() => {
                return Ok(Requeue::requeue(AGAIN));
            }
            done => done.map_err(failed("change the volume"))?,
        };
    }
    if restore.status.as_ref() != Some(&decision.status) {
        write(&restores, &restore, &decision.status).await.map_err(failed("write the status"))?;
        context.metrics.wrote_status();
        if let Some(note) = note(&decision.status) {
            context.events.publish(&restore, &note);
        }
    }
    Ok(Requeue::requeue(WHILE_UNDER_WAY))
}

/// What the end of a restore is worth.
fn note(status: &EnvironmentRestoreStatus) -> Option<Note> {
    let complete = condition::find(&status.conditions, "Complete")?;
    if condition::is_true(&status.conditions, "Failed") {
        return Some(Note::warning(&complete.reason, &complete.message));
    }
    condition::is_true(&status.conditions, "Complete").then(|| Note::normal(&complete.reason, &complete.message))
}

async fn write(
    restores: &Api<EnvironmentRestore>,
    restore: &EnvironmentRestore,
    status: &EnvironmentRestoreStatus,
) -> Result<(), kube::Error> {
    let name = restore.name_any();
    let patch = json!({
        "apiVersion": EnvironmentRestore::api_version(&()),
        "kind": EnvironmentRestore::kind(&()),
        "metadata": {"name": name, "uid": restore.uid()},
        "status": status,
    });
    match restores.patch_status(&name, &PatchParams::apply(STATUS_MANAGER).force(), &Patch::Apply(patch)).await {
        // It is gone, or another one has its name.
        Err(kube::Error::Api(gone)) if gone.is_not_found() || gone.is_conflict() => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Ok(()),
    }
}

/// What follows from a failed run.
#[allow(clippy::needless_pass_by_value, reason = "kube's Controller gives it by value")]
pub fn on_error(_object: Arc<DeserializeGuard<EnvironmentRestore>>, error: &Error, _context: Arc<Context>) -> Requeue {
    tracing::warn!("{error}");
    Requeue::requeue(AFTER_FAILURE)
}
