//! Which copies are mounted where. Lies where it ends with the boot, because mounts do.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::files;
use crate::ids::VolumeId;

/// Version of [`Shown`] that this build writes and reads.
const VERSION: u32 = 1;

/// A volume of the kubelet that shows something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Shown {
    version: u32,
    /// Where.
    pub target: PathBuf,
    /// The copy that is shown, by the name of its directory; none: an index.
    pub copy: Option<String>,
    /// The template's layers below it.
    pub layers: Vec<String>,
}

impl Shown {
    /// A volume at `target`.
    #[must_use]
    pub fn new(target: PathBuf, copy: Option<String>, layers: Vec<String>) -> Self {
        Self { version: VERSION, target, copy, layers }
    }
}

/// The records, one file for each volume.
#[derive(Clone, Debug)]
pub struct ShownRecords {
    directory: PathBuf,
}

impl ShownRecords {
    /// Makes the directory below the run directory, for root alone.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(run_dir: &Path) -> io::Result<Self> {
        let directory = run_dir.join("views");
        files::private_directory(&directory)?;
        Ok(Self { directory })
    }

    /// What a volume shows, if it is known.
    ///
    /// # Errors
    /// The record cannot be read, or is of another version.
    pub fn get(&self, handle: &VolumeId) -> io::Result<Option<Shown>> {
        match files::read_json::<Shown>(&self.path(handle))? {
            Some(found) if found.version != VERSION => {
                let path = self.path(handle);
                let text = format!("{} has version {}, this build knows {VERSION}", path.display(), found.version);
                Err(io::Error::other(text))
            }
            found => Ok(found),
        }
    }

    /// Everything that is shown.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn list(&self) -> io::Result<Vec<(VolumeId, Shown)>> {
        let mut all = Vec::new();
        for entry in std::fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            let handle =
                name.to_str().and_then(|name| name.strip_suffix(".json")).and_then(|id| VolumeId::parse(id).ok());
            if let Some(handle) = handle
                && let Some(shown) = self.get(&handle)?
            {
                all.push((handle, shown));
            }
        }
        Ok(all)
    }

    /// Writes a record. It is there before the mount is, so that a mount is never without it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn put(&self, handle: &VolumeId, shown: &Shown) -> io::Result<()> {
        files::write_json(&self.path(handle), shown)
    }

    /// Removes a record.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove(&self, handle: &VolumeId) -> io::Result<()> {
        files::remove(&self.path(handle))
    }

    fn path(&self, handle: &VolumeId) -> PathBuf {
        self.directory.join(format!("{handle}.json"))
    }
}
