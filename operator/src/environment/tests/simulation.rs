//! A cluster in memory, with views that lag, replicas that die between two actions, pods that fail and people who change
//! their minds. In every order of events: never two incarnations of one environment, never an epoch twice, and in the
//! end what the spec says.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::SignedDuration;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use proptest::prelude::*;
use serde_json::json;
use vivarium_api::v1alpha1::EnvironmentVolume;
use vivarium_api::v1alpha1::environment::{Phase, RunMode};

use super::fixtures::*;
use crate::environment::build;
use crate::environment::decision::{Action, ChildKind};
use crate::environment::lifecycle::decide;
use crate::environment::standby::Host;
use crate::environment::status::must_come_first;
use crate::environment::world::{NodeState, World};

/// What can happen.
#[derive(Clone, Debug)]
enum Event {
    /// The operator looks and acts; it dies after so many actions.
    Reconcile(usize),
    /// A former leader acts on what it saw so many events ago.
    Stale(usize),
    /// Scheduler and kubelet get on with the pod.
    Advance,
    /// The pod ends by itself.
    Fail,
    /// The guest is powered off.
    PowerOff,
    /// Somebody deletes the pod.
    DeletePod,
    /// The volume of a pod that is being deleted is unmounted, and what was written last is committed.
    GiveBack,
    /// The kubelet finishes a deletion.
    FinishDeletion,
    /// The spec is changed.
    RunMode(bool),
    /// A setting of the spec is changed.
    Hostname(u8),
    /// The node that the environment is on is cordoned, or not any more.
    Cordon(bool),
    /// Time passes.
    Wait,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        4 => (0usize..4).prop_map(Event::Reconcile),
        2 => (1usize..60).prop_map(Event::Stale),
        6 => Just(Event::Advance),
        1 => Just(Event::Fail),
        1 => Just(Event::PowerOff),
        2 => Just(Event::DeletePod),
        4 => Just(Event::GiveBack),
        4 => Just(Event::FinishDeletion),
        1 => any::<bool>().prop_map(Event::RunMode),
        1 => (0u8..3).prop_map(Event::Hostname),
        2 => any::<bool>().prop_map(Event::Cordon),
        2 => Just(Event::Wait),
    ];
    prop::collection::vec(event, 1..120)
}

fn host(name: &str, fits: bool) -> Host {
    Host { name: name.into(), fits, zone: None }
}

struct Cluster {
    world: World,
    past: Vec<World>,
    now: jiff::Timestamp,
    version: u64,
    /// Epochs that were given the volume, one for each pod that was.
    held: Vec<u64>,
    holder_pod: Option<String>,
    made: u64,
}

impl Cluster {
    /// With one node, or with two that reach a store in which the journal is.
    fn new(shared: bool) -> Self {
        let mut world = prepared(&json!({}));
        if shared {
            world.stores = vec![Arc::new(store())];
            Arc::make_mut(world.volume.as_mut().unwrap()).spec.store = Some("default".into());
        }
        world.nodes.hosts = vec![host("n1", true), host("n2", true)];
        Self { world, past: Vec::new(), now: now(), version: 10, held: Vec::new(), holder_pod: None, made: 0 }
    }

    fn happen(&mut self, event: &Event) {
        self.past.push(self.world.clone());
        match event {
            Event::Reconcile(actions) => self.reconcile(&self.world.clone(), *actions),
            Event::Stale(age) => {
                let seen = self.past[self.past.len().saturating_sub(*age)].clone();
                self.reconcile(&seen, usize::MAX);
            }
            Event::Advance => self.advance(),
            Event::Fail => self.end(&failed(&self.now.to_string())),
            Event::PowerOff => self.end(&powered_off()),
            Event::DeletePod => {
                if let Some(pod) = self.world.newest_pod().cloned() {
                    self.delete_pod(&pod.name_any(), pod.uid().as_deref());
                }
            }
            Event::GiveBack => self.give_back(),
            Event::FinishDeletion => {
                self.give_back();
                self.world.pods.retain(|pod| pod.metadata.deletion_timestamp.is_none());
            }
            Event::Cordon(closed) => {
                let on = self.world.newest_pod().and_then(|pod| pod.spec.as_ref()?.node_name.clone());
                self.world.nodes.hosts =
                    ["n1", "n2"].map(|name| host(name, !*closed || on.as_deref() != Some(name))).into();
            }
            Event::RunMode(running) => {
                change(&mut self.world, |e| {
                    e.spec.run_mode = if *running { RunMode::Running } else { RunMode::Stopped };
                });
            }
            Event::Hostname(n) => {
                change(&mut self.world, |e| {
                    e.spec.os = serde_json::from_value(json!({"hostname": format!("h{n}")})).unwrap();
                });
            }
            Event::Wait => self.now += SignedDuration::from_secs(70),
        }
        self.check();
    }

    /// One round of the controller with what it saw.
    fn reconcile(&mut self, seen: &World, actions: usize) {
        let decision = decide(seen, self.now, &settings()).unwrap();
        if decision.actions.is_empty() || must_come_first(seen.environment.status.as_ref(), &decision.status) {
            change(&mut self.world, |e| e.status = Some(decision.status.clone()));
        }
        for action in decision.actions.iter().take(actions) {
            if !self.act(action) {
                return;
            }
        }
    }

    /// What the API server does with an action; false when it refuses.
    fn act(&mut self, action: &Action) -> bool {
        match action {
            Action::CreatePod(pod) => {
                if self.world.pods.iter().any(|p| p.name_any() == pod.name_any()) {
                    return false;
                }
                self.made += 1;
                let mut pod = pod.as_ref().clone();
                pod.metadata.uid = Some(format!("uid-{}", self.made));
                pod.status = Some(serde_json::from_value(json!({"phase": "Pending"})).unwrap());
                self.world.pods.push(Arc::new(pod));
                true
            }
            Action::DeletePod(doomed) => self.delete_pod(&doomed.name, doomed.uid.as_deref()),
            Action::ReplaceVolumeStatus(volume) => self.replace(volume, |own, new| own.status.clone_from(&new.status)),
            Action::ReplaceVolume(volume, _) => self.replace(volume, |own, new| own.spec.clone_from(&new.spec)),
            Action::Delete(ChildKind::Service, _) | Action::ResizePod { .. } => true,
            other => panic!("{other:?} is not expected here"),
        }
    }

    fn replace(
        &mut self,
        new: &EnvironmentVolume,
        change: impl FnOnce(&mut EnvironmentVolume, &EnvironmentVolume),
    ) -> bool {
        let own = Arc::make_mut(self.world.volume.as_mut().unwrap());
        if own.metadata.resource_version != new.metadata.resource_version {
            return false;
        }
        change(own, new);
        self.version += 1;
        own.metadata.resource_version = Some(self.version.to_string());
        let status = own.status.clone().unwrap_or_default();
        if status.holder_pod.is_some() && self.holder_pod != status.holder_pod {
            self.held.push(status.epoch);
            self.holder_pod = status.holder_pod;
        }
        true
    }

    fn delete_pod(&mut self, name: &str, uid: Option<&str>) -> bool {
        let now = self.now;
        let Some(pod) = self.world.pods.iter_mut().find(|p| p.name_any() == name && p.uid().as_deref() == uid) else {
            return false;
        };
        Arc::make_mut(pod).metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now));
        true
    }

    fn give_back(&mut self) {
        let ended = self.world.pods.iter_mut().filter(|pod| pod.metadata.deletion_timestamp.is_some());
        let mut uids = Vec::new();
        for pod in ended {
            Arc::make_mut(pod).status = Some(serde_json::from_value(json!({"phase": "Succeeded"})).unwrap());
            uids.push(pod.uid());
        }
        if let Some(status) = Arc::make_mut(self.world.volume.as_mut().unwrap()).status.as_mut()
            && status.holder_pod.is_some()
            && uids.contains(&status.holder_pod)
        {
            status.released_epoch = status.epoch;
        }
    }

    /// Scheduler, node driver and kubelet take every pod one step further. A mount waits for the holder.
    fn advance(&mut self) {
        let status = self.world.volume.as_ref().unwrap().status.clone().unwrap_or_default();
        if status.node.is_some() {
            self.world.nodes.of_volume = Some(NodeState::Ready);
        }
        let (shared, hosts) = (!self.world.stores.is_empty(), self.world.nodes.hosts.clone());
        let epochs: Vec<_> = self.world.pods.iter().map(|pod| self.world.epoch_of(pod)).collect();
        for (pod, epoch) in self.world.pods.iter_mut().zip(epochs) {
            let pod: &mut Pod = Arc::make_mut(pod);
            let phase = pod.status.as_ref().and_then(|s| s.phase.clone()).unwrap_or_default();
            if pod.metadata.deletion_timestamp.is_some() || phase != "Pending" {
                continue;
            }
            let (bound, shunned) = (build::bound_to(pod), build::shunned(pod));
            let spec = pod.spec.as_mut().unwrap();
            if spec.node_name.is_none() {
                let allowed = |host: &&Host| {
                    host.fits && !shunned.contains(&host.name) && bound.as_ref().is_none_or(|to| *to == host.name)
                };
                let open = hosts.iter().find(allowed).map(|host| host.name.clone());
                spec.node_name = if shared { open } else { Some("n1".into()) };
            } else if status.holder.is_some() && status.epoch == epoch && status.holder_pod == pod.metadata.uid {
                pod.status = Some(serde_json::from_value(running()).unwrap());
            }
        }
    }

    fn end(&mut self, how: &serde_json::Value) {
        for pod in &mut self.world.pods {
            let running = pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running");
            if running && pod.metadata.deletion_timestamp.is_none() {
                Arc::make_mut(pod).status = Some(serde_json::from_value(how.clone()).unwrap());
            }
        }
    }

    fn check(&self) {
        let runs = |pod: &&Arc<Pod>| pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running");
        let running: Vec<_> = self.world.pods.iter().filter(runs).map(|pod| pod.name_any()).collect();
        assert!(running.len() <= 1, "two incarnations run: {running:?}");
        let unique: BTreeSet<_> = self.held.iter().collect();
        assert_eq!(unique.len(), self.held.len(), "an epoch held the volume twice: {:?}", self.held);
        assert!(self.held.is_sorted(), "epochs went back: {:?}", self.held);
    }

    /// Lets everything come to rest, and says whether it did.
    fn settle(&mut self) -> bool {
        self.happen(&Event::Cordon(false));
        for _ in 0..60 {
            let before = (self.made, self.world.pods.len());
            self.happen(&Event::Wait);
            self.happen(&Event::Reconcile(usize::MAX));
            self.happen(&Event::FinishDeletion);
            self.happen(&Event::Advance);
            let decision = decide(&self.world, self.now, &settings()).unwrap();
            let quiet = decision.actions.is_empty() && before == (self.made, self.world.pods.len());
            if quiet && matches!(decision.status.phase, Some(Phase::Running | Phase::Stopped | Phase::PoweredOff)) {
                self.happen(&Event::Reconcile(usize::MAX));
                return true;
            }
        }
        false
    }
}

proptest! {
    #[test]
    fn never_two_incarnations_and_in_the_end_what_the_spec_says(events in events(), shared in any::<bool>()) {
        let mut cluster = Cluster::new(shared);
        for event in &events {
            cluster.happen(event);
        }
        prop_assert!(cluster.settle(), "it never comes to rest: {:?}", decided(&cluster.world).status);
        let phase = decide(&cluster.world, cluster.now, &settings()).unwrap().status.phase;
        match cluster.world.environment.spec.run_mode {
            RunMode::Stopped => prop_assert_eq!(phase, Some(Phase::Stopped)),
            RunMode::Running => prop_assert!(matches!(phase, Some(Phase::Running | Phase::PoweredOff))),
        }
    }
}

#[test]
fn without_trouble_an_environment_runs_after_few_rounds() {
    let mut cluster = Cluster::new(false);
    let mut rounds = 0;
    while decided(&cluster.world).status.phase != Some(Phase::Running) {
        cluster.happen(&Event::Reconcile(usize::MAX));
        cluster.happen(&Event::Advance);
        rounds += 1;
        assert!(rounds < 5, "{:?}", decided(&cluster.world).status);
    }
    assert_eq!((cluster.made, cluster.held.as_slice()), (1, [1].as_slice()));
}
