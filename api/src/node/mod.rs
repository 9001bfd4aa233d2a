//! Records on a node's disk through which the kubelet, the node driver and the runtime shim speak to each other.
//!
//! | record | written by | read by |
//! |---|---|---|
//! | [`boot::BootConfig`] | operator (config map), put in place by the kubelet | shim |
//! | [`stage::StageRecord`] | node driver | shim |
//! | [`guest::GuestReport`] | shim | node driver |
//! | [`lease::PublishedLease`] | node driver | shim |
//!
//! Each is JSON, replaced by rename, and carries a `version`; a reader refuses a version that it does not know.

pub mod boot;
pub mod guest;
pub mod lease;
pub mod stage;
