//! Events (events.k8s.io/v1) on objects. An event that cannot be written is logged: it must not hinder what it
//! tells of.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};
use tokio::sync::mpsc;

use crate::environment::apply::namespace_ends;
use crate::environment::status::Note;
use crate::error::brief;

/// Longest note that the API accepts, in bytes.
const NOTE_MAX: usize = 1024;

/// Events that wait to be written. Beyond that, something is wrong that more of them would not mend.
const WAITING: usize = 1024;

/// Writes events in the name of this replica, one after the other, beside what they tell of: nobody waits for them.
pub struct Events(mpsc::Sender<(Event, ObjectReference)>);

impl Events {
    /// A writer for the replica of that name.
    #[must_use]
    pub fn new(client: Client, identity: &str) -> Self {
        let reporter = Reporter { controller: "vivarium.dev/operator".into(), instance: Some(identity.into()) };
        let recorder = Recorder::new(client, reporter);
        let (sender, mut receiver) = mpsc::channel::<(Event, ObjectReference)>(WAITING);
        tokio::spawn(async move {
            while let Some((event, object)) = receiver.recv().await {
                match recorder.publish(&event, &object).await {
                    Err(error) if !namespace_ends(&error) => {
                        tracing::warn!(reason = event.reason, "an event could not be written: {}", brief(&error));
                    }
                    _ => {}
                }
            }
        });
        Self(sender)
    }

    /// Has one written.
    pub fn publish<K: Resource<DynamicType = ()>>(&self, object: &K, note: &Note) {
        let event = Event {
            type_: if note.warning { EventType::Warning } else { EventType::Normal },
            reason: note.reason.clone(),
            note: Some(shortened(&note.message)),
            action: "Reconcile".into(),
            secondary: None,
        };
        if let Err(error) = self.0.try_send((event, object.object_ref(&()))) {
            tracing::warn!(reason = note.reason, "an event is not written: {error}");
        }
    }
}

fn shortened(message: &str) -> String {
    let end = (0..=NOTE_MAX.min(message.len())).rev().find(|i| message.is_char_boundary(*i)).unwrap_or(0);
    message[..end].to_owned()
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_long_message_is_cut_between_characters() {
        let cut = super::shortened(&"ä".repeat(1000));
        assert_eq!(cut, "ä".repeat(512));
        assert_eq!(super::shortened("short"), "short");
    }
}
