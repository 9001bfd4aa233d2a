//! `JournalStore`: where the transaction files of environments and the layers of templates are kept.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::condition::Condition;

/// A place that keeps journals: a bucket of an S3 store, or a directory of a node. Every node tries it out before anything
/// is entrusted to it: it must create an object only if there is none, atomically.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "vivarium.dev",
    version = "v1alpha1",
    kind = "JournalStore",
    status = "JournalStoreStatus",
    derive = "PartialEq",
    cel,
    shortname = "js",
    category = "vivarium",
    doc = "A place that keeps journals: a bucket of an S3 store, or a directory of a node. Every node tries it out before anything is entrusted to it: it must create an object only if there is none, atomically.",
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Type", type_ = "string", json_path = ".status.type", description = "S3 or Local"),
    printcolumn(
        name = "Tolerates",
        type_ = "integer",
        json_path = ".spec.tolerates.failures",
        description = "How many failures at once it survives"
    ),
    printcolumn(
        name = "Bytes",
        type_ = "integer",
        json_path = ".status.usage.bytes",
        description = "Bytes of everything in it"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Domain",
        type_ = "string",
        json_path = ".spec.tolerates.domain",
        description = "What may fail",
        priority = "1"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        priority = "1"
    ),
    printcolumn(
        name = "Journals",
        type_ = "integer",
        json_path = ".status.usage.journals",
        description = "Of these, journals of volumes",
        priority = "1"
    ),
    printcolumn(
        name = "Layers",
        type_ = "integer",
        json_path = ".status.usage.layers",
        description = "Of these, layers of templates",
        priority = "1"
    ),
    printcolumn(
        name = "Unknown",
        type_ = "integer",
        json_path = ".status.usage.unknownJournals",
        description = "Of these, journals of volumes that the cluster does not know",
        priority = "1"
    ),
    validation = Rule::new("has(self.spec.s3) != has(self.spec.local)").message("a store is one of s3 and local: give exactly one of them"),
    validation = Rule::new("!has(oldSelf.status) || !has(oldSelf.status.conditions) || !oldSelf.status.conditions.exists(c, c.type == 'Ready' && c.status == 'True') || (has(self.spec.s3) == has(oldSelf.spec.s3) && (has(self.spec.s3) && has(oldSelf.spec.s3) ? (self.spec.s3.bucket == oldSelf.spec.s3.bucket && (has(self.spec.s3.prefix) ? self.spec.s3.prefix : '') == (has(oldSelf.spec.s3.prefix) ? oldSelf.spec.s3.prefix : '') && ((has(self.spec.mirrors) ? size(self.spec.mirrors) : 0) == 0 && (has(oldSelf.spec.mirrors) ? size(oldSelf.spec.mirrors) : 0) == 0 || has(self.spec.mirrors) && has(oldSelf.spec.mirrors) && self.spec.mirrors == oldSelf.spec.mirrors) || has(oldSelf.spec.mirrors) && (has(oldSelf.spec.mirrors) ? size(oldSelf.spec.mirrors) : 0) == (has(self.spec.mirrors) ? size(self.spec.mirrors) : 0) + 1 && self.spec.s3.bucket == oldSelf.spec.mirrors[0].bucket && (has(self.spec.s3.prefix) ? self.spec.s3.prefix : '') == (has(oldSelf.spec.mirrors[0].prefix) ? oldSelf.spec.mirrors[0].prefix : '') && ((has(self.spec.mirrors) ? size(self.spec.mirrors) : 0) == 0 || self.spec.mirrors[0] == oldSelf.spec.mirrors[1]) && ((has(self.spec.mirrors) ? size(self.spec.mirrors) : 0) < 2 || self.spec.mirrors[1] == oldSelf.spec.mirrors[2])) : true) && (has(self.spec.local) && has(oldSelf.spec.local) ? self.spec.local.path == oldSelf.spec.local.path : true))").message("the buckets, prefixes or directory of a store that is Ready cannot be changed, journals are in it: create a new store. Only the first bucket can be given up, if the mirrors take its place in their order"),
    validation = Rule::new("!has(self.spec.mirrors) || size(self.spec.mirrors) == 0 || has(self.spec.s3)").message("only a bucket can have mirrors: give s3, too")
)]
pub struct JournalStoreSpec {
    /// A bucket of a store that speaks S3, for example Ceph RGW or a cloud's object store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s3: Option<S3Store>,
    /// Further buckets, best of other stores in other places, that have to have everything too before it counts. Each gets
    /// it after the one before. Any of them, or the first, can be lost. While one does not answer what environments change
    /// is kept on their nodes alone, and none of them starts on another node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    #[schemars(length(max = 3))]
    pub mirrors: Vec<S3Store>,
    /// A directory of the node. Each node has its own, so this is right for a cluster of one node only: what one node
    /// writes no other can read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<LocalStore>,
    /// What the store survives without losing anything. It is not measured: say what holds.
    #[serde(default)]
    pub tolerates: Tolerance,
}

impl JournalStoreSpec {
    /// The buckets: the first one, and its mirrors.
    pub fn buckets(&self) -> impl Iterator<Item = &S3Store> {
        self.s3.iter().chain(&self.mirrors)
    }
}

/// A bucket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct S3Store {
    /// URL of the server, for example `https://s3.example.org`. Without credentials in it.
    #[schemars(length(min = 8, max = 1024))]
    #[x_kube(validation = Rule::new("self.matches('^https?://[^@?# ]+$')").message("the endpoint is a URL like https://s3.example.org, without credentials: those are in the Secret"))]
    pub endpoint: String,
    /// Name of the bucket. It must exist.
    #[schemars(length(min = 3, max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9][a-z0-9.-]*[a-z0-9]$')").message("the name of a bucket is 3 to 63 small letters, digits, '-' and '.'"))]
    pub bucket: String,
    /// Region that requests are signed for; most stores other than Amazon's ignore it.
    #[serde(default = "default_region")]
    #[schemars(length(min = 1, max = 64))]
    pub region: String,
    /// What the names of all objects begin with, so that several clusters can share a bucket.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 512))]
    #[x_kube(validation = Rule::new("self.matches('^([A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*)?$')").message("a prefix is segments of letters, digits, '-', '_' and '.' with '/' between them"))]
    pub prefix: String,
    /// Whether the bucket is part of the path, as most stores on own hardware want it, or of the host name.
    #[serde(default = "yes")]
    pub path_style: bool,
    /// Whether the endpoint may be plain http. Everybody on the way can then read and change what is stored.
    #[serde(default)]
    pub allow_http: bool,
    /// Secret in the namespace that Vivarium is installed in, with the keys `AWS_ACCESS_KEY_ID` and
    /// `AWS_SECRET_ACCESS_KEY`. The chart lets the nodes read the one that its values name, and those of
    /// `store.secrets`.
    pub credentials_secret: SecretName,
}

/// Name of a Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretName {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// A directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
pub struct LocalStore {
    /// The directory, below `/var/lib/vivarium` and outside of the pool. It is made when it is not there. Mount another
    /// disk there, so that the journals outlive the pool.
    #[schemars(length(min = 1, max = 1024))]
    #[x_kube(validation = Rule::new("self.matches('^/var/lib/vivarium(/[A-Za-z0-9_-][A-Za-z0-9._-]*)+$') && !(self + '/').startsWith('/var/lib/vivarium/pool/')").message("the directory is below /var/lib/vivarium, outside of /var/lib/vivarium/pool, without '..'"))]
    pub path: String,
}

/// What a store survives.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Tolerance {
    /// How many failures at the same time.
    #[serde(default)]
    #[schemars(range(max = 16))]
    pub failures: u32,
    /// Of what.
    #[serde(default)]
    pub domain: FailureDomain,
}

impl Tolerance {
    /// Whether what survives this survives that. A store that survives the loss of a zone survives that of a node in it.
    #[must_use]
    pub fn is_enough_for(&self, wanted: &Self) -> bool {
        self.failures >= wanted.failures && (self.domain >= wanted.domain || wanted.failures == 0)
    }
}

/// What can fail as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum FailureDomain {
    /// A node.
    #[default]
    Node,
    /// A zone.
    Zone,
    /// A region.
    Region,
}

/// What is observed of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct JournalStoreStatus {
    /// Generation of the spec that this status tells of.
    #[serde(default)]
    pub observed_generation: i64,
    /// `S3` or `Local`.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub type_: Option<String>,
    /// Nodes that tried the store.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub nodes: Vec<NodeStore>,
    /// What is in the store, as it was found last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<StoreUsage>,
    /// Conditions, by type: Ready; Stalled only while True.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 32))]
    pub conditions: Vec<Condition>,
}

/// What one node found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeStore {
    /// Name of the node.
    pub name: String,
    /// Generation of the spec that it tried.
    #[serde(default)]
    pub observed_generation: i64,
    /// Whether the store did what it has to.
    pub proven: bool,
    /// `Proven`, or why not, as one word of the runbook.
    pub reason: String,
    /// Why not, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// What is in a store. Of one that is a directory of each node: in that of one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct StoreUsage {
    /// Bytes of everything.
    pub bytes: i64,
    /// Bytes of the journals of volumes, as far as they were looked after already (`status.kept` of each).
    pub journals: i64,
    /// Bytes of journals of volumes that the cluster does not know. They stay until somebody deletes them.
    pub unknown_journals: i64,
    /// Bytes of the layers of templates.
    pub layers: i64,
    /// Bytes of everything else: fences, signs of life of nodes.
    pub others: i64,
    /// Layers that no volume and no template names. They are deleted when that has been so for as long as states of volumes
    /// are kept, and every journal in the store is known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["digest".into()]))]
    #[schemars(length(max = 256))]
    pub unnamed_layers: Vec<UnnamedLayer>,
    /// The node that looked.
    pub node: String,
    /// When.
    pub time: Time,
}

/// A layer that nothing names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UnnamedLayer {
    /// Digest of the layer.
    pub digest: String,
    /// Since when it was seen so.
    pub since: Time,
}

fn default_region() -> String {
    "us-east-1".into()
}

fn yes() -> bool {
    true
}
