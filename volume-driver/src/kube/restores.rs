//! Looks up the state that a restore is about, before anything is stopped for it: by time or by number, in the journal
//! itself. What cannot be had is refused, and the environment runs on.

use std::path::PathBuf;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use vivarium_api::v1alpha1::EnvironmentVolume;
use vivarium_api::v1alpha1::volume::{RestoreProgress, RestoreRefusal};

use super::journals;
use super::volumes::{VolumeObjects, VolumeTaskError};
use crate::ids::VolumeId;
use crate::journal::log::{Log, Moment};
use crate::journal::revert::check_paths;
use crate::journal::wanted::{NotThere, Wanted};
use crate::publish::Refusal;

impl VolumeObjects {
    /// Looks up the state that a restore asks for, if nobody did.
    pub(super) async fn look_up(&self, volume: &EnvironmentVolume, id: &VolumeId) -> Result<(), VolumeTaskError> {
        let (Some(order), None) = (&volume.spec.restore, volume.restore()) else { return Ok(()) };
        let past = volume.past();
        if past.is_empty() {
            return Ok(());
        }
        let publisher = &self.publisher;
        let status = volume.status.as_ref();
        let paths: Vec<PathBuf> = order.paths.iter().map(PathBuf::from).collect();
        let known = volume.known();
        let epoch = status.map_or(0, |status| status.epoch);
        let mut progress =
            RestoreProgress { uid: order.uid.clone(), epoch, sequence: None, time: None, refused: None, done: None };
        let found = match Wanted::read(&order.at) {
            Err(not_there) => Err(not_there),
            Ok(wanted) => {
                let name = super::volumes::name(volume);
                // A store that is not open here yet is waited for, and then the retry of what failed brings this back.
                let (log, known) = publisher.log_with(&name, id, &past, known, Some(wanted)).await?;
                match wanted.find(&log, known).await {
                    Ok(Ok(moment)) if !paths.is_empty() => self.check(volume, id, &log, moment, paths).await?,
                    Ok(found) => found,
                    Err(error) if error.is_final() => Err((error.reason(), error.to_string())),
                    Err(error) => return Err(Refusal::from(error).into()),
                }
            }
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

    /// Whether the state has the paths that are asked for: a typing error is no reason to stop anything.
    async fn check(
        &self,
        volume: &EnvironmentVolume,
        id: &VolumeId,
        log: &Log,
        moment: Moment,
        paths: Vec<PathBuf>,
    ) -> Result<Result<Moment, NotThere>, VolumeTaskError> {
        let publisher = &self.publisher;
        let Some(tended) = journals::open(publisher, volume, id.clone(), Vec::new()).await? else {
            return Ok(Ok(moment));
        };
        let subject = &tended.subject;
        let checked = check_paths(
            &publisher.volumes,
            &publisher.templates,
            log,
            &subject.layers,
            moment.position,
            subject.size,
            paths,
        );
        match checked.await {
            Ok(()) => Ok(Ok(moment)),
            Err(error) if error.is_final() => Ok(Err((error.reason(), error.to_string()))),
            Err(error) => Err(Refusal::from(error).into()),
        }
    }
}
