//! `VirtualEnvironment`: the one object that a user writes.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::condition::Condition;
use super::store::Tolerance;
use super::volume::ProvenStatus;
use crate::node::boot::{ResourceLimit, Sysctl};

/// A complete operating system with its own init, root user, packages and services, which shares the kernel of the node
/// it runs on and keeps every change that is made in it.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "vivarium.dev",
    version = "v1alpha1",
    kind = "VirtualEnvironment",
    namespaced,
    status = "VirtualEnvironmentStatus",
    derive = "PartialEq",
    cel,
    shortname = "ve",
    category = "vivarium",
    doc = "A complete operating system with its own init, root user, packages and services, which shares the kernel of the node it runs on and keeps every change that is made in it.",
    printcolumn(name = "Status", type_ = "string", json_path = ".status.phase", description = "What the environment does now"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status", description = "Whether it is as the spec wants it"),
    printcolumn(name = "Node", type_ = "string", json_path = ".status.node", description = "Node that it runs on"),
    printcolumn(name = "Template", type_ = "string", json_path = ".spec.template.name", description = "Template that its file tree starts from"),
    printcolumn(name = "IP", type_ = "string", json_path = ".status.podIP", description = "Address of the running incarnation"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Epoch", type_ = "integer", json_path = ".status.epoch", priority = "1", description = "Number of the incarnation"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason", priority = "1"),
    printcolumn(name = "Durable", type_ = "string", json_path = ".status.conditions[?(@.type==\"Durable\")].status", priority = "1", description = "Whether its changes survive what they should"),
    printcolumn(name = "Proven", type_ = "date", json_path = ".status.durability.proven.time", priority = "1", description = "When a restore on trial last gave the very tree"),
    printcolumn(name = "Journal", type_ = "integer", json_path = ".status.journal.head", priority = "1", description = "Number of the newest transaction, as of some minutes ago"),
    validation = Rule::new("has(self.spec.source) == has(oldSelf.spec.source)").message("the source of an environment cannot be changed: create another environment"),
    validation = Rule::new("!has(self.spec.source) || !has(self.spec.volume) || !has(self.spec.volume.name)").message("give either a source or the name of a volume: a volume that exists has its tree already"),
    validation = Rule::new("self.metadata.name.size() <= 50").message("the name is too long: use at most 50 characters, so that '<name>-<number>' still is the name of a pod"),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')").message("the name must be one DNS label: lower-case letters, digits and '-', beginning with a letter and without dots, because it becomes the host name and the name of a Service")
)]
#[serde(rename_all = "camelCase")]
pub struct VirtualEnvironmentSpec {
    /// Template that the file tree starts from. It is fixed for the life of the environment.
    #[x_kube(validation = Rule::new("self == oldSelf").message("the template of an environment cannot be changed: create a new environment from the other template"))]
    pub template: TemplateReference,
    /// A state of another environment that the file tree begins with, instead of the bare template. Both have the same
    /// template. It is fixed for the life of the environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self == oldSelf").message("the source of an environment cannot be changed: create another environment"))]
    pub source: Option<Source>,
    /// What the environment should be doing: `Running` (if not given) or `Stopped`.
    #[serde(default)]
    pub run_mode: RunMode,
    /// Compute resources and disk.
    #[serde(default)]
    pub resources: Resources,
    /// The root user of the environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<Root>,
    /// Settings of the operating system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os: Option<OperatingSystem>,
    /// Ports under which a Service with the name of the environment reaches it; none: no Service is made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[schemars(length(max = 64))]
    pub services: Vec<ServicePort>,
    /// Where it may run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
    /// `PriorityClass` of its pods. When nodes have died, environments of a higher priority are started first, and the scheduler may stop pods of a lower one to make room for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')").message("the name of a PriorityClass consists of lower-case letters, digits, '-' and '.': kubectl get priorityclasses lists them"))]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
    /// The volume that holds its changes.
    #[serde(default)]
    pub volume: VolumePolicy,
    /// What its changes must survive; if not given, the `JournalStore` with the name `default` keeps them, or, where there is none, the node alone. If it changes, the journal is taken to another store while the environment runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub durability: Option<Durability>,
}

/// What the changes of an environment must survive.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.store) || !has(self.tolerate)").message("give either the store or what it must tolerate"))]
pub struct Durability {
    /// What the store must survive; the one that survives least among those that survive this is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tolerate: Option<Tolerance>,
    /// Name of the `JournalStore`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub store: Option<String>,
    /// How many other nodes keep a copy that follows the changes, so that the environment can be started there at once: 0 (if not given) or 1. It costs the room of the disk there.
    #[serde(default, skip_serializing_if = "super::volume::is_zero")]
    #[schemars(range(max = 1))]
    pub standby: u32,
}

/// Reference to an `EnvironmentTemplate`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TemplateReference {
    /// Name of the `EnvironmentTemplate`.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// A state of another environment of the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
pub struct Source {
    /// Name of the environment.
    #[schemars(length(min = 1, max = 50))]
    pub environment: String,
    /// Which state: a time such as `2026-11-25T18:00:00Z` (the last state that is not younger), or the number of a
    /// transaction (the state after it), as text.
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(validation = Rule::new("self.matches('^[1-9][0-9]{0,17}$') || self.matches('^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})$')").message("the state is a time like 2026-11-25T18:00:00Z or the number of a transaction like \"1234\", in quotes"))]
    pub at: String,
}

/// What an environment should be doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RunMode {
    /// Booted and answering.
    #[default]
    Running,
    /// Shut down in order, its data kept.
    Stopped,
}

/// Compute resources and disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("!has(self.requests) || !has(self.limits) || self.requests.all(k, !(k in self.limits) || !isQuantity(string(self.requests[k])) || !isQuantity(string(self.limits[k])) || quantity(string(self.requests[k])).compareTo(quantity(string(self.limits[k]))) <= 0)").message("a request is larger than its limit: lower the request or raise the limit"))]
pub struct Resources {
    /// What the scheduler keeps free for the environment: `cpu`, `memory`. Changed live.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[x_kube(validation = Rule::new("self.all(k, k in ['cpu', 'memory'])").message("requests may name cpu and memory; the disk has its own field"))]
    #[x_kube(validation = Rule::new("self.all(k, isQuantity(string(self[k])) && quantity(string(self[k])).isGreaterThan(quantity('0')))").message("a resource is a positive quantity such as 500m or 2 for cpu, 512Mi or 1Gi for memory"))]
    #[schemars(extend("maxProperties" = 2))]
    pub requests: BTreeMap<String, Quantity>,
    /// What the environment can use at most: `cpu`, `memory`. Changed live.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[x_kube(validation = Rule::new("self.all(k, k in ['cpu', 'memory'])").message("limits may name cpu and memory; the disk has its own field"))]
    #[x_kube(validation = Rule::new("self.all(k, isQuantity(string(self[k])) && quantity(string(self[k])).isGreaterThan(quantity('0')))").message("a resource is a positive quantity such as 500m or 2 for cpu, 512Mi or 1Gi for memory"))]
    #[schemars(extend("maxProperties" = 2))]
    pub limits: BTreeMap<String, Quantity>,
    /// How much the environment can write, beside its template; `10Gi` if not given. Grows live, never shrinks.
    #[serde(default = "default_disk")]
    #[x_kube(validation = Rule::new("isQuantity(string(self))").message("the disk is a quantity such as 512Mi or 10Gi"))]
    #[x_kube(validation = Rule::new("!isQuantity(string(self)) || quantity(string(self)).compareTo(quantity('16Mi')) >= 0").message("the disk must have at least 16Mi"))]
    #[x_kube(validation = Rule::new("!isQuantity(string(self)) || quantity(string(self)).compareTo(quantity('1Pi')) <= 0").message("the disk can have at most 1Pi"))]
    #[x_kube(validation = Rule::new("!isQuantity(string(self)) || quantity(string(self)).compareTo(quantity(string(oldSelf))) >= 0").message("a disk cannot shrink: set it back to the former size or a larger one"))]
    pub disk: Quantity,
}

fn default_disk() -> Quantity {
    Quantity("10Gi".into())
}

impl Default for Resources {
    fn default() -> Self {
        Self { requests: BTreeMap::new(), limits: BTreeMap::new(), disk: default_disk() }
    }
}

/// The root user of the environment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Root {
    /// Secrets of the same namespace that hold public keys which may log in as root by ssh. A change of a Secret reaches the running environment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    #[schemars(length(max = 16))]
    pub authorized_keys_from: Vec<AuthorizedKeysSource>,
}

/// One source of authorized keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizedKeysSource {
    /// A Secret of the same namespace.
    pub secret_ref: SecretKeyReference,
}

/// A key of a Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretKeyReference {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key of the Secret, `authorized_keys` if not given; its value has the format of sshd(8)'s `authorized_keys`.
    #[serde(default = "default_secret_key")]
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

fn default_secret_key() -> String {
    "authorized_keys".into()
}

/// Settings of the operating system, applied when it boots.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
pub struct OperatingSystem {
    /// Host name; the name of the environment if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("a host name is one DNS label: 1 to 63 lower-case letters, digits and '-'"))]
    #[schemars(length(max = 63))]
    pub hostname: Option<String>,
    /// Time zone, for example `Europe/Prague`; the template's if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+){0,2}$')").message("a time zone is an IANA name such as Europe/Prague or UTC"))]
    #[schemars(length(max = 64))]
    pub timezone: Option<String>,
    /// Locale, for example `en_US.UTF-8`; the template's if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9_.@-]+$')").message("a locale is a name such as C.UTF-8 or en_US.UTF-8"))]
    #[schemars(length(max = 64))]
    pub locale: Option<String>,
    /// Kernel parameters of the environment's own namespaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[x_kube(validation = Rule::new("self.all(s, s.name.matches('^[a-zA-Z0-9_-]+([.][a-zA-Z0-9_-]+)+$') && (s.name.startsWith('net.') || s.name.startsWith('fs.mqueue.') || s.name in ['kernel.auto_msgmni', 'kernel.msg_next_id', 'kernel.msgmax', 'kernel.msgmnb', 'kernel.msgmni', 'kernel.sem', 'kernel.sem_next_id', 'kernel.shm_next_id', 'kernel.shm_rmid_forced', 'kernel.shmall', 'kernel.shmmax', 'kernel.shmmni']))").message("only kernel parameters of the environment's own namespaces can be set: net.*, fs.mqueue.*, kernel.shm*, kernel.msg*, kernel.sem*. Any other is shared by everything on the node: ask its administrator"))]
    #[schemars(length(max = 64))]
    pub sysctls: Vec<Sysctl>,
    /// Resource limits (setrlimit(2)) of services and logins.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[x_kube(validation = Rule::new("self.all(l, l.name in ['as', 'core', 'cpu', 'data', 'fsize', 'locks', 'memlock', 'msgqueue', 'nice', 'nofile', 'nproc', 'rss', 'rtprio', 'rttime', 'sigpending', 'stack'])").message("unknown limit: use the lower-case names of setrlimit(2) without RLIMIT_, for example nofile or nproc"))]
    #[x_kube(validation = Rule::new("self.all(l, l.soft.matches('^([0-9]{1,18}|unlimited)$') && l.hard.matches('^([0-9]{1,18}|unlimited)$'))").message("a limit is a number or 'unlimited'"))]
    #[schemars(length(max = 16))]
    pub limits: Vec<ResourceLimit>,
}

/// A port of the environment's Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    /// Name of the port, a DNS label.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Port of the Service.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
    /// Port in the environment; that of the Service if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub target_port: Option<i32>,
    /// `TCP` (if not given), `UDP` or `SCTP`.
    #[serde(default)]
    pub protocol: Protocol,
}

/// Transport protocol of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(clippy::upper_case_acronyms, reason = "the names of the Kubernetes API")]
pub enum Protocol {
    /// TCP.
    #[default]
    TCP,
    /// UDP.
    UDP,
    /// SCTP.
    SCTP,
}

/// Where an environment may run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Placement {
    /// Labels that the node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub node_selector: BTreeMap<String, String>,
}

/// The volume that holds an environment's changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.name) == has(oldSelf.name)").message("the volume of an environment cannot be changed"))]
pub struct VolumePolicy {
    /// Name of the `EnvironmentVolume`; that of the environment if not given. Naming a volume that was retained gives its data to this environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self == oldSelf").message("the volume of an environment cannot be changed"))]
    #[schemars(length(min = 1, max = 50))]
    pub name: Option<String>,
    /// What becomes of the volume when the environment is deleted: `Delete` (if not given) or `Retain`.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

/// What becomes of a volume when its environment is deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    /// The data is destroyed.
    #[default]
    Delete,
    /// The volume stays until it is deleted itself; another environment can name it.
    Retain,
}

/// What is observed of an environment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualEnvironmentStatus {
    /// Generation of the spec that this status tells of.
    #[serde(default)]
    pub observed_generation: i64,
    /// One word for people; conditions are for programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// Number of the newest incarnation; 0 before the first.
    #[serde(default)]
    pub epoch: u64,
    /// Pod of the incarnation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_name: Option<String>,
    /// Node that it runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Address of the pod.
    #[serde(default, rename = "podIP", skip_serializing_if = "Option::is_none")]
    pub pod_ip: Option<String>,
    /// Address of the Service.
    #[serde(default, rename = "serviceIP", skip_serializing_if = "Option::is_none")]
    pub service_ip: Option<String>,
    /// Name of the `EnvironmentVolume`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_name: Option<String>,
    /// Digest of the template's image that the volume was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_digest: Option<String>,
    /// Incarnations in a row that failed; 0 once one was ready.
    #[serde(default)]
    pub failures: u32,
    /// Newest incarnation that `failures` counts; 0 before the first failure.
    #[serde(default)]
    pub failed_epoch: u64,
    /// The last time that the environment was started elsewhere because its node had died.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failover: Option<LastFailover>,
    /// What its changes survive; none while they are on its node alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub durability: Option<DurabilityStatus>,
    /// Its journal, as of some minutes ago.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal: Option<JournalSummary>,
    /// The last time that it was moved because the annotation `vivarium.dev/move-to` asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_move: Option<LastMove>,
    /// Conditions, by type: `Ready`, `Scheduled`, `StorageReady`, `Booted`, `UpToDate`; `Durable` once it has a journal, and `Proven` once that was tried; `Reconciling` and `Stalled` only while True.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 32))]
    pub conditions: Vec<Condition>,
}

/// What the changes of an environment survive.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DurabilityStatus {
    /// What `spec.durability` asks for; none: it does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired: Option<Tolerance>,
    /// What is reached now: what the store of the journal says that it survives, as long as it works and everything is in
    /// it; none otherwise, and the condition `Durable` says why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reached: Option<Tolerance>,
    /// The last time that another node restored the environment's volume on trial, and found the very tree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proven: Option<ProvenStatus>,
    /// Everything that was written more than so many seconds ago is in the store; 0: all but the last few seconds.
    #[serde(default)]
    pub lag_seconds: u64,
    /// Bytes that are to be added to the journal next, as far as they are known.
    #[serde(default)]
    pub lag_bytes: u64,
}

/// The journal of an environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JournalSummary {
    /// Number of the newest transaction.
    pub head: u64,
    /// When that was acknowledged.
    pub time: Time,
    /// Transaction that the newest checkpoint is of; 0: there is none.
    #[serde(default)]
    pub checkpoint: u64,
    /// Bytes of everything that the store keeps of it.
    #[serde(default)]
    pub bytes: i64,
}

/// What an environment does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// Something that it needs is missing; the condition Ready says what.
    Pending,
    /// Its pod is being placed and started.
    Starting,
    /// init runs and is not yet ready.
    Booting,
    /// It answers.
    Running,
    /// It is being shut down.
    Stopping,
    /// It is shut down because the spec says so.
    Stopped,
    /// It was shut down from inside; set runMode to Stopped and back to Running to start it again.
    PoweredOff,
    /// It ended without being told to and will be started again.
    Failed,
    /// It is being deleted.
    Deleting,
}

/// One failover, by its instants. One that is absent has not come yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastFailover {
    /// Number of the incarnation that it was started as.
    pub epoch: u64,
    /// The node that died.
    pub from_node: String,
    /// The node that it runs on since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_node: Option<String>,
    /// When the node was found to be silent.
    pub detected: MicroTime,
    /// When nothing could run on the node any more, and the volume was given to the other one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fenced: Option<MicroTime>,
    /// When the volume was there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored: Option<MicroTime>,
    /// When the operating system began to boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<MicroTime>,
    /// When it answered again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<MicroTime>,
}

/// One planned move, by its instants. One that is absent has not come yet. It did not answer from `stopping` to `ready`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastMove {
    /// Number of the incarnation that was stopped for it.
    pub epoch: u64,
    /// The node that it ran on.
    pub from_node: String,
    /// The node that it was to run on.
    pub to_node: String,
    /// When the copy there was ready, and the environment was told to shut down.
    pub stopping: MicroTime,
    /// When it was shut down and all that it had written was in the journal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<MicroTime>,
    /// When the operating system began to boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<MicroTime>,
    /// When it answered again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<MicroTime>,
}
