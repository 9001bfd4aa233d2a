//! The lab itself: a power cut, a pulled network cable, a supervisor that is killed. What an environment makes of that
//! is looked at beside. This test takes nodes from under whatever runs on them, so `hack/test` runs it by itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::time::Duration;

use serde_json::json;
use vivarium_e2e::{DEADLINE, Environment, Namespace, eventually, get, lab};

/// Puts the lab right also when the test fails: what is off is switched on, cables are put back.
struct Repair;

impl Drop for Repair {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let ran = lab::lab(&["up"]);
            eprintln!("hack/lab up: {}{}", ran.stdout, ran.stderr);
        }
    }
}

/// A process of this machine.
#[derive(Debug, PartialEq, Eq)]
struct Process {
    pid: u32,
    name: String,
    parent: u32,
    /// Makes it another one than that which has its pid later.
    start: u64,
}

/// All that run now. Those that have ended and wait for their parent do not.
fn processes() -> Vec<Process> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (before, rest) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let name = before.split_once('(')?.1.to_owned();
        let parent = fields[1].parse().ok()?;
        (!matches!(fields[0], "Z" | "X")).then_some(Process { pid, name, parent, start: fields[19].parse().ok()? })
    })
    .collect()
}

/// Everything that runs on a node: its init and what descends from it.
fn processes_of(node: &str) -> Vec<Process> {
    let mut all = processes();
    let mut found: Vec<_> =
        all.extract_if(.., |process| process.pid == lab::recorded(&format!("{node}-init"))).collect();
    let mut looked_at = 0;
    while looked_at < found.len() {
        let parent = found[looked_at].pid;
        found.extend(all.extract_if(.., |process| process.parent == parent));
        looked_at += 1;
    }
    found
}

/// Those of some processes that still run.
fn still_there(some: &[Process]) -> Vec<String> {
    let now = processes();
    let there = |process: &&Process| now.iter().any(|other| (other.pid, other.start) == (process.pid, process.start));
    some.iter().filter(there).map(|process| format!("{} ({})", process.pid, process.name)).collect()
}

fn readiness(node: &str) -> String {
    let object = get(&["node", node]).unwrap_or_default();
    vivarium_e2e::environment::condition_of(&object, "Ready").0
}

fn wait_readiness(node: &str, wanted: impl Fn(&str) -> bool) {
    eventually(&format!("readiness of {node}"), DEADLINE, || {
        let found = readiness(node);
        if wanted(&found) { Ok(()) } else { Err(found) }
    });
}

/// Waits until the environment is Ready in another boot than that one, on the same node, with its data.
fn back_again(ve: &Environment, boot: &str, node: &str) {
    eventually("another boot", DEADLINE, || {
        let ran = ve.exec(&["cut", "-d ", "-f22", "/proc/1/stat"]);
        if ran.ok && ran.stdout.trim() != boot { Ok(()) } else { Err(ran.stderr) }
    });
    ve.wait_ready();
    assert_eq!(ve.node(), node);
    assert_eq!(ve.sh("cat /srv/kept"), "precious");
    ve.sh("systemctl is-system-running --wait");
}

#[test]
fn power_cuts_pulled_cables_and_killed_supervisors_are_survived() {
    let nodes = lab::nodes();
    assert!(nodes.len() >= 3, "this test needs three nodes: hack/lab down; hack/lab up --nodes 3");
    let (cut, pulled) = (nodes[2].as_str(), nodes[1].as_str());
    let namespace = Namespace::new("lab");
    let repair = Repair;
    let on = |name: &str, node: &str| {
        let ve = namespace.environment(name);
        ve.with("/placement/nodeSelector", json!({"kubernetes.io/hostname": node}))
    };
    let (a, b) = (on("a", cut), on("b", pulled));
    a.apply();
    b.apply();
    for ve in [&a, &b] {
        ve.wait_ready();
        ve.sh("echo precious > /srv/kept; sync");
    }
    let (boot_a, boot_b) = (a.boot(), b.boot());
    let (pod_a, pod_b) = (a.pod(), b.pod());
    let address = b.pod_object()["status"]["hostIP"].as_str().unwrap().to_owned();
    let answers = || lab::in_network(&["busybox", "ping", "-q", "-c", "1", "-W", "2", &address]).ok;

    // The cable first: the cluster takes most of a minute to notice.
    assert!(answers());
    lab::lab_ok(&["node", "partition", pulled]);
    assert!(!answers(), "{pulled} answers although its cable is pulled");

    // The power: whatever ran on the node is gone when the command returns.
    let before = processes_of(cut);
    for name in ["kubelet", "containerd", "vivarium-node", "systemd", "sshd"] {
        assert!(before.iter().any(|process| process.name == name), "no {name} on {cut}: {before:?}");
    }
    lab::lab_ok(&["node", "power-off", cut]);
    assert_eq!(still_there(&before), Vec::<String>::new(), "left running on {cut} without power");
    assert!(!lab::on_node(cut, &["true"]).ok, "a shell on a node without power");
    lab::lab_ok(&["node", "power-on", cut]);
    back_again(&a, &boot_a, cut);
    assert_ne!(a.pod(), pod_a, "the pod of before the power cut runs again");
    wait_readiness(cut, |ready| ready == "True");

    // What is cut off may not go on, since nobody hears whether it does; the cluster knows that it does not know.
    wait_readiness(pulled, |ready| ready != "True");
    lab::lab_ok(&["node", "heal", pulled]);
    // The kernel takes up to a second to use a link again whose other end is back.
    eventually(&format!("an answer of {pulled}, whose cable is back"), DEADLINE, || {
        if answers() { Ok(()) } else { Err("no answer".into()) }
    });
    wait_readiness(pulled, |ready| ready == "True");
    // It may run on that node alone, and starts there as soon as what was left of it is gone.
    back_again(&b, &boot_b, pulled);
    assert_ne!(b.pod(), pod_b, "what was cut off went on as if nothing had been");

    // A supervisor that is killed takes its node along, without the order of `power-off`. `up` puts that right.
    let boot = a.boot();
    let before = processes_of(cut);
    for record in [format!("{cut}-init"), cut.to_owned()] {
        // The first takes the second along, or is about to.
        let _ = vivarium_e2e::run_with("kill", &["-9", &lab::recorded(&record).to_string()], "");
    }
    eventually("the end of all that ran on the node", Duration::from_secs(30), || {
        let left = still_there(&before);
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    assert!(!lab::lab(&["status"]).ok, "hack/lab status calls a lab healthy that lacks a node");
    lab::lab_ok(&["up"]);
    back_again(&a, &boot, cut);
    // The file of the pool is attached once, not a second time beside what the kill left.
    let loops = lab::node_sh(cut, "losetup --noheadings --output NAME -j /var/lib/vivarium/pool.img | wc -l");
    assert_eq!(loops, "1", "loop devices of the pool");
    drop(repair);
}
