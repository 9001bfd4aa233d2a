//! One container and the processes in it, as the shim holds them.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use containerd_shim_protos::events::task::{TaskExecAdded, TaskExecStarted, TaskExit, TaskStart};
use containerd_shim_protos::protobuf::MessageField;
use oci_spec::runtime::Process;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::freezer::Freezer;
use super::guest::Guest;
use super::{Pod, lock};
use crate::cgroup::Group;
use crate::error::{Error, Result};
use crate::helper::protocol::CreateRequest;
use crate::io::{Names, ProcessIo};
use crate::journal::StateDir;
use crate::launch::Gate;
use crate::publisher::timestamp;
use crate::supervisor::{Event, Exit, Lifecycle, Misfit, Notice, Phase, Who};

/// A container from Create to Delete.
pub(super) struct Container {
    pub id: String,
    pub bundle: String,
    pub dir: StateDir,
    pub group: Group,
    pub freezer: Arc<Freezer>,
    /// User of the node that owns the processes' streams.
    pub owner: (u32, u32),
    /// How it was made, for the next boot.
    pub request: CreateRequest,
    /// Filters that an exec gets.
    pub filters: Vec<crate::seccomp::Filter>,
    /// Set for an environment.
    pub guest: Option<Arc<Guest>>,
    pub inner: Mutex<Inner>,
    /// Tasks that end with the container.
    pub watchers: Mutex<Vec<JoinHandle<()>>>,
}

/// What changes about a container.
pub(super) struct Inner {
    pub life: Lifecycle,
    pub init: Member,
    pub execs: HashMap<String, Exec>,
    pub paused: bool,
    /// init has ended and the next boot is not there yet.
    pub rebooting: bool,
    /// Strongest signal by which the container was asked to end.
    pub stop: Option<i32>,
    /// A stop is held back.
    pub leaving: bool,
}

/// An exec from its announcement to its Delete.
pub(super) struct Exec {
    pub process: Process,
    pub member: Member,
}

/// A process of a container.
pub(super) struct Member {
    pub names: Names,
    pub io: Option<ProcessIo>,
    pub pidfd: Option<Arc<OwnedFd>>,
    /// Of an init that was not started yet.
    pub gate: Option<Gate>,
    pub ended: watch::Sender<Option<Exit>>,
}

impl Member {
    pub fn new(names: Names) -> Self {
        Self { names, io: None, pidfd: None, gate: None, ended: watch::Sender::new(None) }
    }
}

impl From<Misfit> for Error {
    fn from(misfit: Misfit) -> Self {
        match misfit {
            Misfit::Unknown(_) => Self::NotFound(misfit.to_string()),
            Misfit::Taken(_) => Self::AlreadyExists(misfit.to_string()),
            Misfit::NotStartable(_) | Misfit::NotStopped(_) | Misfit::NotRunning => {
                Self::WrongState(misfit.to_string())
            }
        }
    }
}

impl Inner {
    pub fn member(&self, who: &Who) -> Result<&Member> {
        match who {
            Who::Init => Some(&self.init),
            Who::Exec(id) => self.execs.get(id).map(|exec| &exec.member),
        }
        .ok_or_else(|| Misfit::Unknown(who.clone()).into())
    }

    pub fn member_mut(&mut self, who: &Who) -> Result<&mut Member> {
        match who {
            Who::Init => Some(&mut self.init),
            Who::Exec(id) => self.execs.get_mut(id).map(|exec| &mut exec.member),
        }
        .ok_or_else(|| Misfit::Unknown(who.clone()).into())
    }
}

impl Container {
    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    /// Directory of libcontainer's state.
    pub fn libcontainer_dir(&self) -> PathBuf {
        use crate::helper::names::{LIBCONTAINER, NAME};
        self.dir.path().join(LIBCONTAINER).join(NAME)
    }

    /// pid of init and whether it runs.
    pub fn init_pid(&self) -> (i32, bool) {
        let inner = self.lock();
        match inner.life.look(&Who::Init) {
            Ok((phase, pid, _)) => (pid, phase == Phase::Running && !inner.rebooting),
            Err(_) => (0, false),
        }
    }

    /// Feeds the state machine and tells the world what follows, in one step, so that no two events overtake each other.
    pub fn handle(&self, pod: &Pod, event: Event) -> Result<()> {
        let mut inner = self.lock();
        for notice in inner.life.handle(event)? {
            self.tell(pod, &mut inner, &notice);
        }
        Ok(())
    }

    fn tell(&self, pod: &Pod, inner: &mut Inner, notice: &Notice) {
        let id = self.id.clone();
        let published = match notice {
            Notice::Started(Who::Init, pid) => {
                let event = TaskStart { container_id: id, pid: *pid as u32, ..TaskStart::default() };
                pod.publisher.publish("/tasks/start", &event)
            }
            Notice::Started(Who::Exec(exec_id), pid) => {
                let (exec_id, pid) = (exec_id.clone(), *pid as u32);
                let event = TaskExecStarted { container_id: id, exec_id, pid, ..TaskExecStarted::default() };
                pod.publisher.publish("/tasks/exec-started", &event)
            }
            Notice::ExecAdded(exec_id) => {
                let event = TaskExecAdded { container_id: id, exec_id: exec_id.clone(), ..TaskExecAdded::default() };
                pod.publisher.publish("/tasks/exec-added", &event)
            }
            Notice::Exited(who, pid, exit) => {
                let event = TaskExit {
                    container_id: id,
                    id: match who {
                        Who::Init => self.id.clone(),
                        Who::Exec(exec_id) => exec_id.clone(),
                    },
                    pid: *pid as u32,
                    exit_status: exit.status,
                    exited_at: MessageField::some(timestamp(exit.at)),
                    ..TaskExit::default()
                };
                if let Ok(member) = inner.member_mut(who) {
                    member.ended.send_replace(Some(*exit));
                }
                pod.publisher.publish("/tasks/exit", &event)
            }
        };
        published.unwrap_or_else(|error| log::error!("{error}"));
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        for task in lock(&self.watchers).drain(..) {
            task.abort();
        }
    }
}
