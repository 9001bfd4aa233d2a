//! A node driver in foreign hands: what it may write with the token of its pod, and what the cluster refuses it. The
//! tests act in its name (`kubectl --as`) and change nothing (`--dry-run=server` goes through admission).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use serde_json::{Value, json};
use vivarium_e2e::{Environment, Namespace, Ran, eventually, get, lab, run_with};

const DRIVER: &str = "--as=system:serviceaccount:vivarium-system:vivarium-node";

/// `kubectl` as the driver whose token names that node.
fn as_driver(node: Option<&str>, arguments: &[&str], input: &str) -> Ran {
    let extra = node.map(|node| format!("--as-user-extra=authentication.kubernetes.io/node-name={node}"));
    let mut all = vec![DRIVER];
    all.extend(extra.as_deref());
    all.extend(["--dry-run=server"]);
    // What the driver wants comes first: kubectl takes flags anywhere.
    all.splice(0..0, arguments.iter().copied());
    run_with("kubectl", &all, input)
}

/// A patch by the driver of a node: of the status, or of the object itself.
fn patch(node: Option<&str>, object: &[&str], status: bool, patch: &Value) -> Ran {
    let patch = patch.to_string();
    let mut all = vec!["patch"];
    all.extend(object);
    all.extend(["--type=merge", "-p", &patch]);
    if status {
        all.push("--subresource=status");
    }
    as_driver(node, &all, "")
}

#[track_caller]
fn admitted(ran: &Ran) {
    assert!(ran.ok, "a driver was refused what it has to do: {}", ran.stderr);
}

#[track_caller]
fn refused(ran: &Ran, why: &str) {
    assert!(!ran.ok, "it was admitted: {}", ran.stdout);
    assert!(ran.stderr.contains("ValidatingAdmissionPolicy"), "refused by something else: {}", ran.stderr);
    assert!(ran.stderr.contains(why), "the message does not say `{why}`: {}", ran.stderr);
}

/// An environment, its node, and another node.
fn placed(namespace: &Namespace) -> (Environment, String, String) {
    let ve = namespace.environment("shop").up();
    let own = ve.node();
    let other = lab::nodes().into_iter().find(|node| *node != own).expect("the lab has more than one node");
    (ve, own, other)
}

#[test]
fn a_driver_reports_for_the_pods_of_its_node_only() {
    let namespace = Namespace::new("confined-pods");
    let (ve, own, other) = placed(&namespace);
    let pod = ve.pod();
    let lie = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod, "namespace": namespace.name},
        "status": {"conditions": [{"type": "vivarium.dev/Booted", "status": "False", "reason": "Lie"}]}});
    // Not `kubectl patch`, which reads the status first: a driver may not even do that.
    let reports = |node: Option<&str>| {
        let apply = ["apply", "--server-side", "--force-conflicts", "--subresource=status", "-f", "-"];
        as_driver(node, &apply, &lie.to_string())
    };
    admitted(&reports(Some(&own)));
    refused(&reports(Some(&other)), &format!("the node driver of {other} may not report for a pod of another node"));
    refused(&reports(None), "must use the token of its pod");
}

#[test]
fn a_driver_writes_its_own_lease_only() {
    let nodes = lab::nodes();
    let (own, other) = (&nodes[0], &nodes[1]);
    let lease = format!("vivarium-node-{own}");
    let object = ["-n", "vivarium-system", "lease", &lease];
    let session = json!({"metadata": {"annotations": {"vivarium.dev/session": "stolen"}}});
    admitted(&patch(Some(own), &object, false, &session));
    let why = format!("the node driver of {other} may only write its own lease");
    refused(&patch(Some(other), &object, false, &session), &why);
    // Nor does it make one for a node that has none yet, nor the operator's.
    for name in ["vivarium-node-n99", "vivarium-operator"] {
        let made = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": name, "namespace": "vivarium-system"}});
        refused(&as_driver(Some(other), &["create", "-f", "-"], &made.to_string()), &why);
    }
}

#[test]
fn a_driver_writes_the_volumes_of_its_node_only_and_never_who_holds_them() {
    let namespace = Namespace::new("confined-volumes");
    let (_ve, own, other) = placed(&namespace);
    let object = ["-n", &namespace.name, "evol", "shop"];
    let foreign = format!("the node driver of {other} may not write a volume of another node");
    let usage = json!({"status": {"usedBytes": 1}});
    admitted(&patch(Some(&own), &object, true, &usage));
    refused(&patch(Some(&other), &object, true, &usage), &foreign);
    // What a restore is compared with, and that a branch has its state, is for the node to say that has the volume.
    let digest = json!({"digest": {"sequence": 1, "digest": "0", "time": "2026-01-01T00:00:00Z"}});
    for status in [digest, json!({"source": {"sequence": 1}})] {
        refused(&patch(Some(&other), &object, true, &json!({"status": status})), &foreign);
    }
    let guard = json!({"metadata": {"finalizers": []}});
    admitted(&patch(Some(&own), &object, false, &guard));
    refused(&patch(Some(&other), &object, false, &guard), &foreign);
    // Its own, but not its business.
    for status in [
        json!({"holder": {"node": own, "session": "stolen"}}),
        json!({"holder": null}),
        json!({"holderPod": "00000000-0000-0000-0000-000000000000"}),
        json!({"epoch": 99}),
        json!({"node": other}),
    ] {
        let ran = patch(Some(&own), &object, true, &json!({"status": status}));
        refused(&ran, "a node driver may not say who holds a volume");
    }
    // Nor does it say where a copy is, or how one is that is not its own.
    let mut conditions = namespace.get("evol", "shop").unwrap()["status"]["conditions"].as_array().cloned().unwrap();
    conditions.push(json!({"type": "Standby", "status": "True", "reason": "CaughtUp", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z"}));
    for status in [json!({"standby": {"node": other, "sequence": 1}}), json!({"conditions": conditions})] {
        let ran = patch(Some(&other), &object, true, &json!({"status": status}));
        refused(&ran, "no node driver chooses one");
    }
    let spec = json!({"spec": {"size": "2Gi"}});
    refused(&patch(Some(&own), &object, false, &spec), "a node driver may not change the spec of a volume");
    refused(&patch(None, &object, true, &usage), "must use the token of its pod");
}

#[test]
fn a_driver_tells_of_templates_what_its_node_holds_and_no_more() {
    let nodes = lab::nodes();
    // Which nodes hold the template depends on nothing but time: all drivers bring it.
    let held = eventually("the template on all nodes", vivarium_e2e::DEADLINE, || {
        let template = get(&["et", vivarium_e2e::TEMPLATE]).ok_or("no template")?;
        let held = template["status"]["nodes"].as_array().cloned().unwrap_or_default();
        if held.len() == nodes.len() { Ok(held) } else { Err(format!("{held:?}")) }
    });
    let own = held[0]["name"].as_str().unwrap();
    let object = ["et", vivarium_e2e::TEMPLATE];
    let changed = |index: usize| {
        let mut list = held.clone();
        list[index]["state"] = json!("Failed");
        json!({"status": {"nodes": list}})
    };
    admitted(&patch(Some(own), &object, true, &changed(0)));
    let why = format!("the node driver of {own} may not report what another node holds");
    refused(&patch(Some(own), &object, true, &changed(1)), &why);
    refused(&patch(Some(own), &object, true, &json!({"status": {"nodes": []}})), &why);
    let digest = json!({"status": {"digest": format!("sha256:{}", "0".repeat(64))}});
    refused(&patch(Some(own), &object, true, &digest), "the digest of a template stays as long as its image does");
}
