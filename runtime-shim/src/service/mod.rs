//! The task service: containerd's requests for all containers of one pod, carried out by one file per group of calls.
//!
//! | file | requests |
//! |---|---|
//! | [`task`] | the interface itself; translates messages |
//! | [`create`] | Create, and Start of an init |
//! | [`exec`] | Exec, and Start of an exec |
//! | [`life`] | what follows from the end of a process: exit, or a new boot |
//! | [`lease`] | holds an environment to the lease of its node |
//! | [`signal`] | Kill, Pause, Resume |
//! | [`remove`] | Delete, Shutdown |
//! | [`query`] | State, Wait, Pids, Stats, Connect, Update, `ResizePty`, `CloseIO` |

mod container;
mod create;
mod exec;
mod freezer;
mod guest;
mod lease;
mod life;
mod query;
mod remove;
mod signal;
mod task;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use containerd_shim::asynchronous::{ExitSignal, Shim, spawn};
use containerd_shim::publisher::RemotePublisher;
use containerd_shim::{Config, DeleteResponse, Flags, StartOpts};
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::types::introspection::RuntimeInfo;
use vivarium_api::node::guest::PodReference;

use crate::error::{Error, Result};
use crate::journal::{self, StateDir};
use crate::publisher::{Publisher, timestamp};
use crate::reaper::Reaper;
use container::Container;

/// Exit status that containerd is told for a container whose shim was lost.
const LOST: u32 = 137;

/// What a pod is, from the annotations that containerd puts on its sandbox container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sandbox {
    id: String,
    pod: PodReference,
}

/// Everything that the containers of a pod share.
pub(crate) struct Pod {
    namespace: String,
    containers: Mutex<HashMap<String, Arc<Container>>>,
    sandbox: Mutex<Option<Sandbox>>,
    /// Which container a pid was once the init of. The kubelet and containerd go on using the pid that they were told
    /// first, also after a reboot inside; the number may belong to anybody then.
    incarnations: Mutex<HashMap<i32, String>>,
    publisher: Publisher,
    reaper: Arc<Reaper>,
    exit: Arc<ExitSignal>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pod {
    fn container(&self, id: &str) -> Result<Arc<Container>> {
        lock(&self.containers)
            .get(id)
            .cloned()
            .ok_or_else(|| Error::NotFound(format!("there is no container {id:?} in this pod's shim")))
    }
}

/// One shim: what the shim crate drives.
#[derive(Clone)]
pub struct Service {
    namespace: String,
    id: String,
    debug: bool,
    exit: Arc<ExitSignal>,
}

/// The task service proper.
#[derive(Clone)]
pub struct Tasks {
    pod: Arc<Pod>,
}

#[async_trait]
impl Shim for Service {
    type T = Tasks;

    async fn new(_: &str, flags: &Flags, _: &mut Config) -> Self {
        Self {
            namespace: flags.namespace.clone(),
            id: flags.id.clone(),
            debug: flags.debug,
            exit: Arc::new(ExitSignal::default()),
        }
    }

    async fn start_shim(&mut self, options: StartOpts) -> containerd_shim::Result<String> {
        let grouping = options.id.clone();
        spawn(options, &grouping, Vec::new()).await
    }

    async fn delete_shim(&mut self) -> containerd_shim::Result<DeleteResponse> {
        let undone = StateDir::of(&self.namespace, &self.id).and_then(|dir| journal::undo(&dir));
        undone.map_err(|error| containerd_shim::Error::Other(error.to_string()))?;
        Ok(DeleteResponse {
            exit_status: LOST,
            exited_at: MessageField::some(timestamp(SystemTime::now())),
            ..DeleteResponse::default()
        })
    }

    async fn wait(&mut self) {
        self.exit.wait().await;
    }

    async fn create_task_service(&self, _: RemotePublisher) -> Tasks {
        crate::logger::start(self.debug, &self.id);
        // The crate's publisher never connects again once containerd has been restarted.
        let address = std::env::var("TTRPC_ADDRESS").unwrap_or_default();
        let reaper = Reaper::start().unwrap_or_else(|error| {
            // Without SIGCHLD nothing works; containerd sees a shim that does not come up.
            log::error!("{error}");
            std::process::exit(1);
        });
        Tasks {
            pod: Arc::new(Pod {
                namespace: self.namespace.clone(),
                containers: Mutex::default(),
                sandbox: Mutex::default(),
                incarnations: Mutex::default(),
                publisher: Publisher::start(address, self.namespace.clone()),
                reaper,
                exit: self.exit.clone(),
            }),
        }
    }

    fn runtime_info(runtime: &str, _: Option<&Any>) -> containerd_shim::Result<RuntimeInfo> {
        Ok(crate::info::runtime_info(runtime))
    }
}
