//! What follows from the end of a process: its exit, or for an environment whose init asked for it, the next boot in
//! place: same pod, same address, same console.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::oneshot;
use vivarium_api::node::guest::GuestState;

use super::container::Container;
use super::create::{launch_with_console, publish_oom};
use super::guest::Standing;
use super::{Pod, lock};
use crate::cgroup::oom;
use crate::error::{Attempt, Error, Result};
use crate::helper::protocol::Request;
use crate::io;
use crate::launch;
use crate::reaper::End;
use crate::supervisor::{Event, Exit, Who};

/// The end of an environment that the kernel has killed.
const OUT_OF_MEMORY: &str =
    "init was killed because the environment had used up its memory (spec.resources.limits.memory).";
/// `reboot(2)` in a pid namespace ends init with one of these: restart, halt or power off.
const SIGHUP: i32 = 1;
const SIGINT: i32 = 2;
/// Exit status of an environment that could not boot again.
const REBOOT_FAILED: u32 = 125;
/// Shortest time between two boots: an init that reboots at once must not take a processor for itself.
const BOOT_INTERVAL: Duration = Duration::from_secs(1);

/// Waits for the end of an exec.
pub(super) fn follow_exec(pod: Arc<Pod>, container: &Arc<Container>, id: String, end: oneshot::Receiver<End>) {
    let container = container.clone();
    tokio::spawn(async move {
        let Ok(end) = end.await else { return };
        let who = Who::Exec(id);
        if let Ok(member) = container.lock().member_mut(&who)
            && let Some(io) = &mut member.io
        {
            io.ended();
        }
        // An exec that was deleted before it could start is unknown by now.
        container.handle(&pod, Event::Exited(who, exit(end.status()))).ok();
    });
}

/// Waits for the end of an init, and of those that follow it.
pub(super) fn follow_init(pod: Arc<Pod>, container: &Arc<Container>, end: oneshot::Receiver<End>) {
    let container = container.clone();
    tokio::spawn(async move {
        let mut next = Some(end);
        let mut booted = Instant::now();
        while let Some(end) = next.take() {
            let Ok(end) = end.await else { return };
            let pause = BOOT_INTERVAL.saturating_sub(booted.elapsed());
            booted = Instant::now() + pause;
            next = ended(&pod, &container, end, pause).await;
        }
    });
}

fn exit(status: u32) -> Exit {
    Exit { status, at: SystemTime::now() }
}

/// What an environment's end means: exit status, state and message of the report. `None`: it boots again.
fn meaning(end: End, stop: Option<i32>) -> Option<(u32, GuestState, String)> {
    match (end, stop) {
        (End::Signaled(SIGHUP), None) => None,
        // A guest that was told to stop and reboots instead has stopped.
        (End::Signaled(SIGHUP | SIGINT), _) => Some((0, GuestState::PoweredOff, String::new())),
        (End::Signaled(9), Some(9)) => {
            Some((end.status(), GuestState::Failed, "It was killed, having had its time to stop.".into()))
        }
        (End::Signaled(signal), _) => Some((
            end.status(),
            GuestState::Failed,
            format!("init was killed by signal {signal} (9 without a request to stop is often the OOM killer)."),
        )),
        (End::Exited(status), _) => Some((
            end.status(),
            GuestState::Failed,
            format!("init exited with status {status} instead of shutting down."),
        )),
    }
}

/// What the end of an environment means that its lease did not permit to go on.
fn superseded() -> (u32, GuestState, String) {
    let message = "It was killed, because the session of its node's driver is over: another node may have its volume.";
    (137, GuestState::Failed, message.into())
}

/// Handles the end of an init. Returns the end of the next one to wait for, if there is one.
async fn ended(
    pod: &Arc<Pod>,
    container: &Arc<Container>,
    end: End,
    pause: Duration,
) -> Option<oneshot::Receiver<End>> {
    let started = matches!(container.lock().life.look(&Who::Init), Ok((crate::supervisor::Phase::Running, ..)));
    let Some(guest) = container.guest.as_ref().filter(|_| started) else {
        finish(pod, container, end.status());
        return None;
    };
    let stop = container.lock().stop;
    let end_of_guest = if *guest.standing.borrow() == Standing::Over { Some(superseded()) } else { meaning(end, stop) };
    if let Some((status, state, mut message)) = end_of_guest {
        // Nobody else kills an init without having asked it to end.
        let killed = matches!(end, End::Signaled(9)) && stop != Some(9) && state == GuestState::Failed;
        if killed && *guest.standing.borrow() != Standing::Over && oom::killed_at_limit(&container.group) {
            message = OUT_OF_MEMORY.into();
            publish_oom(pod, &container.id);
        }
        guest.report(state, &message);
        finish(pod, container, status);
        return None;
    }
    container.lock().rebooting = true;
    guest.report(GuestState::Rebooting, "");
    container.handle(pod, Event::Rebooting).ok();
    tokio::time::sleep(pause).await;
    let begin = Instant::now();
    let mut standing = guest.standing.subscribe();
    // The sender is the guest, which is there as long as this is.
    let settled = standing.wait_for(|standing| *standing != Standing::Halted).await;
    let may_boot = settled.is_ok_and(|standing| *standing == Standing::Running);
    if !may_boot {
        let (status, state, message) = superseded();
        guest.report(state, &message);
        container.lock().rebooting = false;
        finish(pod, container, status);
        return None;
    }
    match boot(pod, container).await {
        Ok(next) => {
            log::info!("{} booted again in {:?}", container.id, begin.elapsed());
            Some(next)
        }
        Err(error) => {
            log::error!("{} cannot boot again: {error}", container.id);
            guest.report(GuestState::Failed, &format!("It cannot boot again: {error}"));
            container.lock().rebooting = false;
            finish(pod, container, REBOOT_FAILED);
            None
        }
    }
}

fn finish(pod: &Pod, container: &Container, status: u32) {
    if let Some(io) = &mut container.lock().init.io {
        io.ended();
    }
    container.handle(pod, Event::Exited(Who::Init, exit(status))).unwrap_or_else(|error| log::error!("{error}"));
}

/// Makes a new init in the container's place.
async fn boot(pod: &Arc<Pod>, container: &Arc<Container>) -> Result<oneshot::Receiver<End>> {
    clear(container).await?;
    let request = &container.request;
    let mut launched = if request.terminal {
        let (launched, master) = launch_with_console(pod, &container.dir, request).await?;
        if let Some(io) = &mut container.lock().init.io {
            io.connect_terminal(master, true)?;
        }
        launched
    } else {
        let (stdio, new) = io::pipes(&container.lock().init.names, container.owner)?;
        container.lock().init.io = Some(new);
        launch::run(&pod.reaper, &Request::Create(Box::new(request.clone())), stdio).await?
    };
    let pid = launched.reply.pid;
    if let Some(guest) = &container.guest {
        guest.boots_again(pid);
    }
    launch::signal_start(&container.libcontainer_dir())?;
    if let Some(gate) = launched.gate.take() {
        gate.wait_executed().await?;
    }
    lock(&pod.incarnations).insert(pid, container.id.clone());
    container.handle(pod, Event::Rebooted(pid))?;
    let stop = {
        let mut inner = container.lock();
        inner.init.pidfd = Some(launched.pidfd.clone());
        inner.rebooting = false;
        inner.stop
    };
    if let Some(guest) = &container.guest {
        guest.booted_again();
    }
    // Somebody asked it to stop while there was no init to ask.
    if let Some(signal) = stop {
        vivarium_sys::process::send_signal(launched.pidfd.as_fd(), super::signal::for_guest(signal))
            .attempt(|| "pass the signal to the new init")?;
    }
    Ok(launched.end)
}

/// Removes what the last boot left: control groups of the guest, libcontainer's state.
async fn clear(container: &Arc<Container>) -> Result<()> {
    let container = container.clone();
    tokio::task::spawn_blocking(move || {
        container.group.remove_children()?;
        let dir = container.libcontainer_dir();
        std::fs::remove_dir_all(&dir).attempt(|| format!("remove {}", dir.display()))
    })
    .await
    .map_err(|e| Error::Failed(format!("The last boot cannot be cleared away: {e}.")))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_an_environment_are_understood() {
        let told = |end, stop| meaning(end, stop).map(|(status, state, _)| (status, state));
        for (end, stop, expected) in [
            (End::Signaled(1), None, None),
            (End::Signaled(2), None, Some((0, GuestState::PoweredOff))),
            (End::Signaled(1), Some(15), Some((0, GuestState::PoweredOff))),
            (End::Signaled(2), Some(15), Some((0, GuestState::PoweredOff))),
            (End::Signaled(9), Some(9), Some((137, GuestState::Failed))),
            (End::Signaled(9), None, Some((137, GuestState::Failed))),
            (End::Exited(3), None, Some((3, GuestState::Failed))),
        ] {
            assert_eq!(told(end, stop), expected, "{end:?} {stop:?}");
        }
    }
}
