//! Volumes for ordinary pods: a claim of the class `vivarium` is written, outlives its pod, is snapshotted, restored, cloned and
//! enlarged, and what cannot be had is refused with an event that says why.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use serde_json::{Value, json};
use vivarium_e2e::{DEADLINE, Namespace, TEMPLATE, apply, eventually, get, kubectl, kubectl_ok};

/// What the chart makes.
const CLASS: &str = "vivarium";

/// A claim of a class; `from` is its data source.
fn claim(namespace: &Namespace, name: &str, class: &str, size: &str, from: Option<Value>) {
    let mut claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": namespace.name},
        "spec": {"storageClassName": class, "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": size}}}});
    if let Some(from) = from {
        claim["spec"]["dataSource"] = from;
    }
    let made = apply(&[claim]);
    assert!(made.ok, "{}", made.stderr);
}

/// A pod, of an ordinary user, that mounts a claim at `/data`; on a node, if one is named.
fn pod(namespace: &Namespace, name: &str, claim: &str, node: Option<&str>) {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace.name},
        "spec": {"terminationGracePeriodSeconds": 0,
            "securityContext": {"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 2000},
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}],
            "containers": [{"name": "c", "image": "docker.io/library/busybox:lab", "imagePullPolicy": "IfNotPresent",
                "command": ["sleep", "infinity"], "volumeMounts": [{"name": "data", "mountPath": "/data"}]}]}});
    if let Some(node) = node {
        pod["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": node});
    }
    let made = apply(&[pod]);
    assert!(made.ok, "{}", made.stderr);
}

/// Waits until a pod runs; gives its node.
fn running(namespace: &Namespace, name: &str) -> String {
    eventually(&format!("pod {name} runs"), DEADLINE, || {
        let pod = namespace.get("pod", name).unwrap_or_default();
        let ready = pod["status"]["containerStatuses"][0]["ready"] == true;
        if ready { Ok(pod["spec"]["nodeName"].as_str().unwrap().to_owned()) } else { Err(pod["status"].to_string()) }
    })
}

fn shell(namespace: &Namespace, pod: &str, command: &str) -> vivarium_e2e::Ran {
    kubectl(&["-n", &namespace.name, "exec", pod, "--", "sh", "-c", command])
}

fn shell_ok(namespace: &Namespace, pod: &str, command: &str) -> String {
    let ran = shell(namespace, pod, command);
    assert!(ran.ok, "{command}: {}{}", ran.stdout, ran.stderr);
    ran.stdout
}

fn delete(namespace: &Namespace, kind: &str, name: &str) {
    kubectl_ok(&["-n", &namespace.name, "delete", kind, name, "--timeout=180s"]);
}

/// Waits for a warning about a claim that holds some words.
fn warned(namespace: &Namespace, claim: &str, words: &[&str]) {
    eventually(&format!("an event on {claim} that says {words:?}"), DEADLINE, || {
        let events = get(&["-n", &namespace.name, "events"]).unwrap_or_default();
        let of = events["items"].as_array().into_iter().flatten().filter(|e| e["involvedObject"]["name"] == claim);
        let said: Vec<_> = of.filter_map(|event| event["message"].as_str().map(ToOwned::to_owned)).collect();
        let found = said.iter().any(|message| words.iter().all(|word| message.contains(word)));
        if found { Ok(()) } else { Err(format!("{said:?}")) }
    });
}

#[test]
fn what_is_written_to_a_pvc_outlives_the_pod_and_it_can_be_snapshotted_restored_cloned_and_enlarged() {
    let namespace = Namespace::new("pvc");
    claim(&namespace, "data", CLASS, "64Mi", None);
    pod(&namespace, "first", "data", None);
    let node = running(&namespace, "first");
    // Written by an ordinary user, because the kubelet gave the tree to the pod's group.
    shell_ok(&namespace, "first", "echo kept > /data/note && sync");
    delete(&namespace, "pod", "first");
    pod(&namespace, "second", "data", None);
    assert_eq!(running(&namespace, "second"), node, "a volume is on one node");
    assert_eq!(shell_ok(&namespace, "second", "cat /data/note").trim(), "kept");

    let snapshot = json!({"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot",
        "metadata": {"name": "early", "namespace": namespace.name},
        "spec": {"volumeSnapshotClassName": CLASS, "source": {"persistentVolumeClaimName": "data"}}});
    let made = apply(&[snapshot]);
    assert!(made.ok, "{}", made.stderr);
    eventually("the snapshot is ready", DEADLINE, || {
        let snapshot = namespace.get("volumesnapshot", "early").unwrap_or_default();
        if snapshot["status"]["readyToUse"] == true { Ok(()) } else { Err(snapshot["status"].to_string()) }
    });
    shell_ok(&namespace, "second", "echo changed > /data/note && sync");

    let early = json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "early"});
    claim(&namespace, "restored", CLASS, "64Mi", Some(early));
    claim(&namespace, "clone", CLASS, "64Mi", Some(json!({"kind": "PersistentVolumeClaim", "name": "data"})));
    for (name, expected) in [("restored", "kept"), ("clone", "changed")] {
        pod(&namespace, name, name, Some(&node));
        running(&namespace, name);
        assert_eq!(shell_ok(&namespace, name, "cat /data/note").trim(), expected, "{name}");
    }

    let full = shell(&namespace, "second", "dd if=/dev/urandom of=/data/big bs=1M count=120 && sync");
    assert!(!full.ok && full.stderr.contains("uota exceeded"), "{}", full.stderr);
    let larger = json!({"spec": {"resources": {"requests": {"storage": "200Mi"}}}}).to_string();
    kubectl_ok(&["-n", &namespace.name, "patch", "pvc", "data", "-p", &larger]);
    eventually("the claim has grown", DEADLINE, || {
        let claim = namespace.get("pvc", "data").unwrap_or_default();
        if claim["status"]["capacity"]["storage"] == "200Mi" { Ok(()) } else { Err(claim["status"].to_string()) }
    });
    shell_ok(&namespace, "second", "dd if=/dev/urandom of=/data/big bs=1M count=120 && sync");

    delete(&namespace, "volumesnapshot", "early");
    for name in ["second", "restored", "clone"] {
        delete(&namespace, "pod", name);
    }
    let volume = namespace.get("pvc", "data").unwrap()["spec"]["volumeName"].as_str().unwrap().to_owned();
    delete(&namespace, "pvc", "data");
    eventually("the volume goes with its claim", DEADLINE, || match get(&["pv", &volume]) {
        None => Ok(()),
        Some(volume) => Err(volume["status"].to_string()),
    });
}

/// A class that goes with the test.
struct Class(&'static str);

impl Class {
    fn new(name: &'static str, parameters: &Value) -> Self {
        let _ = kubectl(&["delete", "storageclass", name, "--ignore-not-found"]);
        let made = apply(&[
            json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": name},
            "provisioner": "csi.vivarium.dev", "volumeBindingMode": "WaitForFirstConsumer", "parameters": parameters}),
        ]);
        assert!(made.ok, "{}", made.stderr);
        Self(name)
    }
}

impl Drop for Class {
    fn drop(&mut self) {
        let _ = kubectl(&["delete", "storageclass", self.0, "--ignore-not-found"]);
    }
}

#[test]
fn a_pvc_begins_with_a_template_and_what_there_is_not_is_named() {
    let namespace = Namespace::new("pvc-template");
    let template = Class::new("e2e-template", &json!({"template": TEMPLATE}));
    claim(&namespace, "tree", template.0, "2Gi", None);
    pod(&namespace, "reader", "tree", None);
    running(&namespace, "reader");
    let release = shell_ok(&namespace, "reader", "cat /data/etc/os-release || cat /data/usr/lib/os-release");
    assert!(release.contains("Debian"), "{release}");

    let misspelt = Class::new("e2e-misspelt", &json!({"tempalte": TEMPLATE}));
    let unknown = Class::new("e2e-unknown", &json!({"template": "there-is-none"}));
    for (name, class, words) in [
        ("misspelt", misspelt.0, ["'tempalte'", "'template'"]),
        ("unknown", unknown.0, ["EnvironmentTemplate 'there-is-none'", "create it"]),
    ] {
        claim(&namespace, name, class, "64Mi", None);
        pod(&namespace, name, name, None);
        warned(&namespace, name, &words);
    }
}
