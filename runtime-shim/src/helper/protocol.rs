//! What the shim and its helper processes tell each other over one stream socket, descriptor [`CONTROL`] of the helper.
//!
//! 1. shim → helper: one frame with the [`Request`].
//! 2. helper → shim: one frame with the [`Reply`], then one byte that carries the descriptors the reply counts.
//! 3. Only for an exec: shim → new process: one byte, which lets it go on once the shim has verified where it is.
//! 4. new process (init or exec): closes the socket by execve, which tells the shim of success; or writes one sentence
//!    that says why it could not be executed.
//!
//! A frame is a length (32 bit, little-endian) and as many bytes of JSON.

use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;

use oci_spec::runtime::{Process, Spec};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use vivarium_api::node::boot::BootConfig;
use vivarium_api::node::stage::StageRecord;

/// Number of the helper's control socket.
pub const CONTROL: RawFd = 3;
/// Largest frame: a spec with a large environment has some hundred KB.
const FRAME_MAX: u32 = 16 << 20;
/// Descriptors that one reply can carry.
pub const DESCRIPTORS_MAX: usize = 2;

/// What a helper is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// Make a container up to the point where its init waits for the start signal.
    Create(Box<CreateRequest>),
    /// Put one more process into a running container.
    Exec(Box<ExecRequest>),
}

/// A container to be made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CreateRequest {
    /// State directory of the container.
    pub state_dir: PathBuf,
    /// The spec as containerd wrote it, but with paths to processes' namespaces translated.
    pub spec: Spec,
    /// Root file system as containerd's snapshotter describes it; unused for an environment.
    pub rootfs: Vec<RootfsMount>,
    /// Whether the container has a terminal; its master comes back with the reply.
    pub terminal: bool,
    /// Set for an environment.
    pub environment: Option<EnvironmentRequest>,
}

/// What turns a container into an environment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EnvironmentRequest {
    /// UID of the pod, from its sandbox; the volume must be published to it.
    pub pod_uid: String,
    /// What the guest is told, as it was when the incarnation began.
    pub boot: BootConfig,
}

/// One mount of `CreateTaskRequest.rootfs`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootfsMount {
    /// `overlay` or `bind`.
    pub kind: String,
    /// Source of a bind.
    pub source: PathBuf,
    /// Mount options in fstab form.
    pub options: Vec<String>,
}

/// A process to be put into a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExecRequest {
    /// pid of the container's init.
    pub init: i32,
    /// The process as it is to be run.
    pub process: Process,
    /// Whether it has a terminal; its master comes back with the reply.
    pub terminal: bool,
    /// Seccomp filters, in order of installation.
    pub filters: Vec<crate::seccomp::Filter>,
    /// Group that the process joins if init has left the container's own group for one that it made, or if the
    /// container's own takes no processes (cgroup v2, "no internal processes").
    pub fallback_group: Option<PathBuf>,
}

/// What came of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The new process, as the shim's pid namespace sees it.
    pub pid: i32,
    /// Number of descriptors that follow: the pidfd, then the terminal's master if there is one.
    pub descriptors: usize,
    /// Stage record of the volume that an environment runs on.
    pub volume: Option<StageRecord>,
    /// Milliseconds since the helper's start after each step, for the log.
    pub steps: Vec<(String, u32)>,
    /// Why it failed; everything else is then meaningless.
    pub error: Option<Failure>,
}

/// An error that crosses the process boundary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Whether the request itself is at fault.
    pub refused: bool,
    /// Full sentence.
    pub message: String,
}

/// Reads one frame.
pub fn read_frame<T: DeserializeOwned>(mut stream: impl Read) -> io::Result<T> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut body = vec![0; checked_length(length)?];
    stream.read_exact(&mut body)?;
    Ok(serde_json::from_slice(&body)?)
}

/// The frame's length from its first four bytes.
pub fn checked_length(bytes: [u8; 4]) -> io::Result<usize> {
    let length = u32::from_le_bytes(bytes);
    if length > FRAME_MAX {
        return Err(io::Error::other(format!("a message of {length} bytes is longer than {FRAME_MAX}")));
    }
    Ok(length as usize)
}

/// Makes one frame.
pub fn frame<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let body = serde_json::to_vec(message)?;
    let mut frame = u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes().to_vec();
    checked_length([frame[0], frame[1], frame[2], frame[3]])?;
    frame.extend(body);
    Ok(frame)
}

/// Sends a reply and its descriptors.
pub fn send_reply(mut stream: impl Write + AsFd, reply: &Reply, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    stream.write_all(&frame(reply)?)?;
    if descriptors.is_empty() {
        return Ok(());
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("more descriptors than one message can carry"));
    }
    rustix::net::sendmsg(stream.as_fd(), &[IoSlice::new(&[0])], &mut control, SendFlags::empty())?;
    Ok(())
}

/// Receives the byte that carries descriptors. For a non-blocking socket it may fail with `WouldBlock`.
pub fn receive_descriptors(stream: BorrowedFd<'_>) -> io::Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0u8];
    let received = rustix::net::recvmsg(
        stream,
        &mut [rustix::io::IoSliceMut::new(&mut byte)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            descriptors.extend(fds);
        }
    }
    Ok(descriptors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_arrives_with_its_descriptors() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let reply = Reply { pid: 7, descriptors: 1, ..Reply::default() };
        send_reply(&theirs, &reply, &[file.as_fd()]).unwrap();
        assert_eq!(read_frame::<Reply>(&ours).unwrap(), reply);
        assert_eq!(receive_descriptors(ours.as_fd()).unwrap().len(), 1);
    }

    #[test]
    fn an_endless_frame_is_refused() {
        assert!(checked_length(u32::MAX.to_le_bytes()).is_err());
        assert_eq!(checked_length(5u32.to_le_bytes()).unwrap(), 5);
    }
}
