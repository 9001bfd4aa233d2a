//! The shim's side of a helper process: starts it, gives it the request, takes its reply, and ends it when it is late.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::sync::oneshot;

use crate::error::{Attempt, Error, Result};
use crate::helper::ARGUMENT;
use crate::helper::protocol::{CONTROL, Reply, Request, checked_length, frame, receive_descriptors};
use crate::reaper::{End, Reaper};

/// How long a helper may take. Creation is some 50 ms on an idle machine.
pub const LIMIT: Duration = Duration::from_secs(30);
/// How long a process may take from the start signal to its execve.
pub const EXEC_LIMIT: Duration = Duration::from_secs(10);
/// Longest sentence that a process writes when it cannot be executed.
const SENTENCE_MAX: u64 = 4096;

/// A process that a helper made and that waits for its start.
#[derive(Debug)]
pub struct Launched {
    /// What the helper said.
    pub reply: Reply,
    /// The process.
    pub pidfd: Arc<OwnedFd>,
    /// Master of its terminal, for an exec that has one.
    pub terminal: Option<OwnedFd>,
    /// Its end.
    pub end: oneshot::Receiver<End>,
    /// To the process; taken by whoever starts it.
    pub gate: Option<Gate>,
}

/// The connection to a process that has not become its program yet.
#[derive(Debug)]
pub struct Gate(UnixStream);

impl Gate {
    /// Lets an exec go on.
    pub async fn release(&mut self) -> Result<()> {
        self.0.write_all(&[1]).await.attempt(|| "release the new process")
    }

    /// Waits until the process has become its program, or tells why it has not.
    pub async fn wait_executed(mut self) -> Result<()> {
        let mut sentence = String::new();
        let mut limited = (&mut self.0).take(SENTENCE_MAX);
        match tokio::time::timeout(EXEC_LIMIT, limited.read_to_string(&mut sentence)).await {
            // Nothing said, or a reset connection: the process goes its way, and the reaper tells where that ends.
            Ok(Ok(0) | Err(_)) => Ok(()),
            Ok(Ok(_)) => Err(Error::Refused(sentence)),
            Err(_) => {
                Err(Error::Deadline { attempt: "starting the process (is it frozen?)".into(), limit: EXEC_LIMIT })
            }
        }
    }
}

/// Runs a helper. `streams` become the standard descriptors of what it starts.
pub async fn run(reaper: &Arc<Reaper>, request: &Request, streams: [OwnedFd; 3]) -> Result<Launched> {
    let launch = reaper.launch();
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().attempt(|| "make a socket pair")?;
    ours.set_nonblocking(true).attempt(|| "set up a socket")?;
    let mut stream = UnixStream::from_std(ours).attempt(|| "set up a socket")?;
    let [stdin, stdout, stderr] = streams.map(Stdio::from);
    let mut command = Command::new("/proc/self/exe");
    command.arg0("vivarium-helper").arg(ARGUMENT).env_clear().stdin(stdin).stdout(stdout).stderr(stderr);
    let child = vivarium_sys::process::spawn_with_descriptor(&mut command, theirs.as_fd(), CONTROL)
        .attempt(|| "start a helper process")?;
    drop((theirs, command));
    let pid = child.id() as i32;
    // The reaper runs on this thread, so the helper cannot be reaped before the next wait.
    let helper = Pid::from_raw(pid)
        .and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok())
        .ok_or_else(|| Error::Failed("The helper process vanished.".into()))?;
    let helper_end = launch.watch(pid);

    let talked = tokio::time::timeout(LIMIT, talk(&mut stream, request)).await;
    let (reply, mut descriptors) = match talked {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            kill(&helper);
            let end = helper_end.await.ok();
            return Err(Error::Failed(format!("The helper process ended without an answer ({end:?}): {error}.")));
        }
        Err(_) => {
            kill(&helper);
            return Err(Error::Deadline { attempt: "the helper process".into(), limit: LIMIT });
        }
    };
    if let Some(failure) = reply.error {
        let failure_is = if failure.refused { Error::Refused } else { Error::Failed };
        return Err(failure_is(failure.message));
    }
    if descriptors.is_empty() {
        return Err(Error::Failed("The helper process sent no pidfd.".into()));
    }
    let pidfd = Arc::new(descriptors.remove(0));
    let end = launch.watch(reply.pid);
    Ok(Launched { reply, pidfd, terminal: descriptors.pop(), end, gate: Some(Gate(stream)) })
}

fn kill(process: &OwnedFd) {
    // One that is gone already is what was wanted.
    vivarium_sys::process::send_signal(process.as_fd(), 9).ok();
}

async fn talk(stream: &mut UnixStream, request: &Request) -> std::io::Result<(Reply, Vec<OwnedFd>)> {
    stream.write_all(&frame(request)?).await?;
    let mut length = [0; 4];
    stream.read_exact(&mut length).await?;
    let mut body = vec![0; checked_length(length)?];
    stream.read_exact(&mut body).await?;
    let reply: Reply = serde_json::from_slice(&body)?;
    let mut descriptors = Vec::new();
    if reply.descriptors > 0 {
        let stream: &UnixStream = stream;
        descriptors = stream.async_io(Interest::READABLE, || receive_descriptors(stream.as_fd())).await?;
    }
    Ok((reply, descriptors))
}

/// Gives the start signal to an init that libcontainer made: it waits for a connection to this socket of its state
/// directory and for its end. The path is longer than a socket's name may be, hence the detour.
pub fn signal_start(container_dir: &std::path::Path) -> Result<()> {
    use std::io::Write;
    let dir = crate::helper::stage::open_directory(container_dir)?;
    let socket = format!("/proc/self/fd/{}/notify.sock", dir.as_raw_fd());
    let mut stream =
        std::os::unix::net::UnixStream::connect(socket).attempt(|| "reach the container's init (has it ended?)")?;
    stream.write_all(b"start container").attempt(|| "give the start signal")
}
