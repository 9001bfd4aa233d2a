//! Statuses as kstatus reads them, and the events that changes of them are worth.

use serde_json::json;
use vivarium_api::v1alpha1::{ConditionStatus, VirtualEnvironmentStatus, condition};

use super::fixtures::*;
use crate::environment::status::notes;
use crate::environment::world::World;

/// The algorithm of kstatus (cli-utils, `pkg/kstatus/status`).
fn kstatus(world: &World) -> &'static str {
    let status = decided(world).status;
    if world.environment.metadata.deletion_timestamp.is_some() {
        return "Terminating";
    }
    if Some(status.observed_generation) != world.environment.metadata.generation {
        return "InProgress";
    }
    let is = |type_: &str| condition::is_true(&status.conditions, type_);
    assert!(!(is("Reconciling") && is("Stalled")), "both at once");
    match () {
        () if is("Reconciling") => "InProgress",
        () if is("Stalled") => "Failed",
        () if is("Ready") => "Current",
        () => "InProgress",
    }
}

#[test]
fn tools_that_wait_see_what_there_is_to_wait_for() {
    let mut without_template = empty(&json!({}));
    without_template.template = None;
    for (world, wanted) in [
        (empty(&json!({})), "InProgress"),
        (prepared(&json!({})), "InProgress"),
        (with_pod(&json!({}), 1, &json!({"phase": "Pending"})), "InProgress"),
        (with_pod(&json!({}), 1, &running()), "Current"),
        (with_pod(&json!({}), 1, &failed("2026-01-01T11:59:59.9Z")), "InProgress"),
        (with_pod(&json!({}), 1, &powered_off()), "Failed"),
        (prepared(&json!({"runMode": "Stopped"})), "Current"),
        (with_pod(&json!({"runMode": "Stopped"}), 1, &running()), "InProgress"),
        (without_template, "Failed"),
    ] {
        assert_eq!(kstatus(&world), wanted);
    }
}

#[test]
fn all_conditions_are_there_from_the_first_visit_on() {
    let mut world = empty(&json!({}));
    change(&mut world, |e| e.metadata.finalizers = None);
    for world in [world, empty(&json!({})), with_pod(&json!({}), 1, &running())] {
        let status = decided(&world).status;
        for type_ in ["Ready", "Scheduled", "StorageReady", "Booted", "UpToDate"] {
            let found = condition::find(&status.conditions, type_).unwrap();
            assert!(!found.reason.is_empty());
            assert_eq!(found.observed_generation, Some(1));
        }
    }
}

fn reasons(old: &VirtualEnvironmentStatus, new: &VirtualEnvironmentStatus) -> Vec<String> {
    notes(Some(old), new).into_iter().map(|note| note.reason).collect()
}

#[test]
fn an_event_is_written_once_for_each_change_worth_one() {
    let starting = decided(&prepared(&json!({}))).status;
    let up = decided(&with_pod(&json!({}), 1, &running())).status;
    let off = decided(&with_pod(&json!({}), 1, &powered_off())).status;
    let down = decided(&with_pod(&json!({}), 1, &failed("2026-01-01T11:59:59.9Z"))).status;
    let stopped = decided(&prepared(&json!({"runMode": "Stopped"}))).status;
    let mut without_template = empty(&json!({}));
    without_template.template = None;
    let refused = decided(&without_template).status;
    for (old, new, wanted) in [
        (&starting, &up, vec!["Started"]),
        (&up, &up, vec![]),
        (&up, &off, vec!["PoweredOff"]),
        (&up, &down, vec!["Failed"]),
        (&down, &down, vec![]),
        (&up, &stopped, vec!["Stopped"]),
        (&starting, &refused, vec!["TemplateNotFound"]),
    ] {
        assert_eq!(reasons(old, new), wanted);
    }
    let mut changed = with_pod(&json!({}), 1, &running());
    change(&mut changed, |e| e.spec.os = serde_json::from_value(json!({"hostname": "x"})).unwrap());
    assert_eq!(reasons(&up, &decided(&changed).status), ["RestartRequired"]);
    assert!(notes(None, &refused).iter().all(|note| note.warning));
}

#[test]
fn a_condition_keeps_its_time_until_its_status_changes() {
    let mut world = with_pod(&json!({}), 1, &running());
    let mut old = decided(&world).status;
    for c in &mut old.conditions {
        c.last_transition_time = "2026-01-01T00:00:00Z".parse().unwrap();
    }
    change(&mut world, |e| e.status = Some(old));
    world.pods = vec![std::sync::Arc::new(pod(&world, 1, Some("n1"), &powered_off()))];
    let decision = decided(&world);
    let ready = ready(&decision);
    assert_eq!((ready.status, ready.last_transition_time), (ConditionStatus::False, now()));
    assert_eq!(shown(&decision, "Scheduled").last_transition_time, "2026-01-01T00:00:00Z".parse().unwrap());
}
