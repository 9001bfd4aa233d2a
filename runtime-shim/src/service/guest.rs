//! The shim's side of an environment's guest: its report, and what its init says.

use std::path::PathBuf;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex};

use oci_spec::runtime::PosixRlimit;
use tokio::sync::watch;
use vivarium_api::node::guest::GuestState;

use super::lock;
use crate::environment::notify::{Listener, Said};
use crate::environment::report::Reporter;

/// How a guest stands with the lease of its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It may run.
    Running,
    /// It stands still until the lease is renewed.
    Halted,
    /// It must not run any more.
    Over,
}

/// A guest.
pub(super) struct Guest {
    report: Mutex<Option<Reporter>>,
    init: AtomicI32,
    /// Counts boots, so that whoever waits for the next one can.
    pub boots: watch::Sender<u32>,
    pub standing: watch::Sender<Standing>,
    pub config: PathBuf,
    pub key_files: u32,
    /// What an exec gets.
    pub limits: Vec<PosixRlimit>,
}

impl Guest {
    pub fn new(config: PathBuf, key_files: u32, limits: Vec<PosixRlimit>) -> Self {
        Self {
            report: Mutex::default(),
            init: AtomicI32::new(0),
            boots: watch::Sender::new(1),
            standing: watch::Sender::new(Standing::Running),
            config,
            key_files,
            limits,
        }
    }

    pub fn set_init(&self, pid: i32) {
        self.init.store(pid, Ordering::Relaxed);
    }

    pub fn begin(&self, reporter: Reporter) {
        *lock(&self.report) = Some(reporter);
    }

    pub fn report(&self, state: GuestState, message: &str) {
        if let Some(report) = lock(&self.report).as_mut() {
            report.set(state, message);
        }
    }

    /// Nothing more is reported. What removes a container from outside takes the report away while this still writes it.
    pub fn end(&self) {
        if let Some(report) = lock(&self.report).take() {
            report.withdraw();
        }
    }

    /// Its stop is held back.
    pub fn leaves(&self) {
        if let Some(report) = lock(&self.report).as_mut() {
            report.leave();
        }
    }

    /// A new init is about to start. To be called before it can say anything: its `READY=1` counts from then on.
    pub fn boots_again(&self, pid: i32) {
        self.set_init(pid);
        if let Some(report) = lock(&self.report).as_mut() {
            report.booting_again(pid);
        }
    }

    /// The new init runs and can be entered.
    pub fn booted_again(&self) {
        self.boots.send_modify(|boots| *boots += 1);
    }

    fn said(&self, said: Said) {
        let mut report = lock(&self.report);
        let Some(report) = report.as_mut() else { return };
        match (said, report.state()) {
            (Said::Ready, GuestState::Booting | GuestState::Running) => report.set(GuestState::Running, ""),
            // A late READY of a guest that was told to stop is no news, nor is it that one that reboots stops.
            (Said::Ready, _) | (Said::Stopping, GuestState::Rebooting) => {}
            (Said::Rebooting, _) => report.set(GuestState::Rebooting, ""),
            (Said::Stopping, _) => report.set(GuestState::Stopping, ""),
        }
    }

    /// Listens to init for as long as it is polled.
    pub async fn listen(self: Arc<Self>, listener: Listener) {
        loop {
            match listener.next(|| self.init.load(Ordering::Relaxed)).await {
                Ok(said) => self.said(said),
                Err(error) => {
                    log::error!("the environment's init is not heard any more: {error}");
                    return;
                }
            }
        }
    }
}
