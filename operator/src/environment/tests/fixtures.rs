//! Worlds to decide about.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Service};
use kube::ResourceExt;
use serde_json::{Value, json};
use vivarium_api::names;
use vivarium_api::v1alpha1::{
    Condition, EnvironmentTemplate, EnvironmentVolume, JournalStore, VirtualEnvironment, condition,
};

use crate::environment::build;
use crate::environment::decision::{Action, Decision};
use crate::environment::lifecycle::{Settings, decide};
use crate::environment::world::{Met, NodeState, Nodes, World};

pub const UID: &str = "11111111-0000-0000-0000-000000000000";
pub const VOLUME_UID: &str = "22222222-0000-0000-0000-000000000000";
pub const IMAGE: &str = "example.org/debian@sha256:abc";

pub fn now() -> Timestamp {
    "2026-01-01T12:00:00Z".parse().unwrap()
}

pub fn settings() -> Settings {
    Settings { stub_image: "example.org/stub:1".into() }
}

pub fn environment(spec: &Value) -> VirtualEnvironment {
    let mut object = json!({"apiVersion": "vivarium.dev/v1alpha1", "kind": "VirtualEnvironment",
        "metadata": {"name": "shop", "namespace": "team-a", "uid": UID, "generation": 1, "resourceVersion": "1",
            "finalizers": [names::FINALIZER_ENVIRONMENT]},
        "spec": {"template": {"name": "debian-13"}}, "status": {"observedGeneration": -1}});
    for (key, value) in spec.as_object().unwrap() {
        object["spec"][key] = value.clone();
    }
    serde_json::from_value(object).unwrap()
}

pub fn template() -> EnvironmentTemplate {
    serde_json::from_value(json!({"apiVersion": "vivarium.dev/v1alpha1", "kind": "EnvironmentTemplate",
        "metadata": {"name": "debian-13", "generation": 1}, "spec": {"image": "example.org/debian:13"},
        "status": {"observedGeneration": 1, "digest": "sha256:abc", "layers": ["sha256:l1", "sha256:l2"],
            "resolvedImage": "example.org/debian:13", "conditions": [condition_json("Ready", "True", "Cached", "")]}}))
    .unwrap()
}

pub fn condition_json(type_: &str, status: &str, reason: &str, message: &str) -> Value {
    json!({"type": type_, "status": status, "reason": reason, "message": message, "lastTransitionTime": "2026-01-01T11:00:00Z"})
}

pub fn volume(status: &Value) -> EnvironmentVolume {
    serde_json::from_value(json!({"apiVersion": "vivarium.dev/v1alpha1", "kind": "EnvironmentVolume",
        "metadata": {"name": "shop", "namespace": "team-a", "uid": VOLUME_UID, "resourceVersion": "5",
            "finalizers": [names::FINALIZER_VOLUME]},
        "spec": {"template": {"name": "debian-13", "image": IMAGE, "layers": ["sha256:l1"]}, "size": "10Gi", "environment": "shop"},
        "status": status}))
    .unwrap()
}

/// A store that every node reaches.
pub fn store() -> JournalStore {
    serde_json::from_value(json!({"apiVersion": "vivarium.dev/v1alpha1", "kind": "JournalStore",
        "metadata": {"name": "default"},
        "spec": {"s3": {"endpoint": "https://x", "bucket": "abc", "credentialsSecret": {"name": "s"}}}}))
    .unwrap()
}

/// A world in which nothing exists but the environment, its template, and a healthy node.
pub fn empty(spec: &Value) -> World {
    World {
        environment: Arc::new(environment(spec)),
        template: Some(Arc::new(template())),
        volume: None,
        source: None,
        persistent_volume: None,
        claim: None,
        service: None,
        pods: Vec::new(),
        secrets: Some(std::collections::BTreeMap::new()),
        stores: vec![],
        nodes: Nodes {
            any_pool: true,
            of_volume: None,
            session: Some("s1".into()),
            of_holder: None,
            candidates: Vec::new(),
            hosts: Vec::new(),
        },
        deaths: Arc::default(),
        silent: std::collections::BTreeSet::new(),
        met: Met::default(),
    }
}

/// A world in which everything but the pod is there.
pub fn prepared(spec: &Value) -> World {
    let mut world = empty(spec);
    let made = volume(&json!({"observedGeneration": -1}));
    let environment = Arc::clone(&world.environment);
    let mut persistent: PersistentVolume = build::persistent_volume(&environment, &made).unwrap();
    persistent.status = Some(serde_json::from_value(json!({"phase": "Bound"})).unwrap());
    let mut claim: PersistentVolumeClaim = build::claim(&environment, &made).unwrap();
    claim.status = Some(serde_json::from_value(json!({"phase": "Bound"})).unwrap());
    let service: Option<Service> = build::service(&environment);
    world.volume = Some(Arc::new(made));
    world.persistent_volume = Some(Arc::new(persistent));
    world.claim = Some(Arc::new(claim));
    world.service = service.map(Arc::new);
    world
}

/// A pod of the environment with a status.
pub fn pod(world: &World, epoch: u64, node: Option<&str>, status: &Value) -> Pod {
    let mut pod = build::pod(
        &world.environment,
        world.volume.as_ref().unwrap(),
        epoch,
        &settings().stub_image,
        &build::Place::Data,
    )
    .unwrap();
    pod.metadata.uid = Some(format!("pod-{epoch}"));
    pod.spec.as_mut().unwrap().node_name = node.map(Into::into);
    pod.status = Some(serde_json::from_value(status.clone()).unwrap());
    pod
}

/// A world in which incarnation `epoch` has a pod with that status, on n1, and holds the volume.
pub fn with_pod(spec: &Value, epoch: u64, status: &Value) -> World {
    let mut world = prepared(spec);
    world.pods = vec![Arc::new(pod(&world, epoch, Some("n1"), status))];
    let held = json!({"observedGeneration": 1, "epoch": epoch, "node": "n1", "holder": {"node": "n1", "session": "s1"}, "holderPod": format!("pod-{epoch}"),
        "conditions": [condition_json("Published", "True", "Published", "")]});
    world.volume = Some(Arc::new(volume(&held)));
    world.nodes.of_volume = Some(NodeState::Ready);
    world
}

pub fn running() -> Value {
    container("Running", &json!({"running": {"startedAt": "2026-01-01T11:59:00Z"}}), "True")
}

pub fn container(phase: &str, state: &Value, ready: &str) -> Value {
    json!({"phase": phase, "podIP": "10.1.2.3",
        "containerStatuses": [{"name": "environment", "state": state, "image": "", "imageID": "", "ready": true, "restartCount": 0}],
        "conditions": [{"type": "Ready", "status": ready}, {"type": names::CONDITION_BOOTED, "status": ready, "reason": "Running"}]})
}

pub fn failed(at: &str) -> Value {
    container(
        "Failed",
        &json!({"terminated": {"exitCode": 1, "reason": "Error", "message": "init said no", "finishedAt": at}}),
        "False",
    )
}

pub fn powered_off() -> Value {
    container("Succeeded", &json!({"terminated": {"exitCode": 0, "reason": "Completed"}}), "False")
}

pub fn terminating(mut pod: Pod) -> Pod {
    pod.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now()));
    pod
}

pub fn change(world: &mut World, change: impl FnOnce(&mut VirtualEnvironment)) {
    change(Arc::make_mut(&mut world.environment));
}

pub fn decided(world: &World) -> Decision {
    decide(world, now(), &settings()).unwrap()
}

/// Actions in short, for tables.
pub fn short(decision: &Decision) -> Vec<String> {
    let one = |action: &Action| match action {
        Action::AddFinalizer => "finalizer on".to_owned(),
        Action::RemoveFinalizer => "finalizer off".to_owned(),
        Action::CreateVolume(v) => format!("create volume {}", v.name_any()),
        Action::ReplaceVolume(v, change) => format!("{change:?} volume {}", v.name_any()),
        Action::ReplaceVolumeStatus(v) => {
            let status = v.status.clone().unwrap_or_default();
            match status.holder {
                Some(holder) => {
                    let copy = status.standby.map(|standby| format!(" copy {}", standby.node)).unwrap_or_default();
                    format!("hold {} {} {}{copy}", holder.node, holder.session, status.epoch)
                }
                None => "release".to_owned(),
            }
        }
        Action::DeleteVolume(doomed) => format!("delete volume {}", doomed.name),
        Action::Apply(child) => {
            use crate::environment::decision::Child;
            match child {
                Child::PersistentVolume(_) => "apply pv",
                Child::Claim(_) => "apply claim",
                Child::Service(_) => "apply service",
            }
            .to_owned()
        }
        Action::Delete(kind, doomed) => format!("delete {} {}", kind.as_str(), doomed.name),
        Action::CreatePod(pod) => format!("create pod {}", pod.name_any()),
        Action::DeletePod(doomed) => format!("delete pod {}", doomed.name),
        Action::RemovePod(doomed) => format!("remove pod {}", doomed.name),
        Action::EndMove => "end move".to_owned(),
        Action::AwakenPod { name } => format!("awaken pod {name}"),
        Action::ResizePod { name, .. } => format!("resize pod {name}"),
    };
    decision.actions.iter().map(one).collect()
}

pub fn ready(decision: &Decision) -> Condition {
    shown(decision, "Ready")
}

pub fn shown(decision: &Decision, type_: &str) -> Condition {
    condition::find(&decision.status.conditions, type_).unwrap_or_else(|| panic!("no condition {type_}")).clone()
}

pub fn has(decision: &Decision, type_: &str) -> bool {
    condition::is_true(&decision.status.conditions, type_)
}
