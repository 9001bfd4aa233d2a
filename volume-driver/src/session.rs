//! The session: one life of this driver's authority over volumes (rule 1 of the ownership protocol). It outlives a
//! restart of the driver, and ends with the boot of the node. Also the lock that keeps a second driver away.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::files;

/// Version of [`Stored`] that this build writes and reads.
const VERSION: u32 = 1;
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const FRESH_ID: &str = "/proc/sys/kernel/random/uuid";
/// The node's own file, seen through its first process (the pod shares the node's process namespace), and the fallback.
const MACHINE_IDS: [&str; 2] = ["/proc/1/root/etc/machine-id", "/etc/machine-id"];

/// No session can be had.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// A file failed.
    #[error("cannot {attempt} {}: {source}", path.display())]
    Io {
        /// What was tried.
        attempt: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another driver runs.
    #[error("another node driver runs on this node (it holds the lock {}): there can be one. This one takes over when it ends", path.display())]
    Locked {
        /// The lock.
        path: PathBuf,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stored {
    version: u32,
    session: String,
    boot_id: String,
}

/// The authority of this driver, locked against others as long as it lives.
#[derive(Debug)]
pub struct Session {
    /// `<random id>.<machine id>.<boot id>`.
    pub id: String,
    /// Whether a former process of the same boot began it.
    pub resumed: bool,
    /// Boot of the node that it is of.
    pub boot_id: String,
    path: PathBuf,
    _lock: File,
}

impl Session {
    /// Resumes the session of this boot, or begins one.
    ///
    /// # Errors
    /// [`SessionError`].
    pub fn open(run_dir: &Path) -> Result<Self, SessionError> {
        let failed = |attempt, path: &Path| {
            let path = path.to_owned();
            move |source| SessionError::Io { attempt, path, source }
        };
        files::private_directory(run_dir).map_err(failed("make the directory", run_dir))?;
        let path = run_dir.join("driver.lock");
        let lock = File::options()
            .create(true)
            .write(true)
            .truncate(false)
            .open(&path)
            .map_err(failed("open the lock", &path))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(SessionError::Locked { path }),
            Err(error) => return Err(failed("take the lock", &path)(error.into())),
        }
        let read = |path: &str| match std::fs::read_to_string(path) {
            Ok(text) => Ok(text.trim().to_owned()),
            Err(error) => Err(failed("read", Path::new(path))(error)),
        };
        let boot_id = read(BOOT_ID)?;
        let path = run_dir.join("session.json");
        let stored: Option<Stored> = files::read_json(&path).map_err(failed("read the session in", &path))?;
        if let Some(stored) = stored.filter(|stored| stored.version == VERSION && stored.boot_id == boot_id) {
            return Ok(Self { id: stored.session, resumed: true, boot_id, path, _lock: lock });
        }
        let machine = MACHINE_IDS.into_iter().find_map(|path| read(path).ok()).unwrap_or_default();
        let id = format!("{}.{machine}.{boot_id}", read(FRESH_ID)?);
        Ok(Self { id, resumed: false, boot_id, path, _lock: lock })
    }

    /// Keeps a session that was begun, so that the next process resumes it. Before this, nothing of a former session may
    /// run any more.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn keep(&self) -> Result<(), SessionError> {
        let stored = Stored { version: VERSION, session: self.id.clone(), boot_id: self.boot_id.clone() };
        files::write_json(&self.path, &stored).map_err(|source| self.failed("write the session to", source))
    }

    /// Forgets the session: the next process begins another.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn forget(&self) -> Result<(), SessionError> {
        files::remove(&self.path).map_err(|source| self.failed("remove the session in", source))
    }

    fn failed(&self, attempt: &'static str, source: io::Error) -> SessionError {
        SessionError::Io { attempt, path: self.path.clone(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_outlives_the_process_and_not_the_boot() {
        let dir = tempfile::tempdir().unwrap();
        let first = Session::open(dir.path()).unwrap();
        assert!(!first.resumed);
        assert_eq!(first.id.split('.').count(), 3, "{}", first.id);
        first.keep().unwrap();
        let refused = Session::open(dir.path()).unwrap_err();
        assert!(matches!(refused, SessionError::Locked { .. }), "{refused}");
        let id = first.id.clone();
        drop(first);
        let second = Session::open(dir.path()).unwrap();
        assert!(second.resumed);
        assert_eq!(second.id, id);
        drop(second);
        let path = dir.path().join("session.json");
        let other_boot = std::fs::read_to_string(&path).unwrap().replace("\"bootId\": \"", "\"bootId\": \"x");
        std::fs::write(&path, other_boot).unwrap();
        let third = Session::open(dir.path()).unwrap();
        assert!(!third.resumed);
        assert_ne!(third.id, id);
        third.keep().unwrap();
        third.forget().unwrap();
        let (path, third_id) = (dir.path(), third.id.clone());
        drop(third);
        let fourth = Session::open(path).unwrap();
        assert!(!fourth.resumed);
        assert_ne!(fourth.id, third_id);
    }
}
