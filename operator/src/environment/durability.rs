//! What the changes of an environment survive at present, and how far its journal is.

use jiff::SignedDuration;
use kube::ResourceExt;
use vivarium_api::v1alpha1::environment::{DurabilityStatus, JournalSummary};
use vivarium_api::v1alpha1::{ConditionStatus, EnvironmentVolume, condition};

use super::status::Verdict;
use super::validate;
use super::world::World;

/// An environment that writes all the time is told to be ahead so often: each change of a status costs a dozen requests.
const FOLLOW_EVERY: SignedDuration = SignedDuration::from_mins(5);

/// What is reached, and the condition `Durable`. `None` while nothing of the environment is in a journal.
#[must_use]
pub fn durability(world: &World) -> Option<(DurabilityStatus, Verdict)> {
    let volume = world.own_volume()?;
    let (log, status) = (volume.log()?, volume.status.as_ref()?);
    let name = log.store.as_str();
    status.journal.as_ref()?;
    let wanted = world.environment.spec.durability.clone().unwrap_or_default();
    let named = wanted.store.as_deref().and_then(|name| world.store(name)).map(|store| store.spec.tolerates.clone());
    let desired = wanted.tolerate.or(named);
    let lag = status.lag.as_ref();
    let verdict = |found: Result<(), String>| match found {
        Ok(()) => Verdict::yes("Reached", format!("changes are kept by JournalStore `{name}`")),
        Err(message) => Verdict::no("Degraded", message),
    };
    let journaled = condition::find(&status.conditions, "Journaled").filter(|c| c.status == ConditionStatus::False);
    let store = world.store(name);
    let works = match store {
        None => Err(format!("there is no JournalStore `{name}` any more, which keeps the journal")),
        Some(store) => {
            let conditions = store.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
            match condition::find(conditions, "Ready") {
                Some(ready) if ready.status == ConditionStatus::True => Ok(store.spec.tolerates.clone()),
                Some(ready) => Err(format!("JournalStore `{}` is not ready. {}", store.name_any(), ready.message)),
                None => Err(format!("no node has tried JournalStore `{}` yet", store.name_any())),
            }
        }
    };
    let works = match (works, journaled) {
        (Ok(_), Some(trouble)) => Err(format!("changes do not reach the store. {}", trouble.message)),
        (works, _) => works,
    };
    let (reached, found) = match works {
        Err(message) => (None, Err(message)),
        Ok(reached) => {
            let enough = desired.as_ref().is_none_or(|desired| reached.is_enough_for(desired));
            let less = || {
                format!(
                    "JournalStore `{name}` tolerates {} failures of a {:?} by now, less than spec.durability wants",
                    reached.failures, reached.domain
                )
            };
            (Some(reached.clone()), if enough { Ok(()) } else { Err(less()) })
        }
    };
    let status = DurabilityStatus {
        desired,
        reached,
        proven: status.proven.clone(),
        lag_seconds: lag.map_or(0, |lag| lag.seconds),
        lag_bytes: lag.map_or(0, |lag| lag.bytes),
    };
    // What does not work now is worse than what is too little, and that is about to end if the journal is under way.
    let verdict = match change(world, volume, name) {
        Ok(Some(under_way)) if status.reached.is_some() => under_way,
        Err(refusal) if found.is_ok() => refusal,
        _ => verdict(found),
    };
    Some((status, verdict))
}

/// That the journal is to be in another store than the one that has it, and what is in the way of that. An error: there is no
/// such store.
fn change(world: &World, volume: &EnvironmentVolume, from: &str) -> Result<Option<Verdict>, Verdict> {
    let wanted = validate::store_of(world, volume).map_err(|refusal| Verdict::no(refusal.reason, refusal.message))?;
    let Some(wanted) = wanted.filter(|wanted| wanted != from) else { return Ok(None) };
    let conditions = volume.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let told = condition::find(conditions, "StoreCurrent").filter(|found| found.status == ConditionStatus::False);
    let (reason, message) = match told {
        Some(told) => (told.reason.clone(), told.message.clone()),
        None => ("ChangingStore".into(), "it begins when the environment runs".to_owned()),
    };
    let message = format!("changes are kept by JournalStore `{from}`, and are to be by `{wanted}`: {message}");
    Ok(Some(Verdict { status: ConditionStatus::False, reason, message }))
}

/// The condition `Proven`: what another node found that restored the volume on trial. `None`: none has yet.
#[must_use]
pub fn proven(world: &World) -> Option<Verdict> {
    let found = condition::find(&world.own_volume()?.status.as_ref()?.conditions, "Proven")?;
    Some(Verdict { status: found.status, reason: found.reason.clone(), message: found.message.clone() })
}

/// The journal as the status shows it: what it showed before, until that is old.
#[must_use]
pub fn journal(world: &World) -> Option<JournalSummary> {
    let status = world.own_volume()?.status.as_ref()?;
    let journal = status.journal.as_ref()?;
    let now = JournalSummary {
        head: journal.sequence,
        time: journal.time.clone(),
        checkpoint: status.kept.as_ref().map_or(0, |kept| kept.checkpoint),
        bytes: status.kept.as_ref().map_or(0, |kept| kept.bytes),
    };
    let before = world.environment.status.as_ref().and_then(|status| status.journal.clone());
    let holds = |before: &JournalSummary| {
        before.head <= now.head
            && before.checkpoint == now.checkpoint
            && now.time.0.duration_since(before.time.0) < FOLLOW_EVERY
    };
    Some(before.filter(holds).unwrap_or(now))
}
