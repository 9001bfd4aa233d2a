//! Readiness of any file descriptor in a tokio runtime. `AsyncFd` asks its caller to promise that the descriptor stays
//! what it is; for an owned one the type system keeps that promise.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A descriptor that can be used but not exchanged.
#[derive(Debug)]
pub struct Owned(OwnedFd);

impl AsRawFd for Owned {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Owned {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Watches a descriptor, which should be non-blocking. Must be called within a runtime; fails for regular files.
pub fn watch(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<Owned>> {
    // SAFETY: the descriptor is open and belongs to `Owned` alone, which has no way to exchange it and closes it only
    // when it is dropped, with the `AsyncFd`.
    Ok(unsafe { AsyncFd::register_with_interest(Owned(descriptor), interest) }?)
}
