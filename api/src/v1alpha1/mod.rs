//! Custom resources of `vivarium.dev/v1alpha1`.
//!
//! Rules that hold for all of them: the controllers never write `spec` of an object that a person owns; every list is
//! declared map, set or atomic; every refusal is a CEL rule whose message says what to do; `status` of a fresh object is
//! `{observedGeneration: -1}`, so that kstatus does not take it for current before a controller has seen it.

pub mod condition;
mod crd;
pub mod environment;
pub mod restore;
pub mod store;
pub mod template;
pub mod volume;

pub use condition::{Condition, ConditionStatus};
pub use crd::all as crds;
pub use environment::{VirtualEnvironment, VirtualEnvironmentSpec, VirtualEnvironmentStatus};
pub use restore::{EnvironmentRestore, EnvironmentRestoreSpec, EnvironmentRestoreStatus};
pub use store::{JournalStore, JournalStoreSpec, JournalStoreStatus};
pub use template::{EnvironmentTemplate, EnvironmentTemplateSpec, EnvironmentTemplateStatus};
pub use volume::{EnvironmentVolume, EnvironmentVolumeSpec, EnvironmentVolumeStatus};
