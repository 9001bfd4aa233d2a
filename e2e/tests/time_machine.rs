//! An environment's past is read: by `kubectl ve`, and by any pod of its namespace on any node.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use serde_json::{Value, json};
use vivarium_e2e::{DEADLINE, Namespace, Ran, apply, eventually, kubectl, kubectl_ok, lab};

fn ve(namespace: &str, arguments: &[&str]) -> Ran {
    let mut all = vec!["ve", "-n", namespace];
    all.extend(arguments);
    kubectl(&all)
}

fn ve_ok(namespace: &str, arguments: &[&str]) -> String {
    let ran = ve(namespace, arguments);
    assert!(ran.ok, "kubectl ve {} failed: {}{}", arguments.join(" "), ran.stdout, ran.stderr);
    ran.stdout
}

/// A pod on a node that mounts a tree and waits.
fn reader(namespace: &str, name: &str, node: &str, attributes: &Value) {
    let made = apply(&[
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace}, "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": "docker.io/library/busybox:lab", "imagePullPolicy": "IfNotPresent", "command": ["sleep", "infinity"],
                "volumeMounts": [{"name": "tree", "mountPath": "/tree", "readOnly": true}]}],
            "volumes": [{"name": "tree", "csi": {"driver": "csi.vivarium.dev", "readOnly": true, "volumeAttributes": attributes}}],
        }}),
    ]);
    assert!(made.ok, "{}", made.stderr);
}

/// Waits for the words of the node driver about a pod.
fn refusal(namespace: &str, pod: &str, word: &str) {
    let field = format!("involvedObject.name={pod},reason=FailedMount");
    eventually(&format!("{pod} is told why it gets nothing"), DEADLINE, || {
        let events = kubectl_ok(&[
            "-n",
            namespace,
            "get",
            "events",
            "--field-selector",
            &field,
            "-o",
            "jsonpath={.items[*].message}",
        ]);
        if events.contains(word) { Ok(()) } else { Err(format!("{events:?}")) }
    });
    let phase = kubectl_ok(&["-n", namespace, "get", "pod", pod, "-o", "jsonpath={.status.phase}"]);
    assert_eq!(phase, "Pending");
}

#[test]
fn the_past_of_an_environment_is_read_on_any_node_and_by_its_namespace_alone() {
    let namespace = Namespace::new("past");
    let (n, strangers) = (namespace.name.as_str(), Namespace::new("strangers"));
    let shop = namespace.environment("shop").up();
    shop.sh("mkdir /srv/d && echo one > /srv/version && echo x > /srv/d/gone && printf 'odd' > \"/srv/$(printf 'a\\033[2Jb')\"");
    let sequence =
        || namespace.get("evol", "shop").unwrap()["status"]["journal"]["sequence"].as_u64().unwrap_or_default();
    // A second and a half after the write it is committed; the clock is that of the node.
    shop.sh("sync; sleep 4");
    let then = shop.sh("date -u +%Y-%m-%dT%H:%M:%SZ");
    shop.sh("sleep 2; echo two > /srv/version && rm /srv/d/gone && chmod 600 /srv/d && echo fresh > /srv/fresh; sync; sleep 4");

    // The tool.
    assert_eq!(ve_ok(n, &["cat", "shop:/srv/version", "--at", &then]), "one\n");
    assert_eq!(ve_ok(n, &["cat", "shop:/srv/version"]), "two\n");
    let listed = ve_ok(n, &["ls", "shop:/srv", "--at", &then]);
    assert!(listed.contains("version") && listed.contains("a\\u{1b}[2Jb") && !listed.contains("fresh"), "{listed}");
    assert!(!listed.contains('\u{1b}'), "{listed:?}");
    let changes = ve_ok(n, &["diff", "shop", "--from", &then]);
    let of_srv: Vec<&str> = changes.lines().filter(|line| line.contains("/srv")).collect();
    assert_eq!(
        of_srv.iter().map(|line| line.split("  ").next().unwrap()).collect::<Vec<_>>(),
        ["M /srv/d/", "+ /srv/fresh", "M /srv/version", "- /srv/d/gone"],
        "{changes}"
    );
    let copy = tempfile::tempdir().unwrap();
    let to = copy.path().join("srv");
    ve_ok(n, &["cp", "shop:/srv", to.to_str().unwrap(), "--at", &then]);
    assert_eq!(std::fs::read_to_string(to.join("d/gone")).unwrap(), "x\n");
    assert_eq!(std::fs::read_to_string(to.join("version")).unwrap(), "one\n");
    let history = ve_ok(n, &["history", "shop"]);
    assert!(history.contains("TRANSACTION") && history.contains(" begins"), "{history}");
    for (arguments, word) in [
        (&["cat", "shop:/srv/version", "--at", "2001-01-01T00:00:00Z"][..], "the oldest instant that can be shown is"),
        (&["cat", "shop:/srv/none"], "No such file"),
        (&["cat", "other:/srv/version"], "there is no environment other"),
        (&["cat", "shop:/dev/null", "--at", "99999999"], "the newest one is"),
    ] {
        let ran = ve(n, arguments);
        assert!(!ran.ok && ran.stderr.contains(word), "{arguments:?}: {}{}", ran.stdout, ran.stderr);
    }
    eventually("the pods that read are gone", DEADLINE, || {
        let pods = namespace.names("pods");
        if pods.iter().all(|pod| !pod.starts_with("ve-reader")) { Ok(()) } else { Err(pods.join(" ")) }
    });

    // A pod on another node, which nothing of it was on, and one on the same node.
    let other = lab::nodes().into_iter().find(|node| *node != shop.node()).unwrap();
    for (name, node) in [("near", shop.node()), ("far", other.clone())] {
        reader(n, name, &node, &json!({"environment": "shop", "at": then}));
        kubectl_ok(&["-n", n, "wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=180s"]);
        let read = kubectl_ok(&[
            "-n",
            n,
            "exec",
            name,
            "--",
            "sh",
            "-c",
            "cat /tree/srv/version; ls /tree/srv/d; touch /tree/new 2>&1 || true",
        ]);
        assert_eq!(read, "one\ngone\ntouch: /tree/new: Read-only file system\n", "{name}");
    }
    let copies = || lab::node_sh(&other, "ls -A /var/lib/vivarium/pool/volumes | grep -c '^.view' || true");
    assert_ne!(copies(), "0");

    // The same name from another namespace is another environment: there is none.
    reader(&strangers.name, "stranger", &other, &json!({"environment": "shop"}));
    refusal(&strangers.name, "stranger", "no environment shop in namespace e2e-strangers");
    reader(n, "early", &other, &json!({"environment": "shop", "at": "2001-01-01T00:00:00Z"}));
    refusal(n, "early", "the oldest instant that can be shown is");

    // Stopped, it can be read as well.
    assert!(sequence() > 1);
    kubectl_ok(&["-n", n, "delete", "pod", "near", "far", "early", "--wait=true"]);
    let stopped = shop.with("/runMode", json!("Stopped"));
    stopped.apply();
    stopped.wait_phase("Stopped");
    assert_eq!(ve_ok(n, &["cat", "shop:/srv/version", "--at", &then]), "one\n");
    eventually("nothing is left of the copies", DEADLINE, || {
        let left = copies();
        if left == "0" { Ok(()) } else { Err(format!("{left} on {other}")) }
    });
    stopped.delete();
}
