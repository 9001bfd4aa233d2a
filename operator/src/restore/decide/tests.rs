use serde_json::{Value, json};

use super::*;

fn now() -> Timestamp {
    "2026-01-01T12:00:00Z".parse().unwrap()
}

fn restore(at: &str) -> EnvironmentRestore {
    serde_json::from_value(json!({"apiVersion": "vivarium.dev/v1alpha1", "kind": "EnvironmentRestore",
        "metadata": {"name": "back", "namespace": "team-a", "uid": "r1", "generation": 1},
        "spec": {"environment": "shop", "at": at}, "status": {"observedGeneration": -1}}))
    .unwrap()
}

fn environment(mode: &str) -> VirtualEnvironment {
    serde_json::from_value(json!({"apiVersion": "vivarium.dev/v1alpha1", "kind": "VirtualEnvironment",
        "metadata": {"name": "shop"}, "spec": {"template": {"name": "t"}, "runMode": mode}}))
    .unwrap()
}

fn volume(order: &Value, progress: &Value) -> EnvironmentVolume {
    let mut object = json!({"apiVersion": "vivarium.dev/v1alpha1", "kind": "EnvironmentVolume",
        "metadata": {"name": "shop"},
        "spec": {"template": {"name": "t", "image": "i", "layers": ["l"]}, "size": "1Gi", "environment": "shop",
            "store": "default"},
        "status": {"observedGeneration": 1, "epoch": 4, "journal": {"sequence": 9, "epoch": 4, "time": now()}}});
    if order.is_object() {
        object["spec"]["restore"] = order.clone();
    }
    if progress.is_object() {
        object["status"]["restore"] = progress.clone();
    }
    serde_json::from_value(object).unwrap()
}

fn decided(restore: &EnvironmentRestore, mode: &str, volume: &EnvironmentVolume) -> Decision {
    decide(World { restore, environment: Some(&environment(mode)), volume: Some(volume) }, now())
}

/// Types of conditions that are True, and the reason.
fn shown(decision: &Decision) -> (Vec<&str>, &str) {
    let conditions = &decision.status.conditions;
    let yes = conditions.iter().filter(|c| c.status == ConditionStatus::True).map(|c| c.type_.as_str());
    (yes.collect(), &condition::find(conditions, "Complete").unwrap().reason)
}

fn mine() -> Value {
    json!({"name": "back", "uid": "r1", "at": "7"})
}

fn other() -> Value {
    json!({"name": "first", "uid": "r0", "at": "3"})
}

#[test]
fn a_volume_gets_one_order_at_a_time() {
    let done = json!({"uid": "r0", "epoch": 2, "sequence": 3, "done": {"epoch": 3, "before": 5, "sequence": 6}});
    let refused = json!({"uid": "r0", "epoch": 2, "refused": {"reason": "TooOld", "message": "m"}});
    let looked_up = json!({"uid": "r0", "epoch": 2, "sequence": 3});
    let of_another = json!({"uid": "r-1", "epoch": 2, "refused": {"reason": "TooOld", "message": "m"}});
    for (order, progress, reason, ordered) in [
        (json!(null), json!(null), "LookingUp", true),
        (other(), done, "LookingUp", true),
        (other(), refused, "LookingUp", true),
        (other(), json!(null), "OtherRestore", false),
        (other(), looked_up, "OtherRestore", false),
        (other(), of_another, "OtherRestore", false),
        (mine(), json!(null), "LookingUp", false),
    ] {
        let decision = decided(&restore("7"), "Running", &volume(&order, &progress));
        assert_eq!(shown(&decision), (vec!["Reconciling"], reason), "{order} {progress}");
        let wanted =
            ordered.then(|| RestoreOrder { name: "back".into(), uid: "r1".into(), at: "7".into(), paths: vec![] });
        assert_eq!(decision.order.and_then(|volume| volume.spec.restore), wanted, "{order} {progress}");
    }
}

#[test]
fn what_becomes_of_an_order_is_told() {
    let looked_up = json!({"uid": "r1", "epoch": 4, "sequence": 7, "time": "2026-01-01T11:00:00Z"});
    let mut done = looked_up.clone();
    done["done"] = json!({"epoch": 5, "before": 9, "sequence": 10});
    let refused = json!({"uid": "r1", "epoch": 4, "refused": {"reason": "TooOld", "message": "it is too old"}});
    for (mode, progress, conditions, reason, words) in [
        ("Running", &looked_up, vec!["Reconciling"], "Restoring", "transaction 7, of 2026-01-01T11:00:00Z"),
        ("Stopped", &looked_up, vec!["Reconciling"], "WaitsForStart", "set spec.runMode to Running"),
        ("Running", &done, vec!["Complete"], "Restored", "to undo that, restore transaction 9"),
        ("Running", &refused, vec!["Failed", "Stalled"], "TooOld", "it is too old"),
    ] {
        let decision = decided(&restore("7"), mode, &volume(&mine(), progress));
        assert_eq!(shown(&decision), (conditions, reason));
        let message = &condition::find(&decision.status.conditions, "Complete").unwrap().message;
        assert!(message.contains(words), "{message}");
        assert_eq!(decision.order, None);
        let mut over = restore("7");
        over.status = Some(decision.status.clone());
        assert_eq!(is_over(&over), reason == "Restored" || reason == "TooOld");
        if reason == "Restored" {
            assert_eq!((decision.status.sequence, decision.status.before), (Some(7), Some(9)));
        }
    }
}

#[test]
fn paths_are_ordered_and_named() {
    let with = |paths: &[&str]| {
        let mut restore = restore("7");
        restore.spec.paths = paths.iter().map(|path| (*path).to_owned()).collect();
        restore
    };
    let decision = decided(&with(&["/etc", "/srv"]), "Running", &volume(&json!(null), &json!(null)));
    assert_eq!(decision.order.and_then(|volume| volume.spec.restore).unwrap().paths, ["/etc", "/srv"]);
    let done = json!({"uid": "r1", "epoch": 4, "sequence": 7, "done": {"epoch": 5, "before": 9, "sequence": 10}});
    for (paths, words) in [
        (
            &["/etc"][..],
            "began with `/etc` of the state after transaction 7; to undo that, restore it from transaction 9",
        ),
        (&["/etc", "/srv"], "`/etc` and 1 more of the state after transaction 7; to undo that, restore them from"),
    ] {
        let decision = decided(&with(paths), "Running", &volume(&mine(), &done));
        let message = &condition::find(&decision.status.conditions, "Complete").unwrap().message;
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn what_cannot_be_restored_is_refused_with_what_is_wrong() {
    let fine = volume(&json!(null), &json!(null));
    let mut alone = fine.clone();
    alone.spec.store = None;
    let mut fresh = fine.clone();
    fresh.status.as_mut().unwrap().journal = None;
    let mut anothers = fine.clone();
    anothers.spec.environment = Some("heir".into());
    let shop = environment("Running");
    for (at, environment, volume, reason, words) in [
        ("7", None, None, "EnvironmentNotFound", "`shop`"),
        ("7", Some(&shop), None, "NotJournaled", "has no journal"),
        ("7", Some(&shop), Some(&alone), "NotJournaled", "has no journal"),
        ("7", Some(&shop), Some(&fresh), "NotJournaled", "never ran"),
        ("7", Some(&shop), Some(&anothers), "NotJournaled", "has no journal"),
        ("2026-01-01T12:00:01Z", Some(&shop), Some(&fine), "NoSuchState", "has not come yet"),
    ] {
        let restore = restore(at);
        let decision = decide(World { restore: &restore, environment, volume }, now());
        assert_eq!(shown(&decision), (vec!["Failed", "Stalled"], reason), "{at}");
        let message = &condition::find(&decision.status.conditions, "Failed").unwrap().message;
        assert!(message.contains(words), "{message}");
        assert_eq!(decision.order, None);
    }
}

#[test]
fn an_unchanged_world_gives_an_unchanged_status() {
    let (volume, mut restore) = (volume(&mine(), &json!(null)), restore("7"));
    restore.status = Some(decided(&restore, "Running", &volume).status);
    let environment = environment("Running");
    let world = World { restore: &restore, environment: Some(&environment), volume: Some(&volume) };
    let later = now() + jiff::SignedDuration::from_secs(9);
    assert_eq!(Some(decide(world, later).status), restore.status);
}
