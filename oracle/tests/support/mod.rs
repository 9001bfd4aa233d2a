//! Two nodes, a store, and processes that live on them.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tempfile::TempDir;
use vivarium_oracle::life::Life;
use vivarium_oracle::place::{self, Conditions, Place};
use vivarium_oracle::said::Line;

/// Cases as a variable of the environment says (`COUNT` or `FIRST..END`), or as many as usual.
pub fn cases(variable: &str, usual: u64) -> Range<u64> {
    let number = |text: &str| text.parse().unwrap_or_else(|_| panic!("{variable}: '{text}' is no number"));
    match std::env::var(variable) {
        Ok(text) => match text.split_once("..") {
            Some((first, end)) => number(first)..number(end),
            None => 0..number(&text),
        },
        Err(_) => 0..usual,
    }
}

/// Two nodes and a store.
pub struct Cluster {
    directory: TempDir,
}

impl Cluster {
    pub fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test mounts btrfs file systems of its own: run it as root");
        Self { directory: place::scratch().unwrap() }
    }

    fn state(&self, node: usize) -> PathBuf {
        self.directory.path().join(format!("node{node}"))
    }

    pub fn store(&self) -> PathBuf {
        self.directory.path().join("store")
    }

    /// A node over a store that does what it should.
    pub fn place(&self, node: usize, conditions: &Conditions) -> Place {
        Place::open(&self.state(node), &self.store(), conditions).unwrap()
    }

    /// Begins a life. `armed` is the fail point that ends it, and at which passing.
    pub fn start(&self, what: &str, node: usize, volume: &str, life: Life, armed: Option<(&str, u64)>) -> Running {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vivarium-oracle-node"));
        command.arg(what).arg(self.state(node)).arg(self.store()).arg(volume);
        command.args([life.epoch, life.seed, u64::from(life.number)].map(|number| OsString::from(number.to_string())));
        if let Some((point, times)) = armed {
            command.env(vivarium_fail_point::ARM, format!("{point}={times}"));
        }
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let said = Arc::new(Mutex::new(Vec::new()));
        let (sink, out) = (said.clone(), child.stdout.take().unwrap());
        let (over, silence) = mpsc::channel();
        let ear = std::thread::spawn(move || {
            // Dropped, also when this panics.
            let _over: Sender<()> = over;
            for text in BufReader::new(out).lines() {
                let heard = text.unwrap().parse().unwrap();
                sink.lock().unwrap_or_else(PoisonError::into_inner).push(heard);
            }
        });
        Running { child, said, silence, ear: Some(ear) }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in 0..2 {
            let _ = rustix::mount::unmount(self.state(node).join("pool"), rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// A life. Killed when it is dropped.
pub struct Running {
    child: Child,
    said: Arc<Mutex<Vec<Line>>>,
    /// Ends when it says no more.
    silence: Receiver<()>,
    ear: Option<std::thread::JoinHandle<()>>,
}

impl Running {
    pub fn said(&self) -> Vec<Line> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for its end; `None`: it hung, and was killed. With all that it said.
    pub fn wait(mut self, longest: Duration) -> (Option<ExitStatus>, Vec<Line>) {
        // It closes its mouth when it dies.
        let hung = self.silence.recv_timeout(longest) == Err(RecvTimeoutError::Timeout);
        if hung {
            self.child.kill().unwrap();
        }
        let status = self.child.wait().unwrap();
        self.ear.take().unwrap().join().unwrap();
        ((!hung).then_some(status), self.said())
    }

    /// Kills it. What it said, whole.
    pub fn kill(mut self) -> Vec<Line> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.ear.take().unwrap().join().unwrap();
        self.said()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
