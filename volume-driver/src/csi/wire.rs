//! What the services share in reading requests and writing answers.

use std::path::PathBuf;

use tonic::{Response, Status};

use crate::claim::health::{Degree, Trouble};
use crate::ids::VolumeId;
use crate::proto::csi;
use crate::publish::Refusal;

/// Runs a call to its end, whatever becomes of the caller.
pub(super) async fn to_the_end<T: Send + 'static>(
    call: impl Future<Output = Result<T, Refusal>> + Send + 'static,
) -> Result<Response<T>, Status> {
    let result = tokio::spawn(call).await.unwrap_or_else(|error| Err(Refusal::CutOff(error.to_string())));
    result.map(Response::new).map_err(|refusal| {
        tracing::warn!(code = ?refusal.code(), "{refusal}");
        refusal.into()
    })
}

/// The handle of a volume.
pub(super) fn volume_id(text: &str) -> Result<VolumeId, Refusal> {
    if text.is_empty() {
        return Err(Refusal::Missing("volume_id"));
    }
    Ok(VolumeId::parse(text)?)
}

/// A path of the kubelet.
pub(super) fn path(text: String, field: &'static str) -> Result<PathBuf, Refusal> {
    let path = PathBuf::from(&text);
    if text.is_empty() {
        return Err(Refusal::Missing(field));
    }
    let plain = path.components().all(|part| !matches!(part, std::path::Component::ParentDir));
    if path.is_absolute() && plain {
        Ok(path)
    } else {
        Err(Refusal::Invalid { field, value: text, message: "it must be an absolute path without '..'".into() })
    }
}

fn unfit(value: String, message: &str) -> Refusal {
    Refusal::Invalid { field: "volume_capability", value, message: message.to_owned() }
}

/// A volume of an environment is a file tree that one pod writes.
pub(super) fn environment_capability(capability: Option<&csi::VolumeCapability>) -> Result<(), Refusal> {
    use csi::volume_capability::{AccessType, access_mode::Mode};
    let capability = capability.ok_or(Refusal::Missing("volume_capability"))?;
    match &capability.access_type {
        None => return Err(Refusal::Missing("volume_capability.access_type")),
        Some(AccessType::Block(_)) => {
            return Err(unfit("block".into(), "an EnvironmentVolume is a file tree: use volumeMode Filesystem"));
        }
        Some(AccessType::Mount(_)) => {}
    }
    match capability.access_mode.map(|mode| mode.mode()) {
        None | Some(Mode::Unknown) => Err(Refusal::Missing("volume_capability.access_mode")),
        Some(Mode::SingleNodeWriter | Mode::SingleNodeSingleWriter) => Ok(()),
        Some(other) => Err(unfit(
            other.as_str_name().into(),
            "an EnvironmentVolume is written by one pod: use accessMode ReadWriteOnce",
        )),
    }
}

/// A volume of an ordinary pod is a file tree on one node.
pub(super) fn claim_capability(capability: Option<&csi::VolumeCapability>) -> Result<(), Refusal> {
    use csi::volume_capability::{AccessType, access_mode::Mode};
    let capability = capability.ok_or(Refusal::Missing("volume_capability"))?;
    match &capability.access_type {
        None => return Err(Refusal::Missing("volume_capability.access_type")),
        Some(AccessType::Block(_)) => {
            return Err(unfit("block".into(), "volumes of this driver are file trees: use volumeMode Filesystem"));
        }
        Some(AccessType::Mount(mount)) => {
            if !matches!(mount.fs_type.as_str(), "" | "btrfs") {
                let message =
                    "volumes of this driver are btrfs: leave csi.storage.k8s.io/fstype out of the StorageClass";
                return Err(unfit(mount.fs_type.clone(), message));
            }
            if let Some(flag) = mount.mount_flags.first() {
                return Err(unfit(flag.clone(), "volumes of this driver have no mountOptions: leave them out"));
            }
        }
    }
    match capability.access_mode.map(|mode| mode.mode()) {
        None | Some(Mode::Unknown) => Err(Refusal::Missing("volume_capability.access_mode")),
        Some(
            Mode::SingleNodeWriter
            | Mode::SingleNodeSingleWriter
            | Mode::SingleNodeMultiWriter
            | Mode::SingleNodeReaderOnly,
        ) => Ok(()),
        Some(other) => Err(unfit(
            other.as_str_name().into(),
            "a volume of this driver is on one node: use accessMode ReadWriteOnce",
        )),
    }
}

/// What is wrong with a volume, as the specification has it.
pub(super) fn volume_health(id: &VolumeId, troubles: Vec<Trouble>) -> csi::VolumeHealth {
    let entry = |trouble: Trouble| csi::volume_health::VolumeHealthEntry {
        status: match trouble.degree {
            Degree::Degraded => csi::VolumeHealthErrorType::Degraded.into(),
            Degree::Inaccessible => csi::VolumeHealthErrorType::Inaccessible.into(),
        },
        reason: trouble.reason.into(),
        message: trouble.message,
    };
    csi::VolumeHealth { volume_id: id.to_string(), health_statuses: troubles.into_iter().map(entry).collect() }
}

#[cfg(test)]
mod tests {
    use csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume, access_mode::Mode};

    use super::*;

    #[test]
    fn only_what_one_node_can_mount_as_a_tree_is_taken() {
        let tree = || AccessType::Mount(MountVolume::default());
        let mount = |fs_type: &str, flag: &[&str]| {
            let mount_flags = flag.iter().map(ToString::to_string).collect();
            AccessType::Mount(MountVolume { fs_type: fs_type.into(), mount_flags, ..Default::default() })
        };
        for (access_type, mode, environment, claim) in [
            (tree(), Mode::SingleNodeWriter, true, true),
            (tree(), Mode::SingleNodeSingleWriter, true, true),
            (tree(), Mode::SingleNodeMultiWriter, false, true),
            (tree(), Mode::SingleNodeReaderOnly, false, true),
            (tree(), Mode::MultiNodeMultiWriter, false, false),
            (tree(), Mode::Unknown, false, false),
            (mount("btrfs", &[]), Mode::SingleNodeWriter, true, true),
            (mount("ext4", &[]), Mode::SingleNodeWriter, true, false),
            (mount("", &["noatime"]), Mode::SingleNodeWriter, true, false),
            (AccessType::Block(BlockVolume {}), Mode::SingleNodeWriter, false, false),
        ] {
            let capability = csi::VolumeCapability {
                access_type: Some(access_type),
                access_mode: Some(AccessMode { mode: mode.into() }),
            };
            assert_eq!(environment_capability(Some(&capability)).is_ok(), environment, "{capability:?}");
            assert_eq!(claim_capability(Some(&capability)).is_ok(), claim, "{capability:?}");
        }
        assert!(claim_capability(None).is_err());
    }
}
