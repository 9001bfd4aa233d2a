//! Changes of the stores that a volume's journal is in, while its environment runs.

use std::collections::BTreeMap;

use vivarium_ownership::change::{Change as Steps, Step};

use super::{NODES, STORES, Who, World};
use crate::mutation::Mutation;
use crate::servers::{Answer, Entry, Objects, Place, Request, Where, Why};

/// A change that a driver is at.
#[derive(Clone)]
pub struct Change {
    pub steps: Steps,
    epoch: u64,
    target: Place,
    /// What was acknowledged since it was begun.
    backlog: BTreeMap<u64, Entry>,
    /// How many stores of the target have what is being put there.
    stored: usize,
    asked: bool,
    ticks: u64,
}

impl Change {
    fn new(head: u64, epoch: u64) -> Self {
        let target = Place::default();
        Self { steps: Steps::new(head), epoch, target, backlog: BTreeMap::new(), stored: 0, asked: false, ticks: 0 }
    }

    pub fn committed(&mut self, number: u64, entry: Entry) {
        self.backlog.insert(number, entry);
        self.steps.committed(number);
    }
}

/// A log that may have become the deciding one.
#[derive(Clone)]
pub struct Doubt {
    place: Place,
    epoch: u64,
}

impl Doubt {
    pub fn is_about(&self, place: &Place) -> bool {
        self.place == *place
    }
}

impl World {
    /// Begins what is wanted, and goes on with what was begun.
    pub(super) fn change(&mut self, node: usize) {
        for volume in 0..self.volumes {
            let running = self.runs(node, volume);
            let ignored = self.mutated(Mutation::DoubtIgnored);
            let machine = &mut self.nodes[node];
            let Some(driver) = &mut machine.driver else { return };
            let Some(disk) = machine.disks.get_mut(&volume) else { continue };
            let wanted = driver.seen.as_ref().map(|seen| &seen.places[volume].wanted);
            let guest = machine.guests.get(&volume).filter(|guest| !guest.dead);
            match driver.changes.get_mut(&volume) {
                Some(change) => {
                    change.ticks += 1;
                    if guest.is_none() && disk.doubt.is_none() {
                        driver.changes.remove(&volume);
                        continue;
                    }
                    self.drive_change(node, volume);
                }
                // Another process was at it.
                None if disk.doubt.is_some() && !driver.mounts.contains_key(&volume) => {
                    if ignored {
                        disk.doubt = None;
                    } else {
                        self.send(Who::Node(node), Request::Objects(Why::Change(volume)));
                    }
                }
                None => {
                    if let Some(guest) = guest.filter(|_| running)
                        && wanted.is_some_and(|wanted| *wanted != disk.place.set)
                    {
                        driver.changes.insert(volume, Change::new(disk.head.0, guest.epoch));
                        self.drive_change(node, volume);
                    }
                }
            }
        }
    }

    fn drive_change(&mut self, node: usize, volume: usize) {
        let now = self.mutation;
        let machine = &mut self.nodes[node];
        let (Some(driver), Some(disk)) = (&mut machine.driver, machine.disks.get_mut(&volume)) else { return };
        let Some(change) = driver.changes.get_mut(&volume).filter(|change| !change.asked) else { return };
        let (target, under_way) = (change.target.clone(), disk.attempts.first().copied());
        let log = target.log;
        let store = target.set.get(change.stored).copied().unwrap_or_default();
        let request = match change.steps.step() {
            Step::Claim => Request::Objects(Why::Change(volume)),
            Step::Seed => {
                // A store that does not answer keeps nobody from leaving it.
                let pending = under_way.filter(|_| change.ticks > 4).map(|attempt| (attempt.number, attempt.entry));
                let newest = change.backlog.last_key_value().map(|(number, entry)| (*number, *entry));
                let Some((number, entry)) = newest.or(pending) else { return };
                if change.stored == 0 {
                    change.backlog.retain(|other, _| *other >= number);
                    change.backlog.insert(number, entry);
                }
                let (number, entry) = change.backlog.first_key_value().map_or((number, entry), |(n, e)| (*n, *e));
                Request::Seed { store, volume, log, number, entry }
            }
            Step::Copy { number } => {
                let pending = under_way.filter(|attempt| attempt.number == number).map(|attempt| attempt.entry);
                let Some(entry) = change.backlog.get(&number).copied().or(pending) else { return };
                if now == Some(Mutation::SwitchBehind) {
                    change.steps.copied(number);
                    return self.drive_change(node, volume);
                }
                Request::Append { store, volume, log, number, entry }
            }
            Step::Hold => {
                let pending = under_way.filter(|_| now != Some(Mutation::SwitchUnsettled));
                change.steps.hold(pending.map(|attempt| attempt.number));
                return self.drive_change(node, volume);
            }
            Step::Bind => {
                let Some(guest) = machine.guests.get(&volume) else { return };
                let pairs = guest.binds.iter().flat_map(|store| target.set.iter().map(move |other| (*store, *other)));
                let pairs: Vec<_> = pairs.collect();
                let free = now == Some(Mutation::SwitchUnbound);
                for (store, other) in pairs.iter().filter(|_| !free) {
                    machine.also.insert((*store, *other));
                    driver.authority.also(STORES[*store], STORES[*other]);
                }
                let bound = |(store, other): &(usize, usize)| driver.authority.is_bound(STORES[*store], STORES[*other]);
                if free || pairs.iter().all(bound) {
                    change.steps.bound();
                    return self.drive_change(node, volume);
                }
                return;
            }
            Step::Switch => {
                disk.doubt = Some(Doubt { place: target, epoch: change.epoch });
                Request::Objects(Why::Change(volume))
            }
            Step::Done | Step::Lost => {
                driver.changes.remove(&volume);
                return;
            }
        };
        change.asked = true;
        self.send(Who::Node(node), request);
    }

    /// Whether it was an answer to a transaction that was put into the next log.
    pub(super) fn copy_answered(
        &mut self,
        node: usize,
        volume: usize,
        (store, log): (usize, u32),
        number: u64,
        taken: Option<bool>,
    ) -> bool {
        let change = self.nodes[node].driver.as_mut().and_then(|driver| driver.changes.get_mut(&volume));
        let Some(change) = change.filter(|change| change.target.log == log && log > 0) else { return false };
        change.asked = false;
        if change.target.set.get(change.stored) == Some(&store) && taken == Some(false) {
            change.stored += 1;
        }
        if change.stored == change.target.set.len() {
            change.stored = 0;
            change.steps.seeded(number);
            change.steps.copied(number);
        }
        self.drive_change(node, volume);
        true
    }

    /// The volume's object, asked for a change.
    pub(super) fn change_read(&mut self, node: usize, volume: usize, objects: Option<&Objects>) {
        let blind = self.mutated(Mutation::SwitchBlind);
        let machine = &mut self.nodes[node];
        let session = machine.session.clone().unwrap_or_default();
        let (Some(driver), Some(disk)) = (&mut machine.driver, machine.disks.get_mut(&volume)) else { return };
        let change = driver.changes.get_mut(&volume);
        let epoch = change.as_ref().map(|change| change.epoch).or(disk.doubt.as_ref().map(|doubt| doubt.epoch));
        let (Some(epoch), Some(objects)) = (epoch, objects) else {
            if let Some(change) = change {
                change.asked = false;
            }
            return;
        };
        let ((version, object), places) = (&objects.volumes[volume], &objects.places[volume]);
        let holder = object.holder.as_ref().is_some_and(|(on, under)| on == NODES[node] && *under == session);
        let holds = holder && object.epoch == epoch && object.released < epoch;
        let (version, places) = (Some(*version).filter(|_| !blind), places.clone());
        if !holds {
            driver.changes.remove(&volume);
            // Whatever was asked for before cannot come to pass any more, since the object has changed. But it may have come
            // to pass before that, and no barrier of the next holder is in the log that was left then: nothing is added to it.
            if disk.doubt.take().is_some() {
                disk.attempts.clear();
                disk.head = (0, 0, 0);
                let leaving = machine.leaving.get_mut(&volume).filter(|leaving| leaving.epoch == epoch);
                if let Some(leaving) = leaving {
                    leaving.committed = true;
                }
                self.release(node);
            }
            return;
        }
        let to = match change {
            None => match &disk.doubt {
                Some(doubt) if doubt.is_about(&places.now) => return self.adopt(node, volume, places.now),
                // What was asked for may still come to pass, and nothing speaks against it: the next log has everything.
                Some(doubt) if places.next.as_ref() == Some(&doubt.place) => {
                    Where { now: doubt.place.clone(), next: None, ..places }
                }
                // It was begun anew, so that it cannot.
                Some(_) => {
                    disk.doubt = None;
                    return;
                }
                None => return,
            },
            Some(change) if change.steps.step() == Step::Claim => {
                let next = Some(Place { set: places.wanted.clone(), log: places.logs + 1 });
                Where { next, logs: places.logs + 1, ..places }
            }
            // An answer to what was asked before.
            Some(change) if change.steps.step() != Step::Switch => return,
            Some(change) if places.now == change.target => {
                change.steps.switched();
                return self.adopt(node, volume, places.now);
            }
            Some(change) if places.next.as_ref() != Some(&change.target) && !blind => {
                // It was begun anew.
                disk.doubt = None;
                driver.changes.remove(&volume);
                return;
            }
            Some(change) => Where { now: change.target.clone(), next: None, ..places },
        };
        self.send(Who::Node(node), Request::Place { volume, version, to });
    }

    pub(super) fn place_answered(&mut self, node: usize, volume: usize, to: &Where, answer: Option<&Answer>) {
        let done = matches!(answer, Some(Answer::Done));
        let machine = &mut self.nodes[node];
        let (Some(driver), Some(disk)) = (&mut machine.driver, machine.disks.get_mut(&volume)) else { return };
        match (driver.changes.get_mut(&volume), &to.next) {
            // What a former process asked for is none of this one's answers.
            (Some(change), next) if next.is_some() || to.now == change.target => {
                change.asked = false;
                match (done, next) {
                    (true, Some(next)) if change.steps.step() == Step::Claim => {
                        change.target = next.clone();
                        change.steps.claimed(next.log);
                    }
                    (true, None) if to.now == change.target && change.steps.step() == Step::Switch => {
                        change.steps.switched();
                        return self.adopt(node, volume, to.now.clone());
                    }
                    _ => {}
                }
                self.drive_change(node, volume);
            }
            (None, None) if done && disk.doubt.as_ref().is_some_and(|doubt| doubt.is_about(&to.now)) => {
                self.adopt(node, volume, to.now.clone());
            }
            _ => {}
        }
    }

    /// Another log decides from now on. What is under way is in it, and found there.
    fn adopt(&mut self, node: usize, volume: usize, place: Place) {
        let machine = &mut self.nodes[node];
        let (Some(driver), Some(disk)) = (&mut machine.driver, machine.disks.get_mut(&volume)) else { return };
        (disk.place, disk.doubt) = (place, None);
        disk.attempts.iter_mut().for_each(|attempt| attempt.stored = 0);
        driver.changes.remove(&volume);
        driver.committing.retain(|(of, _)| *of != volume);
        self.commit(node);
    }
}
