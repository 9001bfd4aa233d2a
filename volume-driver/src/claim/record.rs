//! What volumes of pods and their snapshots say of themselves, in the pool. The format is in `docs/src/formats/node-records.md`.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ids::VolumeId;

/// Version of both records that this build writes and reads.
pub const VERSION: u32 = 1;

/// A volume of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClaimRecord {
    /// [`VERSION`].
    pub version: u32,
    /// Name that it was asked for under.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// What it began with.
    pub origin: Origin,
    /// When it was made.
    pub created: Timestamp,
}

/// What a volume begins with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Origin {
    /// Nothing.
    Empty,
    /// The tree of the `EnvironmentTemplate` of that name.
    Template(String),
    /// The tree of a snapshot.
    Snapshot(String),
    /// The tree of another volume.
    Claim(String),
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotRecord {
    /// [`VERSION`].
    pub version: u32,
    /// Name that it was asked for under.
    pub name: String,
    /// Handle of the volume.
    pub source: String,
    /// Size of the volume then, which is the least size of a volume that is made from it.
    pub size: u64,
    /// Bytes that the volume held then: so much more may lie in its quota group as long as the snapshot is there.
    pub held: u64,
    /// When it was taken.
    pub created: Timestamp,
}

/// A volume of a pod, as it is in the pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Its handle.
    pub id: VolumeId,
    /// What it is.
    pub record: ClaimRecord,
}

/// A snapshot, as it is in the pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Its handle.
    pub id: VolumeId,
    /// What it is.
    pub record: SnapshotRecord,
}
