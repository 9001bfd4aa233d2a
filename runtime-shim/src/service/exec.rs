//! Exec, and Start of an exec.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use containerd_shim_protos::api::ExecProcessRequest;
use oci_spec::runtime::Process;

use super::Pod;
use super::container::{Container, Exec, Member};
use super::guest::{Guest, Standing};
use crate::environment::profile;
use crate::error::{Attempt, Error, Result};
use crate::helper::protocol::{ExecRequest, Request};
use crate::io::{self, Names, ProcessIo};
use crate::launch::{self, Launched};
use crate::supervisor::{Event, Phase, Who};

/// How long an exec waits for an environment that boots again.
const REBOOT_LIMIT: Duration = Duration::from_secs(20);
/// Group for execs beside an init that keeps its own group to itself (cgroup v2).
const FALLBACK_GROUP: &str = "vivarium-exec";

/// Carries out Exec: announces the process.
pub(super) fn add(pod: &Pod, container: &Container, request: ExecProcessRequest) -> Result<()> {
    let value = request.spec.as_ref().map(|any| any.value.as_slice()).unwrap_or_default();
    let mut process: Process = serde_json::from_slice(value)
        .map_err(|e| Error::Refused(format!("the process of the exec cannot be decoded: {e}")))?;
    process.set_terminal(Some(request.terminal));
    if let Some(guest) = &container.guest {
        process = profile::exec(process, &guest.limits);
    }
    let names =
        Names { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr, terminal: request.terminal };
    container.handle(pod, Event::ExecAdded(request.exec_id.clone()))?;
    container.lock().execs.insert(request.exec_id, Exec { process, member: Member::new(names) });
    Ok(())
}

/// Carries out Start of an exec; returns its pid.
pub(super) async fn start(pod: &Arc<Pod>, container: &Arc<Container>, id: &str) -> Result<i32> {
    let begin = Instant::now();
    let who = Who::Exec(id.into());
    if container.lock().paused {
        return Err(Error::WrongState("the container is paused; resume it first".into()));
    }
    let halted = |guest: &Arc<Guest>| *guest.standing.borrow() != Standing::Running;
    if container.guest.as_ref().is_some_and(halted) {
        return Err(Error::WrongState(
            "the environment stands still, because its node has heard neither from the API server nor from the store \
             of its journal for too long; it goes on when either answers"
                .into(),
        ));
    }
    container.handle(pod, Event::Starting(who.clone()))?;
    match launch(pod, container, &who).await {
        Ok(mut launched) => {
            let pid = launched.reply.pid;
            super::life::follow_exec(pod.clone(), container, id.into(), launched.end);
            let executed = match launched.gate.take() {
                Some(gate) => gate.wait_executed().await,
                None => Ok(()),
            };
            if let Err(error) = executed {
                vivarium_sys::process::send_signal(std::os::fd::AsFd::as_fd(&*launched.pidfd), 9).ok();
                container.handle(pod, Event::StartFailed(who))?;
                return Err(error);
            }
            log::debug!("exec {id} is process {pid} after {:?}: {:?}", begin.elapsed(), launched.reply.steps);
            container.handle(pod, Event::Started(who, pid))?;
            Ok(pid)
        }
        Err(error) => {
            container.handle(pod, Event::StartFailed(who))?;
            Err(error)
        }
    }
}

/// Makes the process and lets it go on; tries again when an environment has booted meanwhile.
async fn launch(pod: &Arc<Pod>, container: &Arc<Container>, who: &Who) -> Result<Launched> {
    let names = container.lock().member(who)?.names.clone();
    let _held = io::hold(&names)?;
    loop {
        let boots = container.guest.as_ref().map(|guest| guest.boots.subscribe());
        let (init, runs) = container.init_pid();
        let tried = if runs {
            try_launch(pod, container, who, init).await
        } else {
            Err(Error::WrongState("the container's init does not run".into()))
        };
        let (Err(error), Some(mut boots)) = (&tried, boots) else { return tried };
        let (gone, mut ended) = {
            let inner = container.lock();
            let phase = inner.life.look(&Who::Init).map(|(phase, ..)| phase);
            let gone = inner.rebooting || is_going(init, inner.init.pidfd.as_deref());
            (phase == Ok(Phase::Running) && gone, inner.init.ended.subscribe())
        };
        if !gone || matches!(error, Error::Deadline { .. }) {
            return tried;
        }
        log::info!("an exec waits for the environment to boot again: {error}");
        tokio::select! {
            changed = boots.changed() => if changed.is_err() { return tried },
            // It does not boot again.
            _ = ended.wait_for(Option::is_some) => return tried,
            () = tokio::time::sleep(REBOOT_LIMIT) => return tried,
        }
    }
}

/// Whether an init has ended or is about to: it leaves its namespaces before it waits for the other processes of its
/// pid namespace, and is seen to have ended only after those.
fn is_going(init: i32, pidfd: Option<&std::os::fd::OwnedFd>) -> bool {
    has_ended(pidfd) || std::fs::metadata(format!("/proc/{init}/ns/mnt")).is_err()
}

/// A pidfd is readable once its process has ended.
fn has_ended(pidfd: Option<&std::os::fd::OwnedFd>) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let Some(pidfd) = pidfd else { return true };
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
}

async fn try_launch(pod: &Arc<Pod>, container: &Arc<Container>, who: &Who, init: i32) -> Result<Launched> {
    let Who::Exec(id) = who else { return Err(Error::WrongState("not an exec".into())) };
    let (process, names) = {
        let inner = container.lock();
        let exec = inner.execs.get(id).ok_or_else(|| Error::NotFound(format!("there is no exec {id:?}")))?;
        (exec.process.clone(), exec.member.names.clone())
    };
    let unified = container.group.layout().is_unified();
    let request = Request::Exec(Box::new(ExecRequest {
        init,
        process,
        terminal: names.terminal,
        filters: container.filters.clone(),
        fallback_group: container.group.unified().filter(|_| unified).map(|dir| dir.join(FALLBACK_GROUP)),
    }));
    let (stdio, io) = if names.terminal {
        (io::nothing()?, None)
    } else {
        let (stdio, io) = io::pipes(&names, container.owner)?;
        (stdio, Some(io))
    };
    let mut launched = launch::run(&pod.reaper, &request, stdio).await?;
    let released = async {
        verify(init, launched.reply.pid)?;
        let io = match (io, launched.terminal.take()) {
            (None, Some(master)) => ProcessIo::terminal(&names, master, false)?,
            (Some(io), None) => io,
            _ => return Err(Error::Failed("The helper process sent no terminal.".into())),
        };
        {
            let mut inner = container.lock();
            let member = inner.member_mut(who)?;
            member.io = Some(io);
            member.pidfd = Some(launched.pidfd.clone());
        }
        match &mut launched.gate {
            Some(gate) => gate.release().await,
            None => Ok(()),
        }
    };
    if let Err(error) = released.await {
        vivarium_sys::process::send_signal(std::os::fd::AsFd::as_fd(&*launched.pidfd), 9).ok();
        return Err(error);
    }
    Ok(launched)
}

/// The one check that must never be wrong: a process in the node's user namespace would be root of the node. It is made
/// here, from outside, while the process still waits.
fn verify(init: i32, pid: i32) -> Result<()> {
    let namespace = |pid: i32, name: &str| {
        let path = format!("/proc/{pid}/ns/{name}");
        std::fs::metadata(&path).map(|m| (m.dev(), m.ino())).attempt(|| format!("look at {path}"))
    };
    for name in ["user", "pid", "mnt"] {
        let (own, theirs) = (namespace(init, name)?, namespace(pid, name)?);
        if own != theirs {
            return Err(Error::Failed(format!("The new process is not in the container's {name} namespace.")));
        }
    }
    let (own, theirs) = (namespace(std::process::id() as i32, "user")?, namespace(pid, "user")?);
    if own == theirs {
        return Err(Error::Failed("The new process is in the node's own user namespace.".into()));
    }
    Ok(())
}
