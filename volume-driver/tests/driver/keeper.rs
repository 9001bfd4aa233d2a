//! The keeper of all journals of a node: who waits for whom, and who ends.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use crate::support::cluster::Cluster;
use crate::support::place::Place;
use crate::support::{HANG, id};
use object_store::memory::InMemory;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{sleep, timeout};
use vivarium_node::directory::VolumeName;
use vivarium_node::journal::begin::Opening;
use vivarium_node::journal::keeper::{Keeper, Superseded};
use vivarium_node::journal::log::Log;
use vivarium_store::faults::{Faults, Faulty};
use vivarium_store::{Sizes, Store};

/// Long enough for a round and a commit, much shorter than a store is waited for.
const SOON: Duration = Duration::from_secs(15);
const HANGS: Faults = Faults { slow: 1.0, ..Faults::NONE };

fn keeper(place: &Place) -> (Arc<Keeper>, UnboundedReceiver<Superseded>) {
    let cluster = Arc::new(Cluster::new("v1", "image", vec![], "64Mi"));
    let (keeper, ends) = Keeper::new(place.volumes.clone(), place.templates.clone(), cluster, Duration::from_hours(1));
    (Arc::new(keeper), ends)
}

fn faulty() -> (Arc<Faulty>, Arc<Store>) {
    let faulty = Arc::new(Faulty::new(Arc::new(InMemory::new()), 7, Faults::NONE));
    (faulty.clone(), Arc::new(Store::over("faulty", faulty, Sizes::default())))
}

async fn open(keeper: &Keeper, store: &Arc<Store>, volume: &str, epoch: u64) {
    let opening = Opening {
        id: id(volume),
        size: 16 << 20,
        room: 0,
        epoch,
        layers: vec![],
        known: 0,
        revert: None,
        source: None,
    };
    let name = VolumeName::parse("team-a/shop").unwrap();
    keeper.open(&name, Log::new(&opening.id, store.clone()).unwrap(), &opening, async || true).await.unwrap();
}

fn write(place: &Place, volume: &str, name: &str) {
    fs::write(place.volumes.live_path(&id(volume)).join("upper").join(name), name).unwrap();
}

async fn head(store: &Arc<Store>, volume: &str) -> u64 {
    Log::new(&id(volume), store.clone()).unwrap().tail(0).await.unwrap().sequence
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_hangs_holds_up_no_volume_of_another() {
    let place = Place::new();
    let ((hanging, theirs), ours) = (faulty(), Arc::new(Store::memory("ours")));
    let (keeper, _ends) = keeper(&place);
    open(&keeper, &ours, "v1", 1).await;
    let others: Vec<String> = (0..40).map(|number| format!("other{number}")).collect();
    for other in &others {
        open(&keeper, &theirs, other, 1).await;
    }
    hanging.set(HANGS);
    for other in &others {
        write(&place, other, "a");
    }
    let running = tokio::spawn(keeper.clone().run());
    // All of them wait for their store by now, as many as may.
    sleep(Duration::from_secs(3)).await;
    let before = head(&ours, "v1").await;
    write(&place, "v1", "a");
    let committed = async {
        while head(&ours, "v1").await == before {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(SOON, committed).await.expect("it waits for a store that is not its own");
    running.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waited_for_a_journal_that_is_closed_leaves_the_next_one_alone() {
    let place = Place::new();
    let (slow, store) = faulty();
    let (keeper, _ends) = keeper(&place);
    open(&keeper, &store, "v1", 1).await;
    write(&place, "v1", "a");
    slow.set(HANGS);
    let release = || {
        let keeper = keeper.clone();
        tokio::spawn(async move { keeper.release(&id("v1")).await })
    };
    // The first has the lock, and the others get it in the order in which they ask for it.
    let first = release();
    sleep(Duration::from_millis(300)).await;
    let next = {
        let (keeper, store) = (keeper.clone(), store.clone());
        tokio::spawn(async move { open(&keeper, &store, "v1", 2).await })
    };
    sleep(Duration::from_millis(100)).await;
    let late = release();
    sleep(Duration::from_millis(100)).await;
    assert!(!first.is_finished() && !next.is_finished() && !late.is_finished(), "the store did not hang");
    slow.set(Faults::NONE);
    first.await.unwrap().unwrap();
    next.await.unwrap();
    late.await.unwrap().unwrap();
    assert!(keeper.has(&id("v1")), "the journal of the next epoch was closed");
    assert_eq!(head(&store, "v1").await, 3, "a barrier, what was written, a barrier");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_incarnation_that_finds_a_later_one_is_ended_once() {
    let (a, b, store) = (Place::new(), Place::new(), Arc::new(Store::memory("store")));
    let (keeper, mut ends) = keeper(&a);
    open(&keeper, &store, "v1", 1).await;
    let running = tokio::spawn(keeper.clone().run());
    b.begin(&store, 2).await.unwrap();
    write(&a, "v1", "late");
    let end = timeout(HANG, ends.recv()).await.expect("nobody is told to end it").unwrap();
    assert_eq!(end, Superseded { volume: id("v1"), epoch: 1 });
    assert!(!keeper.has(&id("v1")), "its journal is still open");
    assert!(timeout(Duration::from_secs(2), ends.recv()).await.is_err(), "it was ended twice");
    assert_eq!(head(&store, "v1").await, 2, "the two barriers");
    running.abort();
}
