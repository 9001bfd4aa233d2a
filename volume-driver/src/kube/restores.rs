//! Looks up the state that a restore is about, before anything is stopped for it: by time or by number, in the journal
//! itself. What cannot be had is refused, and the environment runs on.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use vivarium_api::v1alpha1::EnvironmentVolume;
use vivarium_api::v1alpha1::volume::{RestoreProgress, RestoreRefusal};

use super::volumes::{VolumeObjects, VolumeTaskError};
use crate::ids::VolumeId;
use crate::journal::log::{Log, Moment};
use crate::publish::Refusal;

/// Which state somebody asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// That after this transaction.
    Sequence(u64),
    /// That at this instant.
    Time(Timestamp),
}

impl Wanted {
    /// Reads the number of a transaction or a time of RFC 3339.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text.parse() {
            Ok(sequence) => Some(Self::Sequence(sequence)),
            Err(_) => text.parse().ok().map(Self::Time),
        }
    }
}

impl VolumeObjects {
    /// Looks up the state that a restore asks for, if nobody did.
    pub(super) async fn look_up(&self, volume: &EnvironmentVolume, id: &VolumeId) -> Result<(), VolumeTaskError> {
        let (Some(order), None) = (&volume.spec.restore, volume.restore()) else { return Ok(()) };
        let Some(name) = volume.spec.store.as_deref() else { return Ok(()) };
        let publisher = &self.publisher;
        // Once it is open here, the watch of stores brings nobody back: the retry of what failed does.
        let store = publisher.stores.get(name);
        let object = super::volumes::name(volume);
        let store = store.ok_or_else(|| Refusal::StoreNotReady { name: object, store: name.to_owned() })?;
        let log = Log::new(id, store).map_err(Refusal::from)?;
        let status = volume.status.as_ref();
        let known = status.and_then(|status| status.journal.as_ref()).map_or(0, |journal| journal.sequence);
        let epoch = status.map_or(0, |status| status.epoch);
        let mut progress =
            RestoreProgress { uid: order.uid.clone(), epoch, sequence: None, time: None, refused: None, done: None };
        let found = match Wanted::parse(&order.at) {
            None => Err(("NoSuchState", format!("`{}` is neither a time nor the number of a transaction", order.at))),
            Some(wanted) => match find(&log, wanted, known).await {
                Ok(found) => found,
                Err(error) if error.is_final() => Err((error.reason(), error.to_string())),
                Err(error) => return Err(Refusal::from(error).into()),
            },
        };
        match found {
            Ok(moment) => {
                progress.sequence = Some(moment.position.sequence);
                progress.time = Some(Time(moment.time));
            }
            Err((reason, message)) => {
                progress.refused = Some(RestoreRefusal { reason: reason.into(), message });
            }
        }
        Ok(publisher.directory.restore(volume, progress).await?)
    }
}

/// The state, or one word of the runbook and a sentence.
async fn find(
    log: &Log,
    wanted: Wanted,
    known: u64,
) -> Result<Result<Moment, (&'static str, String)>, crate::journal::JournalError> {
    let oldest = log.oldest(known).await?;
    Ok(match wanted {
        Wanted::Time(time) => match log.at(time, known).await? {
            moment if moment.too_old => Err(("TooOld", too_old(&format!("{time}"), &moment))),
            moment => Ok(moment),
        },
        Wanted::Sequence(sequence) if sequence < oldest.position.sequence => {
            Err(("TooOld", too_old(&format!("transaction {sequence}"), &oldest)))
        }
        Wanted::Sequence(sequence) => match log.moment(sequence).await? {
            Some(moment) => Ok(moment),
            None => Err((
                "NoSuchState",
                format!(
                    "there is no transaction {sequence} in the journal: its newest one is {}",
                    log.tail(known).await?.sequence
                ),
            )),
        },
    })
}

fn too_old(wanted: &str, oldest: &Moment) -> String {
    format!(
        "{wanted} lies before everything that is kept: the oldest state is that after transaction {}, of {}",
        oldest.position.sequence, oldest.time
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_named_by_a_time_or_a_number() {
        let time = |text: &str| Some(Wanted::Time(text.parse().unwrap()));
        for (text, wanted) in [
            ("17", Some(Wanted::Sequence(17))),
            ("2026-11-25T18:00:00Z", time("2026-11-25T18:00:00Z")),
            ("2026-11-25T18:00:00.5+01:00", time("2026-11-25T17:00:00.5Z")),
            ("yesterday", None),
            ("-1", None),
            ("", None),
        ] {
            assert_eq!(Wanted::parse(text), wanted, "{text}");
        }
    }
}
