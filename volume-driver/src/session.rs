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
    #[error("another node driver runs on this node (it holds the lock {}): there can be one. It is tried again", path.display())]
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
            return Ok(Self { id: stored.session, resumed: true, _lock: lock });
        }
        let machine = MACHINE_IDS.into_iter().find_map(|path| read(path).ok()).unwrap_or_default();
        let id = format!("{}.{machine}.{boot_id}", read(FRESH_ID)?);
        let stored = Stored { version: VERSION, session: id, boot_id };
        files::write_json(&path, &stored).map_err(failed("write the session to", &path))?;
        Ok(Self { id: stored.session, resumed: false, _lock: lock })
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
    }
}
