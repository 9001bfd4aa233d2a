//! What has to be undone when a container goes, written down before it is done: one JSON file per container in
//! `/run/vivarium/shim/<namespace>/<id>/`, replaced by rename. [`undo`] works from that file alone, in a process that
//! knows nothing else (containerd's `delete` action after the shim was killed), and may be repeated.
//!
//! Mounts are not in it: all mounts of a container live in its private mount namespace and go with its init.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cgroup;
use crate::error::{Attempt, Error, Result};

/// Version of [`Journal`] that this build writes and undoes.
const VERSION: u32 = 1;
/// Directory of all state of all shims.
const STATE_ROOT: &str = "/run/vivarium/shim";

/// Side effects of one container outside its state directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    version: u32,
    /// Control groups, the topmost of each hierarchy that belong to the container alone.
    pub cgroups: Vec<PathBuf>,
    /// Guest report of an environment.
    pub guest_report: Option<PathBuf>,
}

/// State directory of a container: made by [`create`](Self::create), gone after [`undo`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateDir(PathBuf);

impl StateDir {
    /// Where the state of a container is. Namespace and id become path components, so they must be plain names.
    pub fn of(namespace: &str, id: &str) -> Result<Self> {
        for (what, name) in [("namespace", namespace), ("container id", id)] {
            let plain = !name.is_empty()
                && name.len() <= 128
                && name != "."
                && name != ".."
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
            if !plain {
                return Err(Error::Refused(format!(
                    "the {what} {name:?} is not made of letters, digits, dots, dashes and underscores"
                )));
            }
        }
        Ok(Self(Path::new(STATE_ROOT).join(namespace).join(id)))
    }

    /// Makes the directory, for root alone.
    pub fn create(&self) -> Result<()> {
        fs::create_dir_all(STATE_ROOT).attempt(|| format!("create {STATE_ROOT}"))?;
        set_private(Path::new(STATE_ROOT))?;
        if let Some(parent) = self.0.parent() {
            fs::create_dir_all(parent).attempt(|| format!("create {}", parent.display()))?;
        }
        match fs::create_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(Error::AlreadyExists(format!(
                "state of the container is still in {}; its delete action removes it",
                self.0.display()
            ))),
            other => other.attempt(|| format!("create {}", self.0.display())),
        }
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    fn journal(&self) -> PathBuf {
        self.0.join("journal.json")
    }
}

fn set_private(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
        .attempt(|| format!("set the mode of {}", path.display()))
}

impl Journal {
    /// Nothing done yet.
    #[must_use]
    pub fn new(cgroups: Vec<PathBuf>, guest_report: Option<PathBuf>) -> Self {
        Self { version: VERSION, cgroups, guest_report }
    }

    /// Puts the journal on record. Whatever it lists may be done after this has returned.
    pub fn write(&self, dir: &StateDir) -> Result<()> {
        let text = serde_json::to_vec(self).map_err(|e| Error::Failed(format!("The journal is not JSON: {e}.")))?;
        replace_file(&dir.journal(), &text, 0o600)
    }
}

/// Writes a file so that a reader sees the old content or the new one, never a part.
pub fn replace_file(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    let temporary = path.with_file_name(name);
    let write = || -> io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
        file.write_all(content)?;
        fs::rename(&temporary, path)
    };
    write().attempt(|| format!("write {}", path.display()))
}

/// Undoes everything that the journal of a container lists and removes its state directory: kills what runs in its
/// control groups, removes them, removes the guest report. A container without state is done already.
pub fn undo(dir: &StateDir) -> Result<()> {
    let text = match fs::read(dir.journal()) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).attempt(|| format!("read {}", dir.journal().display())),
    };
    if let Some(text) = text {
        let journal: Journal = serde_json::from_slice(&text)
            .map_err(|e| Error::Failed(format!("The journal {} is damaged: {e}.", dir.journal().display())))?;
        if journal.version != VERSION {
            return Err(Error::Failed(format!(
                "The journal {} is of version {}, this shim undoes version {VERSION}; delete the container with the \
                 shim that made it.",
                dir.journal().display(),
                journal.version
            )));
        }
        cgroup::destroy(&journal.cgroups)?;
        if let Some(report) = &journal.guest_report {
            ignore_missing(fs::remove_file(report)).attempt(|| format!("remove {}", report.display()))?;
        }
    }
    ignore_missing(fs::remove_dir_all(dir.path())).attempt(|| format!("remove {}", dir.path().display()))
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_leave_the_directory_are_refused() {
        for (namespace, id) in [("", "a"), ("a", ".."), ("a/b", "c"), ("..", "c"), ("a", "b/../c"), ("a", "b\0")] {
            assert!(matches!(StateDir::of(namespace, id), Err(Error::Refused(_))), "{namespace:?} {id:?}");
        }
        assert_eq!(StateDir::of("k8s.io", "4f_2-a").unwrap().path(), Path::new("/run/vivarium/shim/k8s.io/4f_2-a"));
    }

    #[test]
    fn undoing_what_never_was_is_no_error() {
        undo(&StateDir::of("no-such-namespace", "no-such-container").unwrap()).unwrap();
    }
}
