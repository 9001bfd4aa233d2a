//! Whether a container of Vivarium has ended by itself: the kubelet starts a program that panics again, and everything
//! goes on as if nothing had happened.

use std::collections::HashMap;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::install::{self, Error, Installation};

/// How often each container was started again, by the UID of its pod and its name.
#[derive(Default)]
pub struct Restarts(HashMap<(String, String), u64>);

impl Restarts {
    /// Those until now.
    pub fn now(installation: &Installation) -> Result<Self, Error> {
        Ok(Self(counts(&pods(&mut list(installation))?)))
    }

    /// Those until now, of whatever is installed already. Where that cannot be asked there is nothing that stays.
    pub fn of_what_is_there() -> Self {
        let Ok(installation) = install::connect() else { return Self::default() };
        pods(list(&installation).stderr(Stdio::null())).map(|pods| Self(counts(&pods))).unwrap_or_default()
    }

    /// Whether no container has ended by itself since. Prints how one did that has, and what it said before.
    pub fn none_since(&self, installation: &Installation) -> Result<bool, Error> {
        let ended = ended(&pods(&mut list(installation))?, &self.0);
        for Ended { pod, container, how } in &ended {
            println!("container {container} of pod {pod} has ended by itself: {how}. What it said before:");
            let mut logs = installation.command("kubectl");
            logs.args(["logs", "--namespace", install::NAMESPACE, pod, "--container", container]);
            // It may be gone with its node; that the container has ended is a failure anyway.
            if let Err(error) = install::check(logs.args(["--previous", "--tail=200"])) {
                println!("{error}");
            }
        }
        Ok(ended.is_empty())
    }
}

fn list(installation: &Installation) -> Command {
    let mut kubectl = installation.command("kubectl");
    kubectl.args(["get", "pods", "--namespace", install::NAMESPACE, "--output=json", "--request-timeout=10s"]);
    kubectl
}

fn pods(list: &mut Command) -> Result<Value, Error> {
    serde_json::from_str(&install::output(list)?)
        .map_err(|source| Error::Run { program: "kubectl".into(), source: source.into() })
}

/// A container that was started again, and the last time for no good reason.
#[derive(Debug, PartialEq, Eq)]
struct Ended {
    pod: String,
    container: String,
    how: String,
}

fn ended(pods: &Value, before: &HashMap<(String, String), u64>) -> Vec<Ended> {
    let mut found = Vec::new();
    for (pod, status) in containers(pods) {
        let times = restarts(status).saturating_sub(before.get(&key(pod, status)).copied().unwrap_or_default());
        let last = &status["lastState"]["terminated"];
        if times > 0 && !lost_its_driver(pod, last) {
            let how = format!("{times} times, the last time with {last}");
            found.push(Ended { pod: text(&pod["metadata"]["name"]), container: text(&status["name"]), how });
        }
    }
    found
}

/// The programs of Kubernetes' storage group end with 1 when the driver goes that they talk to, in order to be started
/// again (csi-lib-utils, `ExitOnConnectionLoss`); and tests replace the driver on purpose.
fn lost_its_driver(pod: &Value, last: &Value) -> bool {
    pod["metadata"]["labels"]["app.kubernetes.io/component"] == "claims" && last["exitCode"] == 1
}

fn counts(pods: &Value) -> HashMap<(String, String), u64> {
    containers(pods).map(|(pod, status)| (key(pod, status), restarts(status))).collect()
}

/// Each container's status, with its pod.
fn containers(pods: &Value) -> impl Iterator<Item = (&Value, &Value)> {
    entries(&pods["items"]).iter().flat_map(|pod| {
        let kinds = ["initContainerStatuses", "containerStatuses"].into_iter();
        kinds.flat_map(move |kind| entries(&pod["status"][kind])).map(move |status| (pod, status))
    })
}

fn entries(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn key(pod: &Value, status: &Value) -> (String, String) {
    (text(&pod["metadata"]["uid"]), text(&status["name"]))
}

fn restarts(status: &Value) -> u64 {
    status["restartCount"].as_u64().unwrap_or_default()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// One pod that was started, and one container of it that was started again.
    fn one(component: &str, restarts: u64, code: u64) -> Value {
        json!({"items": [{
        "metadata": {"name": "p", "uid": "u", "labels": {"app.kubernetes.io/component": component}},
        "status": {
            "initContainerStatuses": [{"name": "first", "restartCount": 0}],
            "containerStatuses": [
                {"name": "c", "restartCount": restarts, "lastState": {"terminated": {"exitCode": code}}}],
        }}]})
    }

    #[test]
    fn a_container_that_was_started_again_is_named_with_its_exit_code() {
        let found = ended(&one("node", 2, 134), &HashMap::new());
        let how = "2 times, the last time with {\"exitCode\":134}".to_owned();
        assert_eq!(found, [Ended { pod: "p".into(), container: "c".into(), how }]);
    }

    #[test]
    fn what_had_ended_before_does_not_count() {
        let before = counts(&one("node", 2, 134));
        assert_eq!(ended(&one("node", 2, 134), &before), []);
        assert_eq!(ended(&one("node", 3, 134), &before).len(), 1);
    }

    #[test]
    fn a_sidecar_that_lost_its_driver_is_no_failure_and_one_that_panicked_is() {
        assert_eq!(ended(&one("claims", 1, 1), &HashMap::new()), []);
        assert_eq!(ended(&one("claims", 1, 2), &HashMap::new()).len(), 1);
        assert_eq!(ended(&one("operator", 1, 1), &HashMap::new()).len(), 1);
    }
}
