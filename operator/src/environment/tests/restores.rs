//! An incarnation gives way to the next one, which begins with a former state.

use std::sync::Arc;

use serde_json::{Value, json};
use vivarium_api::v1alpha1::environment::Phase;

use super::fixtures::*;
use crate::environment::world::World;

const NOTHING: [&str; 0] = [];

/// Incarnation 4 with that status, and a restore that is so far.
fn ordered(spec: &Value, pod: &Value, progress: &Value) -> World {
    let mut world = with_pod(spec, 4, pod);
    let volume = Arc::make_mut(world.volume.as_mut().unwrap());
    volume.spec.restore = Some(serde_json::from_value(json!({"name": "back", "uid": "r1", "at": "7"})).unwrap());
    volume.status.as_mut().unwrap().restore = serde_json::from_value(progress.clone()).unwrap();
    world
}

#[test]
fn what_runs_ends_once_the_state_is_known_and_until_the_next_one_has_it() {
    let found = |epoch: u64| json!({"uid": "r1", "epoch": epoch, "sequence": 7});
    let refused = json!({"uid": "r1", "epoch": 4, "refused": {"reason": "TooOld", "message": ""}});
    let done = json!({"uid": "r1", "epoch": 4, "sequence": 7, "done": {"epoch": 4, "before": 9, "sequence": 10}});
    let other = json!({"uid": "r0", "epoch": 4, "sequence": 7});
    for (progress, gives_way) in [
        (json!(null), false),
        (found(4), true),
        (found(5), true),
        // This one began with it, and says so soon.
        (found(3), false),
        (refused, false),
        (done, false),
        (other, false),
    ] {
        let decision = decided(&ordered(&json!({}), &running(), &progress));
        let wanted = if gives_way { vec!["delete pod shop-4"] } else { vec![] };
        assert_eq!(short(&decision), wanted, "{progress}");
        assert_eq!(ready(&decision).reason == "Restoring", gives_way, "{progress}");
        assert_eq!(decision.status.phase == Some(Phase::Stopping), gives_way, "{progress}");
    }
}

#[test]
fn one_that_cannot_run_gives_way_at_once_and_one_that_is_off_stays_off() {
    let found = json!({"uid": "r1", "epoch": 4, "sequence": 7});
    let just_failed = failed("2026-01-01T11:59:59.9Z");
    assert_eq!(short(&decided(&ordered(&json!({}), &just_failed, &found))), ["delete pod shop-4"]);
    assert_eq!(short(&decided(&ordered(&json!({}), &powered_off(), &found))), NOTHING);
    // Nobody is shut down while the next one could not start.
    let mut world = ordered(&json!({}), &running(), &found);
    Arc::make_mut(world.claim.as_mut().unwrap()).metadata.owner_references = None;
    assert_eq!(short(&decided(&world)), NOTHING);
}
