//! Messages between nodes, operators and servers: each takes its time, or is lost, or arrives twice, or has its effect long
//! after whoever sent it gave it up.

use std::rc::Rc;

use vivarium_ownership::book::Task;

use super::{Event, Fault, MS, Message, S, Who, World};
use crate::chance::{Fate, LATEST};
use crate::servers::{Answer, Request, Why};

/// A request that has no answer by then has none. It may have an effect later.
const TIMEOUT: u64 = 2 * S;
/// A renewal is given up earlier, so that there is time for another; and so is a fence.
const RENEWAL_TIMEOUT: u64 = 1500 * MS;
const FENCE_TIMEOUT: u64 = 900 * MS;
/// A message that meets a link that is down may be sent again by what lies below, for no longer than this.
const TRANSPORT: u64 = 20 * S;

impl World {
    pub(super) fn send(&mut self, from: Who, request: Request) {
        self.send_for(from, request, None);
    }

    pub(super) fn send_for(&mut self, from: Who, request: Request, task: Option<Task>) {
        let moot = self.chance.script.is_some() && self.stays_cut_off(from, &request);
        let fate = self.chance.fate(self.now, matches!(request, Request::Write { .. } | Request::Place { .. }), moot);
        let (generation, sent) = (self.generation(from), self.now);
        self.serial += 1;
        let id = self.serial;
        self.pending.insert(id);
        let message = Rc::new(Message { id, from, generation, sent, request, task });
        if let Some(again) = fate.again {
            self.later(again, Event::Arrive { message: message.clone(), back: None });
        }
        let timeout = timeout(&message.request);
        match fate {
            Fate { there: Some(there), back: Some(back), .. } if there + back <= timeout => {
                self.later(there, Event::Arrive { message, back: Some(back) });
            }
            Fate { there, .. } => {
                if let Some(there) = there {
                    self.later(there, Event::Arrive { message: message.clone(), back: None });
                }
                self.later(timeout, Event::Answer { message, answer: None });
            }
        }
    }

    pub(super) fn reaches(&self, who: Who, server: usize) -> bool {
        match who {
            Who::Node(node) => self.nodes[node].on && self.nodes[node].links[server],
            Who::Operator(operator) => self.operators[operator].links[server],
        }
    }

    /// Whether somebody cannot reach whom he asks, and will not until even the latest of messages would have arrived.
    pub(super) fn stays_cut_off(&self, who: Who, request: &Request) -> bool {
        let server = request.store().map_or(0, |store| store + 1);
        let heals = |event: &Event| matches!(event, Event::Fault(Fault::Link { up: true, .. } | Fault::PowerOn { .. }));
        let soon = self.queue.range(..=(self.now + LATEST, u64::MAX));
        !self.reaches(who, server) && !soon.map(|(_, event)| event).any(heals)
    }

    pub(super) fn arrive(&mut self, message: &Rc<Message>, back: Option<u64>) {
        let request = &message.request;
        let server = request.store().map_or(0, |store| store + 1);
        let up = if server == 0 { !self.api.down } else { !self.stores[server - 1].down };
        if !up || !self.reaches(message.from, server) {
            let on = matches!(message.from, Who::Operator(_)) || self.generation(message.from) == message.generation;
            if on && self.now - message.sent < TRANSPORT && self.chance.one_in(2) {
                let after = self.chance.between(200 * MS, 4 * S);
                self.later(after, Event::Arrive { message: message.clone(), back: None });
            }
            if back.is_some() {
                let after = (message.sent + timeout(request)).saturating_sub(self.now);
                self.later(after, Event::Answer { message: message.clone(), answer: None });
            }
            return;
        }
        let clock = self.api.objects.clock;
        let mut answer = match request.store() {
            Some(store) => self.stores[store].answer(request),
            None => self.api.answer(request),
        };
        if let (Request::Objects(Why::List), Who::Node(_), Answer::Objects(objects, _)) =
            (request, message.from, &mut answer)
            && self.chance.one_in(self.chance.weather.stale)
        {
            let ago = self.chance.between(1, 9) as usize;
            *objects = self.history.iter().rev().nth(ago).unwrap_or(objects).clone();
        }
        if let Request::Raise { volume, .. } = request {
            self.checkpoint(*volume);
        }
        if let Request::CreatePod { volume, epoch, .. } = request
            && matches!(answer, Answer::Done)
        {
            let pod = self.api.objects.pods.iter().find(|pod| (pod.volume, pod.epoch) == (*volume, *epoch));
            let uid = pod.map(|pod| pod.uid.clone()).unwrap_or_default();
            let after = self.chance.between(5 * MS, 50 * MS);
            self.later(after, Event::Bind(uid));
        }
        if self.api.objects.clock != clock {
            self.push();
        }
        if let Some(back) = back {
            self.later(back, Event::Answer { message: message.clone(), answer: Some(answer) });
        }
    }

    /// Whoever watches is told of what has changed, sooner or later.
    pub(super) fn push(&mut self) {
        if self.chance.weather.stale > 0 {
            self.history.push(self.api.objects.clone());
        }
        let nodes = (0..self.nodes.len()).map(Who::Node);
        let watchers: Vec<_> = nodes.chain((0..self.operators.len()).map(Who::Operator)).collect();
        for who in watchers {
            let after = self.chance.delay();
            self.later(after, Event::Push(who, self.api.objects.clone()));
        }
    }
}

pub(super) fn timeout(request: &Request) -> u64 {
    match request {
        Request::Renew { .. } | Request::ReadLease { .. } => RENEWAL_TIMEOUT,
        Request::CreateFence { .. } => FENCE_TIMEOUT,
        _ => TIMEOUT,
    }
}
