//! What the status says of durability and of the journal.

use std::sync::Arc;

use serde_json::{Value, json};
use vivarium_api::v1alpha1::store::Tolerance;
use vivarium_api::v1alpha1::{ConditionStatus, JournalStore, condition};

use super::fixtures::*;
use crate::environment::decision::{Action, VolumeChange};
use crate::environment::world::World;

fn store(failures: u32, ready: &str) -> JournalStore {
    serde_json::from_value(json!({"apiVersion": "vivarium.dev/v1alpha1", "kind": "JournalStore",
        "metadata": {"name": "archive"},
        "spec": {"s3": {"endpoint": "http://s", "bucket": "bbb", "credentialsSecret": {"name": "s"}},
            "tolerates": {"failures": failures, "domain": "Node"}},
        "status": {"conditions": [condition_json("Ready", ready, "Unreachable", "it does not answer")]}}))
    .unwrap()
}

/// An environment that runs with a journal in store `archive`, and with `more` in the status of its volume.
fn journaled(spec: &Value, more: &Value) -> World {
    let mut world = with_pod(spec, 1, &running());
    world.stores = vec![Arc::new(store(1, "True"))];
    let volume = Arc::make_mut(world.volume.as_mut().unwrap());
    volume.spec.store = Some("archive".into());
    let mut status = serde_json::to_value(&volume.status).unwrap();
    status["journal"] = json!({"sequence": 7, "epoch": 1, "time": "2026-01-01T11:50:00Z"});
    for (key, value) in more.as_object().unwrap() {
        status[key] = value.clone();
    }
    volume.status = serde_json::from_value(status).unwrap();
    world
}

#[test]
fn what_is_reached_is_what_the_store_survives_while_it_works() {
    let trouble = condition_json("Journaled", "False", "Behind", "a transaction is under way");
    let asks = |failures: u32| json!({"durability": {"tolerate": {"failures": failures, "domain": "Node"}}});
    let named = json!({"durability": {"store": "archive"}});
    let one = Tolerance { failures: 1, ..Tolerance::default() };
    for (spec, more, ready, desired, reached, word) in [
        (json!({}), json!({}), "True", None, Some(1), "Reached"),
        (named, json!({}), "True", Some(1), Some(1), "Reached"),
        (asks(1), json!({}), "True", Some(1), Some(1), "Reached"),
        (asks(1), json!({}), "False", Some(1), None, "it does not answer"),
        (asks(2), json!({}), "True", Some(2), Some(1), "less than spec.durability wants"),
        (asks(1), json!({"conditions": [trouble]}), "True", Some(1), None, "a transaction is under way"),
    ] {
        let mut world = journaled(&spec, &more);
        world.stores = vec![Arc::new(store(1, ready))];
        let decision = decided(&world);
        let durability = decision.status.durability.clone().unwrap();
        let of = |failures: Option<u32>| failures.map(|failures| Tolerance { failures, ..one.clone() });
        assert_eq!((durability.desired, durability.reached), (of(desired), of(reached)), "{spec} {more} {ready}");
        let found = shown(&decision, "Durable");
        assert_eq!(found.status == ConditionStatus::True, word == "Reached", "{}", found.message);
        assert!(found.reason == word || found.reason == "Degraded" && found.message.contains(word), "{found:?}");
    }
    let mut world = journaled(&json!({}), &json!({"lag": {"seconds": 40, "bytes": 9}}));
    let durability = decided(&world).status.durability.unwrap();
    assert_eq!((durability.lag_seconds, durability.lag_bytes), (40, 9));
    world.stores.clear();
    let found = shown(&decided(&world), "Durable");
    assert!(found.reason == "Degraded" && found.message.contains("no JournalStore `archive`"), "{found:?}");
}

#[test]
fn without_a_journal_nothing_is_claimed() {
    let mut world = with_pod(&json!({}), 1, &running());
    let before = decided(&journaled(&json!({}), &json!({}))).status;
    change(&mut world, |e| e.status = Some(before));
    let status = decided(&world).status;
    assert_eq!((status.durability, status.journal), (None, None));
    assert_eq!(condition::find(&status.conditions, "Durable"), None);
}

#[test]
fn the_journal_is_followed_every_five_minutes_and_at_every_checkpoint() {
    let mut world = journaled(&json!({}), &json!({}));
    let first = decided(&world).status;
    assert_eq!(first.journal.as_ref().unwrap().head, 7);
    change(&mut world, |e| e.status = Some(first));
    let head = |at: &str, checkpoint: u64| {
        let kept = json!({"checkpoint": checkpoint, "since": 0, "bytes": 99, "time": at});
        let more = json!({"journal": {"sequence": 9, "epoch": 1, "time": at}, "kept": kept});
        let mut later = journaled(&json!({}), &more);
        later.environment = world.environment.clone();
        let journal = decided(&later).status.journal.unwrap();
        (journal.head, journal.bytes)
    };
    assert_eq!(head("2026-01-01T11:54:59Z", 0), (7, 0));
    assert_eq!(head("2026-01-01T11:55:00Z", 0), (9, 99));
    assert_eq!(head("2026-01-01T11:50:30Z", 8), (9, 99));
}

#[test]
fn a_restore_on_trial_is_told_and_counted_once() {
    use crate::environment::status::notes;
    use crate::metrics::Metrics;
    let proven = json!({"sequence": 5, "time": "2026-01-01T11:00:00Z"});
    let good = condition_json("Proven", "True", "SameTree", "fine");
    let bad = condition_json("Proven", "False", "DigestDiffers", "something else came");
    let fine = decided(&journaled(&json!({}), &json!({"proven": proven.clone(), "conditions": [good]})));
    let worse = decided(&journaled(&json!({}), &json!({"proven": proven, "conditions": [bad]})));
    assert_eq!(fine.status.durability.as_ref().unwrap().proven.as_ref().unwrap().sequence, 5);
    assert_eq!(shown(&fine, "Proven").status, ConditionStatus::True);
    assert_eq!(shown(&worse, "Proven").reason, "DigestDiffers");
    let told = |old, new| notes(old, new).into_iter().filter(|n| n.warning).map(|n| n.reason).collect::<Vec<_>>();
    assert_eq!(told(Some(&fine.status), &worse.status), ["DigestDiffers"]);
    assert!(told(Some(&worse.status), &worse.status).is_empty());
    let metrics = Metrics::default();
    metrics.proved(None, &fine.status);
    metrics.proved(Some(&fine.status), &fine.status);
    metrics.proved(Some(&fine.status), &worse.status);
    metrics.proved(Some(&worse.status), &worse.status);
    let text = metrics.text().unwrap();
    for outcome in ["proven", "failed"] {
        let line = format!("vivarium_operator_proofs_total{{outcome=\"{outcome}\"}} 1");
        assert!(text.contains(&line), "{line} is not in\n{text}");
    }
}

#[test]
fn the_journal_follows_what_must_be_survived_once_it_was_begun() {
    let second: JournalStore = {
        let mut second = store(2, "True");
        second.metadata.name = Some("second".into());
        second
    };
    let begun = json!({"log": {"store": "archive", "name": "u"}});
    let told = condition_json("StoreCurrent", "False", "StoreNotReady", "it was not opened on this node yet");
    let with_reason = json!({"log": begun["log"], "conditions": [told]});
    let named = |name: &str| json!({"durability": {"store": name}});
    let asks = |failures: u32| json!({"durability": {"tolerate": {"failures": failures, "domain": "Node"}}});
    for (spec, more, to, reason, message) in [
        (named("second"), &begun, Some("second"), "ChangingStore", "are to be by `second`"),
        (named("second"), &with_reason, Some("second"), "StoreNotReady", "not opened on this node yet"),
        (named("second"), &json!({}), None, "ChangingStore", "are to be by `second`"),
        (named("nowhere"), &begun, None, "StoreNotFound", "no JournalStore `nowhere`"),
        (named("archive"), &begun, None, "Reached", "kept by JournalStore `archive`"),
        (asks(2), &begun, Some("second"), "ChangingStore", "are to be by `second`"),
        (asks(1), &begun, None, "Reached", "kept by JournalStore `archive`"),
        (json!({}), &begun, None, "Reached", "kept by JournalStore `archive`"),
    ] {
        let mut world = journaled(&spec, more);
        world.stores.push(Arc::new(second.clone()));
        let decision = decided(&world);
        let stored = decision.actions.iter().find_map(|action| match action {
            Action::ReplaceVolume(volume, VolumeChange::Stored) => volume.spec.store.as_deref(),
            _ => None,
        });
        assert_eq!(stored, to, "{spec} {more}");
        let found = shown(&decision, "Durable");
        assert_eq!(found.reason, reason, "{spec} {more}");
        assert!(found.message.contains(message), "{}", found.message);
    }
    // The journal is there: what the other store does is of no account any more.
    let mut world = journaled(&named("second"), &json!({"log": {"store": "second", "name": "u-1"}}));
    Arc::make_mut(world.volume.as_mut().unwrap()).spec.store = Some("second".into());
    world.stores = vec![Arc::new(second)];
    let decision = decided(&world);
    assert_eq!(shown(&decision, "Durable").reason, "Reached");
    assert_eq!(decision.status.durability.unwrap().reached.unwrap().failures, 2);
}
