//! Volumes whose guest has ended for good. Nothing of that incarnation writes any more, so its volume is taken back at once:
//! the kubelet, which has a sandbox to clear away before it comes to that, finds it done. So who waits for the volume gets it
//! a second or two earlier.
//!
//! A container beside the guest, such as one of `kubectl debug` that has the volume mounted by itself, may still write
//! then, and the journal does not get it.

use vivarium_api::node::guest::GuestReport;

use super::{Publisher, Refusal, blocking};
use crate::authority::kill::alive;
use crate::ids::VolumeId;
use crate::volume::record::Publication;

impl Publisher {
    /// Takes a volume back from a guest that has ended for good; does nothing if it has not, or has no volume any more.
    ///
    /// # Errors
    /// As [`Self::unpublish`]; the kubelet sees to it later then.
    pub async fn take_back_from(&self, report: &GuestReport) -> Result<(), Refusal> {
        let id = VolumeId::parse(&report.volume_id)?;
        // Whoever is at work on it now does this, or is called again.
        let Some(operation) = self.operations.begin(&id) else { return Ok(()) };
        let (records, volume) = (self.records.clone(), id.clone());
        let publication = blocking(move || Ok(records.get(&volume)?)).await?;
        let Some(publication) = publication.filter(|publication| has_ended(report, publication)) else { return Ok(()) };
        tracing::info!(volume = %id, pod = report.pod.name, state = report.state.as_str(), "its guest has ended");
        self.take_back(&id, publication.target, operation).await
    }
}

/// Whether whom the volume was published to has ended for good.
fn has_ended(report: &GuestReport, publication: &Publication) -> bool {
    let stage = &publication.stage;
    let is_of_this = (report.pod.uid.as_str(), report.epoch) == (stage.pod_uid.as_str(), stage.epoch);
    is_of_this && report.state.is_over() && alive(report.init).is_none()
}
