//! Drills: outages of the API server and of the store as a whole. See [`vivarium_e2e::drill`].
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and a drill tells what it measured"
)]

use vivarium_e2e::drill::{Drill, count};
use vivarium_e2e::lab;

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

fn outage(drill: &Drill, process: &'static str, seconds: u64) {
    let hung = Hung::new(process);
    drill.undisturbed(&format!("{process} hangs"), seconds);
    drop(hung);
    drill.undisturbed(&format!("{process} is back"), 15);
}

#[test]
fn short_outages() {
    let drill = Drill::new(count(3));
    outage(&drill, "apiserver", 15);
    outage(&drill, "ceph-gateway", 15);
}

#[test]
#[ignore = "long: hack/drill run two_minutes_without_the_store"]
fn two_minutes_without_the_store() {
    outage(&Drill::new(count(3)), "ceph-gateway", 120);
}

#[test]
#[ignore = "long: hack/drill run ten_minutes_without_the_api_server"]
fn ten_minutes_without_the_api_server() {
    outage(&Drill::new(count(3)), "apiserver", 600);
}
