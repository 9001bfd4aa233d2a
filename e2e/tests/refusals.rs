//! Bad input: a message that says what is wrong and what to do, nothing lost, and a corrected manifest heals.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use serde_json::{Value, json};
use vivarium_e2e::environment::condition_of;
use vivarium_e2e::{DEADLINE, Environment, Namespace, apply, eventually, get, kubectl, lab, run_with};

#[track_caller]
fn says(message: &str, words: &[&str]) {
    for word in words {
        assert!(message.contains(word), "the message does not say `{word}`: {message}");
    }
}

/// A manifest that the API server refuses with those words, and one that it then takes.
#[track_caller]
fn refused(wrong: &Environment, words: &[&str], corrected: &Environment) {
    let ran = wrong.try_apply();
    assert!(!ran.ok, "it was accepted");
    says(&ran.stderr, words);
    corrected.apply();
}

/// An environment of that name that only exists.
fn stopped(namespace: &Namespace, name: &str) -> Environment {
    namespace.environment(name).with("/runMode", json!("Stopped"))
}

#[test]
fn a_name_that_is_too_long_is_refused_and_one_that_just_fits_is_not() {
    let namespace = Namespace::new("name");
    let longest = "x".repeat(50);
    let (wrong, corrected) = (stopped(&namespace, &format!("{longest}x")), stopped(&namespace, &longest));
    refused(&wrong, &["use at most 50 characters"], &corrected);
}

#[test]
fn a_name_with_dots_is_refused() {
    let namespace = Namespace::new("dots");
    let (wrong, corrected) = (stopped(&namespace, "a.b"), stopped(&namespace, "a-b"));
    refused(&wrong, &["one DNS label", "without dots"], &corrected);
}

#[test]
fn a_sysctl_of_the_whole_node_is_refused_and_one_of_the_environment_heals() {
    let namespace = Namespace::new("sysctl");
    let with = |name: &str| namespace.environment("shop").with("/os/sysctls", json!([{"name": name, "value": "1"}]));
    let (wrong, corrected) = (with("vm.overcommit_memory"), with("net.ipv4.ip_forward"));
    refused(&wrong, &["environment's own namespaces", "net.*", "ask its administrator"], &corrected);
    corrected.wait_ready();
    assert_eq!(corrected.sh("cat /proc/sys/net/ipv4/ip_forward"), "1");
}

#[test]
fn an_unknown_limit_is_refused() {
    let namespace = Namespace::new("limit");
    let with = |name: &str| {
        let limit = json!([{"name": name, "soft": "1024", "hard": "2048"}]);
        stopped(&namespace, "shop").with("/os/limits", limit)
    };
    refused(&with("files"), &["unknown limit", "use the lower-case names of setrlimit(2)"], &with("nofile"));
}

#[test]
fn a_disk_cannot_shrink_and_the_template_cannot_change() {
    let namespace = Namespace::new("shrink");
    let ve = stopped(&namespace, "shop");
    ve.apply();
    let smaller = ve.clone().with("/resources/disk", json!("512Mi"));
    let larger = ve.with("/resources/disk", json!("2Gi"));
    refused(&smaller, &["a disk cannot shrink", "set it back to the former size or a larger one"], &larger);
    let other = larger.clone().with("/template/name", json!("other"));
    refused(&other, &["cannot be changed", "create a new environment from the other template"], &larger);
}

fn template(name: &str, image: &str) -> Value {
    json!({"apiVersion": "vivarium.dev/v1alpha1", "kind": "EnvironmentTemplate", "metadata": {"name": name},
        "spec": {"image": image}})
}

/// Image of the template that everybody uses.
fn good_image() -> String {
    get(&["et", vivarium_e2e::TEMPLATE]).unwrap()["spec"]["image"].as_str().unwrap().to_owned()
}

fn template_reason(name: &str, reason: &str) -> String {
    eventually(&format!("template {name} with reason {reason}"), DEADLINE, || {
        let template = get(&["et", name]).ok_or("no such template")?;
        let (status, found, message) = condition_of(&template, "Ready");
        if found == reason { Ok(message) } else { Err(format!("{status} {found}: {message}")) }
    })
}

#[test]
fn an_unknown_template_is_named_and_making_it_heals() {
    let namespace = Namespace::new("template");
    let ve = namespace.environment("shop").with("/template/name", json!("e2e-later"));
    let _ = kubectl(&["delete", "et", "e2e-later", "--ignore-not-found"]);
    ve.apply();
    says(&ve.wait_reason("Ready", "TemplateNotFound"), &["`e2e-later`", "create it", "kubectl get et"]);
    // An image that does not exist: the template says so, and so does the environment.
    assert!(apply(&[template("e2e-later", &format!("{}/vivarium/no-such-image:1", lab::REGISTRY))]).ok);
    says(&template_reason("e2e-later", "ImageNotFound"), &["no-such-image", "Check its name and tag"]);
    eventually("the template's message on the environment", DEADLINE, || {
        let (_, reason, message) = ve.condition("Ready");
        let told = reason == "TemplateNotReady" && message.contains("no-such-image");
        if told { Ok(()) } else { Err(format!("{reason}: {message}")) }
    });
    let (stalled, _, _) = ve.condition("Stalled");
    assert_eq!(stalled, "True");
    // Corrected, everything heals.
    assert!(apply(&[template("e2e-later", &good_image())]).ok);
    ve.wait_ready();
    assert_eq!(ve.condition("Stalled").0, "", "Stalled is still there");
    ve.delete();
    let _ = kubectl(&["delete", "et", "e2e-later"]);
}

/// Makes a template of an image that cannot be used; it says why.
fn unusable(name: &str, image: &str, reason: &str, words: &[&str]) {
    let _ = kubectl(&["delete", "et", name, "--ignore-not-found"]);
    assert!(apply(&[template(name, image)]).ok);
    says(&template_reason(name, reason), words);
}

/// An environment that names such a template says the same, and another image heals both.
fn told_and_healed(namespace: &Namespace, name: &str, reason: &str, words: &[&str]) {
    let ve = namespace.environment("shop").with("/template/name", json!(name));
    ve.apply();
    let message = ve.wait_reason("Ready", "TemplateNotReady");
    says(&message, words);
    says(&message, &[reason]);
    assert_eq!(ve.condition("Stalled").0, "True");
    assert!(apply(&[template(name, &good_image())]).ok);
    ve.wait_ready();
    ve.delete();
    let _ = kubectl(&["delete", "et", name]);
}

#[test]
fn an_image_without_an_init_is_no_operating_system_and_another_image_heals() {
    let namespace = Namespace::new("notanos");
    // The image of environments' pods holds nothing at all.
    let stub = namespace.environment("any").up().pod_object()["spec"]["containers"][0]["image"].clone();
    let (name, reason) = ("e2e-not-an-os", "NotAnOperatingSystem");
    let words = ["/sbin/init", "Build it with an init such as systemd"];
    unusable(name, stub.as_str().unwrap(), reason, &words);
    told_and_healed(&namespace, name, reason, &words);
}

/// Pushes an image of one layer, whose `layer.tar` a shell line makes: its reference, and the digits of the layer's
/// digest, by which all that there is of the layer is called in the pools.
fn pushed(name: &str, line: &str) -> (String, String) {
    let directory = tempfile::tempdir().unwrap();
    let line = format!("set -e; cd \"$1\"; {line}");
    let ran = run_with("sh", &["-c", &line, "sh", directory.path().to_str().unwrap()], "");
    assert!(ran.ok, "{}", ran.stderr);
    let (image, digest) = lab::push_image(directory.path(), name);
    (image, digest.strip_prefix("sha256:").expect("a digest").to_owned())
}

#[test]
fn a_layer_that_leads_out_of_itself_is_refused_and_leaves_nothing() {
    let namespace = Namespace::new("hostile");
    // With -P tar(1) takes names as they are.
    let make = "mkdir inside; echo evil > evil; tar -P -C inside -cf layer.tar ../evil";
    let (image, digits) = pushed("e2e/hostile:1", make);
    let (name, reason) = ("e2e-hostile", "HostileLayer");
    let words = [digits.as_str(), "'../evil'", "leads out of the layer"];
    unusable(name, &image, reason, &words);
    // Every node has met it, and none has anything of it.
    let nodes = lab::nodes();
    eventually("the refusal of every node", DEADLINE, || {
        let template = get(&["et", name]).ok_or("no such template")?;
        let told = template["status"]["nodes"].as_array().into_iter().flatten();
        let refused = told.filter(|node| node["state"] == "Failed").count();
        if refused == nodes.len() { Ok(()) } else { Err(template["status"].to_string()) }
    });
    for node in &nodes {
        // The driver tries again now and then.
        eventually(&format!("nothing of the layer in the pool of {node}"), DEADLINE, || {
            let line = format!("ls -A /var/lib/vivarium/pool/templates | grep -e {digits} -e evil || true");
            let left = lab::node_sh(node, &line);
            if left.is_empty() { Ok(()) } else { Err(left) }
        });
    }
    told_and_healed(&namespace, name, reason, &words);
}

#[test]
fn a_missing_secret_is_named_and_making_it_heals() {
    let namespace = Namespace::new("secret");
    let ve = namespace.environment("shop").with("/root/authorizedKeysFrom", json!([{"secretRef": {"name": "later"}}]));
    ve.apply();
    let message = ve.wait_reason("Ready", "SecretNotFound");
    says(&message, &["`later`", "create it with key `authorized_keys`"]);
    namespace.secret("later", "wrong-key", "x");
    let message = ve.wait_reason("Ready", "SecretKeyNotFound");
    says(&message, &["no key `authorized_keys`", "only `wrong-key`", "add it, or name another key"]);
    namespace.secret("later", "authorized_keys", "# none");
    ve.wait_ready();
}

#[test]
fn a_time_zone_that_the_tree_does_not_have_is_named_and_correcting_it_heals() {
    let namespace = Namespace::new("zone");
    let mut ve = namespace.environment("shop").with("/os", json!({"timezone": "Europe/Atlantis"}));
    ve.apply();
    let message = eventually("a message that names the zone", DEADLINE, || {
        let (status, reason, message) = ve.condition("Ready");
        if message.contains("Europe/Atlantis") { Ok(message) } else { Err(format!("{status} {reason}: {message}")) }
    });
    says(&message, &["spec.os.timezone", "correct it, or install tzdata"]);
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
    says(&message, &["does not have the label vivarium.dev/no-such-node=true of spec.placement.nodeSelector"]);
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
    says(&message, &["32Mi", "ask for a larger disk"]);
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
        if events.contains("set hostUsers: false in the pod spec") { Ok(()) } else { Err(events) }
    });
}
