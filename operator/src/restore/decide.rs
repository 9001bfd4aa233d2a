//! What is to be done about one restore, and what its status becomes: a pure function of what is observed.

use jiff::Timestamp;
use kube::ResourceExt;
use vivarium_api::v1alpha1::environment::RunMode;
use vivarium_api::v1alpha1::volume::{RestoreOrder, RestoreProgress};
use vivarium_api::v1alpha1::{
    Condition, ConditionStatus, EnvironmentRestore, EnvironmentRestoreStatus, EnvironmentVolume, VirtualEnvironment,
    condition,
};

/// What is observed around one restore.
#[derive(Clone, Copy, Debug)]
pub struct World<'a> {
    /// The restore.
    pub restore: &'a EnvironmentRestore,
    /// The environment that it names.
    pub environment: Option<&'a VirtualEnvironment>,
    /// The volume of that name, whosever it is.
    pub volume: Option<&'a EnvironmentVolume>,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// The volume with the order, to be written if it still is as it was read.
    pub order: Option<Box<EnvironmentVolume>>,
    /// The status that the restore should show.
    pub status: EnvironmentRestoreStatus,
}

/// Where a restore stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    /// Work goes on, or is waited for.
    UnderWay(&'static str, String),
    /// It is done.
    Complete(String),
    /// It cannot be done.
    Failed(String, String),
}

/// Whether nothing more comes of a restore.
#[must_use]
pub fn is_over(restore: &EnvironmentRestore) -> bool {
    let conditions = restore.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    condition::is_true(conditions, "Complete") || condition::is_true(conditions, "Failed")
}

/// Decides about a restore that is not over.
#[must_use]
pub fn decide(world: World<'_>, now: Timestamp) -> Decision {
    let mut order = None;
    let stage = stage(world, now, &mut order);
    let own = world.volume.and_then(EnvironmentVolume::restore).filter(|own| is_of(own, world.restore));
    Decision { order, status: status(world.restore, &stage, own, now) }
}

fn is_of(progress: &RestoreProgress, restore: &EnvironmentRestore) -> bool {
    restore.metadata.uid.as_deref() == Some(progress.uid.as_str())
}

fn stage(world: World<'_>, now: Timestamp, order: &mut Option<Box<EnvironmentVolume>>) -> Stage {
    let spec = &world.restore.spec;
    let name = &spec.environment;
    let Some(environment) = world.environment else {
        return Stage::Failed(
            "EnvironmentNotFound".into(),
            format!("there is no VirtualEnvironment `{name}` in this namespace (kubectl get ve lists them)"),
        );
    };
    let own = world.volume.filter(|volume| volume.spec.environment.as_deref() == Some(name));
    let journaled = own.filter(|volume| {
        volume.log().is_some() && volume.status.as_ref().is_some_and(|status| status.journal.is_some())
    });
    let Some(volume) = journaled else {
        return Stage::Failed(
            "NotJournaled".into(),
            format!(
                "environment `{name}` has no journal, so it cannot become what it was: its volume is on its node alone, or \
                 it never ran"
            ),
        );
    };
    if spec.at.parse::<Timestamp>().is_ok_and(|at| at > now) {
        return Stage::Failed("NoSuchState".into(), format!("{} has not come yet: it is {now}", spec.at));
    }
    match (&volume.spec.restore, volume.restore()) {
        (Some(current), progress) if world.restore.metadata.uid.as_ref() == Some(&current.uid) => {
            under_way(environment, &spec.paths, progress)
        }
        (Some(other), progress) if !progress.is_some_and(RestoreProgress::is_settled) => {
            Stage::UnderWay("OtherRestore", format!("restore `{}` of the same environment comes first", other.name))
        }
        _ => {
            let mut wanted = volume.clone();
            wanted.spec.restore = Some(RestoreOrder {
                name: world.restore.name_any(),
                uid: world.restore.uid().unwrap_or_default(),
                at: spec.at.clone(),
                paths: spec.paths.clone(),
            });
            *order = Some(Box::new(wanted));
            Stage::UnderWay("LookingUp", LOOKING_UP.into())
        }
    }
}

const LOOKING_UP: &str = "the state is being looked up in the journal";

/// A restore that the volume has as its order.
fn under_way(environment: &VirtualEnvironment, paths: &[String], progress: Option<&RestoreProgress>) -> Stage {
    let Some(progress) = progress else { return Stage::UnderWay("LookingUp", LOOKING_UP.into()) };
    if let Some(refused) = &progress.refused {
        return Stage::Failed(refused.reason.clone(), refused.message.clone());
    }
    let sequence = progress.sequence.unwrap_or_default();
    let time = progress.time.as_ref().map_or_else(String::new, |time| format!(", of {}", time.0));
    let (what, undo) = match paths {
        [] => (String::new(), ""),
        [path] => (format!("`{path}` of "), "it from "),
        [path, others @ ..] => (format!("`{path}` and {} more of ", others.len()), "them from "),
    };
    let state = format!("{what}the state after transaction {sequence}{time}");
    if let Some(done) = &progress.done {
        return Stage::Complete(format!(
            "incarnation {} began with {state}; to undo that, restore {undo}transaction {}",
            done.epoch, done.before
        ));
    }
    match environment.spec.run_mode {
        RunMode::Running => Stage::UnderWay(
            "Restoring",
            format!("incarnation {} ends, and the next one begins with {state}", progress.epoch),
        ),
        RunMode::Stopped => Stage::UnderWay(
            "WaitsForStart",
            format!("the environment is Stopped, and gets {state} at its next start: set spec.runMode to Running"),
        ),
    }
}

fn status(
    restore: &EnvironmentRestore,
    stage: &Stage,
    progress: Option<&RestoreProgress>,
    now: Timestamp,
) -> EnvironmentRestoreStatus {
    use ConditionStatus::{False, True};
    let old = restore.status.clone().unwrap_or_default();
    let generation = restore.metadata.generation;
    let (reason, message) = match stage {
        Stage::UnderWay(reason, message) => ((*reason).to_owned(), message.clone()),
        Stage::Complete(message) => ("Restored".to_owned(), message.clone()),
        Stage::Failed(reason, message) => (reason.clone(), message.clone()),
    };
    let (complete, failed, also) = match stage {
        Stage::UnderWay(..) => (False, False, Some("Reconciling")),
        Stage::Complete(_) => (True, False, None),
        Stage::Failed(..) => (False, True, Some("Stalled")),
    };
    let states = [Some(("Complete", complete)), Some(("Failed", failed)), also.map(|also| (also, True))];
    let states: Vec<_> = states.into_iter().flatten().collect();
    let mut conditions: Vec<Condition> =
        old.conditions.into_iter().filter(|c| states.iter().any(|(type_, _)| c.type_ == *type_)).collect();
    for (type_, status) in states {
        let new = Condition {
            type_: type_.into(),
            status,
            observed_generation: generation,
            last_transition_time: Timestamp::from_second(now.as_second()).unwrap_or(now),
            reason: reason.clone(),
            message: message.clone(),
        };
        condition::set(&mut conditions, new);
    }
    EnvironmentRestoreStatus {
        observed_generation: generation.unwrap_or_default(),
        sequence: progress.and_then(|progress| progress.sequence),
        time: progress.and_then(|progress| progress.time.clone()),
        before: progress.and_then(|progress| progress.done.as_ref()).map(|done| done.before),
        conditions,
    }
}

#[cfg(test)]
mod tests;
