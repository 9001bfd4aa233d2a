//! Journals: every change of a volume becomes a transaction file in a store, and any node can bring the volume back.
//!
//! ```text
//!            live  --snapshot-->  next  --send, translate-->  attempt.vtx  --create if absent-->  log/<n> in the store
//!                                   |                                                                  |
//!                                   +------------------- becomes base.<n> once the store has it <------+
//! ```
//!
//! [`log`] is the chain of transactions in the store, numbered without gaps; an object of a number is made once and
//! never replaced. [`local`] is what a node keeps of it beside the live subvolume. [`begin`] opens an epoch: it closes
//! the log for all earlier epochs with a barrier, and makes sure that the live subvolume holds what the log says,
//! taking its standby copy ([`standby`]) over or restoring it if it does not. [`rejoin`] makes such a copy of what a
//! node had that comes back. [`revert`] makes a former state the newest one, or some [`paths`] of it, [`branch`] one of
//! another volume the first; [`wanted`] is how people name states. [`commit`] adds to the log; [`keeper`] does that for
//! all volumes of a node, about once a second; [`change`] takes the journal to another store. [`keep`] keeps the log
//! short: [`inventory`] decides, and transactions become merged ones ([`pieces`]). [`prove`] tries whether all of that
//! works.
//!
//! What holds, whatever is lost or killed at any point (ownership protocol, rules 12 to 14):
//! - A transaction counts from the moment in which its object is in the store. Only then the base moves.
//! - An attempt whose outcome is not known is repeated with the same bytes, also by the next process: they lie in
//!   `attempt.vtx` before the first request. Never is another content sent under the same number.
//! - Number n + 1 is not sent before n is known.
//! - Whoever finds the number taken by somebody else has lost the volume: nothing is written under its epoch any more.
//! - The live subvolume of a node is used again only if nothing was added to the log since this node's last transaction.

pub mod apply;
pub mod begin;
pub mod branch;
pub mod capture;
pub mod change;
pub mod commit;
mod copy;
mod held;
pub mod inventory;
pub mod keep;
pub mod keeper;
mod layout;
pub mod local;
pub mod log;
mod merge;
mod overlay;
mod paths;
pub mod pieces;
pub mod prove;
pub mod rejoin;
pub mod restore;
pub mod revert;
mod shown;
pub mod standby;
pub mod tree;
pub mod wanted;

use std::io;

use vivarium_journal::read::ReadError;

use crate::ids::VolumeId;
use crate::pool::PoolError;
use crate::volume::VolumeError;

/// Why a journal cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Somebody else has the volume.
    #[error(
        "the journal of volume {volume} belongs to epoch {current} by now, and this is epoch {epoch}: the volume was given to another incarnation, and nothing more of this one is kept"
    )]
    Superseded {
        /// The volume.
        volume: VolumeId,
        /// Ours.
        epoch: u64,
        /// The one in the log.
        current: u64,
    },
    /// Something between us and the volume changed while the journal was opened.
    #[error("volume {volume} was given to somebody else while its journal was opened")]
    Lost {
        /// The volume.
        volume: VolumeId,
    },
    /// It is not known which of two logs decides.
    #[error(
        "the journal of volume {volume} is being taken to another store, and the API server has not said yet whether it is there: nothing is committed until then"
    )]
    Doubtful {
        /// The volume.
        volume: VolumeId,
    },
    /// The store, perhaps for now.
    #[error("the journal of volume {volume} cannot be reached: {message}")]
    Store {
        /// The volume.
        volume: VolumeId,
        /// What the store said.
        message: String,
    },
    /// The log is not as it must be.
    #[error("the journal of volume {volume} is damaged at transaction {sequence}: {what}")]
    Damaged {
        /// The volume.
        volume: VolumeId,
        /// Where.
        sequence: u64,
        /// What is wrong.
        what: String,
    },
    /// A local file or subvolume.
    #[error("cannot {attempt} of volume {volume}: {source}")]
    Io {
        /// What was tried.
        attempt: &'static str,
        /// The volume.
        volume: VolumeId,
        /// Why not.
        source: io::Error,
    },
    /// Capture.
    #[error("the changes of volume {volume} cannot be captured: {source}")]
    Capture {
        /// The volume.
        volume: VolumeId,
        /// Why not.
        source: capture::CaptureError,
    },
    /// The state of another volume that it is to begin with.
    #[error("volume {volume} cannot begin with a state of volume {source_volume}: {message}")]
    NoSource {
        /// The volume.
        volume: VolumeId,
        /// The other one.
        source_volume: VolumeId,
        /// One word of the runbook.
        reason: &'static str,
        /// Why not.
        message: String,
    },
    /// What was asked for cannot be had.
    #[error("{message}")]
    Refused {
        /// The volume.
        volume: VolumeId,
        /// One word of the runbook.
        reason: &'static str,
        /// Why not.
        message: String,
    },
    /// Restoring.
    #[error("volume {volume} cannot be restored: {source}")]
    Apply {
        /// The volume.
        volume: VolumeId,
        /// Why not.
        source: apply::ApplyError,
    },
    /// A transaction file.
    #[error("a transaction of volume {volume} cannot be read: {source}")]
    Read {
        /// The volume.
        volume: VolumeId,
        /// Why not.
        source: ReadError,
    },
    /// The volume.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// A layer of the template is missing.
    #[error("layer {layer}, on which volume {volume} lies, is not on this node")]
    LayerMissing {
        /// The volume.
        volume: VolumeId,
        /// The layer.
        layer: String,
    },
    /// The process ends.
    #[error("the work on volume {volume} was cut off: {message}")]
    CutOff {
        /// The volume.
        volume: VolumeId,
        /// How.
        message: String,
    },
}

impl JournalError {
    /// Whether trying again would not help: the state that was asked for cannot be put together on this node, and what
    /// is there was not touched.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(
            self,
            Self::Damaged { .. }
                | Self::Refused { .. }
                | Self::Read { .. }
                | Self::Apply { .. }
                | Self::Capture { .. }
                | Self::LayerMissing { .. }
                | Self::Volume(VolumeError::Pool(PoolError::Full { .. }))
        )
    }

    /// Whether what the store gave is wrong, and not this node or the way to the store.
    #[must_use]
    pub fn blames_store(&self) -> bool {
        let of_node = |source: &io::Error| {
            use io::ErrorKind::{OutOfMemory, QuotaExceeded, StorageFull};
            let failing = source.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error());
            failing || matches!(source.kind(), OutOfMemory | QuotaExceeded | StorageFull)
        };
        match self {
            Self::Damaged { .. } => true,
            Self::Read { source, .. } | Self::Apply { source: apply::ApplyError::Read(source), .. } => {
                !matches!(source, ReadError::Io(_))
            }
            Self::Apply { source: apply::ApplyError::Op { source, .. }, .. } => !of_node(source),
            _ => false,
        }
    }

    /// As one word of the runbook.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Superseded { .. } | Self::Lost { .. } => "Superseded",
            Self::Doubtful { .. } => "ChangingStore",
            Self::Store { .. } => "StoreUnreachable",
            Self::Damaged { .. } | Self::Read { .. } | Self::Apply { .. } => "JournalDamaged",
            Self::NoSource { reason, .. } | Self::Refused { reason, .. } => reason,
            Self::LayerMissing { .. } => "TemplateMissing",
            Self::Capture { .. } => "CaptureFailed",
            Self::Volume(VolumeError::Pool(PoolError::Full { .. })) => "PoolFull",
            Self::Io { .. } | Self::Volume(_) | Self::CutOff { .. } => "NodeError",
        }
    }
}

/// Runs what blocks beside the async tasks.
async fn blocking<T: Send + 'static>(
    volume: &VolumeId,
    work: impl FnOnce() -> Result<T, JournalError> + Send + 'static,
) -> Result<T, JournalError> {
    let volume = volume.clone();
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(JournalError::CutOff { volume, message: error.to_string() }))
}
