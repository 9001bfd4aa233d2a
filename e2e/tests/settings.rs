//! What the spec says of the operating system is what is read back inside.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use serde_json::json;
use vivarium_e2e::{DEADLINE, Environment, Namespace, eventually, get, kubectl_ok, lab};

#[test]
fn settings_of_the_spec_are_read_back_inside() {
    let namespace = Namespace::new("settings");
    let ve = namespace
        .environment("shop")
        .with(
            "/os",
            json!({
            "hostname": "till", "timezone": "Europe/Prague", "locale": "en_US.UTF-8",
            "sysctls": [{"name": "net.ipv4.ip_forward", "value": "1"}, {"name": "kernel.shmmax", "value": "123456789"}],
            "limits": [{"name": "nofile", "soft": "2048", "hard": "4096"}]}),
        )
        .with("/resources/limits", json!({"cpu": "1", "memory": "512Mi"}))
        .up();
    assert_eq!(ve.sh("hostname"), "till");
    assert_eq!(ve.sh("readlink -f /etc/localtime"), "/usr/share/zoneinfo/Europe/Prague");
    assert_eq!(ve.sh("cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmax"), "1\n123456789");
    ve.sh("printf '[Service]\\nType=oneshot\\nExecStart=/bin/sh -c \"ulimit -Sn > /run/n; ulimit -Hn >> /run/n; echo $LANG >> /run/n\"\\n' > /run/systemd/system/read.service && systemctl daemon-reload && systemctl start read");
    assert_eq!(ve.sh("cat /run/n"), "2048\n4096\nen_US.UTF-8");
    // Whoever logs in has the limits as well.
    assert_eq!(ve.sh("su - -c 'ulimit -Sn; ulimit -Hn'"), "2048\n4096");
    // Names: those of the cluster, as in any pod, and its own, which is in the file and not only known to a resolver.
    let resolver = get(&["-n", "kube-system", "service", "kube-dns"]).expect("the cluster's DNS");
    let resolver = resolver["spec"]["clusterIP"].as_str().unwrap().to_owned();
    let resolv = ve.sh("cat /etc/resolv.conf");
    assert!(resolv.lines().any(|line| line == format!("nameserver {resolver}")), "{resolv}");
    assert!(resolv.contains(&format!("{}.svc.cluster.local", namespace.name)), "{resolv}");
    let api =
        get(&["-n", "default", "service", "kubernetes"]).unwrap()["spec"]["clusterIP"].as_str().unwrap().to_owned();
    let found = ve.sh("getent ahostsv4 kubernetes.default.svc.cluster.local");
    assert!(found.starts_with(&api), "{found}");
    // The address of the pod is another one after a move; the file is the environment's and moves with it.
    let hosts = ve.sh("cat /etc/hosts");
    for (address, name) in [("127.0.1.1", "till"), ("127.0.0.1", "localhost")] {
        let named = |line: &str| {
            let mut words = line.split_whitespace();
            words.next() == Some(address) && words.any(|word| word == name)
        };
        assert!(hosts.lines().any(named), "no line of {address} names {name}: {hosts}");
    }
    assert!(ve.sh("getent ahostsv4 till").starts_with("127.0.1.1"), "the own name is not resolved");
    let (status, reason, _) = ve.condition("UpToDate");
    assert_eq!((status.as_str(), reason.as_str()), ("True", "UpToDate"));
    // The memory limit is the container's.
    let pod = ve.pod_object();
    assert_eq!(pod["spec"]["containers"][0]["resources"]["limits"]["memory"], "512Mi");
}

#[test]
fn a_change_that_needs_a_restart_says_so_and_the_others_are_applied_live() {
    let mut ve_namespace = Namespace::new("changes");
    let namespace = &mut ve_namespace;
    let mut ve =
        namespace.environment("shop").with("/resources/limits", json!({"cpu": "500m", "memory": "256Mi"})).up();
    let (boot, pod) = (ve.boot(), ve.pod());

    wait_for_limits(&ve, 256 << 20, 500);
    // The memory limit holds for everything together, and it is the guest's process that pays.
    // perl makes the string twice.
    let greedy = "perl -e '$x = \"x\" x (140 << 20); print length $x'";
    let ran = ve.exec(&["sh", "-c", greedy]);
    assert!(!ran.ok, "280 MiB fit into 256: {}", ran.stdout);
    assert_eq!(ve.boot(), boot, "the environment as a whole was killed");

    ve.set("/resources/limits/memory", json!("384Mi"));
    ve.set("/resources/limits/cpu", json!("750m"));
    ve.set("/resources/disk", json!("2Gi"));
    ve.set("/services", json!([{"name": "web", "port": 80, "targetPort": 8080}]));
    ve.apply();
    ve.wait_ready();
    eventually("the new memory limit on the node", vivarium_e2e::DEADLINE, || {
        let pod = ve.pod_object();
        let now = pod["status"]["containerStatuses"][0]["resources"]["limits"]["memory"].clone();
        if now == "384Mi" { Ok(()) } else { Err(pod["status"].to_string()) }
    });
    wait_for_limits(&ve, 384 << 20, 750);
    assert_eq!(ve.sh(greedy), (140 << 20).to_string(), "the new limit does not hold inside");
    eventually("the larger disk", vivarium_e2e::DEADLINE, || {
        let volume = namespace.get("evol", "shop").ok_or("no volume")?;
        let capacity = volume["status"]["capacityBytes"].as_i64().unwrap_or_default();
        if capacity >= 2 << 30 { Ok(()) } else { Err(volume["status"].to_string()) }
    });
    assert_eq!(namespace.get("service", "shop").expect("a Service")["spec"]["ports"][0]["targetPort"], 8080);
    assert_eq!(ve.boot(), boot, "it was restarted for a change that can be made live");

    ve.set("/os/hostname", json!("renamed"));
    ve.apply();
    let message = ve.wait_reason("UpToDate", "RestartRequired");
    for part in ["hostname".to_owned(), format!("kubectl delete pod {pod}")] {
        assert!(message.contains(&part), "the message does not say `{part}`: {message}");
    }
    assert_eq!((ve.boot(), ve.pod()), (boot, pod), "it was restarted without being told to");
    ve.delete_pod();
    let _ = ve.wait_reason("UpToDate", "UpToDate");
    ve.wait_ready();
    assert_eq!(ve.sh("hostname"), "renamed");
}

/// Waits until the cgroups of the environment's container on its node have that limit of memory in bytes and of CPU in
/// thousandths.
fn wait_for_limits(ve: &Environment, memory: u64, cpu: u64) {
    let (node, pod) = (ve.node(), ve.pod_object());
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    // The group of the pause container has no limit.
    let line = format!(
        "cd /sys/fs/cgroup; for d in $(find memory/ -type d -path '*pod{uid}/*' -prune); do cat $d/memory.limit_in_bytes; \
         done | sort -n | head -n 1; for d in $(find cpu/ -type d -path '*pod{uid}/*' -prune); do \
         echo $(($(cat $d/cpu.cfs_quota_us) * 1000 / $(cat $d/cpu.cfs_period_us))); done | sort -n | tail -n 1"
    );
    eventually("the limits in the node's cgroups", DEADLINE, || {
        let found = lab::node_sh(&node, &line);
        if found == format!("{memory}\n{cpu}") { Ok(()) } else { Err(found) }
    });
}

#[test]
fn the_disk_is_as_large_as_the_spec_says_and_grows_live() {
    let namespace = Namespace::new("disk");
    let mut ve = namespace.environment("shop").with("/resources/disk", json!("64Mi")).up();
    let full = ve.exec(&["sh", "-c", "dd if=/dev/urandom of=/srv/big bs=1M count=128 2>&1; sync"]);
    assert!(
        full.stdout.contains("quota exceeded") || full.stdout.contains("No space"),
        "128 MiB fit into 64: {}",
        full.stdout
    );
    ve.sh("rm /srv/big; sync");
    ve.set("/resources/disk", json!("512Mi"));
    ve.apply();
    ve.sh_eventually("dd if=/dev/urandom of=/srv/big bs=1M count=128 conv=fsync");
    let written = eventually("usage in status", vivarium_e2e::DEADLINE, || {
        let volume = namespace.get("evol", "shop").ok_or("no volume")?;
        volume["status"]["usedBytes"].as_i64().filter(|b| *b > 100 << 20).ok_or_else(|| volume["status"].to_string())
    });
    assert!(written < 512 << 20);
}

#[test]
fn a_secret_that_vanishes_is_told_and_locks_nobody_out() {
    let namespace = Namespace::new("vanished");
    namespace.secret("keys", "authorized_keys", "ssh-ed25519 AAAA somebody");
    let source = json!([{"secretRef": {"name": "keys", "key": "authorized_keys"}}]);
    let ve = namespace.environment("shop").with("/root/authorizedKeysFrom", source).up();
    let node = ve.node();
    let uid = ve.pod_object()["metadata"]["uid"].as_str().unwrap().to_owned();
    let file = format!("/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~projected/config/authorized-keys/0");
    lab::node_sh(&node, &format!("test -e {file}"));
    kubectl_ok(&["-n", &namespace.name, "delete", "secret", "keys"]);
    let told = eventually("an event about the Secret", DEADLINE, || {
        let events = get(&["-n", &namespace.name, "events.v1.events.k8s.io"]).unwrap_or_default();
        let all = events["items"].as_array().into_iter().flatten();
        let mut about = all.filter(|e| e["regarding"]["name"] == "shop" && e["reason"] == "SecretNotFound");
        about.next().cloned().ok_or_else(|| "no such event".to_owned())
    });
    assert_eq!(told["type"], "Warning");
    let said = told["note"].as_str().unwrap();
    assert!(said.contains("`keys`") && said.contains("keeps the keys that it had"), "{said}");
    // The kubelet takes its file away in its own time; the environment has its keys still.
    eventually("the end of the kubelet's file", DEADLINE, || {
        let ran = lab::on_node(&node, &["test", "!", "-e", &file]);
        if ran.ok { Ok(()) } else { Err(file.clone()) }
    });
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert_eq!(ve.sh("cat /run/host/vivarium/authorized_keys/root"), "ssh-ed25519 AAAA somebody");
    ve.wait_ready();
}
