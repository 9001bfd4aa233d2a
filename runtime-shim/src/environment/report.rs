//! Tells the node driver how a guest is: one file per sandbox, replaced at every change.

use std::fs;
use std::path::PathBuf;

use jiff::Timestamp;
use vivarium_api::names;
use vivarium_api::node::guest::{GuestReport, GuestState, PodReference, VERSION};
use vivarium_api::node::stage::StageRecord;

use crate::error::{Attempt, Result};
use crate::journal::replace_file;

/// The report of one guest.
#[derive(Debug)]
pub struct Reporter {
    path: PathBuf,
    report: GuestReport,
}

/// Where the report of a sandbox is.
#[must_use]
pub fn path_of(sandbox: &str) -> PathBuf {
    PathBuf::from(names::GUEST_REPORTS).join(format!("{sandbox}.json"))
}

impl Reporter {
    /// A guest that begins its first boot.
    pub fn new(sandbox: &str, pod: PodReference, volume: &StageRecord) -> Result<Self> {
        fs::create_dir_all(names::GUEST_REPORTS).attempt(|| format!("create {}", names::GUEST_REPORTS))?;
        let report = GuestReport {
            version: VERSION,
            pod,
            volume_id: volume.volume_id.clone(),
            epoch: volume.epoch,
            state: GuestState::Booting,
            since: Timestamp::now(),
            boots: 1,
            message: String::new(),
        };
        let reporter = Self { path: path_of(sandbox), report };
        reporter.write()?;
        Ok(reporter)
    }

    /// State as last reported.
    #[must_use]
    pub fn state(&self) -> GuestState {
        self.report.state
    }

    /// Reports a state, if it is news.
    pub fn set(&mut self, state: GuestState, message: &str) {
        if self.report.state == state && self.report.message == message {
            return;
        }
        self.report.state = state;
        self.report.message = message.into();
        self.report.since = Timestamp::now();
        log::info!("the environment is {}{}{message}", state.as_str(), if message.is_empty() { "" } else { ": " });
        self.write().unwrap_or_else(|error| log::error!("the guest report is out of date: {error}"));
    }

    /// Reports one more boot.
    pub fn booting_again(&mut self) {
        self.report.boots += 1;
        self.set(GuestState::Booting, "");
    }

    fn write(&self) -> Result<()> {
        let text = serde_json::to_vec(&self.report).map_err(std::io::Error::from).attempt(|| "encode the report")?;
        replace_file(&self.path, &text, 0o600)
    }
}
