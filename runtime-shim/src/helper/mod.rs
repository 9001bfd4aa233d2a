//! Short-lived, single-threaded processes that do what must not be done in the shim itself: change namespaces, ids and
//! mounts, and fork. A helper is the shim's own executable with the hidden argument `helper`; it carries out one request
//! ([`protocol`]) and exits. The process it leaves behind becomes a child of the shim, which is a subreaper.

pub mod access;
mod create;
pub mod credentials;
mod entry;
mod exec;
mod limits;
pub mod names;
pub mod protocol;
pub mod stage;

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use vivarium_sys::process::{SingleThreaded, inherited_descriptor};

use crate::error::{Error, Result};
use protocol::{CONTROL, Failure, Reply, Request, read_frame, send_reply};

/// Argument that makes the executable a helper.
pub const ARGUMENT: &str = "helper";

/// What a request left behind.
struct Outcome {
    reply: Reply,
    descriptors: Vec<OwnedFd>,
}

/// Time of each step, for the log.
struct Steps {
    start: Instant,
    done: Vec<(String, u32)>,
}

impl Steps {
    fn done(&mut self, name: &str) {
        self.done.push((name.into(), self.start.elapsed().as_millis() as u32));
    }
}

/// Runs the helper and returns its exit status. Standard descriptors are those of the new container: nothing is ever
/// printed to them.
#[must_use]
pub fn main() -> i32 {
    let start = Instant::now();
    let Ok(control) = inherited_descriptor(CONTROL) else { return 2 };
    let control = Arc::new(UnixStream::from(control));
    let mut steps = Steps { start, done: Vec::new() };
    let (reply, descriptors) = match serve(&control, &mut steps) {
        Ok(outcome) => (Reply { steps: steps.done, ..outcome.reply }, outcome.descriptors),
        Err(error) => (Reply { error: Some(describe(&error)), ..Reply::default() }, Vec::new()),
    };
    let failed = reply.error.is_some();
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let sent = send_reply(&*control, &Reply { descriptors: borrowed.len(), ..reply }, &borrowed);
    i32::from(failed || sent.is_err())
}

fn serve(control: &Arc<UnixStream>, steps: &mut Steps) -> Result<Outcome> {
    let proof = SingleThreaded::prove()
        .map_err(|source| Error::System { attempt: "cannot work as a helper".into(), source })?;
    let request = read_frame(&**control)
        .map_err(|source| Error::System { attempt: "cannot read the shim's request".into(), source })?;
    match request {
        Request::Create(request) => create::run(&request, control, proof, steps),
        Request::Exec(request) => exec::run(&request, control, proof, steps),
    }
}

fn describe(error: &Error) -> Failure {
    Failure { refused: matches!(error, Error::Refused(_)), message: error.to_string() }
}
