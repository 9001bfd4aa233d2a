//! Bringing a copy of a volume on that another node has: the one of a hot standby, and the one of a node that is about to
//! get the volume.

use vivarium_api::v1alpha1::EnvironmentVolume;
use vivarium_api::v1alpha1::volume::EnvironmentVolumeStatus;

use super::Publisher;
use crate::ids::{IdError, LayerDigest, VolumeId};
use crate::journal::JournalError;
use crate::journal::log::Log;
use crate::journal::standby::{Followed, Follower};
use crate::settings::parse_size;
use crate::template::TemplateError;

/// Room that is asked for beside what the volume was last said to hold.
const ROOM: u64 = 64 << 20;

/// Why a log is not followed; it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The log, or the pool.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The layers could not be brought here.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The object names something that cannot be.
    #[error(transparent)]
    Id(#[from] IdError),
    /// So does its size.
    #[error("its size cannot be understood: {0}")]
    Size(String),
    /// The store is not there.
    #[error("store '{0}' was not opened on this node yet")]
    NoStore(String),
}

impl CopyError {
    /// One word, for a condition.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Journal(error) => error.reason(),
            Self::Template(error) if error.is_pool_full() => "PoolFull",
            Self::Template(_) => "TemplateMissing",
            Self::Id(_) | Self::Size(_) => "NodeError",
            Self::NoStore(_) => "StoreNotReady",
        }
    }
}

impl Publisher {
    /// Brings the copy of volume `id` on by what its log holds, or makes it. Nothing for a volume without a store.
    ///
    /// # Errors
    /// [`CopyError`].
    pub async fn bring_copy_on(&self, id: &VolumeId, object: &EnvironmentVolume) -> Result<Followed, CopyError> {
        let Some(log) = object.log() else { return Ok(Followed::Nothing) };
        let store = self.stores.get(&log.store).ok_or_else(|| CopyError::NoStore(log.store.clone()))?;
        let layers =
            object.spec.template.layers.iter().map(|layer| LayerDigest::parse(layer)).collect::<Result<Vec<_>, _>>()?;
        self.templates.ensure(&object.spec.template.image, &layers, std::slice::from_ref(&store)).await?;
        let status = object.status.as_ref();
        let used = status.map_or(0, EnvironmentVolumeStatus::in_use);
        let size = parse_size(&object.spec.size.0).map_err(CopyError::Size)?;
        let (volumes, id) = (self.volumes.clone(), id.clone());
        let follower = Follower { volumes, log: Log::named(&id, &log.name, store)?, id, size, layers };
        Ok(follower.step(&self.templates, object.known(), used + ROOM).await?)
    }
}
