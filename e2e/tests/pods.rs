//! Ordinary pods that name the runtime class: they have what any pod has, in a user namespace of their own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use serde_json::{Value, json};
use vivarium_e2e::{DEADLINE, Namespace, Ran, apply, eventually, is_a_users_range, kubectl, kubectl_ok, lab};

/// Name of the pod, of which there is one in a namespace.
const POD: &str = "plain";
const IMAGE: &str = "docker.io/library/busybox:lab";
/// Limit of each container's memory, in bytes.
const MEMORY: u64 = 64 << 20;
/// What a container does that does nothing.
const STAY: &str = "exec sleep infinity";

/// A container that runs a shell script.
fn container(name: &str, script: &str, mounts: &Value) -> Value {
    json!({"name": name, "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", script],
        "resources": {"limits": {"memory": MEMORY.to_string()}}, "volumeMounts": mounts})
}

/// A container that has no part in the volume and stays.
fn alone(name: &str) -> Value {
    container(name, STAY, &json!([]))
}

/// Makes the pod: containers that run first, those that stay, and an empty volume `shared`.
fn make(namespace: &Namespace, first: &[Value], containers: &[Value]) {
    // The init of a container drops SIGTERM if it is a shell or sleep(1).
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": POD, "namespace": namespace.name},
        "spec": {"runtimeClassName": "vivarium", "hostUsers": false, "terminationGracePeriodSeconds": 1,
            "volumes": [{"name": "shared", "emptyDir": {}}], "initContainers": first, "containers": containers}});
    let made = apply(&[pod]);
    assert!(made.ok, "{}", made.stderr);
}

fn pod(namespace: &Namespace) -> Value {
    namespace.get("pod", POD).expect("the pod")
}

/// What the kubelet says of a container; null if it says nothing.
fn status_of(pod: &Value, container: &str) -> Value {
    for list in ["initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"] {
        let mut statuses = pod["status"][list].as_array().into_iter().flatten();
        if let Some(status) = statuses.find(|status| status["name"] == container) {
            return status.clone();
        }
    }
    Value::Null
}

/// Waits until those containers run; gives the pod.
fn running(namespace: &Namespace, containers: &[&str]) -> Value {
    eventually(&format!("containers {containers:?} run"), DEADLINE, || {
        let pod = pod(namespace);
        let all = containers.iter().all(|name| status_of(&pod, name)["state"]["running"].is_object());
        if all { Ok(pod) } else { Err(pod["status"].to_string()) }
    })
}

fn node_of(pod: &Value) -> String {
    pod["spec"]["nodeName"].as_str().expect("a pod that has a node").to_owned()
}

fn uid_of(pod: &Value) -> String {
    pod["metadata"]["uid"].as_str().expect("a pod").to_owned()
}

/// Runs a shell line in a container; its end is the test's to judge.
fn try_sh(namespace: &Namespace, container: &str, line: &str) -> Ran {
    kubectl(&["-n", &namespace.name, "exec", POD, "-c", container, "--", "sh", "-c", line])
}

/// Runs one that must succeed, and returns what it printed, trimmed.
fn sh(namespace: &Namespace, container: &str, line: &str) -> String {
    let ran = try_sh(namespace, container, line);
    assert!(ran.ok, "in {container}: `{line}` ended with {}: {}{}", ran.code, ran.stdout, ran.stderr);
    ran.stdout.trim().to_owned()
}

/// A file system that an administrator has mounted below the volume of the pod. It goes with this value, or the kubelet
/// could not remove the volume.
struct Below {
    node: String,
    place: String,
}

impl Below {
    fn mount(pod: &Value, name: &str) -> Self {
        let node = node_of(pod);
        let volume = format!("/var/lib/kubelet/pods/{}/volumes/kubernetes.io~empty-dir/shared", uid_of(pod));
        let place = format!("{volume}/{name}");
        lab::node_sh(&node, &format!("mkdir {place} && mount -t tmpfs none {place}"));
        Self { node, place }
    }
}

impl Drop for Below {
    fn drop(&mut self) {
        // What is mounted in the containers is theirs and stays there.
        let _ = lab::on_node(&self.node, &["umount", "--lazy", &self.place]);
    }
}

#[test]
fn containers_share_a_volume_or_a_part_of_it_and_what_is_read_only_is_so_all_the_way_down() {
    let namespace = Namespace::new("pod-volumes");
    let whole = json!([{"name": "shared", "mountPath": "/shared"}]);
    let parts = json!([{"name": "shared", "mountPath": "/part", "subPath": "part"},
        {"name": "shared", "mountPath": "/fixed", "readOnly": true, "recursiveReadOnly": "Enabled"}]);
    // It waits until something is mounted below the volume: the others are made after that.
    let prepare = "mkdir /shared/part && echo prepared > /shared/part/note; until [ -e /shared/go ]; do sleep 1; done";
    make(
        &namespace,
        &[container("prepare", prepare, &whole)],
        &[container("whole", STAY, &whole), container("part", STAY, &parts)],
    );
    let _below = Below::mount(&running(&namespace, &["prepare"]), "below");
    sh(&namespace, "prepare", "touch /shared/go");
    running(&namespace, &["whole", "part"]);

    assert_eq!(sh(&namespace, "part", "cat /part/note"), "prepared");
    sh(&namespace, "whole", "echo more > /shared/part/more && echo deep > /shared/below/deep");
    let seen = sh(&namespace, "part", "ls /part; stat -c '%u %g' /part/more; cat /fixed/part/more /fixed/below/deep");
    assert_eq!(seen, "more\nnote\n0 0\nmore\ndeep");
    for path in ["/fixed/new", "/fixed/part/note", "/fixed/below/new", "/fixed/below/deep"] {
        let ran = try_sh(&namespace, "part", &format!("echo x > {path}"));
        assert!(!ran.ok && ran.stderr.contains("Read-only file system"), "{path}: {}{}", ran.stdout, ran.stderr);
    }
    for container in ["whole", "part"] {
        let account = "/var/run/secrets/kubernetes.io/serviceaccount";
        assert_eq!(sh(&namespace, container, &format!("cat {account}/namespace")), namespace.name);
        // Of a JSON Web Token.
        assert_eq!(sh(&namespace, container, &format!("tr -cd . < {account}/token")), "..", "{container}");
    }
}

#[test]
fn a_pod_is_ready_once_its_probe_says_so_and_its_output_and_what_it_uses_are_told() {
    let namespace = Namespace::new("pod-probe");
    let mut probed = container("probed", "echo it begins; exec sleep infinity", &json!([]));
    probed["readinessProbe"] = json!({"exec": {"command": ["test", "-e", "/open"]}, "periodSeconds": 1});
    make(&namespace, &[], &[probed, alone("other")]);
    let made = running(&namespace, &["probed", "other"]);
    assert_eq!(status_of(&made, "probed")["ready"], false);
    sh(&namespace, "probed", "touch /open");
    kubectl_ok(&["-n", &namespace.name, "wait", "--for=condition=Ready", &format!("pod/{POD}"), "--timeout=180s"]);
    assert_eq!(kubectl_ok(&["-n", &namespace.name, "logs", POD, "-c", "probed"]), "it begins\n");

    let (uid, path) = (uid_of(&made), format!("/api/v1/nodes/{}/proxy/stats/summary", node_of(&made)));
    let uses = |what: &Value, most: u64| {
        let time = what["cpu"]["usageCoreNanoSeconds"].as_u64().unwrap_or_default();
        let memory = what["memory"]["workingSetBytes"].as_u64().unwrap_or_default();
        time > 0 && memory > 0 && memory <= most
    };
    eventually("processor time and memory of the pod and of its containers", DEADLINE, || {
        let summary: Value = serde_json::from_str(&kubectl_ok(&["get", "--raw", &path])).unwrap();
        let mut pods = summary["pods"].as_array().into_iter().flatten();
        let of_pod = pods.find(|pod| pod["podRef"]["uid"] == uid).cloned().unwrap_or_default();
        let containers = of_pod["containers"].as_array().cloned().unwrap_or_default();
        let told = |name: &str| containers.iter().any(|one| one["name"] == name && uses(one, MEMORY));
        if told("probed") && told("other") && uses(&of_pod, 2 * MEMORY) { Ok(()) } else { Err(of_pod.to_string()) }
    });
}

#[test]
fn every_way_into_a_pod_is_inside_its_user_namespace() {
    let namespace = Namespace::new("pod-users");
    make(&namespace, &[], &[alone("first"), alone("second")]);
    running(&namespace, &["first", "second"]);
    let files = "cat /proc/1/uid_map /proc/1/gid_map /proc/self/uid_map /proc/self/gid_map";
    let maps = ["first", "second"].map(|name| sh(&namespace, name, files));
    assert!(maps[0].lines().count() == 4 && maps[0].lines().all(is_a_users_range), "{}", maps[0]);
    assert_eq!(maps[0], maps[1], "the containers of a pod have one user namespace");

    // A container that is added to look at another one.
    let look = "cat /proc/self/uid_map; tr '\\0' ' ' < /proc/1/cmdline";
    let line = format!("debug {POD} --image={IMAGE} --container=look --target=first --profile=baseline");
    let mut words = vec!["-n", &namespace.name];
    words.extend(line.split(' '));
    words.extend(["--", "sh", "-c", look]);
    kubectl_ok(&words);
    let ended = eventually("the end of the added container", DEADLINE, || {
        let status = status_of(&pod(&namespace), "look");
        if status["state"]["terminated"].is_object() { Ok(status) } else { Err(status.to_string()) }
    });
    assert_eq!(ended["state"]["terminated"]["exitCode"], 0, "{ended}");
    let said = kubectl_ok(&["-n", &namespace.name, "logs", POD, "-c", "look"]);
    let (map, init) = said.split_once('\n').expect("two lines");
    assert!(is_a_users_range(map), "{said}");
    assert_eq!(init.trim(), "sleep infinity", "it does not see the processes of its target");
}

#[test]
fn a_container_that_ends_is_started_again_and_its_neighbour_feels_nothing() {
    let namespace = Namespace::new("pod-restart");
    let shared = json!([{"name": "shared", "mountPath": "/shared"}]);
    let leave = "echo it begins; until [ -e /shared/leave ]; do sleep 1; done; rm /shared/leave; exit 3";
    make(&namespace, &[], &[container("leaver", leave, &shared), container("stayer", STAY, &shared)]);
    let before = running(&namespace, &["leaver", "stayer"]);
    let start = || sh(&namespace, "stayer", "cut -d' ' -f22 /proc/1/stat");
    let begun = start();
    sh(&namespace, "stayer", "touch /shared/leave");
    let after = eventually("the second start of the leaver", DEADLINE, || {
        let pod = pod(&namespace);
        let leaver = status_of(&pod, "leaver");
        let again = leaver["restartCount"] == 1 && leaver["state"]["running"].is_object();
        if again { Ok(pod) } else { Err(leaver.to_string()) }
    });
    assert_eq!(status_of(&after, "leaver")["lastState"]["terminated"]["exitCode"], 3, "{after}");
    let previous = kubectl_ok(&["-n", &namespace.name, "logs", POD, "-c", "leaver", "--previous"]);
    assert_eq!(previous, "it begins\n");
    sh(&namespace, "leaver", "test -d /shared && ! test -e /shared/leave");
    for field in ["containerID", "restartCount", "state"] {
        assert_eq!(status_of(&after, "stayer")[field], status_of(&before, "stayer")[field], "{field}");
    }
    assert_eq!(start(), begun);
    assert_eq!(after["status"]["podIP"], before["status"]["podIP"]);
}

#[test]
fn a_deleted_pod_leaves_nothing_on_its_node() {
    let namespace = Namespace::new("pod-deletion");
    let mounts = json!([{"name": "shared", "mountPath": "/part", "subPath": "part"}]);
    make(&namespace, &[], &[container("one", "sleep 1000 & exec sleep infinity", &mounts)]);
    let made = running(&namespace, &["one"]);
    let (node, uid) = (node_of(&made), uid_of(&made));
    let status = status_of(&made, "one");
    let id = status["containerID"].as_str().unwrap().strip_prefix("containerd://").expect("containerd's name");
    let sandbox = lab::node_sh(&node, &format!("crictl pods --quiet --state ready --namespace {}", namespace.name));
    // What looks for the sandbox is not to find itself.
    let (first, rest) = sandbox.split_at(1);
    let traces = || -> Vec<u32> {
        let line = format!(
            "grep -c {uid} /proc/self/mountinfo; find /sys/fs/cgroup -type d -name '*{uid}*' | wc -l; \
             ls /var/lib/kubelet/pods | grep -c {uid}; grep -l -s {uid} /proc/[0-9]*/cgroup | wc -l; \
             pgrep -c -f '[{first}]{rest}'; ls /run/vivarium/shim/k8s.io | grep -c -e {id} -e '[{first}]{rest}'; \
             crictl ps --all --quiet --no-trunc | grep -c {id}"
        );
        let found = lab::node_sh(&node, &format!("({line}) || true"));
        found.split_whitespace().map(|count| count.parse().unwrap()).collect()
    };
    let what = "mounts, cgroups, directories, processes, shims, states of the runtime, containers";
    // The check finds what is there, so it can fail.
    let before = traces();
    assert!(before.len() == 7 && before.iter().all(|count| *count > 0), "{what}: {before:?}");
    kubectl_ok(&["-n", &namespace.name, "delete", "pod", POD, "--timeout=180s"]);
    eventually("no trace on the node", DEADLINE, || {
        let after = traces();
        if after == [0; 7] { Ok(()) } else { Err(format!("{what}: {after:?}")) }
    });
}
