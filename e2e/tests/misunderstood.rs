//! An environment that the operator cannot read, as another version of it might leave behind: the others go on, and
//! an event says what cannot be read.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use serde_json::json;
use vivarium_e2e::{DEADLINE, Namespace, eventually, get, kubectl};

#[test]
fn an_environment_that_cannot_be_read_is_left_alone_and_named() {
    let namespace = Namespace::new("misunderstood");
    let mut odd = namespace.environment("odd").up();
    let boot = odd.boot();
    // The schema knows a time by its look only; no clock is 99 hours ahead.
    let condition = json!({"type": "Odd", "status": "True", "reason": "Odd", "message": "odd",
        "lastTransitionTime": "2026-01-01T00:00:00+99:00"});
    let patch = |patch: serde_json::Value| {
        let patch = patch.to_string();
        kubectl(&["-n", &namespace.name, "patch", "ve", "odd", "--subresource=status", "--type=json", "-p", &patch])
    };
    let place = odd.object()["status"]["conditions"].as_array().unwrap().len();
    let done = patch(json!([{"op": "add", "path": "/status/conditions/-", "value": condition}]));
    assert!(done.ok, "the API server takes no such status any more, so this test needs another: {}", done.stderr);
    odd.set("/services", json!([{"name": "ssh", "port": 22}]));
    odd.apply();
    // Others start, and this one goes on as it was.
    let _other = namespace.environment("other").up();
    assert_eq!(odd.boot(), boot);
    let said = eventually("an event about the environment", DEADLINE, || {
        let events = get(&["-n", &namespace.name, "events.v1.events.k8s.io"]).unwrap_or_default();
        let about = events["items"].as_array().into_iter().flatten();
        let mut about = about.filter(|e| e["regarding"]["name"] == "odd" && e["reason"] == "NotUnderstood");
        about.next().cloned().ok_or_else(|| events.to_string())
    });
    assert_eq!(said["type"], "Warning");
    let note = said["note"].as_str().unwrap();
    let field = format!("status.conditions[{place}].lastTransitionTime");
    assert!(note.contains(&field), "the event does not name the field {field}: {note}");
    // Once it can be read again, it is carried out.
    let done = patch(json!([{"op": "remove", "path": format!("/status/conditions/{place}")}]));
    assert!(done.ok, "{}", done.stderr);
    odd.wait_ready();
    assert!(!odd.service_ip().is_empty());
    assert_eq!(odd.boot(), boot);
}
