//! `EnvironmentTemplate`: a named, immutable stack of layers that holds an operating system.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::condition::Condition;

/// An operating system that environments start from: an OCI image that holds an init. Its tag is resolved to a digest
/// once; environments keep the digest that they were made from.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "vivarium.dev",
    version = "v1alpha1",
    kind = "EnvironmentTemplate",
    status = "EnvironmentTemplateStatus",
    derive = "PartialEq",
    cel,
    shortname = "et",
    category = "vivarium",
    doc = "An operating system that environments start from: an OCI image that holds an init. Its tag is resolved to a digest once; environments keep the digest that they were made from.",
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(
        name = "OS",
        type_ = "string",
        json_path = ".status.operatingSystem",
        description = "What the image says it is"
    ),
    printcolumn(name = "Image", type_ = "string", json_path = ".spec.image"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Digest", type_ = "string", json_path = ".status.digest", priority = "1"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        priority = "1"
    ),
    validation = Rule::new("self.spec.image == oldSelf.spec.image || !has(oldSelf.status) || !has(oldSelf.status.conditions) || !oldSelf.status.conditions.exists(c, c.type == 'Ready' && c.status == 'True')").message("a template that is Ready cannot be changed, environments rely on it: create a new template for the other image")
)]
pub struct EnvironmentTemplateSpec {
    /// Reference of an OCI image, for example `registry.example.org/vivarium/debian:13` or `...@sha256:...`. It can be corrected as long as the template was not Ready.
    #[schemars(length(min = 1, max = 1024))]
    pub image: String,
}

/// What is observed of a template.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct EnvironmentTemplateStatus {
    /// Generation of the spec that this status tells of.
    #[serde(default)]
    pub observed_generation: i64,
    /// `image` of the spec that `digest` was resolved from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolved_image: Option<String>,
    /// Digest of the image's manifest for the platform of the nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Layers, lowest first, named by the digest of their uncompressed content (OCI diff id).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub layers: Vec<String>,
    /// `PRETTY_NAME` of the image's os-release(5).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operating_system: Option<String>,
    /// Nodes that hold the layers or tried to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub nodes: Vec<NodeCache>,
    /// Conditions, by type: Ready; Stalled only while True.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 32))]
    pub conditions: Vec<Condition>,
}

/// What one node holds of a template.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeCache {
    /// Name of the node.
    pub name: String,
    /// How far it is.
    pub state: CacheState,
    /// Why it failed, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// How far a node is with a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CacheState {
    /// Layers are being fetched and unpacked.
    Pulling,
    /// All layers are there.
    Cached,
    /// It did not work; it will be tried again.
    Failed,
}
