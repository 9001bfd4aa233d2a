//! The index of the instants that can be shown.

use std::collections::{BTreeMap, BTreeSet};

use vivarium_api::view::{EpochStart, History, TRANSACTIONS, TransactionEntry, VERSION};
use vivarium_store::{Key, Listed};

use crate::ids::VolumeId;
use crate::journal::JournalError;
use crate::journal::inventory::Inventory;
use crate::journal::log::Log;

/// Reads what there is. `known` is a transaction that was in the log for certain.
///
/// # Errors
/// The store does not answer, or a transaction is damaged.
pub async fn history(log: &Log, volume: &VolumeId, known: u64) -> Result<History, JournalError> {
    let newest = log.tail(known).await?;
    let boundary = log.boundary().await?.sequence;
    let listed = log.list_all().await?;
    let mut history = index(&listed, volume, boundary, newest.sequence);
    if newest.sequence > 0 {
        let mut numbers: BTreeSet<u64> = listed
            .iter()
            .filter_map(|entry| match entry.key {
                Key::Transaction { seq, .. } => Some(seq),
                _ => None,
            })
            .filter(|number| (history.oldest..=newest.sequence).contains(number))
            .collect();
        numbers.extend([history.oldest, newest.sequence]);
        history.epochs = epochs(log, &numbers.into_iter().collect::<Vec<_>>()).await?;
    }
    Ok(history)
}

/// What the listing says. It may lack what was added last.
fn index(listed: &[Listed], volume: &VolumeId, boundary: u64, newest: u64) -> History {
    let oldest = boundary.max(1);
    let states = Inventory::of(listed).states(boundary);
    let can_be_shown = |sequence: &u64| (oldest..=newest).contains(sequence) && states.contains(sequence);
    let mut transactions = BTreeMap::new();
    for entry in listed {
        let (sequence, is_single) = match entry.key {
            Key::Transaction { seq, .. } => (seq, true),
            Key::Merged { to, .. } => (to, false),
            _ => continue,
        };
        let time = jiff::Timestamp::try_from(entry.modified).unwrap_or_default();
        let told = TransactionEntry { sequence, time, size: entry.size };
        if can_be_shown(&sequence) && (is_single || !transactions.contains_key(&sequence)) {
            transactions.insert(sequence, told);
        }
    }
    let mut transactions: Vec<TransactionEntry> = transactions.into_values().collect();
    let omitted = transactions.len().saturating_sub(TRANSACTIONS);
    let transactions = transactions.split_off(omitted);
    let volume = volume.to_string();
    History { version: VERSION, volume, oldest, newest, epochs: Vec::new(), transactions, omitted: omitted as u64 }
}

/// Where incarnations begin, of transactions that are there by themselves: each begins with a barrier, and barriers stay.
/// Epochs only grow along the log, so halves that begin and end with the same one are not looked into.
async fn epochs(log: &Log, numbers: &[u64]) -> Result<Vec<EpochStart>, JournalError> {
    let (Some(oldest), Some(newest)) = (numbers.first(), numbers.last()) else { return Ok(Vec::new()) };
    let first = log.must_be(*oldest).await?.epoch;
    let last = log.must_be(*newest).await?.epoch;
    let mut starts = vec![EpochStart { epoch: first, sequence: *oldest }];
    // Ranges of which the first transaction's epoch is known to be told, the leftmost last.
    let mut open = vec![(0, first, numbers.len() - 1, last)];
    while let Some((from, first, to, last)) = open.pop() {
        if first == last {
            continue;
        }
        if from + 1 == to {
            starts.push(EpochStart { epoch: last, sequence: numbers[to] });
            continue;
        }
        let middle = from + (to - from) / 2;
        let epoch = log.must_be(numbers[middle]).await?.epoch;
        open.push((middle, epoch, to, last));
        open.push((from, first, middle, epoch));
    }
    Ok(starts)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, SystemTime};

    use vivarium_journal::touched::Touched;
    use vivarium_journal::write::Writer;
    use vivarium_journal::{Digest, Header, Kind};
    use vivarium_store::{Name, Store};

    use super::*;

    fn volume() -> VolumeId {
        VolumeId::parse("v").unwrap()
    }

    #[test]
    fn the_index_holds_what_can_be_shown_and_the_newest_of_that() {
        let name = Name::new("v").unwrap();
        let entry = |key| Listed { key, size: 5, modified: SystemTime::UNIX_EPOCH + Duration::from_secs(9) };
        let all = TRANSACTIONS as u64 + 10;
        let mut listed: Vec<Listed> =
            (1..=all).map(|seq| entry(Key::Transaction { volume: name.clone(), seq })).collect();
        listed.push(entry(Key::Checkpoint { volume: name.clone(), seq: 7 }));
        listed.reverse();
        let history = index(&listed, &volume(), 4, all - 1);
        assert_eq!((history.oldest, history.newest, history.omitted), (4, all - 1, 6));
        let numbers: Vec<u64> = history.transactions.iter().map(|entry| entry.sequence).collect();
        assert_eq!(numbers, (10..all).collect::<Vec<_>>());
        assert_eq!((history.transactions[0].size, history.transactions[0].time.as_second()), (5, 9));
        // A barrier and a milestone that stay of what was merged cannot be shown.
        let merged = |from, to| entry(Key::Merged { volume: name.clone(), from, to });
        let mut listed = vec![merged(1, 64), merged(65, 128)];
        listed.extend([1, 30, 128, 129].map(|seq| entry(Key::Transaction { volume: name.clone(), seq })));
        let history = index(&listed, &volume(), 0, 129);
        let numbers: Vec<u64> = history.transactions.iter().map(|entry| entry.sequence).collect();
        assert_eq!(numbers, [1, 64, 128, 129]);
    }

    #[tokio::test]
    async fn the_beginnings_of_incarnations_are_found() {
        for all in [&[1][..], &[1, 1, 1], &[1, 2], &[1, 1, 2, 2, 2, 5, 6, 6, 6, 6, 9], &[3, 4, 5, 6, 7]] {
            let log = Log::new(&volume(), Arc::new(Store::memory("test"))).unwrap();
            let mut expected: Vec<EpochStart> = Vec::new();
            for (sequence, epoch) in (1..).zip(all.iter().copied()) {
                if expected.last().is_none_or(|last| last.epoch < epoch) {
                    expected.push(EpochStart { epoch, sequence });
                }
                let file = tempfile::NamedTempFile::new().unwrap();
                let header = Header {
                    kind: Kind::Barrier,
                    volume: "v".into(),
                    writer: [0; 16],
                    epoch,
                    first: sequence,
                    sequence,
                    parent: Digest::EMPTY,
                    time: 0,
                    layers: vec![],
                };
                let writer = Writer::new(file.as_file(), &header).unwrap();
                let (_, summary) = writer.finish(&Touched::default().changes()).unwrap();
                log.append(sequence, file.path(), summary.length, summary.content).await.unwrap();
            }
            let found = history(&log, &volume(), 0).await.unwrap();
            assert_eq!(found.epochs, expected, "{all:?}");
            assert_eq!((found.transactions.len(), found.newest), (all.len(), all.len() as u64));
            // All but the barriers that an incarnation begins with, and the end, was merged.
            for sequence in (1..all.len() as u64).filter(|n| !expected.iter().any(|start| start.sequence == *n)) {
                log.delete(&Key::Transaction { volume: log.name().clone(), seq: sequence }).await.unwrap();
            }
            let found = history(&log, &volume(), 0).await.unwrap();
            assert_eq!(found.epochs, expected, "{all:?} once it is merged");
        }
    }
}
