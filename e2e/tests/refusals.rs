//! Bad input: a clear message, nothing lost, and a corrected manifest heals.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use serde_json::{Value, json};
use vivarium_e2e::environment::condition_of;
use vivarium_e2e::{DEADLINE, Namespace, apply, eventually, get, kubectl, lab};

/// A manifest that the API server refuses, with a part of the reason that it must give.
fn refused(test: &str, name: &str, pointer: &str, value: Value, reason: &str) {
    let namespace = Namespace::new(test);
    let ran = namespace.environment(name).with(pointer, value).try_apply();
    assert!(!ran.ok, "it was accepted");
    assert!(ran.stderr.contains(reason), "the message does not say `{reason}`: {}", ran.stderr);
}

#[test]
fn a_name_that_is_too_long_is_refused() {
    refused("name", &"x".repeat(51), "/runMode", json!("Running"), "at most 50 characters");
}

#[test]
fn a_name_with_dots_is_refused() {
    refused("dots", "a.b", "/runMode", json!("Running"), "one DNS label");
}

#[test]
fn a_sysctl_of_the_whole_node_is_refused() {
    let sysctl = json!([{"name": "vm.overcommit_memory", "value": "1"}]);
    refused("sysctl", "shop", "/os/sysctls", sysctl, "environment's own namespaces");
}

#[test]
fn an_unknown_limit_is_refused() {
    let limit = json!([{"name": "files", "soft": "1", "hard": "1"}]);
    refused("limit", "shop", "/os/limits", limit, "unknown limit");
}

#[test]
fn a_disk_cannot_shrink_and_the_template_cannot_change() {
    let namespace = Namespace::new("shrink");
    let mut ve = namespace.environment("shop").with("/runMode", json!("Stopped"));
    ve.apply();
    ve.set("/resources/disk", json!("512Mi"));
    let ran = ve.try_apply();
    assert!(!ran.ok && ran.stderr.contains("a disk cannot shrink"), "{}", ran.stderr);
    ve.set("/resources/disk", json!("1Gi"));
    ve.set("/template/name", json!("other"));
    let ran = ve.try_apply();
    assert!(!ran.ok && ran.stderr.contains("cannot be changed"), "{}", ran.stderr);
}

#[test]
fn an_unknown_template_is_named_and_making_it_heals() {
    let namespace = Namespace::new("template");
    let ve = namespace.environment("shop").with("/template/name", json!("e2e-later"));
    let template = |image: &str| json!({"apiVersion": "vivarium.dev/v1alpha1", "kind": "EnvironmentTemplate", "metadata": {"name": "e2e-later"}, "spec": {"image": image}});
    let _ = kubectl(&["delete", "et", "e2e-later", "--ignore-not-found"]);
    ve.apply();
    let message = ve.wait_reason("Ready", "TemplateNotFound");
    assert!(message.contains("e2e-later"), "{message}");
    // An image that does not exist: the template says so, and so does the environment.
    assert!(apply(&[template(&format!("{}/vivarium/no-such-image:1", lab::REGISTRY))]).ok);
    let message = template_reason("e2e-later", "ImageNotFound");
    assert!(message.contains("no-such-image"), "{message}");
    eventually("the template's message on the environment", DEADLINE, || {
        let (_, reason, message) = ve.condition("Ready");
        let told = reason == "TemplateNotReady" && message.contains("no-such-image");
        if told { Ok(()) } else { Err(format!("{reason}: {message}")) }
    });
    let (stalled, _, _) = ve.condition("Stalled");
    assert_eq!(stalled, "True");
    // Corrected, everything heals.
    let image = get(&["et", vivarium_e2e::TEMPLATE]).unwrap()["spec"]["image"].as_str().unwrap().to_owned();
    assert!(apply(&[template(&image)]).ok);
    ve.wait_ready();
    assert_eq!(ve.condition("Stalled").0, "", "Stalled is still there");
    ve.delete();
    let _ = kubectl(&["delete", "et", "e2e-later"]);
}

fn template_reason(name: &str, reason: &str) -> String {
    eventually(&format!("template {name} with reason {reason}"), DEADLINE, || {
        let template = get(&["et", name]).ok_or("no such template")?;
        let (status, found, message) = condition_of(&template, "Ready");
        if found == reason { Ok(message) } else { Err(format!("{status} {found}: {message}")) }
    })
}

#[test]
fn an_image_without_an_init_is_no_operating_system_and_another_image_heals() {
    let _ = kubectl(&["delete", "et", "e2e-not-an-os", "--ignore-not-found"]);
    let namespace = Namespace::new("notanos");
    // The image of environments' pods holds nothing at all.
    let stub = namespace.environment("any").up().pod_object()["spec"]["containers"][0]["image"].clone();
    let template = |image: &Value| json!({"apiVersion": "vivarium.dev/v1alpha1", "kind": "EnvironmentTemplate", "metadata": {"name": "e2e-not-an-os"}, "spec": {"image": image}});
    assert!(apply(&[template(&stub)]).ok);
    let message = template_reason("e2e-not-an-os", "NotAnOperatingSystem");
    assert!(message.contains("/sbin/init"), "{message}");
    let ve = namespace.environment("shop").with("/template/name", json!("e2e-not-an-os"));
    ve.apply();
    let message = ve.wait_reason("Ready", "TemplateNotReady");
    assert!(message.contains("/sbin/init"), "the environment does not say what is wrong: {message}");
    assert_eq!(ve.condition("Stalled").0, "True");
    let image = get(&["et", vivarium_e2e::TEMPLATE]).unwrap()["spec"]["image"].clone();
    assert!(apply(&[template(&image)]).ok);
    ve.wait_ready();
    ve.delete();
    let _ = kubectl(&["delete", "et", "e2e-not-an-os"]);
}

#[test]
fn a_missing_secret_is_named_and_making_it_heals() {
    let namespace = Namespace::new("secret");
    let ve = namespace.environment("shop").with("/root/authorizedKeysFrom", json!([{"secretRef": {"name": "later"}}]));
    ve.apply();
    let message = ve.wait_reason("Ready", "SecretNotFound");
    assert!(message.contains("later"), "{message}");
    namespace.secret("later", "wrong-key", "x");
    let message = ve.wait_reason("Ready", "SecretKeyNotFound");
    assert!(message.contains("authorized_keys"), "{message}");
    namespace.secret("later", "authorized_keys", "# none");
    ve.wait_ready();
}

#[test]
fn a_time_zone_that_the_tree_does_not_have_is_named_and_correcting_it_heals() {
    let namespace = Namespace::new("zone");
    let mut ve = namespace.environment("shop").with("/os", json!({"timezone": "Europe/Atlantis"}));
    ve.apply();
    eventually("a message that names the zone", DEADLINE, || {
        let (status, reason, message) = ve.condition("Ready");
        if message.contains("Europe/Atlantis") { Ok(()) } else { Err(format!("{status} {reason}: {message}")) }
    });
    ve.set("/os/timezone", json!("Europe/Prague"));
    ve.apply();
    ve.wait_ready();
}

#[test]
fn a_node_without_a_pool_is_no_place_and_the_message_says_so() {
    let namespace = Namespace::new("nopool");
    let mut ve =
        namespace.environment("shop").with("/placement/nodeSelector", json!({"vivarium.dev/no-such-node": "true"}));
    ve.apply();
    let message = ve.wait_reason("Scheduled", "Unschedulable");
    assert!(message.contains("node"), "{message}");
    ve.set("/placement", json!({}));
    ve.apply();
    ve.wait_ready();
}

#[test]
fn a_retained_volume_does_not_fit_into_a_smaller_disk() {
    let namespace = Namespace::new("toosmall");
    let ve = namespace
        .environment("shop")
        .with("/volume/deletionPolicy", json!("Retain"))
        .with("/resources/disk", json!("256Mi"))
        .up();
    ve.sh("dd if=/dev/urandom of=/srv/big bs=1M count=100 conv=fsync 2>/dev/null");
    eventually("usage in status", DEADLINE, || {
        let volume = namespace.get("evol", "shop").ok_or("no volume")?;
        volume["status"]["usedBytes"]
            .as_i64()
            .filter(|b| *b > 90 << 20)
            .map(|_| ())
            .ok_or_else(|| volume["status"].to_string())
    });
    ve.delete();
    let heir = namespace.environment("heir").with("/volume/name", json!("shop")).with("/resources/disk", json!("32Mi"));
    heir.apply();
    let message = heir.wait_reason("Ready", "DiskTooSmall");
    assert!(message.contains("32Mi"), "{message}");
    let heir = heir.with("/resources/disk", json!("256Mi"));
    heir.apply();
    heir.wait_ready();
    assert_eq!(heir.sh("stat -c %s /srv/big"), "104857600");
}

#[test]
fn a_pod_that_keeps_the_nodes_users_is_refused_with_the_reason() {
    let namespace = Namespace::new("hostusers");
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "plain", "namespace": namespace.name},
        "spec": {"runtimeClassName": "vivarium", "restartPolicy": "Never", "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": "docker.io/library/busybox:lab", "imagePullPolicy": "IfNotPresent", "command": ["sleep", "1000"]}]}});
    assert!(apply(&[pod]).ok);
    eventually("an event with the reason", DEADLINE, || {
        let events = kubectl(&["-n", &namespace.name, "get", "events", "-o", "jsonpath={.items[*].message}"]).stdout;
        if events.contains("hostUsers: false") { Ok(()) } else { Err(events) }
    });
}
