//! `vivarium-operator uninstall`: what has to happen on the nodes before the chart's objects go. It refuses while
//! environments run, because their runtime would be taken away under them; then asks each node driver, by an annotation
//! on its lease, to take the runtime out of its node's containerd, and waits until all have done so.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::TryStreamExt;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, Patch, PatchParams};
use kube::runtime::utils::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use vivarium_api::names;

use crate::error::Failure;

/// Time that all nodes together have.
const DEADLINE: Duration = Duration::from_secs(60);
/// Names of leases of node drivers begin with it.
const REQUESTED: &str = "requested";
const DONE: &str = "done";

/// Why Vivarium cannot be removed now.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Environments run.
    #[error(
        "Vivarium is not removed, because environments still run: {0}. Delete them, or set their spec.runMode to Stopped, \
         and uninstall again"
    )]
    Running(String),
    /// Node drivers did not answer.
    #[error(
        "these nodes did not take the runtime out of their containerd within {seconds} s: {nodes}. See the logs of the \
         node driver there and uninstall again",
        seconds = DEADLINE.as_secs()
    )]
    Silent {
        /// Names of the nodes.
        nodes: String,
    },
    /// The API server refused.
    #[error("cannot {attempt}: {source}")]
    Api {
        /// What was attempted.
        attempt: &'static str,
        /// Cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

fn api<E: std::error::Error + Send + Sync + 'static>(attempt: &'static str) -> impl Fn(E) -> Error {
    move |source| Error::Api { attempt, source: Box::new(source) }
}

/// Runs to its end.
pub fn run(namespace: &str) -> Result<(), Failure> {
    tracing_subscriber::fmt().with_env_filter(crate::log_filter()).with_writer(std::io::stderr).init();
    crate::runtime()?.block_on(async {
        let client = crate::client().await?;
        uninstall(&client, namespace).await.map_err(Into::into)
    })
}

async fn uninstall(client: &Client, namespace: &str) -> Result<(), Error> {
    refuse_while_running(client).await?;
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let mut waiting = BTreeSet::new();
    let listed = leases.list(&ListParams::default()).await.map_err(api("list the leases of nodes"))?;
    for lease in listed.items {
        match standing(&lease, Timestamp::now()) {
            Standing::Foreign => {}
            Standing::Dead => {
                tracing::warn!(lease = lease.name_any(), "its node driver is gone; the node is left as it is");
            }
            Standing::Alive => {
                let patch = json!({"metadata": {"annotations": {names::ANNOTATION_UNINSTALL: REQUESTED}}});
                let params = PatchParams::default();
                let attempt = "ask a node driver to remove the runtime";
                leases.patch(&lease.name_any(), &params, &Patch::Merge(patch)).await.map_err(api(attempt))?;
                waiting.insert(lease.name_any());
            }
        }
    }
    tracing::info!(nodes = waiting.len(), "waits until the nodes have removed the runtime");
    let waited = tokio::time::timeout(DEADLINE, until_done(leases, &mut waiting)).await;
    if let Ok(done) = waited {
        return done;
    }
    let nodes: Vec<_> = waiting.iter().filter_map(|lease| names::node_of_lease(lease)).collect();
    Err(Error::Silent { nodes: nodes.join(", ") })
}

async fn refuse_while_running(client: &Client) -> Result<(), Error> {
    let pods: Api<Pod> = Api::all(client.clone());
    let labelled = ListParams::default().labels(names::LABEL_ENVIRONMENT);
    let found = pods.list(&labelled).await.map_err(api("list the pods of environments"))?;
    let running: Vec<_> = found
        .items
        .iter()
        .filter(|pod| !matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed")))
        .map(|pod| format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any()))
        .collect();
    if running.is_empty() { Ok(()) } else { Err(Error::Running(running.join(", "))) }
}

/// Waits until no lease is left in `waiting`.
async fn until_done(leases: Api<Lease>, waiting: &mut BTreeSet<String>) -> Result<(), Error> {
    if waiting.is_empty() {
        return Ok(());
    }
    let mut changes = std::pin::pin!(watcher(leases, watcher::Config::default()).default_backoff().touched_objects());
    while let Some(lease) = changes.try_next().await.map_err(api("watch the leases of nodes"))? {
        if is_done(&lease) && waiting.remove(&lease.name_any()) {
            tracing::info!(lease = lease.name_any(), left = waiting.len(), "the node is clean");
        }
        if waiting.is_empty() {
            return Ok(());
        }
    }
    Ok(())
}

/// How far a lease's node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Not the lease of a node driver.
    Foreign,
    /// Its driver renews it.
    Alive,
    /// Its driver has not renewed it in time: nobody would answer.
    Dead,
}

/// Whether the driver says that it has removed the runtime. Only an answer to a request counts: the word may be left
/// from an earlier installation.
fn is_done(lease: &Lease) -> bool {
    lease.annotations().get(names::ANNOTATION_UNINSTALL).is_some_and(|state| state == DONE)
}

fn standing(lease: &Lease, now: Timestamp) -> Standing {
    if names::node_of_lease(&lease.name_any()).is_none() {
        return Standing::Foreign;
    }
    let spec = lease.spec.clone().unwrap_or_default();
    let duration = SignedDuration::from_secs(spec.lease_duration_seconds.unwrap_or(0).into());
    match spec.renew_time {
        Some(renewed) if now.duration_since(renewed.0) <= duration => Standing::Alive,
        _ => Standing::Dead,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_nodes_whose_driver_lives_are_waited_for() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let lease = |name: &str, renewed: &str, state: Option<&str>| -> Lease {
            let annotations = state.map_or_else(|| json!({}), |s| json!({names::ANNOTATION_UNINSTALL: s}));
            serde_json::from_value(json!({"metadata": {"name": name, "annotations": annotations},
                "spec": {"renewTime": renewed, "leaseDurationSeconds": 40}}))
            .unwrap()
        };
        for (lease, wanted) in [
            (lease("vivarium-operator", "2026-01-01T00:00:59.000000Z", None), Standing::Foreign),
            (lease("vivarium-node-n1", "2026-01-01T00:00:30.000000Z", None), Standing::Alive),
            (lease("vivarium-node-n1", "2026-01-01T00:00:30.000000Z", Some("requested")), Standing::Alive),
            (lease("vivarium-node-n1", "2026-01-01T00:00:10.000000Z", None), Standing::Dead),
            (lease("vivarium-node-n1", "2026-01-01T00:00:30.000000Z", Some("done")), Standing::Alive),
        ] {
            assert_eq!(standing(&lease, now), wanted, "{lease:?}");
        }
    }
}
