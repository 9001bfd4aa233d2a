//! The rules of the custom resources, evaluated without a server. What is accepted and what is refused, with what message.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use serde_json::{Value, json};
use vivarium_api::v1alpha1::{EnvironmentTemplate, VirtualEnvironment};

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
