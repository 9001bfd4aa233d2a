//! What the driver does in the cluster. Each file is one concern with its own watch; none of them decides who may write a
//! volume, that is the operator's.

pub mod directory;
pub mod guests;
pub mod lease;
pub mod stores;
pub mod templates;
pub mod volumes;

use std::fmt::Display;

/// Field manager of what the driver applies; each concern adds its name, so that none takes back what another said.
const FIELD_MANAGER: &str = "vivarium-node";

/// An error of the API server about an object.
#[derive(Debug, thiserror::Error)]
#[error("cannot {attempt} {object}: {source}")]
pub struct ApiError {
    attempt: &'static str,
    object: String,
    #[source]
    source: ::kube::Error,
}

fn failed(attempt: &'static str, object: impl Display) -> impl FnOnce(::kube::Error) -> ApiError {
    let object = object.to_string();
    move |source| ApiError { attempt, object, source }
}

/// Whether the API server said that there is no such object.
fn is_gone(error: &::kube::Error) -> bool {
    matches!(error, ::kube::Error::Api(status) if status.is_not_found())
}

/// Whether the API server said that the object is not as it was read.
fn is_conflict(error: &::kube::Error) -> bool {
    matches!(error, ::kube::Error::Api(status) if status.is_conflict())
}
