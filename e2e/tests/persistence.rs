//! Everything that is written anywhere in the tree stays.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::time::Duration;

use serde_json::json;
use vivarium_e2e::contents::{read_everything, write_everything};
use vivarium_e2e::{Environment, Namespace, eventually};

const LONG: Duration = Duration::from_secs(240);

fn reboot(ve: &Environment) {
    let before = ve.boot();
    let _ = ve.exec(&["systemctl", "reboot"]);
    eventually("another boot", LONG, || {
        let ran = ve.exec(&["sh", "-c", "cut -d' ' -f22 /proc/1/stat"]);
        if ran.ok && !ran.stdout.trim().is_empty() && ran.stdout.trim() != before { Ok(()) } else { Err(ran.stderr) }
    });
    ve.wait_ready();
}

#[test]
fn changes_survive_reboot_poweroff_and_deletion_of_the_pod() {
    let namespace = Namespace::new("persistence");
    let mut ve = namespace.environment("shop").with("/services", json!([{"name": "ssh", "port": 22}])).up();
    let written = write_everything(&ve);
    let (pod, address) = (ve.pod(), ve.pod_object()["status"]["podIP"].clone());

    reboot(&ve);
    assert_eq!(read_everything(&ve), written, "after reboot inside");
    assert_eq!(
        (ve.pod(), ve.pod_object()["status"]["podIP"].clone()),
        (pod.clone(), address),
        "a reboot inside keeps pod and address"
    );
    assert_eq!(ve.pod_object()["status"]["containerStatuses"][0]["restartCount"], 0);

    let _ = ve.exec(&["systemctl", "poweroff"]);
    ve.wait_phase("PoweredOff");
    let (_, reason, message) = ve.condition("Ready");
    assert_eq!(reason, "PoweredOff");
    assert!(message.contains("runMode"), "the message does not say what to do: {message}");
    ve.set("/runMode", json!("Stopped"));
    ve.apply();
    ve.wait_ready();
    ve.wait_phase("Stopped");
    ve.set("/runMode", json!("Running"));
    ve.apply();
    ve.wait_ready();
    ve.wait_phase("Running");
    assert_ne!(ve.pod(), pod, "every incarnation has a pod of its own");
    assert_eq!(read_everything(&ve), written, "after poweroff inside and a cycle of runMode");

    let pod = ve.pod();
    ve.delete_pod();
    eventually("a pod of the next incarnation", LONG, || if ve.pod() == pod { Err(pod.clone()) } else { Ok(()) });
    ve.wait_ready();
    assert_eq!(read_everything(&ve), written, "after kubectl delete pod");

    // A running environment that is told to stop is shut down in order.
    ve.sh("printf '[Service]\\nType=oneshot\\nRemainAfterExit=yes\\nExecStart=/bin/true\\nExecStop=/bin/sh -c \"echo in order > /srv/stopped\"\\n[Install]\\nWantedBy=multi-user.target\\n' > /etc/systemd/system/last.service && systemctl enable --now last");
    ve.set("/runMode", json!("Stopped"));
    ve.apply();
    ve.wait_phase("Stopped");
    assert_eq!(namespace.names("pods"), Vec::<String>::new());
    ve.set("/runMode", json!("Running"));
    ve.apply();
    ve.wait_phase("Running");
    assert_eq!(ve.sh("cat /srv/stopped"), "in order");
}

#[test]
fn ten_reboots_in_a_row_meet_no_back_off() {
    let namespace = Namespace::new("reboots");
    let ve = namespace.environment("shop").up();
    let pod = ve.pod();
    for _ in 0..10 {
        reboot(&ve);
    }
    assert_eq!(ve.pod(), pod);
    let object = ve.pod_object();
    assert_eq!(object["status"]["containerStatuses"][0]["restartCount"], 0);
    assert_eq!(ve.object()["status"]["failures"], 0);
    assert_eq!(ve.sh("systemctl is-system-running"), "running");
    // The journal reaches the disk a while after the boot, or when it is cut short.
    let boots = "journalctl --no-pager -t systemd-journald | grep -c 'Journal started'";
    assert_eq!(ve.sh(boots), "11", "{}", ve.sh("journalctl --no-pager -t systemd-journald"));
}

#[test]
fn an_environment_whose_init_dies_is_started_again() {
    let namespace = Namespace::new("crash");
    let ve = namespace.environment("shop").up();
    ve.sh("echo kept > /srv/kept; sync");
    let epoch = ve.object()["status"]["epoch"].as_u64().unwrap();
    // Only from outside can a pid namespace's init be killed: the node's kill -9.
    let pod = ve.pod_object()["metadata"]["uid"].as_str().unwrap().to_owned();
    let killed = vivarium_e2e::lab::node_sh(
        &ve.node(),
        &format!(
            "for p in /proc/[0-9]*; do grep -q {pod} $p/cgroup 2>/dev/null && [ \"$(cat $p/comm)\" = systemd ] && [ \"$(grep ^NSpid: $p/status | awk '{{print $NF}}')\" = 1 ] && kill -9 ${{p#/proc/}} && echo killed; done; true"
        ),
    );
    assert!(killed.contains("killed"), "init was not found on the node");
    eventually("the next incarnation", LONG, || {
        let now = ve.object()["status"]["epoch"].as_u64().unwrap_or_default();
        if now > epoch { Ok(()) } else { Err(ve.object()["status"].to_string()) }
    });
    ve.wait_ready();
    assert_eq!(ve.sh("cat /srv/kept"), "kept");
}
