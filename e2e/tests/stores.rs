//! Journal stores: the one that is installed is tried by every node; one that cannot be used says why and what to do; the
//! nodes read the credentials that they are meant to and no others, and speak for themselves alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use serde_json::{Value, json};
use vivarium_e2e::environment::condition_of;
use vivarium_e2e::{DEADLINE, Environment, Namespace, apply, eventually, get, kubectl, kubectl_ok, lab, run_with};

const SYSTEM: &str = "vivarium-system";
const DRIVER: &str = "--as=system:serviceaccount:vivarium-system:vivarium-node";

/// A store that goes with the test.
struct Store(&'static str);

impl Store {
    fn apply(name: &'static str, spec: &Value) -> Self {
        let store = Self(name);
        store.change(spec);
        store
    }

    fn change(&self, spec: &Value) {
        let ran = apply(&[json!({"apiVersion": "vivarium.dev/v1alpha1", "kind": "JournalStore",
            "metadata": {"name": self.0}, "spec": spec})]);
        assert!(ran.ok, "{}", ran.stderr);
    }

    /// Waits for a reason of its condition Ready; gives the message.
    fn reason(&self, expected: &str) -> String {
        eventually(&format!("reason {expected} of store {}", self.0), DEADLINE, || {
            let object = get(&["journalstore", self.0]).unwrap_or_default();
            let (_, reason, message) = condition_of(&object, "Ready");
            if reason == expected { Ok(message) } else { Err(format!("it is {reason}: {message}")) }
        })
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = kubectl(&["delete", "journalstore", self.0, "--ignore-not-found"]);
    }
}

/// The installed store's bucket, changed.
fn bucket(changes: &Value) -> Value {
    let installed = get(&["journalstore", "default"]).expect("the chart makes a store");
    let mut spec = installed["spec"].clone();
    assert!(spec["s3"].is_object(), "the lab has an object store: {spec}");
    for (key, value) in changes.as_object().unwrap() {
        spec["s3"][key] = value.clone();
    }
    spec
}

#[test]
fn every_node_tries_the_installed_store() {
    let names = lab::nodes();
    let store = eventually("a proof by every node", DEADLINE, || {
        let store = get(&["journalstore", "default"]).unwrap_or_default();
        let nodes = store["status"]["nodes"].as_array().cloned().unwrap_or_default();
        let proven = |name: &String| nodes.iter().any(|node| node["name"] == *name && node["proven"] == true);
        if names.iter().all(proven) { Ok(store) } else { Err(format!("{nodes:?}")) }
    });
    let (status, reason, _) = condition_of(&store, "Ready");
    assert_eq!((status.as_str(), reason.as_str()), ("True", "Proven"));
    assert_eq!(store["status"]["type"], "S3");
}

#[test]
fn a_secret_that_the_nodes_may_not_read_is_named_with_what_to_do() {
    let store = Store::apply("e2e-other-secret", &bucket(&json!({"credentialsSecret": {"name": "e2e-not-allowed"}})));
    let message = store.reason("CredentialsMissing");
    assert!(message.contains("e2e-not-allowed") && message.contains("store.secrets"), "{message}");
}

#[test]
fn a_bucket_that_is_not_there_is_named() {
    let store = Store::apply("e2e-no-bucket", &bucket(&json!({"bucket": "e2e-there-is-none"})));
    let message = store.reason("Invalid");
    assert!(message.contains("NoSuchBucket") && message.contains("Create the bucket"), "{message}");
    // It was never Ready, so it can be corrected, and heals without anything else.
    store.change(&bucket(&json!({"prefix": "e2e-healed"})));
    store.reason("Proven");
}

#[test]
fn nobody_there_is_told_and_does_not_stall() {
    let store = Store::apply("e2e-nobody", &bucket(&json!({"endpoint": "http://10.250.0.1:9"})));
    let message = store.reason("Unreachable");
    assert!(message.contains("cannot be reached"), "{message}");
    assert_eq!(condition_of(&get(&["journalstore", "e2e-nobody"]).unwrap(), "Stalled").0, "", "it may pass by itself");
}

/// A store with a mirror; `None`: what is left when its first bucket is given up.
fn pair(first: Option<&str>) -> Value {
    let second = bucket(&json!({"prefix": "e2e-pair-second"}));
    let Some(first) = first else { return second };
    let mut spec = bucket(&json!({"prefix": first}));
    spec["mirrors"] = json!([second["s3"]]);
    spec
}

/// A selector of one node.
fn only(node: &str) -> Value {
    json!({"kubernetes.io/hostname": node})
}

fn start_anew_on(ve: &mut Environment, node: &str) {
    ve.set("/placement/nodeSelector", only(node));
    ve.apply();
    let _ = ve.wait_reason("UpToDate", "RestartRequired");
    ve.delete_pod();
    ve.wait_ready();
    assert_eq!(ve.node(), node);
}

#[test]
fn a_running_environment_is_taken_to_two_stores_at_once_and_the_first_of_them_is_given_up() {
    let store = Store::apply("e2e-pair", &pair(Some("e2e-pair-first")));
    store.reason("Proven");
    let nodes = lab::nodes();
    let namespace = Namespace::new("two-stores");
    let mut ve = namespace.environment("shop").with("/placement/nodeSelector", only(&nodes[0])).up();
    let boot = ve.boot();
    ve.set("/durability", json!({"store": "e2e-pair"}));
    ve.apply();
    let status = || namespace.get("evol", "shop").map(|mut volume| volume["status"].take()).ok_or("there is no volume");
    eventually("the log in both decides", DEADLINE, || {
        let status = status()?;
        if status["log"]["store"] == "e2e-pair" { Ok(()) } else { Err(status.to_string()) }
    });
    ve.sh("echo both > /srv/both; sync");
    assert_eq!(ve.boot(), boot, "it was started anew");

    // The mirror cannot be given up, nor the two be exchanged for something else.
    for wrong in [bucket(&json!({"prefix": "e2e-pair-first"})), bucket(&json!({"prefix": "e2e-other"}))] {
        let ran = apply(&[json!({"apiVersion": "vivarium.dev/v1alpha1", "kind": "JournalStore",
            "metadata": {"name": "e2e-pair"}, "spec": wrong})]);
        assert!(!ran.ok && ran.stderr.contains("Only the first bucket can be given up"), "{}", ran.stderr);
    }
    let ran = apply(&[json!({"apiVersion": "vivarium.dev/v1alpha1", "kind": "JournalStore",
        "metadata": {"name": "e2e-pair"}, "spec": pair(None)})]);
    assert!(ran.ok, "{}", ran.stderr);
    eventually("every node has tried what is left", DEADLINE, || {
        let store = get(&["journalstore", "e2e-pair"]).unwrap_or_default();
        let (generation, tried) = (&store["metadata"]["generation"], store["status"]["nodes"].as_array());
        let current = tried.is_some_and(|tried| {
            tried.len() == nodes.len() && tried.iter().all(|node| node["observedGeneration"] == *generation)
        });
        if current { Ok(()) } else { Err(store["status"].to_string()) }
    });
    let head = || status().map(|status| status["journal"]["sequence"].as_u64().unwrap_or_default());
    let before = head().unwrap();
    ve.sh("echo one > /srv/one; sync");
    eventually("commits go on", DEADLINE, || {
        let now = head()?;
        if now > before { Ok(()) } else { Err(format!("the journal is at {now}")) }
    });
    assert_eq!(ve.boot(), boot, "it was started anew");

    // Another node has nothing but the store that is left.
    start_anew_on(&mut ve, &nodes[1]);
    assert_eq!(ve.sh("cat /srv/both /srv/one && systemctl is-system-running --wait"), "both\none\nrunning");
    ve.delete();
}

#[test]
fn a_running_environment_is_taken_to_another_store_and_brought_back_from_it() {
    let second = Store::apply("e2e-second", &bucket(&json!({"prefix": "e2e-second"})));
    second.reason("Proven");
    let nodes = lab::nodes();
    let namespace = Namespace::new("changes-store");
    let mut ve = namespace.environment("shop").with("/placement/nodeSelector", only(&nodes[0])).up();
    let decides = |store: &str| {
        eventually(&format!("the log in {store} decides"), DEADLINE, || {
            let status = namespace.get("evol", "shop").ok_or("there is no volume")?["status"].take();
            if status["log"]["store"] == store { Ok(status) } else { Err(status.to_string()) }
        })
    };
    let first = decides("default")["log"].take();
    // What was committed is known by the clock of the node, a moment later.
    ve.sh("echo one > /srv/one; sync; sleep 4");
    let then = ve.sh("date -u +%Y-%m-%dT%H:%M:%SZ");
    ve.sh("sleep 2; echo changed > /srv/one; sync");
    let boot = ve.boot();
    ve.set("/durability", json!({"store": "e2e-second"}));
    ve.apply();
    let status = decides("e2e-second");
    assert_eq!(
        (&status["left"][0]["name"], &status["left"][0]["store"]),
        (&first["name"], &first["store"]),
        "{status}"
    );
    let message = ve.wait_reason("Durable", "Reached");
    assert!(message.contains("`e2e-second`"), "{message}");
    assert_eq!(ve.boot(), boot, "it was started anew");
    ve.sh("echo two > /srv/two");

    // Another node has nothing but the other store.
    start_anew_on(&mut ve, &nodes[1]);
    assert_eq!(ve.sh("cat /srv/one /srv/two && systemctl is-system-running --wait"), "changed\ntwo\nrunning");

    // What was before is in the store that was left, and can be read and brought back from there.
    let read = kubectl_ok(&["ve", "-n", &namespace.name, "cat", "shop:/srv/one", "--at", &then]);
    assert_eq!(read, "one\n");
    let history = kubectl_ok(&["ve", "-n", &namespace.name, "history", "shop"]);
    let begins = |line: &&str| line.split_whitespace().next().is_some_and(|word| word.parse::<u64>().is_ok());
    assert!(history.lines().filter(begins).count() > 3, "{history}");
    let ran = apply(&[json!({"apiVersion": "vivarium.dev/v1alpha1", "kind": "EnvironmentRestore",
        "metadata": {"name": "back", "namespace": namespace.name}, "spec": {"environment": "shop", "at": then}})]);
    assert!(ran.ok, "{}", ran.stderr);
    eventually("the former state is brought back", DEADLINE, || {
        let restore = namespace.get("environmentrestore", "back").ok_or("it is gone")?;
        let (status, _, message) = condition_of(&restore, "Complete");
        if status == "True" { Ok(()) } else { Err(format!("{message} {}", restore["status"])) }
    });
    ve.wait_ready();
    assert_eq!(ve.sh("cat /srv/one; ls /srv"), "one\none");
    ve.delete();
}

#[test]
fn a_node_reads_the_credentials_of_stores_and_no_other_secret() {
    let may = |name: &str| kubectl(&["auth", "can-i", "get", &format!("secret/{name}"), "-n", SYSTEM, DRIVER]).ok;
    let installed = get(&["journalstore", "default"]).expect("the chart makes a store");
    let secret = installed["spec"]["s3"]["credentialsSecret"]["name"].as_str().expect("a Secret");
    assert!(may(secret));
    assert!(!may("anything-else"));
    assert!(!kubectl(&["auth", "can-i", "list", "secrets", "-n", SYSTEM, DRIVER]).ok);
}

#[test]
fn a_node_speaks_of_a_store_for_itself_alone() {
    let nodes = lab::nodes();
    let (own, other) = (&nodes[0], nodes.get(1).expect("the lab has more than one node"));
    // Not `kubectl patch`, which reads the status first: a driver may not even do that.
    let replace = |name: &str, proven: bool| {
        let mut store = get(&["journalstore", "default"]).unwrap();
        let entries = store["status"]["nodes"].as_array_mut().unwrap();
        entries.retain(|entry| entry["name"] != name);
        entries.push(json!({"name": name, "observedGeneration": 1, "proven": proven, "reason": "NotAtomic"}));
        let extra = format!("--as-user-extra=authentication.kubernetes.io/node-name={own}");
        let arguments = ["replace", "--subresource=status", "--dry-run=server", "-f", "-", DRIVER, &extra];
        run_with("kubectl", &arguments, store.to_string())
    };
    let ran = replace(own, false);
    assert!(ran.ok, "{}", ran.stderr);
    for (name, proven) in [(other.as_str(), false), ("no-such-node", true)] {
        let ran = replace(name, proven);
        assert!(!ran.ok && ran.stderr.contains("may not report"), "{name}: {}{}", ran.stdout, ran.stderr);
    }
}
