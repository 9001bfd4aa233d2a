//! Fail points: places where a process can be made to die, as `kill -9` would make it, to see what the next one finds.
//!
//! A point has the name of what has just happened, and stands behind every step after which something else is on the disk
//! or in the store. Which points there are, the source says: whoever tests them all looks for the calls of [`passed`].
//!
//! Only programs that are built with the feature `armed` look at [`ARM`]; in all others a point is nothing at all.

/// The variable of the environment that arms a point: `NAME=TIMES` kills the process when the point is passed for the
/// `TIMES`-th time.
#[cfg(feature = "armed")]
pub const ARM: &str = "VIVARIUM_FAIL_POINT";

/// Something has just happened.
#[cfg(not(feature = "armed"))]
#[inline]
pub const fn passed(_point: &'static str) {}

/// Something has just happened. If this point is armed, nothing else ever happens in this process.
#[cfg(feature = "armed")]
pub fn passed(point: &'static str) {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static ARMED: LazyLock<Option<(String, AtomicU64)>> = LazyLock::new(|| {
        let text = std::env::var(ARM).ok()?;
        let (name, times) = text.split_once('=')?;
        Some((name.to_owned(), AtomicU64::new(times.parse().ok()?)))
    });
    if let Some((name, left)) = &*ARMED
        && name == point
        && left.fetch_sub(1, Ordering::Relaxed) == 1
    {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        // The signal is on its way to this thread as well.
        loop {
            std::thread::park();
        }
    }
}
