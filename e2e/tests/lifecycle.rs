//! Many at once, sharing, deletion that leaves nothing, volumes that are kept, manifests that stay clean.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use serde_json::json;
use vivarium_e2e::environment::condition_of;
use vivarium_e2e::{DEADLINE, Namespace, apply, eventually, get, kubectl, lab, run_with};

#[test]
fn one_template_serves_many_and_none_can_spoil_it() {
    let namespace = Namespace::new("sharing");
    let node = lab::nodes()[0].clone();
    let on = |name: &str| {
        namespace.environment(name).with("/placement/nodeSelector", json!({"kubernetes.io/hostname": node})).up()
    };
    let (a, b) = (on("a"), on("b"));
    let count = b.sh("find /usr/share -type f | wc -l");
    a.sh("rm -rf /usr/share; echo poison > /usr/bin/env || true");
    assert_eq!(b.sh("find /usr/share -type f | wc -l"), count);
    assert_eq!(b.sh("/usr/bin/env true && echo whole"), "whole");
    let c = on("c");
    assert_eq!(c.sh("find /usr/share -type f | wc -l"), count, "a new environment starts from a spoilt template");
    // A fresh environment costs less than 1 MiB of disk.
    let used = eventually("usage of a fresh volume", DEADLINE, || {
        let volume = namespace.get("evol", "c").ok_or("no volume")?;
        volume["status"]["usedBytes"].as_i64().ok_or_else(|| volume["status"].to_string())
    });
    assert!(used < 1 << 20, "a fresh environment occupies {used} bytes");
    // What one reads is in memory for the other. The file is first put out of memory, so that the check does not
    // depend on what was read before (dd's `nocache` is posix_fadvise(2) POSIX_FADV_DONTNEED, for clean pages).
    let cold = c.sh("find /usr/share/i18n/locales -type f -size +200k | sort | head -n 1");
    assert!(cold.starts_with('/'), "no large file that no process maps");
    let resident = |ve: &vivarium_e2e::Environment| -> (u32, u32) {
        let seen = ve.sh(&format!("{RESIDENT} {cold}"));
        let (pages, all) = seen.split_once(' ').unwrap();
        (pages.parse().unwrap(), all.parse().unwrap())
    };
    b.sh(&format!("sync {cold}; dd if={cold} iflag=nocache count=0 status=none"));
    assert_eq!(resident(&c).0, 0, "{cold} is in memory before anybody read it");
    b.sh(&format!("cat {cold} > /dev/null"));
    let (pages, all) = resident(&c);
    assert_eq!(pages, all, "of {all} pages of {cold} that b read, c finds {pages} in memory");
}

/// Prints how many pages of a file are in memory, and how many it has (mincore(2) 27 on an mmap(2) 9).
const RESIDENT: &str = r#"perl -e 'open F, "<", $ARGV[0] or die; my $n = -s F; my $p = int(($n + 4095) / 4096); my $a = syscall(9, 0, $n, 1, 1, fileno(F), 0); my $v = "\0" x $p; syscall(27, $a, $n, $v) == 0 or die "mincore: $!"; my $r = grep { ord($_) & 1 } split //, $v; print "$r $p\n"'"#;

#[test]
fn deletion_leaves_nothing_anywhere() {
    let namespace = Namespace::new("deletion");
    let ve = namespace.environment("shop").with("/services", json!([{"name": "ssh", "port": 22}])).up();
    ve.sh("mkdir -p /mnt/inner && mount -t tmpfs none /mnt/inner; systemd-run --quiet sleep 10000; echo x > /srv/x");
    let node = ve.node();
    let pod = ve.pod_object()["metadata"]["uid"].as_str().unwrap().to_owned();
    let volume = namespace.get("evol", "shop").unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
    let traces = |what: &str| {
        let line = format!(
            "grep -c -e {pod} -e {volume} /proc/self/mountinfo; ls /var/lib/vivarium/pool/volumes | grep -c {volume}; \
             find /sys/fs/cgroup -type d -name '*{pod}*' | wc -l; ls /var/lib/kubelet/pods | grep -c {pod}; \
             grep -l -s {pod} /proc/[0-9]*/cgroup | wc -l; grep -l -s {volume} /run/vivarium/volumes/* | wc -l; \
             grep -l -s {pod} /run/vivarium/guests/* | wc -l"
        );
        let found = lab::node_sh(&node, &format!("({line}) || true"));
        (what.to_owned(), found.split_whitespace().map(|n| n.parse::<u32>().unwrap()).collect::<Vec<_>>())
    };
    // The check finds what is there, so it can fail.
    let (_, before) = traces("before");
    assert!(
        before.iter().all(|n| *n > 0),
        "mounts, subvolumes, cgroups, directories, processes, records, reports: {before:?}"
    );
    ve.delete();
    eventually("no trace on the node", DEADLINE, || {
        let (_, after) = traces("after");
        if after.iter().all(|n| *n == 0) {
            Ok(())
        } else {
            Err(format!("mounts, subvolumes, cgroups, directories, processes, records, reports: {after:?}"))
        }
    });
    for kind in ["ve", "evol", "pods", "pvc", "services", "configmaps"] {
        let left: Vec<_> = namespace.names(kind).into_iter().filter(|n| n != "kube-root-ca.crt").collect();
        assert!(left.is_empty(), "{kind} left: {left:?}");
    }
    assert!(get(&["pv", &format!("vivarium-{volume}")]).is_none(), "the PersistentVolume is left");
}

#[test]
fn a_retained_volume_comes_back_with_a_new_environment() {
    let namespace = Namespace::new("retain");
    let ve = namespace.environment("shop").with("/volume/deletionPolicy", json!("Retain")).up();
    ve.sh("echo precious > /srv/kept; sync");
    ve.delete();
    let volume = namespace.get("evol", "shop").expect("the volume is retained");
    assert!(volume["spec"]["environment"].is_null(), "{volume}");
    eventually("the volume to be in no pod", DEADLINE, || {
        let volume = namespace.get("evol", "shop").ok_or("no volume")?;
        let (status, reason, _) = condition_of(&volume, "Published");
        if (status.as_str(), reason.as_str()) == ("False", "NotPublished") { Ok(()) } else { Err(volume.to_string()) }
    });
    let heir = namespace.environment("heir").with("/volume/name", json!("shop")).up();
    assert_eq!(heir.sh("cat /srv/kept"), "precious");
    assert_eq!(heir.sh("hostname"), "heir");
    // Nobody else can take it meanwhile.
    let thief = namespace.environment("thief").with("/volume/name", json!("shop"));
    thief.apply();
    let message = thief.wait_reason("Ready", "VolumeInUse");
    assert!(message.contains("heir") && message.contains("name another volume"), "{message}");
    assert_eq!(heir.sh("cat /srv/kept"), "precious");
}

#[test]
fn a_deleted_volume_lives_until_nobody_holds_it() {
    let namespace = Namespace::new("doomed");
    let mut ve = namespace.environment("shop").up();
    ve.sh("echo precious > /srv/kept; sync");
    let boot = ve.boot();
    let ran = kubectl(&["-n", &namespace.name, "delete", "evol", "shop", "--wait=false"]);
    assert!(ran.ok, "{}", ran.stderr);
    let message = ve.wait_reason("Ready", "VolumeDeleted");
    for part in ["being deleted with all data", "delete the environment and create it anew"] {
        assert!(message.contains(part), "{part} is not in: {message}");
    }
    // What runs keeps what it runs on.
    assert_eq!(ve.sh("sync; cat /srv/kept"), "precious");
    assert_eq!(ve.boot(), boot);
    let volume = namespace.get("evol", "shop").expect("the volume is gone while it is in use");
    assert!(!volume["status"]["holder"].is_null(), "{volume}");
    // Once it is shut down, nobody holds the volume any more and it goes.
    ve.set("/runMode", json!("Stopped"));
    ve.apply();
    eventually("the end of the volume", DEADLINE, || {
        namespace.get("evol", "shop").map_or(Ok(()), |volume| Err(volume.to_string()))
    });
    ve.delete();
}

#[test]
fn twenty_at_once_come_and_go() {
    let namespace = Namespace::new("twenty");
    let all: Vec<_> = (0..20).map(|i| namespace.environment(&format!("ve{i}"))).collect();
    let ran = apply(&all.iter().map(vivarium_e2e::Environment::manifest).collect::<Vec<_>>());
    assert!(ran.ok, "{}", ran.stderr);
    for ve in &all {
        ve.wait_ready_for(std::time::Duration::from_secs(300));
    }
    let uids = |kind: &str| -> Vec<String> {
        let list = get(&["-n", &namespace.name, kind]).unwrap_or_default();
        let items = list["items"].as_array().into_iter().flatten();
        items.filter_map(|item| item["metadata"]["uid"].as_str().map(Into::into)).collect()
    };
    // By these everything of them is called on the nodes.
    let ids = [uids("evol"), uids("pods")].concat();
    assert_eq!(ids.len(), 40);
    let ran = kubectl(&["-n", &namespace.name, "delete", "ve", "--all", "--timeout=300s"]);
    assert!(ran.ok, "{}{}", ran.stdout, ran.stderr);
    eventually("no pods, claims, services or volumes left", DEADLINE, || {
        let left: Vec<_> = ["pods", "pvc", "services", "evol"].iter().flat_map(|kind| namespace.names(kind)).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    eventually("nothing left of them on the nodes and in the cluster", DEADLINE, || {
        let mut left = kubectl(&["get", "pv", "-o", "name"]).stdout;
        for node in lab::nodes() {
            left += &lab::node_sh(
                &node,
                "cat /proc/self/mountinfo; ls /var/lib/vivarium/pool/volumes /run/vivarium/guests; ls -a /run/vivarium/volumes; \
                 find /sys/fs/cgroup -type d -path \"*pod*\" 2>/dev/null || true",
            );
        }
        let found: Vec<_> = ids.iter().filter(|id| left.contains(id.as_str())).collect();
        if found.is_empty() { Ok(()) } else { Err(format!("{found:?}")) }
    });
}

#[test]
fn the_examples_stay_as_they_were_applied() {
    let examples = "../examples/";
    let namespace = Namespace::new("examples");
    namespace.secret(
        "first-keys",
        "authorized_keys",
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHNvbWUta2V5LWZvci10ZXN0cy1vbmx5LW5vLWxvZ2lu nobody",
    );
    let in_namespace = |verb: &str| run_with("kubectl", &["-n", &namespace.name, verb, "-f", examples], "");
    let applied = in_namespace("apply");
    assert!(applied.ok, "{}", applied.stderr);
    for name in namespace.names("ve") {
        namespace.environment(&name).wait_ready();
    }
    let diff = in_namespace("diff");
    assert!(diff.ok, "kubectl diff shows changes after Ready: {}{}", diff.stdout, diff.stderr);
}
