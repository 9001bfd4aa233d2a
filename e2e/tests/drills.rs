//! Disasters, with environments that number what they write to an outside witness: which of them go on, where, after how
//! long, and with what. `hack/drill` runs one of them, `hack/test` some.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and a drill tells what it measured"
)]

use std::time::Duration;

use vivarium_e2e::witness::{Outage, Witness, judge, now};
use vivarium_e2e::{DEADLINE, Environment, Namespace, eventually, kubectl_ok, lab};

/// Port of the witness.
const PORT: u16 = 7777;
/// More than this may never be lost: commits are made every second or two, and the machine may be busy.
const LARGEST_WINDOW: Duration = Duration::from_secs(10);

/// Puts the lab right at the end, whatever happened.
struct Repair;

impl Drop for Repair {
    fn drop(&mut self) {
        let ran = lab::lab(&["up"]);
        if !ran.ok {
            eprintln!("hack/lab up: {}{}", ran.stdout, ran.stderr);
        }
        for node in lab::nodes() {
            kubectl_ok(&["uncordon", &node]);
        }
    }
}

/// Environments that write, all on one node, and who watches them.
struct Drill {
    witness: Witness,
    environments: Vec<(String, Environment)>,
    node: String,
    _repair: Repair,
    _namespace: Namespace,
}

impl Drill {
    fn new(name: &str, count: usize) -> Self {
        let repair = Repair;
        let nodes = lab::nodes();
        assert!(nodes.len() >= 3, "this drill needs three nodes: hack/lab down; hack/lab up --nodes 3");
        let node = nodes[nodes.len() - 1].clone();
        let namespace = Namespace::new(&format!("drill-{name}"));
        for other in nodes.iter().filter(|other| **other != node) {
            kubectl_ok(&["cordon", other]);
        }
        let environments: Vec<_> = (0..count)
            .map(|number| {
                let ve = namespace.environment(&format!("ve{number}"));
                ve.apply();
                // What is left of another drill may still speak.
                (format!("{name}-{}-ve{number}", std::process::id()), ve)
            })
            .collect();
        let witness = Witness::start(PORT);
        for (name, ve) in &environments {
            ve.wait_ready();
            assert_eq!(ve.node(), node);
            witness.watch(ve, name);
        }
        for other in nodes.iter().filter(|other| **other != node) {
            kubectl_ok(&["uncordon", other]);
        }
        let drill = Self { witness, environments, node, _repair: repair, _namespace: namespace };
        drill.all_speak(now());
        // So that everything that was made so far is in the journals.
        std::thread::sleep(Duration::from_secs(5));
        drill
    }

    fn all_speak(&self, since: u64) {
        for (name, _) in &self.environments {
            eventually(&format!("{name} writes"), DEADLINE, || {
                if self.witness.heard_since(name, since) { Ok(()) } else { Err("nothing is heard".into()) }
            });
        }
    }

    /// What became of each environment: one outage, or none.
    fn outages(&self) -> Vec<Vec<Outage>> {
        let judged = |(name, _): &(String, Environment)| {
            judge(&self.witness.of(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
        };
        self.environments.iter().map(judged).collect()
    }

    /// Each environment answers again after exactly one change of lives, on another node, with what it had written.
    fn moved(&self, cut: u64) -> Vec<Outage> {
        for (name, _) in &self.environments {
            eventually(&format!("{name} writes elsewhere"), DEADLINE, || {
                let said = self.witness.of(name);
                let lives: std::collections::BTreeSet<_> = said.iter().map(|one| &one.life).collect();
                if lives.len() > 1 && self.witness.heard_since(name, cut) { Ok(()) } else { Err(format!("{lives:?}")) }
            });
        }
        for (name, ve) in &self.environments {
            ve.wait_ready();
            assert_ne!(ve.node(), self.node, "{name}");
        }
        let outages: Vec<_> = self
            .outages()
            .into_iter()
            .map(|of_one| {
                assert_eq!(of_one.len(), 1, "{of_one:?}");
                of_one[0]
            })
            .collect();
        report(&outages);
        for outage in &outages {
            assert!(outage.window <= LARGEST_WINDOW, "{outage:?}");
        }
        outages
    }
}

/// What a person wants to see of a drill.
fn report(outages: &[Outage]) {
    let mut silent: Vec<_> = outages.iter().map(|outage| outage.silent.as_secs_f32()).collect();
    silent.sort_by(f32::total_cmp);
    let window = outages.iter().map(|outage| outage.window).max().unwrap_or_default();
    let lost = outages.iter().map(|outage| outage.lost).max().unwrap_or_default();
    println!(
        "silent: median {:.1} s, longest {:.1} s; lost: at most {lost} writes of {:.1} s",
        silent[silent.len() / 2],
        silent[silent.len() - 1],
        window.as_secs_f32()
    );
}

/// How many environments are on the node, unless `VIVARIUM_DRILL_ENVIRONMENTS` says otherwise.
fn count() -> usize {
    std::env::var("VIVARIUM_DRILL_ENVIRONMENTS").ok().and_then(|count| count.parse().ok()).unwrap_or(3)
}

/// Ports of the control plane.
const API: u16 = 6443;
const STORE: u16 = 7480;

/// Drops what a node and its pods send to ports of the control plane, until it is dropped itself.
struct Cut<'a>(&'a str);

impl<'a> Cut<'a> {
    fn new(node: &'a str, ports: &[u16]) -> Self {
        let mut rules = "table inet drill {\n".to_owned();
        for hook in ["output", "forward"] {
            use std::fmt::Write;
            write!(rules, " chain {hook} {{ type filter hook {hook} priority 0;").unwrap();
            for port in ports {
                write!(rules, " ip daddr {} tcp dport {port} drop;", lab::CONTROL_PLANE).unwrap();
            }
            rules.push_str(" }\n");
        }
        rules.push('}');
        lab::node_sh(node, &format!("echo '{rules}' | nft -f -"));
        Self(node)
    }
}

impl Drop for Cut<'_> {
    fn drop(&mut self) {
        let _ = lab::on_node(self.0, &["nft", "delete", "table", "inet", "drill"]);
    }
}

/// Stops a process of the lab's control plane, as if it hung, until this is dropped.
struct Hung(&'static str);

impl Hung {
    fn new(record: &'static str) -> Self {
        lab::signal(record, "STOP");
        Self(record)
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        lab::signal(self.0, "CONT");
    }
}

impl Drill {
    /// Every environment goes on writing for a while, and none is started anew.
    fn undisturbed(&self, what: &str, seconds: u64) {
        std::thread::sleep(Duration::from_secs(seconds));
        let since = now() - 5_000;
        self.all_speak(since);
        for ((name, _), outages) in self.environments.iter().zip(self.outages()) {
            assert_eq!(outages, [], "{name} was disturbed by {what}");
        }
    }

    /// The node takes part again: its driver has a session that nobody fenced, and an environment can run on it.
    fn node_is_back(&self) {
        let namespace = Namespace::new("drill-back");
        let selector = serde_json::json!({"kubernetes.io/hostname": self.node});
        let ve = namespace.environment("back").with("/placement/nodeSelector", selector);
        ve.apply();
        ve.wait_ready();
        assert_eq!(ve.node(), self.node);
        let left = lab::node_sh(&self.node, "ls /run/vivarium/guests | wc -l");
        assert_eq!(left, "1", "guests on {} beside the new one", self.node);
        ve.delete();
    }
}

#[test]
fn power_cut() {
    let drill = Drill::new("power-cut", count());
    let cut = now();
    lab::lab_ok(&["node", "power-off", &drill.node]);
    drill.moved(cut);
    lab::lab_ok(&["node", "power-on", &drill.node]);
    drill.node_is_back();
    // What is back does not take anything away again.
    drill.all_speak(now());
    assert!(drill.outages().iter().all(|of_one| of_one.len() == 1));
}

/// The hardest one: the node lives and its environments can be heard, but nobody that counts hears of it. They must have
/// fallen silent before the others begin, and must not speak again.
#[test]
fn cut_off_from_both_witnesses() {
    let drill = Drill::new("cut-off", count());
    let at = now();
    let cut = Cut::new(&drill.node, &[API, STORE]);
    drill.moved(at);
    drop(cut);
    drill.node_is_back();
    drill.all_speak(now());
    assert!(drill.outages().iter().all(|of_one| of_one.len() == 1));
}

#[test]
fn a_node_driver_that_hangs() {
    let drill = Drill::new("hung", 2);
    let at = now();
    lab::node_sh(&drill.node, "pkill -STOP -x vivarium-node");
    drill.moved(at);
    lab::node_sh(&drill.node, "pkill -CONT -x vivarium-node");
    drill.node_is_back();
    drill.all_speak(now());
    assert!(drill.outages().iter().all(|of_one| of_one.len() == 1));
}

/// What one witness, or a part of ours that comes back, must not disturb.
#[test]
fn what_disturbs_nothing() {
    let drill = Drill::new("nothing", 2);
    {
        let _cut = Cut::new(&drill.node, &[API]);
        drill.undisturbed("a node that is cut off from the API server", 25);
    }
    drill.undisturbed("the return of the API server to a node", 10);
    {
        let _cut = Cut::new(&drill.node, &[STORE]);
        drill.undisturbed("a node that is cut off from the store", 25);
    }
    drill.undisturbed("the return of the store to a node", 10);
    // The driver proper, not what starts it again.
    lab::node_sh(&drill.node, "pkill -KILL -n -x vivarium-node");
    drill.undisturbed("a node driver that was killed", 15);
    {
        let _hung = Hung::new("apiserver");
        drill.undisturbed("an outage of the API server", 25);
    }
    drill.undisturbed("the return of the API server", 15);
    {
        let _hung = Hung::new("ceph-gateway");
        drill.undisturbed("an outage of the store", 25);
    }
    drill.undisturbed("the return of the store", 15);
    kubectl_ok(&["-n", "vivarium-system", "rollout", "restart", "daemonset/vivarium-node"]);
    kubectl_ok(&["-n", "vivarium-system", "rollout", "status", "daemonset/vivarium-node", "--timeout=180s"]);
    drill.undisturbed("new node drivers", 5);
}

/// The operator's leader dies with the node.
#[test]
fn the_leader_dies_with_the_node() {
    let drill = Drill::new("leader", 2);
    // Leadership goes to the replica on that node: the only one there is until another is made.
    let scale = |replicas: &str| {
        kubectl_ok(&["-n", "vivarium-system", "scale", "deployment/vivarium-operator", "--replicas", replicas]);
    };
    let leader = || {
        let lease = vivarium_e2e::get(&["-n", "vivarium-system", "lease", "vivarium-operator"]).unwrap();
        let pod = lease["spec"]["holderIdentity"].as_str().filter(|pod| !pod.is_empty()).unwrap_or("nobody").to_owned();
        let found = vivarium_e2e::get(&["-n", "vivarium-system", "pod", &pod]);
        found.and_then(|pod| pod["spec"]["nodeName"].as_str().map(str::to_owned)).unwrap_or_default()
    };
    for other in lab::nodes().iter().filter(|other| **other != drill.node) {
        kubectl_ok(&["cordon", other]);
    }
    scale("0");
    scale("1");
    eventually("the leader is on the node", DEADLINE, || {
        let on = leader();
        if on == drill.node { Ok(()) } else { Err(on) }
    });
    for other in lab::nodes() {
        kubectl_ok(&["uncordon", &other]);
    }
    scale("2");
    kubectl_ok(&["-n", "vivarium-system", "rollout", "status", "deployment/vivarium-operator", "--timeout=120s"]);
    assert_eq!(leader(), drill.node);
    let cut = now();
    lab::lab_ok(&["node", "power-off", &drill.node]);
    drill.moved(cut);
}

/// Nothing at all is lost when a node is emptied in order.
#[test]
fn a_node_is_drained() {
    let drill = Drill::new("drain", count());
    let at = now();
    kubectl_ok(&["drain", &drill.node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=180s"]);
    for outage in drill.moved(at) {
        assert_eq!(outage.lost, 0, "{outage:?}");
    }
}

/// Two nodes of three: the last one takes everything over.
#[test]
fn two_nodes_at_once() {
    let drill = Drill::new("two", 2);
    let nodes = lab::nodes();
    let other = nodes.iter().find(|node| **node != drill.node).unwrap();
    let at = now();
    // Their networks: the store keeps its data on the nodes themselves, and two of three copies of it would be gone.
    let _cuts = [Cut::new(&drill.node, &[API, STORE]), Cut::new(other, &[API, STORE])];
    drill.moved(at);
}
