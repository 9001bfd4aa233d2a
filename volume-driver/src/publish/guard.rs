//! One operation at a time on a volume. CSI asks that a second one be answered ABORTED rather than wait, so that the
//! kubelet decides when to come again.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use crate::ids::VolumeId;

/// Volumes that something is being done to.
#[derive(Clone, Debug, Default)]
pub struct Operations(Arc<Mutex<HashSet<VolumeId>>>);

/// The right to do something to a volume, until it is dropped.
#[derive(Debug)]
pub struct Operation {
    of: Operations,
    id: VolumeId,
}

impl Operations {
    /// The right to do something to a volume; `None` if somebody has it.
    #[must_use]
    pub fn begin(&self, id: &VolumeId) -> Option<Operation> {
        let fresh = self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone());
        fresh.then(|| Operation { of: self.clone(), id: id.clone() })
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        self.of.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_held_until_the_operation_ends() {
        let operations = Operations::default();
        let (a, b) = (VolumeId::parse("a").unwrap(), VolumeId::parse("b").unwrap());
        let first = operations.begin(&a).unwrap();
        assert!(operations.begin(&a).is_none());
        assert!(operations.begin(&b).is_some(), "another volume is not held up");
        drop(first);
        assert!(operations.begin(&a).is_some());
    }
}
