//! Delete and Shutdown.

use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::events::task::TaskDelete;
use containerd_shim_protos::protobuf::MessageField;

use super::{Pod, lock};
use crate::error::{Error, Result};
use crate::io;
use crate::publisher::timestamp;
use crate::supervisor::{Exit, Who};

/// How long the last events may take before the shim ends.
const FLUSH_LIMIT: Duration = Duration::from_secs(3);

/// Carries out Delete; says which pid it was and how it ended.
pub(super) async fn delete(pod: &Arc<Pod>, id: &str, who: Who) -> Result<(i32, Option<Exit>)> {
    let container = pod.container(id)?;
    match who {
        Who::Exec(exec_id) => {
            let (removed, exec) = {
                let mut inner = container.lock();
                let removed = inner.life.remove_exec(&exec_id)?;
                (removed, inner.execs.remove(&exec_id))
            };
            if let Some(mut io) = exec.and_then(|exec| exec.member.io) {
                io::drain(io.take_outputs()).await;
            }
            Ok(removed)
        }
        Who::Init => {
            let (pid, exit, outputs) = {
                let mut inner = container.lock();
                if !inner.life.is_deletable() {
                    return Err(Error::WrongState(format!("container {id:?} still runs; kill it first")));
                }
                let (_, pid, exit) = inner.life.look(&Who::Init)?;
                let outputs = inner.init.io.as_mut().map(io::ProcessIo::take_outputs);
                (pid, exit, outputs.unwrap_or_default())
            };
            io::drain(outputs).await;
            super::create::undo(&container.dir).await?;
            if let Some(guest) = &container.guest {
                guest.end();
            }
            lock(&pod.containers).remove(id);
            publish_deleted(pod, id, pid, exit);
            Ok((pid, exit))
        }
    }
}

fn publish_deleted(pod: &Pod, id: &str, pid: i32, exit: Option<Exit>) {
    let event = TaskDelete {
        container_id: id.into(),
        id: id.into(),
        pid: pid as u32,
        exit_status: exit.map_or(0, |exit| exit.status),
        exited_at: exit.map_or_else(MessageField::none, |exit| MessageField::some(timestamp(exit.at))),
        ..TaskDelete::default()
    };
    pod.publisher.publish("/tasks/delete", &event).unwrap_or_else(|error| log::error!("{error}"));
}

/// Carries out Shutdown, which containerd sends after every container: the last one ends the shim.
pub(super) async fn shutdown(pod: &Arc<Pod>) {
    if !lock(&pod.containers).is_empty() {
        return;
    }
    pod.publisher.flush(FLUSH_LIMIT).await;
    // A container may have been created while events were sent.
    if lock(&pod.containers).is_empty() {
        pod.exit.signal();
    }
}
