//! Why a store did not do what it was asked to: one kind for those who decide, one sentence for those who read. Texts
//! come from servers, so they are cut to a bearable length, and credentials that a server echoes are taken out.

use std::error::Error as _;
use std::io;

use object_store::client::{HttpError, HttpErrorKind};

/// Kinds of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// No answer in time. What was asked may still happen.
    TimedOut,
    /// Nobody there.
    Unreachable,
    /// The credentials do not suffice.
    Denied,
    /// The bucket or directory is not there.
    Missing,
    /// No room.
    Full,
    /// Anything else, for example an internal error of the store.
    Other,
}

/// What a store answered, or that it did not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Its kind.
    pub cause: Cause,
    /// One sentence, without credentials.
    pub message: String,
}

impl Failure {
    /// No answer in time.
    pub(crate) fn timed_out() -> Self {
        Self { cause: Cause::TimedOut, message: "the store did not answer in time".into() }
    }
}

/// Longest text of a server that is passed on.
const LONGEST: usize = 600;

/// Takes credentials out of texts.
#[derive(Clone, Default)]
pub struct Redaction(Vec<String>);

impl std::fmt::Debug for Redaction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Redaction")
    }
}

impl Redaction {
    /// Takes these out.
    pub fn of(secrets: impl IntoIterator<Item = String>) -> Self {
        let mut secrets: Vec<String> = secrets.into_iter().filter(|secret| !secret.is_empty()).collect();
        // One may be part of another.
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        Self(secrets)
    }

    /// A text fit for logs and conditions.
    pub fn clean(&self, text: &str) -> String {
        let mut text = self.0.iter().fold(text.to_owned(), |text, secret| text.replace(secret.as_str(), "[hidden]"));
        if text.len() > LONGEST {
            let end = (0..=LONGEST).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
            text.truncate(end);
            text.push_str(" ...");
        }
        text
    }

    /// What a back end said, as it can be passed on.
    pub fn failure(&self, error: &object_store::Error) -> Failure {
        let text = error.to_string();
        let message = self.clean(&answer(&text).or_else(|| connection(error)).unwrap_or_else(|| text.clone()));
        let cause = match error {
            object_store::Error::NotFound { .. } => Cause::Missing,
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => Cause::Denied,
            _ => deeper(error).unwrap_or_else(|| by_code(&text)),
        };
        Failure { cause, message }
    }
}

/// What an S3 server said: status, error code and message. Not the request's number and duration, which make the same
/// failure look new each time.
fn answer(text: &str) -> Option<String> {
    let between = |from: &str, to: &str| Some(text.split_once(from)?.1.split_once(to)?.0.trim());
    let status = text.split_once("status code: ")?.1.split(':').next()?.trim();
    let details = [between("<Code>", "</Code>"), between("<Message>", "</Message>")];
    let details: Vec<&str> = details.into_iter().flatten().filter(|detail| !detail.is_empty()).collect();
    Some(if details.is_empty() {
        format!("it answered {status}")
    } else {
        format!("it answered {status} ({})", details.join(": "))
    })
}

/// Why there was no answer, for an error of the transport: the innermost cause, which has no durations in it.
fn connection(error: &object_store::Error) -> Option<String> {
    let causes = || std::iter::successors(error.source(), |error| (*error).source());
    causes().find(|cause| cause.is::<HttpError>())?;
    Some(format!("it cannot be reached: {}", causes().last()?))
}

/// The kind, from the causes of an error.
fn deeper(error: &object_store::Error) -> Option<Cause> {
    std::iter::successors(error.source(), |error| (*error).source()).find_map(|error| {
        if let Some(http) = error.downcast_ref::<HttpError>() {
            return match http.kind() {
                HttpErrorKind::Timeout => Some(Cause::TimedOut),
                HttpErrorKind::Connect => Some(Cause::Unreachable),
                _ => None,
            };
        }
        match error.downcast_ref::<io::Error>()?.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Some(Cause::Full),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Some(Cause::Denied),
            io::ErrorKind::ConnectionRefused | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
                Some(Cause::Unreachable)
            }
            io::ErrorKind::TimedOut => Some(Cause::TimedOut),
            _ => None,
        }
    })
}

/// The kind, from the error code in an S3 answer.
fn by_code(message: &str) -> Cause {
    let says = |codes: &[&str]| codes.iter().any(|code| message.contains(code));
    if says(&["NoSuchBucket"]) {
        Cause::Missing
    } else if says(&["QuotaExceeded", "507 Insufficient", "InsufficientStorage", "XMinioStorageFull"]) {
        Cause::Full
    } else if says(&["AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"]) {
        Cause::Denied
    } else {
        Cause::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> object_store::Error {
        object_store::Error::Generic { store: "S3", source: source.into() }
    }

    #[test]
    fn failures_have_kinds() {
        let io = |kind: io::ErrorKind| generic(io::Error::from(kind));
        for (error, cause) in [
            (io(io::ErrorKind::StorageFull), Cause::Full),
            (io(io::ErrorKind::ConnectionRefused), Cause::Unreachable),
            (io(io::ErrorKind::ReadOnlyFilesystem), Cause::Denied),
            (generic("404 Not Found: <Code>NoSuchBucket</Code>"), Cause::Missing),
            (generic("403: <Code>QuotaExceeded</Code>"), Cause::Full),
            (generic("400: <Code>InvalidAccessKeyId</Code>"), Cause::Denied),
            (generic("500 Internal Server Error"), Cause::Other),
            (object_store::Error::NotFound { path: "x".into(), source: "y".into() }, Cause::Missing),
        ] {
            assert_eq!(Redaction::default().failure(&error).cause, cause, "{error}");
        }
    }

    #[test]
    fn credentials_that_a_server_echoes_are_taken_out() {
        let redaction = Redaction::of(["key".to_owned(), "key-and-secret".to_owned(), String::new()]);
        let failure = redaction.failure(&generic("<AWSAccessKeyId>key</AWSAccessKeyId> key-and-secret"));
        assert!(!failure.message.contains("key-and") && !failure.message.contains(">key<"), "{failure}");
        assert_eq!(format!("{redaction:?}"), "Redaction");
    }

    #[test]
    fn what_a_server_said_is_told_without_what_changes_each_time() {
        let text = "Error performing PUT http://s/b/k in 3.1ms - Server returned non-2xx status code: 403 Forbidden: \
            <?xml version=\"1.0\"?><Error><Code>SignatureDoesNotMatch</Code><Message>No</Message><RequestId>tx1</RequestId></Error>";
        let message = Redaction::default().failure(&generic(text)).message;
        assert_eq!(message, "it answered 403 Forbidden (SignatureDoesNotMatch: No)");
        let text =
            "Error performing PUT http://s/b/k in 3.1ms - Server returned non-2xx status code: 502 Bad Gateway: ";
        assert_eq!(Redaction::default().failure(&generic(text)).message, "it answered 502 Bad Gateway");
    }

    #[test]
    fn long_answers_are_cut() {
        assert!(Redaction::default().clean(&"ä".repeat(10_000)).len() < 700);
    }
}
