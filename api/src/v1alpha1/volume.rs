//! `EnvironmentVolume`: the private, writable part of one environment, and who may write it.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::condition::Condition;

/// What an environment changed against its template. The operator makes one for each environment.
#[allow(clippy::duplicated_attributes, reason = "columns have types and priorities of their own")]
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "vivarium.dev",
    version = "v1alpha1",
    kind = "EnvironmentVolume",
    namespaced,
    status = "EnvironmentVolumeStatus",
    derive = "PartialEq",
    cel,
    shortname = "evol",
    category = "vivarium",
    doc = "What an environment changed against its template. The operator makes one for each environment.",
    printcolumn(
        name = "Environment",
        type_ = "string",
        json_path = ".spec.environment",
        description = "Environment that uses it; empty when it was retained"
    ),
    printcolumn(name = "Node", type_ = "string", json_path = ".status.node", description = "Node that holds the data"),
    printcolumn(name = "Size", type_ = "string", json_path = ".spec.size"),
    printcolumn(name = "Used", type_ = "integer", json_path = ".status.usedBytes", description = "Bytes"),
    printcolumn(name = "Template", type_ = "string", json_path = ".spec.template.name"),
    printcolumn(
        name = "Store",
        type_ = "string",
        json_path = ".spec.store",
        description = "JournalStore that is to keep its journal; empty: the data is on its node alone"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Epoch", type_ = "integer", json_path = ".status.epoch", priority = "1"),
    printcolumn(
        name = "Journal",
        type_ = "integer",
        json_path = ".status.journal.sequence",
        priority = "1",
        description = "Number of the newest transaction that was told of"
    ),
    printcolumn(
        name = "Standby",
        type_ = "string",
        json_path = ".status.standby.node",
        priority = "1",
        description = "Node that keeps a copy which follows the journal"
    ),
    printcolumn(
        name = "Followed",
        type_ = "integer",
        json_path = ".status.standby.sequence",
        priority = "1",
        description = "Number of the newest transaction in that copy"
    ),
    printcolumn(
        name = "Kept",
        type_ = "integer",
        json_path = ".status.kept.bytes",
        priority = "1",
        description = "Bytes of the journal in its store"
    ),
    validation = Rule::new("!has(oldSelf.spec.store) || has(self.spec.store)").message("the journal of a volume can be taken to another store, but not be given up: set spec.store"),
    validation = Rule::new("!has(oldSelf.spec.store) || !has(self.spec.store) || self.spec.store == oldSelf.spec.store || has(self.status) && has(self.status.log)").message("the journal of a volume can be taken to another store only once it was begun in its first one, which status.log shows: set spec.store back until then")
)]
#[serde(rename_all = "camelCase")]
pub struct EnvironmentVolumeSpec {
    /// Template layers that the volume lies on.
    #[x_kube(validation = Rule::new("self == oldSelf").message("the template of a volume cannot be changed"))]
    pub template: VolumeTemplate,
    /// How much can be written. It can grow, not shrink.
    #[x_kube(validation = Rule::new("isQuantity(string(self))").message("the size is a quantity such as 512Mi or 10Gi"))]
    #[x_kube(validation = Rule::new("!isQuantity(string(self)) || quantity(string(self)).compareTo(quantity(string(oldSelf))) >= 0").message("a volume cannot shrink: set it back to the former size or a larger one"))]
    pub size: Quantity,
    /// Environment of the same namespace that uses the volume; none when it was retained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// `JournalStore` that is to keep every change, so that any node can bring the volume back; none: the data is on one node
    /// alone. Where the journal is at present is in `status.log`: it follows when the volume is in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
    /// A state of another volume that this one begins with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self == oldSelf").message("the source of a volume cannot be changed"))]
    pub source: Option<VolumeSource>,
    /// The newest `EnvironmentRestore` of the environment that was let through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore: Option<RestoreOrder>,
    /// How many other nodes keep a copy that follows the journal, so that they can take over at once: 0 or 1.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(range(max = 1))]
    pub standby: u32,
}

/// A state of another volume of the same namespace, which lies on the same template layers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
pub struct VolumeSource {
    /// UID of the volume.
    pub volume: String,
    /// Name of the `JournalStore` that keeps its journal.
    pub store: String,
    /// Name of its log there; none: its UID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
    /// Logs that it had left before, the newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    #[schemars(length(max = 16))]
    pub left: Vec<VolumeLog>,
    /// Which state: a time (RFC 3339), or the number of a transaction.
    pub at: String,
}

/// A former state that the volume is to be brought back to, before the next incarnation starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
pub struct RestoreOrder {
    /// Name of the `EnvironmentRestore`.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Which state: a time (RFC 3339), or the number of a transaction.
    pub at: String,
    /// Files and directories of the environment that are brought back, by their absolute paths; empty: all of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub paths: Vec<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde gives it so")]
pub(super) fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Template of a volume, fixed when the volume is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
pub struct VolumeTemplate {
    /// Name of the `EnvironmentTemplate` at that time.
    pub name: String,
    /// Image reference that nodes pull the layers from, with digest.
    pub image: String,
    /// Layers, lowest first, by diff id.
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    #[schemars(length(min = 1, max = 128))]
    pub layers: Vec<String>,
}

/// What is observed of a volume. `holder`, `holderPod`, `epoch` and `standby.node` are compare-and-swapped by the operator; the rest is the node driver's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct EnvironmentVolumeStatus {
    /// Generation of the spec that the node driver has carried out.
    #[serde(default)]
    pub observed_generation: i64,
    /// Who may write the volume now; none: nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<Holder>,
    /// UID of the pod that the holder may mount the volume into. A pod that was made late under a name that was used
    /// before has another UID, and is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder_pod: Option<String>,
    /// Number of the newest incarnation that was given the volume; grows at each.
    #[serde(default)]
    pub epoch: u64,
    /// Node that holds the data; none before the first incarnation was placed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Bytes that the volume occupies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_bytes: Option<i64>,
    /// Bytes that can be written at most, as enforced on the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity_bytes: Option<i64>,
    /// The log that decides what was written. None: it is in the store of the spec and has the volume's UID as its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<VolumeLog>,
    /// The log that is to decide next, as long as it is being filled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_log: Option<VolumeLog>,
    /// How many logs were named beside the first one: no name is used twice.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub logs: u32,
    /// Logs that do not decide any more, or never did. Each is deleted when no state in it is to be restored any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    #[schemars(length(max = 16))]
    pub left: Vec<LeftLog>,
    /// The journal, as of some seconds ago.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal: Option<JournalStatus>,
    /// How far the journal is behind; none: by a few seconds at most, or nothing was written since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag: Option<LagStatus>,
    /// What the store keeps of the volume, as of some minutes ago.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<KeptStatus>,
    /// The state of `spec.source` that the volume began with; until it has it, the source keeps it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceStatus>,
    /// How far the restore is that `spec.restore` orders.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore: Option<RestoreProgress>,
    /// The copy that follows the journal on another node; none: there is to be none, or no node for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standby: Option<StandbyStatus>,
    /// What the tree was after a transaction, as its own node saw it: what a restore is compared with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<DigestStatus>,
    /// The last time that another node restored the volume and found the very tree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proven: Option<ProvenStatus>,
    /// The last time that another node tried to, whatever it found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tried: Option<ProvenStatus>,
    /// What nodes that died have set aside since they are back: what was written there last and is in no journal.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    #[schemars(length(max = 64))]
    pub diverged: Vec<DivergedStatus>,
    /// Newest epoch that ended in order: its last change is in the journal, and nothing is written under it any more.
    #[serde(default)]
    pub released_epoch: u64,
    /// Conditions, by type: Journaled (whether what is written reaches the store), Restorable (whether the store has the template's layers too), Proven (whether a restore by another node gave the very tree), Standby (whether the copy follows), Published (False with a reason when the node driver could not hand it to the pod), `StoreCurrent` (whether the journal is in the store that the spec names; there only once another one was named).
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 32))]
    pub conditions: Vec<Condition>,
}

/// Where a journal is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub struct VolumeLog {
    /// Name of the `JournalStore`.
    pub store: String,
    /// Name of the log in it. No log of the volume had it before.
    pub name: String,
}

/// A log that was left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LeftLog {
    /// Name of the `JournalStore`.
    pub store: String,
    /// Name of the log in it.
    pub name: String,
    /// When it was left.
    pub time: Time,
    /// No later transaction is in it; none: it never decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<u64>,
}

impl LeftLog {
    /// The log.
    #[must_use]
    pub fn log(&self) -> VolumeLog {
        VolumeLog { store: self.store.clone(), name: self.name.clone() }
    }
}

/// Most logs that can be left and not yet deleted.
pub const MOST_LEFT: usize = 16;

/// A state that a volume began with, and has in its own journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SourceStatus {
    /// Transaction of the source after which it was in that state; 0: not known any more.
    pub sequence: u64,
}

/// How far a restore is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RestoreProgress {
    /// UID of the `EnvironmentRestore` that this is about.
    pub uid: String,
    /// Newest incarnation when the state was looked up: the next one has it.
    pub epoch: u64,
    /// Transaction whose state it is; none when it is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// When the volume was in that state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Time>,
    /// Why it cannot be had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<RestoreRefusal>,
    /// That it was brought back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done: Option<RestoreDone>,
}

impl RestoreProgress {
    /// Whether nothing more comes of it.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.refused.is_some() || self.done.is_some()
    }

    /// Whether incarnation `epoch` was begun before the state was known, so that it has to make way for one that has it.
    #[must_use]
    pub fn concerns(&self, epoch: u64) -> bool {
        !self.is_settled() && self.sequence.is_some() && epoch <= self.epoch
    }
}

/// Why a state cannot be restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RestoreRefusal {
    /// One word of the runbook.
    pub reason: String,
    /// A sentence.
    pub message: String,
}

/// A restore that was carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RestoreDone {
    /// Incarnation that began with the restored state.
    pub epoch: u64,
    /// The newest transaction before: whoever restores that undoes this.
    pub before: u64,
    /// Transaction that brought the former state back; `before` if nothing differed.
    pub sequence: u64,
}

impl EnvironmentVolumeStatus {
    /// Bytes that the volume occupies, as far as is known.
    #[must_use]
    pub fn in_use(&self) -> u64 {
        self.used_bytes.and_then(|used| u64::try_from(used).ok()).unwrap_or_default()
    }
}

/// A copy that follows the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StandbyStatus {
    /// Node that was chosen for it.
    pub node: String,
    /// Newest transaction in it, as of some seconds ago; none: there is no copy yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
}

/// The tree of a volume after a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DigestStatus {
    /// The transaction.
    pub sequence: u64,
    /// BLAKE3 of a description of every name, attribute and content.
    pub digest: String,
    /// When it was found.
    pub time: Time,
}

/// A restore on trial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProvenStatus {
    /// Transaction whose state was restored.
    pub sequence: u64,
    /// When.
    pub time: Time,
}

/// A tree that a node has set aside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DivergedStatus {
    /// The node.
    pub node: String,
    /// Incarnation that wrote it.
    pub epoch: u64,
    /// When it was set aside; it is destroyed when the retention time has passed.
    pub time: Time,
}

/// What a store keeps of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeptStatus {
    /// Transaction that the newest checkpoint is of; 0: there is none.
    pub checkpoint: u64,
    /// The oldest state that can be restored is that after this transaction; 0: every state.
    pub since: u64,
    /// Bytes of all objects.
    pub bytes: i64,
    /// When that was so.
    pub time: Time,
}

/// How far the journal of a volume is behind. It is told again when it has doubled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LagStatus {
    /// Everything that was written longer ago is in the store.
    pub seconds: u64,
    /// Bytes of the transaction that is to be added next, as far as it is known.
    pub bytes: u64,
}

/// How far the journal of a volume is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JournalStatus {
    /// Number of the newest transaction in the store.
    pub sequence: u64,
    /// Epoch that wrote it.
    pub epoch: u64,
    /// When it was acknowledged.
    pub time: Time,
}

/// The node, and the session of its driver, that may write a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Holder {
    /// Name of the node.
    pub node: String,
    /// Session of the node driver.
    pub session: String,
}

impl VolumeSource {
    /// The logs in which the state may be, the newest first.
    #[must_use]
    pub fn past(&self) -> Vec<VolumeLog> {
        let name = self.log.clone().unwrap_or_else(|| self.volume.clone());
        let decides = VolumeLog { store: self.store.clone(), name };
        std::iter::once(decides).chain(self.left.iter().cloned()).collect()
    }
}

impl EnvironmentVolume {
    /// The log that decides what was written; `None`: the data is on one node alone. Nobody else says where a journal is.
    #[must_use]
    pub fn log(&self) -> Option<VolumeLog> {
        let named = self.status.as_ref().and_then(|status| status.log.clone());
        named.or_else(|| {
            let store = self.spec.store.clone()?;
            Some(VolumeLog { store, name: self.metadata.uid.clone().unwrap_or_default() })
        })
    }

    /// The newest transaction of its journal that the node which has it told of, which is not each one; 0: none.
    #[must_use]
    pub fn known(&self) -> u64 {
        self.status.as_ref().and_then(|status| status.journal.as_ref()).map_or(0, |journal| journal.sequence)
    }

    /// Every log in which something of the volume may be: the one that decides, one that is to decide next, and those that
    /// were left.
    #[must_use]
    pub fn logs(&self) -> Vec<VolumeLog> {
        let status = self.status.as_ref();
        let next = status.and_then(|status| status.next_log.clone());
        let left = status.map(|status| status.left.as_slice()).unwrap_or_default();
        self.log().into_iter().chain(next).chain(left.iter().map(LeftLog::log)).collect()
    }

    /// The logs in which former states are: the one that decides, and those that did before, the newest first.
    #[must_use]
    pub fn past(&self) -> Vec<VolumeLog> {
        let left = self.status.as_ref().map(|status| status.left.as_slice()).unwrap_or_default();
        let decided = left.iter().rev().filter(|left| left.last.is_some()).map(LeftLog::log);
        self.log().into_iter().chain(decided).collect()
    }

    /// The store that the journal is to be taken to; `None`: it is where it should be.
    #[must_use]
    pub fn next_store(&self) -> Option<&str> {
        let log = self.log()?;
        self.spec.store.as_deref().filter(|wanted| *wanted != log.store)
    }

    /// How far the restore is that was ordered; `None`: none was, or nobody has looked it up yet.
    #[must_use]
    pub fn restore(&self) -> Option<&RestoreProgress> {
        let order = self.spec.restore.as_ref()?;
        self.status.as_ref()?.restore.as_ref().filter(|progress| progress.uid == order.uid)
    }

    /// The order to be carried out before incarnation `epoch` runs on the volume, and the transaction whose state it is
    /// about; `None`: the volume stays as it is.
    #[must_use]
    pub fn revert_for(&self, epoch: u64) -> Option<(&RestoreOrder, u64)> {
        let sequence = self.restore().filter(|progress| !progress.is_settled() && progress.epoch < epoch)?.sequence?;
        Some((self.spec.restore.as_ref()?, sequence))
    }
}
