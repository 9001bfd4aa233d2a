//! The operator of Vivarium: turns `VirtualEnvironment`s into volumes and pods, watches them and reports.
//!
//! | module | job |
//! |---|---|
//! | [`environment`] | the controller of environments, as a pipeline around a pure decision |
//! | [`volume`] | the controller of volumes that nobody uses |
//! | [`restore`] | the controller of restores |
//! | [`nodes`] | which nodes are dead |
//! | [`watches`], [`cache`] | what is watched, whom it wakes, what is kept |
//! | [`leader`] | which replica acts |
//! | [`metrics`], [`health`], [`events`] | what is told |
//! | [`crds`], [`uninstall`], [`run`] | the subcommands |

pub mod cache;
pub mod check;
pub mod crds;
pub mod environment;
pub mod error;
pub mod events;
pub mod health;
pub mod leader;
pub mod metrics;
pub mod nodes;
pub mod quantity;
pub mod restore;
pub mod run;
pub mod uninstall;
pub mod volume;
pub mod watches;

use kube::Client;
use tracing_subscriber::EnvFilter;

/// The process cannot begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BeginError {
    /// No threads.
    #[error("cannot start the threads of the program: {0}")]
    Runtime(#[source] std::io::Error),
    /// No way to the API server.
    #[error("cannot find the API server, neither by a service account nor by KUBECONFIG: {0}")]
    Config(#[source] kube::config::InferConfigError),
    /// No client.
    #[error("cannot set up the connection to the API server: {0}")]
    Client(#[source] kube::Error),
}

pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, BeginError> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(BeginError::Runtime)
}

pub(crate) async fn client() -> Result<Client, BeginError> {
    let config = kube::Config::infer().await.map_err(BeginError::Config)?;
    Client::try_from(config).map_err(BeginError::Client)
}

/// What is logged: `RUST_LOG`, or what happens without details.
pub(crate) fn log_filter() -> EnvFilter {
    EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,kube=warn"))
}
