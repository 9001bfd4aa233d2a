//! Why something in the lab did not work.

use std::{fmt::Display, io, time::Duration};

use crate::{build, command, oci, workspace};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Command(#[from] command::Error),
    #[error(transparent)]
    Build(#[from] build::Error),
    #[error("an image of the lab could not be made")]
    Image(#[from] oci::Error),
    #[error(transparent)]
    Workspace(#[from] workspace::Error),
    #[error("cannot {attempt} {subject}")]
    Io { attempt: &'static str, subject: String, source: io::Error },
    #[error("{what} did not happen within {limit} s; {hint}", limit = limit.as_secs())]
    Late { what: String, limit: Duration, hint: String },
    #[error("{program} ended right after its start; the end of {log} says:\n{said}")]
    Died { program: String, log: String, said: String },
    #[error("the certificate {name} could not be made")]
    Certificate { name: String, source: rcgen::Error },
    #[error("{path} cannot be understood; `hack/lab down` and `hack/lab up` make a new one")]
    Record { path: String, source: serde_json::Error },
    #[error("{0}")]
    Refused(String),
    #[error("the lab is down, but this was left behind:\n  {}", .0.join("\n  "))]
    Leftovers(Vec<String>),
}

/// For `map_err`: what was tried on what.
pub fn io(attempt: &'static str, subject: impl Display) -> impl FnOnce(io::Error) -> Error {
    let subject = subject.to_string();
    move |source| Error::Io { attempt, subject, source }
}

/// Like [`io`] for system calls made through `rustix`.
pub fn errno(attempt: &'static str, subject: impl Display) -> impl FnOnce(rustix::io::Errno) -> Error {
    let subject = subject.to_string();
    move |source| Error::Io { attempt, subject, source: source.into() }
}

pub fn refused(reason: impl Into<String>) -> Error {
    Error::Refused(reason.into())
}
