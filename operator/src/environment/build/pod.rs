//! The pod of one incarnation. It passes `PodSecurity` level `baseline`: what an operating system needs beyond that is
//! given by the runtime class.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    Affinity, Container, DownwardAPIProjection, DownwardAPIVolumeFile, KeyToPath, NodeAffinity, NodeSelector,
    NodeSelectorRequirement, NodeSelectorTerm, ObjectFieldSelector, PersistentVolumeClaimVolumeSource, Pod,
    PodReadinessGate, PodSpec, PreferredSchedulingTerm, ProjectedVolumeSource, ResourceRequirements, SecretProjection,
    Toleration, Volume, VolumeMount, VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::ResourceExt;
use vivarium_api::names;
use vivarium_api::v1alpha1::environment::Resources;
use vivarium_api::v1alpha1::{EnvironmentVolume, VirtualEnvironment};

use super::{StartedWith, child};
use crate::quantity::Amount;

/// Time that an operating system has to shut down before it is killed.
const GRACE_SECONDS: i64 = 90;
/// How much the node that has the data is preferred, and the one that has a copy of them. There nothing has to be brought.
const LAST: i32 = 100;
const STANDBY: i32 = 60;
/// Requests of an environment that asks for nothing. Without requests of its own Kubernetes would take the limits for
/// them, and nodes could not be overcommitted.
const DEFAULT_REQUESTS: [(&str, &str); 2] = [("cpu", "10m"), ("memory", "32Mi")];

/// The pod of incarnation `epoch` on `volume`.
pub fn pod(
    environment: &VirtualEnvironment,
    volume: &EnvironmentVolume,
    epoch: u64,
    stub_image: &str,
    place: &Place,
) -> Result<Pod, serde_json::Error> {
    let started_with = StartedWith::of(environment);
    let name = environment.name_any();
    let mut metadata = child(environment, names::pod(&name, epoch));
    metadata.labels.get_or_insert_default().insert(names::LABEL_EPOCH.into(), epoch.to_string());
    metadata.annotations = Some(started_with.annotations()?);
    let mut node_selector = started_with.node_selector.clone();
    node_selector.insert(names::TOPOLOGY_POOL.into(), "true".into());
    let mount = |name: &str, path: &str, read_only: bool| VolumeMount {
        name: name.into(),
        mount_path: path.into(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    };
    let container = Container {
        name: names::CONTAINER.into(),
        image: Some(stub_image.into()),
        image_pull_policy: Some("IfNotPresent".into()),
        command: Some(vec!["/sbin/init".into()]),
        tty: Some(true),
        stdin: Some(true),
        resources: Some(resources(&environment.spec.resources)),
        volume_mounts: Some(vec![mount("root", names::MOUNT_ROOT, false), mount("config", names::MOUNT_CONFIG, true)]),
        ..Container::default()
    };
    let spec = PodSpec {
        runtime_class_name: Some(names::RUNTIME_CLASS.into()),
        priority_class_name: started_with.priority_class_name.clone(),
        host_users: Some(false),
        hostname: Some(started_with.boot.hostname.clone()),
        restart_policy: Some("Never".into()),
        enable_service_links: Some(false),
        automount_service_account_token: Some(false),
        termination_grace_period_seconds: Some(GRACE_SECONDS),
        node_selector: Some(node_selector),
        affinity: affinity(volume.status.as_ref().and_then(|s| s.node.as_deref()), place),
        tolerations: Some(["not-ready", "unreachable"].map(tolerated_for_ever).into()),
        readiness_gates: Some(vec![PodReadinessGate { condition_type: names::CONDITION_BOOTED.into() }]),
        containers: vec![container],
        volumes: Some(vec![root_volume(volume), config_volume(&started_with)]),
        ..PodSpec::default()
    };
    Ok(Pod { metadata, spec: Some(spec), status: None })
}

/// Compute resources of the container.
#[must_use]
pub fn resources(wanted: &Resources) -> ResourceRequirements {
    let mut requests = wanted.requests.clone();
    for (name, default) in DEFAULT_REQUESTS {
        requests.entry(name.into()).or_insert_with(|| {
            let default = Quantity(default.into());
            match wanted.limits.get(name) {
                Some(limit) if Amount::of(limit) < Amount::of(&default) => limit.clone(),
                _ => default,
            }
        });
    }
    ResourceRequirements {
        requests: Some(requests),
        limits: Some(wanted.limits.clone()).filter(|limits| !limits.is_empty()),
        claims: None,
    }
}

fn root_volume(volume: &EnvironmentVolume) -> Volume {
    Volume {
        name: "root".into(),
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: names::claim(&volume.name_any()),
            ..PersistentVolumeClaimVolumeSource::default()
        }),
        ..Volume::default()
    }
}

/// The boot configuration comes with the pod. A kubelet that first has to ask for an object may do so before the API
/// server's own picture says that this node may read it (see [`crate::environment::awaken`]), and asks again a second later.
fn config_volume(started_with: &StartedWith) -> Volume {
    let annotation = format!("metadata.annotations['{}']", names::ANNOTATION_BOOT);
    let boot = DownwardAPIVolumeFile {
        path: names::BOOT_CONFIG_FILE.into(),
        field_ref: Some(ObjectFieldSelector { field_path: annotation, api_version: None }),
        ..DownwardAPIVolumeFile::default()
    };
    let boot = VolumeProjection {
        downward_api: Some(DownwardAPIProjection { items: Some(vec![boot]) }),
        ..VolumeProjection::default()
    };
    let keys = started_with.authorized_keys_from.iter().enumerate().map(|(i, source)| VolumeProjection {
        secret: Some(SecretProjection {
            name: source.secret_ref.name.clone(),
            items: Some(vec![KeyToPath {
                key: source.secret_ref.key.clone(),
                path: format!("{}/{i}", names::AUTHORIZED_KEYS_DIR),
                mode: None,
            }]),
            // A Secret that is deleted later must not keep the environment from starting again.
            optional: Some(true),
        }),
        ..VolumeProjection::default()
    });
    Volume {
        name: "config".into(),
        projected: Some(ProjectedVolumeSource {
            sources: Some(std::iter::once(boot).chain(keys).collect()),
            ..ProjectedVolumeSource::default()
        }),
        ..Volume::default()
    }
}

/// Where the pod of an incarnation may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Only to the node that has the data.
    Data,
    /// To any node but these, best to the one that has the data, or else to the one that has a copy.
    Anywhere {
        /// Nodes that are dead. The scheduler learns that much later.
        but: BTreeSet<String>,
        /// Node that has a copy of the data.
        standby: Option<String>,
    },
    /// To this node alone.
    Only(String),
}

fn affinity(data: Option<&str>, place: &Place) -> Option<Affinity> {
    let requirement = |operator: &str, node: &str| NodeSelectorRequirement {
        key: "metadata.name".into(),
        operator: operator.into(),
        values: Some(vec![node.into()]),
    };
    let only = |node| NodeSelectorTerm { match_fields: Some(vec![requirement("In", node)]), match_expressions: None };
    let mut affinity = NodeAffinity::default();
    let mut required = Vec::new();
    match place {
        Place::Data => required.extend(data.map(only)),
        Place::Only(node) => required.push(only(node)),
        Place::Anywhere { but, standby } => {
            // The API takes one name per requirement, and all requirements of a term hold.
            if !but.is_empty() {
                let one = |node: &String| requirement("NotIn", node);
                let fields = Some(but.iter().map(one).collect());
                required.push(NodeSelectorTerm { match_fields: fields, match_expressions: None });
            }
            let first = [(data, LAST), (standby.as_deref(), STANDBY)];
            let first = first.into_iter().filter_map(|(node, weight)| {
                let node = node.filter(|node| !but.contains(*node))?;
                Some(PreferredSchedulingTerm { weight, preference: only(node) })
            });
            let first: Vec<_> = first.collect();
            affinity.preferred_during_scheduling_ignored_during_execution =
                Some(first).filter(|first| !first.is_empty());
        }
    }
    if !required.is_empty() {
        affinity.required_during_scheduling_ignored_during_execution =
            Some(NodeSelector { node_selector_terms: required });
    }
    (affinity != NodeAffinity::default()).then(|| Affinity { node_affinity: Some(affinity), ..Affinity::default() })
}

/// Nodes that a pod must not go to.
#[must_use]
pub fn shunned(pod: &Pod) -> BTreeSet<String> {
    required(pod, "NotIn")
}

/// The one node that a pod can go to, if there is but one.
#[must_use]
pub fn bound_to(pod: &Pod) -> Option<String> {
    required(pod, "In").pop_first()
}

fn required(pod: &Pod, operator: &str) -> BTreeSet<String> {
    let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref()?.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    let fields =
        required.iter().flat_map(|r| &r.node_selector_terms).flat_map(|term| term.match_fields.iter().flatten());
    fields
        .filter(|field| field.operator == operator)
        .flat_map(|field| field.values.clone().unwrap_or_default())
        .collect()
}

/// Kubernetes must not move an environment because its node is silent: that is decided by whoever can fence the node.
fn tolerated_for_ever(taint: &str) -> Toleration {
    Toleration {
        key: Some(format!("node.kubernetes.io/{taint}")),
        operator: Some("Exists".into()),
        effect: Some("NoExecute".into()),
        ..Toleration::default()
    }
}
