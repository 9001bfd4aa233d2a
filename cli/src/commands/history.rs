//! `kubectl ve history`.

use std::fmt::Write as _;
use std::io::{Read, Write};

use vivarium_api::view::{HISTORY_FILE, History};
use vivarium_cli::quote;

use crate::kubectl::Kubectl;
use crate::reader::{Reader, Show, root};
use crate::{Error, Reading};

/// Shows the instants that there are.
pub fn run(kubectl: &Kubectl, name: &str, limit: usize, json: bool, reading: &Reading) -> Result<(), Error> {
    let reader = Reader::start(kubectl, name, &[Show::History], reading)?;
    let printed = reader.read(["cat", &root(0), HISTORY_FILE], |mut out| {
        let mut bytes = Vec::new();
        out.read_to_end(&mut bytes).map_err(Error::io("read the history"))?;
        Ok(bytes)
    })?;
    let mut out = std::io::stdout().lock();
    let text = if json {
        String::from_utf8_lossy(&printed).into_owned() + "\n"
    } else {
        let history =
            serde_json::from_slice(&printed).map_err(|error| Error::NotUnderstood("the node driver", error))?;
        table(name, &history, limit)
    };
    out.write_all(text.as_bytes()).map_err(Error::io("print"))
}

/// The newest transactions, the newest first.
fn table(name: &str, history: &History, limit: usize) -> String {
    let mut text = String::new();
    let all = &history.transactions;
    let Some(newest) = all.last() else {
        return format!("Nothing of {name} was committed yet.\n");
    };
    let mut line = |transaction: &str, time: &str, size: &str, note: &str| {
        let row = format!("{transaction:>12}  {time:<20}  {size:>10}  {note}");
        let _ = writeln!(text, "{}", row.trim_end());
    };
    line("TRANSACTION", "COMMITTED", "SIZE", "INCARNATION");
    let shown = all.len().saturating_sub(limit);
    for entry in all[shown..].iter().rev() {
        let epoch = history.epochs.iter().rev().find(|start| start.sequence <= entry.sequence);
        let note = epoch.map_or(String::new(), |start| {
            let begins = if start.sequence == entry.sequence { " begins" } else { "" };
            format!("{}{begins}", start.epoch)
        });
        // Whole seconds, rounded up: what is asked for by the time that is shown has this transaction in it.
        let time = ceil(entry.time).to_string();
        line(&entry.sequence.to_string(), &time, &quote::bytes(entry.size), &note);
    }
    let older = shown as u64 + history.omitted;
    let _ = writeln!(
        text,
        "\n{} transactions, {} back to {}. Each can be given as --at, and so can any time in between.",
        all.len() as u64 + history.omitted,
        if older > 0 { format!("{older} more than shown") } else { "all shown".into() },
        if history.omitted == 0 { ceil(all[0].time).to_string() } else { format!("transaction {}", history.oldest) },
    );
    if history.newest > newest.sequence {
        let _ = writeln!(text, "The newest is {}.", history.newest);
    }
    text
}

fn ceil(time: jiff::Timestamp) -> jiff::Timestamp {
    jiff::Timestamp::from_second(time.as_second() + i64::from(time.subsec_nanosecond() > 0)).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use vivarium_api::view::{EpochStart, TransactionEntry, VERSION};

    use super::*;

    fn history(count: u64, omitted: u64) -> History {
        let entry = |sequence: u64| TransactionEntry {
            sequence,
            time: jiff::Timestamp::from_nanosecond(i128::from(sequence) * 1_500_000_000).unwrap(),
            size: sequence * 1000,
        };
        History {
            version: VERSION,
            volume: "v".into(),
            oldest: 1,
            newest: count,
            epochs: vec![EpochStart { epoch: 1, sequence: 1 }, EpochStart { epoch: 3, sequence: 3 }],
            transactions: (1 + omitted..=count).map(entry).collect(),
            omitted,
        }
    }

    #[test]
    fn the_newest_come_first_and_incarnations_are_told() {
        let text = table("shop", &history(4, 0), 3);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], "           4  1970-01-01T00:00:06Z     3.9 KiB  3");
        assert_eq!(lines[2], "           3  1970-01-01T00:00:05Z     2.9 KiB  3 begins");
        assert_eq!(lines[3], "           2  1970-01-01T00:00:03Z     2.0 KiB  1");
        assert_eq!(lines[4], "");
        assert!(lines[5].starts_with("4 transactions, 1 more than shown back to 1970-01-01T00:00:02Z."), "{text}");
    }

    #[test]
    fn what_is_not_listed_is_counted() {
        let text = table("shop", &history(10, 4), 100);
        assert!(text.contains("10 transactions, 4 more than shown back to transaction 1."), "{text}");
        assert_eq!(table("shop", &history(0, 0), 5), "Nothing of shop was committed yet.\n");
    }
}
