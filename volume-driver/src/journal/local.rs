//! What a node keeps of a journal, beside the live subvolume in the volume's directory:
//!
//! | name | what |
//! |---|---|
//! | `journal.json` | the newest transaction that is known to be in the store, and which base belongs to it |
//! | `base.<n>` | read-only snapshot: the tree after transaction n, from which the next one is counted, or which is being committed |
//! | `proof` | read-only snapshot of the base whose digest is being computed |
//! | `seed` | read-only snapshot that another log begins with |
//! | `switch.json` | the log that the object may name by now ([`super::change`]); nothing is committed while it is there |
//! | `attempt.vtx` | the transaction that may or may not be in the store |
//! | `revert.json` | the newest order to bring a former state back, and the newest transaction before |
//!
//! Every step leaves something from which [`Local::open`] goes on.
//!
//! A snapshot gets the name that it keeps: once a subvolume was renamed, btrfs answers each fsync(2) on the whole file system with
//! a transaction of its own until the one under way has ended (`btrfs_set_log_full_commit`), and tenants wait for that.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use vivarium_fail_point::passed;
use vivarium_journal::read::Transaction;
use vivarium_journal::write::Summary;
use vivarium_journal::{Digest, Header, Kind};
use vivarium_sys::btrfs::{self, SubvolumeInfo};

use super::JournalError;
use super::change::Doubt;
use super::log::Position;
use crate::files;
use crate::ids::VolumeId;
use crate::pool::{destroy_tree, open_beneath};
use crate::volume::{LIVE, VolumeError, Volumes, names_in};

const STATE: &str = "journal.json";
const ATTEMPT: &str = "attempt.vtx";
/// The transaction while it is being written.
const PARTIAL: &str = "attempt.partial";
const BASE: &str = "base.";
const PROOF: &str = "proof";
const SEED: &str = "seed";
const SWITCH: &str = "switch.json";
const REVERT: &str = "revert.json";
/// Version of [`Stored`] that this build writes and reads.
const VERSION: u32 = 1;

/// `journal.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stored {
    version: u32,
    sequence: u64,
    epoch: u64,
    digest: String,
    /// Number of the base; none while the tree of the journal is empty.
    base: Option<u64>,
    /// Name of the log that all of this is of; none: the volume's handle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    log: Option<String>,
}

/// `revert.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Reverting {
    order: String,
    sequence: u64,
    epoch: u64,
    digest: String,
}

/// A read-only snapshot.
#[derive(Debug)]
pub struct Snapshot {
    /// Its root.
    pub root: OwnedFd,
    /// What the kernel tells of it.
    pub info: SubvolumeInfo,
}

/// What was committed last.
#[derive(Debug)]
pub struct Newest {
    /// The transaction that it is the state after.
    pub base: u64,
    /// Root of the read-only snapshot.
    pub root: OwnedFd,
}

/// A transaction whose outcome may not be known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// What the log's tail is once it is in the store.
    pub position: Position,
    /// BLAKE3 of the file.
    pub content: Digest,
    /// Whether a snapshot belongs to it; a barrier has none.
    pub snapshot: bool,
    /// The file.
    pub path: PathBuf,
    /// Its length in bytes.
    pub length: u64,
}

impl Attempt {
    fn of(header: &Header, summary: &Summary, path: PathBuf) -> Self {
        let Summary { digest, content, length, .. } = *summary;
        let position = Position { sequence: header.sequence, epoch: header.epoch, digest };
        Self { position, content, snapshot: header.kind != Kind::Barrier, path, length }
    }
}

/// The directory of a volume that is on this node.
#[derive(Debug)]
pub struct Local {
    volumes: Volumes,
    id: VolumeId,
    directory: OwnedFd,
    path: PathBuf,
    head: Position,
    base: Option<u64>,
    /// Name of the log; none: nothing was noted yet, and it is whoever's that opens it.
    log: Option<String>,
}

impl Local {
    /// What is known of a volume that is here. Snapshots that belong to nothing are destroyed.
    ///
    /// # Errors
    /// The volume is not here, or the pool fails.
    pub fn open(volumes: &Volumes, id: &VolumeId) -> Result<Self, JournalError> {
        let directory = volumes.directory(id)?;
        let path = volumes.directory_path(id);
        let stored: Option<Stored> = files::read_json(&path.join(STATE)).map_err(io_error("read the state", id))?;
        let (head, base, log) = match stored {
            None => (Position::START, None, None),
            Some(Stored { version: VERSION, sequence, epoch, digest, base, log }) => {
                let digest = Digest::parse(&digest).ok_or_else(|| invalid(id, "its digest is none"))?;
                (Position { sequence, epoch, digest }, base, Some(log.unwrap_or_else(|| id.to_string())))
            }
            Some(Stored { version, .. }) => {
                return Err(invalid(id, &format!("it has version {version}, this build knows {VERSION}")));
            }
        };
        let local = Self { volumes: volumes.clone(), id: id.clone(), directory, path, head, base, log };
        local.sweep()?;
        Ok(local)
    }

    /// The same for whoever adds to the log of that name, and to no other.
    ///
    /// # Errors
    /// As [`Self::open`]; or what is here is of another log.
    pub fn open_for(volumes: &Volumes, id: &VolumeId, log: &str) -> Result<Self, JournalError> {
        let mut local = Self::open(volumes, id)?;
        if Self::doubt(volumes, id)?.is_some() {
            return Err(JournalError::Doubtful { volume: id.clone() });
        }
        match &local.log {
            Some(own) if own != log => Err(invalid(id, &format!("it is of log {own}, and not of {log}"))),
            _ => {
                local.log = Some(log.to_owned());
                Ok(local)
            }
        }
    }

    /// Name of the log that this is of; `None`: nothing was noted yet.
    #[must_use]
    pub fn log(&self) -> Option<&str> {
        self.log.as_deref()
    }

    /// From now on all of this is of the log of that name, which has the head under its number. What was under way for the
    /// former one must be settled or given up.
    ///
    /// # Errors
    /// The pool fails.
    pub fn adopt(&mut self, log: &str) -> Result<(), JournalError> {
        if self.log.as_deref() == Some(log) {
            return Ok(());
        }
        let noted = self.log.replace(log.to_owned()).is_some();
        if noted { self.store(self.head, self.base) } else { Ok(()) }
    }

    /// What was committed last of a volume that may be here, for somebody who only reads: the commit that comes next takes it
    /// away. None: nothing was committed here.
    ///
    /// # Errors
    /// The pool fails.
    pub fn newest(volumes: &Volumes, id: &VolumeId) -> Result<Option<Newest>, JournalError> {
        let path = volumes.directory_path(id);
        let stored: Option<Stored> = files::read_json(&path.join(STATE)).map_err(io_error("read the state", id))?;
        let Some(base) = stored.filter(|stored| stored.version == VERSION).and_then(|stored| stored.base) else {
            return Ok(None);
        };
        let directory = volumes.directory(id)?;
        match open_beneath(directory.as_fd(), Path::new(&base_name(base))) {
            Ok(root) => Ok(Some(Newest { base, root })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error("open a snapshot", id)(error)),
        }
    }

    /// Takes a volume away that another node has by now: destroys it, or sets it aside if something was written here that is
    /// in no journal. Tells the epoch in that case.
    ///
    /// # Errors
    /// The pool fails.
    pub fn retire(volumes: &Volumes, id: &VolumeId) -> Result<Option<u64>, JournalError> {
        let epoch = match Self::open(volumes, id) {
            Ok(local) => {
                // What was written since the last transaction of the file system shows in no generation.
                volumes.pool().sync().map_err(VolumeError::from)?;
                local.diverged()?.then_some(local.head.epoch)
            }
            // One whose state cannot be read may hold anything.
            Err(JournalError::Read { .. } | JournalError::Io { .. }) => Some(0),
            Err(JournalError::Volume(VolumeError::NotFound(_))) => return Ok(None),
            Err(error) => return Err(error),
        };
        if let Some(epoch) = epoch {
            Self::set_aside(volumes, id, epoch)?;
        } else {
            volumes.delete(id)?;
            passed("superseded-deleted");
        }
        Ok(epoch)
    }

    /// Sets a volume aside that was written under an epoch.
    pub(super) fn set_aside(volumes: &Volumes, id: &VolumeId, epoch: u64) -> Result<(), JournalError> {
        tracing::warn!(volume = %id, epoch, "what was written here last is in no journal and is set aside");
        volumes.set_aside(id, epoch, SystemTime::now())?;
        passed("diverged-set-aside");
        Ok(())
    }

    /// Whether something was written, until the newest transaction of the file system, that is not known to be in the
    /// store.
    pub(super) fn diverged(&self) -> Result<bool, JournalError> {
        if self.attempt()?.is_some_and(|attempt| attempt.snapshot) {
            return Ok(true);
        }
        let live = self.volumes.get(&self.id)?.info.generation;
        // A snapshot is of the end of a transaction of the file system; whatever comes later has a higher generation.
        // Its own generation would hide that once somebody has taken a snapshot of it: a trial, a reader, a standby
        // copy.
        Ok(self.base()?.is_none_or(|base| live > base.info.made))
    }

    /// Removes what no state refers to.
    fn sweep(&self) -> Result<(), JournalError> {
        files::remove(&self.path.join(PARTIAL)).map_err(self.io("remove a half-written transaction"))?;
        let attempt = self.attempt()?;
        for name in names_in(self.directory.as_fd()).map_err(self.io("list the snapshots"))? {
            let number = name.strip_prefix(BASE).and_then(|number| number.parse::<u64>().ok());
            let attempted = attempt.as_ref().filter(|attempt| attempt.snapshot);
            let is_used =
                |number| Some(number) == self.base || attempted.is_some_and(|a| a.position.sequence == number);
            // Somebody may be reading the others; they are replaced when they are taken again.
            if number.is_some_and(|number| !is_used(number)) {
                self.destroy(&name)?;
            }
        }
        Ok(())
    }

    /// The newest transaction that is known to be in the store.
    #[must_use]
    pub fn head(&self) -> Position {
        self.head
    }

    /// The live subvolume's path.
    #[must_use]
    pub fn live(&self) -> PathBuf {
        self.path.join(LIVE)
    }

    /// The snapshot that the next transaction is counted from; `None`: from an empty tree.
    ///
    /// # Errors
    /// It is not there, or the pool fails.
    pub fn base(&self) -> Result<Option<Snapshot>, JournalError> {
        self.base.map(|number| self.snapshot(&base_name(number))).transpose()
    }

    /// Keeps the base beside what goes on, as `proof`, until [`Self::unpin`]; with the number of its transaction. `None`: there
    /// is none.
    ///
    /// # Errors
    /// The pool fails.
    pub fn pin(&self) -> Result<Option<(u64, Snapshot)>, JournalError> {
        self.unpin()?;
        let (Some(number), Some(base)) = (self.base, self.base()?) else { return Ok(None) };
        self.copy(&base, PROOF)?;
        Ok(Some((number, self.snapshot(PROOF)?)))
    }

    /// Removes `proof`, if it is there.
    ///
    /// # Errors
    /// The pool fails.
    pub fn unpin(&self) -> Result<(), JournalError> {
        self.destroy(PROOF)
    }

    /// The attempt's file, and the tree after it, which is kept beside what goes on until [`Self::unpin_seed`]. `None`: there
    /// is no tree.
    ///
    /// # Errors
    /// The pool fails.
    pub fn pin_seed(&self, attempt: &Attempt) -> Result<Option<(Transaction<File>, Snapshot)>, JournalError> {
        self.unpin_seed()?;
        let tree =
            if attempt.snapshot { Some(self.snapshot(&base_name(attempt.position.sequence))?) } else { self.base()? };
        let (Some(tree), Some(file)) = (tree, self.attempt_file()?) else { return Ok(None) };
        self.copy(&tree, SEED)?;
        Ok(Some((file, self.snapshot(SEED)?)))
    }

    /// Removes `seed`, if it is there.
    ///
    /// # Errors
    /// The pool fails.
    pub fn unpin_seed(&self) -> Result<(), JournalError> {
        self.destroy(SEED)
    }

    fn copy(&self, of: &Snapshot, name: &str) -> Result<(), JournalError> {
        let name = CString::new(name).map_err(|e| self.io("name a snapshot")(e.into()))?;
        btrfs::snapshot(of.root.as_fd(), self.directory.as_fd(), &name, true).map_err(self.io("copy a snapshot"))
    }

    fn snapshot(&self, name: &str) -> Result<Snapshot, JournalError> {
        let root = open_beneath(self.directory.as_fd(), Path::new(name)).map_err(self.io("open a snapshot"))?;
        let info = btrfs::subvolume_info(root.as_fd()).map_err(self.io("identify a snapshot"))?;
        Ok(Snapshot { root, info })
    }

    /// Takes the snapshot of the live subvolume that the next transaction is of, in place of one that is there.
    ///
    /// # Errors
    /// The pool fails.
    pub fn take(&self) -> Result<Snapshot, JournalError> {
        let name = self.next();
        self.destroy(&name)?;
        self.snap(&name)?;
        passed("snapshot-taken");
        self.snapshot(&name)
    }

    /// Name of the snapshot that the next transaction is of.
    fn next(&self) -> String {
        base_name(self.head.sequence + 1)
    }

    fn snap(&self, name: &str) -> Result<(), JournalError> {
        let live = self.volumes.get(&self.id)?;
        let name = CString::new(name).map_err(|e| self.io("name a snapshot")(e.into()))?;
        btrfs::snapshot(live.directory.as_fd(), self.directory.as_fd(), &name, true).map_err(self.io("take a snapshot"))
    }

    /// A file for a transaction that is being written.
    ///
    /// # Errors
    /// The pool fails.
    pub fn partial(&self) -> Result<File, JournalError> {
        let path = self.path.join(PARTIAL);
        files::remove(&path).map_err(self.io("remove a half-written transaction"))?;
        let options = File::options().read(true).write(true).create_new(true).open(&path);
        options.map_err(self.io("make a transaction file"))
    }

    /// The partial file, complete and on disk, becomes the attempt. It is not read back, which would be one more pass over all of
    /// it at each commit: everybody who reads it from the store checks it.
    ///
    /// # Errors
    /// The pool fails.
    pub fn persist(&self, partial: &File, header: &Header, summary: &Summary) -> Result<Attempt, JournalError> {
        partial.sync_data().map_err(self.io("write out a transaction"))?;
        passed("transaction-written-out");
        std::fs::rename(self.path.join(PARTIAL), self.path.join(ATTEMPT)).map_err(self.io("name a transaction"))?;
        passed("attempt-named");
        self.sync()?;
        passed("attempt-persisted");
        Ok(Attempt::of(header, summary, self.path.join(ATTEMPT)))
    }

    /// The partial file and the snapshot that was taken are of no use.
    ///
    /// # Errors
    /// The pool fails.
    pub fn discard(&self) -> Result<(), JournalError> {
        files::remove(&self.path.join(PARTIAL)).map_err(self.io("remove a transaction"))?;
        files::remove(&self.path.join(ATTEMPT)).map_err(self.io("remove a transaction"))?;
        passed("empty-transaction-removed");
        self.destroy(&self.next())
    }

    /// The transaction whose outcome may not be known. It was written whole before it got its name; so one that is
    /// damaged is an error.
    ///
    /// # Errors
    /// The pool fails, or it is damaged.
    pub fn attempt(&self) -> Result<Option<Attempt>, JournalError> {
        let Some(transaction) = self.attempt_file()? else { return Ok(None) };
        Ok(Some(Attempt::of(transaction.header(), &transaction.summary(), self.path.join(ATTEMPT))))
    }

    /// Its file, which can be read also when it is settled.
    ///
    /// # Errors
    /// As [`Self::attempt`].
    pub fn attempt_file(&self) -> Result<Option<Transaction<File>>, JournalError> {
        let file = match File::open(self.path.join(ATTEMPT)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.io("open a transaction")(error)),
        };
        Transaction::open(file).map(Some).map_err(|source| JournalError::Read { volume: self.id.clone(), source })
    }

    /// The log that the object of a volume may name by now; `None`: there is no doubt, or no such volume here.
    ///
    /// # Errors
    /// The pool fails, or it cannot be read.
    pub fn doubt(volumes: &Volumes, id: &VolumeId) -> Result<Option<Doubt>, JournalError> {
        let path = volumes.directory_path(id).join(SWITCH);
        let doubt: Option<Doubt> = files::read_json(&path).map_err(io_error("read what is in doubt", id))?;
        match doubt {
            Some(doubt) if !doubt.is_known() => Err(invalid(id, "another build wrote what is in doubt")),
            doubt => Ok(doubt),
        }
    }

    /// From now on it is not known which log decides.
    ///
    /// # Errors
    /// The pool fails.
    pub fn begin_doubt(&self, doubt: &Doubt) -> Result<(), JournalError> {
        files::write_json(&self.path.join(SWITCH), doubt).map_err(self.io("note what is in doubt"))?;
        self.sync()
    }

    /// The log that was in doubt decides: all of this is of that one now, and what was under way is in it.
    ///
    /// # Errors
    /// The pool fails; it can be called again.
    pub fn switched(&mut self, doubt: &Doubt) -> Result<(), JournalError> {
        if let Some(attempt) = self.attempt()?.filter(|attempt| attempt.position.sequence <= doubt.last) {
            self.settle(&attempt)?;
        }
        passed("switch-settled");
        self.adopt(&doubt.to.name)
    }

    /// There is no doubt any more.
    ///
    /// # Errors
    /// The pool fails.
    pub fn end_doubt(&self) -> Result<(), JournalError> {
        files::remove(&self.path.join(SWITCH)).map_err(self.io("note that nothing is in doubt"))?;
        self.sync()
    }

    /// The attempt is in the store: the head moves, its snapshot is the base from now on, the former base goes.
    ///
    /// # Errors
    /// The pool fails; the attempt stays then, and this can be called again.
    pub fn settle(&mut self, attempt: &Attempt) -> Result<(), JournalError> {
        let mut base = self.base;
        if attempt.snapshot {
            let number = attempt.position.sequence;
            drop(self.snapshot(&base_name(number))?);
            base = Some(number);
        }
        self.store(attempt.position, base)?;
        passed("head-moved");
        files::remove(&attempt.path).map_err(self.io("remove a transaction"))?;
        passed("attempt-removed");
        Ok(())
    }

    /// The live subvolume holds the tree at `head`; from now on changes are counted from there. `empty`: that tree is
    /// nothing at all.
    ///
    /// # Errors
    /// The pool fails.
    pub fn start_from(&mut self, head: Position, empty: bool) -> Result<(), JournalError> {
        let base = (!empty).then_some(head.sequence);
        if let Some(number) = base {
            let name = base_name(number);
            self.destroy(&name)?;
            self.snap(&name)?;
            passed("restored-base-taken");
        }
        // If the power fails before the name of the state is on the disk, the volume comes from the log once more.
        self.note(head, base)
    }

    fn store(&mut self, head: Position, base: Option<u64>) -> Result<(), JournalError> {
        let old = self.base.filter(|old| Some(*old) != base);
        self.note(head, base)?;
        self.sync()?;
        passed("state-persisted");
        if let Some(old) = old {
            self.destroy(&base_name(old))?;
        }
        Ok(())
    }

    /// Writes the state, which has its name once the directory is synced.
    fn note(&mut self, head: Position, base: Option<u64>) -> Result<(), JournalError> {
        let stored = Stored {
            version: VERSION,
            sequence: head.sequence,
            epoch: head.epoch,
            digest: head.digest.to_string(),
            base,
            log: self.log.clone().filter(|log| *log != self.id.as_str()),
        };
        files::write_json(&self.path.join(STATE), &stored).map_err(self.io("write the state"))?;
        passed("state-written");
        (self.head, self.base) = (head, base);
        Ok(())
    }

    /// The newest transaction from before an order to bring a former state back, if it was begun here.
    ///
    /// # Errors
    /// The pool fails.
    pub fn before(&self, order: &str) -> Result<Option<Position>, JournalError> {
        let noted: Option<Reverting> =
            files::read_json(&self.path.join(REVERT)).map_err(self.io("read what is under way"))?;
        let Some(noted) = noted.filter(|noted| noted.order == order) else { return Ok(None) };
        let digest = Digest::parse(&noted.digest).ok_or_else(|| invalid(&self.id, "its digest is none"))?;
        Ok(Some(Position { sequence: noted.sequence, epoch: noted.epoch, digest }))
    }

    /// Notes that an order to bring a former state back is begun, and the newest transaction before.
    ///
    /// # Errors
    /// The pool fails.
    pub fn note_before(&self, order: String, newest: Position) -> Result<(), JournalError> {
        let Position { sequence, epoch, digest } = newest;
        let noted = Reverting { order, sequence, epoch, digest: digest.to_string() };
        files::write_json(&self.path.join(REVERT), &noted).map_err(self.io("note what is under way"))?;
        self.sync()
    }

    fn sync(&self) -> Result<(), JournalError> {
        rustix::fs::fsync(&self.directory).map_err(|error| self.io("write out the directory")(error.into()))
    }

    fn destroy(&self, name: &str) -> Result<(), JournalError> {
        let name = CString::new(name).map_err(|e| self.io("name a snapshot")(e.into()))?;
        destroy_tree(self.volumes.pool().root(), self.directory.as_fd(), &name).map_err(self.io("destroy a snapshot"))
    }

    fn io(&self, attempt: &'static str) -> impl FnOnce(io::Error) -> JournalError + use<> {
        io_error(attempt, &self.id)
    }
}

/// Bytes of the transaction that is to be added next, as far as it is written; 0: there is none. It can be asked while
/// somebody is at work.
#[must_use]
pub fn pending_bytes(volumes: &Volumes, id: &VolumeId) -> u64 {
    let length = |name| std::fs::metadata(volumes.directory_path(id).join(name)).map(|metadata| metadata.len());
    length(ATTEMPT).or_else(|_| length(PARTIAL)).unwrap_or(0)
}

/// Name of the snapshot after a transaction.
fn base_name(sequence: u64) -> String {
    format!("{BASE}{sequence}")
}

fn io_error(attempt: &'static str, id: &VolumeId) -> impl FnOnce(io::Error) -> JournalError + use<> {
    let volume = id.clone();
    move |source| JournalError::Io { attempt, volume, source }
}

fn invalid(id: &VolumeId, what: &str) -> JournalError {
    JournalError::Io {
        attempt: "read the journal's state",
        volume: id.clone(),
        source: io::Error::other(what.to_owned()),
    }
}
