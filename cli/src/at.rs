//! Instants as people write them.

use std::str::FromStr;

use jiff::{SignedDuration, Timestamp};

/// An instant of an environment's past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// After a transaction.
    Transaction(u64),
    /// The last commit at that time.
    Time(Timestamp),
    /// The same, so long before now.
    Ago(SignedDuration),
}

impl FromStr for At {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(number) = text.parse() {
            return Ok(Self::Transaction(number));
        }
        if let Ok(time) = text.parse() {
            return Ok(Self::Time(time));
        }
        match text.parse::<SignedDuration>() {
            Ok(ago) if ago.is_positive() => Ok(Self::Ago(ago)),
            _ => Err("give a time with its zone (2026-01-31T12:00:00Z), how long ago (10m, 2h30m), or the number of a transaction".into()),
        }
    }
}

impl At {
    /// As the node driver reads it.
    #[must_use]
    pub fn attribute(self, now: Timestamp) -> String {
        match self {
            Self::Transaction(number) => number.to_string(),
            Self::Time(time) => time.to_string(),
            Self::Ago(ago) => (now - ago).to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_are_read_as_people_write_them() {
        let now: Timestamp = "2026-01-31T12:00:00Z".parse().unwrap();
        for (text, attribute) in [
            ("17", "17"),
            ("2026-01-31T13:00:00+02:00", "2026-01-31T11:00:00Z"),
            ("10m", "2026-01-31T11:50:00Z"),
            ("2h30m", "2026-01-31T09:30:00Z"),
            ("36h", "2026-01-30T00:00:00Z"),
        ] {
            assert_eq!(text.parse::<At>().unwrap().attribute(now), attribute, "{text}");
        }
        for text in ["", "soon", "-10m", "0s", "2026-01-31T12:00:00", "2026-01-31"] {
            assert!(text.parse::<At>().unwrap_err().contains("how long ago"), "{text}");
        }
    }
}
