//! Tells the node driver how a guest is: one file per sandbox, replaced at every change.

use std::fs;
use std::path::PathBuf;

use jiff::Timestamp;
use vivarium_api::names;
use vivarium_api::node::guest::{GuestReport, GuestState, PodReference, Process, VERSION};
use vivarium_api::node::stage::StageRecord;

use crate::error::{Attempt, Error, Result};
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
    pub fn new(sandbox: &str, pod: PodReference, volume: &StageRecord, init: i32) -> Result<Self> {
        fs::create_dir_all(names::GUEST_REPORTS).attempt(|| format!("create {}", names::GUEST_REPORTS))?;
        let report = GuestReport {
            version: VERSION,
            pod,
            volume_id: volume.volume_id.clone(),
            epoch: volume.epoch,
            lease: volume.lease.clone(),
            init: process(init)?,
            shim: process(rustix::process::getpid().as_raw_nonzero().get())?,
            state: GuestState::Booting,
            since: Timestamp::now(),
            boots: 1,
            leaving: false,
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

    /// Reports that its stop is held back.
    pub fn leave(&mut self) {
        self.report.leaving = true;
        self.write().unwrap_or_else(|error| log::error!("the guest report is out of date: {error}"));
    }

    /// Reports one more boot.
    pub fn booting_again(&mut self, init: i32) {
        self.report.boots += 1;
        // One that has ended already is reported by whoever waits for it.
        self.report.init = process(init).unwrap_or(Process { pid: init, started: 0 });
        self.set(GuestState::Booting, "");
    }

    /// Takes the report away, which somebody else may have done.
    pub fn withdraw(self) {
        fs::remove_file(&self.path).ok();
    }

    fn write(&self) -> Result<()> {
        let text = serde_json::to_vec(&self.report).map_err(std::io::Error::from).attempt(|| "encode the report")?;
        replace_file(&self.path, &text, 0o600)
    }
}

/// A process that runs, by its number and start.
fn process(pid: i32) -> Result<Process> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).attempt(|| format!("read {path}"))?;
    // The second field is a name in parentheses, which may hold anything.
    let started = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19)?.parse().ok());
    let started = started.ok_or_else(|| Error::Failed(format!("{path} has no start time.")))?;
    Ok(Process { pid, started })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_the_same_start_each_time_and_one_that_is_gone_none() {
        let me = std::process::id() as i32;
        assert_eq!(process(me).unwrap(), process(me).unwrap());
        assert!(process(me).unwrap().started > 0);
        assert!(process(i32::MAX).is_err());
    }
}
