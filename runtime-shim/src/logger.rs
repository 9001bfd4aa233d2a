//! The shim's log: containerd's fifo `log` in the bundle, in the line format of containerd's own. A full fifo (containerd
//! hangs) loses lines rather than stop the shim.

use std::os::fd::OwnedFd;

use log::{LevelFilter, Log, Metadata, Record};
use rustix::fs::{Mode, OFlags};

struct Fifo {
    file: OwnedFd,
    id: String,
}

impl Log for Fifo {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        if !record.target().starts_with("vivarium") {
            return;
        }
        let level = record.level().as_str().to_lowercase();
        let message = record.args().to_string();
        let line = format!("time=\"{}\" level={level} msg={message:?} id={}\n", jiff::Timestamp::now(), self.id);
        rustix::io::write(&self.file, line.as_bytes()).ok();
    }

    fn flush(&self) {}
}

/// Begins to log to the fifo in the current directory. Without one (run by hand) nothing is logged.
pub fn start(debug: bool, id: &str) {
    // Opened for reading too: that neither waits for a reader nor fails when it goes away.
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(file) = rustix::fs::open("log", flags, Mode::empty()) else { return };
    if log::set_boxed_logger(Box::new(Fifo { file, id: id.into() })).is_ok() {
        log::set_max_level(if debug { LevelFilter::Debug } else { LevelFilter::Info });
    }
}
