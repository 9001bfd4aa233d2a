//! What goes wrong.

use super::{Event, MS, S, Who, World};
use crate::mutation::Mutation;
use crate::servers::Request;

/// What happens to the cluster, and for how long.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    PowerOff {
        node: usize,
    },
    PowerOn {
        node: usize,
    },
    /// 0: the API server; 1 and 2: the stores.
    Link {
        who: Who,
        server: usize,
        up: bool,
    },
    Server {
        server: usize,
        up: bool,
    },
    DriverCrash {
        node: usize,
        away: u64,
    },
    DriverRestart {
        node: usize,
        away: u64,
    },
    DriverPause {
        node: usize,
        lasts: u64,
    },
    /// The whole machine stands still; its clock does not.
    NodePause {
        node: usize,
        lasts: u64,
    },
    OperatorCrash {
        operator: usize,
        away: u64,
    },
    OperatorPause {
        operator: usize,
        lasts: u64,
    },
    /// Somebody asks for the end of a node that may well live.
    FenceByHand {
        operator: usize,
        node: usize,
    },
    /// The environment is stopped and started again, perhaps elsewhere: its pod is deleted.
    Move {
        volume: usize,
    },
    /// Somebody creates a pod of an earlier incarnation again.
    LateCreate {
        volume: usize,
    },
    /// The shim of an environment dies, and containerd too or not.
    ShimCrash {
        node: usize,
        volume: usize,
        containerd: bool,
    },
    /// No fault: the driver looks for environments without a shim, which it does more often than anything else.
    DriverLooks {
        node: usize,
    },
    Garbage {
        volume: usize,
    },
    /// No fault: somebody wants a volume's journal in other stores.
    Want {
        volume: usize,
        first: usize,
        both: bool,
    },
}

impl World {
    pub fn fault(&mut self, at: u64, fault: Fault) {
        let after = at.saturating_sub(self.now);
        self.later(after, Event::Fault(fault));
    }

    /// Cuts somebody off from a server for a while.
    pub fn cut(&mut self, who: Who, server: usize, from: u64, lasts: u64) {
        self.fault(from, Fault::Link { who, server, up: false });
        self.fault(from + lasts, Fault::Link { who, server, up: true });
    }

    /// Cuts somebody off from everything.
    pub fn isolate(&mut self, who: Who, from: u64, lasts: u64) {
        (0..3).for_each(|server| self.cut(who, server, from, lasts));
    }

    pub fn cut_stores(&mut self, who: Who, from: u64, lasts: u64) {
        (1..3).for_each(|server| self.cut(who, server, from, lasts));
    }

    pub(super) fn strike(&mut self, fault: Fault) {
        match fault {
            Fault::PowerOff { node } => {
                let keeps = self.mutated(Mutation::SessionReused);
                let machine = &mut self.nodes[node];
                machine.on = false;
                machine.generation += 1;
                (machine.paused, machine.driver_paused) = (0, 0);
                machine.driver = None;
                machine.guests.clear();
                machine.leaving.clear();
                machine.promised.clear();
                machine.begun.clear();
                if !keeps {
                    machine.session = None;
                }
            }
            Fault::PowerOn { node } => {
                let machine = &mut self.nodes[node];
                if !machine.on {
                    machine.on = true;
                    machine.boot += 1;
                    let generation = machine.generation;
                    let after = self.chance.between(S, 3 * S);
                    self.later(after, Event::StartDriver { node, generation });
                }
            }
            Fault::Link { who: Who::Node(node), server, up } => self.nodes[node].links[server] = up,
            Fault::Link { who: Who::Operator(operator), server, up } => self.operators[operator].links[server] = up,
            Fault::Server { server: 0, up } => self.api.down = !up,
            Fault::Server { server, up } => self.stores[server - 1].down = !up,
            Fault::DriverCrash { node, away } => self.crash_driver(node, away),
            Fault::DriverRestart { node, away } => {
                if let Some(driver) = &mut self.nodes[node].driver {
                    driver.authority.announce_restart();
                    driver.restart = Some(away);
                }
            }
            Fault::DriverPause { node, lasts } => self.nodes[node].driver_paused = self.now + lasts,
            Fault::NodePause { node, lasts } => self.nodes[node].paused = self.now + lasts,
            Fault::OperatorPause { operator, lasts } => self.operators[operator].paused = self.now + lasts,
            Fault::FenceByHand { operator, node } => self.fence_by_hand(operator, node),
            Fault::OperatorCrash { operator, away } => {
                self.operators[operator].generation += 1;
                self.later(away, Event::StartOperator { operator });
            }
            Fault::Move { volume } => {
                let pods = self.api.objects.pods.iter().filter(|pod| pod.volume == volume);
                if let Some(pod) = pods.max_by_key(|pod| pod.epoch) {
                    let request = Request::DeletePod { uid: pod.uid.clone() };
                    self.api.answer(&request);
                    self.push();
                }
            }
            Fault::LateCreate { volume } => {
                let epoch = self.api.objects.volumes[volume].1.epoch;
                let epoch = if self.chance.one_in(2) { epoch } else { epoch.saturating_sub(1) };
                let request = Request::CreatePod { volume, epoch, pin: None, shun: Vec::new() };
                self.send(Who::Operator(0), request);
            }
            Fault::ShimCrash { node, volume, containerd } => {
                if let Some(guest) = self.nodes[node].guests.get_mut(&volume).filter(|guest| !guest.dead) {
                    // containerd kills what is left of it. Where it is dead too, the driver has to.
                    (guest.dead, guest.orphan) = (containerd, !containerd);
                    let after = self.chance.between(0, 250 * MS);
                    self.later(after, Event::Fault(Fault::DriverLooks { node }));
                }
            }
            Fault::DriverLooks { node } => self.end_orphans(node),
            Fault::Garbage { volume } => self.collect_garbage(volume),
            Fault::Want { volume, first, both } => {
                self.api.want(volume, if both { vec![first, 1 - first] } else { vec![first] });
                self.push();
            }
        }
    }
}
