//! `EnvironmentVolume`s as the API server has them.

use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::{Client, ResourceExt};
use serde_json::json;
use vivarium_api::names;
use vivarium_api::node::guest::PodReference;
use vivarium_api::v1alpha1::condition::{self, Condition, ConditionStatus};
use vivarium_api::v1alpha1::volume::{DigestStatus, RestoreProgress, SourceStatus};
use vivarium_api::v1alpha1::{EnvironmentTemplate, EnvironmentVolume, EnvironmentVolumeStatus};

use super::{FIELD_MANAGER, is_conflict, is_gone};
use crate::claim::TemplateDirectory;
use crate::directory::{
    DirectoryError, JOURNALED, Journaled, PUBLISHED, Published, STORE_CURRENT, VolumeDirectory, VolumeName,
};
use crate::ids::VolumeId;
use crate::journal::prove::Fingerprint;

/// An API server that does not answer for so long does not answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How often an object is asked for that is not there, or could not be followed.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// The cluster.
#[derive(Clone)]
pub struct ClusterDirectory {
    /// Its API server.
    pub client: Client,
}

impl ClusterDirectory {
    fn api(&self, namespace: &str) -> Api<EnvironmentVolume> {
        Api::namespaced(self.client.clone(), namespace)
    }
}

fn failed<E: ToString>(attempt: &'static str, volume: &VolumeName) -> impl FnOnce(E) -> DirectoryError + use<E> {
    let volume = volume.clone();
    move |error| DirectoryError { attempt, volume, message: error.to_string() }
}

async fn in_time<T>(
    attempt: &'static str,
    volume: &VolumeName,
    call: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, DirectoryError> {
    match tokio::time::timeout(TIMEOUT, call).await {
        Ok(result) => result.map_err(failed(attempt, volume)),
        Err(_) => Err(failed(attempt, volume)("the API server does not answer")),
    }
}

/// How whoever watches an object goes on.
enum Next {
    Ask,
    AskLater,
    Follow(BoxStream<'static, Result<WatchEvent<EnvironmentVolume>, kube::Error>>),
}

/// The next state of an object. It is asked for by its name, and followed from there: an API server that lists from a cache
/// of its own, as every other kind of watch begins, waits up to a tenth of a second until that is of now.
async fn step(
    api: &Api<EnvironmentVolume>,
    name: &VolumeName,
    next: Next,
) -> Result<(Option<EnvironmentVolume>, Next), DirectoryError> {
    let mut next = next;
    loop {
        next = match next {
            Next::Follow(mut changes) => match changes.try_next().await.map_err(failed("watch", name))? {
                Some(WatchEvent::Added(now) | WatchEvent::Modified(now)) => {
                    return Ok((Some(now), Next::Follow(changes)));
                }
                Some(WatchEvent::Deleted(_)) => return Ok((None, Next::AskLater)),
                Some(WatchEvent::Bookmark(_)) => Next::Follow(changes),
                // It ends now and then, and the API server forgets what changed long ago.
                Some(WatchEvent::Error(_)) | None => Next::AskLater,
            },
            Next::AskLater => {
                tokio::time::sleep(ASK_AGAIN).await;
                Next::Ask
            }
            Next::Ask => {
                let now = in_time("read", name, api.get_opt(&name.name)).await?;
                let Some(version) = now.as_ref().and_then(ResourceExt::resource_version) else {
                    return Ok((None, Next::AskLater));
                };
                let params = WatchParams::default().fields(&format!("metadata.name={}", name.name));
                let changes = in_time("watch", name, api.watch(&params, &version)).await?;
                return Ok((now, Next::Follow(changes.boxed())));
            }
        };
    }
}

#[async_trait]
impl VolumeDirectory for ClusterDirectory {
    async fn get(&self, volume: &VolumeName) -> Result<Option<EnvironmentVolume>, DirectoryError> {
        in_time("read", volume, self.api(&volume.namespace).get_opt(&volume.name)).await
    }

    async fn find(&self, namespace: &str, environment: &str) -> Result<Option<EnvironmentVolume>, DirectoryError> {
        let name = VolumeName { namespace: namespace.to_owned(), name: environment.to_owned() };
        let used = |volume: &EnvironmentVolume| volume.spec.environment.as_deref() == Some(environment);
        // Mostly it has the environment's name.
        let own = self.get(&name).await?;
        if own.as_ref().is_some_and(used) {
            return Ok(own);
        }
        let labelled = ListParams::default().labels(&format!("{}={environment}", names::LABEL_ENVIRONMENT));
        let all = in_time("list", &name, self.api(namespace).list(&labelled)).await?;
        Ok(all.items.into_iter().find(used).or(own.filter(|volume| volume.spec.environment.is_none())))
    }

    fn watch(&self, volume: &VolumeName) -> BoxStream<'static, Result<Option<EnvironmentVolume>, DirectoryError>> {
        let watched = (self.api(&volume.namespace), volume.clone());
        let states = futures::stream::try_unfold((watched, Next::Ask), async |((api, name), next)| {
            let (seen, next) = step(&api, &name, next).await?;
            Ok(Some((seen, ((api, name), next))))
        });
        states.boxed()
    }

    async fn report(&self, volume: &EnvironmentVolume, published: Published) -> Result<(), DirectoryError> {
        let name = VolumeName { namespace: volume.namespace().unwrap_or_default(), name: volume.name_any() };
        let Published { published, reason, message } = published;
        let new = condition_part(volume, PUBLISHED, published, reason, &message, Timestamp::now());
        if condition::find(&status(volume).conditions, PUBLISHED) == new.first() {
            return Ok(());
        }
        apply(&self.api(&name.namespace), &name, volume, "published", json!({"conditions": new})).await
    }

    async fn journaled(&self, name: &VolumeName, id: &VolumeId, journaled: Journaled) -> Result<(), DirectoryError> {
        for _ in 0..ATTEMPTS {
            let volume = self.get(name).await?.filter(|volume| volume.metadata.uid.as_deref() == Some(id.as_str()));
            let Some(volume) = volume else { return Ok(()) };
            let new = journal_part(&volume, &journaled, Timestamp::now());
            // What is written follows from what was read: nobody may have written in between.
            let version = volume.resource_version();
            if apply_to(&self.api(&name.namespace), name, &volume, version, "journal", new).await? {
                return Ok(());
            }
        }
        Err(failed("write the status of", name)("it changes all the time"))
    }

    async fn restore(&self, volume: &EnvironmentVolume, progress: RestoreProgress) -> Result<(), DirectoryError> {
        let name = VolumeName { namespace: volume.namespace().unwrap_or_default(), name: volume.name_any() };
        let current = |now: &EnvironmentVolume| {
            let ordered = now.spec.restore.as_ref().is_some_and(|order| order.uid == progress.uid);
            now.uid() == volume.uid() && ordered && !now.restore().is_some_and(RestoreProgress::is_settled)
        };
        let Some(mut now) = self.get(&name).await?.filter(current) else { return Ok(()) };
        // As it was read: what is said of the newest incarnation must be so when it is said.
        if progress.done.is_none() && status(&now).epoch != progress.epoch {
            return Err(failed("write the status of", &name)("another incarnation was begun"));
        }
        now.status.get_or_insert_default().restore = Some(progress);
        let api = self.api(&name.namespace);
        in_time("write the status of", &name, api.replace_status(&name.name, &PostParams::default(), &now)).await?;
        Ok(())
    }

    async fn fingerprint(
        &self,
        name: &VolumeName,
        id: &VolumeId,
        fingerprint: Fingerprint,
    ) -> Result<(), DirectoryError> {
        let mine = |volume: &EnvironmentVolume| volume.metadata.uid.as_deref() == Some(id.as_str());
        let Some(volume) = self.get(name).await?.filter(mine) else { return Ok(()) };
        let digest = DigestStatus {
            sequence: fingerprint.sequence,
            digest: fingerprint.digest.to_string(),
            time: Time(Timestamp::now()),
        };
        apply(&self.api(&name.namespace), name, &volume, "digest", json!({"digest": digest})).await
    }

    async fn branched(&self, volume: &EnvironmentVolume, source: SourceStatus) -> Result<(), DirectoryError> {
        let name = VolumeName { namespace: volume.namespace().unwrap_or_default(), name: volume.name_any() };
        apply(&self.api(&name.namespace), &name, volume, "source", json!({"source": source})).await
    }

    async fn prepared(&self, volume: &VolumeName, pod: &PodReference) -> Result<(), DirectoryError> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let patch = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": pod.name, "uid": pod.uid},
            "status": {"conditions": [{
                "type": names::CONDITION_PREPARED,
                "status": "True",
                "reason": "VolumeAwaited",
                "message": "it waits for its volume alone, of which a copy is here if one could be made",
                "lastTransitionTime": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            }]},
        });
        let params = PatchParams::apply(&format!("{FIELD_MANAGER}-prepared")).force();
        let attempt = "say that a pod is prepared for";
        in_time(attempt, volume, api.patch_status(&pod.name, &params, &Patch::Apply(&patch))).await.map(drop)
    }

    async fn swap_status(&self, volume: &EnvironmentVolume) -> Result<bool, DirectoryError> {
        let name = VolumeName { namespace: volume.namespace().unwrap_or_default(), name: volume.name_any() };
        let api = self.api(&name.namespace);
        let call = async {
            match api.replace_status(&name.name, &PostParams::default(), volume).await {
                Ok(_) => Ok(true),
                Err(error) if is_conflict(&error) || is_gone(&error) => Ok(false),
                Err(error) => Err(error),
            }
        };
        in_time("write the status of", &name, call).await
    }

    async fn store_current(
        &self,
        volume: &EnvironmentVolume,
        found: Result<(), (&'static str, String)>,
    ) -> Result<(), DirectoryError> {
        let name = VolumeName { namespace: volume.namespace().unwrap_or_default(), name: volume.name_any() };
        let (holds, reason, message) = match found {
            Ok(()) => (true, "Current", "the journal is in the store that the spec names".to_owned()),
            Err((reason, message)) => (false, reason, message),
        };
        let new = condition_part(volume, STORE_CURRENT, holds, reason, &message, Timestamp::now());
        if condition::find(&status(volume).conditions, STORE_CURRENT) == new.first() {
            return Ok(());
        }
        apply(&self.api(&name.namespace), &name, volume, "store", json!({"conditions": new})).await
    }
}

#[async_trait]
impl TemplateDirectory for ClusterDirectory {
    async fn template(&self, name: &str) -> Result<Option<EnvironmentTemplate>, String> {
        let templates: Api<EnvironmentTemplate> = Api::all(self.client.clone());
        match tokio::time::timeout(TIMEOUT, templates.get_opt(name)).await {
            Ok(result) => result.map_err(|error| error.to_string()),
            Err(_) => Err("the API server does not answer".into()),
        }
    }
}

/// How often a status is written that others write at the same time.
const ATTEMPTS: u32 = 5;

/// What the status of a volume says of its journal: all of it, because what was said before and is not said again would be
/// gone. The released epoch never goes back, whoever is late.
fn journal_part(volume: &EnvironmentVolume, journaled: &Journaled, now: Timestamp) -> serde_json::Value {
    let status = status(volume);
    let (reason, message) = match &journaled.trouble {
        None => ("Journaled", "changes reach the store"),
        Some((reason, message)) => (*reason, message.as_str()),
    };
    let mut part = json!({
        "conditions": condition_part(volume, JOURNALED, journaled.trouble.is_none(), reason, message, now),
        "releasedEpoch": journaled.released.unwrap_or_default().max(status.released_epoch),
    });
    // The API server refuses a null; what is not named is no longer there.
    if let Some(journal) = journaled.journal.clone().or(status.journal) {
        part["journal"] = json!(journal);
    }
    if let Some(lag) = &journaled.lag {
        part["lag"] = json!(lag);
    }
    part
}

/// What the status of a volume is to say as one of its conditions: since when it is so is taken from what it says already.
pub(super) fn condition_part(
    volume: &EnvironmentVolume,
    type_: &str,
    holds: bool,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> Vec<Condition> {
    let mut list = status(volume).conditions;
    condition::set(
        &mut list,
        Condition {
            type_: type_.into(),
            status: if holds { ConditionStatus::True } else { ConditionStatus::False },
            observed_generation: volume.metadata.generation,
            last_transition_time: now,
            reason: reason.into(),
            message: message.into(),
        },
    );
    list.into_iter().filter(|condition| condition.type_ == type_).collect()
}

/// Applies a part of the status of the very object that was seen, not of one made later under its name.
pub(super) async fn apply(
    api: &Api<EnvironmentVolume>,
    name: &VolumeName,
    seen: &EnvironmentVolume,
    concern: &str,
    status: serde_json::Value,
) -> Result<(), DirectoryError> {
    apply_to(api, name, seen, None, concern, status).await.map(drop)
}

/// The same, if the object still is of that version. Whether it was.
async fn apply_to(
    api: &Api<EnvironmentVolume>,
    name: &VolumeName,
    seen: &EnvironmentVolume,
    version: Option<String>,
    concern: &str,
    status: serde_json::Value,
) -> Result<bool, DirectoryError> {
    let mut patch = json!({
        "apiVersion": "vivarium.dev/v1alpha1",
        "kind": "EnvironmentVolume",
        "metadata": {"name": name.name, "uid": seen.metadata.uid},
        "status": status,
    });
    let by_version = version.is_some();
    if let Some(version) = version {
        patch["metadata"]["resourceVersion"] = version.into();
    }
    let params = PatchParams::apply(&format!("{FIELD_MANAGER}-{concern}")).force();
    let patch = Patch::Apply(&patch);
    let call = async {
        match api.patch_status(&name.name, &params, &patch).await {
            Ok(_) => Ok(true),
            Err(error) if is_gone(&error) => Ok(true),
            Err(error) if by_version && is_conflict(&error) => Ok(false),
            Err(error) => Err(error),
        }
    };
    in_time("write the status of", name, call).await
}

/// The status, or that of an object that has none yet.
pub(super) fn status(volume: &EnvironmentVolume) -> EnvironmentVolumeStatus {
    volume.status.clone().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_released_epoch_never_goes_back_and_what_was_said_is_said_again() {
        let volume: EnvironmentVolume = serde_json::from_value(json!({
            "apiVersion": "vivarium.dev/v1alpha1", "kind": "EnvironmentVolume", "metadata": {"name": "v", "generation": 2},
            "spec": {"template": {"name": "t", "image": "i@sha256:d", "layers": ["l"]}, "size": "1Gi"},
            "status": {"observedGeneration": 1, "epoch": 5, "releasedEpoch": 4,
                "journal": {"epoch": 5, "sequence": 7, "time": "2026-01-01T00:00:00Z"}}}))
        .unwrap();
        for (released, expected) in [(None, 4), (Some(3), 4), (Some(5), 5)] {
            let journaled = Journaled { journal: None, lag: None, released, trouble: None };
            let part = journal_part(&volume, &journaled, Timestamp::UNIX_EPOCH);
            assert_eq!(
                (&part["releasedEpoch"], &part["journal"]["sequence"]),
                (&json!(expected), &json!(7)),
                "{released:?}"
            );
            assert_eq!(part["conditions"][0]["status"], "True");
            assert_eq!(part.get("lag"), None, "nothing is null");
        }
    }
}
