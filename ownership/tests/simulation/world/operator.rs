//! A replica of the operator: it watches nodes, ends sessions, and, as the leader does, makes pods and gives volumes. There
//! is no election here: every replica does everything at any time.

use std::collections::BTreeMap;
use std::time::Duration;

use vivarium_ownership::Instant;
use vivarium_ownership::book::{Book, Deaths, Holder, Holdings, Task};
use vivarium_ownership::holder::{Bidder, Claim, Tenure, Volume, claim, tenure};
use vivarium_ownership::node::Lease;

use super::{Event, MS, NODES, STORES, Who, World, node_number};
use crate::mutation::Mutation;
use crate::servers::{Answer, Leases, Objects, Place, Pod, Request, Where, Why};

#[derive(Clone)]
pub struct Operator {
    pub generation: u64,
    pub rate: i64,
    pub links: [bool; 3],
    pub paused: u64,
    pub book: Book<u64>,
    /// Something may have to be done for an environment.
    pub unsettled: bool,
    looking: bool,
    looked: u64,
    /// What was asked, and when: nothing is asked all the time.
    asking: Vec<(Task, u64)>,
    listing: bool,
    deaths: Deaths<u64>,
    first_closed: BTreeMap<String, Instant>,
}

impl Operator {
    pub fn new(rate: i64, book: Book<u64>) -> Self {
        Self {
            generation: 0,
            rate,
            links: [true; 3],
            paused: 0,
            book,
            unsettled: true,
            looking: false,
            looked: 0,
            asking: Vec::new(),
            listing: false,
            deaths: Deaths::new(),
            first_closed: BTreeMap::new(),
        }
    }
}

fn holder(name: &str, session: &str) -> Holder {
    Holder { node: name.into(), session: Some(session.into()) }
}

impl World {
    pub(super) fn start_operator(&mut self, operator: usize) {
        let it = &mut self.operators[operator];
        let (generation, links, paused) = (it.generation, it.links, it.paused);
        *it = Operator { generation, links, paused, ..Operator::new(it.rate, Book::new(self.timing)) };
        self.later(0, Event::Tick(Who::Operator(operator), generation));
    }

    pub(super) fn fence_by_hand(&mut self, operator: usize, node: usize) {
        let wall = self.now;
        self.operators[operator].book.end(NODES[node], wall);
        self.attend(operator);
    }

    pub(super) fn tick_operator(&mut self, operator: usize) {
        if !self.operators[operator].listing {
            self.operators[operator].listing = true;
            self.send(Who::Operator(operator), Request::Leases);
        }
        self.attend(operator);
        let it = &mut self.operators[operator];
        it.unsettled |= self.now - it.looked > 5000 * MS;
        if it.unsettled && !it.looking {
            (it.looking, it.unsettled, it.looked) = (true, false, self.now);
            self.send(Who::Operator(operator), Request::Objects(Why::List));
        }
    }

    /// Carries out what the book says.
    fn attend(&mut self, operator: usize) {
        let (now, wall) = (self.of_operator(operator), self.now);
        self.operators[operator].asking.retain(|(_, at)| wall - at < 500 * MS);
        let tasks = self.operators[operator].book.next(now, wall);
        let mut deaths = self.operators[operator].book.deaths();
        for death in deaths.values_mut() {
            let one = death.over.values().find_map(|over| *over);
            let all = death.over.values().all(Option::is_some);
            match self.mutation {
                Some(Mutation::OneStoreForAll) => death.over = STORES.map(|store| (store.to_owned(), one)).into(),
                Some(Mutation::AllStoresFirst) if !all => death.over.values_mut().for_each(|over| *over = None),
                _ => {}
            }
        }
        if deaths != self.operators[operator].deaths {
            self.operators[operator].deaths = deaths;
            self.operators[operator].unsettled = true;
        }
        for task in tasks {
            if self.operators[operator].asking.iter().any(|(asking, _)| *asking == task) {
                continue;
            }
            let requests = self.requests(operator, &task, now);
            self.operators[operator].asking.push((task.clone(), self.now));
            for request in requests {
                self.send_for(Who::Operator(operator), request, Some(task.clone()));
            }
        }
    }

    fn requests(&mut self, operator: usize, task: &Task, now: Instant) -> Vec<Request> {
        let book = &mut self.operators[operator].book;
        let index = |store: &str| usize::from(store == "b");
        match (task, self.mutation) {
            (Task::CreateFence { session, store }, Some(Mutation::StoreOpen)) => {
                book.fenced(session, store, now);
                Vec::new()
            }
            (Task::CloseLease { session, .. }, Some(Mutation::LeaseOpen)) => {
                book.closed(session, Duration::from_secs(4), now);
                Vec::new()
            }
            (Task::CreateFence { session, store }, mutation) => {
                let mut requests = vec![Request::CreateFence { store: index(store), session: session.clone() }];
                if mutation == Some(Mutation::LeaseFirst) {
                    let machine = session.split('.').nth(1).and_then(|machine| machine[1..].parse().ok());
                    let node = machine.unwrap_or_default();
                    requests.insert(0, Request::CloseLease { node, session: session.clone() });
                }
                requests
            }
            (Task::CloseLease { session, node }, _) => {
                vec![Request::CloseLease { node: node_number(node), session: session.clone() }]
            }
            (Task::FindHolders, _) => vec![Request::Objects(Why::List)],
            (Task::LookForBeats { node, session }, _) => (0..self.stores_in_use())
                .map(|store| Request::NewestBeat { store, node: node_number(node), session: session.clone() })
                .collect(),
        }
    }

    pub(super) fn answer_to_operator(
        &mut self,
        operator: usize,
        request: &Request,
        answer: Option<Answer>,
        task: Option<&Task>,
    ) {
        let now = self.of_operator(operator);
        let (timing, mutation) = (self.timing, self.mutation);
        let it = &mut self.operators[operator];
        match (request, answer) {
            (Request::Leases, answer) => {
                it.listing = false;
                if let Some(Answer::Leases(leases)) = answer {
                    let leases = leases.iter().map(|(node, (version, lease))| {
                        let mut lease = lease.clone();
                        if mutation == Some(Mutation::AnnouncementIgnored) {
                            lease.duration = timing.lease;
                        }
                        (NODES[*node].to_owned(), version.to_string(), lease)
                    });
                    // In a world without a brake there are many more nodes, which all live.
                    let extras = if mutation == Some(Mutation::NoStormBrake) { 20 } else { 0 };
                    let extras = (0..extras).map(|extra| {
                        let session = format!("x.x{extra}.b");
                        let lease = Lease { session, duration: timing.lease, fenced: false, renewed: 0 };
                        (format!("x{extra}"), now.0.to_string(), lease)
                    });
                    it.book.saw_leases(leases.chain(extras), now);
                }
            }
            (Request::Objects(_), Some(Answer::Objects(objects, _))) if task.is_some() => {
                let mut all = Holdings::new();
                for (volume, (_, object)) in objects.volumes.iter().enumerate() {
                    let who = match (&object.holder, &object.node) {
                        (Some((node, session)), _) => holder(node, session),
                        (None, Some(node)) if object.released < object.epoch => {
                            Holder { node: node.clone(), session: None }
                        }
                        _ => continue,
                    };
                    let set = objects.places[volume].now.set.iter();
                    all.entry(who).or_default().extend(set.map(|store| STORES[*store].to_owned()));
                }
                it.book.holds(&all, now);
            }
            (Request::Objects(_), answer) if task.is_none() => {
                it.looking = false;
                match answer {
                    Some(Answer::Objects(objects, leases)) => self.act(operator, &objects, &leases),
                    _ => it.unsettled = true,
                }
            }
            (Request::NewestBeat { node, session, .. }, Some(Answer::Newest(Some(number)))) => {
                it.book.saw_beat(NODES[*node], session, number, now);
            }
            (Request::CreateFence { store, session }, Some(Answer::Done)) => {
                it.first_closed.entry(session.clone()).or_insert(now);
                it.book.fenced(session, STORES[*store], now);
            }
            (Request::CloseLease { session, .. }, Some(answer @ (Answer::Closed(_) | Answer::NotThere))) => {
                let duration = match answer {
                    Answer::Closed(_) if mutation == Some(Mutation::WaitConfigured) => timing.lease,
                    Answer::Closed(duration) => duration,
                    _ => timing.extension,
                };
                let first = it.first_closed.get(session).copied().unwrap_or(now);
                it.book.closed(session, duration, if mutation == Some(Mutation::WaitFromFirst) { first } else { now });
            }
            // Somebody was faster, or nothing is known: it is looked at again.
            (Request::Write { .. } | Request::CreatePod { .. }, Some(Answer::Conflict) | None) => it.unsettled = true,
            _ => {}
        }
        self.attend(operator);
    }

    /// What the pipeline of an environment does, for all of them.
    fn act(&mut self, operator: usize, objects: &Objects, leases: &Leases) {
        for volume in 0..self.volumes {
            for request in self.decide(operator, volume, objects, leases) {
                self.send(Who::Operator(operator), request);
            }
        }
    }

    fn decide(&self, operator: usize, volume: usize, objects: &Objects, leases: &Leases) -> Vec<Request> {
        let it = &self.operators[operator];
        let silent = it.book.silent();
        let (version, object) = &objects.volumes[volume];
        // Nothing outlasts what each store of the set grants: one that is closed is enough.
        let set: Vec<&str> = objects.places[volume].now.set.iter().map(|store| STORES[*store]).collect();
        let session = |node: &str| leases.get(&node_number(node)).map(|(_, lease)| lease.session.as_str());
        let of_holder = object.holder.as_ref().and_then(|(node, _)| session(node));
        let by_store = set.iter().map(|store| tenure(object, of_holder, &it.deaths, store));
        let mut tenure = by_store.max_by_key(|tenure| *tenure == Tenure::Over).unwrap_or(Tenure::Lives);
        if self.mutated(Mutation::NoWait) && tenure == Tenure::Ends {
            tenure = Tenure::Over;
        }
        let movable = object.released >= object.epoch || tenure == Tenure::Over;
        let holds = |pod: &Pod| object.holder.is_some() && object.pod.as_deref() == Some(pod.uid.as_str());
        let is_over = |pod: &Pod| match pod.node {
            _ if holds(pod) => tenure == Tenure::Over,
            Some(node) => it.deaths.values().any(|death| {
                let over = |store: &&str| death.over.get(*store).is_some_and(Option::is_some);
                death.node == NODES[node] && !death.is_back && set.iter().any(over)
            }),
            None => false,
        };
        let mut pods: Vec<&Pod> = objects.pods.iter().filter(|pod| pod.volume == volume).collect();
        pods.sort_by_key(|pod| pod.epoch);
        let shun: Vec<usize> = silent.iter().map(|name| node_number(name)).collect();
        let create = |epoch: u64, movable: bool| {
            let pin = object.node.as_deref().filter(|_| !movable).map(node_number);
            Request::CreatePod { volume, epoch, pin, shun: shun.clone() }
        };
        let Some(newest) = pods.pop() else { return vec![create(object.epoch + 1, movable)] };
        let delete = |pod: &Pod| Request::DeletePod { uid: pod.uid.clone() };
        let remove = |pod: &Pod| Request::RemovePod { uid: pod.uid.clone() };
        let on_silent = newest.node.is_some_and(|node| shun.contains(&node));
        if on_silent && !holds(newest) && (movable || tenure != Tenure::Lives) {
            return vec![remove(newest)];
        }
        if holds(newest) && tenure != Tenure::Lives && !newest.doomed {
            return vec![create(newest.epoch + 1, true)];
        }
        let mut requests = Vec::new();
        for pod in &pods {
            if is_over(pod) {
                requests.push(remove(pod));
            } else if !pod.doomed {
                requests.push(delete(pod));
            }
        }
        let others = pods.iter().any(|pod| !is_over(pod));
        if newest.doomed {
            if is_over(newest) {
                requests.push(remove(newest));
            }
            return requests;
        }
        let Some(node) = newest.node else { return requests };
        if newest.ended {
            requests.push(delete(newest));
            return requests;
        }
        if !holds(newest) && (others || tenure == Tenure::Ends) {
            return requests;
        }
        let bidder = Bidder { uid: &newest.uid, epoch: newest.epoch, node: NODES[node], started: newest.started };
        match claim(object, bidder, session(NODES[node]), movable) {
            Claim::Take(mut to) => {
                if self.mutated(Mutation::EpochNotRaised) {
                    to = Volume { epoch: object.epoch.max(1), ..to };
                }
                if self.mutated(Mutation::EpochNotRaised) && to == *object {
                    return requests;
                }
                let version = (!self.mutated(Mutation::NoCompareAndSwap)).then_some(*version);
                requests.push(Request::Write { volume, version, to });
            }
            Claim::Stale => requests.push(delete(newest)),
            Claim::Holds | Claim::NoSession => {}
        }
        requests
    }

    /// Rule 15: the boundary is raised first, then what lies before it is deleted.
    pub(super) fn collect_garbage(&mut self, volume: usize) {
        let barriers = self.mutated(Mutation::BarriersCollected);
        let Where { now: Place { set, log }, next, .. } = self.api.objects.places[volume].clone();
        for store in set {
            self.send(Who::Operator(0), Request::Raise { store, volume, log });
            self.send(Who::Operator(0), Request::Collect { store, volume, log, barriers });
        }
        // What was left, or given up, is of no use to anybody but for its barriers.
        let used = [Some(log), next.map(|next| next.log)];
        for store in &mut self.stores {
            for ((of, log), left) in &mut store.logs {
                if *of == volume && !used.contains(&Some(*log)) {
                    left.entries.retain(|_, stored| stored.entry.barrier && !barriers);
                }
            }
        }
    }
}
