//! Volumes that another node, or a former session of this one, may still write. The kubelet is told that such a volume is
//! mounted, so that it makes the pod's sandbox and container while the other is waited out. What is mounted, and when, is
//! decided as ever ([`super::decide::held`]); only who waits changes: not the kubelet's call, but the shim, which starts
//! nothing without a stage record.
//!
//! What is in the log already is brought here meanwhile, as a copy like that of a hot standby, so that only what the other
//! one wrote last is left to be added.
//!
//! A pending record is there from then until the volume is mounted, or the kubelet takes it back. It outlives the process,
//! as the kubelet does not repeat a call that has succeeded.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{self, FusedFuture};
use vivarium_api::node::stage::{PendingRecord, VERSION};
use vivarium_api::v1alpha1::EnvironmentVolume;

use super::{PublishCall, Publisher, Refusal, blocking, decide};
use crate::directory::VolumeName;
use crate::files;
use crate::ids::{IdError, VolumeId};
use crate::journal::standby::Followed;
use crate::volume::record::{RecordError, failed};

/// How long until a volume that could not be mounted is tried again, at first and at most.
const AGAIN: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(10)];

/// Between two looks at a log that does not grow.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Between two looks whether the pod waits for nothing but its volume.
const PREPARED_YET: Duration = Duration::from_millis(50);

/// The directory of pending records, and which of them somebody sees to.
#[derive(Debug)]
pub struct Pending {
    directory: PathBuf,
    seen_to: Mutex<HashSet<String>>,
}

impl Pending {
    /// Makes the directory below the run directory, for root alone.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(run_dir: &Path) -> Result<Self, RecordError> {
        let directory = run_dir.join("pending");
        files::private_directory(&directory).map_err(failed("make the directory of", &directory))?;
        Ok(Self { directory, seen_to: Mutex::default() })
    }

    fn list(&self) -> Result<Vec<PendingRecord>, RecordError> {
        let list = std::fs::read_dir(&self.directory).map_err(failed("list", &self.directory))?;
        let mut all = Vec::new();
        for entry in list {
            let path = entry.map_err(failed("list", &self.directory))?.path();
            if path.extension().is_some_and(|ending| ending == "json") {
                all.extend(read(&path)?);
            }
        }
        Ok(all)
    }

    fn has(&self, pod: &str) -> Result<bool, RecordError> {
        Ok(read(&self.path(pod))?.is_some())
    }

    fn put(&self, record: &PendingRecord) -> Result<(), RecordError> {
        let path = self.path(&record.pod.uid);
        files::write_json(&path, record).map_err(failed("write", &path))
    }

    fn remove(&self, pod: &str) -> Result<(), RecordError> {
        let path = self.path(pod);
        files::remove(&path).map_err(failed("remove", &path))?;
        // Of a shim that was killed while it waited.
        let waiting = self.waiting(pod);
        files::remove(&waiting).map_err(failed("remove", &waiting))
    }

    /// A shim's file, there while it waits for the volume and for nothing else.
    fn waiting(&self, pod: &str) -> PathBuf {
        self.directory.join(format!("{pod}.waiting"))
    }

    /// Forgets a volume that is not to be mounted at `target` any more.
    ///
    /// # Errors
    /// A record cannot be read or removed.
    pub(super) fn withdraw(&self, id: &VolumeId, target: &Path) -> Result<(), RecordError> {
        let of = |record: &PendingRecord| record.volume_id == id.as_str() && record.target == target;
        for record in self.list()?.into_iter().filter(of) {
            self.remove(&record.pod.uid)?;
        }
        Ok(())
    }

    /// Whether some pod is to get the volume.
    ///
    /// # Errors
    /// A record cannot be read.
    pub fn awaits(&self, id: &VolumeId) -> Result<bool, RecordError> {
        Ok(self.list()?.iter().any(|record| record.volume_id == id.as_str() && record.refused.is_none()))
    }

    fn path(&self, pod: &str) -> PathBuf {
        self.directory.join(format!("{pod}.json"))
    }

    fn take_on(&self, pod: &str) -> bool {
        self.seen_to.lock().unwrap_or_else(PoisonError::into_inner).insert(pod.to_owned())
    }

    fn let_go(&self, pod: &str) {
        self.seen_to.lock().unwrap_or_else(PoisonError::into_inner).remove(pod);
    }
}

fn read(path: &Path) -> Result<Option<PendingRecord>, RecordError> {
    let read: Option<PendingRecord> = files::read_json(path).map_err(failed("read", path))?;
    // Of a driver of another version: the shim ends the waiting, and the next pod is asked for anew.
    Ok(read.filter(|record| record.version == VERSION))
}

fn record(call: &PublishCall, refused: Option<String>) -> PendingRecord {
    PendingRecord {
        version: VERSION,
        volume_id: call.id.to_string(),
        namespace: call.name.namespace.clone(),
        name: call.name.name.clone(),
        target: call.target.clone(),
        pod: call.pod.clone(),
        refused,
    }
}

fn call_of(record: PendingRecord) -> Result<PublishCall, IdError> {
    Ok(PublishCall {
        id: VolumeId::parse(&record.volume_id)?,
        name: VolumeName { namespace: record.namespace, name: record.name },
        target: record.target,
        pod: record.pod,
    })
}

impl Publisher {
    /// Notes that the volume goes to the pod once nobody else can write it, and sees to it. The target is made, so that a
    /// container can be made with it.
    pub(super) async fn promise(self: &Arc<Self>, call: &PublishCall) -> Result<(), Refusal> {
        let (pending, noted) = (self.pending.clone(), call.clone());
        blocking(move || {
            let path = noted.target.clone();
            let made = match std::fs::create_dir(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
                made => made,
            };
            made.map_err(|source| Refusal::Mount { attempt: "make the directory", path, source })?;
            Ok(pending.put(&record(&noted, None))?)
        })
        .await?;
        tracing::info!(volume = %call.id, object = %call.name, pod = call.pod.name, "goes to the pod when its holder cannot write any more");
        self.see_to(call.clone());
        Ok(())
    }

    /// Goes on with what a former process has promised.
    ///
    /// # Errors
    /// The records cannot be read.
    pub fn resume_pending(self: &Arc<Self>) -> Result<(), RecordError> {
        for record in self.pending.list()?.into_iter().filter(|record| record.refused.is_none()) {
            match call_of(record) {
                Ok(call) => self.see_to(call),
                Err(error) => tracing::error!(%error, "a pending record is damaged: its pod never gets its volume"),
            }
        }
        Ok(())
    }

    fn see_to(self: &Arc<Self>, call: PublishCall) {
        if !self.pending.take_on(&call.pod.uid) {
            return;
        }
        let this = self.clone();
        tokio::spawn(async move {
            let [mut pause, most] = AGAIN;
            while let Err(refusal) = this.hand_over(&call).await {
                tracing::warn!(error = %refusal, volume = %call.id, pod = call.pod.name, "is not handed over yet");
                if refusal.is_final() {
                    // Nothing mounts it any more, so the shim need not wait; who cannot write this will not write that.
                    let _ = this.refuse(&call, &refusal).await;
                    break;
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(most);
            }
            this.pending.let_go(&call.pod.uid);
        });
    }

    /// Mounts the volume once the operator has given it to this node, unless the kubelet takes it back before.
    async fn hand_over(&self, call: &PublishCall) -> Result<(), Refusal> {
        if !self.is_pending(call).await? {
            return Ok(());
        }
        let object = self.object(&call.name, &call.id).await?;
        let epoch = decide::epoch(&object, &call.name, &call.pod.namespace, &call.pod.name)?;
        let pod = decide::Incarnation { epoch, pod_uid: &call.pod.uid };
        let held = |object: &_, waited| decide::held(object, &call.name, &self.me, pod, waited);
        let given = self.wait(&call.name, &call.id, held);
        let object = self.copy_until(call, &object, given).await?;
        let _operation = self.call(&call.id).await?;
        // A call that ended meanwhile may have taken it back.
        if !self.is_pending(call).await? {
            return Ok(());
        }
        self.publish_and_report(call, &object).await?;
        let (pending, pod) = (self.pending.clone(), call.pod.uid.clone());
        blocking(move || Ok(pending.remove(&pod)?)).await
    }

    /// Brings a copy on until the volume is given to this node, and says when the pod waits for that alone. What is under way
    /// then is finished, because who restores the volume would do the same.
    async fn copy_until<T>(&self, call: &PublishCall, object: &EnvironmentVolume, given: impl Future<Output = T>) -> T {
        tokio::pin!(given);
        let mut prepared = pin!(self.tell_prepared(call).fuse());
        // A volume that is here may have all that the log has.
        while self.volumes.get(&call.id).is_err() {
            let pause = match self.bring_copy_on(&call.id, object).await {
                Ok(Followed::Made(_) | Followed::Moved { .. }) => Duration::ZERO,
                Ok(Followed::Same(_) | Followed::Nothing) => LOOK_EVERY,
                Err(error) => {
                    tracing::info!(%error, volume = %call.id, "nothing of it is brought here before it is given");
                    break;
                }
            };
            // Only a copy that holds all that there is counts.
            let told = async {
                if pause > Duration::ZERO && !prepared.is_terminated() {
                    prepared.as_mut().await;
                }
                future::pending::<()>().await;
            };
            tokio::select! {
                biased;
                given = &mut given => return given,
                () = tokio::time::sleep(pause) => {}
                () = told => {}
            }
        }
        tokio::select! {
            biased;
            given = &mut given => return given,
            () = prepared => {}
        }
        given.await
    }

    /// Says once that the pod waits for its volume and for nothing else.
    async fn tell_prepared(&self, call: &PublishCall) {
        let waiting = self.pending.waiting(&call.pod.uid);
        loop {
            if waiting.exists() {
                match self.directory.prepared(&call.name, &call.pod).await {
                    Ok(()) => return,
                    Err(error) => tracing::info!(%error, "it is tried again"),
                }
            }
            tokio::time::sleep(PREPARED_YET).await;
        }
    }

    async fn is_pending(&self, call: &PublishCall) -> Result<bool, Refusal> {
        let (pending, pod) = (self.pending.clone(), call.pod.uid.clone());
        blocking(move || Ok(pending.has(&pod)?)).await
    }

    async fn refuse(&self, call: &PublishCall, why: &Refusal) -> Result<(), Refusal> {
        let _operation = self.call(&call.id).await?;
        if !self.is_pending(call).await? {
            return Ok(());
        }
        let (pending, refused) = (self.pending.clone(), record(call, Some(why.to_string())));
        blocking(move || Ok(pending.put(&refused)?)).await
    }
}
