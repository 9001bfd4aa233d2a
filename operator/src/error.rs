//! How errors are shown to a person: the whole chain of causes on one line.

use std::error::Error;

/// The error that a subcommand ends with.
pub type Failure = Box<dyn Error + Send + Sync>;

/// An error and its causes, separated by colons. A cause that its parent's message already ends with is not repeated.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

/// What the API server says, without the object that it says it with.
#[must_use]
pub fn brief(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => chain(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Outer {
        #[error("cannot read it")]
        Plain(#[source] std::io::Error),
        #[error("cannot read it: {0}")]
        Repeating(#[source] std::io::Error),
    }

    #[test]
    fn every_cause_is_shown_once() {
        let cause = || std::io::Error::other("no such thing");
        assert_eq!(chain(&Outer::Plain(cause())), "cannot read it: no such thing");
        assert_eq!(chain(&Outer::Repeating(cause())), "cannot read it: no such thing");
    }
}
