//! The rules of the custom resources, evaluated without a server. What is accepted and what is refused, with what message.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use serde_json::{Value, json};
use vivarium_api::v1alpha1::{
    EnvironmentRestore, EnvironmentTemplate, EnvironmentVolume, JournalStore, VirtualEnvironment,
};

fn environment(name: &str, spec: &Value) -> VirtualEnvironment {
    let mut object = json!({"apiVersion": "vivarium.dev/v1alpha1", "kind": "VirtualEnvironment",
        "metadata": {"name": name}, "spec": {"template": {"name": "debian-13"}}});
    for (key, value) in spec.as_object().unwrap() {
        object["spec"][key] = value.clone();
    }
    serde_json::from_value(object).unwrap()
}

#[track_caller]
fn accepted(name: &str, spec: &Value) {
    if let Err(errors) = environment(name, spec).validate_cel() {
        panic!("{spec} was refused: {errors}");
    }
}

#[track_caller]
fn refused(name: &str, spec: &Value, message: &str) {
    let errors = environment(name, spec).validate_cel().expect_err("it was accepted").to_string();
    assert!(errors.contains(message), "{spec}: {errors}");
}

#[track_caller]
fn update_refused(old: &Value, new: &Value, message: &str) {
    let errors = environment("shop", new).validate_cel_update(&environment("shop", old)).expect_err("it was accepted");
    assert!(errors.to_string().contains(message), "{old} -> {new}: {errors}");
}

#[test]
fn plain_environments_are_accepted() {
    accepted("shop", &json!({}));
    accepted(&"x".repeat(50), &json!({}));
    accepted(
        "shop",
        &json!({"resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"cpu": "2"}, "disk": "16Mi"}}),
    );
    accepted(
        "shop",
        &json!({"os": {"hostname": "till", "timezone": "Europe/Prague", "locale": "en_US.UTF-8",
            "sysctls": [{"name": "net.ipv4.ip_forward", "value": "1"}, {"name": "kernel.shmmax", "value": "1"}],
            "limits": [{"name": "nofile", "soft": "1024", "hard": "unlimited"}]}}),
    );
}

#[test]
fn names_that_cannot_be_used_are_refused() {
    refused(&"x".repeat(51), &json!({}), "at most 50 characters");
    for name in ["a.b", "1a", "-a", "a-", "A"] {
        refused(name, &json!({}), "one DNS label");
    }
}

#[test]
fn settings_that_reach_beyond_the_environment_are_refused() {
    for name in ["vm.overcommit_memory", "kernel.core_pattern", "kernel.hostname", "fs.file-max", "net", "net..x"] {
        refused("shop", &json!({"os": {"sysctls": [{"name": name, "value": "1"}]}}), "environment's own namespaces");
    }
    refused("shop", &json!({"os": {"limits": [{"name": "files", "soft": "1", "hard": "1"}]}}), "unknown limit");
    refused("shop", &json!({"os": {"limits": [{"name": "nofile", "soft": "-1", "hard": "1"}]}}), "a limit is a number");
    for hostname in ["a.b", "-a", "A", ""] {
        refused("shop", &json!({"os": {"hostname": hostname}}), "a host name is one DNS label");
    }
    for timezone in ["../etc/passwd", "/etc", "Europe/", ""] {
        refused("shop", &json!({"os": {"timezone": timezone}}), "a time zone is an IANA name");
    }
    refused("shop", &json!({"os": {"locale": "../x"}}), "a locale is a name");
    for class in ["Shops", "a b", "-a", ""] {
        refused("shop", &json!({"priorityClassName": class}), "the name of a PriorityClass");
    }
}

#[test]
fn resources_that_cannot_be_had_are_refused() {
    refused("shop", &json!({"resources": {"disk": "1Mi"}}), "at least 16Mi");
    refused("shop", &json!({"resources": {"requests": {"disk": "1Gi"}}}), "requests may name cpu and memory");
    refused("shop", &json!({"resources": {"limits": {"pods": "1"}}}), "limits may name cpu and memory");
}

#[test]
fn what_is_fixed_cannot_be_changed() {
    update_refused(&json!({"template": {"name": "a"}}), &json!({"template": {"name": "b"}}), "cannot be changed");
    update_refused(
        &json!({"volume": {"name": "a"}}),
        &json!({"volume": {"name": "b"}}),
        "volume of an environment cannot",
    );
    update_refused(&json!({"volume": {"name": "a"}}), &json!({}), "volume of an environment cannot");
    update_refused(&json!({}), &json!({"volume": {"name": "b"}}), "volume of an environment cannot");
}

#[test]
fn what_must_be_survived_can_be_changed_at_any_time() {
    let durability = |durability: Value| environment("shop", &json!({"durability": durability}));
    let node = json!({"failures": 1, "domain": "Node"});
    for (old, new) in [
        (json!({"store": "a"}), json!({"store": "b"})),
        (json!({"store": "a"}), json!({"tolerate": node})),
        (json!({"tolerate": node, "standby": 1}), json!({"tolerate": {"failures": 2}})),
        (json!({"store": "a"}), json!({"standby": 1})),
    ] {
        durability(new).validate_cel_update(&durability(old)).unwrap();
    }
    refused(
        "shop",
        &json!({"durability": {"store": "a", "tolerate": node}}),
        "either the store or what it must tolerate",
    );
}

#[test]
fn a_journal_is_taken_to_another_store_once_it_was_begun_and_never_given_up() {
    let volume = |store: Option<&str>, log: Option<&str>| -> EnvironmentVolume {
        let log = log.map(|store| json!({"store": store, "name": "u"}));
        serde_json::from_value(json!({"apiVersion": "vivarium.dev/v1alpha1", "kind": "EnvironmentVolume",
            "metadata": {"name": "v"}, "status": {"log": log},
            "spec": {"template": {"name": "t", "image": "i", "layers": ["l"]}, "size": "1Gi", "store": store}}))
        .unwrap()
    };
    for (old, new, log) in [
        (None, Some("a"), None),
        (Some("a"), Some("a"), None),
        (Some("a"), Some("b"), Some("a")),
        (Some("b"), Some("a"), Some("a")),
    ] {
        volume(new, log).validate_cel_update(&volume(old, log)).unwrap();
    }
    for (old, new, log, message) in
        [(Some("a"), Some("b"), None, "only once it was begun"), (Some("a"), None, Some("a"), "not be given up")]
    {
        let errors = volume(new, log).validate_cel_update(&volume(old, log)).expect_err("accepted").to_string();
        assert!(errors.contains(message), "{errors}");
    }
}

#[test]
fn a_source_names_a_state_and_is_fixed() {
    let from = |at: &str| json!({"source": {"environment": "first", "at": at}});
    accepted("shop", &from("2026-11-25T18:00:00Z"));
    refused("shop", &from("yesterday"), "in quotes");
    refused("shop", &json!({"source": from("1")["source"], "volume": {"name": "v"}}), "either a source or the name");
    update_refused(&from("1"), &from("2"), "source of an environment cannot");
    update_refused(&from("1"), &json!({}), "source of an environment cannot");
    update_refused(&json!({}), &from("1"), "source of an environment cannot");
}

#[test]
fn a_disk_grows_and_never_shrinks_also_from_its_default() {
    update_refused(&json!({"resources": {"disk": "1Gi"}}), &json!({"resources": {"disk": "1023Mi"}}), "cannot shrink");
    update_refused(&json!({}), &json!({"resources": {"disk": "5Gi"}}), "cannot shrink");
    update_refused(&json!({"resources": {"disk": "20Gi"}}), &json!({}), "cannot shrink");
    for (old, new) in [("1Gi", "1024Mi"), ("1Gi", "2Gi")] {
        let of = |disk: &str| environment("shop", &json!({"resources": {"disk": disk}}));
        of(new).validate_cel_update(&of(old)).unwrap();
    }
}

#[test]
fn a_template_is_fixed_once_it_is_ready() {
    let template = |image: &str, ready: Option<&str>| -> EnvironmentTemplate {
        let conditions: Vec<_> = ready
            .map(|status| json!({"type": "Ready", "status": status, "reason": "Test", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}))
            .into_iter()
            .collect();
        serde_json::from_value(
            json!({"apiVersion": "vivarium.dev/v1alpha1", "kind": "EnvironmentTemplate", "metadata": {"name": "t"},
            "spec": {"image": image}, "status": {"observedGeneration": 1, "conditions": conditions}}),
        )
        .unwrap()
    };
    for ready in [None, Some("False")] {
        template("b", ready).validate_cel_update(&template("a", ready)).unwrap();
    }
    template("a", Some("True")).validate_cel_update(&template("a", Some("True"))).unwrap();
    let errors = template("b", Some("True")).validate_cel_update(&template("a", Some("True"))).expect_err("accepted");
    assert!(errors.to_string().contains("create a new template"), "{errors}");
}

fn store(spec: &Value, ready: bool) -> JournalStore {
    let conditions = if ready {
        json!([{"type": "Ready", "status": "True", "reason": "Proven", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}])
    } else {
        json!([])
    };
    let object = json!({"apiVersion": "vivarium.dev/v1alpha1", "kind": "JournalStore", "metadata": {"name": "default"},
        "spec": spec, "status": {"observedGeneration": 1, "conditions": conditions}});
    serde_json::from_value(object).unwrap()
}

/// A bucket, with changes.
fn s3(changes: &Value) -> Value {
    let mut s3 =
        json!({"endpoint": "https://s3.example.org", "bucket": "journals", "credentialsSecret": {"name": "x"}});
    for (key, value) in changes.as_object().unwrap() {
        s3[key] = value.clone();
    }
    json!({"s3": s3})
}

#[test]
fn a_store_is_a_bucket_or_a_directory() {
    let local = json!({"local": {"path": "/var/lib/vivarium/store"}});
    for good in [s3(&json!({})), s3(&json!({"prefix": "a/b-1"})), local.clone()] {
        if let Err(errors) = store(&good, false).validate_cel() {
            panic!("{good} was refused: {errors}");
        }
    }
    let mut both = s3(&json!({}));
    both["local"] = local["local"].clone();
    for (bad, message) in [
        (json!({}), "exactly one"),
        (both, "exactly one"),
        (s3(&json!({"endpoint": "s3.example.org"})), "the endpoint is a URL"),
        (s3(&json!({"endpoint": "https://a:b@s3.example.org"})), "without credentials"),
        (s3(&json!({"bucket": "No_bucket"})), "the name of a bucket"),
        (s3(&json!({"prefix": "../x"})), "a prefix is segments"),
        (s3(&json!({"prefix": "/x"})), "a prefix is segments"),
        (json!({"local": {"path": "/srv/store"}}), "below /var/lib/vivarium"),
        (json!({"local": {"path": "/var/lib/vivarium/../x"}}), "below /var/lib/vivarium"),
        (json!({"local": {"path": "/var/lib/vivarium/pool"}}), "outside of /var/lib/vivarium/pool"),
        (json!({"local": {"path": "/var/lib/vivarium/pool/x"}}), "outside of /var/lib/vivarium/pool"),
    ] {
        let errors = store(&bad, false).validate_cel().expect_err("it was accepted").to_string();
        assert!(errors.contains(message), "{bad}: {errors}");
    }
}

#[test]
fn a_store_that_holds_journals_stays_where_it_is() {
    let old = s3(&json!({"prefix": "a"}));
    let local = json!({"local": {"path": "/var/lib/vivarium/store"}});
    for new in
        [s3(&json!({"prefix": "b"})), s3(&json!({})), s3(&json!({"prefix": "a", "bucket": "other"})), local.clone()]
    {
        store(&new, false).validate_cel_update(&store(&old, false)).unwrap();
        let errors = store(&new, true).validate_cel_update(&store(&old, true)).expect_err("accepted").to_string();
        assert!(errors.contains("create a new store"), "{new}: {errors}");
    }
    let moved = json!({"local": {"path": "/var/lib/vivarium/other"}});
    assert!(store(&moved, true).validate_cel_update(&store(&local, true)).is_err());
    for new in [
        json!({"prefix": "a", "endpoint": "https://other"}),
        json!({"prefix": "a", "credentialsSecret": {"name": "y"}}),
    ] {
        store(&s3(&new), true).validate_cel_update(&store(&old, true)).unwrap();
    }
    store(&local, true).validate_cel_update(&store(&local, true)).unwrap();
}

#[test]
fn a_restore_names_a_state_and_is_fixed() {
    let restore = |at: &str| -> EnvironmentRestore {
        serde_json::from_value(json!({"apiVersion": "vivarium.dev/v1alpha1", "kind": "EnvironmentRestore",
            "metadata": {"name": "r"}, "spec": {"environment": "shop", "at": at}}))
        .unwrap()
    };
    for good in ["1", "1234", "2026-11-25T18:00:00Z", "2026-11-25T18:00:00.25+01:00"] {
        restore(good).validate_cel().unwrap();
    }
    for bad in ["0", "-1", "yesterday", "2026-11-25", "2026-11-25T18:00Z", "2026-11-25T18:00:00", "12 "] {
        let errors = restore(bad).validate_cel().expect_err(bad).to_string();
        assert!(errors.contains("in quotes"), "{errors}");
    }
    let paths = |paths: Value| -> EnvironmentRestore {
        let mut restore = serde_json::to_value(restore("1")).unwrap();
        restore["spec"]["paths"] = paths;
        serde_json::from_value(restore).unwrap()
    };
    for good in [json!([]), json!(["/etc/ssh", "/etc/ssh2", "/a b/.x/..y/z."]), json!(["/x", "/y/x"])] {
        paths(good).validate_cel().unwrap();
    }
    for bad in ["", "/", "etc", "/etc/", "//etc", "/etc/../root", "/.", "/..", "/a/./b", "/a\u{0}", "/a\nb"] {
        let errors = paths(json!(["/fine", bad])).validate_cel().expect_err(bad).to_string();
        assert!(errors.contains("absolute and plain"), "{bad:?}: {errors}");
    }
    let errors = paths(json!(["/etc/ssh", "/etc"])).validate_cel().expect_err("accepted").to_string();
    assert!(errors.contains("the outer one alone"), "{errors}");
    let errors = paths(json!(["/a"])).validate_cel_update(&restore("1")).expect_err("accepted").to_string();
    assert!(errors.contains("create another one"), "{errors}");
    restore("1").validate_cel_update(&restore("1")).unwrap();
    let errors = restore("2").validate_cel_update(&restore("1")).expect_err("accepted").to_string();
    assert!(errors.contains("create another one"), "{errors}");
}
