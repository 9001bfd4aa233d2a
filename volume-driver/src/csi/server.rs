//! gRPC servers on Unix sockets of the node, and the CSI services as one of them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::transport::server::Router;

use super::controller::Controller;
use super::identity::Identity;
use super::node::Node;
use crate::pool::Pool;
use crate::proto::csi::controller_server::ControllerServer;
use crate::proto::csi::identity_server::IdentityServer;
use crate::proto::csi::node_server::NodeServer;

/// The services of the driver's socket.
#[must_use]
pub fn services(pool: Arc<Pool>, node: Node) -> Router {
    Server::builder()
        .add_service(IdentityServer::new(Identity { pool }))
        .add_service(ControllerServer::new(Controller { claims: node.claims.clone() }))
        .add_service(NodeServer::new(node))
}

/// A socket that cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on the socket {}: {source}", path.display())]
pub struct ListenError {
    path: PathBuf,
    source: io::Error,
}

/// Listens on a socket for root alone; one that a former process left there is replaced.
///
/// # Errors
/// The directory or socket cannot be made.
pub fn listen(path: &Path) -> Result<UnixListenerStream, ListenError> {
    let failed = |source| ListenError { path: path.to_owned(), source };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    crate::files::remove(path).map_err(failed)?;
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).map_err(failed)?;
    Ok(UnixListenerStream::new(listener))
}
