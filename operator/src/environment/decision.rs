//! What a decision says: what is to be done, what is to be told, and when to look again.

use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, ResourceRequirements, Service};
use vivarium_api::v1alpha1::{EnvironmentVolume, VirtualEnvironmentStatus};

/// What is to be done about one environment, and what its status becomes.
#[derive(Clone, Debug, Default)]
pub struct Decision {
    /// To be done in this order. Empty in steady state.
    pub actions: Vec<Action>,
    /// Status that the environment should show.
    pub status: VirtualEnvironmentStatus,
    /// When to look again although nothing happened.
    pub again: Option<Duration>,
}

impl Decision {
    /// Whether there is something to be done, and nothing but what no pod could make wrong: making what an incarnation needs.
    #[must_use]
    pub fn only_prepares(&self) -> bool {
        let prepares =
            |action: &Action| matches!(action, Action::AddFinalizer | Action::CreateVolume(_) | Action::Apply(_));
        !self.actions.is_empty() && self.actions.iter().all(prepares)
    }
}

/// One write to the API server. Each is safe to repeat and safe to find already done.
#[derive(Clone, Debug)]
pub enum Action {
    /// Puts the finalizer on the environment.
    AddFinalizer,
    /// Takes it off: nothing of the environment is left.
    RemoveFinalizer,
    /// Makes the volume.
    CreateVolume(Box<EnvironmentVolume>),
    /// Replaces the volume's spec and metadata, if it still is as it was read.
    ReplaceVolume(Box<EnvironmentVolume>, VolumeChange),
    /// Replaces the volume's status, if it still is as it was read: the compare-and-swap of holder and epoch.
    ReplaceVolumeStatus(Box<EnvironmentVolume>),
    /// Deletes the volume with its data.
    DeleteVolume(Doomed),
    /// Makes a child object, or brings it to what it should be.
    Apply(Child),
    /// Deletes a child object.
    Delete(ChildKind, Doomed),
    /// Makes the pod of an incarnation; its name is the lock.
    CreatePod(Box<Pod>),
    /// Deletes a pod; its guest is shut down in order.
    DeletePod(Doomed),
    /// Removes the object of a pod whose node is dead, so that nobody is there to shut it down.
    RemovePod(Doomed),
    /// Changes a pod, so that its kubelet looks at it again.
    AwakenPod {
        /// Name of the pod.
        name: String,
    },
    /// Takes the annotation off that asks for a move: it is done.
    EndMove,
    /// Changes the resources of a running pod in place.
    ResizePod {
        /// Name of the pod.
        name: String,
        /// What its container gets.
        resources: ResourceRequirements,
    },
}

/// Why a volume is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeChange {
    /// It was retained, and an environment takes it.
    Adopted,
    /// It grows.
    Grown,
    /// Another number of nodes is to keep copies of it.
    Copied,
    /// Its journal is to be in another store.
    Stored,
    /// Its environment goes and leaves it.
    LetGo,
}

/// An object that is to be deleted, and no other one that has its name by then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doomed {
    /// Name.
    pub name: String,
    /// UID.
    pub uid: Option<String>,
}

/// A child object as it should be.
#[derive(Clone, Debug)]
pub enum Child {
    /// Persistent volume.
    PersistentVolume(Box<PersistentVolume>),
    /// Claim.
    Claim(Box<PersistentVolumeClaim>),
    /// Service.
    Service(Box<Service>),
}

/// Kind of a child object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChildKind {
    /// Persistent volume.
    PersistentVolume,
    /// Claim.
    Claim,
    /// Service.
    Service,
}

impl ChildKind {
    /// The kind as Kubernetes calls it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PersistentVolume => "PersistentVolume",
            Self::Claim => "PersistentVolumeClaim",
            Self::Service => "Service",
        }
    }
}

/// Why an environment cannot be started as its spec says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// One word, with a page in the runbook.
    pub reason: &'static str,
    /// A sentence that says what to do.
    pub message: String,
    /// Whether only a person can help.
    pub stalled: bool,
    /// When to look again, for causes that no watch reports.
    pub again: Option<Duration>,
}

impl Refusal {
    /// A refusal that a person has to resolve and a watch reports.
    #[must_use]
    pub fn stalled(reason: &'static str, message: String) -> Self {
        Self { reason, message, stalled: true, again: None }
    }

    /// A refusal that resolves itself.
    #[must_use]
    pub fn waiting(reason: &'static str, message: String) -> Self {
        Self { reason, message, stalled: false, again: None }
    }
}
