//! Restarts of the machinery do not disturb a running environment: init's start time, an open connection and what was
//! written before stay. These tests restart what others depend on, so they run one after another.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use serde_json::json;
use vivarium_e2e::contents::{read_everything, write_everything};
use vivarium_e2e::{DEADLINE, Environment, Namespace, eventually, kubectl_ok, lab};

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// An open TCP connection to a service in the environment that answers each line.
struct Conversation {
    client: Child,
    lines: BufReader<std::process::ChildStdout>,
    said: u32,
}

impl Conversation {
    fn open(ve: &Environment) -> Self {
        ve.sh("cat > /usr/local/bin/echo-server <<'EOF'\nuse IO::Socket::INET; my $l = IO::Socket::INET->new(LocalPort => 7007, Listen => 5, ReuseAddr => 1) or die; while (my $c = $l->accept) { if (!fork) { $c->autoflush(1); while (<$c>) { print $c \"heard $_\" } exit } }\nEOF\nsystemd-run --quiet --unit echo perl /usr/local/bin/echo-server");
        ve.sh_eventually("ss -ltn | grep -q :7007");
        let address = ve.pod_object()["status"]["podIP"].as_str().unwrap().to_owned();
        let mut client = Command::new(std::env::var("VIVARIUM_HACK").unwrap())
            .args(["lab", "run", "--", "busybox", "nc", &address, "7007"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(client.stdout.take().unwrap());
        Self { client, lines, said: 0 }
    }

    fn says(&mut self) {
        self.said += 1;
        let line = format!("line {}\n", self.said);
        self.client.stdin.as_mut().unwrap().write_all(line.as_bytes()).expect("the connection is closed");
        let mut heard = String::new();
        self.lines.read_line(&mut heard).expect("the connection is closed");
        assert_eq!(heard, format!("heard {line}"));
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}

/// Runs `restart` beside a running environment and looks whether the environment felt it.
fn undisturbed(test: &str, restart: impl FnOnce(&str)) {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let namespace = Namespace::new(test);
    let ve = namespace.environment("shop").with("/services", json!([{"name": "ssh", "port": 22}])).up();
    let written = write_everything(&ve);
    let (boot, pod) = (ve.boot(), ve.pod());
    let mut conversation = Conversation::open(&ve);
    conversation.says();
    restart(&ve.node());
    conversation.says();
    eventually("exec after the restart", DEADLINE, || {
        let ran = ve.exec(&["true"]);
        if ran.ok { Ok(()) } else { Err(ran.stderr) }
    });
    ve.wait_ready();
    assert_eq!((ve.boot(), ve.pod()), (boot, pod), "the environment was restarted");
    assert_eq!(read_everything(&ve), written, "what was written before the restart");
    conversation.says();
    ve.sh("echo after > /srv/after; sync; systemctl is-system-running");
    // And everything still works for it and for the next one.
    let next = namespace
        .environment("next")
        .with("/placement/nodeSelector", json!({"kubernetes.io/hostname": ve.node()}))
        .up();
    next.delete();
    ve.delete();
}

/// Kills a daemon of the node by its name and waits until its supervisor has started another.
fn kill_daemon(node: &str, name: &str) {
    let pids = || lab::node_sh(node, &format!("pgrep -x {name} || true"));
    let before = pids();
    assert!(!before.is_empty(), "no {name} runs on {node}");
    lab::node_sh(node, &format!("kill -9 {}", before.replace('\n', " ")));
    eventually(&format!("another {name}"), DEADLINE, || {
        let now = pids();
        if !now.is_empty() && now != before { Ok(()) } else { Err(now) }
    });
}

fn node_is_ready(node: &str) {
    kubectl_ok(&["wait", "--for=condition=Ready", &format!("node/{node}"), "--timeout=120s"]);
}

#[test]
fn by_a_restart_of_containerd() {
    undisturbed("containerd", |node| {
        kill_daemon(node, "containerd");
        node_is_ready(node);
    });
}

#[test]
fn by_a_restart_of_the_kubelet() {
    undisturbed("kubelet", |node| {
        kill_daemon(node, "kubelet");
        node_is_ready(node);
    });
}

#[test]
fn by_a_restart_of_the_node_driver() {
    undisturbed("driver", |node| {
        let containerd = || lab::node_sh(node, "pgrep -x containerd");
        let before = containerd();
        kubectl_ok(&["-n", "vivarium-system", "rollout", "restart", "daemonset/vivarium-node"]);
        kubectl_ok(&["-n", "vivarium-system", "rollout", "status", "daemonset/vivarium-node", "--timeout=180s"]);
        // It was told of the runtime before, and nothing of that has changed.
        assert_eq!(containerd(), before, "containerd was restarted for nothing");
    });
}

#[test]
fn by_a_restart_of_the_operator() {
    undisturbed("operator", |_| {
        kubectl_ok(&["-n", "vivarium-system", "rollout", "restart", "deployment/vivarium-operator"]);
        kubectl_ok(&["-n", "vivarium-system", "rollout", "status", "deployment/vivarium-operator", "--timeout=180s"]);
    });
}
