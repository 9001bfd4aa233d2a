//! Kill, Pause and Resume.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::events::task::{TaskPaused, TaskResumed};
use vivarium_api::node::guest::GuestState;

use super::Pod;
use super::container::Container;
use crate::environment::departure;
use crate::error::{Attempt, Error, Result};
use crate::supervisor::{Phase, Who};

const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;
/// `SIGRTMIN+3`, which systemd takes for "halt" (systemd `CONTAINER_INTERFACE`); SIGTERM would make it execute itself
/// again. The kernel's first realtime signal is 32, of which the C library keeps two.
const SIGRTMIN_PLUS_3: i32 = 37;

/// The signal that an environment's init gets for one that containerd sends.
pub(super) fn for_guest(signal: i32) -> i32 {
    if signal == SIGTERM { SIGRTMIN_PLUS_3 } else { signal }
}

/// Carries out Kill.
pub(super) async fn kill(container: &Arc<Container>, who: Who, signal: u32, all: bool) -> Result<()> {
    let signal = i32::try_from(signal).ok().filter(|s| (1..=64).contains(s));
    let signal = signal.ok_or_else(|| Error::Refused("there is no such signal".into()))?;
    if all {
        return kill_all(container, signal).await;
    }
    if who == Who::Init && matches!(signal, SIGTERM | SIGRTMIN_PLUS_3) && is_held_back(container, signal)? {
        return Ok(());
    }
    deliver(container, &who, signal)
}

/// Whether the stop of a guest is held back; then it is delivered later. The kubelet asks again when it was started anew.
fn is_held_back(container: &Arc<Container>, signal: i32) -> Result<bool> {
    let (Some(guest), Some(environment)) = (&container.guest, &container.request.environment) else { return Ok(false) };
    let file = departure::file(&environment.pod_uid);
    let mut inner = container.lock();
    let (phase, ..) = inner.life.look(&Who::Init)?;
    if phase != Phase::Running || inner.stop.is_some() || !file.exists() {
        return Ok(false);
    }
    if !std::mem::replace(&mut inner.leaving, true) {
        log::info!("{} goes on until the next incarnation is prepared elsewhere", container.id);
        guest.leaves();
        let container = container.clone();
        tokio::spawn(async move {
            departure::over(&file).await;
            if let Err(error) = deliver(&container, &Who::Init, signal) {
                log::info!("{} ended before it was told to stop: {error}", container.id);
            }
        });
    }
    Ok(true)
}

fn deliver(container: &Arc<Container>, who: &Who, signal: i32) -> Result<()> {
    let mut inner = container.lock();
    let (phase, ..) = inner.life.look(who)?;
    if phase == Phase::Stopped {
        return Err(Error::NotFound("the process has ended already".into()));
    }
    let mut signal_sent = signal;
    if *who == Who::Init
        && let Some(guest) = &container.guest
    {
        if matches!(signal, SIGKILL | SIGTERM | SIGRTMIN_PLUS_3) {
            // SIGKILL outdoes what was asked before.
            if inner.stop != Some(SIGKILL) {
                inner.stop = Some(signal);
            }
            guest.report(GuestState::Stopping, "");
            if inner.rebooting {
                return Ok(());
            }
        }
        signal_sent = for_guest(signal);
    }
    let pidfd = inner.member(who)?.pidfd.clone();
    drop(inner);
    let pidfd = pidfd.ok_or_else(|| Error::WrongState("the process was not started".into()))?;
    if signal_sent == SIGRTMIN_PLUS_3 && !takes_now(container, signal_sent) {
        tokio::spawn(send_once_taken(container.clone(), pidfd, signal_sent));
        return Ok(());
    }
    match vivarium_sys::process::send_signal(pidfd.as_fd(), signal_sent) {
        Err(error) if error.raw_os_error() == Some(3) => Err(Error::NotFound("the process has ended already".into())),
        other => other.attempt(|| format!("send signal {signal}")),
    }
}

/// How long an init may take from its start until it minds signals: at its end the pod is killed anyway.
const BOOT_LIMIT: Duration = Duration::from_secs(90);
/// Between two looks at an init that does not mind signals yet. The kernel tells nobody of a change of the mask.
const LOOK: Duration = Duration::from_millis(50);

/// Whether the init minds a signal already. The kernel drops what the init of a pid namespace neither handles nor blocks
/// (`pid_namespaces(7)`), and in the first moments of its boot systemd does neither: a stop would be lost, and the
/// environment killed at the end of its grace period.
fn takes_now(container: &Container, signal: i32) -> bool {
    let (pid, _) = container.init_pid();
    // An init that is gone needs no waiting for.
    std::fs::read_to_string(format!("/proc/{pid}/status")).map_or(true, |status| minds(&status, signal))
}

/// Whether a process of that `/proc/PID/status` handles or blocks a signal.
fn minds(status: &str, signal: i32) -> bool {
    let mask = |name| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    ["SigBlk:", "SigCgt:"]
        .into_iter()
        .filter_map(mask)
        .any(|mask| u64::from_str_radix(mask, 16).is_ok_and(|mask| mask >> (signal - 1) & 1 == 1))
}

/// Sends a signal as soon as the init minds it.
async fn send_once_taken(container: Arc<Container>, pidfd: Arc<OwnedFd>, signal: i32) {
    let taken = async {
        while !takes_now(&container, signal) {
            tokio::time::sleep(LOOK).await;
        }
    };
    // Sent after the deadline too: it can do no harm.
    tokio::time::timeout(BOOT_LIMIT, taken).await.ok();
    if let Err(error) = vivarium_sys::process::send_signal(pidfd.as_fd(), signal) {
        log::info!("init of {} ended before it could be told to stop: {error}", container.id);
    }
}

async fn kill_all(container: &Arc<Container>, signal: i32) -> Result<()> {
    let container = container.clone();
    let work = move || {
        if signal == SIGKILL {
            return container.group.kill();
        }
        for pid in container.group.pids()? {
            if let (Some(pid), Some(signal)) =
                (rustix::process::Pid::from_raw(pid as i32), rustix::process::Signal::from_named_raw(signal))
            {
                // One that ends meanwhile needs no signal.
                rustix::process::kill_process(pid, signal).ok();
            }
        }
        Ok(())
    };
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::Failed(format!("The signal was not sent: {e}.")))?
}

/// Carries out Pause and Resume.
pub(super) async fn freeze(pod: &Pod, container: &Arc<Container>, frozen: bool) -> Result<()> {
    let (_, runs) = container.init_pid();
    if !runs {
        return Err(Error::WrongState("the container's init does not run".into()));
    }
    container.freezer.pause(frozen).await?;
    container.lock().paused = frozen;
    let container_id = container.id.clone();
    if frozen {
        pod.publisher.publish("/tasks/paused", &TaskPaused { container_id, ..TaskPaused::default() })
    } else {
        pod.publisher.publish("/tasks/resumed", &TaskResumed { container_id, ..TaskResumed::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_is_neither_handled_nor_blocked_is_not_minded() {
        let status = |blocked: &str, caught: &str| format!("Name:\tinit\nSigBlk:\t{blocked}\nSigCgt:\t{caught}\n");
        let none = "0000000000000000";
        // Bit 36 is signal 37.
        let stop = "0000001000000000";
        for (blocked, caught, expected) in [(none, none, false), (stop, none, true), (none, stop, true)] {
            assert_eq!(minds(&status(blocked, caught), SIGRTMIN_PLUS_3), expected, "{blocked} {caught}");
        }
        assert!(!minds(&status("0000000800000000", none), SIGRTMIN_PLUS_3), "signal 36 is another");
    }
}
