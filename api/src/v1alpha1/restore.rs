//! `EnvironmentRestore`: an environment goes back to what it was.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::condition::Condition;

/// Brings an environment, or some of its files and directories, back to a former state: it is shut down, gets the state, and
/// starts again. Its journal goes on, so a restore can be undone by another one. Deleting the object does not undo it, nor
/// call it off.
#[allow(clippy::duplicated_attributes, reason = "columns have types and priorities of their own")]
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "vivarium.dev",
    version = "v1alpha1",
    kind = "EnvironmentRestore",
    namespaced,
    status = "EnvironmentRestoreStatus",
    derive = "PartialEq",
    cel,
    shortname = "er",
    category = "vivarium",
    doc = "Brings an environment, or some of its files and directories, back to a former state: it is shut down, gets the state, and starts again. Its journal goes on, so a restore can be undone by another one. Deleting the object does not undo it, nor call it off.",
    printcolumn(name = "Environment", type_ = "string", json_path = ".spec.environment"),
    printcolumn(name = "At", type_ = "string", json_path = ".spec.at", description = "The state that is asked for"),
    printcolumn(name = "Complete", type_ = "string", json_path = ".status.conditions[?(@.type==\"Complete\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Complete\")].reason"),
    printcolumn(
        name = "Transaction",
        type_ = "integer",
        json_path = ".status.sequence",
        priority = "1",
        description = "The transaction after which the environment was in that state"
    ),
    printcolumn(
        name = "Undo",
        type_ = "integer",
        json_path = ".status.before",
        priority = "1",
        description = "The newest transaction before: to restore that undoes this"
    ),
    printcolumn(name = "Paths", type_ = "string", json_path = ".spec.paths", priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.spec == oldSelf.spec").message("a restore cannot be changed: create another one")
)]
pub struct EnvironmentRestoreSpec {
    /// Name of the environment, in the same namespace.
    #[schemars(length(min = 1, max = 50))]
    pub environment: String,
    /// Which state: a time such as `2026-11-25T18:00:00Z` (the last state that is not younger), or the number of a
    /// transaction (the state after it), as text.
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(validation = Rule::new("self.matches('^[1-9][0-9]{0,17}$') || self.matches('^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})$')").message("the state is a time like 2026-11-25T18:00:00Z or the number of a transaction like \"1234\", in quotes"))]
    pub at: String,
    /// Files and directories that are brought back, by their absolute paths in the environment; without any, all of it is.
    /// Each becomes what it was, with all that was in it and nothing else; what is not named stays. What was not there then
    /// is refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 2, max = 1024)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    #[x_kube(validation = Rule::new("self.all(p, p.matches('^(/([^/.[:cntrl:]]|[.][^/.[:cntrl:]]|[.][.][^/[:cntrl:]])[^/[:cntrl:]]*)+$'))").message("a path is absolute and plain, like /etc/ssh: it begins with '/', does not end with it, and has no part that is empty, '.' or '..'; to restore all of the environment, give no paths"))]
    #[x_kube(validation = Rule::new("self.all(p, !self.exists(q, p != q && p.startsWith(q + '/')))").message("one of the paths lies in another one of them: give the outer one alone"))]
    pub paths: Vec<String>,
}

/// What became of a restore.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct EnvironmentRestoreStatus {
    /// Generation of the spec that this status tells of.
    #[serde(default)]
    pub observed_generation: i64,
    /// Transaction after which the environment was in the state that is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// When it was in that state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Time>,
    /// The newest transaction before the restore: to restore that undoes this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<u64>,
    /// Conditions, by type: `Complete`, `Failed`; `Reconciling` while it is under way, `Stalled` when it failed.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 32))]
    pub conditions: Vec<Condition>,
}
