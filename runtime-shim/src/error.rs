//! The one error of the shim: what was attempted, why it failed, and what containerd (and through it the person who
//! wrote the pod) is told. Its kinds are those that a caller treats differently; all else is in the sentence.

use std::io;
use std::time::Duration;

use ttrpc::Code;

/// Result of anything in the shim.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request asks for something that is wrong or not allowed. The sentence says what to change.
    #[error("{0}")]
    Refused(String),
    /// What the request names does not exist (any more).
    #[error("{0}")]
    NotFound(String),
    /// What the request makes exists already.
    #[error("{0}")]
    AlreadyExists(String),
    /// The request does not fit the present state of its object.
    #[error("{0}")]
    WrongState(String),
    /// An operation did not end in time; what it did was undone.
    #[error("{attempt} did not end within {} s", .limit.as_secs())]
    Deadline {
        /// What was waited for.
        attempt: String,
        /// How long.
        limit: Duration,
    },
    /// The system refused.
    #[error("{attempt}: {source}")]
    System {
        /// What was attempted, on what.
        attempt: String,
        /// The system's answer.
        source: io::Error,
    },
    /// Anything else, a full sentence.
    #[error("{0}")]
    Failed(String),
}

impl Error {
    /// gRPC status that containerd acts upon.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Refused(_) => Code::INVALID_ARGUMENT,
            Self::NotFound(_) => Code::NOT_FOUND,
            Self::AlreadyExists(_) => Code::ALREADY_EXISTS,
            Self::WrongState(_) => Code::FAILED_PRECONDITION,
            Self::Deadline { .. } => Code::DEADLINE_EXCEEDED,
            Self::System { .. } | Self::Failed(_) => Code::UNKNOWN,
        }
    }
}

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        ttrpc::Error::RpcStatus(ttrpc::get_status(error.code(), error.to_string()))
    }
}

/// Says what was attempted when the system refuses.
pub trait Attempt<T> {
    /// Wraps the error with the attempt, for example `open the user namespace /proc/7/ns/user`.
    fn attempt<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<io::Error>> Attempt<T> for std::result::Result<T, E> {
    fn attempt<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|source| Error::System { attempt: format!("cannot {}", what().into()), source: source.into() })
    }
}
