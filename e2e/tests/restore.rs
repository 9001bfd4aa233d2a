//! An environment goes back in time: what was broken is whole again, nothing is lost by it, and what cannot be had is
//! refused while the environment runs on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use serde_json::{Value, json};
use vivarium_e2e::{DEADLINE, Environment, Namespace, Ran, apply, condition_of, eventually, kubectl};

fn restore(namespace: &Namespace, name: &str, spec: &Value) -> Ran {
    apply(&[json!({"apiVersion": "vivarium.dev/v1alpha1", "kind": "EnvironmentRestore",
        "metadata": {"name": name, "namespace": namespace.name}, "spec": spec})])
}

/// Waits until a restore is over: type and reason of the condition that is True, and the message.
fn over(namespace: &Namespace, name: &str) -> (Value, String, String) {
    eventually(&format!("the end of restore {name}"), DEADLINE, || {
        let object = namespace.get("environmentrestore", name).ok_or("it is gone")?;
        for type_ in ["Complete", "Failed"] {
            let (status, reason, message) = condition_of(&object, type_);
            if status == "True" {
                return Ok((object, reason, message));
            }
        }
        Err(object["status"].to_string())
    })
}

/// Brings an environment back and waits until it answers again; the status of the restore.
fn restored(namespace: &Namespace, ve: &Environment, name: &str, at: &str) -> Value {
    let ran = restore(namespace, name, &json!({"environment": ve.name, "at": at}));
    assert!(ran.ok, "{}", ran.stderr);
    let (object, reason, message) = over(namespace, name);
    assert_eq!(reason, "Restored", "{message}");
    ve.wait_ready();
    object["status"].clone()
}

/// Waits until what was written is in the journal, and gives a time after that and before anything that is written later.
fn committed(namespace: &Namespace, ve: &Environment) -> String {
    // A commit takes a second or two, and the clock shows whole seconds.
    let time = ve.sh("sync; sleep 5; date -u +%Y-%m-%dT%H:%M:%SZ");
    let volume = namespace.get("environmentvolume", &ve.name).expect("a volume");
    assert!(volume["status"]["lag"].is_null(), "{volume}");
    time
}

#[test]
fn an_environment_that_was_broken_is_as_it_was_and_the_restore_is_undone() {
    let namespace = Namespace::new("restore");
    let ve = namespace.environment("shop").up();
    ve.sh("mkdir /srv/shop; echo good > /srv/shop/page; touch /etc/ssh/mine");
    let looks = "find /etc/ssh -type f | sort | xargs sha256sum | sha256sum";
    let whole = ve.sh(looks);
    let good = committed(&namespace, &ve);
    ve.sh("rm -rf /etc/ssh /srv/shop /usr/share/doc; echo bad > /srv/bad");
    let (epoch, machine) = (ve.object()["status"]["epoch"].clone(), ve.sh("cat /etc/machine-id"));

    let status = restored(&namespace, &ve, "back", &good);
    assert_eq!(ve.sh(looks), whole);
    assert_eq!(ve.sh("cat /srv/shop/page; ls /srv/bad 2>&1 | grep -c cannot"), "good\n1");
    ve.sh("test -d /usr/share/doc && systemctl is-system-running --wait");
    assert_ne!(ve.object()["status"]["epoch"], epoch, "it was not started anew");
    assert_eq!(ve.sh("cat /etc/machine-id"), machine, "it is another one");

    // History goes on.
    ve.sh("echo later > /srv/later");
    ve.delete_pod();
    ve.wait_ready();
    assert_eq!(ve.sh("cat /srv/shop/page /srv/later"), "good\nlater");

    let undone = restored(&namespace, &ve, "undo", &status["before"].to_string());
    assert_eq!(ve.sh("cat /srv/bad; ls -d /etc/ssh/mine /srv/shop /srv/later 2>&1 | grep -c cannot"), "bad\n3");
    assert!(undone["before"].as_u64() > status["before"].as_u64(), "{undone}");

    let printed = kubectl(&["-n", &namespace.name, "get", "er", "back", "-o", "wide", "--no-headers"]).stdout;
    let columns: Vec<&str> = printed.split_whitespace().collect();
    assert_eq!(columns[1..5], ["shop", good.as_str(), "True", "Restored"], "{printed}");
    ve.delete();
}

#[test]
fn what_cannot_be_restored_is_refused_and_the_environment_runs_on() {
    let namespace = Namespace::new("restore-refused");
    let ve = namespace.environment("shop").up();
    committed(&namespace, &ve);
    let (pod, boot) = (ve.pod(), ve.boot());
    for (name, environment, at, expected, words) in [
        ("early", "shop", "2001-01-01T00:00:00Z", "TooOld", "the oldest state is that after transaction 1"),
        ("future", "shop", "2999-01-01T00:00:00Z", "NoSuchState", "has not come yet"),
        ("number", "shop", "99999", "NoSuchState", "there is no transaction 99999"),
        ("nobody", "other", "1", "EnvironmentNotFound", "`other`"),
    ] {
        let ran = restore(&namespace, name, &json!({"environment": environment, "at": at}));
        assert!(ran.ok, "{}", ran.stderr);
        let (_, reason, message) = over(&namespace, name);
        assert_eq!(reason, expected, "{message}");
        assert!(message.contains(words), "{message}");
    }
    let ran = restore(&namespace, "bad", &json!({"environment": "shop", "at": "yesterday"}));
    assert!(!ran.ok && ran.stderr.contains("2026-11-25T18:00:00Z"), "{}", ran.stderr);
    let ran = restore(&namespace, "early", &json!({"environment": "shop", "at": "1"}));
    assert!(!ran.ok && ran.stderr.contains("create another one"), "{}", ran.stderr);
    assert_eq!((ve.pod(), ve.boot()), (pod, boot), "the environment was disturbed");
    ve.delete();
}

#[test]
fn files_and_directories_come_back_and_the_rest_stays() {
    let namespace = Namespace::new("restore-paths");
    let ve = namespace.environment("shop").up();
    ve.sh("mkdir -p /srv/shop/sub; echo good > /srv/shop/page; ln /srv/shop/page /srv/shop/sub/same; chown 33:33 /srv/shop/sub");
    let looks = "cd / && find etc/ssh srv/shop usr/share/doc/base-files -printf '%p %y %m %U:%G %s %T@ %l\\n' | sort | sha256sum; \
        find etc/ssh srv/shop -type f | sort | xargs sha256sum | sha256sum";
    let whole = ve.sh(looks);
    let good = committed(&namespace, &ve);
    ve.sh("rm -rf /srv/shop/sub /usr/share/doc; echo bad > /srv/shop/page; echo x > /srv/shop/extra; echo key > /etc/ssh/mine; \
        rm /etc/ssh/moduli; echo stays > /srv/beside");
    let boot = ve.boot();

    // What was not there then is refused while the environment runs on, and nothing else is restored either.
    let spec = json!({"environment": "shop", "at": good, "paths": ["/etc/ssh", "/srv/beside"]});
    assert!(restore(&namespace, "typo", &spec).ok);
    let (_, reason, message) = over(&namespace, "typo");
    assert_eq!(reason, "NoSuchPath", "{message}");
    assert!(message.contains("`/srv/beside`"), "{message}");
    assert_eq!(ve.boot(), boot, "the environment was disturbed");
    let ran = restore(&namespace, "dots", &json!({"environment": "shop", "at": good, "paths": ["/srv/../etc"]}));
    assert!(!ran.ok && ran.stderr.contains("absolute and plain"), "{}", ran.stderr);

    // By the plugin, which says first what it would do.
    let paths = ["/etc/ssh", "/srv/shop", "/usr/share/doc/base-files"];
    let mut line = vec!["ve", "-n", &namespace.name, "restore", "shop"];
    line.extend(paths);
    line.extend(["--at", &good]);
    let ran = kubectl(&line);
    assert!(!ran.ok && ran.stderr.contains("--yes"), "{}", ran.stderr);
    line.push("--yes");
    let ran = kubectl(&line);
    assert!(ran.ok, "{}", ran.stderr);
    let name = ran.stdout.split_whitespace().find_map(|word| word.strip_prefix("er/")).expect("its name").to_owned();
    let (object, reason, message) = over(&namespace, &name);
    assert_eq!(reason, "Restored", "{message}");
    ve.wait_ready();
    assert_eq!(ve.sh(looks), whole);
    assert_eq!(ve.sh("cat /srv/beside; ls /usr/share/doc"), "stays\nbase-files");
    assert_eq!(ve.sh("stat -c %h /srv/shop/page"), "2", "its hard link is none");

    restored(&namespace, &ve, "undo", &object["status"]["before"].to_string());
    assert_eq!(
        ve.sh("cat /srv/shop/page /srv/shop/extra /etc/ssh/mine; ls -d /usr/share/doc 2>&1 | grep -c cannot"),
        "bad\nx\nkey\n1"
    );
    ve.delete();
}

#[test]
fn the_status_says_what_changes_survive() {
    let namespace = Namespace::new("durability-status");
    let spec = json!({"tolerate": {"failures": 1, "domain": "Node"}});
    let ve = namespace.environment("shop").with("/durability", spec.clone()).up();
    let status = eventually("condition Durable", DEADLINE, || {
        let object = ve.object();
        let (status, reason, message) = condition_of(&object, "Durable");
        if reason == "Reached" { Ok(object["status"].clone()) } else { Err(format!("{status} {reason} {message}")) }
    });
    assert_eq!(status["durability"]["desired"], spec["tolerate"]);
    assert_eq!(status["durability"]["reached"], spec["tolerate"]);
    assert_eq!(status["durability"]["lagSeconds"], 0);
    assert!(status["journal"]["head"].as_u64().unwrap() > 0, "{status}");
    // Two minutes after the start its node tells the digest, and within one more another node has tried.
    let status = eventually("condition Proven", 2 * DEADLINE, || {
        let object = ve.object();
        let (status, reason, message) = condition_of(&object, "Proven");
        if reason == "SameTree" { Ok(object["status"].clone()) } else { Err(format!("{status} {reason} {message}")) }
    });
    assert!(status["durability"]["proven"]["sequence"].as_u64().unwrap() > 0, "{status}");
    ve.delete();
}

#[test]
fn a_branch_runs_beside_its_source_and_is_a_machine_of_its_own() {
    let namespace = Namespace::new("branch");
    let ve = namespace.environment("shop").up();
    let key = "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub | cut -d' ' -f2";
    ve.sh_eventually(key);
    ve.sh("echo then > /srv/page");
    let then = committed(&namespace, &ve);
    ve.sh("echo now > /srv/page");
    let boot = ve.boot();
    let source = json!({"environment": "shop", "at": then});
    let branch = namespace.environment("try").with("/source", source.clone()).up();
    assert_eq!((ve.sh("cat /srv/page"), branch.sh("cat /srv/page")), ("now".into(), "then".into()));
    assert_eq!(ve.boot(), boot, "the source was disturbed");
    for identity in ["cat /etc/machine-id", key, "hostname"] {
        assert_ne!(branch.sh_eventually(identity), ve.sh(identity), "{identity}");
    }
    branch.sh("test \"$(systemctl is-system-running --wait)\" = running");
    // Neither needs the other.
    ve.delete();
    branch.sh("echo own > /srv/own");
    branch.delete_pod();
    branch.wait_ready();
    assert_eq!(branch.sh("cat /srv/page /srv/own"), "then\nown");
    branch.delete();

    let nobody = namespace.environment("nobody").with("/source", source);
    nobody.apply();
    let message = nobody.wait_reason("Ready", "SourceNotFound");
    assert!(message.contains("`shop`") && message.contains("kubectl get ve"), "{message}");
    nobody.delete();
}
