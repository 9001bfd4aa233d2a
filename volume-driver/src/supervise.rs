//! Runs the driver proper as a child and starts it again when it ends. The kubelet would too, but waits longer each time, up
//! to minutes, and a driver that is away for more than a few seconds is taken for a dead node.
//!
//! A driver that cannot even start is left to the kubelet, which shows that it does not.

use std::io;
use std::process::{ExitCode, ExitStatus};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

/// A driver that lived for so long had started well.
const WELL: Duration = Duration::from_secs(10);
/// Pause before the first new start.
const PAUSE: Duration = Duration::from_millis(100);
/// Starts in a row that came to nothing, before the kubelet is asked to take over.
const TRIES: u32 = 5;

/// What to do about a driver that ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Start it again after a pause.
    Start(Duration),
    /// Leave it to the kubelet.
    GiveUp,
}

/// Decides; `failures` are the starts in a row before this one that came to nothing.
fn next(failures: &mut u32, lived: Duration) -> Next {
    if lived >= WELL {
        *failures = 0;
        return Next::Start(PAUSE);
    }
    *failures += 1;
    if *failures < TRIES { Next::Start(PAUSE * (1 << *failures)) } else { Next::GiveUp }
}

/// Runs this program with `arguments` until it ends by request, or for good. SIGTERM and SIGINT are passed on.
///
/// # Errors
/// The child cannot be started, or signals cannot be handled.
pub async fn supervise(arguments: &[&str]) -> io::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut failures = 0;
    loop {
        let begun = Instant::now();
        // The options of `serve` come by the environment or the command line of this process.
        let rest = std::env::args_os().skip(2);
        let mut child = Command::new(std::env::current_exe()?).args(arguments).args(rest).spawn()?;
        let ended = tokio::select! {
            ended = child.wait() => ended?,
            _ = terminate.recv() => return stop(child).await,
            _ = interrupt.recv() => return stop(child).await,
        };
        match next(&mut failures, begun.elapsed()) {
            Next::Start(pause) => {
                tracing::warn!(%ended, "the driver ended by itself and is started again");
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    _ = terminate.recv() => return Ok(ExitCode::SUCCESS),
                    _ = interrupt.recv() => return Ok(ExitCode::SUCCESS),
                }
            }
            Next::GiveUp => {
                tracing::error!(%ended, "the driver does not start");
                return Ok(code(ended));
            }
        }
    }
}

async fn stop(mut child: Child) -> io::Result<ExitCode> {
    if let Some(pid) = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)) {
        rustix::process::kill_process(pid, Signal::TERM)?;
    }
    child.wait().await.map(code)
}

fn code(ended: ExitStatus) -> ExitCode {
    ended.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}

/// To be called first in the child: it must not outlive the one that would start it again.
///
/// # Errors
/// The kernel's.
pub fn end_with_parent() -> io::Result<()> {
    let parent = rustix::process::getppid();
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have died before that.
    if rustix::process::getppid() == parent { Ok(()) } else { Err(io::Error::other("the supervisor is gone")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_that_ran_is_started_again_and_one_that_never_does_is_not() {
        let mut failures = 0;
        let short = Duration::from_secs(1);
        let mut pauses = Vec::new();
        while let Next::Start(pause) = next(&mut failures, short) {
            pauses.push(pause.as_millis());
        }
        assert_eq!(pauses, [200, 400, 800, 1600]);
        assert_eq!(next(&mut failures, WELL), Next::Start(PAUSE), "whatever was before");
        assert_eq!(next(&mut failures, short), Next::Start(PAUSE * 2));
    }
}
