//! What the runtime shim may trust about a volume that the kubelet mounted into a pod. Written by the node driver when
//! it publishes a volume to a pod, removed when it unpublishes; readable by root of the node alone.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::guest::PodReference;

/// Version of [`StageRecord`] and [`PendingRecord`] that this build writes and reads.
pub const VERSION: u32 = 1;

/// `/run/vivarium/volumes/<subvolume uuid>.json`. The shim finds it by the UUID of the subvolume that is mounted in the
/// container's spec (`BTRFS_IOC_GET_SUBVOL_INFO`), never by anything that a tenant wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StageRecord {
    /// [`VERSION`].
    pub version: u32,
    /// CSI volume handle: UID of the `EnvironmentVolume`.
    pub volume_id: String,
    /// UUID of the live subvolume, lower-case with dashes; also the name of the file.
    pub subvolume_uuid: String,
    /// UID of the pod that this volume is published to; no other pod may start on it.
    pub pod_uid: String,
    /// Epoch of the incarnation.
    pub epoch: u64,
    /// Session of the node driver that published it.
    pub session: String,
    /// File name of the [`super::lease::PublishedLease`] that says how long an environment may run on it. None: the volume
    /// is on this node alone, so nobody could take it over, and it is bound by no lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<String>,
    /// Template layers on the node, **top layer first** (the order of overlayfs `lowerdir+`), each a read-only subvolume.
    pub layers: Vec<PathBuf>,
    /// Directories of the volume that are mounted over the root, because overlayfs cannot be an upper layer of overlayfs.
    pub binds: Vec<DataBind>,
}

/// `/run/vivarium/pending/<pod uid>.json`: a volume that another node may still write, and that this pod gets when it cannot
/// any more. Written by the node driver before the kubelet goes on to make the pod's containers, so that this work is done
/// while the other node is waited out; removed when the volume is mounted, or when the pod is not to have it any more. The
/// shim waits for that before it looks for the [`StageRecord`]: this record gives nobody the right to start anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PendingRecord {
    /// [`VERSION`].
    pub version: u32,
    /// CSI volume handle: UID of the `EnvironmentVolume`.
    pub volume_id: String,
    /// Namespace of the `EnvironmentVolume`.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Where the volume will be mounted.
    pub target: PathBuf,
    /// To whom it goes.
    pub pod: PodReference,
    /// Why it never does, once that is certain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// One directory of the volume's `data` that is mounted at a fixed place of the tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataBind {
    /// Name below `data/` of the volume: one path component.
    pub name: String,
    /// Absolute path in the environment.
    pub target: PathBuf,
}

/// Binds that every environment gets.
#[must_use]
pub fn default_binds() -> Vec<DataBind> {
    [("docker", "/var/lib/docker"), ("containerd", "/var/lib/containerd")]
        .map(|(name, target)| DataBind { name: name.into(), target: target.into() })
        .into()
}
