//! Environments that leave a node that was closed (cordoned), as `kubectl drain` does it: their pods are deleted, and the
//! operator makes the next ones, on other nodes, at the same moment. A guest that was stopped at once would be down for as
//! long as a sandbox and a copy of its volume take there. So while the node is closed its stop is held back
//! ([`names::HELD_BACK`]), and it goes on until the next pod says that it waits for the volume alone
//! ([`names::CONDITION_PREPARED`]). One after the other is told to stop, the
//! next when the last one answers elsewhere: several at a time would shut down and boot slower each.
//!
//! Nobody depends on it. Where there is no next pod, because the environment shall not run any more, its stop is let go after
//! a second; where the next one finds no node, or this driver is away, the shim does not wait longer than half a minute.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::{Stream, StreamExt, future};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watch_object, watcher};
use kube::{Client, ResourceExt};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use vivarium_api::names;
use vivarium_api::node::guest::GuestReport;

use crate::files;
use crate::publish::Publisher;
use crate::volume::record::Publication;

/// How long until the operator has made the next pod, if it is to make one.
const NEXT_POD: Duration = Duration::from_secs(1);
/// How long a next pod is waited for until it is prepared. The shim does not wait longer either.
const PREPARED: Duration = Duration::from_secs(30);
/// How long one that was told to stop, and does not answer elsewhere, keeps others from it.
const TURN: Duration = Duration::from_secs(5);

/// What holds stops back and lets them go.
pub struct Departures {
    client: Client,
    publisher: Arc<Publisher>,
    /// A file for each pod whose guest is not to be stopped yet.
    held_back: PathBuf,
    /// Pods that are being seen off.
    leaving: Mutex<HashSet<String>>,
    turn: Semaphore,
}

impl Departures {
    /// Makes the directory below the run directory, for root alone.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(client: Client, publisher: Arc<Publisher>, run_dir: &Path) -> io::Result<Self> {
        let held_back = run_dir.join("held-back");
        files::private_directory(&held_back)?;
        Ok(Self { client, publisher, held_back, leaving: Mutex::default(), turn: Semaphore::new(1) })
    }

    /// Watches the node until the process ends.
    pub async fn run(self: Arc<Self>) {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let mut seen = pin!(watch_object(nodes, &self.publisher.me.node).default_backoff());
        let mut closed = None;
        while let Some(seen) = seen.next().await {
            let now = match seen {
                Ok(node) => node.and_then(|node| node.spec?.unschedulable).unwrap_or_default(),
                Err(error) => {
                    tracing::warn!(%error, "whether this node is closed is not known at present");
                    continue;
                }
            };
            if closed.replace(now) == Some(now) {
                continue;
            }
            let this = self.clone();
            let done =
                tokio::task::spawn_blocking(move || if now { this.hold_back() } else { Ok(this.let_all_go()) }).await;
            match done.unwrap_or_else(|error| Err(error.to_string())) {
                Ok(count) => {
                    tracing::info!(closed = now, count, "stops of environments are held back, or not any more");
                }
                Err(error) => tracing::warn!(error, "environments that leave are stopped at once"),
            }
        }
    }

    /// Holds back the stops of all environments that another node can have; tells how many.
    fn hold_back(&self) -> Result<usize, String> {
        let mut count = 0;
        for (_, publication) in self.publisher.records.list().map_err(|error| error.to_string())? {
            if self.can_leave(&publication) {
                let path = self.held_back.join(&publication.stage.pod_uid);
                if let Err(error) = std::fs::write(&path, "") {
                    tracing::warn!(%error, path = %path.display(), "an environment that leaves is stopped at once");
                }
                count += 1;
            }
        }
        Ok(count)
    }

    fn can_leave(&self, publication: &Publication) -> bool {
        let journal = publication.journal.as_ref();
        journal.and_then(|journal| self.publisher.stores.get(&journal.store)).is_some_and(|store| store.is_shared())
    }

    fn let_all_go(&self) -> usize {
        let files = std::fs::read_dir(&self.held_back).into_iter().flatten().flatten();
        files.filter(|file| std::fs::remove_file(file.path()).is_ok()).count()
    }

    /// Sees to the end of a guest whose stop is held back. To be called for each of its reports.
    pub fn see_off(self: &Arc<Self>, report: &GuestReport) {
        let path = self.held_back.join(&report.pod.uid);
        if !report.leaving || !path.exists() || !self.leaving().insert(report.pod.uid.clone()) {
            return;
        }
        let (this, report) = (self.clone(), report.clone());
        tokio::spawn(async move {
            this.let_go(&report, &path).await;
            this.leaving().remove(&report.pod.uid);
        });
    }

    fn leaving(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn let_go(&self, report: &GuestReport, path: &Path) {
        let began = Instant::now();
        let mut next = pin!(self.next_pods(report));
        let prepared = is_prepared_in_time(&mut next, began).await;
        // It is never closed.
        let turn = tokio::time::timeout(PREPARED, self.turn.acquire()).await;
        if let Err(error) = files::remove(path) {
            tracing::warn!(%error, path = %path.display(), "an environment goes on for longer than it should");
        }
        tracing::info!(pod = report.pod.name, prepared, waited = ?began.elapsed(), "an environment that leaves is told to stop");
        if prepared {
            let answers =
                async { while next.next().await.is_some_and(|pod| !is_true(&pod, names::CONDITION_BOOTED)) {} };
            let _ = tokio::time::timeout(TURN, answers).await;
        }
        drop(turn);
    }

    /// Pods of later incarnations, as they change.
    fn next_pods(&self, report: &GuestReport) -> impl Stream<Item = Pod> + use<> {
        let epoch = report.epoch;
        let suffix = format!("-{epoch}");
        let environment = report.pod.name.strip_suffix(&suffix).unwrap_or(&report.pod.name).to_owned();
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &report.pod.namespace);
        let config = watcher::Config::default().labels(&format!("{}={environment}", names::LABEL_ENVIRONMENT));
        let seen = watcher(pods, config).default_backoff().applied_objects();
        seen.filter_map(move |seen| {
            let pod = seen.inspect_err(|error| tracing::info!(%error, "next pods are not seen at present")).ok();
            future::ready(pod.filter(|pod| is_next(pod, &environment, epoch)))
        })
    }
}

/// Waits until a next pod is prepared; `false`: there is none, or it takes too long.
async fn is_prepared_in_time(next: &mut (impl Stream<Item = Pod> + Unpin), began: Instant) -> bool {
    let mut until = began + NEXT_POD;
    while let Ok(Some(pod)) = tokio::time::timeout_at(until, next.next()).await {
        if is_true(&pod, names::CONDITION_PREPARED) {
            return true;
        }
        until = began + PREPARED;
    }
    false
}

/// Whether a pod is of a later incarnation, and to stay.
fn is_next(pod: &Pod, environment: &str, epoch: u64) -> bool {
    let later = names::epoch_of_pod(environment, &pod.name_any()).is_some_and(|of_pod| of_pod > epoch);
    later && pod.metadata.deletion_timestamp.is_none()
}

fn is_true(pod: &Pod, type_: &str) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|c| c.type_ == type_ && c.status == "True")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_next_pod_is_waited_for_for_as_long_as_there_is_one() {
        let pod = |prepared: &str| -> Pod {
            let condition = json!({"type": names::CONDITION_PREPARED, "status": prepared});
            serde_json::from_value(json!({"metadata": {"name": "shop-4"}, "status": {"conditions": [condition]}}))
                .unwrap()
        };
        for (pods, prepared, seconds) in [
            (vec![], false, 1),
            (vec![(0, "True")], true, 0),
            (vec![(2, "True")], false, 1),
            (vec![(0, "False"), (20, "True")], true, 20),
            (vec![(0, "False"), (40, "True")], false, 30),
        ] {
            let began = Instant::now();
            let told = futures::stream::iter(pods).then(async |(at, prepared)| {
                tokio::time::sleep_until(began + Duration::from_secs(at)).await;
                pod(prepared)
            });
            let mut told_and_then_nothing = pin!(told.chain(futures::stream::pending()));
            assert_eq!(is_prepared_in_time(&mut told_and_then_nothing, began).await, prepared);
            assert_eq!(began.elapsed(), Duration::from_secs(seconds));
        }
    }

    #[test]
    fn a_guest_goes_once_a_later_pod_of_its_environment_is_prepared() {
        for (name, deleted, type_, status, next, prepared) in [
            ("shop-4", false, names::CONDITION_PREPARED, "True", true, true),
            ("shop-4", false, names::CONDITION_PREPARED, "False", true, false),
            ("shop-4", false, names::CONDITION_BOOTED, "True", true, false),
            ("shop-4", true, names::CONDITION_PREPARED, "True", false, true),
            ("shop-3", false, names::CONDITION_PREPARED, "True", false, true),
            ("shop-10", false, names::CONDITION_PREPARED, "True", true, true),
            ("shop-b-4", false, names::CONDITION_PREPARED, "True", false, true),
        ] {
            let mut pod =
                json!({"metadata": {"name": name}, "status": {"conditions": [{"type": type_, "status": status}]}});
            if deleted {
                pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            }
            let pod: Pod = serde_json::from_value(pod).unwrap();
            assert_eq!(
                (is_next(&pod, "shop", 3), is_true(&pod, names::CONDITION_PREPARED)),
                (next, prepared),
                "{name} {type_} {status}"
            );
        }
    }
}
