//! What the driver does with volumes of its own, because objects say so and no kubelet asks. It does not wait for a call
//! that is going on: the object brings it here again.

use vivarium_api::v1alpha1::volume::VolumeLog;

use super::decide::{self, Former};
use super::guard::Operation;
use super::mounts::{self, At};
use super::{Publisher, Refusal, blocking, size};
use crate::directory::{Published, VolumeName};
use crate::ids::VolumeId;
use crate::journal::local::Local;
use crate::journal::log::Log;
use crate::journal::rejoin;
use crate::volume::{VolumeError, Volumes};

impl Publisher {
    /// Takes the condition `Published` back if it says of a volume that no pod has that one has it. The kubelet's call
    /// to unpublish does not name the object, and after a power cut there is no such call.
    ///
    /// # Errors
    /// [`Refusal::Busy`], a record cannot be read, or the cluster does not answer.
    pub async fn settle(&self, name: &VolumeName, id: &VolumeId) -> Result<(), Refusal> {
        // No call can mount it meanwhile.
        let _operation = self.begin(id)?;
        if self.is_published(id).await? {
            return Ok(());
        }
        // As it is now: what called for this may be older than the last mount.
        let object = self.object(name, id).await?;
        if decide::says_published(&object) {
            let message = format!("no pod on node {} has the volume mounted", self.me.node);
            let published = Published { published: false, reason: "NotPublished", message };
            self.directory.report(&object, published).await?;
        }
        Ok(())
    }

    /// Destroys a volume whose object is being deleted.
    ///
    /// # Errors
    /// [`Refusal::Held`] while somebody may write it, [`VolumeError::Published`] while a pod has it mounted,
    /// [`Refusal::Busy`], the pool fails, or the store of its journal.
    pub async fn destroy(&self, name: &VolumeName, id: &VolumeId) -> Result<(), Refusal> {
        let _operation = self.begin(id)?;
        // What a deletion began with may be older than the last word on who holds it.
        let object = self.object(name, id).await?;
        decide::given_back(&object, name)?;
        self.remove(id).await?;
        for log in object.logs() {
            self.purge_log(name, id, &log).await?;
        }
        Ok(())
    }

    /// Destroys what is here of a volume that another node brought back from its journal, or sets it aside if some of
    /// it is in no journal. `false`: this node may have to keep a copy, for which it may serve; `is_patient`: also
    /// while it is not decided which node has to.
    ///
    /// # Errors
    /// As [`Self::destroy`], but for who may write it: that is another node's business by now.
    pub async fn drop_former(&self, name: &VolumeName, id: &VolumeId, is_patient: bool) -> Result<bool, Refusal> {
        let _operation = self.begin(id)?;
        let object = self.object(name, id).await?;
        match decide::former(&object, &self.me.node) {
            Former::Goes => {}
            Former::Undecided if !is_patient => {}
            Former::Stays | Former::Copy | Former::Undecided => return Ok(false),
        }
        self.remove_with(id, |volumes, id| Ok(Local::retire(volumes, id)?)).await?;
        Ok(true)
    }

    /// Makes the copy that this node is to keep of what it has of the volume itself, which another node has by now; or
    /// takes that away, so that the copy can be made from the journal. Nothing if the object does not say so.
    ///
    /// # Errors
    /// As [`Self::drop_former`].
    pub async fn rejoin(&self, name: &VolumeName, id: &VolumeId) -> Result<(), Refusal> {
        let _operation = self.begin(id)?;
        let object = self.object(name, id).await?;
        let Some(log) = object.log().filter(|_| decide::former(&object, &self.me.node) == Former::Copy) else {
            return Ok(());
        };
        let size = size(&object)?;
        let rejoined = self.remove_with(id, move |volumes, id| {
            let former = rejoin::Former { volumes: volumes.clone(), id: id.clone(), size, log: log.name };
            Ok(former.rejoin()?)
        });
        rejoined.await.map(drop)
    }

    async fn remove(&self, id: &VolumeId) -> Result<(), Refusal> {
        self.remove_with(id, |volumes, id| Ok(volumes.delete(id)?)).await
    }

    async fn remove_with<T: Send + 'static>(
        &self,
        id: &VolumeId,
        remove: impl FnOnce(&Volumes, &VolumeId) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let (volumes, records, id) = (self.volumes.clone(), self.records.clone(), id.clone());
        blocking(move || {
            if let Some(publication) = records.get(&id)? {
                let mounted = mounts::at(&publication.target).is_ok_and(|at| matches!(at, At::Subvolume(_)));
                if mounted {
                    return Err(VolumeError::Published { id, pod: publication.stage.pod_uid }.into());
                }
                records.remove(&id, &publication)?;
            }
            remove(&volumes, &id)
        })
        .await
    }

    /// Takes a log of a volume out of its store.
    ///
    /// # Errors
    /// The store is not open here, or does not answer.
    pub(crate) async fn purge_log(&self, name: &VolumeName, id: &VolumeId, log: &VolumeLog) -> Result<(), Refusal> {
        Ok(Log::named(id, &log.name, self.store_of(name, log).await?)?.purge().await?)
    }

    fn begin(&self, id: &VolumeId) -> Result<Operation, Refusal> {
        self.operations.begin(id).ok_or_else(|| Refusal::Busy(id.clone()))
    }
}
