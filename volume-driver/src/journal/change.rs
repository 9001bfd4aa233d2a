//! Taking the journal of a volume to another log while its environment runs: the parts of it that touch the node and the
//! stores. In which order they are done, and what counts, is decided by [`vivarium_ownership::change`]; who does it is
//! [`crate::publish`]. The protocol has the reasons (*A set of stores, and another one*).
//!
//! ```text
//!   deciding log   ... n ---- n+1 ---- ... ---- m   [m+1: under way, its outcome not known]
//!                      |       | copy           |     |
//!   next log    checkpoint n, n, n+1 ---- ... - m --- m+1      then the object names the next log
//! ```
//!
//! The next log begins with the transaction that is made for that purpose, so that nothing has to be asked of the store
//! that is left: a dead one can be left, too. The bytes of each transaction are the same in both logs, and so are numbers,
//! digests and the base on this node.
//!
//! The last step is a write to the volume's object, and the answer may get lost. [`Doubt`] is on the disk before the write
//! is sent, and while it is there nothing is committed, by this process or the next.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vivarium_api::v1alpha1::volume::VolumeLog;
use vivarium_fail_point::passed;
use vivarium_journal::read::Transaction;
use vivarium_sys::btrfs::SubvolumeInfo;

use super::capture::{Difference, capture};
use super::commit::{Journal, checkpoint_header};
use super::local::{Local, Snapshot};
use super::log::{Appended, Boundary, Log, Position, Unnamed, path_of};
use super::{JournalError, blocking};
use crate::ids::{LayerDigest, VolumeId};
use crate::volume::Volumes;

/// Version of [`Doubt`] that this build writes and reads.
const VERSION: u32 = 1;

/// What a log begins with.
#[derive(Debug)]
pub struct Seed {
    /// The transaction, which may not be in the deciding log yet.
    transaction: Transaction<File>,
    /// The tree after it.
    tree: Snapshot,
    layers: Arc<Vec<(LayerDigest, SubvolumeInfo)>>,
}

impl Seed {
    /// Puts it into a log that holds nothing; the number of its transaction. The boundary comes last: who looks for the end of
    /// a log begins there.
    ///
    /// # Errors
    /// The store does not answer, or the log has something.
    pub async fn put(self, log: &Log, pool: &Path) -> Result<u64, JournalError> {
        let Self { transaction, tree, layers } = self;
        let number = transaction.header().sequence;
        let io = |source| JournalError::Io { attempt: "make a checkpoint", volume: log.volume().clone(), source };
        let file = Unnamed::new(pool).map_err(io)?;
        let to = file.file.try_clone().map_err(io)?;
        let volume = log.volume().clone();
        let tail =
            Position { sequence: number, epoch: transaction.header().epoch, digest: transaction.summary().digest };
        let captured = blocking(log.volume(), move || {
            let header = checkpoint_header(&volume, tail, &layers);
            let infos: Vec<SubvolumeInfo> = layers.iter().map(|(_, info)| *info).collect();
            let difference = Difference { snapshot: tree.root.as_fd(), info: tree.info, base: None, layers: &infos };
            capture(&difference, &header, &to).map_err(|source| JournalError::Capture { volume, source })
        });
        let Some(checkpoint) = captured.await? else { return Err(log.is_used("the tree is empty")) };
        passed("seed-captured");
        if log.add_checkpoint(number, &file.path(), checkpoint.length, checkpoint.content).await? == Appended::Taken {
            return Err(log.is_used("it has a checkpoint"));
        }
        passed("seed-checkpoint-in-store");
        log.append_copy(&transaction).await?;
        passed("seed-transaction-in-store");
        if !log.raise_boundary(Boundary::NONE, number).await? {
            return Err(log.is_used("it has a boundary"));
        }
        passed("seed-boundary-in-store");
        tracing::info!(volume = %log.volume(), store = log.store(), log = %log.name(), number, bytes = checkpoint.length, "seeded another log");
        Ok(number)
    }
}

impl Log {
    /// Adds a transaction of another log of the volume under its own number.
    ///
    /// # Errors
    /// The store does not answer, or has something else under that number.
    pub async fn append_copy(&self, transaction: &Transaction<File>) -> Result<(), JournalError> {
        let (number, summary) = (transaction.header().sequence, transaction.summary());
        let path = path_of(transaction.source());
        match self.append(number, &path, summary.length, summary.content).await? {
            Appended::Yes => Ok(()),
            Appended::Taken => Err(self.is_used(&format!("it has another transaction {number}"))),
        }
    }

    fn is_used(&self, what: &str) -> JournalError {
        let what = format!("the journal cannot be taken to log {} of store {}: {what}", self.name(), self.store());
        JournalError::CutOff { volume: self.volume().clone(), message: what }
    }
}

impl Journal {
    /// Takes what another log can begin with: a transaction that is under way, or one that is made now; and keeps its tree
    /// until that is taken again. `None`: there is no tree yet.
    ///
    /// # Errors
    /// The pool fails.
    pub async fn seed(&mut self) -> Result<Option<Seed>, JournalError> {
        let attempt = match self.with_local(|local| local.attempt()).await? {
            Some(attempt) => attempt,
            None => match self.make_attempt().await? {
                Some(attempt) => attempt,
                None => self.make_barrier().await?,
            },
        };
        passed("seed-transaction-made");
        let layers = self.layers.clone();
        self.with_local(move |local| {
            let Some((transaction, tree)) = local.pin_seed(&attempt)? else { return Ok(None) };
            Ok(Some(Seed { transaction, tree, layers }))
        })
        .await
    }

    /// Keeps that tree no longer.
    ///
    /// # Errors
    /// The pool fails.
    pub async fn drop_seed(&mut self) -> Result<(), JournalError> {
        self.with_local(|local| local.unpin_seed()).await
    }

    /// The newest transaction that is in the log.
    ///
    /// # Errors
    /// The pool fails.
    pub async fn head(&mut self) -> Result<u64, JournalError> {
        self.with_local(|local| Ok(local.head().sequence)).await
    }

    /// Puts into another log what came after a transaction, also what may or may not be in the deciding log; the newest one then.
    /// Nothing is committed while this goes on.
    ///
    /// # Errors
    /// A store does not answer, or the pool fails.
    pub async fn copy_rest(&mut self, after: u64, next: &Log) -> Result<u64, JournalError> {
        let head = self.head().await?;
        let copied = copy(&self.log, next, after..head, self.volumes.pool().path()).await?;
        let under_way = self.with_local(|local| local.attempt_file()).await?;
        let Some(under_way) = under_way else { return Ok(copied) };
        next.append_copy(&under_way).await?;
        Ok(copied.max(under_way.header().sequence))
    }

    /// From now on it is not known which log decides, and nothing can be committed: this journal is of no more use.
    ///
    /// # Errors
    /// The pool fails.
    pub async fn doubt(mut self, doubt: Doubt) -> Result<(), JournalError> {
        self.with_local(move |local| local.begin_doubt(&doubt)).await?;
        passed("doubt-begun");
        Ok(())
    }
}

/// Copies the transactions of a log that come after the first of these up to the second; the newest one then.
pub(super) async fn copy(log: &Log, next: &Log, span: Range<u64>, pool: &Path) -> Result<u64, JournalError> {
    for number in span.start + 1..=span.end {
        next.append_copy(&log.fetch(number, pool).await?).await?;
        passed("transaction-copied");
    }
    Ok(span.end.max(span.start))
}

/// How a doubt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// The object names the log that was in doubt.
    Switched,
    /// The object names the former one, and nobody can have it name the other any more. Or there was no doubt.
    Stays,
    /// The volume has another incarnation by now, or none: its object says what decides.
    Over,
}

/// Ends a doubt, if there is one: has the object name the log that is in doubt, by `name`, which has to complete or repeat the
/// write until it knows how it ended; then notes on this node what that means, with `record` for what is not the journal's.
/// As long as the object names this incarnation and that log as the next one, the write is right whoever makes it, since that log
/// has everything; so there is no going back.
///
/// # Errors
/// The pool fails, or those. It has to be called again, by this process or another.
pub async fn settle<E: From<JournalError>>(
    volumes: &Volumes,
    id: &VolumeId,
    name: impl AsyncFnOnce(&Doubt) -> Result<Settled, E>,
    record: impl AsyncFnOnce(&VolumeLog) -> Result<(), E>,
) -> Result<Settled, E> {
    let local = async |work: fn(&mut Local, &Doubt) -> Result<(), JournalError>, doubt: &Doubt| {
        let (volumes, volume, doubt) = (volumes.clone(), id.clone(), doubt.clone());
        blocking(id, move || work(&mut Local::open(&volumes, &volume)?, &doubt)).await
    };
    let Some(doubt) = Local::doubt(volumes, id)? else { return Ok(Settled::Stays) };
    let settled = name(&doubt).await?;
    passed("doubt-settled");
    match settled {
        Settled::Over => return Ok(settled),
        Settled::Stays => {}
        Settled::Switched => {
            local(Local::switched, &doubt).await?;
            passed("switch-adopted");
            record(&doubt.to).await?;
            passed("switch-recorded");
        }
    }
    local(|local, _| local.end_doubt(), &doubt).await?;
    passed("doubt-ended");
    Ok(settled)
}

/// It is not known whether the object names another log by now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doubt {
    version: u32,
    /// Incarnation that has the volume.
    pub epoch: u64,
    /// The log that may decide by now. It has everything.
    pub to: VolumeLog,
    /// The newest transaction in it.
    pub last: u64,
}

impl Doubt {
    /// A doubt that is about to begin.
    #[must_use]
    pub fn new(epoch: u64, to: VolumeLog, last: u64) -> Self {
        Self { version: VERSION, epoch, to, last }
    }

    /// Whether this build can read it.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.version == VERSION
    }
}
