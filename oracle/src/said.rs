//! What a node says of itself, a line at a time, on a pipe that ends outside of its volume: what it knows for certain, in
//! the order in which it came to know it.

use std::fmt;
use std::io::{self, Write};
use std::str::FromStr;
use std::time::{Duration, Instant};

/// Where the tree of a node came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It was there.
    Here,
    /// The volume is new.
    New,
    /// From the store.
    Restored,
}

/// One thing that is so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// The epoch is open, and this (a digest) is the tree.
    Begun(Origin, String),
    /// This is the tree of its own snapshot of the newest commit.
    Base(String),
    /// Records up to this one are in the tree that it began with.
    Found(u64),
    /// The tenant has changed the tree to this and does nothing while this is so.
    Wrote(String),
    /// fsync(2) of everything up to this record has returned.
    Synced(u64),
    /// A commit begins: what was there before this is part of it.
    Tick,
    /// The commit that began last is in the store, and this is the newest transaction.
    Acked(u64),
    /// The commit that began last is not known to be in the store.
    Failed,
}

/// When it was said, after the node began to live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// To the microsecond.
    pub at: Duration,
    /// What.
    pub said: Said,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.at.as_micros())?;
        match &self.said {
            Said::Begun(origin, tree) => write!(f, "begun {origin:?} {tree}"),
            Said::Base(tree) => write!(f, "base {tree}"),
            Said::Found(record) => write!(f, "found {record}"),
            Said::Wrote(tree) => write!(f, "wrote {tree}"),
            Said::Synced(record) => write!(f, "synced {record}"),
            Said::Tick => f.write_str("tick"),
            Said::Acked(sequence) => write!(f, "acked {sequence}"),
            Said::Failed => f.write_str("failed"),
        }
    }
}

/// A line that no node says.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("no node says '{0}'")]
pub struct LineError(String);

impl FromStr for Line {
    type Err = LineError;

    fn from_str(text: &str) -> Result<Self, LineError> {
        let bad = || LineError(text.to_owned());
        let words: Vec<&str> = text.split(' ').collect();
        let number = |word: &str| word.parse::<u64>().map_err(|_| bad());
        let said = match words[1..] {
            ["begun", "Here", tree] => Said::Begun(Origin::Here, tree.into()),
            ["begun", "New", tree] => Said::Begun(Origin::New, tree.into()),
            ["begun", "Restored", tree] => Said::Begun(Origin::Restored, tree.into()),
            ["base", tree] => Said::Base(tree.into()),
            ["found", record] => Said::Found(number(record)?),
            ["wrote", tree] => Said::Wrote(tree.into()),
            ["synced", record] => Said::Synced(number(record)?),
            ["tick"] => Said::Tick,
            ["acked", sequence] => Said::Acked(number(sequence)?),
            ["failed"] => Said::Failed,
            _ => return Err(bad()),
        };
        Ok(Self { at: Duration::from_micros(number(words[0])?), said })
    }
}

/// The mouth of a node.
#[derive(Clone, Copy, Debug)]
pub struct Mouth(Instant);

impl Mouth {
    /// The node lives from now on.
    #[must_use]
    pub fn open() -> Self {
        Self(Instant::now())
    }

    /// Says something; once this returns, it is said, even if the node dies at once.
    ///
    /// # Errors
    /// Nobody listens.
    pub fn say(self, said: Said) -> io::Result<()> {
        let mut out = io::stdout().lock();
        // In one call, so that a line is said whole or not at all. The time is taken under the lock: lines are in order.
        out.write_all(format!("{}\n", Line { at: self.0.elapsed(), said }).as_bytes())?;
        out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_comes_back_from_its_text() {
        for said in [
            Said::Begun(Origin::Here, "a1".into()),
            Said::Begun(Origin::New, "a2".into()),
            Said::Begun(Origin::Restored, "a3".into()),
            Said::Base("a4".into()),
            Said::Found(6),
            Said::Wrote("b".into()),
            Said::Synced(7),
            Said::Tick,
            Said::Acked(9),
            Said::Failed,
        ] {
            let line = Line { at: Duration::from_micros(1234), said };
            assert_eq!(line.to_string().parse(), Ok(line));
        }
        for bad in ["", "tick", "1 tock", "1 acked x", "x tick", "1 begun There a"] {
            assert!(bad.parse::<Line>().is_err(), "{bad}");
        }
    }
}
