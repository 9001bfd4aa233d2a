//! Why a volume of a pod cannot be made, or not so.

use std::path::PathBuf;

use tonic::Code;

use crate::ids::VolumeId;

/// Why not.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// A size that cannot be.
    #[error("the size of the volume cannot be had: {0}")]
    OutOfRange(String),
    /// A parameter that there is not.
    #[error("the StorageClass has a parameter '{name}', which there is not: the only one is 'template'")]
    Parameter {
        /// Its name.
        name: String,
    },
    /// No such template.
    #[error(
        "there is no EnvironmentTemplate '{name}', which parameter 'template' of the StorageClass names: create it, or use a class that names another"
    )]
    NoTemplate {
        /// As named.
        name: String,
    },
    /// A template that nobody has resolved yet.
    #[error(
        "EnvironmentTemplate '{name}', which parameter 'template' of the StorageClass names, is not ready: see its conditions"
    )]
    TemplateNotReady {
        /// Its name.
        name: String,
    },
    /// The template cannot be brought here.
    #[error("EnvironmentTemplate '{name}' cannot be brought to this node: {message}")]
    Template {
        /// Its name.
        name: String,
        /// Why not.
        message: String,
    },
    /// There is another one of that name.
    #[error("there is a volume or snapshot named {name}, but {differs}: choose another name")]
    Different {
        /// The name.
        name: String,
        /// In what.
        differs: String,
    },
    /// No such snapshot.
    #[error("snapshot {0} is not in the pool of this node")]
    NoSnapshot(String),
    /// A token of no list.
    #[error("'{0}' is not the token of a further page of this list: begin anew without one")]
    Token(String),
    /// A number of entries that cannot be.
    #[error("a list cannot have {0} entries at most")]
    Negative(i32),
    /// Another node was asked for.
    #[error(
        "the volume should be reachable from other nodes than {node}, and this driver makes volumes on {node} alone"
    )]
    Elsewhere {
        /// This node.
        node: String,
    },
    /// What it is to be made from is on another node.
    #[error(
        "{id} is on another node than {node}, and a copy is made where its source is: let the pod that uses it run on the node of the pods that use its source"
    )]
    SourceElsewhere {
        /// Handle of the source.
        id: VolumeId,
        /// This node.
        node: String,
    },
    /// It is another node's.
    #[error("{id} was not made on node {node}, so only the driver of its own node can do that")]
    OtherNode {
        /// Handle.
        id: VolumeId,
        /// This node.
        node: String,
    },
    /// A pod has it.
    #[error("volume {id} is still mounted at {}: it is destroyed once no pod uses it", target.display())]
    InUse {
        /// The volume.
        id: VolumeId,
        /// Where.
        target: PathBuf,
    },
    /// The tree that it should begin with does not fit.
    #[error("what the volume begins with does not fit into {size} bytes: ask for a larger volume")]
    DoesNotFit {
        /// Its size.
        size: u64,
    },
    /// It could not be copied.
    #[error("the tree that the volume begins with could not be copied: {0}")]
    Copy(String),
}

impl ClaimError {
    /// As the caller is told.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Parameter { .. } | Self::NoTemplate { .. } | Self::Negative(_) => Code::InvalidArgument,
            Self::OutOfRange(_) | Self::DoesNotFit { .. } => Code::OutOfRange,
            Self::Different { .. } => Code::AlreadyExists,
            Self::NoSnapshot(_) => Code::NotFound,
            Self::Token(_) => Code::Aborted,
            // What tells the provisioner to have the pod placed elsewhere.
            Self::Elsewhere { .. } | Self::SourceElsewhere { .. } => Code::ResourceExhausted,
            Self::InUse { .. } | Self::OtherNode { .. } | Self::TemplateNotReady { .. } => Code::FailedPrecondition,
            Self::Template { .. } => Code::Unavailable,
            Self::Copy(_) => Code::Internal,
        }
    }
}
