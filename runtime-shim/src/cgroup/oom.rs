//! Tells when the kernel's OOM killer has killed in a container: v1 by an eventfd on `memory.oom_control`, v2 by inotify
//! on `memory.events`.

use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::EventfdFlags;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use vivarium_sys::watch::{Owned, watch};

use super::{Group, write_existing};
use crate::error::{Attempt, Result};

/// How long the count of kills may lag behind its event.
const SETTLE: Duration = Duration::from_millis(500);

/// A watch on a container's memory group.
#[derive(Debug)]
pub struct Watch {
    events: AsyncFd<Owned>,
    counter: PathBuf,
    kills: u64,
}

impl Watch {
    /// Begins to watch. `None` if memory is not controlled on this host.
    pub fn new(group: &Group) -> Result<Option<Self>> {
        let (events, counter) = if group.layout().is_unified() {
            let counter = group.unified().unwrap_or_default().join("memory.events");
            if !counter.exists() {
                return Ok(None);
            }
            let what = || format!("watch {}", counter.display());
            let events = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).attempt(what)?;
            inotify::add_watch(&events, &counter, WatchFlags::MODIFY).attempt(what)?;
            (events, counter)
        } else {
            let Some(dir) = group.v1("memory") else { return Ok(None) };
            let counter = dir.join("memory.oom_control");
            let what = || format!("watch {}", counter.display());
            let events = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).attempt(what)?;
            let control = File::open(&counter).attempt(what)?;
            let request = format!("{} {}", events.as_raw_fd(), control.as_raw_fd());
            write_existing(&dir.join("cgroup.event_control"), &request).attempt(what)?;
            (events, counter)
        };
        let kills = read_kills(&counter);
        let events = watch(events, Interest::READABLE).attempt(|| "watch for OOM kills")?;
        Ok(Some(Self { events, counter, kills }))
    }

    /// Resolves at the next kill; fails when the group is gone.
    pub async fn next(&mut self) -> Result<()> {
        loop {
            let mut ready = self.events.readable().await.attempt(|| "wait for OOM kills")?;
            let mut buffer = [MaybeUninit::uninit(); 512];
            while rustix::io::read(self.events.get_ref(), &mut buffer).is_ok() {}
            ready.clear_ready();
            if !self.counter.exists() {
                return Err(crate::error::Error::NotFound("the memory group is gone".into()));
            }
            // The event also comes for other reasons (a limit was hit, the group is removed). v1 sends it when it begins
            // to look for somebody to kill, so the count follows a moment later, without an event of its own.
            let until = Instant::now() + SETTLE;
            loop {
                let kills = read_kills(&self.counter);
                if kills > self.kills {
                    self.kills = kills;
                    return Ok(());
                }
                if Instant::now() > until {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

/// Whether the kernel has killed in a group, or below it, because the group itself had used up its memory, and not because
/// a group inside it had, or the whole machine.
#[must_use]
pub fn killed_at_limit(group: &Group) -> bool {
    if group.layout().is_unified() {
        let dir = group.unified().unwrap_or_default();
        // `oom` of the group itself counts how often its own limit could not be kept; who was killed then may be below.
        return read(&dir.join("memory.events.local"), "oom ") > 0 && read_kills(&dir.join("memory.events")) > 0;
    }
    let Some(dir) = group.v1("memory") else { return false };
    read(&dir.join("memory.failcnt"), "") > 0 && kills_below(&dir) > 0
}

/// v1 counts a kill only in the group that the process was in.
fn kills_below(dir: &Path) -> u64 {
    let below = fs::read_dir(dir).into_iter().flatten().flatten();
    let below = below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    read_kills(&dir.join("memory.oom_control")) + below.map(|entry| kills_below(&entry.path())).sum::<u64>()
}

fn read_kills(counter: &Path) -> u64 {
    read(counter, "oom_kill ")
}

fn read(file: &Path, key: &str) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix(key)).and_then(|n| n.trim().parse().ok()).unwrap_or(0)
}
