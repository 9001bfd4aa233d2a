//! Where the copy of a volume is kept, and how an environment is moved to it.

use std::sync::Arc;

use kube::ResourceExt;
use serde_json::{Value, json};
use vivarium_api::names;
use vivarium_api::v1alpha1::environment::LastMove;

use super::fixtures::{change, condition_json, container, decided, now, pod, running, short, shown, store, with_pod};
use crate::environment::decision::Action;
use crate::environment::standby::{Host, choose};
use crate::environment::world::World;
use crate::nodes::Death;

fn host(name: &str, zone: &str) -> Host {
    Host { name: name.into(), zone: Some(zone.into()), fits: true }
}

/// Incarnation 3 runs on n1; its volume has a journal that every node reaches, and `status` beside.
fn world(standby: u32, status: &Value) -> World {
    let mut world = with_pod(&json!({"durability": {"standby": standby}}), 3, &running());
    world.stores = vec![Arc::new(store())];
    let volume = Arc::make_mut(world.volume.as_mut().unwrap());
    (volume.spec.store, volume.spec.standby) = (Some("default".into()), standby);
    let mut whole = serde_json::to_value(volume.status.as_ref().unwrap()).unwrap();
    for (key, value) in status.as_object().unwrap() {
        whole[key] = value.clone();
    }
    volume.status = Some(serde_json::from_value(whole).unwrap());
    world.nodes.of_holder = Some("s1".into());
    world.nodes.hosts = vec![host("n1", "a"), host("n2", "a"), host("n3", "b")];
    world
}

fn followed(node: &str) -> Value {
    json!({"standby": {"node": node, "sequence": 7}, "conditions": [condition_json("Published", "True", "Published", ""),
        condition_json("Standby", "True", "CaughtUp", "")]})
}

fn to(world: &mut World, node: &str) {
    change(world, |ve| drop(ve.annotations_mut().insert(names::ANNOTATION_MOVE_TO.into(), node.into())));
}

fn chosen(world: &World) -> Option<String> {
    choose(world, world.volume.as_ref().unwrap())
}

#[test]
fn the_copy_is_on_another_node_best_in_another_zone_and_stays_there() {
    let fresh = world(1, &json!({}));
    assert_eq!(chosen(&fresh).as_deref(), Some("n3"));
    assert_eq!(short(&decided(&fresh)), ["hold n1 s1 3 copy n3"]);
    let settled = world(1, &followed("n2"));
    assert_eq!(chosen(&settled).as_deref(), Some("n2"), "it does not wander");
    assert_eq!(short(&decided(&settled)), Vec::<String>::new());
    for (what, spoil) in [
        ("cordoned", Box::new(|world: &mut World| world.nodes.hosts[1].fits = false) as Box<dyn Fn(&mut World)>),
        ("gone", Box::new(|world: &mut World| drop(world.nodes.hosts.remove(1)))),
        (
            "dead",
            Box::new(|world: &mut World| {
                let death = Death { node: "n2".into(), is_back: false, detected: now(), over: [].into() };
                world.deaths = Arc::new([("s2".to_owned(), death)].into());
            }),
        ),
        (
            "the holder",
            Box::new(|world: &mut World| {
                Arc::make_mut(world.volume.as_mut().unwrap()).status.as_mut().unwrap().node = Some("n2".into());
            }),
        ),
    ] {
        let mut world = world(1, &followed("n2"));
        spoil(&mut world);
        assert_ne!(chosen(&world).as_deref(), Some("n2"), "{what}");
        assert!(chosen(&world).is_some(), "{what}");
    }
    // A node that is silent may be back in a moment; nothing is begun on it.
    let silent = |mut world: World, node: &str| {
        world.silent = [node.to_owned()].into();
        chosen(&world)
    };
    assert_eq!(silent(settled, "n2").as_deref(), Some("n2"));
    assert_eq!(silent(fresh, "n3").as_deref(), Some("n2"));
    let mut alone = world(1, &followed("n2"));
    alone.nodes.hosts.truncate(1);
    assert_eq!(chosen(&alone), None);
    let Some(Action::ReplaceVolumeStatus(volume)) = decided(&alone).actions.pop() else { panic!("nothing is done") };
    let status = volume.status.unwrap();
    assert_eq!(status.standby, None);
    assert!(status.conditions.iter().all(|condition| condition.type_ != "Standby"), "it spoke of another copy");
}

#[test]
fn there_is_no_copy_of_what_nobody_wants_copied_or_nobody_can_copy() {
    assert_eq!(chosen(&world(0, &json!({}))), None);
    assert_eq!(chosen(&world(0, &followed("n2"))), None, "it is given up");
    let mut local = world(1, &json!({}));
    Arc::make_mut(local.volume.as_mut().unwrap()).spec.store = None;
    assert_eq!(chosen(&local), None);
    let mut unplaced = world(1, &json!({}));
    Arc::make_mut(unplaced.volume.as_mut().unwrap()).status.as_mut().unwrap().node = None;
    assert_eq!(chosen(&unplaced), None);
}

#[test]
fn the_wish_of_the_environment_reaches_the_volume() {
    let mut world = world(1, &followed("n2"));
    Arc::make_mut(world.volume.as_mut().unwrap()).spec.standby = 0;
    assert_eq!(short(&decided(&world)), ["Copied volume shop"]);
}

#[test]
fn copies_are_spread_over_the_nodes() {
    let mut counts = std::collections::BTreeMap::<String, u32>::new();
    for number in 0..200 {
        let mut world = world(1, &json!({}));
        world.nodes.hosts.iter_mut().for_each(|host| host.zone = None);
        Arc::make_mut(world.volume.as_mut().unwrap()).metadata.uid = Some(format!("uid-{number}"));
        *counts.entry(chosen(&world).unwrap()).or_default() += 1;
    }
    assert!(counts.len() == 2 && counts.values().all(|count| *count > 60), "{counts:?}");
}

/// Preferred nodes of the pod that is made when `world` has none, and the one that it must go to.
fn places(mut world: World) -> (Vec<(String, i64)>, Option<String>) {
    world.pods.clear();
    let decision = decided(&world);
    let Some(Action::CreatePod(pod)) = decision.actions.first() else { panic!("{:?}", short(&decision)) };
    let affinity = serde_json::to_value(&pod.spec.as_ref().unwrap().affinity).unwrap();
    let preferred = affinity["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"].as_array().cloned();
    let preferred = preferred.unwrap_or_default().into_iter().map(|term| {
        let node = term["preference"]["matchFields"][0]["values"][0].as_str().unwrap().to_owned();
        (node, term["weight"].as_i64().unwrap())
    });
    (preferred.collect(), crate::environment::build::bound_to(pod))
}

#[test]
fn a_start_goes_to_the_last_node_first_and_to_the_one_with_the_copy_next() {
    let mut released = followed("n2");
    released["releasedEpoch"] = 3.into();
    assert_eq!(places(world(1, &released)), (vec![("n1".into(), 100), ("n2".into(), 60)], None));
    let mut unmade = released.clone();
    unmade["standby"] = json!({"node": "n2"});
    assert_eq!(places(world(1, &unmade)), (vec![("n1".into(), 100)], None));
    let mut dead = world(1, &released);
    let death = Death {
        node: "n1".into(),
        is_back: false,
        detected: now(),
        over: [("default".to_owned(), Some(now()))].into(),
    };
    dead.deaths = Arc::new([("s1".to_owned(), death)].into());
    assert_eq!(places(dead), (vec![("n2".into(), 60)], None));
}

#[test]
fn a_move_prepares_a_copy_stops_and_starts_there() {
    // There is none yet: it is made, and the environment goes on.
    let mut moved = world(0, &json!({}));
    to(&mut moved, "n2");
    let decision = decided(&moved);
    assert_eq!(short(&decision), ["hold n1 s1 3 copy n2"]);
    assert_eq!(shown(&decision, "UpToDate").reason, "Moving");
    // It does not follow yet.
    let mut behind = followed("n2");
    behind["conditions"][1] = condition_json("Standby", "False", "CatchingUp", "");
    let mut moved = world(0, &behind);
    to(&mut moved, "n2");
    assert_eq!(short(&decided(&moved)), Vec::<String>::new());
    // It does.
    let mut moved = world(0, &followed("n2"));
    to(&mut moved, "n2");
    let decision = decided(&moved);
    assert_eq!(short(&decision), ["delete pod shop-3"]);
    let begun = decision.status.last_move.clone().unwrap();
    assert_eq!((begun.epoch, begun.from_node.as_str(), begun.to_node.as_str()), (3, "n1", "n2"));
    assert_eq!((begun.stopping.0, &begun.stopped, &begun.ready), (now(), &None, &None));
    // It is down, and all that it wrote is in the journal.
    change(&mut moved, |ve| ve.status = Some(decision.status));
    Arc::make_mut(moved.volume.as_mut().unwrap()).status.as_mut().unwrap().released_epoch = 3;
    assert_eq!(places(moved.clone()), (vec![], Some("n2".into())));
    let next = pod(&moved, 4, Some("n2"), &running());
    moved.pods = vec![Arc::new(next)];
    let status = Arc::make_mut(moved.volume.as_mut().unwrap()).status.as_mut().unwrap();
    (status.epoch, status.node, status.holder_pod) = (4, Some("n2".into()), Some("pod-4".into()));
    status.holder = Some(vivarium_api::v1alpha1::volume::Holder { node: "n2".into(), session: "s1".into() });
    let done = decided(&moved);
    assert_eq!(short(&done)[0], "end move");
    let last = done.status.last_move.unwrap();
    for instant in [&last.stopped, &last.started, &last.ready] {
        assert_eq!(instant.as_ref().map(|instant| instant.0), Some(now()), "{last:?}");
    }
}

#[test]
fn an_environment_that_shall_leave_its_node_is_stopped_once_and_does_not_come_back_by_a_move() {
    let leaves = |world: &mut World| {
        change(world, |ve| drop(ve.annotations_mut().insert(names::ANNOTATION_MOVE_FROM.into(), "3".into())));
    };
    let mut both = world(1, &followed("n2"));
    to(&mut both, "n2");
    leaves(&mut both);
    let decision = decided(&both);
    assert_eq!(short(&decision), ["delete pod shop-3"]);
    assert_eq!(decision.status.last_move.unwrap().to_node, "n2");
    // Whoever asks for the node that it is on has that already.
    let mut here = world(1, &followed("n2"));
    to(&mut here, "n1");
    leaves(&mut here);
    assert_eq!(short(&decided(&here)), ["end move", "delete pod shop-3"]);
    let mut released = followed("n2");
    released["releasedEpoch"] = 3.into();
    let mut left = world(1, &released);
    to(&mut left, "n1");
    leaves(&mut left);
    assert_eq!(places(left), (vec![("n2".into(), 60)], None));
}

#[test]
fn a_move_that_cannot_be_says_why_and_stops_nothing() {
    let cordoned = |world: &mut World| world.nodes.hosts[1].fits = false;
    let local = |world: &mut World| Arc::make_mut(world.volume.as_mut().unwrap()).spec.store = None;
    for (node, spoil, said) in [
        ("n9", Box::new(|_: &mut World| {}) as Box<dyn Fn(&mut World)>, "no such node"),
        ("n2", Box::new(cordoned), "cordoned"),
        ("n2", Box::new(local), "in no store"),
    ] {
        let mut world = world(0, &json!({}));
        to(&mut world, node);
        spoil(&mut world);
        let decision = decided(&world);
        assert_eq!(short(&decision), Vec::<String>::new(), "{said}");
        let shown = shown(&decision, "UpToDate");
        assert_eq!(shown.reason, "CannotMove");
        assert!(shown.message.contains(said), "{}", shown.message);
    }
}

#[test]
fn a_move_whose_last_commit_failed_is_not_tried_again_at_once() {
    let mut world = world(0, &followed("n2"));
    to(&mut world, "n2");
    let last = |seconds| LastMove {
        epoch: 2,
        from_node: "n1".into(),
        to_node: "n2".into(),
        stopping: k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(
            now() - jiff::SignedDuration::from_secs(seconds),
        ),
        stopped: None,
        started: None,
        ready: None,
    };
    for (ago, expected) in [(60, vec![]), (700, vec!["delete pod shop-3"])] {
        change(&mut world, |ve| ve.status.get_or_insert_default().last_move = Some(last(ago)));
        assert_eq!(short(&decided(&world)), expected, "{ago} s");
    }
}

#[test]
fn a_pod_that_waits_for_the_node_of_a_move_is_replaced_when_that_is_given_up() {
    let mut released = followed("n2");
    released["releasedEpoch"] = 3.into();
    let mut world = world(0, &released);
    to(&mut world, "n2");
    world.pods.clear();
    let Some(Action::CreatePod(mut next)) = decided(&world).actions.into_iter().next() else { panic!("no pod") };
    next.metadata.uid = Some("pod-4".into());
    next.status = Some(serde_json::from_value(container("Pending", &json!({}), "False")).unwrap());
    world.pods = vec![Arc::new(*next)];
    assert!(!short(&decided(&world)).contains(&"delete pod shop-4".to_owned()));
    change(&mut world, |ve| ve.annotations_mut().clear());
    assert!(short(&decided(&world)).contains(&"delete pod shop-4".to_owned()), "{:?}", short(&decided(&world)));
}
