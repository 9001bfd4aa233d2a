//! `vivarium-operator uninstall`: what has to happen on the nodes before the chart's objects go. It refuses while
//! pods of the runtime run, because it would be taken away under them; then asks each node driver, by an annotation on its
//! lease, whether it could take the runtime out of its node's containerd, and once all have said so, to do it.

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

/// Time that all nodes together have to say that they are there.
const CHECK_DEADLINE: Duration = Duration::from_secs(20);
/// Time that all nodes together have to do it: containerd may take a minute to end, and another one to be back.
const DEADLINE: Duration = Duration::from_secs(150);

/// Why Vivarium cannot be removed now.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Pods run.
    #[error(
        "Vivarium is not removed, because pods still run with its runtime: {0}. Delete them, set spec.runMode of \
         environments to Stopped, and uninstall again"
    )]
    Running(String),
    /// Node drivers did not say that they could.
    #[error(
        "Vivarium is not removed, and nothing was changed: these nodes did not say within {seconds} s that they can take \
         the runtime out of their containerd: {nodes}. See the logs of the node driver there, or stop it if the node shall \
         be left as it is, and uninstall again",
        seconds = CHECK_DEADLINE.as_secs()
    )]
    NotReady {
        /// Names of the nodes.
        nodes: String,
    },
    /// Node drivers did not do it.
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
    let mut nodes = BTreeSet::new();
    let listed = leases.list(&ListParams::default()).await.map_err(api("list the leases of nodes"))?;
    for lease in listed.items {
        match standing(&lease, Timestamp::now()) {
            Standing::Foreign => {}
            Standing::Dead => {
                tracing::warn!(lease = lease.name_any(), "its node driver is gone; the node is left as it is");
            }
            Standing::Alive => drop(nodes.insert(lease.name_any())),
        }
    }
    let words = names::uninstall::CHECK;
    let late = ask(&leases, &nodes, words, names::uninstall::READY, CHECK_DEADLINE).await?;
    if !late.is_empty() {
        // Nobody shall take the question for one of a later uninstallation.
        say(&leases, &nodes, None).await?;
        return Err(Error::NotReady { nodes: late });
    }
    let words = names::uninstall::REQUESTED;
    let late = ask(&leases, &nodes, words, names::uninstall::DONE, DEADLINE).await?;
    if late.is_empty() { Ok(()) } else { Err(Error::Silent { nodes: late }) }
}

/// Asks all nodes, by the names of their leases, and waits for their answers. The nodes that gave none, or nothing.
async fn ask(
    leases: &Api<Lease>,
    nodes: &BTreeSet<String>,
    question: &str,
    answer: &str,
    deadline: Duration,
) -> Result<String, Error> {
    say(leases, nodes, Some(question)).await?;
    tracing::info!(nodes = nodes.len(), question, "waits until the nodes have answered");
    let mut waiting = nodes.clone();
    if let Ok(done) = tokio::time::timeout(deadline, until_answered(leases.clone(), &mut waiting, answer)).await {
        return done.map(|()| String::new());
    }
    let nodes: Vec<_> = waiting.iter().filter_map(|lease| names::node_of_lease(lease)).collect();
    Ok(nodes.join(", "))
}

async fn say(leases: &Api<Lease>, nodes: &BTreeSet<String>, word: Option<&str>) -> Result<(), Error> {
    let patch = json!({"metadata": {"annotations": {names::ANNOTATION_UNINSTALL: word}}});
    for lease in nodes {
        let attempt = "ask a node driver to remove the runtime";
        leases.patch(lease, &PatchParams::default(), &Patch::Merge(&patch)).await.map_err(api(attempt))?;
    }
    Ok(())
}

async fn refuse_while_running(client: &Client) -> Result<(), Error> {
    let pods: Api<Pod> = Api::all(client.clone());
    let found = pods.list(&ListParams::default()).await.map_err(api("list the pods"))?;
    let running: Vec<_> = found.items.iter().filter(|pod| uses_runtime(pod)).map(name).collect();
    if running.is_empty() { Ok(()) } else { Err(Error::Running(running.join(", "))) }
}

fn name(pod: &Pod) -> String {
    format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any())
}

/// Whether a pod that has not ended is an environment's, or another one's that names the runtime class.
fn uses_runtime(pod: &Pod) -> bool {
    let class = pod.spec.as_ref().and_then(|spec| spec.runtime_class_name.as_deref());
    let ended = matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"));
    !ended && (class == Some(names::RUNTIME_CLASS) || pod.labels().contains_key(names::LABEL_ENVIRONMENT))
}

/// Waits until no lease is left in `waiting`.
async fn until_answered(leases: Api<Lease>, waiting: &mut BTreeSet<String>, answer: &str) -> Result<(), Error> {
    if waiting.is_empty() {
        return Ok(());
    }
    let mut changes = std::pin::pin!(watcher(leases, watcher::Config::default()).default_backoff().touched_objects());
    while let Some(lease) = changes.try_next().await.map_err(api("watch the leases of nodes"))? {
        if says(&lease, answer) && waiting.remove(&lease.name_any()) {
            tracing::info!(lease = lease.name_any(), left = waiting.len(), answer, "the node has answered");
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

/// Whether the driver gives that answer. A question was asked before, so that the word is not left from an earlier
/// installation.
fn says(lease: &Lease, answer: &str) -> bool {
    lease.annotations().get(names::ANNOTATION_UNINSTALL).is_some_and(|said| said == answer)
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

    #[test]
    fn whatever_runs_with_the_runtime_is_in_the_way() {
        let pod = |spec: serde_json::Value, labels: serde_json::Value, phase: &str| -> Pod {
            serde_json::from_value(
                json!({"metadata": {"name": "p", "labels": labels}, "spec": spec, "status": {"phase": phase}}),
            )
            .unwrap()
        };
        let (plain, ours) =
            (json!({"containers": []}), json!({"containers": [], "runtimeClassName": names::RUNTIME_CLASS}));
        let labels = json!({names::LABEL_ENVIRONMENT: "shop"});
        for (pod, expected) in [
            (pod(plain.clone(), json!({}), "Running"), false),
            (pod(ours.clone(), json!({}), "Running"), true),
            (pod(ours.clone(), json!({}), "Succeeded"), false),
            (pod(ours, labels.clone(), "Pending"), true),
            (pod(plain, labels, "Running"), true),
        ] {
            assert_eq!(uses_runtime(&pod), expected, "{pod:?}");
        }
    }
}
