//! `vivarium-operator check`: what `helm test` runs. Makes an environment from a template as a user would, waits until it
//! is Ready, and deletes it again. It needs `virtualenvironments`: get, list, watch, create, delete in its namespace.

use std::time::Duration;

use kube::api::{DeleteParams, ObjectMeta, PostParams};
use kube::runtime::wait::{self, await_condition, conditions};
use kube::{Api, ResourceExt};
use serde_json::json;
use vivarium_api::v1alpha1::{VirtualEnvironment, VirtualEnvironmentSpec, condition};

use crate::error::Failure;

/// Name of the environment.
const NAME: &str = "vivarium-check";
/// Time to become Ready: a node may first have to fetch the template.
const READY_WITHIN: Duration = Duration::from_secs(110);
/// Time to go: the guest has 90 s to shut down, and takes less than one.
const GONE_WITHIN: Duration = Duration::from_secs(45);

/// Why the check failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The spec cannot be made.
    #[error("cannot make the spec of an environment: {0}")]
    Spec(#[from] serde_json::Error),
    /// The API server refused.
    #[error("cannot {attempt} environment {NAME}: {source}")]
    Api {
        /// What was attempted.
        attempt: &'static str,
        /// Cause.
        source: kube::Error,
    },
    /// The connection broke off.
    #[error("cannot watch environment {NAME}: {0}")]
    Watch(#[from] wait::Error),
    /// It did not become Ready.
    #[error("environment {NAME} was not Ready within {seconds} s. {why}", seconds = READY_WITHIN.as_secs())]
    NotReady {
        /// What its condition says.
        why: String,
    },
    /// It did not go.
    #[error("environment {NAME} was not gone within {seconds} s; look at it with kubectl describe ve {NAME}", seconds = GONE_WITHIN.as_secs())]
    NotGone,
}

/// Runs to its end.
pub fn run(namespace: &str, template: &str) -> Result<(), Failure> {
    tracing_subscriber::fmt().with_env_filter(crate::log_filter()).with_writer(std::io::stderr).init();
    crate::runtime()?.block_on(async {
        let environments = Api::namespaced(crate::client().await?, namespace);
        check(&environments, template).await.map_err(Into::into)
    })
}

async fn check(environments: &Api<VirtualEnvironment>, template: &str) -> Result<(), Error> {
    // What an interrupted check left.
    remove(environments).await?;
    let spec = json!({"template": {"name": template}, "resources": {"disk": "64Mi"}});
    let spec: VirtualEnvironmentSpec = serde_json::from_value(spec)?;
    let environment = VirtualEnvironment {
        metadata: ObjectMeta { name: Some(NAME.into()), ..ObjectMeta::default() },
        spec,
        status: None,
    };
    environments
        .create(&PostParams::default(), &environment)
        .await
        .map_err(|source| Error::Api { attempt: "create", source })?;
    tracing::info!(template, "waits until environment {NAME} is Ready");
    let ready = tokio::time::timeout(READY_WITHIN, await_condition(environments.clone(), NAME, is_ready)).await;
    let verdict = match ready {
        Ok(done) => done.map(drop).map_err(Error::from),
        Err(_) => Err(Error::NotReady { why: why(environments).await }),
    };
    // Also after a failure: nothing of a check stays.
    let removed = remove(environments).await;
    verdict.and(removed)
}

/// Whether the newest spec is carried out.
fn is_ready(environment: Option<&VirtualEnvironment>) -> bool {
    let Some(environment) = environment else { return false };
    let Some(status) = &environment.status else { return false };
    Some(status.observed_generation) == environment.metadata.generation
        && condition::is_true(&status.conditions, "Ready")
}

/// What the condition Ready says.
async fn why(environments: &Api<VirtualEnvironment>) -> String {
    match environments.get(NAME).await {
        Ok(environment) => {
            let conditions = environment.status.map(|status| status.conditions).unwrap_or_default();
            condition::find(&conditions, "Ready").map_or_else(
                || "No operator has looked at it: see whether its pods run".into(),
                |ready| format!("{}: {}", ready.reason, ready.message),
            )
        }
        Err(error) => error.to_string(),
    }
}

/// Deletes the environment if it is there, and waits until it is gone.
async fn remove(environments: &Api<VirtualEnvironment>) -> Result<(), Error> {
    let api = |attempt| move |source| Error::Api { attempt, source };
    let Some(found) = environments.get_opt(NAME).await.map_err(api("look up"))? else { return Ok(()) };
    let uid = found.uid().unwrap_or_default();
    if let Err(source) = environments.delete(NAME, &DeleteParams::default()).await
        && !matches!(&source, kube::Error::Api(status) if status.is_not_found())
    {
        return Err(Error::Api { attempt: "delete", source });
    }
    let gone = await_condition(environments.clone(), NAME, conditions::is_deleted(&uid));
    tokio::time::timeout(GONE_WITHIN, gone).await.map_err(|_| Error::NotGone)?.map(drop).map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(generation: i64, observed: i64, ready: &str) -> VirtualEnvironment {
        serde_json::from_value(json!({
            "apiVersion": "vivarium.dev/v1alpha1", "kind": "VirtualEnvironment",
            "metadata": {"name": NAME, "generation": generation},
            "spec": {"template": {"name": "t"}},
            "status": {"observedGeneration": observed, "conditions": [{"type": "Ready", "status": ready,
                "lastTransitionTime": "2026-01-01T00:00:00Z", "reason": "Running", "message": ""}]}
        }))
        .unwrap()
    }

    #[test]
    fn ready_counts_for_the_newest_spec_only() {
        assert!(is_ready(Some(&environment(2, 2, "True"))));
        for other in [None, Some(environment(2, 1, "True")), Some(environment(2, 2, "False"))] {
            assert!(!is_ready(other.as_ref()));
        }
    }
}
