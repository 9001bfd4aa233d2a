//! How long environments may run on a node: the node driver publishes it, the runtime shim obeys (rule 2 of the ownership
//! protocol). It is a promise that the driver may make because a witness has just heard from it; whoever takes a volume
//! over waits until every promise that was made has passed.

use serde::{Deserialize, Serialize};

/// Version of [`PublishedLease`] that this build writes and reads.
pub const VERSION: u32 = 1;

/// `/run/vivarium/leases/<session>.<store>.json`, replaced by rename at every renewal. One per store, because the store
/// of a volume is one of the witnesses of those who run on it. It is removed when the session ends; whatever was started
/// under it must not run then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PublishedLease {
    /// [`VERSION`].
    pub version: u32,
    /// Boot of the node that `act_until` is of.
    pub boot_id: String,
    /// Session of the node driver.
    pub session: String,
    /// Instant up to which environments may run: nanoseconds of `CLOCK_BOOTTIME`, which goes on while a machine sleeps.
    pub act_until: u64,
}

/// Name of the file of a session and store.
#[must_use]
pub fn file_name(session: &str, store: &str) -> String {
    format!("{session}.{store}.json")
}
