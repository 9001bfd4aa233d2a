//! Why no node takes a pod: the scheduler counts nodes by what they lack, which does not say where there would have to be
//! room. Told for each node with a pool, from what is known of nodes and of the pods of environments.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::ResourceExt;

use super::dereference::node_state;
use super::world::NodeState;
use crate::quantity::Amount;

/// Nodes that are named in a message; the rest is counted.
const NAMED: usize = 6;
/// Taints that a pod of an environment tolerates, or that say what is said in other words.
const OTHER_WORDS: [&str; 4] = [
    "node.kubernetes.io/not-ready",
    "node.kubernetes.io/unreachable",
    "node.kubernetes.io/unschedulable",
    "node.kubernetes.io/out-of-service",
];

/// A node with a pool.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// Name.
    pub name: String,
    /// Whether it is ready.
    pub ready: bool,
    /// Whether somebody keeps new pods away from it.
    pub cordoned: bool,
    /// Taints that keep an environment's pod away.
    pub taints: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// What it has for pods.
    pub allocatable: BTreeMap<String, Quantity>,
    /// What pods of environments there have requested of it.
    pub used: BTreeMap<String, Amount>,
}

impl Candidate {
    /// A node, and the pods of environments.
    pub fn new<'a>(node: &Node, pods: impl Iterator<Item = &'a Pod>) -> Self {
        let name = node.name_any();
        let spec = node.spec.clone().unwrap_or_default();
        let taints = spec.taints.unwrap_or_default().into_iter();
        let repels = |effect: &str| matches!(effect, "NoSchedule" | "NoExecute");
        let mut used = BTreeMap::new();
        for pod in pods.filter(|pod| super::incarnation::node(pod) == Some(&name) && !has_ended(pod)) {
            for (resource, amount) in requests(pod) {
                let sum = used.entry(resource).or_insert(Amount::from_units(0));
                *sum = *sum + amount;
            }
        }
        Self {
            ready: node_state(Some(node)) == NodeState::Ready,
            cordoned: spec.unschedulable == Some(true),
            taints: taints
                .filter(|taint| repels(&taint.effect) && !OTHER_WORDS.contains(&taint.key.as_str()))
                .map(|taint| taint.key)
                .collect(),
            labels: node.labels().clone(),
            allocatable: node.status.as_ref().and_then(|status| status.allocatable.clone()).unwrap_or_default(),
            used,
            name,
        }
    }
}

fn has_ended(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed"))
}

fn requests(pod: &Pod) -> impl Iterator<Item = (String, Amount)> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let requests =
        containers.flat_map(|container| container.resources.iter().flat_map(|r| r.requests.iter().flatten()));
    requests.filter_map(|(resource, quantity)| Some((resource.clone(), Amount::of(quantity)?)))
}

/// Why each node does not take a pod, as far as that is known, in one sentence. `shunned`: nodes that it must not go to.
#[must_use]
pub fn explain(pod: &Pod, candidates: &[Candidate], silent: &BTreeSet<String>, shunned: &BTreeSet<String>) -> String {
    let named: Vec<_> = candidates
        .iter()
        .take(NAMED)
        .map(|node| format!("{}: {}", node.name, why(pod, node, silent, shunned)))
        .collect();
    let more = candidates.len().saturating_sub(NAMED);
    let more = if more == 0 { String::new() } else { format!("; {more} more nodes") };
    format!("{}{more}", named.join("; "))
}

fn why(pod: &Pod, node: &Candidate, silent: &BTreeSet<String>, shunned: &BTreeSet<String>) -> String {
    if silent.contains(&node.name) {
        return "is silent".into();
    }
    if shunned.contains(&node.name) {
        return "the environment shall leave it".into();
    }
    if !node.ready {
        return "is not ready".into();
    }
    if node.cordoned {
        return "is cordoned".into();
    }
    if let Some(taint) = node.taints.first() {
        return format!("has the taint {taint}");
    }
    let selector = pod.spec.as_ref().and_then(|spec| spec.node_selector.clone()).unwrap_or_default();
    if let Some((key, value)) = selector.iter().find(|(key, value)| node.labels.get(*key) != Some(value)) {
        return format!("does not have the label {key}={value} of spec.placement.nodeSelector");
    }
    for (resource, asked) in requests(pod) {
        let Some(all) = node.allocatable.get(&resource) else { continue };
        let free = Amount::of(all).map(|all| all - node.used.get(&resource).copied().unwrap_or(Amount::from_units(0)));
        if free.is_some_and(|free| free < asked) {
            let text = asked_for(pod, &resource);
            return format!("insufficient {resource}: {text} requested, at most {} free of {}", shown(free), all.0);
        }
    }
    "has room beside environments; other pods or other rules of the scheduler are in the way".into()
}

fn asked_for(pod: &Pod, resource: &str) -> String {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let mut requests =
        containers.filter_map(|container| container.resources.as_ref()?.requests.as_ref()?.get(resource));
    requests.next().map_or_else(String::new, |quantity| quantity.0.clone())
}

fn shown(amount: Option<Amount>) -> String {
    amount.map_or_else(|| "nothing".into(), |amount| amount.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(name: &str, change: &serde_json::Value) -> Node {
        let mut node = json!({"metadata": {"name": name, "labels": {"disk": "fast"}}, "spec": {},
            "status": {"allocatable": {"memory": "2Gi", "cpu": "2"}, "conditions": [{"type": "Ready", "status": "True"}]}});
        for (pointer, value) in change.as_object().unwrap() {
            *node.pointer_mut(pointer).unwrap() = value.clone();
        }
        serde_json::from_value(node).unwrap()
    }

    fn pod(node: Option<&str>, memory: &str, phase: &str) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "status": {"phase": phase},
            "spec": {"nodeName": node, "nodeSelector": {"disk": "fast"},
                "containers": [{"name": "environment", "resources": {"requests": {"memory": memory, "cpu": "10m"}}}]}}))
        .unwrap()
    }

    #[test]
    fn each_node_says_what_is_in_the_way() {
        let others = [
            pod(Some("full"), "1200Mi", "Running"),
            pod(Some("full"), "300Mi", "Pending"),
            pod(Some("full"), "2Gi", "Failed"),
            pod(Some("room"), "1Gi", "Running"),
        ];
        let wanted = pod(None, "1Gi", "Pending");
        let set = |name: &str| BTreeSet::from([name.to_owned()]);
        let taint = |key: &str, effect: &str| json!({"/spec": {"taints": [{"key": key, "effect": effect}]}});
        for (node, expected) in [
            (node("full", &json!({})), "full: insufficient memory: 1Gi requested, at most 548Mi free of 2Gi"),
            (node("silent", &json!({})), "silent: is silent"),
            (node("left", &json!({})), "left: the environment shall leave it"),
            (node("down", &json!({"/status/conditions/0/status": "Unknown"})), "down: is not ready"),
            (node("cordoned", &json!({"/spec": {"unschedulable": true}})), "cordoned: is cordoned"),
            (node("tainted", &taint("gpu", "NoSchedule")), "tainted: has the taint gpu"),
            (
                node("slow", &json!({"/metadata/labels": {}})),
                "slow: does not have the label disk=fast of spec.placement.nodeSelector",
            ),
            (
                node("room", &taint("gpu", "PreferNoSchedule")),
                "room: has room beside environments; other pods or other rules of the scheduler are in the way",
            ),
        ] {
            let candidate = Candidate::new(&node, others.iter());
            assert_eq!(explain(&wanted, &[candidate], &set("silent"), &set("left")), expected);
        }
        let many: Vec<_> = (0..8).map(|n| Candidate::new(&node(&format!("n{n}"), &json!({})), others.iter())).collect();
        assert!(explain(&wanted, &many, &set("x"), &set("x")).ends_with("; 2 more nodes"));
    }
}
