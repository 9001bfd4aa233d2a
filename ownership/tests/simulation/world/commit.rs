//! The commits of a node: what may or may not be in the store, and what follows from the answers.

use super::node::Attempt;
use super::{Who, World};
use crate::mutation::Mutation;
use crate::servers::{Entry, Request};

/// The stores of a set in the order in which each transaction comes to them.
pub(super) fn in_turn(set: &[usize], mutation: Option<Mutation>) -> impl Iterator<Item = usize> {
    let (count, reversed) = (set.len(), mutation == Some(Mutation::AnyOrder));
    (0..count).map(move |turn| set[if reversed { count - 1 - turn } else { turn }])
}

impl World {
    /// Rule 13: what may or may not be in the store is sent again, also for who stands still; then what has changed.
    pub(super) fn commit(&mut self, node: usize) {
        let (larger, pipelined) = (self.mutated(Mutation::LargerRetry), self.mutated(Mutation::Pipelined));
        let mut sends = Vec::new();
        for volume in 0..self.volumes {
            let running = self.runs(node, volume);
            let fresh = self.chance.any();
            let machine = &mut self.nodes[node];
            let Some(driver) = &mut machine.driver else { return };
            let last = machine.leaving.get(&volume);
            let epoch = match (machine.guests.get(&volume), last) {
                (_, Some(leaving)) => leaving.epoch,
                (Some(guest), None) if !guest.dead => guest.epoch,
                _ => continue,
            };
            let disk = machine.disks.entry(volume).or_default();
            let doubtful = disk.doubt.is_some() && self.mutation != Some(Mutation::DoubtIgnored);
            let holds = driver.changes.get(&volume).is_some_and(|change| change.steps.holds());
            if doubtful || holds {
                continue;
            }
            let most = if pipelined { 3 } else { 1 };
            if disk.attempts.len() < most && (running || last.is_some_and(|last| !last.committed)) {
                let number = disk.head.0 + 1 + disk.attempts.len() as u64;
                disk.attempts.push(Attempt {
                    number,
                    entry: Entry { epoch, barrier: false, content: fresh },
                    stored: 0,
                });
            }
            for attempt in &mut disk.attempts {
                if driver.committing.insert((volume, attempt.number)) {
                    if larger && running && !attempt.entry.barrier {
                        attempt.entry.content = fresh;
                    }
                    let (number, entry, log) = (attempt.number, attempt.entry, disk.place.log);
                    // The first store decides who has a number; the others have nothing that it does not have.
                    let turn = in_turn(&disk.place.set, self.mutation).nth(attempt.stored);
                    sends.extend(turn.map(|store| Request::Append { store, volume, log, number, entry }));
                }
            }
        }
        for request in sends {
            self.send(Who::Node(node), request);
        }
    }

    pub(super) fn commit_answered(
        &mut self,
        node: usize,
        volume: usize,
        (store, log): (usize, u32),
        number: u64,
        entry: Entry,
        taken: Option<bool>,
    ) {
        let larger = self.mutated(Mutation::LargerRetry);
        let found = self.stores[store].logs.get(&(volume, log)).and_then(|log| log.entries.get(&number));
        let own = larger && found.is_some_and(|found| found.entry.epoch == entry.epoch);
        let machine = &mut self.nodes[node];
        if let Some(driver) = &mut machine.driver {
            driver.committing.remove(&(volume, number));
        }
        let Some(disk) = machine.disks.get_mut(&volume) else { return };
        if log != disk.place.log || !disk.attempts.iter().any(|attempt| attempt.number == number) {
            return;
        }
        match taken {
            None => return,
            Some(true) if !own => {
                // Somebody else has the volume. What is here and nowhere else is of no use any more.
                disk.attempts.clear();
                disk.head = (0, 0, 0);
                let there = machine.guests.get_mut(&volume).filter(|guest| guest.epoch == entry.epoch && !guest.dead);
                let holds = there.is_some();
                if let Some(guest) = there {
                    guest.dead = true;
                    self.disturbed += 1;
                }
                if let Some(leaving) = machine.leaving.get_mut(&volume) {
                    leaving.committed = true;
                }
                if holds {
                    self.taken(volume, number, entry);
                }
                return;
            }
            Some(_) => {}
        }
        let all = if self.mutation == Some(Mutation::FirstAlone) { 1 } else { disk.place.set.len() };
        let attempt = disk.attempts.iter_mut().find(|attempt| attempt.number == number);
        if let Some(attempt) = attempt {
            let turn = in_turn(&disk.place.set, self.mutation).position(|of| of == store).unwrap_or_default();
            attempt.stored = attempt.stored.max(turn + 1);
            if attempt.stored < all {
                // The next store's turn, at once.
                return self.commit(node);
            }
        }
        disk.attempts.retain(|attempt| attempt.number != number);
        disk.head = disk.head.max((number, entry.epoch, entry.content));
        let done = disk.attempts.is_empty();
        if let Some(change) = machine.driver.as_mut().and_then(|driver| driver.changes.get_mut(&volume)) {
            change.committed(number, entry);
        }
        if let Some(leaving) = machine.leaving.get_mut(&volume).filter(|_| done) {
            leaving.committed = true;
        }
        if !entry.barrier {
            self.acknowledged(volume, number, entry);
        }
    }
}
