//! A copy that follows the journal on another node, and a move to it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use serde_json::{Value, json};
use vivarium_e2e::drill::driver_log;
use vivarium_e2e::{DEADLINE, Namespace, condition_of, eventually, kubectl, kubectl_ok};

fn volume(namespace: &Namespace) -> Value {
    namespace.get("evol", "shop").expect("the volume")
}

/// Node of the copy, once it holds what the journal does.
fn copy(namespace: &Namespace, but: &str) -> String {
    eventually("the copy follows", DEADLINE, || {
        let volume = volume(namespace);
        let (status, reason, message) = condition_of(&volume, "Standby");
        let node = volume["status"]["standby"]["node"].as_str().unwrap_or_default().to_owned();
        if status == "True" && node != but { Ok(node) } else { Err(format!("{node}: {reason}: {message}")) }
    })
}

#[test]
fn an_environment_moves_to_its_copy_which_becomes_the_volume() {
    let namespace = Namespace::new("standby");
    let ve = namespace.environment("shop").with("/durability", json!({"standby": 1})).up();
    let id = volume(&namespace)["metadata"]["uid"].as_str().unwrap().to_owned();
    let from = ve.node();
    ve.sh("head -c 3000000 /dev/urandom > /srv/noise && sync");
    let target = copy(&namespace, &from);
    assert_ne!(target, from);

    let unknown = kubectl(&["-n", &namespace.name, "annotate", "ve", "shop", "vivarium.dev/move-to=nowhere"]);
    assert!(unknown.ok, "{}", unknown.stderr);
    let message = ve.wait_reason("UpToDate", "CannotMove");
    assert!(message.contains("`nowhere`") && message.contains("correct the annotation, or take it off"), "{message}");

    ve.sh("echo last > /srv/last");
    let before = ve.sh("cd /srv && sha256sum noise last");
    let to = format!("vivarium.dev/move-to={target}");
    kubectl_ok(&["-n", &namespace.name, "annotate", "--overwrite", "ve", "shop", &to]);
    eventually("it is moved", DEADLINE, || {
        let object = ve.object();
        let done = object["status"]["node"] == target.as_str() && object["status"]["lastMove"]["ready"].is_string();
        if done { Ok(()) } else { Err(object["status"].to_string()) }
    });
    assert_eq!(ve.sh("cd /srv && sha256sum noise last"), before);
    let object = ve.object();
    let last = &object["status"]["lastMove"];
    assert_eq!((last["fromNode"].as_str(), last["toNode"].as_str()), (Some(from.as_str()), Some(target.as_str())));
    for instant in ["stopping", "stopped", "started"] {
        assert!(last[instant].is_string(), "{last}");
    }
    println!("{last}");
    eventually("the annotation is taken off", DEADLINE, || {
        let annotations = ve.object()["metadata"]["annotations"].clone();
        if annotations.get("vivarium.dev/move-to").is_none() { Ok(()) } else { Err(annotations.to_string()) }
    });
    let log = driver_log(&target, 600);
    let opened = log.lines().find(|line| line.contains("opened the journal") && line.contains(&id));
    assert!(opened.is_some_and(|line| line.contains("TakenOver")), "it did not come from the copy: {opened:?}");
    // There is a copy again, elsewhere.
    assert_ne!(copy(&namespace, &target), target);
    ve.delete();
}
