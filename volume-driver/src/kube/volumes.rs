//! `EnvironmentVolume`s whose data is on this node: their size is carried out, states that are to be restored are looked up, how full they are is told, and the data of
//! deleted ones is destroyed before their finalizer goes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt, future};
use kube::api::{Api, Patch, PatchParams};
use kube::core::DeserializeGuard;
use kube::runtime::controller::{Action, Config, Controller};
use kube::runtime::reflector::Store;
use kube::runtime::{WatchStreamExt, reflector};
use kube::{Client, ResourceExt};
use serde_json::json;
use tokio::sync::Notify;
use vivarium_api::names;
use vivarium_api::v1alpha1::EnvironmentVolume;
use vivarium_api::v1alpha1::condition;

use super::directory::{apply, status};
use super::journals::TendError;
use super::{ApiError, failed, is_gone, watch_readable};
use crate::directory::{DirectoryError, PUBLISHED, Published, VolumeName};
use crate::ids::{IdError, VolumeId};
use crate::publish::decide::{self, Former};
use crate::publish::{Publisher, Refusal, size};
use crate::volume::VolumeError;

const CONCURRENCY: u16 = 8;
/// How long until what failed is tried again by itself.
const RETRY: Duration = Duration::from_secs(5);
/// How long until a volume that somebody else was at is looked at again.
const BUSY: Duration = Duration::from_secs(1);
/// How often usage is read.
const USAGE_EVERY: Duration = Duration::from_secs(30);
/// A change of usage that is told: this many bytes, or one part in so many.
const TELL_BYTES: u64 = 1 << 20;
const TELL_PART: u64 = 100;
const DISK_TOO_SMALL: &str = "DiskTooSmall";
/// How long data of a volume that another node has by now stay while the operator has not said where a copy is to be
/// kept: as long as a node that was off may take to be ready again.
const UNDECIDED: Duration = Duration::from_mins(10);
/// How often it is looked whether a volume shares nothing any more with what was set aside of it.
const SHARED_AGAIN: Duration = Duration::from_mins(1);

/// Why an object could not be carried out; it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum VolumeTaskError {
    /// The node.
    #[error(transparent)]
    Refusal(#[from] Refusal),
    /// The cluster.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The cluster.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// Its journal.
    #[error(transparent)]
    Journal(#[from] TendError),
    /// The object has no uid that could name a volume.
    #[error(transparent)]
    Id(#[from] IdError),
}

/// What works on the objects of this node's volumes.
pub struct VolumeObjects {
    /// The cluster.
    pub client: Client,
    /// The volumes.
    pub publisher: Arc<Publisher>,
    /// Told when a volume was deleted: its layers may have lost their last user.
    pub collect: Arc<Notify>,
    /// Since when it is not decided what becomes of data of volumes that other nodes have.
    pub undecided: Mutex<HashMap<VolumeId, Instant>>,
}

impl VolumeObjects {
    /// Works until the process ends.
    pub async fn run(self: Arc<Self>) {
        let api: Api<DeserializeGuard<EnvironmentVolume>> = Api::all(self.client.clone());
        let (node, here) = (self.publisher.me.node.clone(), self.publisher.volumes.clone());
        // Those of this node, and those of others of which something is left here.
        let concerns = move |volume: &EnvironmentVolume| {
            let left =
                || volume.uid().and_then(|uid| VolumeId::parse(&uid).ok()).is_some_and(|id| here.get(&id).is_ok());
            is_on(volume, &node) || left()
        };
        let (reader, writer) = reflector::store();
        let stream = watch_readable(api)
            .modify(|volume| {
                volume.managed_fields_mut().clear();
                volume.annotations_mut().clear();
            })
            .reflect(writer)
            .applied_objects()
            .try_filter(move |volume| future::ready(concerns(volume)));
        let changed = {
            let changed = self.publisher.changed.clone();
            futures::stream::unfold(changed, |changed| async {
                changed.notified().await;
                Some(((), changed))
            })
        };
        let usage = self.clone().report_usage(reader.clone());
        let controller = Controller::for_stream(stream, reader)
            .with_config(Config::default().concurrency(CONCURRENCY))
            .reconcile_all_on(changed)
            .run(
                |volume, this| async move { this.reconcile(&volume).await },
                |_, error: &VolumeTaskError, _| {
                    tracing::warn!(%error, "a volume is tried again");
                    Action::requeue(RETRY)
                },
                self,
            )
            .for_each(|_| async {});
        future::join(controller, usage).await;
    }

    async fn reconcile(&self, volume: &EnvironmentVolume) -> Result<Action, VolumeTaskError> {
        let id = VolumeId::parse(&volume.uid().unwrap_or_default())?;
        if !is_on(volume, &self.publisher.me.node) {
            return self.drop_former(volume, &id).await;
        }
        self.is_decided(&id);
        if volume.metadata.deletion_timestamp.is_some() {
            self.destroy(volume, &id).await?;
            return Ok(Action::await_change());
        }
        self.carry_out_size(volume, &id).await?;
        self.look_up(volume, &id).await?;
        if volume.status.as_ref().is_some_and(|status| status.journal.is_some() && status.log.is_none()) {
            self.publisher.name_log(&name(volume), &id).await?;
        }
        if volume.next_store().is_some() || volume.status.as_ref().is_some_and(|status| status.next_log.is_some()) {
            self.publisher.change_store(&name(volume), &id);
        }
        if decide::says_published(volume) {
            match self.publisher.settle(&name(volume), &id).await {
                // Who is at it may be about to mount or unmount it.
                Err(Refusal::Busy(_)) => return Ok(Action::requeue(BUSY)),
                other => other?,
            }
        }
        let shared = self.publisher.volumes.is_shared(&id);
        Ok(if shared { Action::requeue(SHARED_AGAIN) } else { Action::await_change() })
    }

    async fn destroy(&self, volume: &EnvironmentVolume, id: &VolumeId) -> Result<(), VolumeTaskError> {
        if !volume.finalizers().iter().any(|finalizer| finalizer == names::FINALIZER_VOLUME) {
            return Ok(());
        }
        let name = name(volume);
        match self.publisher.destroy(&name, id).await {
            Ok(()) => {}
            // Told when the pod and the operator give it back, or the object is gone; nothing to complain about until
            // then.
            Err(Refusal::Volume(VolumeError::Published { .. }) | Refusal::Held { .. } | Refusal::NoObject { .. }) => {
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
        let api: Api<EnvironmentVolume> = Api::namespaced(self.client.clone(), &name.namespace);
        // From the object as it is now, so that the finalizer of another is never taken away.
        let Some(latest) = api.get_opt(&name.name).await.map_err(failed("read volume", &name))? else { return Ok(()) };
        if latest.uid() != volume.uid() {
            return Ok(());
        }
        let finalizers: Vec<_> = latest.finalizers().iter().filter(|f| *f != names::FINALIZER_VOLUME).collect();
        let patch = json!({
            "metadata": {"resourceVersion": latest.metadata.resource_version, "finalizers": finalizers},
        });
        match api.patch(&name.name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(_) => tracing::info!(volume = %id, object = %name, "destroyed the data of a deleted volume"),
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(failed("remove the finalizer of volume", &name)(error).into()),
        }
        self.collect.notify_one();
        Ok(())
    }

    /// What is here of a volume that another node brought back from its journal is of no use any more, unless this node
    /// is to keep a copy: whoever keeps that sees to it ([`super::standby`]).
    async fn drop_former(&self, volume: &EnvironmentVolume, id: &VolumeId) -> Result<Action, VolumeTaskError> {
        let former = decide::former(volume, &self.publisher.me.node);
        if matches!(former, Former::Stays | Former::Copy) || self.publisher.volumes.get(id).is_err() {
            self.is_decided(id);
            return Ok(Action::await_change());
        }
        let is_patient = self.undecided_for(id) < UNDECIDED;
        if is_patient && former == Former::Undecided {
            return Ok(Action::requeue(RETRY));
        }
        match self.publisher.drop_former(&name(volume), id, is_patient).await {
            // The object says something else by now.
            Ok(false) => return Ok(Action::requeue(RETRY)),
            Ok(true) => tracing::info!(volume = %id, object = %name(volume), "dropped the copy of a volume that moved"),
            // Told when the pod gives it back.
            Err(Refusal::Volume(VolumeError::Published { .. })) => {}
            Err(error) => return Err(error.into()),
        }
        self.is_decided(id);
        Ok(Action::await_change())
    }

    /// For how long it is not decided what becomes of data that are here.
    fn undecided_for(&self, id: &VolumeId) -> Duration {
        let mut undecided = self.undecided.lock().unwrap_or_else(PoisonError::into_inner);
        undecided.entry(id.clone()).or_insert_with(Instant::now).elapsed()
    }

    fn is_decided(&self, id: &VolumeId) {
        self.undecided.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    /// Sets the size that the spec wants, and says so.
    async fn carry_out_size(&self, volume: &EnvironmentVolume, id: &VolumeId) -> Result<(), VolumeTaskError> {
        let size = size(volume)?;
        let (volumes, id) = (self.publisher.volumes.clone(), id.clone());
        let set = tokio::task::spawn_blocking(move || volumes.set_size(&id, size)).await;
        let set = set.unwrap_or_else(|error| {
            Err(VolumeError::Pool(crate::pool::PoolError::Io {
                attempt: "set a size in",
                path: "the pool".into(),
                source: std::io::Error::other(error),
            }))
        });
        match set {
            Ok(()) => {}
            Err(VolumeError::NotFound(_)) => return Ok(()), // Nobody has used it yet.
            Err(error @ VolumeError::TooSmall { .. }) => {
                let message = error.to_string();
                let published = Published { published: false, reason: DISK_TOO_SMALL, message };
                return Ok(self.publisher.directory.report(volume, published).await?);
            }
            Err(error) => return Err(Refusal::from(error).into()),
        }
        let was = status(volume);
        let name = name(volume);
        let generation = volume.metadata.generation.unwrap_or_default();
        let capacity = i64::try_from(size).unwrap_or(i64::MAX);
        if was.observed_generation != generation || was.capacity_bytes != Some(capacity) {
            let api = Api::namespaced(self.client.clone(), &name.namespace);
            let new = json!({"observedGeneration": generation, "capacityBytes": capacity});
            apply(&api, &name, volume, "size", new).await?;
        }
        let complained = condition::find(&was.conditions, PUBLISHED).is_some_and(|c| c.reason == DISK_TOO_SMALL);
        if complained && self.publisher.is_published(&VolumeId::parse(&volume.uid().unwrap_or_default())?).await? {
            let message = "mounted, and large enough again".into();
            let published = Published { published: true, reason: "Published", message };
            self.publisher.directory.report(volume, published).await?;
        }
        Ok(())
    }

    /// Tells how full volumes are, now and then and only what has changed.
    async fn report_usage(self: Arc<Self>, objects: Store<EnvironmentVolume>) {
        let mut told: HashMap<VolumeId, u64> = HashMap::new();
        let mut now_and_then = tokio::time::interval(USAGE_EVERY);
        loop {
            now_and_then.tick().await;
            let volumes = self.publisher.volumes.clone();
            let read = tokio::task::spawn_blocking(move || {
                volumes.sweep_quota();
                let list = volumes.list().unwrap_or_default();
                list.into_iter().filter_map(|id| Some((id.clone(), volumes.usage(&id).ok()??.used))).collect::<Vec<_>>()
            });
            let Ok(usage) = read.await else { continue };
            told.retain(|id, _| usage.iter().any(|(there, _)| there == id));
            for (id, used) in usage {
                if !is_worth_telling(told.get(&id).copied(), used) {
                    continue;
                }
                let object = objects.find(|object| object.metadata.uid.as_deref() == Some(id.as_str()));
                let Some(object) = object.filter(|object| is_on(object, &self.publisher.me.node)) else { continue };
                let name = name(&object);
                let api = Api::namespaced(self.client.clone(), &name.namespace);
                match apply(&api, &name, &object, "usage", json!({"usedBytes": used})).await {
                    Ok(()) => drop(told.insert(id, used)),
                    Err(error) => tracing::warn!(%error, "the usage of a volume is told later"),
                }
            }
        }
    }
}

fn is_worth_telling(told: Option<u64>, used: u64) -> bool {
    told.is_none_or(|told| {
        let change = told.abs_diff(used);
        change > TELL_BYTES || change > told / TELL_PART
    })
}

fn is_on(volume: &EnvironmentVolume, node: &str) -> bool {
    volume.status.as_ref().and_then(|status| status.node.as_deref()) == Some(node)
}

pub(super) fn name(volume: &EnvironmentVolume) -> VolumeName {
    VolumeName { namespace: volume.namespace().unwrap_or_default(), name: volume.name_any() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_told_when_it_changed_by_a_mebibyte_or_a_hundredth() {
        for (told, used, expected) in [
            (None, 0, true),
            (Some(100 << 20), 100 << 20, false),
            (Some(100 << 20), (100 << 20) + 4096, false),
            (Some(100 << 20), 99 << 20, false),
            (Some(100 << 20), 98 << 20, true),
            (Some(65536), 69632, true),
            (Some(10 << 30), (10 << 30) + (2 << 20), true),
        ] {
            assert_eq!(is_worth_telling(told, used), expected, "{told:?} {used}");
        }
    }
}
