//! `kubectl ve fence` and `kubectl ve failover`: both ask, by an annotation; the operator does it, by its protocol, or says in its
//! events why it does not.

use serde_json::{Value, json};
use vivarium_api::names;

use crate::Error;
use crate::commands::environment;
use crate::kubectl::Kubectl;

/// On a node's `Lease`: the session that somebody wants to end.
const END: &str = "vivarium.dev/end";
/// On an environment: the epoch that somebody wants to have moved.
const MOVE_FROM: &str = "vivarium.dev/move-from";

/// Asks for the end of a node's authority.
pub fn fence(kubectl: &Kubectl, node: &str, system: &str, yes: bool) -> Result<(), Error> {
    let lease = names::node_lease(node);
    let namespace = format!("--namespace={system}");
    let found = kubectl.get(&["lease", &lease, &namespace])?.ok_or_else(|| {
        Error::said(format!("no node driver ever ran on a node {node}: there is no Lease {system}/{lease}"))
    })?;
    let session = session(node, &found)?;
    let list = kubectl.get(&["virtualenvironments", "--all-namespaces"])?.unwrap_or_default();
    let on_it = running_on(&list, node);
    let told = format!("the session of node {node} ends: its environments are killed there and start elsewhere");
    println!(
        "{told} ({} of them{})",
        on_it.len(),
        if on_it.is_empty() { String::new() } else { format!(": {}", on_it.join(", ")) }
    );
    consent(yes)?;
    // The session that was seen, so that one that began meanwhile is not meant.
    let patch = json!({"metadata": {"annotations": {END: session}}}).to_string();
    kubectl.output(&["patch", "lease", &lease, &namespace, "--type=merge", "-p", &patch], b"")?;
    println!("asked for; see kubectl get ve -A -o wide");
    Ok(())
}

/// Asks for an environment's move to another node.
pub fn failover(kubectl: &Kubectl, name: &str, yes: bool) -> Result<(), Error> {
    let object = environment(kubectl, name)?;
    let epoch = epoch(name, &object)?;
    let node = object["status"]["node"].as_str().unwrap_or("no node");
    println!("environment {name} (incarnation {epoch} on {node}) stops there and starts on another node");
    consent(yes)?;
    let patch = json!({"metadata": {"annotations": {MOVE_FROM: epoch.to_string()}}}).to_string();
    kubectl.output(&["patch", "virtualenvironment", name, "--type=merge", "-p", &patch], b"")?;
    println!("asked for; see kubectl get ve {name} -w");
    Ok(())
}

pub(super) fn consent(yes: bool) -> Result<(), Error> {
    if yes { Ok(()) } else { Err(Error::said("nothing was done: add --yes to do it")) }
}

/// The session of a node that can be ended.
fn session(node: &str, lease: &Value) -> Result<String, Error> {
    let annotation = |name: &str| lease["metadata"]["annotations"][name].as_str().unwrap_or_default();
    let session = annotation(names::ANNOTATION_SESSION);
    if session.is_empty() {
        return Err(Error::said(format!("node {node} has no session: nothing runs on it that could be fenced")));
    }
    if annotation(names::ANNOTATION_FENCED) == session {
        return Err(Error::said(format!("node {node} is fenced already")));
    }
    Ok(session.to_owned())
}

/// Namespace and name of each environment on a node.
fn running_on(list: &Value, node: &str) -> Vec<String> {
    let all = list["items"].as_array().into_iter().flatten().filter(|object| object["status"]["node"] == node);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    all.map(|object| format!("{}/{}", text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"])))
        .collect()
}

/// The incarnation that runs.
fn epoch(name: &str, object: &Value) -> Result<u64, Error> {
    let pod = object["status"]["podName"].as_str().unwrap_or_default();
    names::epoch_of_pod(name, pod)
        .ok_or_else(|| Error::said(format!("environment {name} does not run: there is nothing to move")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_session_that_goes_on_can_be_ended() {
        let lease = |session: &str, fenced: &str| json!({"metadata": {"annotations": {"vivarium.dev/session": session, "vivarium.dev/fenced": fenced}}});
        assert_eq!(session("n1", &lease("s1", "s0")).unwrap(), "s1");
        assert!(session("n1", &lease("s1", "s1")).unwrap_err().to_string().contains("fenced already"));
        assert!(session("n1", &json!({})).unwrap_err().to_string().contains("no session"));
    }

    #[test]
    fn only_an_incarnation_that_runs_can_be_moved() {
        assert_eq!(epoch("shop", &json!({"status": {"podName": "shop-4"}})).unwrap(), 4);
        assert!(epoch("shop", &json!({"status": {}})).unwrap_err().to_string().contains("does not run"));
    }

    #[test]
    fn who_is_concerned_is_named() {
        let list = json!({"items": [
            {"metadata": {"namespace": "a", "name": "x"}, "status": {"node": "n1"}},
            {"metadata": {"namespace": "a", "name": "y"}, "status": {"node": "n2"}},
            {"metadata": {"namespace": "b", "name": "x"}},
        ]});
        assert_eq!(running_on(&list, "n1"), ["a/x"]);
    }

    #[test]
    fn nothing_is_done_without_consent() {
        assert!(consent(true).is_ok());
        assert!(consent(false).unwrap_err().to_string().contains("--yes"));
    }
}
