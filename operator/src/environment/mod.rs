//! The controller of `VirtualEnvironment`: a pipeline whose middle needs no cluster.
//!
//! 1. [`dereference`]: what is observed becomes a plain [`world::World`], from caches or from the API server itself.
//! 2. [`lifecycle::decide`]: a pure function of the world and the time says what is to be done ([`decision::Action`])
//!    and what the status becomes ([`status`], [`durability`]). [`validate`] refuses, [`build`] builds, [`storage`] prepares,
//!    [`awaken`] has the kubelet look again, [`holder`] guards the volume, [`resize`] changes what runs, [`leave`] stops what shall go elsewhere, [`moves`] moves it
//!    to a node that was named, [`standby`] chooses the node of its copy, [`placement`] explains what no node takes,
//!    [`deletion`] takes down.
//! 3. [`apply`]: carries actions out, one API call each.
//! 4. [`controller`]: turns watch events into runs of the above, and writes the status when it changed.
//!
//! A decision from caches only finds out *that* something is to be done. What is done is decided again from a fresh read:
//! caches lag behind one's own writes, and an old view must neither start nor delete anything. What only prepares an
//! incarnation needs no fresh list of pods, which costs an API server more than all else that is read.

pub mod apply;
pub mod awaken;
pub mod build;
pub mod compare;
pub mod controller;
pub mod decision;
pub mod deletion;
pub mod dereference;
pub mod durability;
pub mod holder;
pub mod incarnation;
pub mod leave;
pub mod lifecycle;
pub mod misunderstood;
pub mod moves;
pub mod placement;
pub mod resize;
pub mod standby;
pub mod status;
pub mod storage;
pub mod validate;
pub mod world;

#[cfg(test)]
mod tests;
