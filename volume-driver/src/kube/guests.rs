//! What guests tell: the shim leaves a report per sandbox in `/run/vivarium/guests`, and each becomes the condition
//! `vivarium.dev/Booted` of its pod, a readiness gate. From a guest that has ended for good its volume is taken back.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt};
use rustix::fs::inotify;
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::Instant;
use vivarium_api::names;
use vivarium_api::node::guest::{self, GuestReport};

use super::departures::Departures;
use super::{ApiError, FIELD_MANAGER, failed, is_gone};
use crate::authority::kill::alive;
use crate::files;
use crate::publish::Publisher;

/// First and longest pause after the API server failed.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// An API server that does not answer for so long does not answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How often everything is looked at, whatever was seen: reports of pods that vanished unseen are removed then.
const LOOK_AGAIN: Duration = Duration::from_mins(5);

/// What publishes reports.
pub struct Guests {
    /// The cluster.
    pub client: Client,
    /// Name of this node.
    pub node: String,
    /// Where the reports are.
    pub directory: PathBuf,
    /// What takes volumes back.
    pub publisher: Arc<Publisher>,
    /// What sees guests off that leave a closed node.
    pub departures: Arc<Departures>,
}

/// What became of a report.
enum Outcome {
    /// The pod says so.
    Told,
    /// The pod is not there, or is another of the same name, or on another node.
    NoPod,
}

/// Tells when files of a directory are put in place or removed. The thread lives as long as the process.
fn notify_of_changes(directory: &Path) -> io::Result<Arc<Notify>> {
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC)?;
    let events = inotify::WatchFlags::MOVED_TO | inotify::WatchFlags::CLOSE_WRITE | inotify::WatchFlags::DELETE;
    inotify::add_watch(&watch, directory, events)?;
    let changed = Arc::new(Notify::new());
    let notify = changed.clone();
    std::thread::Builder::new().name("guests".into()).spawn(move || {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(watch, &mut buffer);
        loop {
            match reader.next() {
                Ok(_) => notify.notify_one(),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "reports of guests are seen late: their directory cannot be watched any more");
                    return;
                }
            }
        }
    })?;
    Ok(changed)
}

/// Reads every report of a directory; what cannot be read is named once in the log and left alone.
///
/// # Errors
/// The directory cannot be listed.
pub fn read_reports(directory: &Path) -> io::Result<HashMap<PathBuf, GuestReport>> {
    let mut reports = HashMap::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        match files::read_json::<GuestReport>(&path) {
            Ok(Some(report)) if report.version == guest::VERSION => drop(reports.insert(path, report)),
            Ok(Some(report)) => {
                tracing::warn!(path = %path.display(), version = report.version, "a guest's report has a version that this build does not know");
            }
            Ok(None) => {} // Removed since it was listed.
            Err(error) => tracing::warn!(%error, path = %path.display(), "a guest's report cannot be read"),
        }
    }
    Ok(reports)
}

/// The condition that a report becomes.
fn condition(report: &GuestReport) -> serde_json::Value {
    let reboots = report.boots.saturating_sub(1);
    let message = match (report.message.is_empty(), reboots) {
        (true, 0) => String::new(),
        (true, _) => format!("reboots since the pod was started: {reboots}"),
        (false, _) => report.message.clone(),
    };
    json!({
        "type": names::CONDITION_BOOTED,
        "status": if report.state.is_booted() { "True" } else { "False" },
        "reason": report.state.as_str(),
        "message": message,
        // Whole seconds: the API server keeps no more.
        "lastTransitionTime": report.since.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    })
}

impl Guests {
    /// Publishes until the process ends.
    ///
    /// # Errors
    /// The directory cannot be made or watched.
    pub async fn run(self) -> io::Result<()> {
        files::private_directory(&self.directory)?;
        let changed = notify_of_changes(&self.directory)?;
        let mut told: HashMap<PathBuf, GuestReport> = HashMap::new();
        let mut backoff = BACKOFF.0;
        loop {
            let failed = match read_reports(&self.directory) {
                Ok(reports) => self.tell(&mut told, reports).await,
                Err(error) => {
                    tracing::warn!(%error, "reports of guests cannot be listed");
                    true
                }
            };
            let pause = if failed { backoff } else { LOOK_AGAIN };
            backoff = if failed { (backoff * 2).min(BACKOFF.1) } else { BACKOFF.0 };
            tokio::select! {
                () = changed.notified() => {}
                () = tokio::time::sleep_until(Instant::now() + pause) => {
                    if !failed {
                        told.clear();
                    }
                }
            }
        }
    }

    /// Tells what is new; whether any of it failed.
    async fn tell(&self, told: &mut HashMap<PathBuf, GuestReport>, reports: HashMap<PathBuf, GuestReport>) -> bool {
        told.retain(|path, _| reports.contains_key(path));
        let mut any_failed = false;
        for (path, report) in reports {
            if told.get(&path) == Some(&report) {
                continue;
            }
            self.departures.see_off(&report);
            if report.state.is_over() {
                self.take_back(report.clone());
            }
            let told_now = tokio::time::timeout(TIMEOUT, self.publish(&report)).await;
            match told_now {
                Ok(Ok(Outcome::Told)) => drop(told.insert(path, report)),
                // The pod may have been deleted by force, and the guest run: whoever ends the session has to find it.
                Ok(Ok(Outcome::NoPod)) if alive(report.init).is_some() => {}
                Ok(Ok(Outcome::NoPod)) => {
                    tracing::info!(pod = report.pod.name, "removing the report of a guest whose pod is gone");
                    if let Err(error) = files::remove(&path) {
                        tracing::warn!(%error, path = %path.display(), "a report cannot be removed");
                    }
                }
                Ok(Err(error)) => {
                    any_failed = true;
                    tracing::warn!(%error, "what a guest reports is told later");
                }
                Err(_) => {
                    any_failed = true;
                    tracing::warn!("what a guest reports is told later: the API server does not answer");
                }
            }
        }
        any_failed
    }

    /// Takes the volume of a guest that has ended back. Others do not wait for the store meanwhile.
    fn take_back(&self, report: GuestReport) {
        let publisher = self.publisher.clone();
        tokio::spawn(async move {
            if let Err(error) = publisher.take_back_from(&report).await {
                tracing::info!(%error, pod = report.pod.name, "its volume is taken back when the kubelet asks for that");
            }
        });
    }

    async fn publish(&self, report: &GuestReport) -> Result<Outcome, ApiError> {
        let reference = &report.pod;
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &reference.namespace);
        let pod = api.get_opt(&reference.name).await.map_err(failed("read pod", &reference.name))?;
        let ours = pod.is_some_and(|pod| {
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
            pod.uid().as_ref() == Some(&reference.uid) && node == Some(self.node.as_str())
        });
        if !ours {
            return Ok(Outcome::NoPod);
        }
        let patch = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": reference.name, "uid": reference.uid},
            "status": {"conditions": [condition(report)]},
        });
        let params = PatchParams::apply(&format!("{FIELD_MANAGER}-guest")).force();
        match api.patch_status(&reference.name, &params, &Patch::Apply(&patch)).await {
            Ok(_) => Ok(Outcome::Told),
            Err(error) if is_gone(&error) => Ok(Outcome::NoPod),
            Err(error) => Err(failed("write the status of pod", &reference.name)(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use vivarium_api::node::guest::{GuestState, PodReference, Process};

    use super::*;

    fn report(state: GuestState, boots: u32, message: &str) -> GuestReport {
        GuestReport {
            version: guest::VERSION,
            pod: PodReference { namespace: "team-a".into(), name: "shop-1".into(), uid: "u".into() },
            volume_id: "v".into(),
            lease: None,
            init: Process { pid: 1, started: 1 },
            shim: Process { pid: 1, started: 1 },
            epoch: 1,
            state,
            since: "2026-01-02T03:04:05.678Z".parse().unwrap(),
            boots,
            leaving: false,
            message: message.into(),
        }
    }

    #[test]
    fn only_a_running_guest_is_booted() {
        for (state, status) in [
            (GuestState::Booting, "False"),
            (GuestState::Running, "True"),
            (GuestState::Rebooting, "False"),
            (GuestState::PoweredOff, "False"),
        ] {
            let condition = condition(&report(state, 1, ""));
            assert_eq!(condition["status"], status);
            assert_eq!(condition["reason"], state.as_str());
            assert_eq!(condition["lastTransitionTime"], "2026-01-02T03:04:05Z");
        }
        assert_eq!(condition(&report(GuestState::Running, 3, ""))["message"], "reboots since the pod was started: 2");
        assert_eq!(condition(&report(GuestState::Failed, 1, "exit code 1"))["message"], "exit code 1");
    }

    #[test]
    fn reports_of_other_versions_and_broken_ones_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let good = report(GuestState::Running, 1, "");
        files::write_json(&dir.path().join("a.json"), &good).unwrap();
        files::write_json(&dir.path().join("b.json"), &GuestReport { version: 99, ..good.clone() }).unwrap();
        std::fs::write(dir.path().join("c.json"), "{").unwrap();
        std::fs::write(dir.path().join("d.new"), "{}").unwrap();
        let reports = read_reports(dir.path()).unwrap();
        assert_eq!(reports, HashMap::from([(dir.path().join("a.json"), good)]));
    }

    #[tokio::test]
    async fn a_report_that_is_renamed_into_place_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let changed = notify_of_changes(dir.path()).unwrap();
        files::write_json(&dir.path().join("a.json"), &report(GuestState::Running, 1, "")).unwrap();
        tokio::time::timeout(Duration::from_secs(5), changed.notified()).await.unwrap();
    }
}
