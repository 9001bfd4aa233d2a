//! States that somebody asks for: by number or by time.

use jiff::Timestamp;

use super::JournalError;
use super::log::{Log, Moment};

/// Which state of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// That after this transaction.
    Sequence(u64),
    /// That at this instant.
    Time(Timestamp),
}

/// Why a state cannot be had: one word of the runbook, and a sentence.
pub type NotThere = (&'static str, String);

impl Wanted {
    /// Reads the number of a transaction or a time of RFC 3339.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text.parse() {
            Ok(sequence) => Some(Self::Sequence(sequence)),
            Err(_) => text.parse().ok().map(Self::Time),
        }
    }

    /// The same, and what to say otherwise.
    ///
    /// # Errors
    /// It is neither.
    pub fn read(text: &str) -> Result<Self, NotThere> {
        Self::parse(text)
            .ok_or_else(|| ("NoSuchState", format!("`{text}` is neither a time nor the number of a transaction")))
    }

    /// Whether a log reaches back to the state. `known` as for [`Log::tail`].
    ///
    /// # Errors
    /// The store does not answer, or the log is damaged.
    pub async fn is_in(self, log: &Log, known: u64) -> Result<bool, JournalError> {
        let oldest = log.oldest(known).await?;
        Ok(match self {
            Self::Sequence(sequence) => oldest.position.sequence <= sequence,
            Self::Time(time) => oldest.time <= time,
        })
    }

    /// Looks the state up in a log. `known` as for [`Log::tail`].
    ///
    /// # Errors
    /// The store does not answer, or the log is damaged.
    pub async fn find(self, log: &Log, known: u64) -> Result<Result<Moment, NotThere>, JournalError> {
        let oldest = log.oldest(known).await?;
        Ok(match self {
            Self::Time(time) => match log.at(time, known).await? {
                moment if moment.too_old => Err(("TooOld", too_old(&format!("{time}"), &moment))),
                moment => Ok(moment),
            },
            Self::Sequence(sequence) if sequence < oldest.position.sequence => {
                Err(("TooOld", too_old(&format!("transaction {sequence}"), &oldest)))
            }
            Self::Sequence(sequence) => match log.moment(sequence).await? {
                Some(moment) => Ok(moment),
                None => Err(("NoSuchState", not_there(log, sequence, known).await?)),
            },
        })
    }
}

async fn not_there(log: &Log, sequence: u64, known: u64) -> Result<String, JournalError> {
    let newest = log.tail(known).await?.sequence;
    Ok(match log.states().await?.range(sequence..).next() {
        Some(next) if sequence < newest => format!(
            "the state after transaction {sequence} is not kept by itself any more: the next one that is kept is that after \
             transaction {next}"
        ),
        _ => format!("there is no transaction {sequence} in the journal: its newest one is {newest}"),
    })
}

fn too_old(wanted: &str, oldest: &Moment) -> String {
    format!(
        "{wanted} lies before everything that is kept: the oldest state is that after transaction {}, of {}",
        oldest.position.sequence, oldest.time
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_named_by_a_time_or_a_number() {
        let time = |text: &str| Some(Wanted::Time(text.parse().unwrap()));
        for (text, wanted) in [
            ("17", Some(Wanted::Sequence(17))),
            ("2026-11-25T18:00:00Z", time("2026-11-25T18:00:00Z")),
            ("2026-11-25T18:00:00.5+01:00", time("2026-11-25T17:00:00.5Z")),
            ("yesterday", None),
            ("-1", None),
            ("", None),
        ] {
            assert_eq!(Wanted::parse(text), wanted, "{text}");
        }
    }
}
