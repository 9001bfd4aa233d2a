//! What happens to volumes and pods on a node: mounts, starts, stops and releases.

use std::rc::Rc;

use vivarium_ownership::holder::{Standing, Volume, standing};
use vivarium_ownership::mount::{Mount, Step};

use super::commit::in_turn;
use super::node::{Guest, Leaving, Mounting};
use super::{Event, MS, NODES, STORES, Who, World};
use crate::mutation::Mutation;
use crate::servers::{Answer, Entry, Objects, Pod, Request, Why};

impl World {
    /// What a watch or a list says of volumes and pods; what is older than what was seen before is left out, as far as this
    /// process knows.
    pub(super) fn saw_objects(&mut self, node: usize, objects: Rc<Objects>) {
        let Some(driver) = self.nodes[node].driver.as_mut().filter(|driver| !driver.ending) else { return };
        if driver.seen.as_ref().is_none_or(|seen| seen.clock < objects.clock) {
            driver.seen = Some(objects);
            self.work(node);
        }
    }

    /// Whether a node may mount a volume for a pod, and which epoch it takes it for.
    fn stands(&self, node: usize, volume: &Volume, pod: &Pod) -> (Standing, u64) {
        let session = self.nodes[node].session.as_deref().unwrap_or_default();
        let holder = volume.holder.as_ref();
        if self.mutated(Mutation::PodNotBound)
            && holder.is_some_and(|(on, under)| on == NODES[node] && under == session)
        {
            return (Standing::Holds, volume.epoch);
        }
        let session = match holder {
            Some((_, under)) if self.mutated(Mutation::NoSession) => under,
            _ => session,
        };
        let released = if self.mutated(Mutation::RestartAfterRelease) { 0 } else { volume.released };
        let volume = Volume { released, ..volume.clone() };
        let epoch = if self.mutated(Mutation::EpochNotRaised) { volume.epoch } else { pod.epoch };
        (standing(&volume, NODES[node], session, epoch, &pod.uid), epoch)
    }

    /// Looks at the pods of the node, and does what they need.
    pub(super) fn work(&mut self, node: usize) {
        let Some(seen) = self.nodes[node].driver.as_ref().and_then(|driver| driver.seen.clone()) else { return };
        self.stop(node, &seen);
        let restarts = self.mutated(Mutation::RestartAfterRelease);
        let mut begins = Vec::new();
        for pod in seen.pods.iter().filter(|pod| pod.node == Some(node)) {
            let volume = pod.volume;
            let machine = &self.nodes[node];
            let guest = machine.guests.get(&volume).filter(|guest| guest.uid == pod.uid);
            let mounting = machine.driver.as_ref().and_then(|driver| driver.mounts.get(&volume));
            if let Some(guest) = guest {
                let ended = guest.dead;
                if !pod.started || (ended && !pod.ended) {
                    self.send(Who::Node(node), Request::Report { uid: pod.uid.clone(), ended });
                }
                continue;
            }
            let busy = machine.leaving.contains_key(&volume) || machine.guests.contains_key(&volume);
            if pod.doomed && !restarts && !busy && mounting.is_none() {
                self.send(Who::Node(node), Request::RemovePod { uid: pod.uid.clone() });
                continue;
            }
            if busy || mounting.is_some() || (pod.ended && !restarts) || (machine.begun.contains(&pod.uid) && !restarts)
            {
                continue;
            }
            let (standing, epoch) = self.stands(node, &seen.volumes[volume].1, pod);
            if standing == Standing::Holds {
                begins.push((volume, pod.uid.clone(), epoch, seen.places[volume].now.clone()));
            }
        }
        let anywhere = self.mutated(Mutation::AttemptAnywhere);
        for (volume, uid, epoch, place) in begins {
            let machine = &mut self.nodes[node];
            if let Some(driver) = &mut machine.driver {
                let disk = machine.disks.entry(volume).or_default();
                let moved = disk.doubt.take().is_some_and(|doubt| doubt.is_about(&place));
                if disk.place.log != place.log && !moved && !anywhere {
                    // What is here is of a log that was left.
                    disk.attempts.clear();
                    disk.head = (0, 0, 0);
                }
                disk.attempts.iter_mut().for_each(|attempt| attempt.stored = 0);
                disk.place = place.clone();
                driver.changes.remove(&volume);
                let mount = Mount::of_set(epoch, place.set.len() - 1);
                driver.mounts.insert(volume, Mounting { uid, mount, place });
                driver.committing.retain(|(of, _)| *of != volume);
                self.drive(node, volume);
            }
        }
        self.release(node);
    }

    /// Stops what is to be deleted or is not there any more, and takes mounts back that were begun for it.
    fn stop(&mut self, node: usize, seen: &Objects) {
        let machine = &mut self.nodes[node];
        let Some(driver) = &mut machine.driver else { return };
        let wanted = |uid: &str| seen.pod(uid).is_some_and(|pod| !pod.doomed);
        for volume in 0..self.volumes {
            if let Some(guest) = machine.guests.get(&volume)
                && seen.clock > guest.clock
                && !wanted(&guest.uid)
            {
                let (uid, epoch) = (guest.uid.clone(), guest.epoch);
                let committed = guest.dead && machine.disks.get(&volume).is_none_or(|disk| disk.attempts.is_empty());
                machine.guests.remove(&volume);
                machine.leaving.insert(volume, Leaving { uid, epoch, committed });
            }
            if let Some(Mounting { uid, mount, .. }) = driver.mounts.get(&volume)
                && !wanted(uid)
                && !machine.leaving.contains_key(&volume)
            {
                let (uid, epoch) = (uid.clone(), mount.epoch());
                driver.mounts.remove(&volume);
                machine.leaving.insert(volume, Leaving { uid, epoch, committed: true });
            }
        }
    }

    /// Rule 14: what is stopped and committed to the end is released, however often it takes.
    pub(super) fn release(&mut self, node: usize) {
        let machine = &mut self.nodes[node];
        let Some(driver) = &mut machine.driver else { return };
        let done = machine.leaving.iter().filter(|(_, leaving)| leaving.committed);
        let volumes: Vec<usize> = done.map(|(volume, _)| *volume).filter(|v| driver.releasing.insert(*v)).collect();
        for volume in volumes {
            self.send(Who::Node(node), Request::Objects(Why::Release(volume)));
        }
    }

    fn left(&mut self, node: usize, volume: usize) {
        if let Some(leaving) = self.nodes[node].leaving.remove(&volume) {
            self.send(Who::Node(node), Request::RemovePod { uid: leaving.uid });
        }
        if self.mutated(Mutation::RestartAfterRelease) {
            self.work(node);
        }
    }

    pub(super) fn release_answered(&mut self, node: usize, volume: usize, answer: Option<&Answer>) {
        if let Some(driver) = &mut self.nodes[node].driver {
            driver.releasing.remove(&volume);
        }
        match answer {
            Some(Answer::Done) => self.left(node, volume),
            _ => self.release(node),
        }
    }

    pub(super) fn objects_answered(&mut self, node: usize, why: Why, objects: Option<Rc<Objects>>) {
        match (why, objects) {
            (Why::List, Some(objects)) => self.saw_objects(node, objects),
            (Why::List, None) | (Why::Change(_), _) => {}
            (Why::Reread(volume), objects) => {
                let mounting = self.nodes[node].driver.as_ref().and_then(|driver| driver.mounts.get(&volume));
                let Some(Mounting { uid, mount, .. }) = mounting.cloned() else { return };
                let ours = objects.as_ref().is_some_and(|objects| {
                    // The pod itself may be gone: the volume counts.
                    let pod = Pod {
                        uid,
                        volume,
                        epoch: mount.epoch(),
                        node: Some(node),
                        pin: None,
                        shun: Vec::new(),
                        doomed: false,
                        started: false,
                        ended: false,
                    };
                    self.stands(node, &objects.volumes[volume].1, &pod).0 == Standing::Holds
                });
                self.mount(node, volume, |mount| mount.still_ours(ours));
            }
            (Why::Release(volume), None) => {
                if let Some(driver) = &mut self.nodes[node].driver {
                    driver.releasing.remove(&volume);
                }
            }
            (Why::Release(volume), Some(objects)) => {
                let (version, found) = &objects.volumes[volume];
                let Some(leaving) = self.nodes[node].leaving.get(&volume) else { return };
                if found.epoch != leaving.epoch || found.released >= leaving.epoch {
                    self.release_answered(node, volume, Some(&Answer::Done));
                } else {
                    let to = Volume { released: leaving.epoch, ..found.clone() };
                    let version = (!self.mutated(Mutation::NoCompareAndSwap)).then_some(*version);
                    self.send(Who::Node(node), Request::Write { volume, version, to });
                }
            }
        }
    }

    /// Goes on with a mount that was waiting until what this node has sent before is known.
    pub(super) fn drive_settled(&mut self, node: usize, volume: usize) {
        let machine = &self.nodes[node];
        let Some(driver) = &machine.driver else { return };
        let next = machine.disks.get(&volume).and_then(|disk| disk.attempts.first());
        let settled = next.is_none_or(|attempt| !driver.committing.contains(&(volume, attempt.number)));
        if settled && driver.mounts.get(&volume).is_some_and(|mounting| mounting.mount.step() == Step::ReadTail) {
            self.drive(node, volume);
        }
    }

    fn mount(&mut self, node: usize, volume: usize, change: impl FnOnce(&mut Mount)) {
        let driver = self.nodes[node].driver.as_mut();
        if let Some(mounting) = driver.and_then(|driver| driver.mounts.get_mut(&volume)) {
            change(&mut mounting.mount);
            self.drive(node, volume);
        }
    }

    /// Carries out the next step of a mount.
    fn drive(&mut self, node: usize, volume: usize) {
        let machine = &mut self.nodes[node];
        let Some(driver) = &mut machine.driver else { return };
        let Some(Mounting { uid, mount, place }) = driver.mounts.get(&volume) else { return };
        let (uid, epoch, log, store) = (uid.clone(), mount.epoch(), place.log, place.set[0]);
        let disk = machine.disks.entry(volume).or_default();
        let request = match mount.step() {
            Step::ReadTail => match disk.attempts.first() {
                Some(attempt) => {
                    driver.committing.insert((volume, attempt.number));
                    let turn = in_turn(&place.set, self.mutation).nth(attempt.stored);
                    let (store, number, entry) = (turn.unwrap_or(store), attempt.number, attempt.entry);
                    Request::Append { store, volume, log, number, entry }
                }
                None => Request::Tail { store, volume, log },
            },
            Step::CreateBarrier { number } => {
                let entry = Entry { epoch, barrier: true, content: self.chance.any() };
                Request::Append { store, volume, log, number, entry }
            }
            Step::Mend { other, to } => {
                if self.mutation == Some(Mutation::NotMended) {
                    return self.mount(node, volume, |mount| mount.mended(other, to));
                }
                let entries = self.stores[store].logs.get(&(volume, log));
                let entries = entries.into_iter().flat_map(|log| log.entries.range(..=to));
                let entries = entries.map(|(number, stored)| (*number, stored.entry)).collect();
                Request::Mend { store: place.set[1 + other], volume, log, entries }
            }
            Step::AskAgain => Request::Objects(Why::Reread(volume)),
            Step::Restore { .. } => {
                let generation = machine.generation;
                let after =
                    if self.quick { self.chance.between(0, 5 * MS) } else { self.chance.between(200 * MS, 2500 * MS) };
                return self.later(after, Event::GuestUp { node, generation, volume, uid });
            }
            Step::Superseded { .. } | Step::Lost => return drop(driver.mounts.remove(&volume)),
        };
        self.send(Who::Node(node), request);
    }

    pub(super) fn tail_answered(&mut self, node: usize, volume: usize, answer: Option<&Answer>) {
        let (no_barrier, stale) = (self.mutated(Mutation::NoBarrier), self.mutated(Mutation::StaleStart));
        let unchecked = stale || self.mutated(Mutation::TailUnchecked);
        let head = self.nodes[node].disks.get(&volume).map(|disk| disk.head);
        match answer {
            Some(Answer::Tail(number, epoch, content)) => {
                let here = head == Some((*number, *epoch, *content));
                self.mount(node, volume, |mount| {
                    let epoch = if unchecked { (*epoch).min(mount.epoch()) } else { *epoch };
                    mount.saw_tail(*number, epoch, here);
                    if no_barrier && let Step::CreateBarrier { number } = mount.step() {
                        mount.created(number, true);
                    }
                });
            }
            // The kubelet comes again.
            _ => self.give_up(node, volume),
        }
    }

    /// A store has what the first one has, up to a number; `None`: it is not known.
    pub(super) fn mend_answered(&mut self, node: usize, volume: usize, (store, log): (usize, u32), to: Option<u64>) {
        let mounting = self.nodes[node].driver.as_ref().and_then(|driver| driver.mounts.get(&volume));
        let Some(mounting) = mounting.filter(|mounting| mounting.place.log == log) else { return };
        match (mounting.place.set.iter().skip(1).position(|other| *other == store), to) {
            (Some(other), Some(to)) => self.mount(node, volume, |mount| mount.mended(other, to)),
            _ => self.give_up(node, volume),
        }
    }

    fn give_up(&mut self, node: usize, volume: usize) {
        if let Some(driver) = &mut self.nodes[node].driver {
            driver.mounts.remove(&volume);
        }
    }

    /// Whether it was an answer to a barrier.
    pub(super) fn barrier_answered(
        &mut self,
        node: usize,
        volume: usize,
        number: u64,
        entry: Entry,
        taken: Option<bool>,
    ) -> bool {
        if !entry.barrier {
            return false;
        }
        let skips = self.mutated(Mutation::NoReread) || self.mutated(Mutation::StaleStart);
        match taken {
            Some(taken) => self.mount(node, volume, |mount| {
                mount.created(number, !taken);
                if skips {
                    mount.still_ours(true);
                }
            }),
            None => self.give_up(node, volume),
        }
        true
    }

    pub(super) fn guest_up(&mut self, node: usize, volume: usize, uid: &str) {
        let now = self.local(node);
        let (no_barrier, stale) = (self.mutated(Mutation::NoBarrier), self.mutated(Mutation::StaleStart));
        let machine = &mut self.nodes[node];
        let Some(driver) = machine.driver.as_mut().filter(|driver| !driver.ending) else { return };
        let Some(mounting) = driver.mounts.get(&volume).filter(|mounting| mounting.uid == uid) else { return };
        let (epoch, Step::Restore { to }) = (mounting.mount.epoch(), mounting.mount.step()) else { return };
        let place = mounting.place.clone();
        driver.mounts.remove(&volume);
        if !place.set.iter().all(|store| driver.authority.may_start(STORES[*store], now)) && !stale {
            return;
        }
        let log = self.stores[place.set[0]].logs.get(&(volume, place.log));
        let last = log.and_then(|log| log.entries.last_key_value()).map_or(0, |(number, _)| *number);
        let to = if no_barrier { to - u64::from(last < to) } else { to };
        let content = log.and_then(|log| log.entries.get(&to));
        let head = content.map_or((to, epoch, 0), |stored| (to, stored.entry.epoch, stored.entry.content));
        let machine = &mut self.nodes[node];
        let clock = machine.driver.as_ref().and_then(|driver| driver.seen.as_ref()).map_or(0, |seen| seen.clock);
        machine.begun.insert(uid.to_owned());
        machine.disks.entry(volume).or_default().head = head;
        let guest = Guest {
            uid: uid.to_owned(),
            epoch,
            session: machine.session.clone().unwrap_or_default(),
            boot: machine.boot,
            binds: place.set.clone(),
            clock,
            dead: false,
            orphan: false,
        };
        machine.guests.insert(volume, guest);
        self.send(Who::Node(node), Request::Report { uid: uid.to_owned(), ended: false });
        self.started(volume, epoch, to, &place);
    }
}
