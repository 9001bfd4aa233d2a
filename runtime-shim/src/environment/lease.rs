//! How long an environment may run: reads the lease that the node driver publishes and judges it (rule 2 of the ownership
//! protocol). Nothing here waits for anything but the clock and the file, so it holds when the node driver, the API
//! server and the store are all gone.

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime, timerfd_create,
    timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use vivarium_api::names;
use vivarium_api::node::lease::{PublishedLease, VERSION};
use vivarium_sys::watch::{Owned, watch};

use crate::error::{Attempt, Error, Result};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What an environment may do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permit {
    /// Run until this instant of `CLOCK_BOOTTIME`, in nanoseconds; then ask again.
    Run {
        /// The instant.
        until: u64,
    },
    /// Stand still until the lease changes.
    Freeze,
    /// End: the session that it was started under is over.
    End,
}

/// Judges a lease as it was found at `now` for an environment of `session` that was started in this boot.
#[must_use]
pub fn judge(lease: Option<&PublishedLease>, session: &str, boot_id: &str, now: u64) -> Permit {
    match lease {
        Some(lease) if lease.session == session && lease.boot_id == boot_id => {
            if now < lease.act_until {
                Permit::Run { until: lease.act_until }
            } else {
                Permit::Freeze
            }
        }
        _ => Permit::End,
    }
}

/// `CLOCK_BOOTTIME` in nanoseconds.
fn now() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    // Never negative, and good for 584 years.
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0)).as_nanos() as u64
}

/// The lease of one environment.
#[derive(Debug)]
pub struct Lease {
    path: PathBuf,
    directory: PathBuf,
    session: String,
    boot_id: String,
    changes: AsyncFd<Owned>,
    timer: AsyncFd<Owned>,
}

impl Lease {
    /// The lease in file `name`, for an environment of `session`.
    ///
    /// # Errors
    /// It cannot be watched.
    pub fn open(name: &str, session: &str) -> Result<Self> {
        Self::open_in(Path::new(names::LEASES), name, session)
    }

    fn open_in(directory: &Path, name: &str, session: &str) -> Result<Self> {
        // From the node driver, which is trusted; a mistake must not lead out of the directory all the same.
        if name.is_empty() || name.contains('/') {
            return Err(Error::Failed(format!("The stage record names a lease {name:?}, which is not a file name.")));
        }
        let what = || format!("watch {}", directory.display());
        let changes = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).attempt(what)?;
        let timer = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)
            .attempt(|| "make a timer")?;
        let boot_id = fs::read_to_string(BOOT_ID).attempt(|| format!("read {BOOT_ID}"))?.trim().to_owned();
        Ok(Self {
            path: directory.join(name),
            directory: directory.into(),
            session: session.into(),
            boot_id,
            changes: watch(changes, Interest::READABLE).attempt(what)?,
            timer: watch(timer, Interest::READABLE).attempt(|| "watch a timer")?,
        })
    }

    /// What the environment may do now.
    ///
    /// # Errors
    /// The lease cannot be read; nothing is known then.
    pub fn look(&self) -> Result<Permit> {
        let what = || format!("read {}", self.path.display());
        let lease: Option<PublishedLease> = match fs::read(&self.path) {
            Ok(text) => Some(serde_json::from_slice(&text).map_err(io::Error::from).attempt(what)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).attempt(what),
        };
        if let Some(lease) = lease.as_ref().filter(|lease| lease.version != VERSION) {
            return Err(Error::Failed(format!(
                "The lease {} is of version {}, this runtime reads version {VERSION}; upgrade the older of the two.",
                self.path.display(),
                lease.version
            )));
        }
        Ok(judge(lease.as_ref(), &self.session, &self.boot_id, now()))
    }

    /// Waits until it is time to look again: at an instant of `CLOCK_BOOTTIME` or when a session of the node ends, and
    /// without an instant also when a lease is renewed. Renewals come every second, and do not wake up who runs. A machine
    /// that was suspended meanwhile finds the timer expired.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn wait(&self, until: Option<u64>) -> Result<()> {
        let what = || "wait for a change of the lease";
        let renewed = if until.is_none() { WatchFlags::MOVED_TO } else { WatchFlags::empty() };
        inotify::add_watch(self.changes.get_ref(), &self.directory, WatchFlags::DELETE | WatchFlags::ONLYDIR | renewed)
            .attempt(what)?;
        // Whatever came before the watch was for it, this sees.
        if self.look().is_ok_and(|permit| match permit {
            Permit::Run { .. } => until.is_none(),
            Permit::Freeze => false,
            Permit::End => true,
        }) {
            return Ok(());
        }
        let until = until.unwrap_or(0);
        let value = Timespec { tv_sec: (until / 1_000_000_000).cast_signed(), tv_nsec: (until % 1_000_000_000) as i64 };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        // All zero disarms it.
        timerfd_settime(self.timer.get_ref(), TimerfdTimerFlags::ABSTIME, &once).attempt(what)?;
        tokio::select! {
            ready = ready(&self.timer) => ready,
            ready = ready(&self.changes) => ready,
        }
        .attempt(what)
    }
}

/// Waits until a descriptor can be read, and reads it empty. What it says does not matter: everything is looked at anew.
async fn ready(descriptor: &AsyncFd<Owned>) -> io::Result<()> {
    let mut ready = descriptor.readable().await?;
    let mut buffer = [MaybeUninit::uninit(); 4096];
    while rustix::io::read(descriptor.get_ref(), &mut buffer).is_ok() {}
    ready.clear_ready();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(session: &str, boot_id: &str, act_until: u64) -> PublishedLease {
        PublishedLease { version: VERSION, boot_id: boot_id.into(), session: session.into(), act_until }
    }

    #[test]
    fn a_lease_is_good_for_its_session_its_boot_and_its_time() {
        for (found, expected) in [
            (Some(lease("s", "b", 11)), Permit::Run { until: 11 }),
            (Some(lease("s", "b", 10)), Permit::Freeze),
            (Some(lease("other", "b", 11)), Permit::End),
            (Some(lease("s", "other", 11)), Permit::End),
            (None, Permit::End),
        ] {
            assert_eq!(judge(found.as_ref(), "s", "b", 10), expected, "{found:?}");
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_lease_is_followed_from_renewal_over_lapse_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let boot_id = fs::read_to_string(BOOT_ID).unwrap().trim().to_owned();
        let file = dir.path().join("l");
        let publish = |until| {
            let text = serde_json::to_vec(&lease("s", &boot_id, until)).unwrap();
            fs::write(dir.path().join("new"), text).unwrap();
            fs::rename(dir.path().join("new"), &file).unwrap();
        };
        let soon = now() + 30_000_000;
        publish(soon);
        let followed = Lease::open_in(dir.path(), "l", "s").unwrap();
        assert_eq!(followed.look().unwrap(), Permit::Run { until: soon });
        followed.wait(Some(soon)).await.unwrap();
        assert!(now() >= soon, "woken too early");
        assert_eq!(followed.look().unwrap(), Permit::Freeze);
        let later = now() + 3_600_000_000_000;
        let (waited, ()) = tokio::join!(followed.wait(None), async { publish(later) });
        waited.unwrap();
        assert_eq!(followed.look().unwrap(), Permit::Run { until: later });
        let renewals = tokio::time::timeout(Duration::from_millis(50), async {
            tokio::join!(followed.wait(Some(later)), async { publish(later) }).0
        });
        assert!(renewals.await.is_err(), "woken by a renewal");
        let (waited, ()) = tokio::join!(followed.wait(Some(later)), async { fs::remove_file(&file).unwrap() });
        waited.unwrap();
        assert_eq!(followed.look().unwrap(), Permit::End);
        fs::write(&file, "{").unwrap();
        assert!(followed.look().is_err(), "a damaged lease says nothing");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_lease_lies_in_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["", "../x", "a/b"] {
            assert!(Lease::open_in(dir.path(), name, "s").is_err(), "{name:?}");
        }
    }
}
