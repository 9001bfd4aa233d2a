//! Processes that outlive the command that started them. Each has a record of its pid and start time, so that a later
//! command ends exactly this process and never one that was given the same pid.

use std::{
    fs::{self, File},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use serde::{Deserialize, Serialize};

use super::{
    error::{Error, errno, io},
    state::{self, Layout},
};
use crate::command::end_of;

/// One process, by what makes it unique since boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pid: i32,
    /// Clock ticks after boot (`proc_pid_stat(5)`, field 22).
    start_time: u64,
    /// A record of before a reboot means nothing.
    boot: String,
}

/// What `proc_pid_stat(5)` says of a process.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    state: char,
    start_time: u64,
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The name in parentheses may hold anything, even a parenthesis.
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?.chars().next()?;
    // `state` is field 3, the start time field 22.
    let start_time = fields.nth(18)?.parse().ok()?;
    Some(Stat { state, start_time })
}

fn stat(pid: &str) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

impl Record {
    /// Of a process that is known to run, as the `/proc` of this mount namespace shows it.
    pub fn of(pid: &str) -> Result<Self, Error> {
        let gone = || io("read", format!("/proc/{pid}/stat"))(io::ErrorKind::NotFound.into());
        let start_time = stat(pid).ok_or_else(gone)?.start_time;
        Ok(Self { pid: pid.parse().map_err(|_| gone())?, start_time, boot: boot() })
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether exactly this process still runs. A zombie does not.
    pub fn is_alive(&self) -> bool {
        self.boot == boot()
            && stat(&self.pid.to_string())
                .is_some_and(|stat| stat.start_time == self.start_time && !matches!(stat.state, 'Z' | 'X'))
    }

    /// Kills it and waits until it is gone.
    pub fn kill(&self, limit: Duration) -> Result<(), Error> {
        let Some(handle) = self.handle()? else { return Ok(()) };
        self.send(&handle, Signal::KILL)?;
        let mut waiting = [PollFd::new(&handle, PollFlags::IN)];
        let limit_spec = Timespec { tv_sec: limit.as_secs().cast_signed(), tv_nsec: 0 };
        let ended =
            poll(&mut waiting, Some(&limit_spec)).map_err(errno("wait for", format!("process {}", self.pid)))?;
        if ended == 0 {
            let hint = format!("cat /proc/{}/stack shows what it waits for", self.pid);
            return Err(Error::Late { what: format!("the end of process {}", self.pid), limit, hint });
        }
        Ok(())
    }

    /// Sends it a signal; one that is gone needs none.
    pub fn signal(&self, signal: Signal) -> Result<(), Error> {
        self.handle()?.map_or(Ok(()), |handle| self.send(&handle, signal))
    }

    fn send(&self, handle: &OwnedFd, signal: Signal) -> Result<(), Error> {
        match pidfd_send_signal(handle, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(errno("send a signal to", format!("process {}", self.pid))(error)),
        }
    }

    /// Whether a signal has stopped it.
    pub fn is_stopped(&self) -> bool {
        self.is_alive() && stat(&self.pid.to_string()).is_some_and(|stat| stat.state == 'T')
    }

    /// A handle on exactly this process; none when it is gone.
    fn handle(&self) -> Result<Option<OwnedFd>, Error> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(None) };
        match pidfd_open(pid, PidfdFlags::empty()) {
            // Asked after opening: from here on the handle cannot come to mean another process.
            Ok(handle) => Ok(self.is_alive().then_some(handle)),
            Err(rustix::io::Errno::SRCH) => Ok(None),
            Err(error) => Err(errno("open", format!("process {}", self.pid))(error)),
        }
    }

    pub fn save(&self, layout: &Layout, name: &str) -> Result<(), Error> {
        let path = path(layout, name);
        let json = serde_json::to_vec(self).map_err(|source| Error::Record { path: name.to_owned(), source })?;
        // Read by others while it is written.
        let half = path.with_extension("half");
        state::write(&half, json)?;
        fs::rename(&half, &path).map_err(io("rename", half.display()))
    }

    /// The record of that name; none if there is none.
    pub fn load(layout: &Layout, name: &str) -> Result<Option<Self>, Error> {
        read(&path(layout, name))
    }

    /// Like [`Record::load`], if the process runs.
    pub fn load_alive(layout: &Layout, name: &str) -> Result<Option<Self>, Error> {
        Ok(Self::load(layout, name)?.filter(Self::is_alive))
    }
}

fn path(layout: &Layout, name: &str) -> PathBuf {
    layout.records().join(format!("{name}.json"))
}

fn read(path: &Path) -> Result<Option<Record>, Error> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|source| Error::Record { path: path.display().to_string(), source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io("read", path.display())(error)),
    }
}

/// All records, by name.
pub fn all(layout: &Layout) -> Result<Vec<(String, Record)>, Error> {
    let folder = layout.records();
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io("read", folder.display())(error)),
    };
    let mut records = Vec::new();
    for entry in entries {
        let path = entry.map_err(io("read", folder.display()))?.path();
        if path.extension().is_some_and(|extension| extension == "json")
            && let (Some(name), Some(record)) = (path.file_stem(), read(&path)?)
        {
            records.push((name.to_string_lossy().into_owned(), record));
        }
    }
    records.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(records)
}

/// Starts a process in a session of its own with its output in `logs/NAME.log`, and records it.
pub fn start(layout: &Layout, name: &str, words: &[String]) -> Result<Record, Error> {
    let path = layout.log(name);
    let log = File::options().create(true).append(true).open(&path).map_err(io("open", path.display()))?;
    let copy = log.try_clone().map_err(io("open", path.display()))?;
    let mut command = Command::new("setsid");
    command.args(words).stdin(Stdio::null()).stdout(log).stderr(copy);
    command.env("PATH", layout.search_path()).env("VIVARIUM_LAB", layout.root()).current_dir("/");
    let child = command.spawn().map_err(io("start", name))?;
    // setsid(1), nsenter(1) and the program follow each other by exec in the same process.
    let record = Record::of(&child.id().to_string())?;
    record.save(layout, name)?;
    Ok(record)
}

/// An error with the end of the log unless the process runs.
pub fn expect_alive(layout: &Layout, name: &str) -> Result<(), Error> {
    if Record::load_alive(layout, name)?.is_some() {
        return Ok(());
    }
    let log = layout.log(name);
    let said = end_of(&String::from_utf8_lossy(&fs::read(&log).unwrap_or_default()), 12);
    Err(Error::Died { program: name.to_owned(), log: log.display().to_string(), said })
}

/// Names of the programs that are children of a process, without those that have ended and were not waited for.
pub fn children(record: &Record) -> Vec<(String, i32)> {
    let path = format!("/proc/{0}/task/{0}/children", record.pid);
    let pids = fs::read_to_string(path).unwrap_or_default();
    let name = |pid: &str| Some((fs::read_to_string(format!("/proc/{pid}/comm")).ok()?, pid.parse().ok()?));
    let runs = |pid: &&str| stat(pid).is_some_and(|stat| !matches!(stat.state, 'Z' | 'X'));
    pids.split_whitespace().filter(runs).filter_map(name).map(|(name, pid)| (name.trim().to_owned(), pid)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_hide_the_start_time() {
        let fields = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 777 20 21";
        for name in ["etcd", "a) b", "(("] {
            let stat = parse_stat(&format!("42 ({name}) {fields}")).unwrap();
            assert_eq!(stat, Stat { state: 'S', start_time: 777 });
        }
        assert_eq!(parse_stat("42 (etcd) S 1 2"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn a_process_with_another_start_time_is_not_alive_and_is_not_killed() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let record = Record::of(&child.id().to_string()).unwrap();
        assert!(record.is_alive());
        let other = Record { start_time: record.start_time + 1, ..record.clone() };
        assert!(!other.is_alive());
        other.kill(Duration::from_secs(1)).unwrap();
        assert!(record.is_alive());
        record.kill(Duration::from_secs(5)).unwrap();
        assert!(!record.is_alive(), "a zombie counts as dead");
        child.wait().unwrap();
    }
}
