//! HTTP for probes: `/healthz` is 200 as long as the pool answers and the CSI socket does, and while the driver before this
//! one still runs: its successor is there already, so that it can take over at once.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint};

use crate::pool::Pool;
use crate::proto::csi::ProbeRequest;
use crate::proto::csi::identity_client::IdentityClient;

/// What a probe waits for an answer of.
const TIMEOUT: Duration = Duration::from_secs(3);

/// What is asked.
#[derive(Clone)]
pub struct Health {
    /// The pool.
    pub pool: Arc<Pool>,
    /// Our own socket.
    pub csi_socket: PathBuf,
}

impl Health {
    /// Asks both.
    ///
    /// # Errors
    /// What is wrong.
    pub async fn check(&self) -> Result<(), String> {
        let ask = async {
            let pool = self.pool.clone();
            let pool = tokio::task::spawn_blocking(move || pool.check()).await.map_err(|error| error.to_string())?;
            pool.map_err(|error| error.to_string())?;
            let channel = connect(self.csi_socket.clone()).await?;
            let answer = IdentityClient::new(channel).probe(ProbeRequest {}).await;
            answer.map(|_| ()).map_err(|status| format!("the CSI service does not answer: {status}"))
        };
        tokio::time::timeout(TIMEOUT, ask)
            .await
            .unwrap_or_else(|_| Err(format!("pool or CSI service do not answer within {} s", TIMEOUT.as_secs())))
    }
}

/// A gRPC channel over a Unix socket.
pub(crate) async fn connect(socket: PathBuf) -> Result<Channel, String> {
    let name = socket.display().to_string();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    // The address is never used: the connector knows where to go.
    let endpoint = Endpoint::from_static("http://localhost").connect_timeout(TIMEOUT).timeout(TIMEOUT);
    endpoint.connect_with_connector(connector).await.map_err(|error| {
        let cause = std::error::Error::source(&error).map_or_else(String::new, |cause| format!(": {cause}"));
        format!("cannot connect to the socket {name}: {error}{cause}")
    })
}

/// How far a driver is.
#[derive(Clone)]
pub enum Stage {
    /// The one before it still runs.
    Waits,
    /// It opens what it needs.
    Starts,
    /// It serves.
    Serves(Health),
}

impl Stage {
    async fn check(&self) -> Result<&'static str, String> {
        match self {
            Self::Waits => Ok("waits for the end of the driver before this one"),
            Self::Starts => Err("it is starting".into()),
            Self::Serves(health) => health.check().await.map(|()| "ok"),
        }
    }
}

/// Serves until the process ends.
///
/// # Errors
/// The address cannot be listened on.
pub async fn serve(address: SocketAddr, stage: watch::Receiver<Stage>) -> std::io::Result<()> {
    axum::serve(tokio::net::TcpListener::bind(address).await?, router(stage)).await
}

/// What is answered.
pub fn router(stage: watch::Receiver<Stage>) -> Router {
    let healthz = |State(stage): State<watch::Receiver<Stage>>| async move {
        let stage = stage.borrow().clone();
        match stage.check().await {
            Ok(told) => (StatusCode::OK, format!("{told}\n")),
            Err(error) => {
                tracing::warn!(error, "not healthy");
                (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n"))
            }
        }
    };
    Router::new().route("/healthz", get(healthz)).with_state(stage)
}
