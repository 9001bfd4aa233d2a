//! Whether the disk below the pool answers. A disk that hangs is seen by nobody else: the node's lease is in the API server,
//! what the shims read is in memory, and so the environments would stand still for ever on a node that counts as alive.
//!
//! A thread of its own writes a few bytes into the pool now and then and waits until they are on the disk. While that has not
//! succeeded for too long, the node asks neither of its witnesses any more ([`crate::authority`]): its environments are frozen
//! when their leases have passed, and the operator ends the session of the node and starts them elsewhere, as if the node
//! were dead. If the disk answers again before that, everything goes on.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use vivarium_ownership::Instant;

use super::{Pool, PoolError};
use crate::authority::now;

/// From one attempt to the next.
const PACE: Duration = Duration::from_secs(2);
/// The file that is written.
const NAME: &str = "probe";

/// What is known of the disk.
#[derive(Debug)]
pub struct Probe {
    /// When the newest attempt began that succeeded, in nanoseconds of `CLOCK_BOOTTIME`.
    answered: AtomicU64,
    /// How long an answer may take; none: as long as it likes.
    patience: Option<Duration>,
    told: AtomicBool,
}

impl Probe {
    /// Begins to ask the disk. It counts as one that answers until `patience` has passed.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn start(pool: &Pool, patience: Option<Duration>) -> Result<Arc<Self>, PoolError> {
        let probe = Arc::new(Self { answered: AtomicU64::new(now().0), patience, told: AtomicBool::new(false) });
        if patience.is_none() {
            return Ok(probe);
        }
        let path = pool.path().join(NAME);
        let file = open(pool).map_err(PoolError::io("create", &path))?;
        let thread = std::thread::Builder::new().name("pool-probe".into()).spawn({
            let probe = Arc::downgrade(&probe);
            move || {
                while let Some(probe) = probe.upgrade() {
                    let began = now();
                    match write(&file) {
                        Ok(()) => probe.answered.store(began.0, Ordering::Relaxed),
                        Err(error) => tracing::error!(%error, "the disk below the pool refuses to write"),
                    }
                    drop(probe);
                    std::thread::sleep(PACE.min(patience.unwrap_or(PACE) / 4));
                }
            }
        });
        thread.map(drop).map_err(PoolError::io("start a thread that writes", &path))?;
        Ok(probe)
    }

    /// Whether the disk has not answered for too long. Said in the log when it changes.
    pub fn hangs(&self) -> bool {
        let Some(patience) = self.patience else { return false };
        let silent = now().since(Instant(self.answered.load(Ordering::Relaxed)));
        let hangs = silent > patience + PACE.min(patience / 4);
        if self.told.swap(hangs, Ordering::Relaxed) != hangs {
            if hangs {
                tracing::error!(
                    seconds = silent.as_secs(),
                    "the disk below the pool does not answer: this node no longer says that it lives, so that its \
                     environments are started elsewhere"
                );
            } else {
                tracing::warn!("the disk below the pool answers again");
            }
        }
        hangs
    }
}

fn open(pool: &Pool) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file: OwnedFd = rustix::fs::openat(pool.root().as_fd(), NAME, flags, Mode::RUSR | Mode::WUSR)?;
    Ok(file.into())
}

/// Writes and waits for the disk. One that is full has answered.
fn write(file: &File) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let written = file.write_all_at(&now().0.to_ne_bytes(), 0).and_then(|()| file.sync_data());
    match written {
        Err(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => Ok(()),
        other => other,
    }
}
