//! Sends events to containerd in the order in which they happened, and keeps them while containerd is away: it may be
//! restarted, and an exit that it never hears of leaves a pod that is never cleaned up.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::protobuf::{MessageDyn, MessageField};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use tokio::sync::Notify;

use crate::error::{Error, Result};

/// Most events that wait. An event has some hundred bytes; a pod makes a handful a minute.
const QUEUE_MAX: usize = 4096;
/// How long containerd may take for one event.
const SEND_LIMIT: Duration = Duration::from_secs(5);
/// Pauses between attempts to reach containerd: a socket that comes back gives no event.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(50), Duration::from_millis(250), Duration::from_secs(1), Duration::from_secs(3)];

#[derive(Debug, Default)]
struct Queue {
    envelopes: Mutex<VecDeque<Envelope>>,
    filled: Notify,
    drained: Notify,
}

/// The way to containerd.
#[derive(Clone, Debug)]
pub struct Publisher {
    namespace: String,
    queue: Arc<Queue>,
}

impl Publisher {
    /// Starts sending in the background. `address` is that of containerd's ttrpc socket.
    #[must_use]
    pub fn start(address: String, namespace: String) -> Self {
        let queue = Arc::new(Queue::default());
        tokio::spawn(send_all(address, queue.clone()));
        Self { namespace, queue }
    }

    /// Queues an event; never waits.
    pub fn publish(&self, topic: &str, event: &dyn MessageDyn) -> Result<()> {
        let value = event
            .write_to_bytes_dyn()
            .map_err(|e| Error::Failed(format!("The event {topic} cannot be encoded: {e}.")))?;
        let envelope = Envelope {
            timestamp: MessageField::some(timestamp(std::time::SystemTime::now())),
            namespace: self.namespace.clone(),
            topic: topic.into(),
            event: MessageField::some(Any {
                type_url: event.descriptor_dyn().full_name().into(),
                value,
                ..Any::default()
            }),
            ..Envelope::default()
        };
        let mut queue = self.queue.envelopes.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.len() >= QUEUE_MAX {
            let lost = queue.pop_front();
            log::error!(
                "event {} is lost: containerd has not taken {QUEUE_MAX} events",
                lost.map_or_else(String::new, |e| e.topic)
            );
        }
        queue.push_back(envelope);
        drop(queue);
        self.queue.filled.notify_one();
        Ok(())
    }

    /// Waits until all events are sent, at most for `limit`.
    pub async fn flush(&self, limit: Duration) {
        let empty = async {
            loop {
                let drained = self.queue.drained.notified();
                if self.queue.envelopes.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
                    return;
                }
                drained.await;
            }
        };
        if tokio::time::timeout(limit, empty).await.is_err() {
            log::warn!("some events were not sent before the end: containerd did not take them");
        }
    }
}

/// A time as protobuf has it.
#[must_use]
pub fn timestamp(time: std::time::SystemTime) -> Timestamp {
    let since = time.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp { seconds: since.as_secs() as i64, nanos: since.subsec_nanos() as i32, ..Timestamp::default() }
}

async fn send_all(address: String, queue: Arc<Queue>) {
    let mut client: Option<EventsClient> = None;
    let mut failures = 0usize;
    loop {
        let next = queue.envelopes.lock().unwrap_or_else(PoisonError::into_inner).front().cloned();
        let Some(envelope) = next else {
            queue.drained.notify_waiters();
            queue.filled.notified().await;
            continue;
        };
        match send(&address, &mut client, envelope.clone()).await {
            Ok(()) => {
                failures = 0;
                let mut envelopes = queue.envelopes.lock().unwrap_or_else(PoisonError::into_inner);
                // Unless a full queue dropped it meanwhile, it is still the first.
                if envelopes.front() == Some(&envelope) {
                    envelopes.pop_front();
                }
            }
            Err(error) => {
                client = None;
                let pause = PAUSES[failures.min(PAUSES.len() - 1)];
                if failures == 0 {
                    log::warn!("containerd does not take event {}: {error}; trying again", envelope.topic);
                }
                failures += 1;
                tokio::time::sleep(pause).await;
            }
        }
    }
}

async fn send(address: &str, client: &mut Option<EventsClient>, envelope: Envelope) -> Result<(), String> {
    let client = if let Some(client) = client {
        client
    } else {
        let address = if address.contains("://") { address.into() } else { format!("unix://{address}") };
        let connection = Client::connect(&address).await.map_err(|e| e.to_string())?;
        client.insert(EventsClient::new(connection))
    };
    let request = ForwardRequest { envelope: MessageField::some(envelope), ..ForwardRequest::default() };
    let context = ttrpc::context::with_duration(SEND_LIMIT);
    match tokio::time::timeout(SEND_LIMIT, client.forward(context, &request)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", SEND_LIMIT.as_secs())),
    }
}
