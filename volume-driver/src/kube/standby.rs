//! Hot standby on this node: for each volume that another node holds and of which the operator wants a copy here, a
//! task that follows its log ([`crate::journal::standby`]). What this node had of the volume itself becomes the copy,
//! if it can ([`crate::journal::rejoin`]): here and nowhere else, since who does not know yet that a copy is wanted
//! would destroy it. A copy that is not wanted any more is destroyed.
//!
//! A log is asked for its next transaction about once a second while it grows, and less often while it does not. The
//! object is told when the copy follows and when it cannot, and how far it is at most every few seconds.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use kube::api::{Api, PostParams};
use kube::core::DeserializeGuard;
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::{self, Store};
use kube::{Client, ResourceExt};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use vivarium_api::v1alpha1::EnvironmentVolume;
use vivarium_api::v1alpha1::condition::{self, Condition, ConditionStatus};

use super::{ApiError, failed, is_conflict, is_gone, watch_readable};
use crate::directory::VolumeName;
use crate::ids::VolumeId;
use crate::journal::standby::{Followed, drop_standby};
use crate::publish::copy::CopyError;
use crate::publish::decide::keeps_copy;
use crate::publish::{Publisher, Refusal};
use crate::volume::VolumeError;

/// Type of the condition that says whether the copy follows.
const STANDBY: &str = "Standby";
/// How often it is looked what is to be followed.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Between two looks at a log that grows.
const BUSY: Duration = Duration::from_secs(1);
/// Longest time between two looks at one that does not.
const IDLE: Duration = Duration::from_secs(4);
/// Longest pause after failures in a row.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// How often the object is told how far the copy is.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// What is told while a copy is not begun.
const IN_THE_WAY: &str = "the pod that had the volume on this node is not gone yet";

/// What keeps copies.
pub struct Standbys {
    /// The cluster.
    pub client: Client,
    /// Volumes, templates and stores of this node.
    pub publisher: Arc<Publisher>,
}

/// What follows one log, until it is dropped.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Whether a volume was given to a node, which is about to take its copy over.
fn is_awaited(volume: &EnvironmentVolume, me: &str) -> bool {
    volume.metadata.deletion_timestamp.is_none()
        && volume.status.as_ref().is_some_and(|status| status.node.as_deref() == Some(me))
}

impl Standbys {
    /// Keeps for ever.
    pub async fn run(self) {
        let (reader, writer) = reflector::store();
        let api: Api<DeserializeGuard<EnvironmentVolume>> = Api::all(self.client.clone());
        let watch = watch_readable(api)
            .modify(|volume| {
                volume.managed_fields_mut().clear();
                volume.annotations_mut().clear();
            })
            .reflect(writer)
            .for_each(|event| async move {
                if let Err(error) = event {
                    tracing::warn!(%error, "volumes cannot be watched for standby copies");
                }
            });
        tokio::select! {
            () = watch => {}
            () = self.follow(reader) => {}
        }
    }

    async fn follow(&self, volumes: Store<EnvironmentVolume>) {
        // Before that, nothing would be wanted.
        if volumes.wait_until_ready().await.is_err() {
            return;
        }
        let me = &self.publisher.me.node;
        let mut tasks: HashMap<VolumeId, Task> = HashMap::new();
        let mut look = tokio::time::interval(LOOK_EVERY);
        loop {
            look.tick().await;
            let all = volumes.state().into_iter();
            let all = all.filter_map(|volume| Some((VolumeId::parse(&volume.uid()?).ok()?, volume)));
            let all: HashMap<VolumeId, Arc<EnvironmentVolume>> = all.collect();
            self.drop_others(&all).await;
            let wanted: HashMap<_, _> = all.into_iter().filter(|(_, volume)| keeps_copy(volume, me)).collect();
            tasks.retain(|id, _| wanted.contains_key(id));
            for (id, volume) in wanted {
                tasks.entry(id.clone()).or_insert_with(|| {
                    let one = One {
                        client: self.client.clone(),
                        publisher: self.publisher.clone(),
                        volumes: volumes.clone(),
                        name: VolumeName { namespace: volume.namespace().unwrap_or_default(), name: volume.name_any() },
                        id,
                    };
                    Task(tokio::spawn(one.follow()))
                });
            }
        }
    }

    /// Destroys copies that are of no use, one after the other: freeing many at once stalls the file system.
    async fn drop_others(&self, all: &HashMap<VolumeId, Arc<EnvironmentVolume>>) {
        let (volumes, me) = (&self.publisher.volumes, &self.publisher.me.node);
        let here = match volumes.standbys() {
            Ok(here) => here,
            Err(error) => return tracing::warn!(%error, "standby copies cannot be listed"),
        };
        let of_use = |id: &VolumeId| {
            let volume = all.get(id);
            volume.is_some_and(|volume| keeps_copy(volume, me) || is_awaited(volume, me) && volumes.get(id).is_err())
                // What cannot be read is no reason to destroy anything.
                || self.publisher.pending.awaits(id).unwrap_or(true)
        };
        let Some(id) = here.into_iter().find(|id| !of_use(id)) else { return };
        // A call that gives the volume to this node may be about to take the copy over.
        let Some(_operation) = self.publisher.operations.begin(&id) else { return };
        let (volumes, volume) = (self.publisher.volumes.clone(), id.clone());
        match tokio::task::spawn_blocking(move || drop_standby(&volumes, &volume)).await {
            Ok(Ok(())) => tracing::info!(volume = %id, "destroyed a standby copy that is not wanted any more"),
            Ok(Err(error)) => tracing::warn!(%error, "a standby copy stays for now"),
            Err(error) => tracing::warn!(%error, "a standby copy stays for now"),
        }
    }
}

/// What follows one log.
struct One {
    client: Client,
    publisher: Arc<Publisher>,
    volumes: Store<EnvironmentVolume>,
    name: VolumeName,
    id: VolumeId,
}

/// What is told of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Told {
    sequence: Option<u64>,
    reason: &'static str,
    message: String,
}

impl One {
    async fn follow(self) {
        let (mut pause, mut failures) = (BUSY, 0u32);
        let mut told: Option<(Instant, Told)> = None;
        loop {
            let found = self.step().await;
            let news = match &found {
                Ok(Some(followed)) => told_of(*followed),
                Ok(None) => Told { sequence: None, reason: "CatchingUp", message: IN_THE_WAY.into() },
                Err(error) => {
                    tracing::warn!(%error, volume = %self.id, "its standby copy does not follow");
                    Told { sequence: None, reason: error.reason(), message: error.to_string() }
                }
            };
            if is_due(told.as_ref(), &news, Instant::now()) {
                match self.tell(&news).await {
                    Ok(()) => told = Some((Instant::now(), news)),
                    Err(error) => tracing::info!(%error, volume = %self.id, "how its standby copy is, is told later"),
                }
            }
            (pause, failures) = match found {
                Err(_) => (BUSY.saturating_mul(1 << failures.min(6)).min(LONGEST_PAUSE), failures.saturating_add(1)),
                Ok(Some(Followed::Same(_) | Followed::Nothing)) => ((pause.min(IDLE) * 3 / 2).min(IDLE), 0),
                Ok(None | Some(Followed::Made(_) | Followed::Moved { .. })) => (BUSY, 0),
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// `None`: what is here of the volume itself is in the way.
    async fn step(&self) -> Result<Option<Followed>, CopyError> {
        let object = self.volumes.find(|volume| volume.metadata.uid.as_deref() == Some(self.id.as_str()));
        let Some(object) = object else { return Ok(Some(Followed::Nothing)) };
        if self.is_here() {
            match self.publisher.rejoin(&self.name, &self.id).await {
                Ok(()) if self.is_here() => return Ok(None),
                Ok(()) => {}
                // Somebody may be taking it back from the pod that has it, which comes first.
                Err(Refusal::Busy(_) | Refusal::Volume(VolumeError::Published { .. })) => return Ok(None),
                // A copy can be made beside it.
                Err(error) => tracing::warn!(%error, volume = %self.id, "what was here of it stays for now"),
            }
        }
        self.publisher.bring_copy_on(&self.id, &object).await.map(Some)
    }

    fn is_here(&self) -> bool {
        self.publisher.volumes.get(&self.id).is_ok()
    }

    /// Writes how the copy is into the status, if it is still wanted here.
    async fn tell(&self, news: &Told) -> Result<(), ApiError> {
        let api: Api<EnvironmentVolume> = Api::namespaced(self.client.clone(), &self.name.namespace);
        loop {
            let read = api.get_opt(&self.name.name).await.map_err(failed("read volume", &self.name))?;
            let Some(mut volume) = read.filter(|volume| volume.metadata.uid.as_deref() == Some(self.id.as_str()))
            else {
                return Ok(());
            };
            if !keeps_copy(&volume, &self.publisher.me.node) || !put(&mut volume, news, Timestamp::now()) {
                return Ok(());
            }
            match api.replace_status(&self.name.name, &PostParams::default(), &volume).await {
                Ok(_) => return Ok(()),
                Err(error) if is_conflict(&error) => {}
                Err(error) if is_gone(&error) => return Ok(()),
                Err(error) => return Err(failed("write the status of volume", &self.name)(error)),
            }
        }
    }
}

fn told_of(followed: Followed) -> Told {
    let told = |sequence, reason, message: &str| Told { sequence, reason, message: message.into() };
    match followed {
        Followed::Nothing => told(None, "CatchingUp", "there is nothing in the journal yet to be copied"),
        Followed::Same(at) => told(Some(at.sequence), "CaughtUp", "the copy holds all that is in the journal"),
        Followed::Moved { to, more: false, .. } => {
            told(Some(to.sequence), "CaughtUp", "the copy holds all that is in the journal")
        }
        Followed::Moved { to: at, .. } | Followed::Made(at) => told(
            Some(at.sequence),
            "CatchingUp",
            "the copy was made, and what came into the journal meanwhile is added",
        ),
    }
}

/// Whether the object is to be told: at once of what changes, of how far it is now and then.
fn is_due(told: Option<&(Instant, Told)>, news: &Told, now: Instant) -> bool {
    told.is_none_or(|(at, told)| told.reason != news.reason || (told != news && now.duration_since(*at) >= TELL_EVERY))
}

/// Puts it into the status; `false`: it is there already.
fn put(volume: &mut EnvironmentVolume, news: &Told, now: Timestamp) -> bool {
    let generation = volume.metadata.generation;
    let status = volume.status.get_or_insert_default();
    let before = (status.standby.clone(), status.conditions.clone());
    if let Some(standby) = &mut status.standby {
        standby.sequence = news.sequence;
    }
    let follows = news.reason == "CaughtUp";
    condition::set(
        &mut status.conditions,
        Condition {
            type_: STANDBY.into(),
            status: if follows { ConditionStatus::True } else { ConditionStatus::False },
            observed_generation: generation,
            last_transition_time: now,
            reason: news.reason.into(),
            message: news.message.clone(),
        },
    );
    before != (status.standby.clone(), status.conditions.clone())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn volume(spec: &serde_json::Value, status: &serde_json::Value) -> EnvironmentVolume {
        let mut volume = json!({"apiVersion": "vivarium.dev/v1alpha1", "kind": "EnvironmentVolume",
            "metadata": {"name": "v", "generation": 3},
            "spec": {"template": {"name": "t", "image": "i", "layers": ["l"]}, "size": "1Gi"}, "status": status});
        for (key, value) in spec.as_object().unwrap() {
            volume["spec"][key] = value.clone();
        }
        serde_json::from_value(volume).unwrap()
    }

    #[test]
    fn a_copy_is_kept_on_the_chosen_node_and_not_where_the_volume_is() {
        let with_store = json!({"store": "s", "standby": 1});
        for (spec, status, wanted) in [
            (&with_store, json!({"node": "n1", "standby": {"node": "n2"}}), true),
            (&with_store, json!({"standby": {"node": "n2"}}), true),
            (&with_store, json!({"node": "n2", "standby": {"node": "n2"}}), false),
            (&with_store, json!({"node": "n1", "standby": {"node": "n3"}}), false),
            (&with_store, json!({"node": "n1"}), false),
            (&json!({}), json!({"node": "n1", "standby": {"node": "n2"}}), false),
        ] {
            let volume = volume(spec, &status);
            assert_eq!(keeps_copy(&volume, "n2"), wanted, "{spec} {status}");
            // One that was given to this node is about to be taken over.
            assert_eq!(is_awaited(&volume, "n2"), status["node"] == "n2", "{spec} {status}");
        }
        let mut deleted = volume(&with_store, &json!({"standby": {"node": "n2"}}));
        deleted.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::now()));
        assert!(!keeps_copy(&deleted, "n2"));
    }

    #[test]
    fn changes_are_told_at_once_and_progress_now_and_then() {
        let told = |sequence, reason| Told { sequence: Some(sequence), reason, message: String::new() };
        let now = Instant::now();
        let before = (now, told(5, "CaughtUp"));
        let due = |news: &Told, after| is_due(Some(&before), news, now + after);
        assert!(is_due(None, &told(5, "CaughtUp"), now));
        assert!(due(&told(5, "StoreUnreachable"), Duration::ZERO));
        assert!(!due(&told(9, "CaughtUp"), Duration::from_secs(1)));
        assert!(due(&told(9, "CaughtUp"), TELL_EVERY));
        assert!(!due(&told(5, "CaughtUp"), TELL_EVERY * 100), "nothing has changed");
    }

    #[test]
    fn the_status_is_written_only_when_it_changes() {
        let mut object = volume(&json!({"store": "s"}), &json!({"node": "n1", "standby": {"node": "n2"}}));
        let news = Told { sequence: Some(7), reason: "CaughtUp", message: "all".into() };
        let now = Timestamp::from_second(5).unwrap();
        assert!(put(&mut object, &news, now));
        let status = object.status.clone().unwrap();
        assert_eq!(status.standby.unwrap().sequence, Some(7));
        assert!(condition::is_true(&status.conditions, STANDBY));
        assert!(!put(&mut object, &news, Timestamp::from_second(9).unwrap()));
        assert!(put(&mut object, &Told { reason: "PoolFull", ..news }, now));
        assert!(!condition::is_true(&object.status.unwrap().conditions, STANDBY));
    }
}
