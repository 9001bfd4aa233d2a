//! What the CSI services know of the cluster: the one `EnvironmentVolume` that a call is about. A trait, so that the real
//! kernel can be tested without a cluster; [`crate::kube::directory`] is the real one.

use std::fmt;

use async_trait::async_trait;
use futures::stream::BoxStream;
use vivarium_api::node::guest::PodReference;
use vivarium_api::v1alpha1::EnvironmentVolume;
use vivarium_api::v1alpha1::volume::{JournalStatus, LagStatus, RestoreProgress, SourceStatus};

use crate::ids::VolumeId;
use crate::journal::prove::Fingerprint;

/// Name of an `EnvironmentVolume`: `<namespace>/<name>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct VolumeName {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl VolumeName {
    /// Reads `<namespace>/<name>`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (namespace, name) = text.split_once('/')?;
        let fine = |part: &str| !part.is_empty() && !part.contains('/');
        (fine(namespace) && fine(name)).then(|| Self { namespace: namespace.into(), name: name.into() })
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The cluster does not answer, or not as it should.
#[derive(Debug, thiserror::Error)]
#[error("cannot {attempt} EnvironmentVolume {volume}: {message}")]
pub struct DirectoryError {
    /// What was tried.
    pub attempt: &'static str,
    /// The object.
    pub volume: VolumeName,
    /// Why not.
    pub message: String,
}

/// Type of the condition that [`Published`] becomes.
pub const PUBLISHED: &str = "Published";

/// Condition `Published` of an `EnvironmentVolume`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// Whether the volume was handed to its pod.
    pub published: bool,
    /// One CamelCase word.
    pub reason: &'static str,
    /// A sentence for a person.
    pub message: String,
}

/// Type of the condition that [`Journaled`] becomes.
pub const JOURNALED: &str = "Journaled";

/// How far the journal of a volume is.
#[derive(Clone, Debug, PartialEq)]
pub struct Journaled {
    /// The newest transaction in the store, if one is known.
    pub journal: Option<JournalStatus>,
    /// Epoch that ended in order with it.
    pub released: Option<u64>,
    /// How far it is behind, if that is more than a few seconds.
    pub lag: Option<LagStatus>,
    /// Why nothing is added at present: one CamelCase word, and a sentence.
    pub trouble: Option<(&'static str, String)>,
}

/// Type of the condition that says whether the journal is in the store that the spec names.
pub const STORE_CURRENT: &str = "StoreCurrent";

/// Where `EnvironmentVolume`s are looked up.
#[async_trait]
pub trait VolumeDirectory: Send + Sync + 'static {
    /// The object as it is now.
    async fn get(&self, volume: &VolumeName) -> Result<Option<EnvironmentVolume>, DirectoryError>;

    /// The volume that an environment of a namespace uses; or a volume of that name that was retained.
    async fn find(&self, namespace: &str, environment: &str) -> Result<Option<EnvironmentVolume>, DirectoryError>;

    /// The object as it is now, and again whenever it changes; `None` while it is not there. Ends only with an error.
    fn watch(&self, volume: &VolumeName) -> BoxStream<'static, Result<Option<EnvironmentVolume>, DirectoryError>>;

    /// Writes the condition `Published`.
    async fn report(&self, volume: &EnvironmentVolume, published: Published) -> Result<(), DirectoryError>;

    /// Writes how far the journal is, if the object still is that of the volume.
    async fn journaled(&self, name: &VolumeName, id: &VolumeId, journaled: Journaled) -> Result<(), DirectoryError>;

    /// Writes how far the restore of a volume is, if it is the one that the object orders and is not settled yet.
    async fn restore(&self, volume: &EnvironmentVolume, progress: RestoreProgress) -> Result<(), DirectoryError>;

    /// Writes the digest of the volume's tree, if the object still is that of the volume.
    async fn fingerprint(
        &self,
        name: &VolumeName,
        id: &VolumeId,
        fingerprint: Fingerprint,
    ) -> Result<(), DirectoryError>;

    /// Writes that a volume has the state of its source in its own journal.
    async fn branched(&self, volume: &EnvironmentVolume, source: SourceStatus) -> Result<(), DirectoryError>;

    /// Says of a pod that it waits for the volume and for nothing else; a copy of the volume is here if one could be made.
    async fn prepared(&self, volume: &VolumeName, pod: &PodReference) -> Result<(), DirectoryError>;

    /// Writes the status of an object as it is given, if the object still is of that version; `false`: it is not. After an error
    /// it is not known whether it was written.
    async fn swap_status(&self, volume: &EnvironmentVolume) -> Result<bool, DirectoryError>;

    /// Writes whether the journal is in the store that the spec names, or why not: one word of the runbook, and a sentence.
    async fn store_current(
        &self,
        volume: &EnvironmentVolume,
        found: Result<(), (&'static str, String)>,
    ) -> Result<(), DirectoryError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_two_parts() {
        assert_eq!(VolumeName::parse("team-a/shop").unwrap().to_string(), "team-a/shop");
        for bad in ["", "shop", "/shop", "team-a/", "a/b/c"] {
            assert_eq!(VolumeName::parse(bad), None, "{bad}");
        }
    }
}
