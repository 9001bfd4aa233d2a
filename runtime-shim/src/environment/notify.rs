//! Hears what the guest's init says about itself (`sd_notify(3)`). Any process of the guest can send to the socket; only
//! what comes from init itself counts, which the kernel attests with each datagram.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use vivarium_sys::watch::{Owned, watch};

use crate::error::{Attempt, Result};

/// Longest message that is understood; systemd's are far shorter.
const MESSAGE_MAX: usize = 4096;

/// What init says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// Everything that was to be started runs.
    Ready,
    /// It shuts down to start again.
    Rebooting,
    /// It shuts down for good.
    Stopping,
}

/// Understands one datagram; the last statement that means something counts.
fn parse(message: &str) -> Option<Said> {
    let mut said = None;
    for line in message.lines() {
        match line.split_once('=') {
            Some(("READY", "1")) => said = Some(Said::Ready),
            Some(("X_SYSTEMD_SHUTDOWN", "reboot" | "kexec" | "soft-reboot")) => said = Some(Said::Rebooting),
            Some(("X_SYSTEMD_SHUTDOWN", _)) => said = Some(Said::Stopping),
            Some(("STOPPING", "1")) if said.is_none() => said = Some(Said::Stopping),
            _ => {}
        }
    }
    said
}

/// The socket in the guest's `/run/host`.
#[derive(Debug)]
pub struct Listener(AsyncFd<Owned>);

impl Listener {
    /// Takes a bound socket.
    pub fn new(socket: UnixDatagram) -> Result<Self> {
        rustix::net::sockopt::set_socket_passcred(&socket, true).attempt(|| "ask for senders' credentials")?;
        socket.set_nonblocking(true).attempt(|| "set up the notify socket")?;
        Ok(Self(watch(socket.into(), Interest::READABLE).attempt(|| "watch the notify socket")?))
    }

    /// Waits for the next statement of init. `init` gives the pid that init has when a datagram arrives.
    pub async fn next(&self, init: impl Fn() -> i32) -> Result<Said> {
        loop {
            let (sender, message) =
                self.0.async_io(Interest::READABLE, receive).await.attempt(|| "read the notify socket")?;
            if sender != Some(init()) {
                log::debug!("ignored a notification of process {sender:?}, which is not init");
                continue;
            }
            if let Some(said) = parse(&message) {
                return Ok(said);
            }
        }
    }
}

fn receive(socket: &Owned) -> std::io::Result<(Option<i32>, String)> {
    let mut bytes = [0; MESSAGE_MAX];
    // Room for descriptors too, which are closed at once: a sender may attach some.
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16), ScmCredentials(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        socket.as_fd(),
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
    )?;
    let mut sender = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmCredentials(credentials) = message {
            sender = Some(credentials.pid.as_raw_nonzero().get());
        }
    }
    Ok((sender, String::from_utf8_lossy(&bytes[..received.bytes]).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn statements_are_understood() {
        for (message, said) in [
            ("READY=1\nSTATUS=up", Some(Said::Ready)),
            ("X_SYSTEMD_HOSTNAME=a\nX_SYSTEMD_MACHINE_ID=b", None),
            ("STOPPING=1\nX_SYSTEMD_SHUTDOWN=reboot", Some(Said::Rebooting)),
            ("EXIT_STATUS=0\nX_SYSTEMD_SHUTDOWN=poweroff", Some(Said::Stopping)),
            ("STOPPING=1", Some(Said::Stopping)),
            ("READY=0", None),
            ("", None),
        ] {
            assert_eq!(parse(message), said, "{message:?}");
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn only_init_is_heard() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let listener = Listener::new(UnixDatagram::bind(&path).unwrap()).unwrap();
        let sender = UnixDatagram::unbound().unwrap();
        sender.send_to(b"READY=1", &path).unwrap();
        let wait = Duration::from_millis(100);
        assert!(tokio::time::timeout(wait, listener.next(|| 1)).await.is_err());
        sender.send_to(b"READY=1", &path).unwrap();
        let own = std::process::id() as i32;
        assert_eq!(tokio::time::timeout(wait, listener.next(|| own)).await.unwrap().unwrap(), Said::Ready);
    }
}
