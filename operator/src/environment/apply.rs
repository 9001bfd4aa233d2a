//! Carries out [`Action`]s, one API call each. Children are applied on the server's side under one field manager; pods
//! and volumes are created, because their name is a lock; everything is deleted by UID.

use std::fmt::Debug;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Service};
use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use vivarium_api::names;
use vivarium_api::v1alpha1::{EnvironmentVolume, VirtualEnvironment, VirtualEnvironmentStatus};

use super::decision::{Action, Child, ChildKind, Doomed, VolumeChange};
use super::status::Note;
use super::world::World;
use crate::error::brief;

/// Field manager of everything but the status.
pub const MANAGER: &str = "vivarium-operator";
/// Field manager of the status of environments.
pub const STATUS_MANAGER: &str = "vivarium-operator-status";

/// An action failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {attempt} for environment {environment}: {}", brief(.source))]
pub struct Error {
    attempt: String,
    environment: String,
    source: kube::Error,
}

/// What came of an action.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done; what is worth an event.
    Done(Option<Note>),
    /// The world is no longer as it was read: read it again.
    Outdated,
    /// The namespace is being deleted: nothing can be made in it, and the environment goes with it.
    NamespaceEnds,
    /// The pod's name is taken by somebody else's pod.
    Taken,
    /// The pod may not be made; why.
    PodRefused(String),
    /// The pod's resources cannot be changed while it runs; why.
    ResizeRefused(String),
}

/// Carries out one action.
pub async fn apply(client: &Client, world: &World, action: &Action) -> Result<Outcome, Error> {
    let done = run(client, world, action).await;
    match done {
        Ok(outcome) => Ok(outcome),
        Err((_, kube::Error::Api(status))) if status.is_conflict() || status.is_not_found() => {
            tracing::debug!(environment = world.name(), message = status.message, "read again");
            Ok(Outcome::Outdated)
        }
        Err((_, error)) if namespace_ends(&error) => Ok(Outcome::NamespaceEnds),
        Err((attempt, source)) => {
            let namespace = world.environment.namespace().unwrap_or_default();
            Err(Error { attempt, environment: format!("{namespace}/{}", world.name()), source })
        }
    }
}

/// Whether the API server refuses to make an object because its namespace is being deleted.
#[must_use]
pub fn namespace_ends(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if ends(status))
}

fn ends(status: &kube::core::Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    status.is_forbidden() && causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}

type Attempt<T> = Result<T, (String, kube::Error)>;

async fn run(client: &Client, world: &World, action: &Action) -> Attempt<Outcome> {
    let namespace = world.environment.namespace().unwrap_or_default();
    let namespace = namespace.as_str();
    let volumes: Api<EnvironmentVolume> = Api::namespaced(client.clone(), namespace);
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let post = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
    let failed = |attempt: String| move |source| (attempt, source);
    match action {
        Action::AddFinalizer => finalizer(client, world, true).await,
        Action::RemoveFinalizer => finalizer(client, world, false).await,
        Action::CreateVolume(volume) => {
            let name = volume.name_any();
            volumes.create(&post, volume).await.map_err(failed(format!("create EnvironmentVolume {name}")))?;
            let image = &volume.spec.template.image;
            let note = Note::normal("VolumeCreated", format!("EnvironmentVolume {name} lies on {image}"));
            Ok(Outcome::Done(Some(note)))
        }
        Action::ReplaceVolume(volume, change) => {
            let name = volume.name_any();
            volumes.replace(&name, &post, volume).await.map_err(failed(format!("change EnvironmentVolume {name}")))?;
            let note = (*change == VolumeChange::Adopted).then(|| {
                Note::normal(
                    "Adopted",
                    format!("EnvironmentVolume {name} and all that is in it is this environment's now"),
                )
            });
            Ok(Outcome::Done(note))
        }
        Action::ReplaceVolumeStatus(volume) => {
            let name = volume.name_any();
            let attempt = format!("change the holder of EnvironmentVolume {name}");
            volumes.replace_status(&name, &post, volume).await.map_err(failed(attempt))?;
            Ok(Outcome::Done(None))
        }
        Action::DeleteVolume(doomed) => delete(&volumes, "EnvironmentVolume", doomed, None).await,
        Action::Apply(child) => apply_child(client, namespace, child).await,
        Action::Delete(kind, doomed) => delete_child(client, namespace, *kind, doomed).await,
        Action::CreatePod(pod) => create_pod(&pods, world, pod, &post).await,
        Action::DeletePod(doomed) => delete(&pods, "Pod", doomed, None).await,
        Action::RemovePod(doomed) => delete(&pods, "Pod", doomed, Some(0)).await,
        Action::AwakenPod { name } => {
            let patch = json!({"metadata": {"annotations": {(names::ANNOTATION_AWAITED): "true"}}});
            let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
            let attempt = format!("have the kubelet look at pod {name} again");
            pods.patch_metadata(name, &params, &Patch::Merge(patch)).await.map_err(failed(attempt))?;
            Ok(Outcome::Done(None))
        }
        Action::EndMove => end_move(client, world).await,
        Action::ResizePod { name, resources } => {
            let patch = json!({"spec": {"containers": [{"name": names::CONTAINER, "resources": resources}]}});
            let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
            match pods.patch_resize(name, &params, &Patch::Strategic(patch)).await {
                // The node is too old for it, a quota is used up, a policy forbids it.
                Err(kube::Error::Api(status)) if status.is_invalid() || status.is_forbidden() => {
                    return Ok(Outcome::ResizeRefused(status.message));
                }
                done => done.map_err(failed(format!("change the resources of pod {name}")))?,
            };
            Ok(Outcome::Done(Some(Note::normal(
                "Resized",
                format!("pod {name} gets the resources that the spec asks for"),
            ))))
        }
    }
}

/// Adds or removes our finalizer, if the environment still is as it was read.
async fn finalizer(client: &Client, world: &World, wanted: bool) -> Attempt<Outcome> {
    let environment = &world.environment;
    let mut finalizers = environment.finalizers().to_vec();
    finalizers.retain(|f| f != names::FINALIZER_ENVIRONMENT);
    if wanted {
        finalizers.push(names::FINALIZER_ENVIRONMENT.into());
    }
    let patch = json!({"metadata": {"resourceVersion": environment.resource_version(), "finalizers": finalizers}});
    let api: Api<VirtualEnvironment> = Api::namespaced(client.clone(), &environment.namespace().unwrap_or_default());
    let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
    api.patch(&environment.name_any(), &params, &Patch::Merge(patch))
        .await
        .map_err(|source| ("change the finalizers".to_owned(), source))?;
    Ok(Outcome::Done(None))
}

/// Takes the annotation off that asks for a move, if the environment still is as it was read.
async fn end_move(client: &Client, world: &World) -> Attempt<Outcome> {
    let environment = &world.environment;
    let metadata = json!({
        "resourceVersion": environment.resource_version(),
        "annotations": {(names::ANNOTATION_MOVE_TO): null},
    });
    let api: Api<VirtualEnvironment> = Api::namespaced(client.clone(), &environment.namespace().unwrap_or_default());
    let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
    api.patch(&environment.name_any(), &params, &Patch::Merge(json!({"metadata": metadata})))
        .await
        .map_err(|source| ("take off the annotation of a move".to_owned(), source))?;
    let message = format!("the environment is on node {}", environment.annotations()[names::ANNOTATION_MOVE_TO]);
    Ok(Outcome::Done(Some(Note::normal("Moved", message))))
}

async fn create_pod(pods: &Api<Pod>, world: &World, pod: &Pod, post: &PostParams) -> Attempt<Outcome> {
    let name = pod.name_any();
    let failed = |source| (format!("create pod {name}"), source);
    match pods.create(post, pod).await {
        Ok(_) => Ok(Outcome::Done(Some(Note::normal("Starting", format!("pod {name} is the next incarnation"))))),
        Err(kube::Error::Api(status)) if status.is_already_exists() => {
            let found = pods.get_opt(&name).await.map_err(failed)?;
            Ok(if found.is_none_or(|found| world.owns(&found)) { Outcome::Outdated } else { Outcome::Taken })
        }
        // A quota is used up, its class of priority does not exist, a policy forbids it.
        Err(kube::Error::Api(status)) if (status.is_forbidden() || status.is_invalid()) && !ends(&status) => {
            Ok(Outcome::PodRefused(status.message))
        }
        Err(source) => Err(failed(source)),
    }
}

async fn apply_child(client: &Client, namespace: &str, child: &Child) -> Attempt<Outcome> {
    match child {
        Child::PersistentVolume(object) => {
            server_side(&Api::all(client.clone()), ChildKind::PersistentVolume, object.as_ref()).await
        }
        Child::Claim(object) => {
            server_side(&Api::namespaced(client.clone(), namespace), ChildKind::Claim, object.as_ref()).await
        }
        Child::Service(object) => {
            server_side(&Api::namespaced(client.clone(), namespace), ChildKind::Service, object.as_ref()).await
        }
    }
}

async fn server_side<K>(api: &Api<K>, kind: ChildKind, object: &K) -> Attempt<Outcome>
where
    K: Resource + Clone + Debug + Serialize + DeserializeOwned,
{
    let name = object.meta().name.clone().unwrap_or_default();
    let params = PatchParams::apply(MANAGER).force();
    api.patch(&name, &params, &Patch::Apply(object))
        .await
        .map_err(|source| (format!("apply {} {name}", kind.as_str()), source))?;
    Ok(Outcome::Done(None))
}

async fn delete_child(client: &Client, namespace: &str, kind: ChildKind, doomed: &Doomed) -> Attempt<Outcome> {
    match kind {
        ChildKind::PersistentVolume => delete(&all::<PersistentVolume>(client), kind.as_str(), doomed, None).await,
        ChildKind::Claim => {
            delete(&within::<PersistentVolumeClaim>(client, namespace), kind.as_str(), doomed, None).await
        }
        ChildKind::Service => delete(&within::<Service>(client, namespace), kind.as_str(), doomed, None).await,
    }
}

fn all<K: Resource<Scope = ClusterResourceScope, DynamicType = ()>>(client: &Client) -> Api<K> {
    Api::all(client.clone())
}

fn within<K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>>(client: &Client, namespace: &str) -> Api<K> {
    Api::namespaced(client.clone(), namespace)
}

/// Deletes the object of that UID; one that took its name since then is left alone. `grace`: seconds, for pods.
async fn delete<K>(api: &Api<K>, kind: &str, doomed: &Doomed, grace: Option<u32>) -> Attempt<Outcome>
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    let preconditions = Preconditions { uid: doomed.uid.clone(), resource_version: None };
    let params =
        DeleteParams { preconditions: Some(preconditions), grace_period_seconds: grace, ..DeleteParams::default() };
    api.delete(&doomed.name, &params).await.map_err(|source| (format!("delete {kind} {}", doomed.name), source))?;
    Ok(Outcome::Done(None))
}

/// Writes the status of an environment.
pub async fn status(client: &Client, world: &World, status: &VirtualEnvironmentStatus) -> Result<(), Error> {
    let environment = &world.environment;
    let (namespace, name) = (environment.namespace().unwrap_or_default(), environment.name_any());
    let patch = json!({
        "apiVersion": VirtualEnvironment::api_version(&()),
        "kind": VirtualEnvironment::kind(&()),
        "metadata": {"name": name, "uid": environment.uid()},
        "status": status,
    });
    let api: Api<VirtualEnvironment> = Api::namespaced(client.clone(), &namespace);
    match api.patch_status(&name, &PatchParams::apply(STATUS_MANAGER).force(), &Patch::Apply(patch)).await {
        // It is gone, or another one has its name: nothing to tell any more.
        Err(kube::Error::Api(gone)) if gone.is_not_found() || gone.is_conflict() => Ok(()),
        Err(source) => {
            Err(Error { attempt: "write the status".into(), environment: format!("{namespace}/{name}"), source })
        }
        Ok(_) => Ok(()),
    }
}
