//! Restores volumes on trial, to know that it can be done: those of environments that run elsewhere, as far as this node is
//! the one to do it, one after the other.
//!
//! The node that has a volume tells what its tree is after a transaction ([`crate::journal::keeper`]). That state is restored
//! from the store alone, into a copy that is thrown away, and compared. A state that is not kept any more says nothing: its
//! node tells of a newer one in time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Client;
use kube::api::Api;
use serde_json::json;
use tokio::time::Instant;
use vivarium_api::v1alpha1::EnvironmentVolume;
use vivarium_api::v1alpha1::volume::{DigestStatus, ProvenStatus};

use super::directory::{apply, condition_part};
use super::journals::{self, Journals, TendError, Tended};
use super::volumes::name;
use crate::ids::VolumeId;
use crate::journal::JournalError;
use crate::journal::prove::prove;
use crate::publish::Publisher;

/// Type of the condition that says whether a restore on trial gave the very tree.
const PROVEN: &str = "Proven";
/// From the end of one round to the next.
const PACE: Duration = Duration::from_mins(1);
/// How long a volume that could not be tried is left alone.
const LATER: Duration = Duration::from_mins(10);

/// What restores volumes on trial.
pub struct Proving {
    /// The cluster.
    pub client: Client,
    /// Namespace that Vivarium is installed in.
    pub namespace: String,
    /// Volumes, templates and stores of this node.
    pub publisher: Arc<Publisher>,
    /// How often each volume is tried.
    pub every: Duration,
}

impl Proving {
    /// Tries for ever.
    pub async fn run(self) {
        let mut failed: HashMap<VolumeId, Instant> = HashMap::new();
        loop {
            tokio::time::sleep(PACE).await;
            failed.retain(|_, at| at.elapsed() < LATER);
            let journals = match Journals::read(&self.client, &self.namespace).await {
                Ok(journals) => journals,
                Err(error) => {
                    tracing::warn!(%error, "volumes are restored on trial later");
                    continue;
                }
            };
            for (volume, id) in journals.of(&self.publisher.me.node) {
                let Some(told) = due(volume, Timestamp::now(), self.every).filter(|_| !failed.contains_key(&id)) else {
                    continue;
                };
                if let Err(error) = self.prove_one(volume, &id, told).await {
                    tracing::warn!(%error, volume = %name(volume), "it is restored on trial later");
                    failed.insert(id, Instant::now());
                }
            }
        }
    }

    /// Restores a volume and compares it with what its own node told.
    async fn prove_one(&self, volume: &EnvironmentVolume, id: &VolumeId, told: &DigestStatus) -> Result<(), TendError> {
        let tended = journals::open(&self.publisher, volume, id.clone(), vec![]).await?;
        let Some(Tended { log, subject, .. }) = &tended else { return Ok(()) };
        let Publisher { volumes, templates, me, .. } = &*self.publisher;
        let (me, sequence) = (&me.node, told.sequence);
        let tried = async || prove(volumes, templates, log, subject, sequence).await;
        let mut found = tried().await;
        // Somebody may have collected what was about to be read.
        if found.as_ref().is_err_and(JournalError::blames_store) {
            found = tried().await;
        }
        let found = match found {
            Ok(None) => return Ok(()),
            Ok(Some(digest)) if digest.to_string() == told.digest => {
                Ok(format!("node {me} restored the state after transaction {sequence} and found the very tree"))
            }
            Ok(Some(digest)) => Err((
                "DigestDiffers",
                format!(
                    "node {me} restored the state after transaction {sequence} from the store, and its digest is {digest}, \
                     not {}, which the volume's own node found",
                    told.digest
                ),
            )),
            Err(error) if error.blames_store() => Err((error.reason(), error.to_string())),
            Err(error) => return Err(error.into()),
        };
        self.tell(volume, sequence, found).await
    }

    async fn tell(
        &self,
        volume: &EnvironmentVolume,
        sequence: u64,
        found: Result<String, (&'static str, String)>,
    ) -> Result<(), TendError> {
        let now = Timestamp::now();
        let tried = ProvenStatus { sequence, time: Time(now) };
        let (holds, reason, message) = match found {
            Ok(message) => (true, "SameTree", message),
            Err((reason, message)) => (false, reason, message),
        };
        tracing::info!(volume = %name(volume), sequence, reason, "restored a volume on trial");
        let mut new = json!({
            "conditions": condition_part(volume, PROVEN, holds, reason, &message, now),
            "tried": tried,
        });
        // What was said before and is not said again would be gone, and null is refused.
        let before = volume.status.as_ref().and_then(|status| status.proven.as_ref());
        if let Some(proven) = if holds { Some(&tried) } else { before } {
            new["proven"] = json!(proven);
        }
        let name = name(volume);
        let api = Api::namespaced(self.client.clone(), &name.namespace);
        Ok(apply(&api, &name, volume, "proven", new).await?)
    }
}

/// The tree that a volume should be compared with now; `None`: it is not time to, or its own node has not told of any. A
/// state that was told of since the last trial is tried at once, so that it is the newest; others for what became of their
/// objects in the store.
fn due(volume: &EnvironmentVolume, now: Timestamp, every: Duration) -> Option<&DigestStatus> {
    let tried = volume.status.as_ref()?.tried.as_ref();
    volume.status.as_ref()?.digest.as_ref().filter(|digest| {
        tried.is_none_or(|tried| {
            tried.sequence != digest.sequence || now.duration_since(tried.time.0).unsigned_abs() >= every
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_tried_when_its_node_tells_of_a_new_state_and_now_and_then() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let digest = |sequence| DigestStatus { sequence, digest: "d".into(), time: Time(at(0)) };
        let tried = |sequence, second| ProvenStatus { sequence, time: Time(at(second)) };
        for (digest, tried, is_due) in [
            (None, None, false),
            (Some(digest(3)), None, true),
            (Some(digest(3)), Some(tried(3, 950)), false),
            (Some(digest(3)), Some(tried(3, 900)), true),
            (Some(digest(4)), Some(tried(3, 950)), true),
        ] {
            let mut volume: EnvironmentVolume = serde_json::from_value(json!({
                "apiVersion": "vivarium.dev/v1alpha1", "kind": "EnvironmentVolume", "metadata": {"name": "v"},
                "spec": {"template": {"name": "t", "image": "i", "layers": ["l"]}, "size": "1Gi"},
                "status": {"observedGeneration": 1}}))
            .unwrap();
            let status = volume.status.as_mut().unwrap();
            (status.digest, status.tried) = (digest, tried);
            let found = due(&volume, at(1000), Duration::from_secs(100)).is_some();
            assert_eq!(found, is_due, "{:?}", volume.status);
        }
    }
}
