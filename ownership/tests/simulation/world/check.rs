//! What must hold, and what nobody in the world knows but whoever checks it.

use std::collections::BTreeMap;

use super::World;
use crate::servers::{Entry, Log, Place};

/// What must hold, as in the description of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invariant {
    I1,
    I2,
    I3,
    I4,
    I5,
    I6,
    /// Whoever rightly holds a volume keeps it.
    Holder,
    /// What falls silent with many others and is heard again in time is not ended.
    Storm,
}

/// What went wrong: which invariant, and how.
#[derive(Clone, Debug)]
pub struct Violation {
    pub invariant: Invariant,
    pub what: String,
}

/// What really happened to a volume.
#[derive(Clone, Default)]
pub struct Ghost {
    /// What was acknowledged, by number.
    acknowledged: BTreeMap<u64, Entry>,
    /// Incarnations that were started: epoch, and the number that they were restored to.
    started: Vec<(u64, u64)>,
}

impl World {
    /// In a world in which a rule is broken, only what that rule is for counts: it is not found by accident.
    pub fn wrong(&mut self, invariant: Invariant, what: String) {
        if self.mutation.is_none_or(|mutation| mutation.violates().contains(&invariant)) {
            self.violation.get_or_insert(Violation { invariant, what });
        }
    }

    /// I1, and whether anybody was disturbed.
    pub(super) fn check(&mut self) {
        for volume in 0..self.volumes {
            let mut running = 0;
            for node in 0..self.nodes.len() {
                let there = self.nodes[node].guests.get(&volume).is_some_and(|guest| !guest.dead);
                let runs = there && self.runs(node, volume);
                running += u32::from(runs);
                self.disturbed += u64::from(there && !runs && self.nodes[node].on);
            }
            if running > 1 {
                self.wrong(Invariant::I1, format!("volume {volume} runs {running} times"));
            }
        }
    }

    /// What decides about a volume.
    fn log(&self, volume: usize) -> Option<&Log> {
        let place = self.place(volume);
        self.stores[*place.set.first()?].logs.get(&(volume, place.log))
    }

    /// The same in each store of the set; none: nothing was written there yet.
    fn logs(&self, volume: usize) -> impl Iterator<Item = Option<&Log>> {
        let place = self.place(volume);
        place.set.iter().map(move |store| self.stores[*store].logs.get(&(volume, place.log)))
    }

    /// I2, for an incarnation that starts from the log up to a number: whatever was acknowledged to anybody is in it. So one
    /// that starts late, after a later one has committed, is found too.
    pub(super) fn started(&mut self, volume: usize, epoch: u64, to: u64, from: &Place) {
        let mut wrong = None;
        if self.mutation.is_none() && self.place(volume) != from && self.api.objects.volumes[volume].1.epoch == epoch {
            wrong = Some(format!("epoch {epoch} of volume {volume} starts from a log that does not decide"));
        }
        for log in self.logs(volume).flatten() {
            for (number, entry) in &self.ghost[volume].acknowledged {
                let stored = log.entries.get(number).map(|stored| stored.entry);
                let there = if stored.is_none() { *number < log.boundary } else { stored == Some(*entry) };
                if *number > to || !there {
                    wrong = Some(format!(
                        "epoch {epoch} of volume {volume} starts from {to} without {number} of epoch {}",
                        entry.epoch
                    ));
                    break;
                }
            }
        }
        if let Some(what) = wrong {
            self.wrong(Invariant::I2, what);
        }
        for store in &from.set {
            let Some(log) = self.stores[*store].logs.get_mut(&(volume, from.log)) else { continue };
            // What was deleted is in the checkpoint.
            for (_, stored) in log.entries.range_mut(..=to).chain(log.deleted.range_mut(..=to)) {
                stored.restored = stored.restored.max(epoch);
            }
        }
        self.ghost[volume].started.push((epoch, to));
    }

    /// A transaction is acknowledged: it is what is stored, and no later incarnation has begun without it.
    pub(super) fn acknowledged(&mut self, volume: usize, number: u64, entry: Entry) {
        let stored = self.log(volume).and_then(|log| log.entries.get(&number)).copied();
        let lacks = |log: Option<&Log>| match log.and_then(|log| log.entries.get(&number)) {
            // Each of them leads there without the others.
            Some(stored) => {
                let before = number.saturating_sub(1);
                let gap = log.is_some_and(|log| before >= log.boundary && !log.entries.contains_key(&before));
                stored.entry != entry || (gap && before > 0)
            }
            None => number >= log.map_or(0, |log| log.boundary),
        };
        let mut wrong = None;
        if self.logs(volume).any(lacks) {
            wrong =
                Some((Invariant::I2, format!("transaction {number} of volume {volume} is not what was acknowledged")));
        }
        for (epoch, to) in &self.ghost[volume].started {
            let later = *epoch > entry.epoch;
            let after = number >= *to;
            let without = stored.is_some_and(|stored| stored.restored < *epoch || stored.entry != entry);
            if later && (after || without) {
                let what = format!("{number} of epoch {} is acknowledged after epoch {epoch} began", entry.epoch);
                wrong = Some((Invariant::I3, what));
            }
        }
        if let Some((invariant, what)) = wrong {
            self.wrong(invariant, what);
        }
        self.ghost[volume].acknowledged.insert(number, entry);
    }

    /// A checkpoint holds everything before the boundary.
    pub(super) fn checkpoint(&mut self, volume: usize) {
        let Some(log) = self.log(volume) else { return };
        let known = |number: &u64| log.entries.get(number).map(|stored| stored.entry);
        let missing = self.ghost[volume]
            .acknowledged
            .iter()
            .find(|(number, entry)| **number >= log.boundary && known(number).is_some_and(|known| known != **entry));
        if let Some((number, _)) = missing {
            let what = format!("a checkpoint of volume {volume} is made without {number}");
            self.wrong(Invariant::I2, what);
        }
    }

    /// A store of a set has something else under a number than the first one.
    pub(super) fn differs(&mut self, volume: usize) {
        self.wrong(Invariant::Holder, format!("the stores of volume {volume} do not hold the same"));
    }

    /// Whoever holds a volume finds its number taken: only a later epoch may do that.
    pub(super) fn taken(&mut self, volume: usize, number: u64, entry: Entry) {
        let found = self.log(volume).and_then(|log| log.entries.get(&number)).map(|stored| stored.entry);
        let last = self.log(volume).and_then(|log| log.entries.last_key_value()).map(|(_, stored)| stored.entry);
        if found.is_none_or(|found| found.epoch <= entry.epoch) && last.is_none_or(|last| last.epoch <= entry.epoch) {
            let what = format!("epoch {} of volume {volume}, which has it, finds {number} taken", entry.epoch);
            self.wrong(Invariant::Holder, what);
        }
    }
}
