//! The life of one container and of the processes in it, as a state machine without IO: [`Event`]s in, [`Notice`]s out.
//! It guarantees what containerd's clients build upon (containerd `docs/runtime-v2.md`):
//!
//! * created < started < exited < deleted, for an exec: added < started < exited, also when a process is so short-lived
//!   that its end is known before its start was reported;
//! * init's exit comes last, after the exits of all execs;
//! * a reboot in place is no exit.

use std::collections::BTreeMap;
use std::time::SystemTime;

/// A process of the container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// The container's init.
    Init,
    /// An exec, by its id.
    Exec(String),
}

impl Who {
    /// As task API requests name it: an empty exec id is init.
    #[must_use]
    pub fn from_request(exec_id: &str) -> Self {
        if exec_id.is_empty() { Self::Init } else { Self::Exec(exec_id.into()) }
    }
}

/// The end of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// As shells write it: 128 + signal for a killed process.
    pub status: u32,
    /// When.
    pub at: SystemTime,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A process is to be started; its end may come at any time from now on.
    Starting(Who),
    /// A process runs (an exec has its pid only now).
    Started(Who, i32),
    /// A process could not be started.
    StartFailed(Who),
    /// An exec was announced.
    ExecAdded(String),
    /// A process has ended.
    Exited(Who, Exit),
    /// init ended in order to boot again: the container goes on.
    Rebooting,
    /// The new init runs.
    Rebooted(i32),
}

/// What is to be told, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// `TaskStart` or `TaskExecStarted`.
    Started(Who, i32),
    /// `TaskExecAdded`.
    ExecAdded(String),
    /// `TaskExit`, and everybody who waits for the process is released.
    Exited(Who, i32, Exit),
}

/// Where a process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Known, not started.
    Created,
    /// Start is going on.
    Starting,
    /// Runs.
    Running,
    /// Has ended (or never could start).
    Stopped,
}

/// Why an event does not fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// There is no such process.
    #[error("there is no process {0:?} in the container")]
    Unknown(Who),
    /// The id is taken.
    #[error("the exec id {0:?} is in use")]
    Taken(String),
    /// It was started before.
    #[error("process {0:?} was started already")]
    NotStartable(Who),
    /// It still runs, or was not started at all.
    #[error("process {0:?} has not ended")]
    NotStopped(Who),
    /// Nothing can run in it.
    #[error("the container's init does not run")]
    NotRunning,
}

#[derive(Clone, Debug)]
struct Process {
    pid: i32,
    phase: Phase,
    /// Known, perhaps not told yet.
    exit: Option<Exit>,
    told: bool,
}

impl Process {
    fn new(pid: i32) -> Self {
        Self { pid, phase: Phase::Created, exit: None, told: false }
    }

    fn is_over(&self) -> bool {
        self.phase == Phase::Stopped || self.phase == Phase::Created
    }
}

/// State of one container.
#[derive(Clone, Debug)]
pub struct Lifecycle {
    init: Process,
    execs: BTreeMap<String, Process>,
}

impl Lifecycle {
    /// A container that was just created, its init waiting for the start.
    #[must_use]
    pub fn new(pid: i32) -> Self {
        Self { init: Process::new(pid), execs: BTreeMap::new() }
    }

    /// Takes note of what happened and says what to tell.
    pub fn handle(&mut self, event: Event) -> Result<Vec<Notice>, Misfit> {
        let mut notices = Vec::new();
        match event {
            Event::ExecAdded(id) => {
                if self.init.phase != Phase::Running || self.init.exit.is_some() {
                    return Err(Misfit::NotRunning);
                }
                if self.execs.contains_key(&id) {
                    return Err(Misfit::Taken(id));
                }
                self.execs.insert(id.clone(), Process::new(0));
                notices.push(Notice::ExecAdded(id));
            }
            Event::Starting(who) => {
                if who != Who::Init && self.init.phase != Phase::Running {
                    return Err(Misfit::NotRunning);
                }
                let process = self.process_mut(&who)?;
                if process.phase != Phase::Created || process.exit.is_some() {
                    return Err(Misfit::NotStartable(who));
                }
                process.phase = Phase::Starting;
            }
            Event::Started(who, pid) => {
                let process = self.process_mut(&who)?;
                process.pid = pid;
                process.phase = Phase::Running;
                notices.push(Notice::Started(who, pid));
            }
            Event::StartFailed(who) => {
                let is_exec = who != Who::Init;
                let process = self.process_mut(&who)?;
                process.phase = Phase::Stopped;
                // Of an exec that never ran nobody was told, so its end is nobody's concern either.
                process.told |= is_exec;
            }
            Event::Exited(who, exit) => self.process_mut(&who)?.exit = Some(exit),
            Event::Rebooting => {}
            Event::Rebooted(pid) => self.init.pid = pid,
        }
        self.tell_exits(&mut notices);
        Ok(notices)
    }

    /// Tells the ends that may be told now.
    fn tell_exits(&mut self, notices: &mut Vec<Notice>) {
        let mut open = false;
        for (id, process) in &mut self.execs {
            if let Some(exit) = process.exit
                && process.phase != Phase::Starting
                && !process.told
            {
                process.phase = Phase::Stopped;
                process.told = true;
                notices.push(Notice::Exited(Who::Exec(id.clone()), process.pid, exit));
            }
            open |= !process.is_over();
        }
        if let Some(exit) = self.init.exit
            && self.init.phase != Phase::Starting
            && !self.init.told
            && !open
        {
            self.init.phase = Phase::Stopped;
            self.init.told = true;
            notices.push(Notice::Exited(Who::Init, self.init.pid, exit));
        }
    }

    /// Forgets an exec that has ended or was never started, and says how it ended.
    pub fn remove_exec(&mut self, id: &str) -> Result<(i32, Option<Exit>), Misfit> {
        let who = Who::Exec(id.into());
        if !self.process(&who)?.is_over() {
            return Err(Misfit::NotStopped(who));
        }
        let process = self.execs.remove(id).ok_or(Misfit::Unknown(who))?;
        Ok((process.pid, process.exit))
    }

    /// Whether the container can be deleted: init has ended or was never started.
    #[must_use]
    pub fn is_deletable(&self) -> bool {
        self.init.is_over()
    }

    /// Phase, pid and end of a process.
    pub fn look(&self, who: &Who) -> Result<(Phase, i32, Option<Exit>), Misfit> {
        let process = self.process(who)?;
        Ok((process.phase, process.pid, process.exit.filter(|_| process.phase == Phase::Stopped)))
    }

    /// pids of execs that run, with their ids.
    #[must_use]
    pub fn running_execs(&self) -> Vec<(String, i32)> {
        let running = self.execs.iter().filter(|(_, process)| process.phase == Phase::Running);
        running.map(|(id, process)| (id.clone(), process.pid)).collect()
    }

    fn process(&self, who: &Who) -> Result<&Process, Misfit> {
        match who {
            Who::Init => Some(&self.init),
            Who::Exec(id) => self.execs.get(id),
        }
        .ok_or_else(|| Misfit::Unknown(who.clone()))
    }

    fn process_mut(&mut self, who: &Who) -> Result<&mut Process, Misfit> {
        match who {
            Who::Init => Some(&mut self.init),
            Who::Exec(id) => self.execs.get_mut(id),
        }
        .ok_or_else(|| Misfit::Unknown(who.clone()))
    }
}

#[cfg(test)]
mod tests;
