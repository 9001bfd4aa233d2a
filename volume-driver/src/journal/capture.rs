//! From two snapshots of a volume to a transaction file.
//!
//! The kernel's stream goes through a pipe from a thread that does nothing else, is translated command by command and
//! written at once, so memory does not grow with the change. No `btrfs` program is involved.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::pipe::PipeFlags;
use vivarium_journal::Header;
use vivarium_journal::send::{self, SendError};
use vivarium_journal::translate::{Sources, TranslateError, translate};
use vivarium_journal::write::{Summary, Writer};
use vivarium_sys::btrfs::{self, SubvolumeInfo};

use super::layout;

/// Room of the pipe: fewer changes between two threads (`F_SETPIPE_SZ`; the default limit of the kernel).
const PIPE: usize = 1 << 20;

/// Why nothing could be captured.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The kernel does not send.
    #[error("the kernel cannot say what has changed: {0}")]
    Send(io::Error),
    /// The kernel's stream has no longer paths, whoever asks.
    #[error(
        "something has changed below a path of more than 4095 bytes, which the kernel cannot name: until the directories that deep are removed or get shorter names, no change of the volume is kept"
    )]
    TooDeep,
    /// What it sends cannot become a transaction.
    #[error(transparent)]
    Translate(#[from] TranslateError),
    /// The snapshot cannot be looked at.
    #[error("the snapshot cannot be read: {0}")]
    Layout(io::Error),
    /// The file cannot be written.
    #[error("the transaction file cannot be written: {0}")]
    Write(io::Error),
}

/// What is captured: the difference from `base` to `snapshot`, or all of `snapshot`.
#[derive(Clone, Copy, Debug)]
pub struct Difference<'a> {
    /// Root of the read-only snapshot.
    pub snapshot: BorrowedFd<'a>,
    /// What the kernel tells of it.
    pub info: SubvolumeInfo,
    /// Number of the read-only snapshot before it.
    pub base: Option<u64>,
    /// The template's layers, lowest first.
    pub layers: &'a [SubvolumeInfo],
}

/// Writes a transaction to `to`, which is not synced. `None`: nothing has changed, and what is in the file is of no use.
///
/// # Errors
/// [`CaptureError`].
pub fn capture(difference: &Difference<'_>, header: &Header, to: &File) -> Result<Option<Summary>, CaptureError> {
    let (reader, pipe) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|e| CaptureError::Send(e.into()))?;
    // Only a matter of speed, and of a limit that the administrator may have set lower.
    let _ = rustix::pipe::fcntl_setpipe_size(&pipe, PIPE);
    let layers: Vec<u64> = difference.layers.iter().map(|layer| layer.id).collect();
    let sources =
        Sources { own: difference.info.uuid.0, layers: difference.layers.iter().map(|layer| layer.uuid.0).collect() };
    let mut writer = Writer::new(BufWriter::new(to), header).map_err(CaptureError::Write)?;
    let (sent, translated) = std::thread::scope(|scope| {
        let sender = scope.spawn(move || {
            // The pipe is closed when this ends, which ends the translation.
            btrfs::send(difference.snapshot, difference.base, &layers, send::VERSION, pipe.as_fd())
        });
        let translated = translate(BufReader::with_capacity(PIPE, File::from(reader)), &sources, &mut writer);
        // The reader is gone now, so a sender that is not finished ends as well.
        let sent = sender.join().unwrap_or_else(|_| Err(io::Error::other("the sending thread failed")));
        (sent, translated)
    });
    let touched = match (sent, translated) {
        (_, Ok(touched)) => touched,
        // A stream that breaks off breaks off because the kernel failed.
        (Err(error), Err(TranslateError::Send(SendError::Io(_)))) => {
            let too_long = rustix::io::Errno::from_io_error(&error) == Some(rustix::io::Errno::NAMETOOLONG);
            return Err(if too_long { CaptureError::TooDeep } else { CaptureError::Send(error) });
        }
        (_, Err(error)) => return Err(error.into()),
    };
    if writer.operations() == 0 {
        return Ok(None);
    }
    let changes = touched.changes();
    layout::complete(difference.snapshot, difference.info.id, difference.base, changes, &mut writer)
        .map_err(CaptureError::Layout)?;
    let (mut buffer, summary) = writer.finish(&changes).map_err(CaptureError::Write)?;
    buffer.flush().map_err(CaptureError::Write)?;
    Ok(Some(summary))
}
