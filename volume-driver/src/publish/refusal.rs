//! Why a volume is not handed out: one reason, told to the kubelet as a gRPC status and to people as the condition
//! `Published` of the `EnvironmentVolume`.

use std::path::PathBuf;

use tonic::{Code, Status};

use crate::claim::ClaimError;
use crate::directory::{DirectoryError, Published, VolumeName};
use crate::ids::{IdError, VolumeId};
use crate::journal::JournalError;
use crate::pool::PoolError;
use crate::template::TemplateError;
use crate::volume::VolumeError;
use crate::volume::record::RecordError;

/// Why not.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// A field of the request is not set.
    #[error("the request has no {0}")]
    Missing(&'static str),
    /// A field of the request makes no sense.
    #[error("{field} '{value}' of the request is wrong: {message}")]
    Invalid {
        /// Which one.
        field: &'static str,
        /// What is in it.
        value: String,
        /// What should be.
        message: String,
    },
    /// The handle cannot be one.
    #[error(transparent)]
    BadId(#[from] IdError),
    /// Another call is at it.
    #[error("another operation on volume {0} is going on: try again when it has ended")]
    Busy(VolumeId),
    /// No such object.
    #[error("there is no EnvironmentVolume {name} with uid {id}")]
    NoObject {
        /// Its name.
        name: VolumeName,
        /// The volume.
        id: VolumeId,
    },
    /// Not staged, or no longer there.
    #[error("volume {0} is not in the pool of this node: it has to be staged first")]
    NotStaged(VolumeId),
    /// The path does not show the volume.
    #[error("volume {id} is not mounted at {}", path.display())]
    NotThere {
        /// The volume.
        id: VolumeId,
        /// The path.
        path: PathBuf,
    },
    /// The data is elsewhere.
    #[error("the data of EnvironmentVolume {name} is on node {node}, not on this one: the pod has to run there")]
    OtherNode {
        /// The object.
        name: VolumeName,
        /// Where it is.
        node: String,
    },
    /// The data should be here and is not.
    #[error(
        "EnvironmentVolume {name} was on this node before, but its data is not in the node's pool any more: bring the pool back, or delete the environment and create it again"
    )]
    DataMissing {
        /// The object.
        name: VolumeName,
    },
    /// The operator has not given the volume to this pod.
    #[error(
        "EnvironmentVolume {name} was not given to this node for epoch {epoch} within {seconds} s: its holder is {holder}"
    )]
    NotHolder {
        /// The object.
        name: VolumeName,
        /// Of the pod.
        epoch: u64,
        /// How long was waited.
        seconds: u64,
        /// Who has it.
        holder: String,
    },
    /// A newer incarnation has the volume.
    #[error(
        "EnvironmentVolume {name} is at epoch {current}, so the pod of epoch {epoch} is superseded and never gets it again"
    )]
    Superseded {
        /// The object.
        name: VolumeName,
        /// Of the pod.
        epoch: u64,
        /// Of the volume.
        current: u64,
    },
    /// The pod is not one of the environment's.
    #[error("pod {pod} is no incarnation of the environment that uses EnvironmentVolume {name} ({environment})")]
    NotItsPod {
        /// The object.
        name: VolumeName,
        /// The pod.
        pod: String,
        /// Environment of the volume.
        environment: String,
    },
    /// Somebody may write it.
    #[error("EnvironmentVolume {name} is still given to {holder}: its data is destroyed once it is given back")]
    Held {
        /// The object.
        name: VolumeName,
        /// Who has it.
        holder: String,
    },
    /// Mounted into another pod.
    #[error("volume {id} is still mounted into pod {pod} at {}: it can be in one pod at a time", target.display())]
    InUse {
        /// The volume.
        id: VolumeId,
        /// UID of the pod.
        pod: String,
        /// Where.
        target: PathBuf,
    },
    /// A layer is not there.
    #[error("template layer {layer} of EnvironmentVolume {name} is not on this node: it has to be staged again")]
    LayerMissing {
        /// The object.
        name: VolumeName,
        /// The layer.
        layer: String,
    },
    /// The layers could not be brought here.
    #[error("the template of EnvironmentVolume {name} is not on this node: {source}")]
    Template {
        /// The object.
        name: VolumeName,
        /// Why not.
        source: Box<TemplateError>,
    },
    /// The volume or pool.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The cluster.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// Records.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A mount.
    #[error("cannot {attempt} {}: {source}", path.display())]
    Mount {
        /// What was tried.
        attempt: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The store of the journal is not there.
    #[error(
        "the JournalStore `{store}`, which keeps the journal of EnvironmentVolume {name}, is not ready on this node: see its conditions"
    )]
    StoreNotReady {
        /// The object.
        name: VolumeName,
        /// The store.
        store: String,
    },
    /// The node has not been heard of.
    #[error(
        "EnvironmentVolume {name} is not mounted yet: this node has heard neither from the API server nor from the JournalStore `{store}` for so long that another node may be about to take over; it is tried again"
    )]
    NoLease {
        /// The object.
        name: VolumeName,
        /// The store.
        store: String,
    },
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// No such environment.
    #[error(
        "there is no environment {environment} in namespace {namespace}, which is that of the pod: a volume shows environments of the pod's own namespace, and those alone"
    )]
    NoEnvironment {
        /// Namespace of the pod.
        namespace: String,
        /// As asked for.
        environment: String,
    },
    /// Nothing of it is kept.
    #[error(
        "EnvironmentVolume {name} has no journal, so only its environment can read it: environments whose spec.durability names a store have one"
    )]
    NotJournaled {
        /// The object.
        name: VolumeName,
    },
    /// Nothing was written yet.
    #[error("nothing of EnvironmentVolume {name} was committed at that instant: choose a later one")]
    NothingYet {
        /// The object.
        name: VolumeName,
    },
    /// Before what is kept.
    #[error(
        "that state of EnvironmentVolume {name} is not kept any more: the oldest instant that can be shown is {time} (transaction {number})"
    )]
    TooOld {
        /// The object.
        name: VolumeName,
        /// The oldest.
        time: jiff::Timestamp,
        /// Its number.
        number: u64,
    },
    /// After what is committed.
    #[error("EnvironmentVolume {name} has no transaction {number} yet: the newest one is {newest}")]
    NotYet {
        /// The object.
        name: VolumeName,
        /// As asked for.
        number: u64,
        /// The newest.
        newest: u64,
    },
    /// It was merged with others.
    #[error(
        "EnvironmentVolume {name} does not keep the state after transaction {number} by itself any more: the next one that it keeps is that after transaction {next}"
    )]
    Merged {
        /// The object.
        name: VolumeName,
        /// As asked for.
        number: u64,
        /// The next one.
        next: u64,
    },
    /// Another node has it.
    #[error("{what} of EnvironmentVolume {name} is on node {node} alone: let the pod run there")]
    OnlyThere {
        /// The object.
        name: VolumeName,
        /// What.
        what: String,
        /// The node.
        node: String,
    },
    /// Nothing was set aside.
    #[error(
        "node {node} has set nothing aside of EnvironmentVolume {name} and epoch {epoch}: see status.diverged of the volume"
    )]
    NotSetAside {
        /// The object.
        name: VolumeName,
        /// The node.
        node: String,
        /// The epoch.
        epoch: u64,
    },
    /// Too many states at once.
    #[error(
        "{most} other states of EnvironmentVolume {name} are read on this node now, and there cannot be more: end pods that read it"
    )]
    TooManyViews {
        /// The object.
        name: VolumeName,
        /// How many there can be.
        most: usize,
    },
    /// Records of what is shown.
    #[error("the records of what is shown to pods cannot be kept: {0}")]
    ShownRecords(std::io::Error),
    /// A volume of an ordinary pod.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// A task of ours ended by itself.
    #[error("the operation was cut off: {0}")]
    CutOff(String),
}

impl From<PoolError> for Refusal {
    fn from(error: PoolError) -> Self {
        Self::Volume(VolumeError::Pool(error))
    }
}

impl Refusal {
    /// As the kubelet is told.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Missing(_) | Self::Invalid { .. } => Code::InvalidArgument,
            Self::Busy(_) => Code::Aborted,
            Self::Claim(error) => error.code(),
            // An unknown handle that cannot even be one is still an unknown volume.
            Self::BadId(_)
            | Self::NoObject { .. }
            | Self::NoEnvironment { .. }
            | Self::NotSetAside { .. }
            | Self::NotThere { .. }
            | Self::Volume(VolumeError::NotFound(_)) => Code::NotFound,
            Self::TooOld { .. } | Self::NotYet { .. } | Self::Merged { .. } => Code::OutOfRange,
            Self::TooManyViews { .. }
            | Self::Volume(VolumeError::Pool(PoolError::Full { .. }))
            | Self::Journal(JournalError::Volume(VolumeError::Pool(PoolError::Full { .. }))) => Code::ResourceExhausted,
            Self::Template { source, .. } if source.is_pool_full() => Code::ResourceExhausted,
            Self::NotStaged(_)
            | Self::OtherNode { .. }
            | Self::DataMissing { .. }
            | Self::NotHolder { .. }
            | Self::Superseded { .. }
            | Self::NotItsPod { .. }
            | Self::Held { .. }
            | Self::InUse { .. }
            | Self::LayerMissing { .. }
            | Self::Template { .. }
            | Self::NotJournaled { .. }
            | Self::NothingYet { .. }
            | Self::OnlyThere { .. }
            | Self::Journal(JournalError::Superseded { .. } | JournalError::Lost { .. })
            | Self::Volume(VolumeError::TooSmall { .. } | VolumeError::Published { .. }) => Code::FailedPrecondition,
            Self::Directory(_)
            | Self::StoreNotReady { .. }
            | Self::NoLease { .. }
            | Self::Journal(JournalError::Store { .. }) => Code::Unavailable,
            Self::Volume(_)
            | Self::Journal(_)
            | Self::Record(_)
            | Self::ShownRecords(_)
            | Self::Mount { .. }
            | Self::CutOff(_) => Code::Internal,
        }
    }

    /// Whether the same will be said of the same pod for ever.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(
            self,
            Self::Superseded { .. }
                | Self::NotItsPod { .. }
                | Self::NoObject { .. }
                | Self::BadId(_)
                | Self::Journal(JournalError::Superseded { .. })
        )
    }

    /// As the condition `Published` tells; `None` for what is not about the volume or passes by itself.
    #[must_use]
    pub fn condition(&self) -> Option<Published> {
        let reason = match self {
            Self::Missing(_)
            | Self::Invalid { .. }
            | Self::BadId(_)
            | Self::Busy(_)
            | Self::NoObject { .. }
            | Self::NotThere { .. }
            | Self::Superseded { .. }
            | Self::Held { .. }
            | Self::Directory(_)
            | Self::NoLease { .. }
            | Self::NoEnvironment { .. }
            | Self::NotJournaled { .. }
            | Self::NothingYet { .. }
            | Self::TooOld { .. }
            | Self::NotYet { .. }
            | Self::Merged { .. }
            | Self::OnlyThere { .. }
            | Self::NotSetAside { .. }
            | Self::TooManyViews { .. }
            | Self::ShownRecords(_)
            | Self::Journal(JournalError::CutOff { .. } | JournalError::Lost { .. })
            | Self::Claim(_)
            | Self::CutOff(_) => return None,
            Self::NotStaged(_) | Self::DataMissing { .. } | Self::Volume(VolumeError::NotFound(_)) => "DataMissing",
            Self::OtherNode { .. } => "OtherNode",
            Self::NotHolder { .. } => "NotHolder",
            Self::NotItsPod { .. } => "NotItsPod",
            Self::InUse { .. } | Self::Volume(VolumeError::Published { .. }) => "InUse",
            Self::Volume(VolumeError::Pool(PoolError::Full { .. }))
            | Self::Journal(JournalError::Volume(VolumeError::Pool(PoolError::Full { .. }))) => "PoolFull",
            Self::StoreNotReady { .. } => "StoreNotReady",
            Self::Journal(error) => error.reason(),
            Self::Template { source, .. } if source.is_pool_full() => "PoolFull",
            Self::LayerMissing { .. } | Self::Template { .. } => "TemplateMissing",
            Self::Volume(VolumeError::TooSmall { .. }) => "DiskTooSmall",
            Self::Volume(_) | Self::Record(_) | Self::Mount { .. } => "NodeError",
        };
        Some(Published { published: false, reason, message: self.to_string() })
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.code(), refusal.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_has_its_code_and_reason() {
        let id = VolumeId::parse("v1").unwrap();
        let name = VolumeName::parse("team-a/shop").unwrap();
        let full = || PoolError::Full { node: "n1".into(), free: 1, total: 10, wanted: 5 };
        let cases: [(Refusal, Code, Option<&str>); 10] = [
            (Refusal::Missing("volume id"), Code::InvalidArgument, None),
            (IdError::Volume("../x".into()).into(), Code::NotFound, None),
            (Refusal::Busy(id.clone()), Code::Aborted, None),
            (Refusal::NoObject { name: name.clone(), id: id.clone() }, Code::NotFound, None),
            (Refusal::NotStaged(id.clone()), Code::FailedPrecondition, Some("DataMissing")),
            (full().into(), Code::ResourceExhausted, Some("PoolFull")),
            (
                Refusal::Template { name: name.clone(), source: TemplateError::Pool(full()).into() },
                Code::ResourceExhausted,
                Some("PoolFull"),
            ),
            (
                VolumeError::TooSmall { id: id.clone(), used: 2, size: 1 }.into(),
                Code::FailedPrecondition,
                Some("DiskTooSmall"),
            ),
            (
                Refusal::NotHolder { name: name.clone(), epoch: 1, seconds: 30, holder: "nobody".into() },
                Code::FailedPrecondition,
                Some("NotHolder"),
            ),
            (Refusal::Superseded { name, epoch: 1, current: 2 }, Code::FailedPrecondition, None),
        ];
        for (refusal, code, reason) in cases {
            assert_eq!(refusal.code(), code, "{refusal}");
            assert_eq!(refusal.condition().map(|c| c.reason), reason, "{refusal}");
        }
    }
}
