//! What is decided when a node dies.

use std::sync::Arc;

use jiff::Timestamp;
use kube::ResourceExt;
use serde_json::json;
use vivarium_api::v1alpha1::condition::{self, ConditionStatus};
use vivarium_api::v1alpha1::environment::Phase;

use super::fixtures::{
    change, container, decided, failed, now, pod, powered_off, ready, running, short, store, terminating, with_pod,
};
use crate::environment::build;
use crate::environment::decision::Action;
use crate::environment::status::must_come_first;
use crate::environment::world::{Tenure, World};
use crate::nodes::Death;

fn death(over: Option<Timestamp>) -> Death {
    Death { node: "n1".into(), is_back: false, detected: now(), over: [("default".to_owned(), over)].into() }
}

/// Incarnation 3 runs on n1 under session s1, with its journal in a store that every node reaches.
pub fn world() -> World {
    let mut world = with_pod(&json!({}), 3, &running());
    world.stores = vec![Arc::new(store())];
    Arc::make_mut(world.volume.as_mut().unwrap()).spec.store = Some("default".into());
    world.nodes.of_holder = Some("s1".into());
    world
}

fn with_death(mut world: World, death: Death) -> World {
    world.deaths = Arc::new([("s1".to_owned(), death)].into());
    world
}

/// The same with the next incarnation, which the scheduler has put on n2.
fn with_next(mut world: World) -> World {
    let waiting = container("Pending", &json!({"waiting": {"reason": "ContainerCreating"}}), "False");
    world.pods.push(Arc::new(pod(&world, 4, Some("n2"), &waiting)));
    world.nodes.session = Some("s2".into());
    world
}

fn held_by(world: &mut World, session: &str) {
    let status = Arc::make_mut(world.volume.as_mut().unwrap()).status.as_mut().unwrap();
    status.holder.as_mut().unwrap().session = session.into();
}

#[test]
fn the_next_incarnation_is_made_elsewhere_while_the_time_of_the_dead_node_is_waited_out() {
    let decision = decided(&with_death(world(), death(None)));
    assert_eq!(short(&decision), ["create pod shop-4"]);
    assert_eq!(ready(&decision).reason, "NodeLost");
    assert_eq!(decision.status.phase, Some(Phase::Starting));
    let failover = decision.status.last_failover.unwrap();
    assert_eq!((failover.epoch, failover.from_node.as_str(), failover.detected.0), (4, "n1", now()));
    let Action::CreatePod(pod) = &decision.actions[0] else { panic!("{:?}", decision.actions) };
    let affinity = serde_json::to_value(pod.spec.as_ref().unwrap().affinity.as_ref().unwrap()).unwrap();
    let fields = json!([{"key": "metadata.name", "operator": "NotIn", "values": ["n1"]}]);
    assert_eq!(
        affinity,
        json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchFields": fields}]}}})
    );
}

/// Once the pod is there, nothing tells any more that it is one of a failover.
#[test]
fn a_failover_is_noted_before_its_pod_is_made() {
    let world = with_death(world(), death(None));
    let begun = decided(&world);
    assert!(must_come_first(world.environment.status.as_ref(), &begun.status));
    let mut after = with_next(world);
    change(&mut after, |e| e.status = Some(begun.status.clone()));
    let later = decided(&after);
    assert_eq!(later.status.last_failover.as_ref().map(|failover| failover.epoch), Some(4));
    assert!(!must_come_first(Some(&begun.status), &later.status));
}

#[test]
fn the_volume_is_given_on_only_when_nothing_runs_on_the_dead_node() {
    let waits = decided(&with_next(with_death(world(), death(None))));
    assert_eq!(short(&waits), ["delete pod shop-3"]);
    assert_eq!(ready(&waits).reason, "NodeLost");
    let takes = decided(&with_next(with_death(world(), death(Some(now())))));
    assert_eq!(short(&takes), ["remove pod shop-3", "hold n2 s2 4"]);
    // That the dead node had mounted it says nothing of this one.
    let Some(Action::ReplaceVolumeStatus(volume)) = takes.actions.last() else { panic!("{:?}", takes.actions) };
    let published = condition::find(&volume.status.as_ref().unwrap().conditions, "Published").unwrap();
    assert_eq!((published.status, published.reason.as_str()), (ConditionStatus::Unknown, "NotPublished"));
}

#[test]
fn a_pod_that_the_api_server_refuses_is_pending_with_the_reason() {
    let refuse = |world: &mut World| world.met.pod_refused = Some("exceeded quota: q".into());
    let mut lost = with_death(world(), death(None));
    refuse(&mut lost);
    let mut fresh = super::fixtures::prepared(&json!({}));
    refuse(&mut fresh);
    for world in [lost, fresh] {
        let decision = decided(&world);
        assert_eq!((short(&decision), decision.status.phase), (vec![], Some(Phase::Pending)));
        assert_eq!(ready(&decision).reason, "PodRefused");
        assert!(ready(&decision).message.contains("exceeded quota"));
        assert_eq!(decision.again, Some(std::time::Duration::from_secs(10)));
        assert_eq!(decision.status.epoch, world.epoch(), "no incarnation was made");
    }
}

#[test]
fn a_pod_that_was_being_deleted_when_its_node_died_is_replaced_too() {
    let mut world = with_death(world(), death(None));
    let last = world.pods.pop().unwrap();
    world.pods.push(Arc::new(terminating((*last).clone())));
    assert_eq!(short(&decided(&world)), ["create pod shop-4"]);
}

#[test]
fn what_no_other_node_could_bring_back_stays_where_it_is() {
    let mut local = with_death(world(), death(Some(now())));
    Arc::make_mut(local.volume.as_mut().unwrap()).spec.store = None;
    assert_eq!(short(&decided(&local)), Vec::<String>::new());
    assert_eq!(local.tenure(local.volume.as_ref().unwrap()), Tenure::Lives);
}

#[test]
fn a_journal_whose_store_was_deleted_is_said_to_be_out_of_reach() {
    let mut world = world();
    world.stores.clear();
    assert_eq!(ready(&decided(&world)).reason, "Running");
    world.silent = ["n1".to_owned()].into();
    let decision = decided(&world);
    assert_eq!((short(&decision), ready(&decision).reason.as_str()), (vec![], "StoreNotFound"));
    assert!(ready(&decision).message.contains("JournalStore `default`"), "{}", ready(&decision).message);
}

#[test]
fn one_that_was_shut_down_from_inside_is_not_started() {
    let mut world = with_death(world(), death(Some(now())));
    let off = pod(&world, 3, Some("n1"), &powered_off());
    world.pods = vec![Arc::new(off)];
    assert_eq!(short(&decided(&world)), Vec::<String>::new());
}

#[test]
fn one_that_shall_be_stopped_or_deleted_does_not_wait_for_a_dead_node() {
    let mut stopped = with_death(world(), death(Some(now())));
    change(&mut stopped, |ve| ve.spec.run_mode = vivarium_api::v1alpha1::environment::RunMode::Stopped);
    assert_eq!(short(&decided(&stopped)), ["remove pod shop-3"]);
    let mut deleted = with_death(world(), death(Some(now())));
    change(&mut deleted, |ve| {
        ve.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now()));
    });
    assert_eq!(short(&decided(&deleted)), ["remove pod shop-3"]);
}

#[test]
fn a_pod_that_waits_for_room_may_go_to_a_node_that_is_back() {
    let mut world = with_death(world(), death(Some(now())));
    let Action::CreatePod(mut next) = decided(&world).actions.remove(0) else { panic!("no pod") };
    next.metadata.uid = Some("pod-4".into());
    world.pods.push(Arc::new(*next));
    assert_eq!(short(&decided(&world)), ["remove pod shop-3"]);
    let back = Death { is_back: true, ..death(Some(now())) };
    assert_eq!(short(&decided(&with_death(world, back))), ["remove pod shop-3", "delete pod shop-4"]);
}

#[test]
fn a_pod_of_a_session_that_is_over_is_removed_also_when_its_node_is_back() {
    // Perhaps its kubelet or containerd is dead, and nobody else would.
    let back = Death { is_back: true, ..death(Some(now())) };
    let mut world = with_next(with_death(world(), back));
    world.nodes.of_holder = Some("s9".into());
    assert_eq!(short(&decided(&world)), ["remove pod shop-3", "hold n2 s2 4"]);
}

#[test]
fn what_ran_under_a_session_that_another_one_has_superseded_is_started_anew() {
    // Nobody saw the node silent, and its kubelet does not say that the pod has ended.
    let mut world = world();
    held_by(&mut world, "a.machine.boot1");
    world.nodes.of_holder = Some("b.machine.boot2".into());
    let decision = decided(&world);
    assert_eq!(
        (short(&decision), ready(&decision).reason.as_str()),
        (vec!["remove pod shop-3".to_owned()], "NodeLost")
    );
    let last = world.pods.pop().unwrap();
    world.pods.push(Arc::new(terminating((*last).clone())));
    assert_eq!(short(&decided(&world)), ["remove pod shop-3"]);
    // One that was shut down from inside stays so, and one that failed is counted.
    for (status, expected) in [(powered_off(), vec![]), (failed("2026-01-01T11:00:00Z"), vec!["delete pod shop-3"])] {
        world.pods = vec![Arc::new(pod(&world, 3, Some("n1"), &status))];
        assert_eq!(short(&decided(&world)), expected);
    }
}

#[test]
fn a_second_node_that_is_silent_is_shunned_before_it_is_fenced() {
    // It has no volumes, so that nobody has a reason to fence it.
    let mut world = with_death(world(), death(None));
    world.silent = ["n1".to_owned(), "n2".to_owned()].into();
    let decision = decided(&world);
    let Action::CreatePod(next) = &decision.actions[0] else { panic!("{:?}", decision.actions) };
    assert_eq!(build::shunned(next), world.silent);
}

#[test]
fn a_pod_that_waits_for_its_volume_on_a_node_that_falls_silent_is_replaced() {
    let mut world = with_next(with_death(world(), death(Some(now()))));
    world.silent = ["n1".to_owned(), "n2".to_owned()].into();
    assert_eq!(short(&decided(&world)), ["remove pod shop-4"]);
    world.pods.pop();
    change(&mut world, |ve| ve.status.get_or_insert_default().epoch = 4);
    let again = decided(&world);
    assert_eq!(
        (short(&again), again.status.last_failover.clone().unwrap().epoch),
        (vec!["create pod shop-5".into()], 5)
    );
    // The same when the pod on the dead node was removed too.
    world.pods.clear();
    change(&mut world, |ve| ve.status = Some(again.status));
    assert_eq!(decided(&world).status.last_failover.unwrap().epoch, 6);
    // Whoever has its volume may run.
    let mut has = self::world();
    has.silent = ["n1".to_owned()].into();
    assert_eq!(short(&decided(&has)), Vec::<String>::new());
    // Nobody else could have a volume without a store.
    let mut local = with_next(self::world());
    local.silent = ["n2".to_owned()].into();
    Arc::make_mut(local.volume.as_mut().unwrap()).spec.store = None;
    assert_eq!(short(&decided(&local)), ["delete pod shop-3"]);
    // To stop or to delete waits for nobody there.
    let mut stopped = with_next(with_death(self::world(), death(Some(now()))));
    stopped.silent = ["n2".to_owned()].into();
    change(&mut stopped, |ve| ve.spec.run_mode = vivarium_api::v1alpha1::environment::RunMode::Stopped);
    assert_eq!(short(&decided(&stopped)), ["remove pod shop-3", "remove pod shop-4"]);
}

#[test]
fn a_newer_session_of_the_same_machine_proves_that_nothing_runs() {
    let mut world = world();
    held_by(&mut world, "a.machine.boot1");
    let volume = (**world.volume.as_ref().unwrap()).clone();
    for (session, expected) in
        [("a.machine.boot1", Tenure::Lives), ("b.machine.boot2", Tenure::Over), ("b.other.boot2", Tenure::Lives)]
    {
        world.nodes.of_holder = Some(session.into());
        assert_eq!(world.tenure(&volume), expected, "{session}");
    }
}

#[test]
fn the_instants_of_a_failover_are_noted_once() {
    let mut world = with_next(with_death(world(), death(Some(now()))));
    let begun = decided(&with_death(self::world(), death(None))).status;
    change(&mut world, |ve| ve.status = Some(begun));
    let waiting = decided(&world).status.last_failover.unwrap();
    assert_eq!((waiting.to_node.as_deref(), waiting.fenced, waiting.ready), (Some("n2"), None, None));
    // It runs.
    let up = pod(&world, 4, Some("n2"), &running());
    world.pods = vec![Arc::new(up)];
    let status = Arc::make_mut(world.volume.as_mut().unwrap()).status.as_mut().unwrap();
    (status.epoch, status.node) = (4, Some("n2".into()));
    status.holder = Some(vivarium_api::v1alpha1::volume::Holder { node: "n2".into(), session: "s2".into() });
    status.holder_pod = Some("pod-4".into());
    let decision = decided(&world);
    let done = decision.status.last_failover.clone().unwrap();
    for instant in [&done.fenced, &done.restored, &done.started, &done.ready] {
        assert_eq!(instant.as_ref().map(|instant| instant.0), Some(now()), "{done:?} {:?}", ready(&decision));
    }
    assert_eq!(decision.status.pod_name.as_deref(), Some(world.pods[0].name_any().as_str()));
    change(&mut world, |ve| ve.status = Some(decision.status.clone()));
    assert_eq!(decided(&world).status.last_failover, Some(done));
}
