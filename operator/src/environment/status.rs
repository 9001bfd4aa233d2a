//! The status of an environment: conditions by the Kubernetes conventions, such that kstatus understands them, and the
//! events that follow from a change of status.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::ResourceExt;
use vivarium_api::v1alpha1::environment::{LastFailover, LastMove, Phase};
use vivarium_api::v1alpha1::{Condition, ConditionStatus, VirtualEnvironmentStatus, condition};

use super::decision::Refusal;
use super::world::{World, volume_name};
use super::{durability, holder, incarnation, moves};

/// The conditions that are always there.
const ALWAYS: [&str; 5] = ["Ready", "Scheduled", "StorageReady", "Booted", "UpToDate"];
/// Conditions that are there once there is a journal.
const JOURNAL: [&str; 2] = ["Durable", "Proven"];
/// Conditions that are there only while True.
const ONLY_TRUE: [&str; 2] = ["Reconciling", "Stalled"];
/// Length of a message in a condition at most, in bytes (metav1.Condition).
const MESSAGE_MAX: usize = 32768;

/// One condition's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it holds.
    pub status: ConditionStatus,
    /// Why, in one word.
    pub reason: String,
    /// Why, in a sentence.
    pub message: String,
}

impl Verdict {
    /// It holds.
    #[must_use]
    pub fn yes(reason: &str, message: impl Into<String>) -> Self {
        Self { status: ConditionStatus::True, reason: reason.into(), message: message.into() }
    }

    /// It does not hold.
    #[must_use]
    pub fn no(reason: &str, message: impl Into<String>) -> Self {
        Self { status: ConditionStatus::False, reason: reason.into(), message: message.into() }
    }

    /// Not known.
    #[must_use]
    pub fn unknown(reason: &str, message: impl Into<String>) -> Self {
        Self { status: ConditionStatus::Unknown, reason: reason.into(), message: message.into() }
    }

    fn into_condition(self, type_: &str, generation: Option<i64>, now: Timestamp) -> Condition {
        let mut message = self.message;
        if message.len() > MESSAGE_MAX {
            let end = (0..=MESSAGE_MAX).rev().find(|i| message.is_char_boundary(*i)).unwrap_or(0);
            message.truncate(end);
        }
        // The API requires a word; the kubelet does not always give one.
        let reason = if self.reason.is_empty() { "Unspecified".to_owned() } else { self.reason };
        Condition {
            type_: type_.into(),
            status: self.status,
            observed_generation: generation,
            last_transition_time: whole_seconds(now),
            reason,
            message,
        }
    }
}

impl From<&Refusal> for Verdict {
    fn from(refusal: &Refusal) -> Self {
        Self::no(refusal.reason, refusal.message.clone())
    }
}

/// Whether something is going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Everything is as the spec says.
    Settled,
    /// Work goes on, or is waited for.
    Reconciling,
    /// Only a person can help.
    Stalled,
}

/// What a decision found, before it is put into a status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outlook {
    /// The word for people.
    pub phase: Phase,
    /// Whether work goes on.
    pub progress: Progress,
    /// Condition Ready.
    pub ready: Verdict,
    /// Condition Scheduled.
    pub scheduled: Verdict,
    /// Condition `StorageReady`.
    pub storage: Verdict,
    /// Condition Booted.
    pub booted: Verdict,
    /// Condition `UpToDate`.
    pub up_to_date: Verdict,
    /// Incarnations in a row that failed, and the newest that is counted.
    pub failures: (u32, u64),
    /// Epoch of the newest incarnation.
    pub epoch: u64,
    /// A failover that begins.
    pub failover: Option<LastFailover>,
    /// A move that begins.
    pub moved: Option<LastMove>,
}

impl Outlook {
    /// An environment of which nothing runs.
    #[must_use]
    pub fn idle(world: &World, phase: Phase, progress: Progress, ready: Verdict) -> Self {
        let status = world.environment.status.clone().unwrap_or_default();
        let without = |what: &str| Verdict::no("NoIncarnation", format!("{what}: there is no pod"));
        Self {
            phase,
            progress,
            ready,
            scheduled: without("nothing is placed on a node"),
            storage: without("the volume is not in use"),
            booted: without("nothing is booted"),
            up_to_date: Verdict::yes("UpToDate", "the next start takes the spec as it is"),
            failures: (status.failures, status.failed_epoch),
            epoch: world.epoch(),
            failover: None,
            moved: None,
        }
    }
}

/// Times of the API have no fractions of a second (metav1.Time).
fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// Puts an outlook into a status. Transition times of unchanged conditions stay, so that an unchanged world gives an
/// unchanged status.
#[must_use]
pub fn compose(world: &World, outlook: Outlook, now: Timestamp) -> VirtualEnvironmentStatus {
    let environment = &world.environment;
    let generation = environment.metadata.generation;
    let old = environment.status.clone().unwrap_or_default();
    let mut conditions: Vec<Condition> =
        old.conditions.into_iter().filter(|c| ALWAYS.iter().chain(&JOURNAL).any(|t| c.type_ == **t)).collect();
    let also = match outlook.progress {
        Progress::Settled => None,
        Progress::Reconciling => Some("Reconciling"),
        Progress::Stalled => Some("Stalled"),
    };
    let former = environment.status.iter().flat_map(|s| &s.conditions);
    conditions
        .extend(former.filter(|c| ONLY_TRUE.contains(&c.type_.as_str()) && Some(c.type_.as_str()) == also).cloned());
    if let Some(type_) = also {
        let verdict = Verdict { status: ConditionStatus::True, ..outlook.ready.clone() };
        condition::set(&mut conditions, verdict.into_condition(type_, generation, now));
    }
    let ready = outlook.ready.status == ConditionStatus::True;
    let verdicts = [outlook.ready, outlook.scheduled, outlook.storage, outlook.booted, outlook.up_to_date];
    for (type_, verdict) in ALWAYS.into_iter().zip(verdicts) {
        condition::set(&mut conditions, verdict.into_condition(type_, generation, now));
    }
    let (durability, durable) = durability::durability(world).unzip();
    for (type_, verdict) in JOURNAL.into_iter().zip([durable, durability::proven(world)]) {
        match verdict {
            Some(verdict) => condition::set(&mut conditions, verdict.into_condition(type_, generation, now)),
            None => conditions.retain(|condition| condition.type_ != type_),
        }
    }
    conditions.sort_by_key(|c| ALWAYS.iter().chain(&JOURNAL).chain(&ONLY_TRUE).position(|known| *known == c.type_));
    let pod = world.newest_pod();
    let volume = world.own_volume();
    let failover = outlook.failover.or(old.last_failover).map(|failover| follow(world, failover, ready, now));
    let moved = outlook.moved.or(old.last_move).map(|last| moves::follow(world, last, ready, now));
    let digest = volume.and_then(|v| v.spec.template.image.split_once('@')).map(|(_, digest)| digest.to_owned());
    let service = world.service.as_deref().filter(|s| world.owns(*s) && !environment.spec.services.is_empty());
    let address = service.and_then(|s| s.spec.as_ref()?.cluster_ip.clone()).filter(|ip| !ip.is_empty() && ip != "None");
    VirtualEnvironmentStatus {
        observed_generation: generation.unwrap_or_default(),
        phase: Some(outlook.phase),
        epoch: outlook.epoch,
        pod_name: pod.map(|pod| pod.name_any()),
        node: pod.and_then(|pod| incarnation::node(pod)).map(Into::into),
        pod_ip: pod.and_then(|pod| pod.status.as_ref()?.pod_ip.clone()).filter(|ip| !ip.is_empty()),
        service_ip: address,
        // Kept when the volume is lost: only so is it known that there was one.
        volume_name: volume
            .map(ResourceExt::name_any)
            .or(old.volume_name)
            .or_else(|| Some(volume_name(environment).into())),
        template_digest: digest.or(old.template_digest),
        failures: outlook.failures.0,
        failed_epoch: outlook.failures.1,
        last_failover: failover,
        durability,
        journal: durability::journal(world),
        last_move: moved,
        conditions,
    }
}

/// Whether a status is written before the actions that were decided with it, which remove the cause of something that later
/// decisions rely on: a failed pod is counted, and the begin of a move noted, before the pod is
/// deleted, a failover is noted before its pod is made.
#[must_use]
pub fn must_come_first(old: Option<&VirtualEnvironmentStatus>, new: &VirtualEnvironmentStatus) -> bool {
    let noted = |s: &VirtualEnvironmentStatus| {
        let moved = s.last_move.as_ref().map(|last| (last.epoch, last.stopping.0));
        (s.failures, s.failed_epoch, s.last_failover.as_ref().map(|failover| failover.epoch), moved)
    };
    old.map(noted).unwrap_or_default() != noted(new)
}

/// Notes the instants of a failover that were reached since. What was noted stays.
fn follow(world: &World, failover: LastFailover, ready: bool, now: Timestamp) -> LastFailover {
    let Some(pod) = world.newest_pod().filter(|pod| world.epoch_of(pod) == failover.epoch) else { return failover };
    let volume = world.own_volume().filter(|volume| holder::holds(volume, pod.metadata.uid.as_deref()));
    let mut failover = failover;
    let conditions = volume.and_then(|volume| volume.status.as_ref()).map(|status| status.conditions.as_slice());
    let begun = incarnation::began(pod);
    let reached = |instant: &mut Option<MicroTime>, reached: bool| {
        if reached {
            instant.get_or_insert(MicroTime(now));
        }
    };
    reached(&mut failover.fenced, volume.is_some());
    reached(&mut failover.restored, begun || condition::is_true(conditions.unwrap_or_default(), "Published"));
    reached(&mut failover.started, begun);
    reached(&mut failover.ready, ready);
    failover.to_node = failover.to_node.or_else(|| incarnation::node(pod).map(Into::into));
    failover
}

/// Something worth an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// One word.
    pub reason: String,
    /// A sentence.
    pub message: String,
    /// Whether a person should look.
    pub warning: bool,
}

impl Note {
    /// Something went as it should.
    pub fn normal(reason: &str, message: impl Into<String>) -> Self {
        Self { reason: reason.into(), message: message.into(), warning: false }
    }

    /// Something did not.
    pub fn warning(reason: &str, message: impl Into<String>) -> Self {
        Self { reason: reason.into(), message: message.into(), warning: true }
    }
}

/// The events that a change of status is worth.
#[must_use]
pub fn notes(old: Option<&VirtualEnvironmentStatus>, new: &VirtualEnvironmentStatus) -> Vec<Note> {
    let mut notes = Vec::new();
    let before = |type_: &str| old.and_then(|s| condition::find(&s.conditions, type_));
    let after = |type_: &str| condition::find(&new.conditions, type_);
    let phase_changed = old.and_then(|s| s.phase) != new.phase;
    match new.phase {
        Some(Phase::Running) if phase_changed => {
            let node = new.node.as_deref().unwrap_or("an unknown node");
            notes.push(Note::normal("Started", format!("incarnation {} runs on {node}", new.epoch)));
        }
        Some(Phase::Stopped) if phase_changed => notes.push(Note::normal("Stopped", "the environment is shut down")),
        _ => {}
    }
    let told = |type_: &str| {
        let (was, is) = (before(type_), after(type_)?);
        (is.status == ConditionStatus::False && was.map(|c| (&c.reason, c.status)) != Some((&is.reason, is.status)))
            .then_some(is)
    };
    if let Some(ready) = told("Ready") {
        let stalled = condition::is_true(&new.conditions, "Stalled");
        match (new.phase, stalled) {
            (Some(Phase::PoweredOff), _) => notes.push(Note::normal("PoweredOff", &ready.message)),
            (Some(Phase::Failed), _) => notes.push(Note::warning("Failed", &ready.message)),
            (Some(Phase::Deleting), _) => {}
            (_, true) => notes.push(Note::warning(&ready.reason, &ready.message)),
            _ if is_trouble(&ready.reason) => notes.push(Note::warning(&ready.reason, &ready.message)),
            _ => {}
        }
    }
    let failover = new.last_failover.as_ref();
    let before = old.and_then(|status| status.last_failover.as_ref());
    if let Some(failover) = failover.filter(|f| f.ready.is_some() && before.is_none_or(|b| b.ready != f.ready)) {
        notes.push(Note::normal("FailedOver", failed_over(failover)));
    }
    for trouble in JOURNAL.into_iter().filter_map(told) {
        notes.push(Note::warning(&trouble.reason, &trouble.message));
    }
    if let Some(up_to_date) = told("UpToDate") {
        notes.push(Note::normal(&up_to_date.reason, &up_to_date.message));
    }
    notes
}

fn failed_over(failover: &LastFailover) -> String {
    let to = failover.to_node.as_deref().unwrap_or("another node");
    let took = failover.ready.as_ref().map_or(0.0, |ready| ready.0.duration_since(failover.detected.0).as_secs_f64());
    format!(
        "node {} died; incarnation {} answers on {to}, {took:.1} s after that was found",
        failover.from_node, failover.epoch
    )
}

/// Whether a reason of `Ready=False` is more than a step on the way.
fn is_trouble(reason: &str) -> bool {
    !matches!(
        reason,
        "Preparing"
            | "Starting"
            | "Scheduling"
            | "Booting"
            | "Rebooting"
            | "Stopping"
            | "Terminating"
            | "Restoring"
            | "NoIncarnation"
    )
}
