//! What Vivarium's parts agree on: the custom resources of group `vivarium.dev` ([`v1alpha1`]), the records that the
//! node driver and the runtime shim leave for each other on a node ([`node`]), and the [`names`] of everything.
//!
//! Nothing here does IO. The `kubernetes` feature holds the custom resources, so that the shim can be built without them.

#[cfg(feature = "kubernetes")]
pub mod lease;
pub mod names;
pub mod node;
#[cfg(feature = "kubernetes")]
pub mod v1alpha1;
pub mod view;
