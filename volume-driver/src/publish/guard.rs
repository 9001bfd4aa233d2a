//! One operation at a time on a volume. CSI asks that a second call be answered ABORTED rather than wait, so that the
//! kubelet decides when to come again: after half a second, and then later and later. What the driver does of its own is
//! over sooner, so a call waits for that.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::ids::VolumeId;

/// How long a call waits for what the driver does of its own.
const PATIENCE: Duration = Duration::from_secs(5);

/// On whose behalf something is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Behalf {
    Caller,
    Driver,
}

/// Volumes that something is being done to.
#[derive(Clone, Debug, Default)]
pub struct Operations(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    going_on: Mutex<HashMap<VolumeId, Behalf>>,
    ended: Notify,
}

/// The right to do something to a volume, until it is dropped.
#[derive(Debug)]
pub struct Operation {
    of: Operations,
    id: VolumeId,
}

impl Operations {
    /// The right to do something to a volume at once; `None` if somebody has it.
    #[must_use]
    pub fn begin(&self, id: &VolumeId) -> Option<Operation> {
        self.take(id, Behalf::Driver).ok()
    }

    /// The right to do to a volume what a call is about; `None` if another call has it, or the driver itself for long.
    pub async fn call(&self, id: &VolumeId) -> Option<Operation> {
        self.wait(id, Behalf::Caller).await
    }

    /// The right to do something to a volume for the driver itself, once nobody has it; `None` if somebody has it for long.
    pub async fn own(&self, id: &VolumeId) -> Option<Operation> {
        self.wait(id, Behalf::Driver).await
    }

    async fn wait(&self, id: &VolumeId, behalf: Behalf) -> Option<Operation> {
        let deadline = tokio::time::sleep(PATIENCE);
        tokio::pin!(deadline);
        loop {
            // What ends after the look is heard of as well.
            let ended = self.0.ended.notified();
            match (self.take(id, behalf), behalf) {
                (Ok(operation), _) => return Some(operation),
                (Err(Behalf::Caller), Behalf::Caller) => return None,
                (Err(_), _) => {}
            }
            tokio::select! {
                () = ended => {}
                () = &mut deadline => return None,
            }
        }
    }

    /// Takes it, or says who has it.
    fn take(&self, id: &VolumeId, behalf: Behalf) -> Result<Operation, Behalf> {
        let mut going_on = self.0.going_on.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(other) = going_on.get(id) {
            return Err(*other);
        }
        going_on.insert(id.clone(), behalf);
        Ok(Operation { of: self.clone(), id: id.clone() })
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        self.of.0.going_on.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
        self.of.0.ended.notify_waiters();
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

    #[tokio::test(start_paused = true)]
    async fn a_call_waits_for_the_driver_and_not_for_another_call() {
        let (operations, a) = (Operations::default(), VolumeId::parse("a").unwrap());
        let own = operations.begin(&a).unwrap();
        let (waiting, id) = (operations.clone(), a.clone());
        let call = tokio::spawn(async move { waiting.call(&id).await });
        tokio::time::sleep(PATIENCE / 2).await;
        assert!(!call.is_finished());
        drop(own);
        let call = call.await.unwrap().unwrap();
        assert!(operations.call(&a).await.is_none(), "another call has it");
        assert!(operations.begin(&a).is_none());
        let (waiting, id) = (operations.clone(), a.clone());
        let own = tokio::spawn(async move { waiting.own(&id).await });
        tokio::time::sleep(PATIENCE / 2).await;
        assert!(!own.is_finished(), "the driver waits for a call");
        drop(call);
        let _own = own.await.unwrap().unwrap();
        assert!(operations.call(&a).await.is_none(), "the driver has it for too long");
    }
}
