//! containerd of this node, through its socket: which runtimes it has, and how it is restarted.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::net::UnixStream;
use tokio::time::Instant;
use vivarium_api::names;

use crate::health::connect;
use crate::proto::cri::StatusRequest;
use crate::proto::cri::runtime_service_client::RuntimeServiceClient;

/// How long containerd may take to end, and to be back.
const DEADLINE: Duration = Duration::from_secs(60);
/// Between two attempts to reach a containerd that is starting. There is nothing to wait on: its socket may be there
/// long before it answers, and be replaced.
const ATTEMPT: Duration = Duration::from_millis(200);

/// What containerd did not do.
#[derive(Debug, thiserror::Error)]
pub enum ContainerdError {
    /// It does not answer.
    #[error("containerd does not answer on {}: {message}. Is it running, and is this its socket?", socket.display())]
    NoAnswer {
        /// Its socket.
        socket: PathBuf,
        /// What happened.
        message: String,
    },
    /// The process cannot be known or signalled.
    #[error("cannot restart containerd (process {pid:?} behind {}): {source}. The pod needs hostPID and the right to signal it", socket.display())]
    Signal {
        /// Its socket.
        socket: PathBuf,
        /// Its process.
        pid: Option<i32>,
        /// Why not.
        source: io::Error,
    },
    /// It did not end.
    #[error("containerd (process {pid}) did not end within {} s of SIGTERM", DEADLINE.as_secs())]
    DidNotEnd {
        /// Its process.
        pid: i32,
    },
    /// It did not come back.
    #[error("containerd ended and did not answer again within {} s: {message}. Something must start it again when it ends, as a system's service manager does; see its log", DEADLINE.as_secs())]
    DidNotReturn {
        /// What happened at the last attempt.
        message: String,
    },
}

/// Whether containerd has our runtime.
///
/// # Errors
/// [`ContainerdError::NoAnswer`].
pub(super) async fn has_runtime(socket: &Path) -> Result<bool, ContainerdError> {
    handlers(socket)
        .await
        .map(|handlers| handlers.iter().any(|name| name == names::RUNTIME_CLASS))
        .map_err(|message| ContainerdError::NoAnswer { socket: socket.to_owned(), message })
}

async fn handlers(socket: &Path) -> Result<Vec<String>, String> {
    let channel = connect(socket.to_owned()).await?;
    let answer = RuntimeServiceClient::new(channel).status(StatusRequest { verbose: false }).await;
    let answer = answer.map_err(|status| status.to_string())?;
    Ok(answer.into_inner().runtime_handlers.into_iter().map(|handler| handler.name).collect())
}

/// Ends the process behind the socket by SIGTERM and waits until another answers there.
///
/// # Errors
/// [`ContainerdError`].
pub(super) async fn restart(socket: &Path) -> Result<(), ContainerdError> {
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|error| ContainerdError::NoAnswer { socket: socket.to_owned(), message: error.to_string() })?;
    let signal = |pid| {
        let socket = socket.to_owned();
        move |source| ContainerdError::Signal { socket, pid, source }
    };
    let number = stream.peer_cred().map_err(signal(None))?.pid();
    // A listener that a service manager made and handed over carries the manager's number.
    let pid = number.filter(|pid| *pid > 1).and_then(Pid::from_raw).ok_or_else(|| {
        signal(number)(io::Error::other("the process behind the socket is not known, or is the node's init"))
    })?;
    let number = pid.as_raw_nonzero().get();
    let process =
        rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(|error| signal(Some(number))(error.into()))?;
    tracing::info!(pid = number, "restarting containerd");
    rustix::process::pidfd_send_signal(&process, Signal::TERM).map_err(|error| signal(Some(number))(error.into()))?;
    drop(stream);
    let ended = tokio::task::spawn_blocking(move || {
        let mut poll = [rustix::event::PollFd::new(&process, rustix::event::PollFlags::IN)];
        let timeout = rustix::event::Timespec { tv_sec: DEADLINE.as_secs() as i64, tv_nsec: 0 };
        rustix::event::poll(&mut poll, Some(&timeout))
    });
    match ended.await {
        Ok(Ok(1..)) => {}
        Ok(Err(error)) => return Err(signal(Some(number))(error.into())),
        _ => return Err(ContainerdError::DidNotEnd { pid: number }),
    }
    let deadline = Instant::now() + DEADLINE;
    loop {
        match handlers(socket).await {
            Ok(_) => return Ok(()),
            Err(message) if Instant::now() >= deadline => return Err(ContainerdError::DidNotReturn { message }),
            Err(_) => tokio::time::sleep(ATTEMPT).await,
        }
    }
}
