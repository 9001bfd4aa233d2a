//! Copying between descriptors that epoll knows.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use rustix::fs::OFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch::Receiver;
use vivarium_sys::watch::{Owned, watch};

use super::lock;
use crate::error::{Attempt, Result};

/// Bytes that one stream holds.
const BUFFER: usize = 8 << 10;

/// A descriptor in non-blocking mode.
#[derive(Debug)]
pub struct Stream(AsyncFd<Owned>);

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

impl Stream {
    /// Takes the descriptor over. Must be called within the runtime.
    pub fn new(fd: OwnedFd) -> Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&fd).attempt(|| "look at a stream")?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK).attempt(|| "set up a stream")?;
        let interest = match flags & OFlags::RWMODE {
            OFlags::WRONLY => Interest::WRITABLE,
            OFlags::RDWR => Interest::READABLE | Interest::WRITABLE,
            _ => Interest::READABLE,
        };
        Ok(Self(watch(fd, interest).attempt(|| "watch a stream")?))
    }

    async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd.as_fd(), &mut *buffer)?)).await
    }

    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(self.as_fd(), buffer)?)
    }

    async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = self.0.async_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd.as_fd(), bytes)?)).await?;
            bytes = &bytes[written..];
        }
        Ok(())
    }
}

/// Where input goes at the moment.
#[derive(Clone, Debug, Default)]
pub struct Input(Arc<Mutex<Option<Arc<Stream>>>>);

impl Input {
    /// Input that goes to one stream.
    pub fn to(stream: Stream) -> Self {
        Self(Arc::new(Mutex::new(Some(Arc::new(stream)))))
    }

    /// Where it goes.
    pub fn get(&self) -> Option<Arc<Stream>> {
        lock(&self.0).clone()
    }

    /// Lets it go elsewhere, or nowhere.
    pub fn set(&self, stream: Option<Arc<Stream>>) {
        *lock(&self.0) = stream;
    }
}

/// Copies until the source ends. A terminal's master ends with EIO when the last slave is closed.
pub async fn copy_output(from: Stream, to: Arc<Stream>) {
    copy(&from, &to).await;
}

/// As [`copy_output`], from a stream that input goes to as well.
pub async fn copy_shared(from: Arc<Stream>, to: Arc<Stream>) {
    copy(&from, &to).await;
}

async fn copy(from: &Stream, to: &Stream) {
    let mut buffer = [0; BUFFER];
    loop {
        match from.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(length) => {
                if to.write_all(&buffer[..length]).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Copies input until it ends or is closed. What the target does not take (it has ended, or boots) is lost, as it is
/// on a real terminal.
pub async fn copy_input(from: Stream, target: Input, mut close: Receiver<bool>, close_at_end: bool) {
    let mut buffer = [0; BUFFER];
    loop {
        let length = tokio::select! {
            read = from.read(&mut buffer) => match read {
                Ok(0) | Err(_) => break,
                Ok(length) => length,
            },
            _ = close.wait_for(|close| *close) => match from.try_read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(length) => length,
            },
        };
        if let Some(stream) = target.get() {
            stream.write_all(&buffer[..length]).await.ok();
        }
    }
    if close_at_end {
        target.set(None);
    }
}
