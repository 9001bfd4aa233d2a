//! What is published to which pod: a stage record for the shim, and beside it what only the driver needs. Both live where
//! they end with the boot, because mounts do.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vivarium_api::node::stage::StageRecord;
use vivarium_api::v1alpha1::volume::VolumeLog;

use crate::files;
use crate::ids::VolumeId;

/// Version of [`Publication`] that this build writes and reads.
const VERSION: u32 = 1;

/// One volume that is mounted into a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Publication {
    /// [`VERSION`].
    version: u32,
    /// Where the kubelet wants it.
    pub target: PathBuf,
    /// What the shim reads.
    pub stage: StageRecord,
    /// Its journal; none if it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal: Option<JournalRecord>,
}

/// What the next process of the driver has to know to go on with a journal without asking anybody.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JournalRecord {
    /// Namespace of the volume's object.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The `JournalStore`.
    pub store: String,
    /// Name of the log in it; none: the volume's handle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
    /// Stores under whose leases this incarnation may have been started, beside that one.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub bound_by: BTreeSet<String>,
    /// Layers of the template, lowest first.
    pub layers: Vec<String>,
}

impl Publication {
    /// A volume that is to be mounted at `target`.
    #[must_use]
    pub fn new(target: PathBuf, stage: StageRecord, journal: Option<JournalRecord>) -> Self {
        Self { version: VERSION, target, stage, journal }
    }
}

/// A record that cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {attempt} the record {}: {source}", path.display())]
pub struct RecordError {
    attempt: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// The directories of records.
#[derive(Clone, Debug)]
pub struct Records {
    /// One publication per volume, by volume.
    published: PathBuf,
    /// Stage records, by subvolume.
    staged: PathBuf,
}

impl Records {
    /// Makes the directories below the run directory, for root alone.
    ///
    /// # Errors
    /// They cannot be made.
    pub fn open(run_dir: &Path) -> Result<Self, RecordError> {
        let records = Self { published: run_dir.join("published"), staged: run_dir.join("volumes") };
        for path in [&records.published, &records.staged] {
            files::private_directory(path).map_err(failed("make the directory of", path))?;
        }
        Ok(records)
    }

    /// The pod that a volume is published to, if any.
    ///
    /// # Errors
    /// The record cannot be read, or is of another version.
    pub fn get(&self, id: &VolumeId) -> Result<Option<Publication>, RecordError> {
        let path = self.path(id);
        let read: Option<Publication> = files::read_json(&path).map_err(failed("read", &path))?;
        match read {
            Some(found) if found.version != VERSION => {
                let other = io::Error::other(format!("it has version {}, this build knows {VERSION}", found.version));
                Err(failed("read", &path)(other))
            }
            found => Ok(found),
        }
    }

    /// Every volume that is published.
    ///
    /// # Errors
    /// A record cannot be read, or is of another version.
    pub fn list(&self) -> Result<Vec<(VolumeId, Publication)>, RecordError> {
        let mut all = Vec::new();
        for entry in std::fs::read_dir(&self.published).map_err(failed("list", &self.published))? {
            let name = entry.map_err(failed("list", &self.published))?.file_name();
            let id = name.to_str().and_then(|name| name.strip_suffix(".json")).and_then(|id| VolumeId::parse(id).ok());
            if let Some(id) = id
                && let Some(publication) = self.get(&id)?
            {
                all.push((id, publication));
            }
        }
        Ok(all)
    }

    /// Writes both records. They are there before the mount is, so that a mount is never without them.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn put(&self, id: &VolumeId, publication: &Publication) -> Result<(), RecordError> {
        let path = self.path(id);
        files::write_json(&path, publication).map_err(failed("write", &path))?;
        let path = self.stage_path(&publication.stage);
        files::write_json(&path, &publication.stage).map_err(failed("write", &path))
    }

    /// Notes that the journal of a volume is in another log; what the shim reads stays. Nothing if it is not published.
    ///
    /// # Errors
    /// They cannot be read or written.
    pub fn switched(&self, id: &VolumeId, log: &VolumeLog) -> Result<(), RecordError> {
        let Some(mut publication) = self.get(id)? else { return Ok(()) };
        let Some(journal) = &mut publication.journal else { return Ok(()) };
        let former = std::mem::replace(&mut journal.store, log.store.clone());
        journal.bound_by.insert(former);
        journal.log = Some(log.name.clone());
        let path = self.path(id);
        files::write_json(&path, &publication).map_err(failed("write", &path))
    }

    /// Removes both records, the shim's first.
    ///
    /// # Errors
    /// They cannot be removed.
    pub fn remove(&self, id: &VolumeId, publication: &Publication) -> Result<(), RecordError> {
        for path in [self.stage_path(&publication.stage), self.path(id)] {
            files::remove(&path).map_err(failed("remove", &path))?;
        }
        Ok(())
    }

    /// Removes the records of the shim alone, of every volume that is bound by a lease: no environment starts on it any
    /// more under the authority that wrote them. What is mounted stays known.
    ///
    /// # Errors
    /// They cannot be read or removed.
    pub fn revoke_leased(&self) -> Result<(), RecordError> {
        let list = std::fs::read_dir(&self.staged).map_err(failed("list", &self.staged))?;
        for entry in list {
            let path = entry.map_err(failed("list", &self.staged))?.path();
            let stage: Option<StageRecord> = files::read_json(&path).map_err(failed("read", &path))?;
            if stage.is_some_and(|stage| stage.lease.is_some()) {
                files::remove(&path).map_err(failed("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Removes the record of the shim of one volume, if it is of an epoch up to this one.
    ///
    /// # Errors
    /// It cannot be read or removed.
    pub fn revoke(&self, id: &VolumeId, epoch: u64) -> Result<(), RecordError> {
        let Some(publication) = self.get(id)?.filter(|publication| publication.stage.epoch <= epoch) else {
            return Ok(());
        };
        let path = self.stage_path(&publication.stage);
        files::remove(&path).map_err(failed("remove", &path))
    }

    fn path(&self, id: &VolumeId) -> PathBuf {
        self.published.join(format!("{id}.json"))
    }

    fn stage_path(&self, stage: &StageRecord) -> PathBuf {
        self.staged.join(format!("{}.json", stage.subvolume_uuid))
    }
}

/// What could not be done with a record, or a directory of them.
pub(crate) fn failed(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RecordError {
    let path = path.to_owned();
    move |source| RecordError { attempt, path, source }
}
