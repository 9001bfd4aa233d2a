//! A directory of this machine that the emulated one mounts (virtiofs, tag [`TAG`]). What is written to it is here when
//! the write returns: it outlives a power cut.

use std::{
    fs::File,
    os::{fd::OwnedFd, unix::net::UnixListener},
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

use super::{Error, file};
use crate::command;

/// What the machine mounts it by.
pub const TAG: &str = "outside";
/// The daemon that comes with the emulator.
pub const DAEMON: &str = "/usr/lib/qemu/virtiofsd";

/// A directory that one emulator may use.
#[derive(Debug)]
pub struct Outside {
    daemon: Child,
    socket: PathBuf,
}

impl Outside {
    /// Shares `directory`. `socket` is a path where nothing is yet, and which is left there.
    pub fn share(directory: &Path, socket: PathBuf, log: &Path) -> Result<Self, Error> {
        let listener = UnixListener::bind(&socket).map_err(file("listen at", &socket))?;
        let log = File::options().create(true).append(true).open(log).map_err(file("open", log))?;
        let mut daemon = command::mortal("KILL", DAEMON);
        daemon.args(["--fd=0", "-o", "cache=none", "-o"]);
        daemon.arg(format!("source={}", directory.display()));
        // It takes the connection from the socket that it is given, which is listened at already.
        daemon.stdin(Stdio::from(OwnedFd::from(listener))).stdout(Stdio::null()).stderr(log);
        Ok(Self { daemon: daemon.spawn().map_err(Error::Emulator)?, socket })
    }

    /// What the emulator is told.
    pub fn arguments(&self, memory: u32) -> Vec<String> {
        let socket = super::emulator::escaped(&self.socket);
        vec![
            "-object".into(),
            // The daemon reads and writes the machine's memory itself.
            format!("memory-backend-memfd,id=memory,size={memory}M,share=on"),
            "-numa".into(),
            "node,memdev=memory".into(),
            "-chardev".into(),
            format!("socket,id={TAG},path={socket}"),
            "-device".into(),
            format!("vhost-user-fs-pci,chardev={TAG},tag={TAG}"),
        ]
    }

    /// Waits until everything that the machine has asked for is done; the emulator has ended before.
    pub fn end(mut self) -> Result<(), Error> {
        self.daemon.wait().map(drop).map_err(Error::Emulator)
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // It has ended already unless something went wrong before.
        let _ = self.daemon.kill().and_then(|()| self.daemon.wait());
    }
}
