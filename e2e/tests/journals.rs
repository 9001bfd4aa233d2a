//! Every change is in a store, and any node can bring an environment back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use serde_json::{Value, json};
use vivarium_e2e::contents::{ATTRIBUTES, SET_ATTRIBUTES};
use vivarium_e2e::{DEADLINE, Environment, Namespace, eventually, get, kubectl_ok, lab};

/// The store that the installation uses is one that all nodes share; otherwise nothing here could be seen.
fn shared_store() {
    let store = eventually("the JournalStore default is Ready", DEADLINE, || {
        let store = get(&["js", "default"]).ok_or("there is none")?;
        let ready = vivarium_e2e::condition_of(&store, "Ready");
        if ready.0 == "True" { Ok(store) } else { Err(format!("{ready:?}")) }
    });
    assert!(store["spec"]["s3"].is_object(), "the store of the lab is not shared by its nodes: {store}");
}

fn volume(namespace: &Namespace, name: &str) -> Value {
    namespace.get("evol", name).expect("the volume")
}

fn sequence(namespace: &Namespace, name: &str) -> u64 {
    volume(namespace, name)["status"]["journal"]["sequence"].as_u64().unwrap_or_default()
}

/// Everything that can be seen of the files that the test made.
fn picture(ve: &Environment) -> String {
    ve.sh(&format!(
        "set -e; cd /srv; find . -printf '%p %y %m %U:%G %s %T@ %n %l\\n' | sort; \
         find . -type f | sort | xargs sha256sum; getcap -r .; find . | sort | {ATTRIBUTES}; stat -c '%n %b' sparse; \
         ls -l /etc/passwd /usr/bin/env; sha256sum /etc/hostname /var/lib/dpkg/status"
    ))
}

#[test]
fn an_environment_moves_to_another_node_and_back_with_all_that_it_holds() {
    shared_store();
    let nodes = lab::nodes();
    let namespace = Namespace::new("journals");
    let selector = |node: &str| json!({"kubernetes.io/hostname": node});
    let mut ve = namespace.environment("shop").with("/placement/nodeSelector", selector(&nodes[0])).up();
    let id = volume(&namespace, "shop")["metadata"]["uid"].as_str().unwrap().to_owned();
    ve.sh(&format!(
        "set -e; cd /srv; mkdir -p deep/er; head -c 3000000 /dev/urandom > deep/er/noise; ln deep/er/noise second; \
         ln -s ../x deep/link; truncate -s 20M sparse; echo end >> sparse; mkfifo fifo; \
         install -m 4751 -o www-data -g 33 /bin/true suid; cp /bin/true netraw; setcap cap_net_raw+ep netraw; \
         chmod 600 deep/er/noise; touch attributed; {SET_ATTRIBUTES} attributed; rm -rf /usr/share/doc; \
         echo appended >> /etc/passwd; mv /etc/cron.daily /etc/cron.moved; touch -d 1999-01-01 old"
    ));
    let made = picture(&ve);
    for part in [
        "./netraw cap_net_raw=ep",
        "./attributed user.vivarium 6b657074",
        "./attributed system.posix_acl_access 02000000",
        "./netraw security.capability ",
    ] {
        assert!(made.contains(part), "{part} is not in {made}");
    }
    for (round, target) in [&nodes[1], &nodes[0]].into_iter().enumerate() {
        ve.set("/placement/nodeSelector", selector(target));
        ve.apply();
        let _ = ve.wait_reason("UpToDate", "RestartRequired");
        // Written in the last moment: not yet in any transaction when the pod is deleted.
        ve.sh(&format!("echo {round} > /srv/last"));
        let before = picture(&ve);
        let from = ve.node();
        ve.delete_pod();
        ve.wait_ready();
        assert_eq!(&ve.node(), target);
        assert_eq!(picture(&ve), before);
        assert_eq!(ve.sh("systemctl is-system-running --wait; test -e /etc/cron.moved && ! test -e /etc/cron.daily && ! test -e /usr/share/doc && echo moved"), "running\nmoved");
        eventually("the former node has dropped its copy", DEADLINE, || {
            let left = lab::node_sh(&from, &format!("ls /var/lib/vivarium/pool/volumes | grep -c {id} || true"));
            if left == "0" { Ok(()) } else { Err(format!("{left} directories on {from}")) }
        });
        let status = &volume(&namespace, "shop")["status"];
        assert_eq!(status["releasedEpoch"].as_u64().unwrap() + 1, status["epoch"].as_u64().unwrap(), "{status}");
    }
    assert!(sequence(&namespace, "shop") > 3, "{}", volume(&namespace, "shop"));
    ve.delete();
}

#[test]
fn a_restarted_node_driver_goes_on_with_the_journal() {
    shared_store();
    let namespace = Namespace::new("resumed");
    let ve = namespace.environment("shop").up();
    eventually("a first transaction is told of", DEADLINE, || {
        let sequence = sequence(&namespace, "shop");
        if sequence > 1 { Ok(()) } else { Err(format!("sequence {sequence}")) }
    });
    kubectl_ok(&["-n", "vivarium-system", "rollout", "restart", "daemonset/vivarium-node"]);
    kubectl_ok(&["-n", "vivarium-system", "rollout", "status", "daemonset/vivarium-node", "--timeout=180s"]);
    let before = sequence(&namespace, "shop");
    ve.sh("echo more > /srv/more");
    eventually("what was written after the restart is in the journal", DEADLINE, || {
        let now = sequence(&namespace, "shop");
        if now > before { Ok(()) } else { Err(format!("sequence {now}, as before")) }
    });
    let (status, reason, message) = vivarium_e2e::condition_of(&volume(&namespace, "shop"), "Journaled");
    assert_eq!((status.as_str(), reason.as_str()), ("True", "Journaled"), "{message}");
    ve.delete();
}

#[test]
fn a_store_that_does_not_exist_is_named_and_one_that_is_not_needed_is_not_asked_for() {
    let namespace = Namespace::new("durability");
    let ve = namespace.environment("shop").with("/durability", json!({"store": "nowhere"}));
    ve.apply();
    let message = ve.wait_reason("Ready", "StoreNotFound");
    for part in ["`nowhere`", "create it, or name another one", "kubectl get js"] {
        assert!(message.contains(part), "the message does not say `{part}`: {message}");
    }
    let ve =
        namespace.environment("much").with("/durability", json!({"tolerate": {"failures": 16, "domain": "Region"}}));
    ve.apply();
    let message = ve.wait_reason("Ready", "NoStoreTolerates");
    for part in ["16 failures of a Region", "create one, or want less", "kubectl get js"] {
        assert!(message.contains(part), "the message does not say `{part}`: {message}");
    }
    let ve =
        namespace.environment("one").with("/durability", json!({"tolerate": {"failures": 1, "domain": "Node"}})).up();
    assert_eq!(volume(&namespace, "one")["spec"]["store"], "default");
    ve.delete();
}
