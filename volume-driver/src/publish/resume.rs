//! Going on with the journals of what a former process of this driver published.

use std::sync::Arc;
use std::time::Duration;

use vivarium_api::v1alpha1::volume::VolumeLog;

use super::{Publisher, Refusal, blocking};
use crate::directory::VolumeName;
use crate::ids::{LayerDigest, VolumeId};
use crate::journal::begin::Opening;
use crate::journal::change::Settled;
use crate::journal::log::Log;
use crate::volume::record::RecordError;

/// How long until a journal whose store did not answer is opened again.
const RESUME_AGAIN: Duration = Duration::from_secs(5);

impl Publisher {
    /// Goes on with the journals of everything that a former process published, as soon as their stores are there.
    ///
    /// # Errors
    /// The records cannot be read.
    pub fn resume_journals(self: &Arc<Self>) -> Result<(), RecordError> {
        for (id, _) in self.records.list()? {
            let this = self.clone();
            tokio::spawn(async move {
                while let Err(error) = this.resume_beside(&id).await {
                    tracing::warn!(%error, volume = %id, "its journal is opened later");
                    tokio::time::sleep(RESUME_AGAIN).await;
                }
            });
        }
        Ok(())
    }

    /// The same for one, while the kubelet may call.
    async fn resume_beside(&self, id: &VolumeId) -> Result<(), Refusal> {
        let _alone = match self.doubt(id).await? {
            Some(_) => Some(self.operations.begin(id).ok_or_else(|| Refusal::Busy(id.clone()))?),
            None => None,
        };
        self.resume_journal(id).await
    }

    /// Goes on with the journal of a volume that is published, in the log that decides.
    pub(super) async fn resume_journal(&self, id: &VolumeId) -> Result<(), Refusal> {
        let (records, volume) = (self.records.clone(), id.clone());
        let publication = blocking(move || Ok(records.get(&volume)?)).await?;
        let Some(publication) = publication else { return Ok(()) };
        let Some(record) = &publication.journal else { return Ok(()) };
        let name = VolumeName { namespace: record.namespace.clone(), name: record.name.clone() };
        if self.settle_doubt(&name, id).await? == Settled::Over {
            self.keeper.lose(id, publication.stage.epoch);
            return Ok(());
        }
        let (records, volume) = (self.records.clone(), id.clone());
        let record = blocking(move || Ok(records.get(&volume)?.and_then(|publication| publication.journal))).await?;
        // Taken back meanwhile.
        let Some(record) = record else { return Ok(()) };
        let layers = record.layers.iter().map(|layer| LayerDigest::parse(layer)).collect::<Result<_, _>>()?;
        let epoch = publication.stage.epoch;
        let opening = Opening { id: id.clone(), size: 0, room: 0, epoch, layers, known: 0, revert: None, source: None };
        let log = VolumeLog { store: record.store, name: record.log.unwrap_or_else(|| id.to_string()) };
        let log = Log::named(id, &log.name, self.store_of(&name, &log).await?)?;
        let (keeper, records, id) = (self.keeper.clone(), self.records.clone(), id.clone());
        blocking(move || match records.get(&id)? {
            // Taken back meanwhile.
            None => Ok(()),
            Some(_) => Ok(keeper.resume(&name, log, &opening)?),
        })
        .await
    }
}
