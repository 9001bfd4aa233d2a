//! One world each: what is done and what is said.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;
use vivarium_api::v1alpha1::environment::Phase;
use vivarium_api::v1alpha1::volume::Holder;
use vivarium_api::v1alpha1::{ConditionStatus, EnvironmentVolume};

use super::fixtures::*;
use crate::environment::lifecycle::back_off;
use crate::environment::world::{NodeState, World};

const NOTHING: [&str; 0] = [];

#[track_caller]
fn refused(world: &World, reason: &str, words: &[&str], stalled: bool) {
    let decision = decided(world);
    let ready = ready(&decision);
    assert_eq!((ready.status, ready.reason.as_str()), (ConditionStatus::False, reason), "{}", ready.message);
    for word in words {
        assert!(ready.message.contains(word), "`{word}` is not in: {}", ready.message);
    }
    assert_eq!((has(&decision, "Stalled"), has(&decision, "Reconciling")), (stalled, !stalled));
    let started = short(&decision).into_iter().find(|action| action.starts_with("create pod"));
    assert_eq!(started, None);
}

#[test]
fn first_comes_the_finalizer() {
    let mut world = empty(&json!({}));
    change(&mut world, |e| e.metadata.finalizers = None);
    assert_eq!(short(&decided(&world)), ["finalizer on", "create volume shop"]);
}

#[test]
fn a_fresh_environment_gets_what_it_needs_step_by_step() {
    let spec = json!({"services": [{"name": "web", "port": 80}]});
    let mut world = empty(&spec);
    assert_eq!(short(&decided(&world)), ["create volume shop"]);
    assert!(decided(&world).only_prepares(), "which pods there are does not matter");
    world.volume = prepared(&spec).volume;
    assert_eq!(short(&decided(&world)), ["apply service", "apply pv", "apply claim"]);
    assert!(decided(&world).only_prepares());
    let mut world = prepared(&spec);
    Arc::make_mut(world.claim.as_mut().unwrap()).status = None;
    assert_eq!(short(&decided(&world)), NOTHING, "the pod waits until its claim is bound");
    assert!(!decided(&world).only_prepares(), "what is told depends on the pods");
    let decision = decided(&prepared(&spec));
    assert_eq!(short(&decision), ["create pod shop-1"]);
    assert!(!decision.only_prepares());
    assert_eq!((decision.status.phase, decision.status.epoch), (Some(Phase::Starting), 1));
}

#[test]
fn a_pod_gets_the_volume_once_it_has_a_node() {
    let mut world = prepared(&json!({}));
    world.pods = vec![Arc::new(pod(&world, 1, None, &json!({"phase": "Pending"})))];
    assert_eq!(short(&decided(&world)), NOTHING);
    world.pods = vec![Arc::new(pod(&world, 1, Some("n1"), &json!({"phase": "Pending"})))];
    assert_eq!(short(&decided(&world)), ["hold n1 s1 1"]);
    world.nodes.session = None;
    refused(&world, "NodeDriverNotReady", &["n1", "vivarium-node-n1"], false);
}

#[test]
fn a_running_environment_is_ready_and_left_alone() {
    let world = with_pod(&json!({}), 1, &running());
    let decision = decided(&world);
    assert_eq!(short(&decision), NOTHING);
    assert_eq!(decision.status.phase, Some(Phase::Running));
    assert_eq!(ready(&decision).status, ConditionStatus::True);
    for type_ in ["Scheduled", "StorageReady", "Booted", "UpToDate"] {
        assert_eq!(shown(&decision, type_).status, ConditionStatus::True, "{type_}");
    }
    assert!(!has(&decision, "Reconciling") && !has(&decision, "Stalled"));
    assert_eq!(decision.status.node.as_deref(), Some("n1"));
    assert_eq!(decision.status.pod_name.as_deref(), Some("shop-1"));
    assert_eq!(decision.status.pod_ip.as_deref(), Some("10.1.2.3"));
    assert_eq!(decision.status.template_digest.as_deref(), Some("sha256:abc"));
    assert_eq!(decision.again, None);
}

#[test]
fn an_unchanged_world_gives_an_unchanged_status() {
    for status in [running(), failed("2026-01-01T11:59:59Z"), powered_off(), json!({"phase": "Pending"})] {
        let mut world = with_pod(&json!({}), 1, &status);
        let first = decided(&world).status;
        change(&mut world, |e| e.status = Some(first.clone()));
        let later = now() + jiff::SignedDuration::from_millis(10);
        let second = crate::environment::lifecycle::decide(&world, later, &settings()).unwrap();
        assert_eq!(second.status, first);
    }
}

#[test]
fn what_a_start_needs_and_does_not_have_is_named() {
    let mut world = empty(&json!({}));
    world.template = None;
    refused(&world, "TemplateNotFound", &["debian-13"], true);

    let mut world = empty(&json!({}));
    let status = Arc::make_mut(world.template.as_mut().unwrap()).status.as_mut().unwrap();
    status.conditions = serde_json::from_value(json!([
        condition_json("Ready", "False", "ImageNotFound", "no image x"),
        condition_json("Stalled", "True", "ImageNotFound", "no image x")
    ]))
    .unwrap();
    refused(&world, "TemplateNotReady", &["debian-13", "ImageNotFound", "no image x"], true);

    let mut world = empty(&json!({}));
    Arc::make_mut(world.template.as_mut().unwrap()).status = None;
    refused(&world, "TemplateNotReady", &["no node has looked"], false);

    let keys = json!({"root": {"authorizedKeysFrom": [{"secretRef": {"name": "keys"}}]}});
    let mut world = prepared(&keys);
    world.secrets = Some([("keys".to_owned(), None)].into());
    refused(&world, "SecretNotFound", &["keys", "authorized_keys"], true);
    assert_eq!(decided(&world).again, Some(Duration::from_secs(5)));
    world.secrets = Some([("keys".to_owned(), Some(BTreeSet::from(["other".to_owned()])))].into());
    refused(&world, "SecretKeyNotFound", &["authorized_keys", "`other`"], true);
    world.secrets = Some([("keys".to_owned(), Some(BTreeSet::from(["authorized_keys".to_owned()])))].into());
    assert_eq!(short(&decided(&world)), ["create pod shop-1"]);
}

fn with_volume(spec: &serde_json::Value, change: impl FnOnce(&mut EnvironmentVolume)) -> World {
    let mut world = empty(spec);
    let mut volume = volume(&json!({"observedGeneration": 1, "epoch": 7, "node": "n1", "usedBytes": 104_857_600}));
    change(&mut volume);
    world.volume = Some(Arc::new(volume));
    world
}

#[test]
fn a_volume_that_cannot_be_had_is_named() {
    let spec = json!({});
    refused(&with_volume(&spec, |v| v.spec.environment = Some("heir".into())), "VolumeInUse", &["heir"], true);
    let other = with_volume(&spec, |v| v.spec.template.name = "alpine".into());
    refused(&other, "VolumeTemplateMismatch", &["alpine", "debian-13"], true);
    let deleted = with_volume(&spec, |v| v.metadata.deletion_timestamp = Some(Time(now())));
    refused(&deleted, "VolumeDeleted", &["shop"], true);
    // Its data is destroyed once nobody holds it.
    let held = with_volume(&spec, |v| {
        v.metadata.deletion_timestamp = Some(Time(now()));
        v.status.as_mut().unwrap().holder = Some(Holder { node: "n1".into(), session: "s1".into() });
    });
    refused(&held, "VolumeDeleted", &["shop"], true);
    assert_eq!(short(&decided(&held)), ["release"]);
    let small = json!({"resources": {"disk": "32Mi"}});
    refused(&with_volume(&small, |v| v.spec.environment = None), "DiskTooSmall", &["32Mi", "104857600"], true);
    let mut lost = empty(&spec);
    change(&mut lost, |e| {
        let status = e.status.as_mut().unwrap();
        (status.epoch, status.volume_name) = (3, Some("shop".into()));
    });
    refused(&lost, "VolumeLost", &["shop", "delete the environment"], true);
}

#[test]
fn a_retained_volume_is_adopted_and_keeps_its_size_and_epoch() {
    let world = with_volume(&json!({"resources": {"disk": "1Gi"}}), |v| v.spec.environment = None);
    let decision = decided(&world);
    assert_eq!(short(&decision), ["Adopted volume shop"]);
    let crate::environment::decision::Action::ReplaceVolume(adopted, _) = &decision.actions[0] else { panic!() };
    assert_eq!(adopted.spec.environment.as_deref(), Some("shop"));
    assert_eq!(adopted.spec.size.0, "10Gi");
    let mut world = prepared(&json!({"resources": {"disk": "10Gi"}}));
    world.volume = with_volume(&json!({}), |_| {}).volume;
    assert_eq!(short(&decided(&world)), ["create pod shop-8"], "the epochs go on where the volume's ended");
}

#[test]
fn a_branch_lies_on_the_layers_of_its_source_and_needs_a_journal() {
    let spec = json!({"source": {"environment": "first", "at": "7"}, "resources": {"disk": "1Gi"}});
    let store = serde_json::from_value(json!({"apiVersion": "vivarium.dev/v1alpha1", "kind": "JournalStore",
        "metadata": {"name": "default"}, "spec": {"local": {"path": "/var/lib/vivarium/store"}}}));
    let store: Arc<vivarium_api::v1alpha1::JournalStore> = Arc::new(store.unwrap());
    let mut source = volume(&json!({"observedGeneration": 1}));
    source.spec.environment = Some("first".into());
    source.spec.store = Some("archive".into());
    let mut world = empty(&spec);
    world.stores = vec![store];
    refused(&world, "SourceNotFound", &["`first`", "kubectl get ve"], true);
    world.source = Some(Arc::new(source.clone()));
    let decision = decided(&world);
    assert_eq!(short(&decision), ["create volume shop"]);
    let crate::environment::decision::Action::CreateVolume(made) = &decision.actions[0] else { panic!() };
    assert_eq!(made.spec.template, source.spec.template, "the template may have moved on");
    assert_eq!((made.spec.size.0.as_str(), made.spec.store.as_deref()), ("10Gi", Some("default")));
    let from = made.spec.source.clone().unwrap();
    assert_eq!((from.volume.as_str(), from.store.as_str(), from.at.as_str()), (VOLUME_UID, "archive", "7"));

    let mut retained = world.clone();
    let mut other = source.clone();
    (other.metadata.name, other.spec.environment) = (Some("shop".into()), None);
    retained.volume = Some(Arc::new(other));
    refused(&retained, "NameConflict", &["`shop`", "another name"], true);
    let mut alone = world.clone();
    alone.stores.clear();
    refused(&alone, "StoreNotFound", &["own journal"], true);
    let mut bare = world.clone();
    Arc::make_mut(bare.source.as_mut().unwrap()).spec.store = None;
    refused(&bare, "NotJournaled", &["`first`"], true);
    let mut other = world.clone();
    Arc::make_mut(other.source.as_mut().unwrap()).spec.template.name = "alpine".into();
    refused(&other, "VolumeTemplateMismatch", &["alpine", "debian-13"], true);
    change(&mut world, |e| {
        e.metadata.creation_timestamp = Some(Time(now()));
        e.spec.source.as_mut().unwrap().at = "2026-01-01T12:00:01Z".into();
    });
    refused(&world, "NoSuchState", &["had not come yet"], true);
}

#[test]
fn names_of_others_are_left_to_them() {
    let spec = json!({"services": [{"name": "web", "port": 80}]});
    let mut world = prepared(&spec);
    Arc::make_mut(world.service.as_mut().unwrap()).metadata.owner_references = None;
    refused(&world, "NameConflict", &["Service `shop`"], true);
    let mut world = prepared(&json!({}));
    Arc::make_mut(world.claim.as_mut().unwrap()).metadata.owner_references = None;
    refused(&world, "NameConflict", &["PersistentVolumeClaim `vivarium-shop`"], true);
    let mut world = prepared(&json!({}));
    world.met.taken = 4;
    assert_eq!(short(&decided(&world)), ["create pod shop-5"], "the name of a foreign pod is passed over");
}

#[test]
fn a_failed_incarnation_is_followed_by_another_after_a_pause_that_grows() {
    for (failures, at, actions, again) in [
        // The first failure: one second.
        (0, "2026-01-01T11:59:59.500Z", vec![], Some(Duration::from_millis(500))),
        (0, "2026-01-01T11:59:59Z", vec!["delete pod shop-3"], None),
        (2, "2026-01-01T11:59:57Z", vec![], Some(Duration::from_secs(1))),
        (20, "2026-01-01T11:59:30Z", vec![], Some(Duration::from_secs(30))),
        // A clock that ran backwards does not pause for ever.
        (0, "2026-01-01T13:00:00Z", vec![], Some(Duration::from_secs(1))),
    ] {
        let mut world = with_pod(&json!({}), 3, &failed(at));
        change(&mut world, |e| e.status.as_mut().unwrap().failures = failures);
        let decision = decided(&world);
        assert_eq!(
            (short(&decision), decision.again),
            (actions.into_iter().map(str::to_owned).collect(), again),
            "{at}"
        );
        assert_eq!(decision.status.phase, Some(Phase::Failed));
        assert_eq!((decision.status.failures, decision.status.failed_epoch), (failures + 1, 3));
        assert!(ready(&decision).message.contains("init said no"), "{}", ready(&decision).message);
        // The same failure is counted once.
        change(&mut world, |e| e.status = Some(decision.status.clone()));
        assert_eq!(decided(&world).status.failures, failures + 1);
    }
    let seconds: Vec<_> = [0, 1, 2, 3, 6, 7, 8, u32::MAX].into_iter().map(|n| back_off(n).as_secs()).collect();
    assert_eq!(seconds, [1, 1, 2, 4, 32, 60, 60, 60]);
}

#[test]
fn whoever_corrects_the_spec_of_a_failing_environment_does_not_wait() {
    let mut world = with_pod(&json!({"os": {"timezone": "Europe/Atlantis"}}), 3, &failed("2026-01-01T11:59:59.900Z"));
    assert_eq!(short(&decided(&world)), NOTHING);
    change(&mut world, |e| e.spec.os.as_mut().unwrap().timezone = Some("Europe/Prague".into()));
    assert_eq!(short(&decided(&world)), ["delete pod shop-3"]);
}

#[test]
fn the_count_of_failures_ends_when_it_is_ready() {
    let mut world = with_pod(&json!({}), 4, &running());
    change(&mut world, |e| e.status.as_mut().unwrap().failures = 3);
    assert_eq!(decided(&world).status.failures, 0);
}

#[test]
fn a_pod_that_vanished_or_was_deleted_is_followed_by_the_next_one() {
    let mut world = with_pod(&json!({}), 4, &running());
    let gone = world.pods.pop().unwrap();
    assert_eq!(short(&decided(&world)), ["create pod shop-5"]);
    world.pods = vec![Arc::new(terminating(gone.as_ref().clone()))];
    let decision = decided(&world);
    assert_eq!(short(&decision), NOTHING, "nothing starts while the old pod is there");
    assert_eq!(decision.status.phase, Some(Phase::Stopping));
}

#[test]
fn an_environment_that_powers_itself_off_stays_so_until_it_was_stopped_and_started() {
    let mut world = with_pod(&json!({}), 2, &powered_off());
    let decision = decided(&world);
    assert_eq!(short(&decision), NOTHING);
    assert_eq!(decision.status.phase, Some(Phase::PoweredOff));
    assert_eq!(ready(&decision).reason, "PoweredOff");
    assert!(ready(&decision).message.contains("runMode"));
    // Somebody collected the pod: that is no wish to start.
    change(&mut world, |e| e.status = Some(decision.status.clone()));
    let pods = std::mem::take(&mut world.pods);
    let decision = decided(&world);
    assert_eq!(short(&decision), ["release"]);
    assert_eq!(decision.status.phase, Some(Phase::PoweredOff));
    // Stopped: the pod goes, then the holder.
    change(&mut world, |e| e.spec.run_mode = vivarium_api::v1alpha1::environment::RunMode::Stopped);
    world.pods = pods;
    assert_eq!(short(&decided(&world)), ["delete pod shop-2"]);
    world.pods.clear();
    let decision = decided(&world);
    assert_eq!(short(&decision), ["release"]);
    assert_eq!((decision.status.phase, ready(&decision).reason.as_str()), (Some(Phase::Stopped), "Stopped"));
    // And on again.
    change(&mut world, |e| {
        e.spec.run_mode = vivarium_api::v1alpha1::environment::RunMode::Running;
        e.status = Some(decision.status.clone());
    });
    assert_eq!(short(&decided(&world)), ["create pod shop-3"]);
}

#[test]
fn a_deleted_pod_that_ended_well_is_not_taken_for_powered_off() {
    let mut world = with_pod(&json!({}), 2, &powered_off());
    world.pods = vec![Arc::new(terminating(world.pods[0].as_ref().clone()))];
    assert_eq!(decided(&world).status.phase, Some(Phase::Stopping));
}

#[test]
fn a_stopped_environment_is_ready_without_a_pod() {
    let world = prepared(&json!({"runMode": "Stopped"}));
    let decision = decided(&world);
    assert_eq!(short(&decision), NOTHING);
    assert_eq!((ready(&decision).status, ready(&decision).reason.as_str()), (ConditionStatus::True, "Stopped"));
    assert!(!has(&decision, "Reconciling") && !has(&decision, "Stalled"));
}

#[test]
fn a_pod_whose_epoch_is_over_is_deleted_and_never_gets_the_volume() {
    // Created late under a name that was used before; or its volume was released.
    for status in [
        json!({"observedGeneration": 1, "epoch": 5, "node": "n1"}),
        json!({"observedGeneration": 1, "epoch": 3, "node": "n1"}),
        json!({"observedGeneration": 1, "epoch": 2, "node": "n2"}),
        json!({"observedGeneration": 1, "epoch": 3, "node": "n1", "holder": {"node": "n1", "session": "s1"}, "holderPod": "its-namesake"}),
    ] {
        let mut world = with_pod(&json!({}), 3, &json!({"phase": "Pending"}));
        world.volume = Some(Arc::new(volume(&status)));
        assert_eq!(short(&decided(&world)), ["delete pod shop-3"], "{status}");
    }
}

#[test]
fn a_new_session_of_the_node_is_taken_over_only_by_what_has_not_run() {
    let mut world = with_pod(&json!({}), 1, &json!({"phase": "Pending"}));
    world.nodes.session = Some("s2".into());
    assert_eq!(short(&decided(&world)), ["hold n1 s2 1"]);
    let mut world = with_pod(&json!({}), 1, &running());
    world.nodes.session = Some("s2".into());
    assert_eq!(short(&decided(&world)), NOTHING);
}

#[test]
fn of_several_pods_only_the_newest_stays() {
    let mut world = with_pod(&json!({}), 3, &running());
    world.pods.push(Arc::new(pod(&world, 2, Some("n1"), &running())));
    assert_eq!(short(&decided(&world)), ["delete pod shop-2"]);
}

#[test]
fn the_newest_pod_does_not_get_the_volume_while_another_is_there() {
    let mut world = with_pod(&json!({}), 2, &running());
    world.pods.push(Arc::new(pod(&world, 3, Some("n1"), &json!({"phase": "Pending"}))));
    assert_eq!(short(&decided(&world)), ["delete pod shop-2"]);
    let old = terminating(world.pods[0].as_ref().clone());
    world.pods[0] = Arc::new(old);
    assert_eq!(short(&decided(&world)), NOTHING);
    world.pods.remove(0);
    assert_eq!(short(&decided(&world)), ["hold n1 s1 3"]);
}

#[test]
fn why_a_pod_has_no_node_is_told_apart() {
    let unscheduled = json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False",
        "reason": "Unschedulable", "message": "0/3 nodes are available: Insufficient memory."}]});
    let mut world = prepared(&json!({}));
    world.pods = vec![Arc::new(pod(&world, 1, None, &unscheduled))];
    for (pool, node, reason, word) in [
        (true, None, "Unschedulable", "Insufficient memory"),
        (false, None, "NoNodeWithPool", "is the node driver running?"),
        (true, Some(NodeState::Gone), "NodeGone", "not in the cluster any more"),
        (true, Some(NodeState::NotReady), "NodeGone", "not ready"),
        (true, Some(NodeState::Ready), "Unschedulable", "Insufficient memory"),
    ] {
        (world.nodes.any_pool, world.nodes.of_volume) = (pool, node);
        let decision = decided(&world);
        let scheduled = shown(&decision, "Scheduled");
        assert_eq!(scheduled.reason, reason);
        assert!(scheduled.message.contains(word), "{}", scheduled.message);
        assert_eq!(ready(&decision).reason, reason);
        assert_eq!(decision.again, Some(Duration::from_secs(10)));
    }
}

#[test]
fn a_pod_that_never_ran_is_replaced_when_the_spec_changes() {
    let pending = json!({"phase": "Pending"});
    for node in [None, Some("n1")] {
        let mut world = prepared(&json!({"placement": {"nodeSelector": {"zone": "a"}}}));
        world.pods = vec![Arc::new(pod(&world, 1, node, &pending))];
        change(&mut world, |e| e.spec.placement = None);
        assert_eq!(short(&decided(&world)), ["delete pod shop-1"], "{node:?}");
        let mut world = prepared(&json!({}));
        world.pods = vec![Arc::new(pod(&world, 1, node, &pending))];
        change(&mut world, |e| e.spec.resources.requests = [("cpu".to_owned(), quantity("1"))].into());
        assert_eq!(short(&decided(&world)), ["delete pod shop-1"], "{node:?}");
    }
}

fn quantity(text: &str) -> k8s_openapi::apimachinery::pkg::api::resource::Quantity {
    k8s_openapi::apimachinery::pkg::api::resource::Quantity(text.into())
}

#[test]
fn changes_that_need_a_restart_are_listed_and_nothing_is_restarted() {
    let mut world = with_pod(&json!({}), 1, &running());
    change(&mut world, |e| {
        e.spec.os =
            serde_json::from_value(json!({"hostname": "till", "sysctls": [{"name": "net.a", "value": "1"}]})).unwrap();
    });
    let decision = decided(&world);
    assert_eq!(short(&decision), NOTHING, "the boot configuration of what runs stays");
    let up_to_date = shown(&decision, "UpToDate");
    assert_eq!((up_to_date.status, up_to_date.reason.as_str()), (ConditionStatus::False, "RestartRequired"));
    for word in ["spec.os.hostname", "spec.os.sysctls", "kubectl delete pod shop-1"] {
        assert!(up_to_date.message.contains(word), "{}", up_to_date.message);
    }
    assert!(!up_to_date.message.contains("timezone"));
    assert_eq!(ready(&decision).status, ConditionStatus::True);
    // The next incarnation takes them.
    world.pods.clear();
    assert_eq!(short(&decided(&world)), ["create pod shop-2"]);
}

#[test]
fn what_can_be_changed_live_is_changed_live() {
    let mut world = with_pod(&json!({"resources": {"limits": {"memory": "256Mi"}, "disk": "10Gi"}}), 1, &running());
    change(&mut world, |e| {
        e.spec.resources.limits.insert("memory".into(), quantity("384Mi"));
        e.spec.resources.disk = quantity("20Gi");
        e.spec.services = serde_json::from_value(json!([{"name": "web", "port": 80}])).unwrap();
    });
    assert_eq!(short(&decided(&world)), ["Grown volume shop", "apply service", "resize pod shop-1"]);
    assert_eq!(shown(&decided(&world), "UpToDate").reason, "ResizePending");
    // The Service goes with its last port.
    let mut world = with_pod(&json!({"services": [{"name": "web", "port": 80}]}), 1, &running());
    change(&mut world, |e| e.spec.services.clear());
    assert_eq!(short(&decided(&world)), ["delete Service shop"]);
}

#[test]
fn a_resize_that_kubernetes_does_not_do_needs_a_restart() {
    let same = json!({"cpu": "1", "memory": "1Gi"});
    for (old, new) in [
        // A limit is removed.
        (json!({"limits": {"memory": "1Gi"}}), json!({})),
        // The quality of service would change.
        (json!({"limits": same}), json!({"limits": same, "requests": same})),
    ] {
        let mut world = with_pod(&json!({"resources": old}), 1, &running());
        change(&mut world, |e| e.spec.resources = serde_json::from_value(new.clone()).unwrap());
        let decision = decided(&world);
        assert_eq!(short(&decision), NOTHING);
        assert_eq!(shown(&decision, "UpToDate").reason, "RestartRequired", "{old} {new}");
    }
    // Nor is it tried again and again when the API server refuses it.
    let mut world = with_pod(&json!({}), 1, &running());
    change(&mut world, |e| e.spec.resources.limits = [("cpu".to_owned(), quantity("1"))].into());
    assert_eq!(short(&decided(&world)), ["resize pod shop-1"]);
    world.met.resize_refused = Some("Forbidden: the node is too old".into());
    let decision = decided(&world);
    assert_eq!(short(&decision), NOTHING);
    assert!(shown(&decision, "UpToDate").message.contains("the node is too old"));
    for (reason, wanted) in [("Infeasible", "ResizeInfeasible"), ("Deferred", "ResizePending")] {
        let mut status = running();
        let pending =
            json!({"type": "PodResizePending", "status": "True", "reason": reason, "message": "node has 1Gi"});
        status["conditions"].as_array_mut().unwrap().push(pending);
        let up_to_date = shown(&decided(&with_pod(&json!({}), 1, &status)), "UpToDate");
        assert_eq!(up_to_date.reason, wanted);
        assert!(up_to_date.message.contains("node has 1Gi"));
    }
}

#[test]
fn trouble_of_kubelet_and_node_driver_is_passed_on() {
    let waiting = json!({"waiting": {"reason": "CreateContainerError", "message": "no zone Europe/Atlantis"}});
    let decision = decided(&with_pod(&json!({}), 1, &container("Pending", &waiting, "False")));
    assert_eq!(ready(&decision).reason, "StartFailed");
    assert!(ready(&decision).message.contains("no zone Europe/Atlantis"));

    let mut world = with_pod(&json!({}), 1, &json!({"phase": "Pending"}));
    let full = json!({"observedGeneration": 1, "epoch": 1, "node": "n1", "holder": {"node": "n1", "session": "s1"}, "holderPod": "pod-1",
        "conditions": [condition_json("Published", "False", "PoolFull", "the pool of n1 is full")]});
    world.volume = Some(Arc::new(volume(&full)));
    let decision = decided(&world);
    assert_eq!(
        (ready(&decision).reason.as_str(), shown(&decision, "StorageReady").reason.as_str()),
        ("PoolFull", "PoolFull")
    );
    // What was said of a former incarnation says nothing of this one.
    world.pods = vec![Arc::new(pod(&world, 2, Some("n1"), &json!({"phase": "Pending"})))];
    assert_eq!(ready(&decided(&world)).reason, "Starting");
}

#[test]
fn a_guest_that_boots_again_is_not_ready_and_keeps_its_pod() {
    let mut status = running();
    status["conditions"] = json!([{"type": "Ready", "status": "False"},
        {"type": "vivarium.dev/Booted", "status": "False", "reason": "Rebooting", "message": "init restarts"}]);
    let decision = decided(&with_pod(&json!({}), 1, &status));
    assert_eq!(short(&decision), NOTHING);
    assert_eq!((decision.status.phase, ready(&decision).reason.as_str()), (Some(Phase::Booting), "Rebooting"));
    assert_eq!(shown(&decision, "Booted").message, "init restarts");
}

#[test]
fn what_runs_does_not_need_its_template_or_secrets_any_more() {
    let mut world =
        with_pod(&json!({"root": {"authorizedKeysFrom": [{"secretRef": {"name": "keys"}}]}}), 1, &running());
    world.template = None;
    world.secrets = Some([("keys".to_owned(), None)].into());
    let decision = decided(&world);
    assert_eq!(short(&decision), NOTHING);
    assert_eq!(ready(&decision).status, ConditionStatus::True);
}

fn deleted(world: &mut World) {
    change(world, |e| e.metadata.deletion_timestamp = Some(Time(now())));
}

#[test]
fn deletion_goes_from_the_pod_down_and_waits_for_each_step() {
    let spec = json!({"services": [{"name": "web", "port": 80}]});
    let mut world = with_pod(&spec, 1, &running());
    deleted(&mut world);
    let decision = decided(&world);
    assert_eq!(short(&decision), ["delete pod shop-1"]);
    assert_eq!((decision.status.phase, ready(&decision).reason.as_str()), (Some(Phase::Deleting), "Deleting"));
    world.pods = vec![Arc::new(terminating(world.pods[0].as_ref().clone()))];
    assert_eq!(short(&decided(&world)), NOTHING);
    world.pods.clear();
    let children = format!("delete PersistentVolume vivarium-{VOLUME_UID}");
    assert_eq!(
        short(&decided(&world)),
        ["delete Service shop", "delete PersistentVolumeClaim vivarium-shop", &children]
    );
    (world.service, world.claim, world.persistent_volume) = (None, None, None);
    assert_eq!(short(&decided(&world)), ["release"]);
    let mut free = volume(&json!({"observedGeneration": 1, "epoch": 1, "node": "n1"}));
    world.volume = Some(Arc::new(free.clone()));
    assert_eq!(short(&decided(&world)), ["delete volume shop"]);
    free.metadata.deletion_timestamp = Some(Time(now()));
    world.volume = Some(Arc::new(free));
    let decision = decided(&world);
    assert_eq!(short(&decision), NOTHING);
    assert!(ready(&decision).message.contains("node n1"), "{}", ready(&decision).message);
    world.volume = None;
    assert_eq!(short(&decided(&world)), ["finalizer off"]);
}

#[test]
fn a_retained_volume_is_let_go_and_then_out_of_the_way() {
    let mut world = empty(&json!({"volume": {"deletionPolicy": "Retain"}}));
    deleted(&mut world);
    let mut kept = volume(&json!({"observedGeneration": 1, "epoch": 1, "node": "n1"}));
    world.volume = Some(Arc::new(kept.clone()));
    assert_eq!(short(&decided(&world)), ["LetGo volume shop"]);
    kept.spec.environment = None;
    world.volume = Some(Arc::new(kept));
    assert_eq!(short(&decided(&world)), ["finalizer off"]);
}

#[test]
fn deletion_touches_nothing_of_others() {
    let mut world = prepared(&json!({"services": [{"name": "web", "port": 80}]}));
    Arc::make_mut(world.volume.as_mut().unwrap()).spec.environment = Some("heir".into());
    Arc::make_mut(world.claim.as_mut().unwrap()).metadata.owner_references = None;
    Arc::make_mut(world.service.as_mut().unwrap()).metadata.owner_references = None;
    deleted(&mut world);
    assert_eq!(short(&decided(&world)), ["finalizer off"]);
}
