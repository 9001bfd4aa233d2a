//! gRPC servers on Unix sockets of the node.

use std::io;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;

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
