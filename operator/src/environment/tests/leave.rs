//! Environments that shall leave their nodes.

use std::sync::Arc;

use kube::ResourceExt;
use vivarium_api::names;

use super::failover::world;
use super::fixtures::{change, decided, pod, short, shown};
use crate::environment::build;
use crate::environment::decision::Action;
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
