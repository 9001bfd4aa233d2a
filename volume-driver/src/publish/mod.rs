//! Handing a volume to a pod and taking it back: what the CSI node calls mean, without their wire format.
//!
//! Stage brings the template's layers here and makes the volume on first use; publish waits until the operator has given
//! the volume to this node, session and epoch ([`decide`]), writes the records for the shim, then mounts. Each call can be
//! repeated at any time, also after it was cut off anywhere. Where somebody else has the volume, the call does not wait
//! ([`pending`]). Data is made only on the node that the object names, so no
//! data is ever left behind where nobody looks for it.

pub mod change;
pub mod copy;
pub mod decide;
mod ended;
pub mod guard;
pub(crate) mod mounts;
mod own;
pub mod pending;
mod refusal;
mod resume;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio::sync::Notify;
use tokio::time::Instant;
use vivarium_api::node::guest::PodReference;
use vivarium_api::node::stage::{self, StageRecord};
use vivarium_api::v1alpha1::EnvironmentVolume;
use vivarium_api::v1alpha1::volume::{
    EnvironmentVolumeStatus, RestoreDone, RestoreProgress, RestoreRefusal, SourceStatus, VolumeLog,
};
use vivarium_store::Store;

pub use decide::Me;
use decide::Verdict;
use guard::{Operation, Operations};
use mounts::At;
use pending::Pending;
pub use refusal::Refusal;

use crate::authority::Promises;
use crate::directory::{Published, VolumeDirectory, VolumeName};
use crate::ids::{LayerDigest, VolumeId};
use crate::journal::begin::{Opening, Origin, Source};
use crate::journal::keeper::{Keeper, Outcome};
use crate::journal::log::Log;
use crate::journal::revert::{Revert, Reverted};
use crate::journal::wanted::Wanted;
use crate::kube::stores::Stores;
use crate::settings::parse_size;
use crate::template::TemplateCache;
use crate::volume::record::{JournalRecord, Publication, Records};
use crate::volume::{VolumeError, Volumes};

/// How long a call waits for the operator.
pub const WAIT: Duration = Duration::from_secs(30);

/// Make a volume ready on this node.
#[derive(Clone, Debug)]
pub struct StageCall {
    /// The volume.
    pub id: VolumeId,
    /// Its object.
    pub name: VolumeName,
}

/// Hand a volume to a pod.
#[derive(Clone, Debug)]
pub struct PublishCall {
    /// The volume.
    pub id: VolumeId,
    /// Its object.
    pub name: VolumeName,
    /// Where.
    pub target: PathBuf,
    /// To whom.
    pub pod: PodReference,
}

/// What does the work.
pub struct Publisher {
    /// This node and its session.
    pub me: Me,
    /// The cluster.
    pub directory: Arc<dyn VolumeDirectory>,
    /// The volumes of this node.
    pub volumes: Volumes,
    /// The layers of this node.
    pub templates: Arc<TemplateCache>,
    /// What is published.
    pub records: Records,
    /// What is to be published.
    pub pending: Arc<Pending>,
    /// The stores of journals.
    pub stores: Stores,
    /// The journals of this node.
    pub keeper: Arc<Keeper>,
    /// How long environments may run on this node.
    pub promises: Arc<Promises>,
    /// What is going on.
    pub operations: Operations,
    /// Journals that are taken to another store.
    pub changing: Operations,
    /// Told whenever a volume was made or taken back: its object's status, or a deletion, may wait for it.
    pub changed: Arc<Notify>,
    /// How long a call waits for the operator: [`WAIT`].
    pub wait: Duration,
}

/// Runs what blocks beside the async tasks.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(Refusal::CutOff(error.to_string())))
}

impl Publisher {
    /// Brings layers and volume to this node.
    ///
    /// # Errors
    /// Any [`Refusal`]; what is about the volume is also reported in its condition `Published`.
    pub async fn stage(&self, call: StageCall) -> Result<(), Refusal> {
        let _operation = self.call(&call.id).await?;
        let object = self.object(&call.name, &call.id).await?;
        let result = self.stage_object(&call, &object).await;
        match &result {
            Ok(()) => self.changed.notify_one(),
            Err(refusal) => self.report(&object, refusal.condition()).await,
        }
        result
    }

    async fn stage_object(&self, call: &StageCall, object: &EnvironmentVolume) -> Result<(), Refusal> {
        let template = &object.spec.template;
        let layers = layers(object)?;
        // Whether the registry answers does not matter where the store has the layers.
        let log = object.log();
        let stores: Vec<_> = log.iter().filter_map(|log| self.stores.get(&log.store)).collect();
        self.templates
            .ensure(&template.image, &layers, &stores)
            .await
            .map_err(|error| Refusal::Template { name: call.name.clone(), source: error.into() })?;
        if log.is_some() {
            // What is here counts only once the journal was asked, which is for the one who holds the volume.
            return Ok(());
        }
        let object =
            self.wait(&call.name, &call.id, |object, waited| decide::placed(object, &call.name, &self.me, waited));
        let object = object.await?;
        let size = size(&object)?;
        let was_here = object.status.as_ref().is_some_and(|status| status.capacity_bytes.is_some());
        let (volumes, id, name) = (self.volumes.clone(), call.id.clone(), call.name.clone());
        blocking(move || match volumes.get(&id) {
            Ok(_) => Ok(volumes.set_size(&id, size)?),
            // Never an empty tree in place of one that somebody has filled.
            Err(VolumeError::NotFound(_)) if was_here => Err(Refusal::DataMissing { name }),
            Err(VolumeError::NotFound(_)) => {
                volumes.create(&id, size)?;
                tracing::info!(volume = %id, object = %name, size, "made the volume");
                Ok(())
            }
            Err(error) => Err(error.into()),
        })
        .await
    }

    /// Nothing is left of a staged volume outside the pool, so there is nothing to take back.
    ///
    /// # Errors
    /// [`Refusal::InUse`] while it is published, [`Refusal::Busy`].
    pub async fn unstage(&self, id: &VolumeId) -> Result<(), Refusal> {
        let _operation = self.call(id).await?;
        let (records, id) = (self.records.clone(), id.clone());
        blocking(move || match records.get(&id)? {
            Some(publication) if mounts::at(&publication.target).is_ok_and(|at| at != At::Nothing) => {
                Err(Refusal::InUse { id, pod: publication.stage.pod_uid, target: publication.target })
            }
            _ => Ok(()),
        })
        .await
    }

    /// Mounts the volume for a pod, once the operator has given it to this node; at once if somebody else has it until
    /// then ([`pending`]).
    ///
    /// # Errors
    /// Any [`Refusal`]; what is about the volume is also reported in its condition `Published`.
    pub async fn publish(self: &Arc<Self>, call: PublishCall) -> Result<(), Refusal> {
        let _operation = self.call(&call.id).await?;
        let object = self.object(&call.name, &call.id).await?;
        let epoch = decide::epoch(&object, &call.name, &call.pod.namespace, &call.pod.name)?;
        if decide::is_of_another(&object, &self.me, epoch) {
            return self.promise(&call).await;
        }
        self.publish_and_report(&call, &object).await
    }

    async fn publish_and_report(&self, call: &PublishCall, object: &EnvironmentVolume) -> Result<(), Refusal> {
        let result = self.publish_object(call, object).await;
        let condition = match &result {
            Ok(()) => Some(Published {
                published: true,
                reason: "Published",
                message: format!("mounted into pod {} on node {}", call.pod.name, self.me.node),
            }),
            Err(refusal) => refusal.condition(),
        };
        self.report(object, condition).await;
        result
    }

    async fn publish_object(&self, call: &PublishCall, object: &EnvironmentVolume) -> Result<(), Refusal> {
        let epoch = decide::epoch(object, &call.name, &call.pod.namespace, &call.pod.name)?;
        // Before the object is asked which log decides.
        self.settle_doubt(&call.name, &call.id).await?;
        let pod = decide::Incarnation { epoch, pod_uid: &call.pod.uid };
        let object =
            self.wait(&call.name, &call.id, |object, waited| decide::held(object, &call.name, &self.me, pod, waited));
        let object = object.await?;
        let layers = layers(&object)?;
        for layer in &layers {
            if !self.templates.has(layer) {
                return Err(Refusal::LayerMissing { name: call.name.clone(), layer: layer.to_string() });
            }
        }
        let size = size(&object)?;
        let (journal, lease) = self.open_journal(call, &object, epoch, size, &layers).await?;
        let mut stage = StageRecord {
            version: stage::VERSION,
            volume_id: call.id.to_string(),
            subvolume_uuid: String::new(),
            pod_uid: call.pod.uid.clone(),
            epoch,
            session: self.me.session.clone(),
            lease,
            layers: layers.iter().rev().map(|layer| self.templates.path(layer)).collect(),
            binds: stage::default_binds(),
        };
        let (volumes, records, call) = (self.volumes.clone(), self.records.clone(), call.clone());
        blocking(move || {
            let live = match volumes.get(&call.id) {
                Err(VolumeError::NotFound(id)) => return Err(Refusal::NotStaged(id)),
                other => other?,
            };
            volumes.set_size(&call.id, size)?;
            stage.subvolume_uuid = live.info.uuid.to_string();
            let mount_error = |attempt| {
                let path = call.target.clone();
                move |source| Refusal::Mount { attempt, path, source }
            };
            if let Some(old) = records.get(&call.id)?
                && old.target != call.target
            {
                // A mount that is gone, for example with the boot or with a forced deletion, is no use.
                if mounts::at(&old.target).is_ok_and(|at| at == At::Subvolume(live.info.uuid)) {
                    return Err(Refusal::InUse { id: call.id, pod: old.stage.pod_uid, target: old.target });
                }
                records.remove(&call.id, &old)?;
            }
            records.put(&call.id, &Publication::new(call.target.clone(), stage, journal))?;
            match mounts::at(&call.target).map_err(mount_error("inspect"))? {
                At::Subvolume(uuid) if uuid == live.info.uuid => Ok(()),
                At::Nothing => {
                    use std::os::fd::AsFd;
                    mounts::bind(live.directory.as_fd(), &call.target, false)
                        .map_err(mount_error("mount the volume at"))
                }
                At::Subvolume(_) | At::Other => {
                    Err(mount_error("mount the volume at")(std::io::Error::other("something else is mounted there")))
                }
            }
        })
        .await
    }

    /// Opens the epoch in the volume's journal, which brings the volume here as the journal says. Also the lease that binds
    /// whoever runs on it. Neither for a volume that has no journal.
    async fn open_journal(
        &self,
        call: &PublishCall,
        object: &EnvironmentVolume,
        epoch: u64,
        size: u64,
        layers: &[LayerDigest],
    ) -> Result<(Option<JournalRecord>, Option<String>), Refusal> {
        let Some(log) = object.log() else { return Ok((None, None)) };
        let status = object.status.as_ref();
        let known = object.known();
        let revert = match object.revert_for(epoch) {
            Some((order, sequence)) => {
                let wanted = Some(Wanted::Sequence(sequence));
                let (log, _) = self.log_with(&call.name, &call.id, &object.past(), known, wanted).await?;
                let paths = order.paths.iter().map(PathBuf::from).collect();
                Some(Revert { order: order.uid.clone(), from: Some(log), sequence, paths })
            }
            None => None,
        };
        let opening = Opening {
            id: call.id.clone(),
            size,
            room: status.map_or(0, EnvironmentVolumeStatus::in_use),
            epoch,
            layers: layers.to_vec(),
            known,
            revert,
            source: self.source(call, object).await?,
        };
        let store = self.store_of(&call.name, &log).await?;
        let lease = self.promises.lease_of(&store);
        if lease.is_some() {
            self.promises.uses(&log.store);
        }
        let still_ours = async || {
            let pod = decide::Incarnation { epoch, pod_uid: &call.pod.uid };
            match self.directory.get(&call.name).await {
                Ok(now) => decide::identify(now.as_ref(), &call.name, &call.id)
                    .is_ok_and(|now| matches!(decide::held(now, &call.name, &self.me, pod, 0), Verdict::Yes)),
                Err(_) => false,
            }
        };
        let opened = Log::named(&call.id, &log.name, store)?;
        let opened = self.keeper.open(&call.name, opened, &opening, still_ours).await?;
        tracing::info!(volume = %call.id, object = %call.name, epoch, ?opened, "opened the journal");
        if let Origin::Branched(sequence) = opened.origin {
            self.directory.branched(object, SourceStatus { sequence }).await?;
        }
        if let (Some(_), Some(progress), Some(outcome)) = (&opening.revert, object.restore(), opened.reverted) {
            // Before anything runs: from then on the volume is not brought back to that state any more.
            self.directory.restore(object, reverted(progress, epoch, outcome)).await?;
        }
        if lease.is_some() && !self.promises.may_start(&log.store) {
            return Err(Refusal::NoLease { name: call.name.clone(), store: log.store });
        }
        let (records, id) = (self.records.clone(), call.id.clone());
        let before = blocking(move || Ok(records.get(&id)?)).await?;
        let before = before.filter(|before| before.stage.epoch == epoch).and_then(|before| before.journal);
        let record = JournalRecord {
            namespace: call.name.namespace.clone(),
            name: call.name.name.clone(),
            bound_by: before.map(|before| before.bound_by).unwrap_or_default(),
            store: log.store,
            log: Some(log.name),
            layers: layers.iter().map(ToString::to_string).collect(),
        };
        Ok((Some(record), lease))
    }

    /// The state of another volume that a volume begins with, unless it has it already.
    async fn source(&self, call: &PublishCall, object: &EnvironmentVolume) -> Result<Option<Source>, Refusal> {
        let Some(source) = &object.spec.source else { return Ok(None) };
        if object.status.as_ref().is_some_and(|status| status.source.is_some()) {
            return Ok(None);
        }
        let wanted = Wanted::read(&source.at).map_err(|(_, message)| Refusal::Invalid {
            field: "spec.source.at",
            value: source.at.clone(),
            message,
        })?;
        let id = VolumeId::parse(&source.volume)?;
        let (log, _) = self.log_with(&call.name, &id, &source.past(), 0, Some(wanted)).await?;
        Ok(Some(Source { log, wanted }))
    }

    /// Unmounts the volume from a target and removes the records if they are of that target.
    ///
    /// # Errors
    /// Something uses the mount, [`Refusal::Busy`].
    pub async fn unpublish(&self, id: &VolumeId, target: PathBuf) -> Result<(), Refusal> {
        let operation = self.call(id).await?;
        self.take_back(id, target, operation).await
    }

    async fn take_back(&self, id: &VolumeId, target: PathBuf, operation: Operation) -> Result<(), Refusal> {
        let (records, pending, volume) = (self.records.clone(), self.pending.clone(), id.clone());
        let at = target.clone();
        let known = blocking(move || {
            pending.withdraw(&volume, &at)?;
            let known = records.get(&volume)?;
            mounts::unbind(&at).map_err(|source| Refusal::Mount { attempt: "unmount", path: at, source })?;
            Ok(known)
        })
        .await?;
        match known {
            Some(publication) if publication.target == target => {
                // Nobody writes any more: what was written last is committed, however often the kubelet has to ask.
                if publication.journal.is_some() && !self.keeper.has(id) {
                    self.resume_journal(id).await?;
                }
                self.keeper.release(id).await?;
                let (records, volume) = (self.records.clone(), id.clone());
                // Last, so that what is not yet taken back is still known to be.
                blocking(move || Ok(records.remove(&volume, &publication)?)).await?;
            }
            // Another pod has it by now.
            Some(_) => {}
            // Its journal may have been opened for a pod that then never got it.
            None => self.keeper.release(id).await?,
        }
        // Who is told may have work to do on this volume.
        drop(operation);
        self.changed.notify_one();
        Ok(())
    }

    /// Bytes used and size of a volume that is mounted at a path; `None` where the kernel does not count.
    ///
    /// # Errors
    /// The volume is not there, or not mounted at the path.
    pub async fn stats(&self, id: &VolumeId, path: PathBuf) -> Result<Option<(u64, u64)>, Refusal> {
        let (volumes, id) = (self.volumes.clone(), id.clone());
        blocking(move || {
            let live = volumes.get(&id)?;
            match mounts::at(&path) {
                Ok(At::Subvolume(uuid)) if uuid == live.info.uuid => {}
                _ => return Err(Refusal::NotThere { id, path }),
            }
            Ok(volumes.usage(&id)?.map(|usage| (usage.used, usage.limit)))
        })
        .await
    }

    /// Whether a pod has the volume.
    ///
    /// # Errors
    /// The record cannot be read.
    pub async fn is_published(&self, id: &VolumeId) -> Result<bool, Refusal> {
        let (records, id) = (self.records.clone(), id.clone());
        blocking(move || Ok(records.get(&id)?.is_some())).await
    }

    /// The store of a log, as soon as it is open here.
    pub(crate) async fn store_of(&self, name: &VolumeName, log: &VolumeLog) -> Result<Arc<Store>, Refusal> {
        let store = self.stores.wait_for(&log.store, Instant::now() + self.wait).await;
        store.ok_or_else(|| Refusal::StoreNotReady { name: name.clone(), store: log.store.clone() })
    }

    /// The log of a volume that has a state, as far as any has it, and a transaction that is in it for certain. `logs`: the one
    /// that decides, in which `known` is, and those that were left, the newest first.
    ///
    /// # Errors
    /// There is no log, its store is not open here, or it does not answer.
    pub async fn log_with(
        &self,
        name: &VolumeName,
        id: &VolumeId,
        logs: &[VolumeLog],
        known: u64,
        wanted: Option<Wanted>,
    ) -> Result<(Log, u64), Refusal> {
        let open =
            async |log: &VolumeLog| Ok::<_, Refusal>(Log::named(id, &log.name, self.store_of(name, log).await?)?);
        let [decides, left @ ..] = logs else { return Err(Refusal::NotJournaled { name: name.clone() }) };
        let mut found = (open(decides).await?, known);
        let Some(wanted) = wanted else { return Ok(found) };
        for left in left {
            if wanted.is_in(&found.0, found.1).await? {
                break;
            }
            let former = open(left).await?;
            // It was deleted meanwhile.
            if former.tail(0).await?.sequence == 0 {
                break;
            }
            found = (former, 0);
        }
        Ok(found)
    }

    async fn call(&self, id: &VolumeId) -> Result<Operation, Refusal> {
        self.operations.call(id).await.ok_or_else(|| Refusal::Busy(id.clone()))
    }

    async fn object(&self, name: &VolumeName, id: &VolumeId) -> Result<EnvironmentVolume, Refusal> {
        let object = self.directory.get(name).await?;
        decide::identify(object.as_ref(), name, id).cloned()
    }

    /// Waits until the object is as wanted, or will not be, or the time is over.
    async fn wait(
        &self,
        name: &VolumeName,
        id: &VolumeId,
        decide: impl Fn(&EnvironmentVolume, u64) -> Verdict,
    ) -> Result<EnvironmentVolume, Refusal> {
        let mut changes = self.directory.watch(name);
        let deadline = tokio::time::sleep(self.wait);
        tokio::pin!(deadline);
        let mut last = None;
        loop {
            let change = tokio::select! {
                change = changes.next() => change,
                () = &mut deadline => {
                    return Err(last.unwrap_or_else(|| Refusal::NoObject { name: name.clone(), id: id.clone() }));
                }
            };
            let Some(object) = change else {
                return Err(Refusal::CutOff(format!("the watch of EnvironmentVolume {name} ended")));
            };
            let object = object?;
            match decide(decide::identify(object.as_ref(), name, id)?, self.wait.as_secs()) {
                Verdict::Yes => return decide::identify(object.as_ref(), name, id).cloned(),
                Verdict::Never(refusal) => return Err(refusal),
                Verdict::NotYet(refusal) => last = Some(refusal),
            }
        }
    }

    async fn report(&self, object: &EnvironmentVolume, published: Option<Published>) {
        let Some(published) = published else { return };
        if let Err(error) = self.directory.report(object, published).await {
            // The kubelet is told as well, and comes again.
            tracing::warn!(%error, "the condition Published could not be written");
        }
    }
}

/// What is to be said of a restore.
fn reverted(progress: &RestoreProgress, epoch: u64, outcome: Outcome) -> RestoreProgress {
    let mut progress = progress.clone();
    match outcome {
        Ok(Reverted { before, head }) => {
            progress.done = Some(RestoreDone { epoch, before: before.sequence, sequence: head.sequence });
        }
        Err((reason, message)) => progress.refused = Some(RestoreRefusal { reason: reason.into(), message }),
    }
    progress
}

/// Layers of a volume, lowest first.
pub(crate) fn layers(object: &EnvironmentVolume) -> Result<Vec<LayerDigest>, Refusal> {
    object
        .spec
        .template
        .layers
        .iter()
        .map(|layer| {
            LayerDigest::parse(layer).map_err(|error| Refusal::Invalid {
                field: "spec.template.layers",
                value: layer.clone(),
                message: error.to_string(),
            })
        })
        .collect()
}

/// Size of a volume in bytes.
pub(crate) fn size(object: &EnvironmentVolume) -> Result<u64, Refusal> {
    let text = &object.spec.size.0;
    parse_size(text).map_err(|message| Refusal::Invalid { field: "spec.size", value: text.clone(), message })
}
