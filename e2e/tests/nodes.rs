//! Nodes that cannot take an environment: the condition says why, and it starts as soon as they can.
//! These tests change nodes that others depend on, so they run one after another.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Mutex;

use serde_json::json;
use vivarium_e2e::{DEADLINE, Namespace, eventually, kubectl, kubectl_ok, lab};

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
    assert!(message.contains("pool"), "{message}");
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
