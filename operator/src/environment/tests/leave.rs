//! Environments that shall leave their nodes.

use std::sync::Arc;

use kube::ResourceExt;
use serde_json::json;
use vivarium_api::names;

use super::failover::world;
use super::fixtures::{change, decided, pod, short, shown, terminating};
use crate::environment::build;
use crate::environment::decision::Action;
use crate::environment::standby::Host;
use crate::environment::world::World;

fn asked(world: &mut World, epoch: &str) {
    change(world, |ve| drop(ve.annotations_mut().insert(names::ANNOTATION_MOVE_FROM.into(), epoch.into())));
}

#[test]
fn the_incarnation_that_is_meant_is_stopped_and_the_next_one_goes_elsewhere() {
    let mut world = world();
    for (epoch, expected) in [("2", vec![]), ("4", vec![]), ("x", vec![]), ("3", vec!["delete pod shop-3"])] {
        asked(&mut world, epoch);
        assert_eq!(short(&decided(&world)), expected, "{epoch}");
    }
    // It has ended in order.
    world.pods.clear();
    let status = Arc::make_mut(world.volume.as_mut().unwrap()).status.as_mut().unwrap();
    (status.holder, status.holder_pod, status.released_epoch) = (None, None, 3);
    let decision = decided(&world);
    let Action::CreatePod(next) = &decision.actions[0] else { panic!("{:?}", decision.actions) };
    assert_eq!(build::shunned(next), ["n1".to_owned()].into());
    // It stays away from the node also while it has to wait for another one, and comes back at any later start.
    let mut waiting = (**next).clone();
    waiting.metadata.uid = Some("pod-4".into());
    world.pods.push(Arc::new(waiting));
    assert_eq!(short(&decided(&world)), Vec::<String>::new());
    world.pods.clear();
    let status = Arc::make_mut(world.volume.as_mut().unwrap()).status.as_mut().unwrap();
    (status.epoch, status.released_epoch) = (4, 4);
    let decision = decided(&world);
    let Action::CreatePod(later) = &decision.actions[0] else { panic!("{:?}", decision.actions) };
    assert!(build::shunned(later).is_empty());
}

#[test]
fn the_next_incarnation_of_one_that_leaves_is_made_before_it_has_ended() {
    let leaving = |fits: bool| {
        let mut world = world();
        let ending = terminating((**world.newest_pod().unwrap()).clone());
        world.pods = vec![Arc::new(ending)];
        world.nodes.hosts = vec![Host { name: "n1".into(), fits, zone: None }];
        world
    };
    assert_eq!(short(&decided(&leaving(true))), Vec::<String>::new(), "it may be started where it is");
    let decision = decided(&leaving(false));
    assert_eq!((short(&decision), decision.status.epoch), (vec!["create pod shop-4".to_owned()], 4));
    let mut asked_to = leaving(true);
    asked(&mut asked_to, "3");
    assert_eq!(short(&decided(&asked_to)), ["create pod shop-4"]);
    let mut local = leaving(false);
    Arc::make_mut(local.volume.as_mut().unwrap()).spec.store = None;
    assert_eq!(short(&decided(&local)), Vec::<String>::new(), "nobody else could have its data");
    let mut silent = leaving(false);
    silent.silent = ["n1".to_owned()].into();
    assert_eq!(short(&decided(&silent)), Vec::<String>::new(), "it is a failover, if anything");
    let mut refused = leaving(false);
    refused.met.pod_refused = Some("exceeded quota".into());
    assert_eq!(short(&decided(&refused)), Vec::<String>::new());

    // It waits for the volume until the former one has given it back, and has no right to it if the last commit is missing.
    let mut both = leaving(false);
    both.nodes.session = Some("s2".into());
    both.pods.push(Arc::new(pod(&both, 4, Some("n2"), &json!({"phase": "Pending"}))));
    assert_eq!(short(&decided(&both)), Vec::<String>::new());
    // It may have it as soon as it was given back; the kubelet may take its time with the rest.
    let mut given_back = both.clone();
    Arc::make_mut(given_back.volume.as_mut().unwrap()).status.as_mut().unwrap().released_epoch = 3;
    assert_eq!(short(&decided(&given_back)), ["hold n2 s2 4"]);
    both.pods.remove(0);
    assert_eq!(short(&decided(&both)), ["delete pod shop-4"]);
    let status = Arc::make_mut(both.volume.as_mut().unwrap()).status.as_mut().unwrap();
    status.released_epoch = 3;
    assert_eq!(short(&decided(&both)), ["hold n2 s2 4"]);
}

#[test]
fn what_cannot_be_stopped_in_order_or_started_elsewhere_stays_and_says_why() {
    let mut silent = world();
    asked(&mut silent, "3");
    silent.silent = ["n1".to_owned()].into();
    let mut local = world();
    asked(&mut local, "3");
    Arc::make_mut(local.volume.as_mut().unwrap()).spec.store = None;
    for (world, expected) in [(silent, "kubectl ve fence n1"), (local, "no other node than n1")] {
        let decision = decided(&world);
        assert_eq!(short(&decision), Vec::<String>::new());
        let condition = shown(&decision, "UpToDate");
        assert_eq!(condition.reason, "CannotMove");
        assert!(condition.message.contains(expected), "{}", condition.message);
    }
}

#[test]
fn one_that_starts_can_leave_too() {
    let mut world = world();
    asked(&mut world, "3");
    let booting = super::fixtures::container("Running", &serde_json::json!({"running": {}}), "False");
    world.pods = vec![Arc::new(pod(&world, 3, Some("n1"), &booting))];
    assert_eq!(short(&decided(&world)), ["delete pod shop-3"]);
}
