//! Recognises a volume by the btrfs subvolume that is mounted, and finds the node driver's record about it. A path, an
//! annotation or a file in the volume proves nothing: a tenant may have written it.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use vivarium_api::names;
use vivarium_api::node::stage::{StageRecord, VERSION};
use vivarium_sys::btrfs;

use crate::error::{Attempt, Error, Result};
use crate::helper::stage::open_directory;

/// Opens what is mounted as the root of an environment and finds its record.
pub fn volume(source: &Path, pod_uid: &str) -> Result<(OwnedFd, StageRecord)> {
    let directory = open_directory(source)?;
    let record = record_of(directory.as_fd(), source)?;
    check(&record, pod_uid)?;
    Ok((directory, record))
}

fn record_of(directory: BorrowedFd<'_>, source: &Path) -> Result<StageRecord> {
    let refused = |why: &str| {
        Error::Refused(format!(
            "the mount at {} ({}) is no Vivarium volume: {why}; mount a volume of the CSI driver {} there, or mount \
             yours elsewhere",
            names::MOUNT_ROOT,
            source.display(),
            names::CSI_DRIVER
        ))
    };
    let uuid = btrfs::subvolume_at(directory)
        .attempt(|| format!("identify the volume {}", source.display()))?
        .map(|info| info.uuid.to_string())
        .ok_or_else(|| refused("it is not a btrfs subvolume"))?;
    let path = Path::new(names::STAGE_RECORDS).join(format!("{uuid}.json"));
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(refused("the node driver has not published its subvolume"));
        }
        Err(error) => return Err(error).attempt(|| format!("read {}", path.display())),
    };
    let record: StageRecord = serde_json::from_reader(std::io::BufReader::new(file))
        .map_err(|e| Error::Failed(format!("The stage record {} is damaged: {e}.", path.display())))?;
    if record.version != VERSION {
        return Err(Error::Failed(format!(
            "The stage record {} is of version {}, this runtime reads version {VERSION}; upgrade the older of the two.",
            path.display(),
            record.version
        )));
    }
    if record.subvolume_uuid != uuid {
        return Err(Error::Failed(format!(
            "The stage record {} is about subvolume {}.",
            path.display(),
            record.subvolume_uuid
        )));
    }
    Ok(record)
}

fn check(record: &StageRecord, pod_uid: &str) -> Result<()> {
    if record.pod_uid != pod_uid {
        return Err(Error::Refused(format!(
            "the volume {} is published to the pod with UID {}, not to this one with UID {pod_uid:?}",
            record.volume_id, record.pod_uid
        )));
    }
    for bind in &record.binds {
        let plain = !bind.name.is_empty() && !bind.name.contains('/') && bind.name != "." && bind.name != "..";
        if !plain || !bind.target.is_absolute() {
            return Err(Error::Failed(format!(
                "The stage record of volume {} names a bind {:?} at {}.",
                record.volume_id,
                bind.name,
                bind.target.display()
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vivarium_api::node::stage::{DataBind, default_binds};

    fn record() -> StageRecord {
        StageRecord {
            version: VERSION,
            volume_id: "v".into(),
            subvolume_uuid: "u".into(),
            pod_uid: "p".into(),
            epoch: 1,
            session: "s".into(),
            lease: None,
            layers: vec!["/l".into()],
            binds: default_binds(),
        }
    }

    #[test]
    fn a_volume_of_another_pod_is_refused() {
        check(&record(), "p").unwrap();
        for uid in ["q", ""] {
            assert!(matches!(check(&record(), uid), Err(Error::Refused(_))), "{uid:?}");
        }
    }

    #[test]
    fn a_bind_out_of_the_volume_is_refused() {
        for name in ["..", ".", "", "a/b", "../x"] {
            let binds = vec![DataBind { name: name.into(), target: "/x".into() }];
            assert!(check(&StageRecord { binds, ..record() }, "p").is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_directory_that_is_no_subvolume_is_refused_with_the_reason() {
        let error = volume(Path::new("/proc"), "p").unwrap_err().to_string();
        assert!(error.contains("is not a btrfs subvolume"), "{error}");
    }
}
