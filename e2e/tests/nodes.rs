//! Nodes that cannot take an environment: the condition says why, and it starts as soon as they can.
//! These tests change nodes that others depend on, so they run one after another.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Mutex;
use std::time::Duration;

use serde_json::json;
use vivarium_e2e::{DEADLINE, Namespace, condition_of, eventually, get, kubectl, kubectl_ok, lab, story};

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Undoes a change of the nodes also when the test fails.
struct Undo<F: FnMut()>(F);

impl<F: FnMut()> Drop for Undo<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

#[test]
fn without_a_node_that_has_a_pool_the_condition_says_so() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let namespace = Namespace::new("poolless");
    let ve = namespace.environment("shop");
    let restore =
        Undo(|| drop(kubectl(&["label", "nodes", "--all", "--overwrite", "topology.csi.vivarium.dev/pool=true"])));
    kubectl_ok(&["label", "nodes", "--all", "topology.csi.vivarium.dev/pool-"]);
    ve.apply();
    let message = ve.wait_reason("Scheduled", "NoNodeWithPool");
    assert!(message.contains("is the node driver running?"), "the message does not say what to do: {message}");
    drop(restore);
    ve.wait_ready();
}

#[test]
fn a_full_pool_takes_no_new_environment_and_the_condition_says_so() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let namespace = Namespace::new("poolfull");
    let node = lab::nodes()[0].clone();
    let ve = namespace.environment("shop").with("/placement/nodeSelector", json!({"kubernetes.io/hostname": node}));
    let filler = "/var/lib/vivarium/pool/filler";
    let restore = Undo(|| drop(lab::on_node(&node, &["rm", "-f", filler])));
    // Reserved, not written: the pool is a sparse file on a disk that others use.
    lab::node_sh(
        &node,
        &format!(
            "room=$(df --output=avail -B1 /var/lib/vivarium/pool | tail -1); fallocate -l $((room * 97 / 100)) {filler} && sync -f {filler}"
        ),
    );
    ve.apply();
    let message = ve.wait_reason("StorageReady", "PoolFull");
    assert!(message.contains("Enlarge the pool"), "the message does not say what to do: {message}");
    drop(restore);
    ve.wait_ready();
    eventually("room again", DEADLINE, || {
        let ran = ve.exec(&["sh", "-c", "dd if=/dev/zero of=/srv/x bs=1M count=8 conv=fsync"]);
        if ran.ok { Ok(()) } else { Err(ran.stderr) }
    });
}

#[test]
fn an_environment_that_fits_nowhere_says_so_and_starts_when_room_appears() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let namespace = Namespace::new("room");
    let node = lab::nodes()[0].clone();
    let object = get(&["node", &node]).unwrap();
    let allocatable = object["status"]["allocatable"]["memory"].as_str().unwrap();
    let all: u64 = allocatable.strip_suffix("Ki").expect(allocatable).parse().unwrap();
    // Asked for and not used. Two of them are more than there is.
    let most = format!("{}Ki", all * 6 / 10);
    let environment = |name: &str| {
        let here = namespace.environment(name).with("/placement/nodeSelector", json!({"kubernetes.io/hostname": node}));
        here.with("/resources/requests", json!({"memory": most}))
    };
    let first = environment("first").up();
    let second = environment("second");
    second.apply();
    let message = second.wait_reason("Scheduled", "Unschedulable");
    for part in [format!("{node}: insufficient memory: {most} requested, at most "), "Insufficient memory".to_owned()] {
        assert!(message.contains(&part), "{part} is not in: {message}");
    }
    second.wait_phase("Pending");
    first.delete();
    second.wait_ready();
}

#[test]
fn the_operator_tells_what_it_does() {
    kubectl_ok(&["-n", "vivarium-system", "rollout", "status", "deployment/vivarium-operator", "--timeout=180s"]);
    let selector = "app.kubernetes.io/component=operator";
    // One that has just begun waits for the lease of the former leader.
    let leader = eventually("two replicas, one of which leads and one waits", DEADLINE, || {
        let pods = get(&["-n", "vivarium-system", "pods", "-l", selector]).unwrap_or_default();
        let mut shown = Vec::new();
        let there = pods["items"].as_array().into_iter().flatten();
        for pod in there.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()) {
            let name = pod["metadata"]["name"].as_str().unwrap();
            let path = format!("/api/v1/namespaces/vivarium-system/pods/{name}:8080/proxy/metrics");
            let ran = kubectl(&["get", "--raw", &path]);
            if !ran.ok {
                return Err(ran.stderr);
            }
            shown.push(ran.stdout);
        }
        shown.sort_by_key(|text| text.contains("vivarium_operator_leader 1\n"));
        let role = |text: &String| {
            let line = text.lines().find(|line| line.starts_with("vivarium_operator_leader "));
            line.unwrap_or_default().to_owned()
        };
        let roles: Vec<String> = shown.iter().map(role).collect();
        let wanted = ["vivarium_operator_leader 0", "vivarium_operator_leader 1"];
        if roles == wanted { Ok(shown.remove(1)) } else { Err(format!("{roles:?}")) }
    });
    assert!(leader.ends_with("# EOF\n"), "{leader}");
    assert!(leader.contains("# TYPE vivarium_operator_failover_seconds histogram"), "{leader}");
    let count = |line: &str| line.strip_prefix("vivarium_operator_reconciliations_total ")?.parse::<u64>().ok();
    assert!(leader.lines().find_map(count).is_some_and(|count| count > 0), "{leader}");
}

#[test]
fn an_environment_leaves_its_node_with_all_it_has_when_somebody_asks_for_it() {
    // Others cordon nodes, label them and fill their pools.
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let namespace = Namespace::new("leaves");
    let ve = namespace.environment("shop").up();
    let (node, epoch) = (ve.node(), ve.object()["status"]["epoch"].clone());
    ve.sh("echo last words > /srv/words");
    let ask = format!("vivarium.dev/move-from={epoch}");
    kubectl_ok(&["-n", ve.object()["metadata"]["namespace"].as_str().unwrap(), "annotate", "ve", "shop", &ask]);
    eventually("the next incarnation on another node", DEADLINE, || {
        let status = ve.object()["status"].clone();
        let elsewhere = status["node"].as_str().is_some_and(|now| now != node) && status["epoch"] != epoch;
        if elsewhere { Ok(()) } else { Err(status.to_string()) }
    });
    ve.wait_ready();
    assert_eq!(ve.sh("cat /srv/words").trim(), "last words");
}

/// As `kubectl drain` does it. What was to be copied took longer than a guest needs to shut down.
#[test]
fn an_environment_goes_on_until_the_next_pod_is_prepared_on_another_node() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let namespace = Namespace::new("departs");
    let ve = namespace.environment("leaver").up();
    let node = ve.node();
    ve.sh("dd if=/dev/urandom of=/srv/large bs=1M count=256 conv=fsync status=none; sha256sum /srv/large >/srv/sum");
    // Until it is in the journal.
    std::thread::sleep(Duration::from_secs(5));
    let _open = Undo(|| drop(kubectl(&["uncordon", &node])));
    let selector = format!("vivarium.dev/environment={}", ve.name);
    kubectl_ok(&["drain", &node, "--pod-selector", &selector, "--timeout=240s"]);
    ve.wait_ready();
    assert_ne!(ve.node(), node);
    ve.sh("sha256sum --quiet -c /srv/sum");
    let pod = ve.pod_object();
    let (prepared, ..) = condition_of(&pod, "vivarium.dev/Prepared");
    assert_eq!(prepared, "True", "{pod:#}");
    let conditions = pod["status"]["conditions"].as_array().unwrap();
    let condition = conditions.iter().find(|c| c["type"] == "vivarium.dev/Prepared").unwrap();
    let prepared = story::instant(condition["lastTransitionTime"].as_str().unwrap()).unwrap();
    // By the guest's own word, which is of the same clock.
    let told = ve.sh("journalctl -o short-unix --no-pager | grep -m 1 'Received SIGRTMIN+3'");
    let stopped: f64 = told.split_whitespace().next().unwrap().parse().unwrap();
    assert!(
        Duration::from_secs_f64(stopped) >= Duration::from_millis(prepared),
        "stopped at {stopped}, prepared at {prepared}"
    );
}
