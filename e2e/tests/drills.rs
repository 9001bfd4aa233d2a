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
                let name = format!("ve{number}");
                let ve = namespace.environment(&name);
                ve.apply();
                (name, ve)
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

#[test]
fn power_cut() {
    let drill = Drill::new("power-cut", 3);
    let cut = now();
    lab::lab_ok(&["node", "power-off", &drill.node]);
    drill.moved(cut);
}
