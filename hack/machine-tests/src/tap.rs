//! How the machine reports over its serial line: lines in the manner of the Test Anything Protocol. Whatever else comes
//! over that line (firmware, kernel, a login prompt) parses as none of them.

use std::fmt;

/// One line of a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// `1..N`: how many checks there will be.
    Plan(usize),
    /// `ok N - name` or `not ok N - name`.
    Outcome {
        /// Position in the plan, from 1.
        number: usize,
        /// What was checked.
        name: String,
        /// Whether it holds.
        passed: bool,
    },
    /// `# text`: for the reader.
    Remark(String),
    /// `Bail out! text`: no check can follow.
    BailOut(String),
}

impl Line {
    /// Reads a line as it came over the serial line; `None` when it is no line of a report.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let line = line.trim();
        if let Some(remark) = line.strip_prefix("# ") {
            return Some(Self::Remark(remark.into()));
        }
        if let Some(reason) = line.strip_prefix("Bail out!") {
            return Some(Self::BailOut(reason.trim().into()));
        }
        if let Some(count) = line.strip_prefix("1..") {
            return count.parse().ok().map(Self::Plan);
        }
        let (passed, rest) = match line.strip_prefix("not ok ") {
            Some(rest) => (false, rest),
            None => (true, line.strip_prefix("ok ")?),
        };
        let (number, name) = rest.split_once(" - ")?;
        Some(Self::Outcome { number: number.parse().ok()?, name: name.into(), passed })
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plan(count) => write!(f, "1..{count}"),
            Self::Outcome { number, name, passed } => {
                write!(f, "{}ok {number} - {name}", if *passed { "" } else { "not " })
            }
            Self::Remark(text) => write!(f, "# {text}"),
            Self::BailOut(reason) => write!(f, "Bail out! {reason}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        for line in [
            Line::Plan(3),
            Line::Outcome { number: 12, name: "memory - it holds".into(), passed: true },
            Line::Outcome { number: 1, name: "x".into(), passed: false },
            Line::Remark("not ok 1 - x".into()),
            Line::BailOut("no pool".into()),
        ] {
            assert_eq!(Line::parse(&format!("{line}\r")), Some(line));
        }
    }

    #[test]
    fn other_lines_are_none() {
        for line in ["", "#", "okay", "ok", "ok x - y", "ok 1", "[    0.1] ok 1 - x", "1..", "1..x", "not ok"] {
            assert_eq!(Line::parse(line), None, "{line:?}");
        }
    }
}
