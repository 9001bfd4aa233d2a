//! What lies in the store of a journal, and what follows from that: which transactions to merge, when to make a checkpoint,
//! how far to collect, and what is superfluous. Pure.
//!
//! What can be restored becomes coarser with age ([`Policy::fine`], [`Policy::coarse`]). So a store holds of a journal a bounded number of
//! objects, however often it is written to: those of the last hour, and of each level of merged transactions about a
//! thousand.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use vivarium_store::{Key, Listed, Name};

use super::pieces::{LEVELS, MILESTONE, Piece, cover};

/// Largest merged transaction: it is one object, and whoever merges holds it on its disk.
pub(super) const LARGEST: u64 = 16 << 20;
/// Most objects that are merged into one at a time: those of a level below.
const MOST: usize = 64;
/// What a restore reads of a checkpoint in the time that a small object takes.
const PER_OBJECT: u64 = 128 << 10;

/// When a journal is shortened, and by how much.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// A checkpoint is made when so much was added since the last one: whichever of this and half the last checkpoint is
    /// more, so that checkpoints are at most twice what is written.
    pub bytes: u64,
    /// Or when a restore would read so many objects after it, and more after a large checkpoint.
    pub transactions: u64,
    /// Instants that are younger than this can be restored.
    pub retention: Duration,
    /// Every transaction that is younger can be restored.
    pub fine: Duration,
    /// Of what is older, states that are apart by one part in so many of their age: of an hour ago to the minute, of a week
    /// ago to three hours.
    pub coarse: u32,
    /// Most objects that one collection deletes, so that it does not take the store from others.
    pub deletions: usize,
    /// Most merged transactions that are made at a time.
    pub merges: usize,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            bytes: 16 << 20,
            transactions: 1000,
            retention: Duration::from_hours(7 * 24),
            fine: Duration::from_hours(1),
            coarse: 60,
            deletions: 2000,
            merges: 32,
        }
    }
}

/// An object of the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Bytes of it; of one that is split, those of its list of parts, unless [`Inventory::checkpoint_holds`] said otherwise.
    pub size: u64,
    /// When it was made.
    pub time: SystemTime,
}

/// Whether an object has a size that a list of parts has (`docs/src/formats/store.md`).
pub(super) fn may_be_split(size: u64) -> bool {
    size >= 176 && (size - 104).is_multiple_of(36)
}

/// What lies in the store of a journal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    pub(super) transactions: BTreeMap<u64, Entry>,
    pub(super) merged: BTreeMap<Piece, Entry>,
    pub(super) checkpoints: BTreeMap<u64, Entry>,
    /// Parts of split objects.
    parts: BTreeMap<Key, Entry>,
    /// Bytes of all other objects.
    others: u64,
}

/// What is to be done about a journal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// A checkpoint is due.
    pub checkpoint: bool,
    /// Transactions and checkpoints before this one are not needed any more.
    pub boundary: Option<u64>,
}

/// An object that nobody needs any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doomed {
    /// It is from before the boundary. A barrier may be among them.
    Old(Object),
    /// A merged transaction does what it does, and states between are old enough to go. A barrier may be among them.
    Merged(Object, Piece),
}

/// Which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Object {
    Transaction(u64),
    Merged(Piece),
    Checkpoint(u64),
}

impl Object {
    /// Its name in the store.
    pub fn key(self, volume: &Name) -> Key {
        let volume = volume.clone();
        match self {
            Self::Transaction(seq) => Key::Transaction { volume, seq },
            Self::Merged(Piece { first, last }) => Key::Merged { volume, from: first, to: last },
            Self::Checkpoint(seq) => Key::Checkpoint { volume, seq },
        }
    }
}

impl Inventory {
    /// Takes stock of what was listed.
    #[must_use]
    pub fn of(listed: &[Listed]) -> Self {
        let mut all = Self::default();
        for entry in listed {
            all.add(entry);
        }
        all
    }

    /// Adds an object.
    pub(super) fn add(&mut self, listed: &Listed) {
        let entry = Entry { size: listed.size, time: listed.modified };
        match listed.key {
            Key::Transaction { seq, .. } => {
                self.transactions.insert(seq, entry);
            }
            Key::Merged { from, to, .. } if from < to => {
                self.merged.insert(Piece { first: from, last: to }, entry);
            }
            Key::Checkpoint { seq, .. } => {
                self.checkpoints.insert(seq, entry);
            }
            Key::Part { .. } => {
                self.parts.insert(listed.key.clone(), entry);
            }
            _ => self.others += entry.size,
        }
    }

    /// Takes one out.
    pub(super) fn remove(&mut self, object: Object) {
        match object {
            Object::Transaction(sequence) => self.transactions.remove(&sequence),
            Object::Merged(piece) => self.merged.remove(&piece),
            Object::Checkpoint(sequence) => self.checkpoints.remove(&sequence),
        };
    }

    /// Takes a part out.
    pub(super) fn remove_part(&mut self, part: &Key) {
        self.parts.remove(part);
    }

    /// Bytes of all objects.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let maps = self.transactions.values().chain(self.merged.values()).chain(self.checkpoints.values());
        maps.chain(self.parts.values()).map(|entry| entry.size).sum::<u64>() + self.others
    }

    /// The newest checkpoint; 0: there is none.
    #[must_use]
    pub fn newest_checkpoint(&self) -> u64 {
        self.checkpoints.last_key_value().map_or(0, |(number, _)| *number)
    }

    /// The newest transaction; 0: there is none.
    pub(super) fn head(&self) -> u64 {
        self.transactions.last_key_value().map_or(0, |(number, _)| *number)
    }

    fn pieces(&self) -> BTreeSet<Piece> {
        self.merged.keys().copied().collect()
    }

    pub(super) fn entry(&self, object: Object) -> Option<Entry> {
        match object {
            Object::Transaction(sequence) => self.transactions.get(&sequence).copied(),
            Object::Merged(piece) => self.merged.get(&piece).copied(),
            Object::Checkpoint(sequence) => self.checkpoints.get(&sequence).copied(),
        }
    }

    /// When the state after a piece was.
    pub(super) fn time(&self, piece: Piece) -> Option<SystemTime> {
        let entry = if piece.is_single() { self.transactions.get(&piece.first) } else { self.merged.get(&piece) };
        entry.map(|entry| entry.time)
    }

    fn size(&self, piece: Piece) -> Option<u64> {
        let entry = if piece.is_single() { self.transactions.get(&piece.first) } else { self.merged.get(&piece) };
        entry.map(|entry| entry.size)
    }

    /// The states that can be restored, going on from that after `from`, by the transactions that they are after.
    #[must_use]
    pub fn states(&self, from: u64) -> BTreeSet<u64> {
        let singles = self.transactions.keys().map(|number| Piece::single(*number));
        let mut pieces: Vec<Piece> = singles.chain(self.merged.keys().copied()).collect();
        pieces.sort_unstable_by_key(|piece| piece.last);
        let mut states = BTreeSet::from([from]);
        for piece in pieces {
            // A barrier stays where what led to it is gone.
            if states.contains(&(piece.first - 1)) {
                states.insert(piece.last);
            }
        }
        states
    }

    /// Whether everything is there that leads from the state after `from` to that after `to`.
    pub(super) fn leads(&self, from: u64, to: u64) -> bool {
        cover(&self.pieces(), from, to).iter().all(|piece| self.size(*piece).is_some())
    }

    /// Decides. `stays` are states that stay whatever their age; `held` is how many bytes the newest checkpoint holds, if it
    /// is known better than from its size.
    #[must_use]
    pub fn plan(&self, policy: &Policy, stays: &BTreeSet<u64>, held: Option<u64>, now: SystemTime) -> Plan {
        let newest = self.checkpoints.last_key_value();
        let since = cover(&self.pieces(), self.newest_checkpoint(), self.head());
        let sizes: u64 = since.iter().filter_map(|piece| self.size(*piece)).sum();
        // Those that are younger than the checkpoint are of transactions after it.
        let is_after = |part: &&Entry| newest.is_none_or(|(_, checkpoint)| part.time > checkpoint.time);
        let parts: u64 = self.parts.values().filter(is_after).map(|part| part.size).sum();
        let half = newest.map_or(0, |(_, checkpoint)| held.unwrap_or(checkpoint.size) / 2);
        let is_old = |entry: &Entry| now.duration_since(entry.time).is_ok_and(|age| age >= policy.retention);
        let leads_to_all = |number: &u64| stays.first().is_none_or(|first| number <= first);
        let old = self.checkpoints.iter().rev().find(|(number, entry)| is_old(entry) && leads_to_all(number));
        Plan {
            checkpoint: since.len() as u64 >= policy.transactions.max(half / PER_OBJECT)
                || sizes + parts >= policy.bytes.max(half),
            boundary: old.map(|(number, _)| *number),
        }
    }

    /// What can be merged, each with the pieces that become one: the shortest first, of each length the newest first.
    pub(super) fn merges(&self, boundary: u64) -> Vec<(Piece, Vec<Piece>)> {
        let (merged, head) = (self.pieces(), self.head());
        let mut found = Vec::new();
        for level in LEVELS {
            let missing: Vec<_> =
                Piece::of_level(level, boundary, head).filter(|piece| !merged.contains(piece)).collect();
            for piece in missing.into_iter().rev() {
                let parts = cover(&merged, piece.first - 1, piece.last);
                let sizes: Option<Vec<u64>> = parts.iter().map(|part| self.size(*part)).collect();
                if parts.len() <= MOST && sizes.is_some_and(|sizes| sizes.iter().sum::<u64>() <= LARGEST) {
                    found.push((piece, parts));
                }
            }
        }
        found
    }

    /// What nobody needs any more: what is from before the boundary, and what is in a merged transaction and old enough.
    ///
    /// Of what is in merged ones there stays: what leads to a state of `stays`; what leads on from a checkpoint; the
    /// transaction that a checkpoint is of; each milestone, and everything from the newest one on, since whoever looks for the
    /// end of the log goes along these.
    pub(super) fn superfluous(
        &self,
        policy: &Policy,
        stays: &BTreeSet<u64>,
        boundary: u64,
        now: SystemTime,
    ) -> Vec<Doomed> {
        let transactions = self.transactions.range(..boundary).map(|(number, _)| Object::Transaction(*number));
        let checkpoints = self.checkpoints.range(..boundary).map(|(number, _)| Object::Checkpoint(*number));
        let merged = self.merged.keys().filter(|piece| piece.first <= boundary).map(|piece| Object::Merged(*piece));
        let mut doomed: Vec<_> = transactions.chain(checkpoints).chain(merged).map(Doomed::Old).collect();
        let milestone = self.transactions.keys().rev().find(|number| number.is_multiple_of(MILESTONE)).copied();
        let mut seen = BTreeSet::new();
        let passes_over = |piece: &Piece| stays.range(piece.first..piece.last).next().is_some();
        for whole in self.merged.keys().filter(|piece| piece.first > boundary && !passes_over(piece)) {
            let singles =
                self.transactions.range(whole.first..=whole.last).map(|(n, entry)| (Piece::single(*n), entry));
            let within = Piece { first: whole.first, last: 0 }..=Piece { first: whole.last, last: u64::MAX };
            let wholes = self.merged.range(within).map(|(piece, entry)| (*piece, entry));
            let inside: Vec<_> = singles.chain(wholes.filter(|(piece, _)| whole.contains(*piece))).collect();
            // The time of a state is that of the oldest object that leads to it.
            let mut times = BTreeMap::<u64, SystemTime>::new();
            for (piece, entry) in &inside {
                times.entry(piece.last).and_modify(|time| *time = (*time).min(entry.time)).or_insert(entry.time);
            }
            let (Some((_, first)), Some((_, last))) = (times.first_key_value(), times.last_key_value()) else {
                continue;
            };
            let span = last.duration_since(*first).unwrap_or_default();
            let checkpoint = self.checkpoints.range(whole.first..whole.last).next().map(|(number, _)| *number);
            for (piece, entry) in &inside {
                let age = now.duration_since(entry.time).unwrap_or_default();
                let leads_on = checkpoint.is_some_and(|checkpoint| piece.last > checkpoint);
                let marks = piece.is_single()
                    && (piece.first.is_multiple_of(MILESTONE)
                        || milestone.is_none_or(|milestone| piece.first > milestone)
                        || self.checkpoints.contains_key(&piece.first));
                if age >= policy.fine
                    && span.saturating_mul(policy.coarse) <= age
                    && !leads_on
                    && !marks
                    && seen.insert(*piece)
                {
                    let object =
                        if piece.is_single() { Object::Transaction(piece.first) } else { Object::Merged(*piece) };
                    doomed.push(Doomed::Merged(object, *whole));
                }
            }
        }
        doomed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_hours(24);
    const NONE: BTreeSet<u64> = BTreeSet::new();

    fn listed(now: SystemTime, transactions: &[(u64, u64)], checkpoints: &[(u64, u64, u32)]) -> Vec<Listed> {
        let volume = Name::new("v").unwrap();
        let mut all: Vec<_> = transactions
            .iter()
            .map(|(seq, size)| Listed {
                key: Key::Transaction { volume: volume.clone(), seq: *seq },
                size: *size,
                modified: now,
            })
            .collect();
        all.extend(checkpoints.iter().map(|(seq, size, days)| Listed {
            key: Key::Checkpoint { volume: volume.clone(), seq: *seq },
            size: *size,
            modified: now - DAY * *days,
        }));
        all
    }

    #[test]
    fn a_checkpoint_is_due_by_count_or_by_what_was_written() {
        let policy = Policy { bytes: 100, transactions: 5, ..Policy::default() };
        let now = SystemTime::now();
        for (transactions, checkpoints, due) in [
            (&[(1, 10)][..], &[][..], false),
            (&[(1, 99)], &[], false),
            (&[(1, 60), (2, 40)], &[], true),
            (&[(1, 1), (2, 1), (3, 1), (4, 1), (5, 1)], &[], true),
            (&[(1, 60), (2, 40)], &[(1, 10, 0)], false),
            (&[(1, 60), (2, 140)], &[(1, 10, 0)], true),
            (&[(1, 60), (2, 140)], &[(1, 300, 0)], false),
            (&[(1, 60), (2, 150)], &[(1, 300, 0)], true),
        ] {
            let plan = Inventory::of(&listed(now, transactions, checkpoints)).plan(&policy, &NONE, None, now);
            assert_eq!(plan.checkpoint, due, "{transactions:?} {checkpoints:?}");
        }
    }

    #[test]
    fn what_is_younger_than_the_retention_stays() {
        let (policy, now) = (Policy::default(), SystemTime::now());
        for (checkpoints, boundary) in [
            (&[][..], None),
            (&[(5, 1, 6)][..], None),
            (&[(5, 1, 7)], Some(5)),
            (&[(5, 1, 9), (8, 1, 7), (11, 1, 6)], Some(8)),
        ] {
            let all = listed(now, &[(4, 1), (5, 1), (8, 1), (9, 1)], checkpoints);
            let all = Inventory::of(&all);
            assert_eq!(all.plan(&policy, &NONE, None, now).boundary, boundary, "{checkpoints:?}");
            let kept = all.plan(&policy, &[7, 9].into(), None, now).boundary;
            assert_eq!(kept, boundary.map(|_| 5), "{checkpoints:?}: somebody waits for 7");
        }
        let all = listed(now, &[(4, 1), (8, 1), (9, 1)], &[(5, 1, 9), (8, 1, 7), (11, 1, 6)]);
        let below = Inventory::of(&all).superfluous(&policy, &NONE, 8, now);
        assert_eq!(below, [Object::Transaction(4), Object::Checkpoint(5)].map(Doomed::Old));
    }

    /// One that was written to all the time, merged as far as it can be.
    fn busy(now: SystemTime, count: u64, every: Duration) -> Inventory {
        let volume = Name::new("v").unwrap();
        let ago = |number: u64| now - every * u32::try_from(count - number).unwrap();
        let mut all = Inventory::default();
        for seq in 1..=count {
            let key = Key::Transaction { volume: volume.clone(), seq };
            all.add(&Listed { key, size: 300, modified: ago(seq) });
        }
        loop {
            let possible = all.merges(0);
            if possible.is_empty() {
                return all;
            }
            for (piece, _) in possible {
                let key = Key::Merged { volume: volume.clone(), from: piece.first, to: piece.last };
                all.add(&Listed { key, size: 300, modified: ago(piece.last) });
            }
        }
    }

    #[test]
    fn a_journal_has_few_objects_however_often_it_is_written_to() {
        let (policy, now) = (Policy::default(), SystemTime::now());
        for (count, every, most) in [(100_000, 1, 7000), (20_000, 20, 6000), (3000, 300, 3100)] {
            let every = Duration::from_secs(every);
            let mut all = busy(now, count, every);
            for doomed in all.superfluous(&policy, &NONE, 0, now) {
                let Doomed::Merged(object, whole) = doomed else { panic!("{doomed:?} is not before the boundary") };
                assert!(all.merged.contains_key(&whole));
                all.remove(object);
            }
            let left = all.transactions.len() + all.merged.len();
            assert!(left < most, "{left} objects of {count}");
            assert!(all.leads(0, count), "what is left does not lead to the end");
            let young = count.saturating_sub(3600 / every.as_secs());
            assert!(
                (young + 1..=count).all(|number| all.transactions.contains_key(&number)),
                "something young is gone"
            );
            // How far apart states are that can be restored.
            let states: Vec<u64> = all.states(0).into_iter().filter(|state| *state > 0).collect();
            for pair in states.windows(2) {
                let (apart, age) = (every * (pair[1] - pair[0]) as u32, every * (count - pair[0]) as u32);
                assert!(apart <= age / 60 + every, "{apart:?} at the age of {age:?}");
            }
        }
    }

    #[test]
    fn a_state_that_somebody_waits_for_stays_however_old_it_is() {
        let (policy, now) = (Policy { coarse: 1, ..Policy::default() }, SystemTime::now());
        let full = busy(now, 40_000, Duration::from_secs(1));
        let after = |stays: &BTreeSet<u64>| {
            let mut all = full.clone();
            for doomed in all.superfluous(&policy, stays, 0, now) {
                let Doomed::Merged(object, _) = doomed else { panic!("{doomed:?} is not before the boundary") };
                all.remove(object);
            }
            all
        };
        let bare = after(&NONE);
        // Within merged ones of all levels, and where some of them end.
        for state in [1, 16, 70, 256, 700, 4095, 4096, 5000, 20_001] {
            let kept = after(&[state].into());
            assert!(kept.states(0).contains(&state) && kept.leads(0, state), "{state} is gone");
            assert!(kept.leads(0, 40_000), "what is left does not lead to the end");
            let more = kept.transactions.len() + kept.merged.len() - bare.transactions.len() - bare.merged.len();
            assert!(more < 4_400, "{more} objects stay for {state}");
        }
        assert!(!bare.states(0).contains(&700), "it would have stayed anyway");
    }

    #[test]
    fn merged_transactions_count_as_one_and_parts_as_what_they_hold() {
        let now = SystemTime::now();
        let all = busy(now, 262, Duration::from_secs(1));
        let policy = Policy { transactions: 7, ..Policy::default() };
        assert!(all.plan(&policy, &NONE, None, now).checkpoint, "one and six");
        assert!(!all.plan(&Policy { transactions: 8, ..policy }, &NONE, None, now).checkpoint);
        // A transaction in parts.
        let part = |number, modified| {
            let (volume, writer) = (Name::new("v").unwrap(), Name::new("w").unwrap());
            Listed { key: Key::Part { volume, writer, number }, size: 16 << 20, modified }
        };
        let policy = Policy { bytes: 40 << 20, ..Policy::default() };
        let mut large = listed(now, &[(6, 212)], &[(5, 140, 1)]);
        let before = now - DAY - Duration::from_secs(1);
        large.extend([part(0, before), part(1, before), part(2, now), part(3, now)]);
        assert!(!Inventory::of(&large).plan(&policy, &NONE, None, now).checkpoint, "32 MiB after the checkpoint");
        large.push(part(4, now));
        assert!(Inventory::of(&large).plan(&policy, &NONE, None, now).checkpoint, "48 MiB after it");
        let held = Some(200 << 20);
        assert!(!Inventory::of(&large).plan(&policy, &NONE, held, now).checkpoint, "less than half of what it holds");
        let many: Vec<(u64, u64)> = (6..1006).map(|number| (number, 300)).collect();
        let many = Inventory::of(&listed(now, &many, &[(5, 140, 1)]));
        assert!(many.plan(&Policy::default(), &NONE, None, now).checkpoint, "a thousand");
        assert!(
            !many.plan(&Policy::default(), &NONE, Some(10 << 30), now).checkpoint,
            "a large one is not made that often"
        );
    }
}
