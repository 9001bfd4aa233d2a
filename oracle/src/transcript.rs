//! What was heard of a volume on nodes that lose their power, as text: for each life a line `life NODE cut` (its power was
//! cut, nobody knows when exactly) or `life NODE ended` (it has done what it was to do), then what it said.

use std::fmt;

use crate::ledger::{Records, Trees, Violation};
use crate::said::{Line, LineError, Origin, Said};

/// What does not hold, or is no transcript.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TranscriptError {
    /// The nodes did what they must not.
    #[error("life {life}: {violation}")]
    Violation {
        /// Which one, from 1.
        life: usize,
        /// What.
        violation: Violation,
    },
    /// What is on the disk was not used.
    #[error("life {life}: the volume was restored on a node that had it last and all of it")]
    NotUsed {
        /// Which one, from 1.
        life: usize,
    },
    /// A node that was left alone has not opened the epoch.
    #[error("life {life} ended without having begun")]
    NeverBegun {
        /// Which one, from 1.
        life: usize,
    },
    /// Whatever went before, the volume has to be brought back at the end.
    #[error("the last life was cut off: there is nothing to judge by")]
    NoEnd,
    /// Not what a node says.
    #[error(transparent)]
    Line(#[from] LineError),
    /// Not in a life.
    #[error("'{0}' begins no life: that is 'life NODE cut' or 'life NODE ended'")]
    Outside(String),
}

/// What there was to judge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Lives of nodes.
    pub lives: u64,
    /// Of which the power was cut.
    pub cuts: u64,
    /// Commits that were acknowledged.
    pub acked: u64,
    /// Times that a record was synced.
    pub synced: u64,
    /// Lives that went on with what a power cut had left on the disk.
    pub went_on: u64,
    /// Lives that began with what was in the store.
    pub restored: u64,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lives, cuts, acked, synced, went_on, restored } = self;
        write!(f, "lives {lives} cuts {cuts} acked {acked} synced {synced} went-on {went_on} restored {restored}")
    }
}

struct Life {
    node: usize,
    cut: bool,
    said: Vec<Line>,
}

/// Judges a transcript.
///
/// # Errors
/// [`TranscriptError`].
pub fn judge(text: &str) -> Result<Figures, TranscriptError> {
    let (mut trees, mut records, mut figures) = (Trees::default(), Records::default(), Figures::default());
    let lives = parse(text)?;
    // Who had the volume when its power was cut.
    let mut owner = None;
    for (index, Life { node, cut, said }) in lives.iter().enumerate() {
        let life = index + 1;
        let violation = |violation| TranscriptError::Violation { life, violation };
        let begun = said.iter().find_map(|line| match &line.said {
            Said::Begun(origin, _) => Some(*origin),
            _ => None,
        });
        trees.hear(*node, said).map_err(violation)?;
        records.hear(said).map_err(violation)?;
        match begun {
            None if !cut => return Err(TranscriptError::NeverBegun { life }),
            // Nobody else took it over, so the journal has nothing that is not here.
            Some(Origin::Restored) if owner == Some(*node) => return Err(TranscriptError::NotUsed { life }),
            _ => {}
        }
        if begun.is_some() {
            owner = Some(*node);
        } else if owner != Some(*node) {
            // It may have taken it over, or not.
            owner = None;
        }
        if *cut {
            trees.cut(*node);
        }
        figures.lives += 1;
        figures.cuts += u64::from(*cut);
        figures.restored += u64::from(begun == Some(Origin::Restored));
        figures.went_on += u64::from(index > 0 && begun == Some(Origin::Here));
        figures.acked += said.iter().filter(|line| matches!(line.said, Said::Acked(_))).count() as u64;
        figures.synced += said.iter().filter(|line| matches!(line.said, Said::Synced(_))).count() as u64;
    }
    if lives.last().is_none_or(|life| life.cut) { Err(TranscriptError::NoEnd) } else { Ok(figures) }
}

fn parse(text: &str) -> Result<Vec<Life>, TranscriptError> {
    let mut lives: Vec<Life> = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let outside = || TranscriptError::Outside(line.to_owned());
        match words[..] {
            ["life", node, end] => {
                let cut = match end {
                    "cut" => true,
                    "ended" => false,
                    _ => return Err(outside()),
                };
                lives.push(Life { node: node.parse().map_err(|_| outside())?, cut, said: Vec::new() });
            }
            _ => lives.last_mut().ok_or_else(outside)?.said.push(line.parse()?),
        }
    }
    Ok(lives)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str =
        "life 0 cut\n1 begun New t0\n2 found 0\n3 synced 2\n4 wrote t1\n5 tick\n6 acked 2\n7 wrote t2\n8 synced 4\n";

    #[test]
    fn a_volume_that_went_through_power_cuts_is_counted() {
        let text = format!(
            "{FIRST}life 0 cut\nlife 0 cut\n1 begun Here t9\n2 found 4\n3 base t1\n4 tick\n5 acked 4\nlife 1 ended\n1 begun Restored t9\n2 found 4\n"
        );
        let figures = Figures { lives: 4, cuts: 3, acked: 2, synced: 2, went_on: 1, restored: 1 };
        assert_eq!(judge(&text), Ok(figures));
    }

    #[test]
    fn anything_else_is_told() {
        let violation = |violation| TranscriptError::Violation { life: 2, violation };
        for (rest, error) in [
            ("", TranscriptError::NoEnd),
            ("life 0 cut\n", TranscriptError::NoEnd),
            ("life 1 ended\n", TranscriptError::NeverBegun { life: 2 }),
            ("life 1 ended\n1 begun Restored t2\n2 found 2\n", violation(Violation::NoInstant)),
            ("life 1 ended\n1 begun New t0\n2 found 0\n", violation(Violation::Forgotten)),
            (
                "life 1 ended\n1 begun Restored t1\n2 found 1\n",
                violation(Violation::RecordLost { synced: 2, found: 1 }),
            ),
            ("life 0 ended\n1 begun Here t9\n2 found 3\n", violation(Violation::NotOnDisk { synced: 4, found: 3 })),
            ("life 0 ended\n1 begun Here t9\n2 found 4\n3 base t2\n", violation(Violation::BaseDiffers)),
            ("life 0 ended\n1 begun Restored t1\n2 found 2\n", TranscriptError::NotUsed { life: 2 }),
            ("life 0 lost\n", TranscriptError::Outside("life 0 lost".into())),
            ("life 1 ended\n1 begun\n", TranscriptError::Line("1 begun".parse::<Line>().unwrap_err())),
        ] {
            assert_eq!(judge(&format!("{FIRST}{rest}")), Err(error), "{rest}");
        }
        assert_eq!(judge("1 tick\n"), Err(TranscriptError::Outside("1 tick".into())));
    }
}
