//! The life cycle of an environment: which incarnation should exist, decided from the world and the time alone.
//!
//! At most one incarnation exists, because none is started while a pod of the environment is left, and because its name
//! carries an epoch that is used once. The exceptions are a pod on a node that is dead ([`crate::nodes`]) and one that
//! leaves its node in order: the next one is made on another node while the time of the dead node is waited out, or the
//! last commit, and gets the volume after that. Data is safe beyond that by the volume's holder ([`super::holder`]).

mod hold;
mod told;

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::ResourceExt;
use vivarium_api::names;
use vivarium_api::v1alpha1::environment::{LastFailover, Phase, RunMode};
use vivarium_api::v1alpha1::{ConditionStatus, EnvironmentVolume, VirtualEnvironmentStatus};

use crate::environment::awaken::{Awaken, awaken};
use crate::environment::build::{self, Place};
use crate::environment::decision::{Action, Decision, Refusal};
use crate::environment::holder;
use crate::environment::incarnation::{self, Stage, Trouble};
use crate::environment::leave::{Leave, leave};
use crate::environment::moves::{self, Step};
use crate::environment::resize::{self, Resize};
use crate::environment::status::{Outlook, Progress, Verdict, compose};
use crate::environment::storage::{self, doomed};
use crate::environment::world::{Tenure, World};
use crate::environment::{deletion, standby, validate};
use crate::nodes::Death;

use told::{booted, scheduling};

/// Longest pause between a failure and the next start.
const BACK_OFF_MAX: Duration = Duration::from_secs(60);
/// How often a pod without a node is looked at again: which nodes exist is not watched for each environment.
const UNSCHEDULED_AGAIN: Duration = Duration::from_secs(10);

/// How often a pod is tried again that the API server has refused.
const REFUSED_AGAIN: Duration = Duration::from_secs(10);

/// What is not observed but given.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Image of an environment's container.
    pub stub_image: String,
}

/// Decides what is to be done about an environment.
///
/// # Errors
/// Only when the boot configuration cannot be written as JSON.
pub fn decide(world: &World, now: Timestamp, settings: &Settings) -> Result<Decision, serde_json::Error> {
    let metadata = &world.environment.metadata;
    if metadata.deletion_timestamp.is_some() {
        return Ok(deletion::decide(world, now));
    }
    let mut actions = Vec::new();
    // Before anything is made that would have to be taken down.
    if !metadata.finalizers.iter().flatten().any(|f| f == names::FINALIZER_ENVIRONMENT) {
        actions.push(Action::AddFinalizer);
    }
    let volume = storage::volume(world, &mut actions);
    let prepared = match &volume {
        Ok(volume) => storage::children(world, volume, &mut actions),
        Err(refusal) => Err(refusal.clone()),
    };
    let mut life = Life { world, volume: volume.ok(), prepared, now, settings, actions, again: None };
    let mut outlook = match world.environment.spec.run_mode {
        RunMode::Stopped => life.stopped(),
        RunMode::Running => life.running()?,
    };
    // A refusal that only a person can resolve is shown also while an incarnation runs, since the spec is not met.
    if let Err(refusal) = &life.prepared
        && (refusal.stalled || world.pods.is_empty())
        && outlook.progress != Progress::Stalled
    {
        outlook.ready = refusal.into();
        outlook.progress = if refusal.stalled { Progress::Stalled } else { Progress::Reconciling };
        if world.pods.is_empty() {
            outlook.phase = Phase::Pending;
        }
        life.again = life.again.or(refusal.again);
    }
    if let Some(action) = standby::settle(world, &life.actions) {
        life.actions.push(action);
    }
    Ok(Decision { status: compose(world, outlook, now), actions: life.actions, again: life.again })
}

struct Life<'a> {
    world: &'a World,
    volume: Option<&'a EnvironmentVolume>,
    prepared: Result<(), Refusal>,
    now: Timestamp,
    settings: &'a Settings,
    actions: Vec<Action>,
    again: Option<Duration>,
}

impl Life<'_> {
    fn stopped(&mut self) -> Outlook {
        self.remove_over();
        let there = self.world.pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
        for pod in there.filter(|pod| !self.world.is_over(pod)) {
            self.actions.push(Action::DeletePod(doomed(pod.as_ref())));
        }
        if let Some(pod) = self.world.newest_pod() {
            let message = format!("pod {} is being shut down", pod.name_any());
            return self.of_pod(pod, Phase::Stopping, Progress::Reconciling, Verdict::no("Stopping", message));
        }
        self.release();
        let ready = Verdict::yes("Stopped", "the environment is shut down, as spec.runMode says");
        Outlook::idle(self.world, Phase::Stopped, Progress::Settled, ready)
    }

    fn running(&mut self) -> Result<Outlook, serde_json::Error> {
        let Some(newest) = self.world.newest_pod() else { return self.start() };
        if self.is_stuck(newest) {
            return Ok(self.give_up(newest));
        }
        if let Some(death) = self.lost(newest) {
            return self.fail_over(newest, death);
        }
        self.remove_over();
        let superseded = self.world.pods.iter().filter(|pod| pod.metadata.uid != newest.metadata.uid);
        for pod in superseded.filter(|pod| pod.metadata.deletion_timestamp.is_none() && !self.world.is_over(pod)) {
            self.actions.push(Action::DeletePod(doomed(pod.as_ref())));
        }
        if self.was_cut_off(newest) {
            return Ok(self.give_up(newest));
        }
        if let Some(why) = self.without_store(newest) {
            return Ok(self.of_pod(newest, Phase::Failed, Progress::Stalled, why));
        }
        let stage = incarnation::stage(newest);
        if self.gives_way(newest) && !matches!(stage, Stage::Terminating | Stage::PoweredOff) {
            return Ok(self.give_way(newest));
        }
        Ok(match stage {
            Stage::Terminating => self.make_way(newest)?,
            Stage::PoweredOff => self.powered_off(newest),
            Stage::Failed { trouble, at } => self.failed(newest, &trouble, at),
            Stage::Unscheduled { message } => self.unscheduled(newest, message),
            Stage::Starting { trouble } => self.starting(newest, trouble),
            Stage::Running { ready } => self.up(newest, ready),
        })
    }

    /// No pod is left: the next incarnation, unless something speaks against it.
    fn start(&mut self) -> Result<Outlook, serde_json::Error> {
        let status = self.world.environment.status.as_ref();
        if status.and_then(|s| s.phase) == Some(Phase::PoweredOff) {
            self.release();
            let ready = Verdict::no("PoweredOff", POWERED_OFF);
            return Ok(Outlook::idle(self.world, Phase::PoweredOff, Progress::Stalled, ready));
        }
        if self.prepared.is_ok() {
            self.prepared = validate::secrets(self.world);
        }
        let (Ok(()), Some(volume)) = (&self.prepared, self.volume) else {
            self.release();
            let ready = Verdict::no("Preparing", "the environment is being prepared");
            return Ok(Outlook::idle(self.world, Phase::Pending, Progress::Reconciling, ready));
        };
        if let Some(refused) = self.pod_refused() {
            return Ok(Outlook::idle(self.world, Phase::Pending, Progress::Reconciling, refused));
        }
        // What the pod mounts comes first.
        let place = self.place(self.world.is_movable(volume));
        let epoch = self.next_incarnation(volume, &place)?;
        let ready = Verdict::no("Starting", format!("incarnation {epoch} is being started"));
        // A failover whose incarnation came to nothing goes on with the next one.
        let underway =
            |status: &&VirtualEnvironmentStatus| matches!(status.phase, Some(Phase::Starting | Phase::Pending));
        let open = status.filter(underway).and_then(|s| s.last_failover.clone()).filter(|f| f.started.is_none());
        let failover = open.map(|open| LastFailover { epoch, to_node: None, ..open });
        Ok(Outlook { epoch, failover, ..Outlook::idle(self.world, Phase::Starting, Progress::Reconciling, ready) })
    }

    /// That no pod can be made, because the API server has just refused it. No watch tells when it would not.
    fn pod_refused(&mut self) -> Option<Verdict> {
        let why = self.world.met.pod_refused.as_ref()?;
        self.again = Some(REFUSED_AGAIN);
        Some(Verdict::no("PodRefused", format!("the pod of the next incarnation may not be made: {why}")))
    }

    fn place(&self, movable: bool) -> Place {
        if !movable {
            return Place::Data;
        }
        if let Ok(Some(target)) = moves::target(self.world) {
            return Place::Only(target.to_owned());
        }
        let status = self.volume.and_then(|volume| volume.status.as_ref());
        let standby = status.and_then(|status| status.standby.as_ref()).filter(|standby| standby.sequence.is_some());
        Place::Anywhere { but: self.world.avoided(), standby: standby.map(|standby| standby.node.clone()) }
    }

    fn next_incarnation(&mut self, volume: &EnvironmentVolume, place: &Place) -> Result<u64, serde_json::Error> {
        let epoch = self.world.epoch().max(self.world.met.taken).saturating_add(1);
        let pod = build::pod(&self.world.environment, volume, epoch, &self.settings.stub_image, place)?;
        self.actions.push(Action::CreatePod(Box::new(pod)));
        Ok(epoch)
    }

    /// The death of the node that a pod is on, if another node can take over what ran there. An environment that was shut
    /// down from inside has lost nothing.
    fn lost(&self, pod: &Pod) -> Option<Death> {
        let volume = self.volume?;
        let death = self.death_of(pod)?;
        let powered_off = incarnation::stage(pod) == Stage::PoweredOff;
        (!powered_off && self.world.tenure(volume) != Tenure::Lives).then(|| death.clone())
    }

    /// The death of the session under which a pod has the volume, or else of the node that it is on.
    fn death_of(&self, pod: &Pod) -> Option<&Death> {
        let volume = self.volume?;
        if holder::holds(volume, pod.metadata.uid.as_deref()) {
            let holder = volume.status.as_ref()?.holder.as_ref()?;
            return self.world.deaths.get(&holder.session);
        }
        self.world.death_of(incarnation::node(pod)?)
    }

    /// Removes pods of which nothing can run any more, but for the newest of an environment that shall run: perhaps nobody
    /// else can, and the Service would go on sending to them. A kubelet that lives clears away what is left of them.
    fn remove_over(&mut self) {
        let runs = self.world.environment.spec.run_mode == RunMode::Running;
        let newest = self.world.newest_pod().filter(|_| runs).and_then(|pod| pod.metadata.uid.clone());
        for pod in &self.world.pods {
            if pod.metadata.uid != newest && self.world.is_over(pod) {
                self.actions.push(Action::RemovePod(doomed(pod.as_ref())));
            }
        }
    }

    /// The next incarnation, on another node, in place of one whose node is dead.
    fn fail_over(&mut self, pod: &Pod, death: Death) -> Result<Outlook, serde_json::Error> {
        if self.prepared.is_ok() {
            self.prepared = validate::secrets(self.world);
        }
        let message = format!("node {} is dead, on which incarnation {} ran", death.node, self.world.epoch_of(pod));
        let (Ok(()), Some(volume)) = (&self.prepared, self.volume) else {
            let ready = Verdict::no("NodeLost", message);
            return Ok(self.of_pod(pod, Phase::Failed, Progress::Reconciling, ready));
        };
        if let Some(refused) = self.pod_refused() {
            return Ok(self.of_pod(pod, Phase::Pending, Progress::Reconciling, refused));
        }
        let epoch = self.next_incarnation(volume, &self.place(true))?;
        let ready = Verdict::no("NodeLost", format!("{message}; incarnation {epoch} is being started on another one"));
        let failover = LastFailover {
            epoch,
            from_node: death.node,
            to_node: None,
            detected: MicroTime(death.detected),
            fenced: None,
            restored: None,
            started: None,
            ready: None,
        };
        let outlook = self.of_pod(pod, Phase::Starting, Progress::Reconciling, ready);
        Ok(Outlook { epoch, failover: Some(failover), ..outlook })
    }

    /// Whether the next incarnation is to begin with a former state, which was found in the journal. Nobody is shut down
    /// while the next one could not start.
    fn gives_way(&self, pod: &Pod) -> bool {
        let epoch = self.world.epoch_of(pod);
        let restores = |volume: &EnvironmentVolume| volume.restore().is_some_and(|progress| progress.concerns(epoch));
        self.prepared.is_ok() && self.volume.is_some_and(restores)
    }

    fn give_way(&mut self, pod: &Pod) -> Outlook {
        self.actions.push(Action::DeletePod(doomed(pod)));
        let message = format!("pod {} ends, and the next incarnation begins with a former state", pod.name_any());
        self.of_pod(pod, Phase::Stopping, Progress::Reconciling, Verdict::no("Restoring", message))
    }

    /// Whether a pod waits in vain for its volume on a node that is silent, and another node could have it.
    fn is_stuck(&self, pod: &Pod) -> bool {
        let elsewhere = |volume| self.world.is_movable(volume) || self.world.tenure(volume) != Tenure::Lives;
        self.world.is_unreached(pod) && self.volume.is_some_and(elsewhere)
    }

    /// Whether what ran in a pod was ended with the session of its node, and no kubelet has said so yet.
    fn was_cut_off(&self, pod: &Pod) -> bool {
        matches!(incarnation::stage(pod), Stage::Terminating | Stage::Running { .. }) && self.world.is_over(pod)
    }

    /// That nobody can start an environment elsewhere whose node is silent, because the store of its journal is not there.
    fn without_store(&self, pod: &Pod) -> Option<Verdict> {
        let store = self.volume?.log()?.store;
        let node = incarnation::node(pod).filter(|node| self.world.silent.contains(*node))?;
        self.world.store(&store).is_none().then(|| {
            let message = format!(
                "node {node} is silent, and the environment cannot be started elsewhere: there is no JournalStore `{store}`, \
                 in which its journal is. Create it again under that name"
            );
            Verdict::no("StoreNotFound", message)
        })
    }

    /// Removes such a pod. The next incarnation is made once it is gone.
    fn give_up(&mut self, pod: &Pod) -> Outlook {
        self.actions.push(Action::RemovePod(doomed(pod)));
        let message = format!(
            "pod {} on node {} is given up: the node is silent, or has begun another session. The next incarnation is \
             started now",
            pod.name_any(),
            incarnation::node(pod).unwrap_or_default()
        );
        self.of_pod(pod, Phase::Starting, Progress::Reconciling, Verdict::no("NodeLost", message))
    }

    /// The next incarnation of one that leaves its node is made at once, so that its sandbox is there when the last commit
    /// is. It gets the volume when nothing is left of the former one, as ever.
    fn make_way(&mut self, pod: &Pod) -> Result<Outlook, serde_json::Error> {
        let outlook = self.terminating(pod);
        let Some(volume) = self.volume.filter(|volume| self.leaves(pod, volume)) else { return Ok(outlook) };
        // What is in the way of it now may not be when the former one is gone.
        if self.prepared.is_err() || self.world.met.pod_refused.is_some() || validate::secrets(self.world).is_err() {
            return Ok(outlook);
        }
        let epoch = self.next_incarnation(volume, &self.place(true))?;
        Ok(Outlook { epoch, ..outlook })
    }

    /// Whether the incarnation that has the volume ends on a node on which the next one will not be.
    fn leaves(&self, pod: &Pod, volume: &EnvironmentVolume) -> bool {
        let Some(node) = incarnation::node(pod) else { return false };
        // It cannot give the volume back in order: that it fails over is said, and by whom, when the node is dead.
        if self.world.silent.contains(node) {
            return false;
        }
        let closed = self.world.nodes.hosts.iter().any(|host| host.name == node && !host.fits);
        let away = match self.place(true) {
            Place::Only(target) => target != node,
            Place::Anywhere { but, .. } => closed || but.contains(node),
            Place::Data => false,
        };
        away && self.world.is_shared(volume) && holder::holds(volume, pod.metadata.uid.as_deref())
    }

    fn terminating(&mut self, pod: &Pod) -> Outlook {
        let message = format!("pod {} is being deleted; the next incarnation starts once it is gone", pod.name_any());
        self.of_pod(pod, Phase::Stopping, Progress::Reconciling, Verdict::no("Terminating", message))
    }

    fn powered_off(&mut self, pod: &Pod) -> Outlook {
        self.of_pod(pod, Phase::PoweredOff, Progress::Stalled, Verdict::no("PoweredOff", POWERED_OFF))
    }

    fn failed(&mut self, pod: &Pod, trouble: &Trouble, at: Option<Timestamp>) -> Outlook {
        let epoch = self.world.epoch_of(pod);
        let status = self.world.environment.status.clone().unwrap_or_default();
        let failures = if status.failed_epoch == epoch { status.failures } else { status.failures.saturating_add(1) };
        let pause = back_off(failures);
        let rest = at.map_or(SignedDuration::ZERO, |at| {
            let passed = self.now.duration_since(at).max(SignedDuration::ZERO);
            SignedDuration::try_from(pause).unwrap_or_default().saturating_sub(passed)
        });
        // Whoever corrects the spec does not want to wait.
        let next = if rest > SignedDuration::ZERO && self.differences(pod).is_empty() {
            self.again = Some(rest.unsigned_abs());
            format!("it is started again {} s after the end", pause.as_secs())
        } else {
            self.actions.push(Action::DeletePod(doomed(pod)));
            "it is started again now".to_owned()
        };
        let message = format!("incarnation {epoch} failed ({failures} in a row). {trouble}. {next}");
        let ready = Verdict::no("Failed", message);
        Outlook { failures: (failures, epoch), ..self.of_pod(pod, Phase::Failed, Progress::Reconciling, ready) }
    }

    fn unscheduled(&mut self, pod: &Pod, message: String) -> Outlook {
        if self.replaced(pod) {
            return self.terminating(pod);
        }
        self.again = Some(UNSCHEDULED_AGAIN);
        let phase = if message.is_empty() { Phase::Starting } else { Phase::Pending };
        let scheduled = scheduling(self.world, self.volume, pod, message);
        let outlook = self.of_pod(pod, phase, Progress::Reconciling, scheduled.clone());
        Outlook { scheduled, ..outlook }
    }

    fn starting(&mut self, pod: &Pod, trouble: Option<Trouble>) -> Outlook {
        if self.replaced(pod) {
            return self.terminating(pod);
        }
        let mut ready = match trouble {
            Some(trouble) => Verdict::no("StartFailed", format!("pod {} cannot be started. {trouble}", pod.name_any())),
            None => Verdict::no("Starting", format!("pod {} is being started", pod.name_any())),
        };
        match awaken(pod, self.now) {
            Awaken::Now => self.actions.push(Action::AwakenPod { name: pod.name_any() }),
            Awaken::After(left) => self.again = Some(left),
            Awaken::No => {}
        }
        let held = self.hold(pod);
        let storage = self.storage_verdict(pod);
        if let Err(refusal) = held {
            ready = Verdict::from(&refusal);
        } else if storage.status == ConditionStatus::False
            && storage.reason != "NotPublished"
            && ready.reason == "Starting"
        {
            ready = storage;
        }
        self.of_pod(pod, Phase::Starting, Progress::Reconciling, ready)
    }

    fn up(&mut self, pod: &Pod, ready: bool) -> Outlook {
        // What runs has its volume. If the operator does not know of it, it says so now.
        let held = self.hold(pod);
        let booted = booted(pod);
        let storage = self.storage_verdict(pod);
        let mut outlook = match (ready, held) {
            (_, Err(refusal)) => self.of_pod(pod, Phase::Booting, Progress::Reconciling, Verdict::from(&refusal)),
            (true, _) if storage.status == ConditionStatus::False && storage.reason != "NotPublished" => {
                self.of_pod(pod, Phase::Running, Progress::Reconciling, storage)
            }
            (true, _) => {
                let message = format!("incarnation {} runs and answers", self.world.epoch_of(pod));
                self.of_pod(pod, Phase::Running, Progress::Settled, Verdict::yes("Running", message))
            }
            (false, _) => {
                let phase = if booted.reason == "Stopping" { Phase::Stopping } else { Phase::Booting };
                let (reason, message) = match booted.status {
                    ConditionStatus::True => ("Booting".to_owned(), "the pod is about to become Ready".to_owned()),
                    _ => (booted.reason.clone(), booted.message.clone()),
                };
                self.of_pod(
                    pod,
                    phase,
                    Progress::Reconciling,
                    Verdict { status: ConditionStatus::False, reason, message },
                )
            }
        };
        if ready {
            outlook.failures = (0, 0);
            self.go_on_with_move(pod, &mut outlook);
        }
        match leave(self.world, pod) {
            Leave::Refused(why) => outlook.up_to_date = why,
            Leave::Now if outlook.moved.is_none() => self.actions.push(Action::DeletePod(doomed(pod))),
            Leave::No | Leave::Now => {}
        }
        if self.world.met.resize_refused.is_none()
            && let Resize::Wanted(resources) = resize::resize(pod, &self.world.environment.spec.resources)
        {
            self.actions.push(Action::ResizePod { name: pod.name_any(), resources: *resources });
        }
        outlook
    }

    /// Stops an incarnation that is to be moved, once the other node is ready for it.
    fn go_on_with_move(&mut self, pod: &Pod, outlook: &mut Outlook) {
        let (Some(volume), Some(node)) = (self.volume, incarnation::node(pod)) else { return };
        match moves::step(self.world, volume, self.world.epoch_of(pod), node, self.now) {
            Step::None => {}
            Step::Done => self.actions.push(Action::EndMove),
            Step::Waits(why) => outlook.up_to_date = why,
            Step::Later(pause, why) => {
                self.again = Some(pause);
                outlook.up_to_date = why;
            }
            Step::Stop(begun) => {
                self.actions.push(Action::DeletePod(doomed(pod)));
                outlook.moved = Some(begun);
            }
        }
    }

    /// Whether a pod that has no node yet could go to one that was dead when the pod was made, or waits for one node alone
    /// although it need not any more.
    fn is_misplaced(&self, pod: &Pod) -> bool {
        if incarnation::node(pod).is_some() {
            return false;
        }
        let movable = self.volume.is_some_and(|volume| self.world.is_movable(volume));
        let target = moves::target(self.world).ok().flatten();
        let waits_in_vain = movable && build::bound_to(pod).is_some_and(|node| Some(node.as_str()) != target);
        waits_in_vain || !build::shunned(pod).is_subset(&self.world.avoided())
    }

    /// Whether a pod that never ran is deleted because the spec has changed since it was made.
    fn replaced(&mut self, pod: &Pod) -> bool {
        let outdated = !self.differences(pod).is_empty()
            || !resize::matches(pod, &self.world.environment.spec.resources)
            || self.is_misplaced(pod);
        let replaced = outdated && !incarnation::was_started(pod);
        if replaced {
            self.actions.push(Action::DeletePod(doomed(pod)));
        }
        replaced
    }
}

const POWERED_OFF: &str = "the environment was shut down from inside: to start it again, set spec.runMode to Stopped \
                           and, once it is Stopped, back to Running";

/// Pause before the start that follows so many failures in a row.
#[must_use]
pub fn back_off(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    Duration::from_secs(1 << doublings).min(BACK_OFF_MAX)
}
