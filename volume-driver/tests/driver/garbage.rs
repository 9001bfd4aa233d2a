//! What lies in a store and belongs to no journal that is kept: what of it goes, and what stays for ever.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::soon;
use jiff::{SignedDuration, Timestamp};
use object_store::memory::InMemory;
use vivarium_node::garbage::{Cluster, Found, GarbageError, Named, Policy, Unnamed, sweep};
use vivarium_node::ids::{LayerDigest, VolumeId};
use vivarium_node::journal::log::Log;
use vivarium_store::faults::{Faults, Faulty};
use vivarium_store::{Key, Name, Prefix, Sizes, Source, Store};

const AT_ONCE: Policy = Policy { grace: Duration::ZERO, abandoned: Duration::ZERO, layers: 100, deletions: 100 };

/// A store whose objects of more than 100 bytes are split.
fn store() -> Arc<Store> {
    Arc::new(Store::over("test", Arc::new(InMemory::new()), Sizes { part: 100, in_flight: 2 }))
}

fn volume(name: &str) -> VolumeId {
    VolumeId::parse(name).unwrap()
}

fn layer(number: u32) -> LayerDigest {
    LayerDigest::parse(&format!("sha256:{number:064x}")).unwrap()
}

fn layer_key(number: u32) -> Key {
    Key::Layer { digest: Name::new(layer(number).directory()).unwrap() }
}

fn transaction(volume: &str, seq: u64) -> Key {
    Key::Transaction { volume: Name::new(volume).unwrap(), seq }
}

async fn put(store: &Store, key: Key, length: usize) {
    let content = vec![7; length];
    let digest = *blake3::hash(&content).as_bytes();
    store.create(&key, Source::Bytes(content.into()), digest, soon()).await.unwrap();
}

async fn objects(store: &Store) -> Vec<String> {
    store.list(&Prefix::All, None, soon()).await.unwrap().iter().map(|entry| entry.key.path()).collect()
}

fn names(volumes: &[&str], layers: &[u32]) -> Named {
    Named {
        volumes: volumes.iter().map(|name| volume(name)).collect(),
        layers: layers.iter().map(|number| layer(*number)).collect(),
    }
}

/// What it says, the last first, and then nothing.
struct Says(Mutex<Vec<Named>>);

impl Cluster for Says {
    async fn named(&self) -> Result<Named, GarbageError> {
        let said = self.0.lock().unwrap().pop();
        said.ok_or_else(|| GarbageError::Named("no answer".into()))
    }
}

async fn swept(store: &Arc<Store>, named: &Named, noted: &[Unnamed], policy: &Policy) -> Found {
    sweep(store, named, noted, policy, Timestamp::now()).await.unwrap()
}

#[tokio::test]
async fn a_journal_that_nobody_knows_stays_unless_it_was_marked_as_deleted() {
    let store = store();
    for name in ["kept", "unknown", "deleted"] {
        put(&store, transaction(name, 1), 50).await;
    }
    let log = Log::new(&volume("deleted"), store.clone()).unwrap();
    log.purge().await.unwrap();
    assert_eq!(log.list_all().await.unwrap().len(), 1, "the mark remains");
    // What was under way arrives.
    put(&store, transaction("deleted", 2), 300).await;
    let week = Policy { abandoned: Duration::ZERO, ..Policy::default() };
    let found = swept(&store, &names(&["kept"], &[]), &[], &week).await;
    assert_eq!(found.unknown, 50);
    let left = ["volumes/deleted/deleted", &transaction("kept", 1).path(), &transaction("unknown", 1).path()];
    assert_eq!(objects(&store).await, left, "what came late is gone, and the mark is there for what comes yet");
    swept(&store, &names(&["kept"], &[]), &[], &AT_ONCE).await;
    assert_eq!(objects(&store).await, left[1..]);
    // Without its object a volume is not taken for deleted, however often it is asked.
    let log = Log::new(&volume("unknown"), store.clone()).unwrap();
    assert_eq!(log.finish_purge().await.unwrap(), None);
    assert_eq!(objects(&store).await, left[1..]);
}

#[tokio::test]
async fn a_volume_that_the_cluster_knows_is_left_alone_even_if_it_is_marked() {
    let store = store();
    let log = Log::new(&volume("v"), store.clone()).unwrap();
    log.purge().await.unwrap();
    put(&store, transaction("v", 1), 50).await;
    swept(&store, &names(&["v"], &[]), &[], &AT_ONCE).await;
    assert_eq!(objects(&store).await.len(), 2, "whoever deletes it does that");
}

#[tokio::test]
async fn a_layer_goes_when_nothing_has_named_it_for_long_enough() {
    let store = store();
    for number in [1, 2, 3] {
        put(&store, layer_key(number), 250 * usize::try_from(number).unwrap()).await;
    }
    let day = Policy { grace: Duration::from_hours(24), ..AT_ONCE };
    let named = names(&[], &[1]);
    let found = swept(&store, &named, &[], &day).await;
    let noted: Vec<_> = found.unnamed.iter().map(|noted| noted.layer.clone()).collect();
    assert_eq!(noted, [layer(2), layer(3)]);
    assert!(store.exists(&layer_key(2), soon()).await.unwrap(), "it was just noted");
    let again = swept(&store, &named, &found.unnamed, &day).await;
    assert_eq!(again, found, "remembered as it was");
    // A day later, and one of them is named again meanwhile.
    let mut noted = found.unnamed;
    for noted in &mut noted {
        noted.since -= SignedDuration::from_hours(24);
    }
    let found = swept(&store, &names(&[], &[1, 3]), &noted, &day).await;
    assert_eq!(found.unnamed, []);
    let left = objects(&store).await;
    assert!(left.iter().all(|path| !path.contains(&layer(2).directory())), "{left:?}");
    for number in [1, 3] {
        assert!(store.read(&layer_key(number), 1000, soon()).await.unwrap().is_some(), "layer {number}");
    }
    let listed = store.list(&Prefix::Layers, None, soon()).await.unwrap();
    assert_eq!(found.layers, listed.iter().map(|entry| entry.size).sum::<u64>());
}

#[tokio::test]
async fn a_layer_that_is_named_at_the_last_moment_stays() {
    let store = store();
    put(&store, layer_key(1), 50).await;
    let cluster = Says(Mutex::new(vec![names(&[], &[1]), names(&[], &[])]));
    sweep(&store, &cluster, &[], &AT_ONCE, Timestamp::now()).await.unwrap();
    assert_eq!(*cluster.0.lock().unwrap(), [], "it was asked twice");
    assert!(store.exists(&layer_key(1), soon()).await.unwrap());
}

#[tokio::test]
async fn no_layer_goes_while_there_is_a_journal_that_may_need_it() {
    let store = store();
    put(&store, layer_key(1), 50).await;
    put(&store, transaction("unknown", 1), 50).await;
    let since = Timestamp::now() - SignedDuration::from_hours(1000);
    let found = swept(&store, &names(&[], &[]), &[Unnamed { layer: layer(1), since }], &AT_ONCE).await;
    assert_eq!((found.unnamed, found.unknown), (vec![], 50));
    assert!(store.exists(&layer_key(1), soon()).await.unwrap());
}

#[tokio::test]
async fn parts_that_a_layer_is_not_made_of_go_and_those_of_one_that_is_to_come_stay() {
    let store = store();
    put(&store, layer_key(1), 250).await;
    let part = |number: u32| Key::LayerPart {
        digest: Name::new(layer(number).directory()).unwrap(),
        writer: Name::new("0".repeat(32)).unwrap(),
        number: 0,
    };
    for number in [1, 2, 3] {
        put(&store, part(number), 20).await;
    }
    swept(&store, &names(&[], &[1, 2]), &[], &AT_ONCE).await;
    let mut there = Vec::new();
    for number in [1, 2, 3] {
        there.push(store.exists(&part(number), soon()).await.unwrap());
    }
    assert_eq!(there, [false, true, false], "of another writer; its writer may be slow; nothing names it");
    assert_eq!(store.read(&layer_key(1), 1000, soon()).await.unwrap().unwrap().bytes.len(), 250);
}

#[tokio::test]
async fn old_beats_and_trials_go_and_fences_stay() {
    let store = store();
    let session = Name::new("s").unwrap();
    put(&store, Key::Fence { session: session.clone() }, 10).await;
    put(&store, Key::Beat { session: session.clone(), number: 1 }, 10).await;
    put(&store, Key::Probe { proof: session, number: 1 }, 10).await;
    assert_eq!(swept(&store, &names(&[], &[]), &[], &Policy::default()).await.others, 30, "they may be in use");
    assert_eq!(objects(&store).await.len(), 3);
    assert_eq!(swept(&store, &names(&[], &[]), &[], &AT_ONCE).await.others, 10);
    assert_eq!(objects(&store).await, ["fence/s"]);
}

/// The store fails, loses answers and lists less than there is: what somebody may need stays.
#[tokio::test]
async fn a_store_that_fails_makes_nothing_garbage() {
    let mut finished = 0;
    for seed in 0..40 {
        let objects = Faulty::new(Arc::new(InMemory::new()), seed, Faults::NONE);
        let store = Arc::new(Store::over("test", Arc::new(objects.clone()), Sizes { part: 100, in_flight: 2 }));
        for number in [1, 2] {
            put(&store, layer_key(number), 250).await;
        }
        for name in ["kept", "unknown"] {
            put(&store, transaction(name, 1), 250).await;
        }
        put(&store, Key::Fence { session: Name::new("s").unwrap() }, 10).await;
        let whole = self::objects(&store).await;
        objects.set(Faults { fails: 0.05, answer_lost: 0.05, stale_list: 0.2, ..Faults::NONE });
        for _ in 0..3 {
            // Without an answer of the cluster nothing is known.
            let cluster = Says(Mutex::new(if seed % 2 == 0 { vec![names(&["kept"], &[1])] } else { vec![] }));
            let done = sweep(&store, &cluster, &[], &AT_ONCE, Timestamp::now()).await;
            finished += usize::from(done.is_ok());
        }
        objects.set(Faults::NONE);
        let mut left = self::objects(&store).await;
        left.retain(|path| !path.starts_with("probe/"));
        assert_eq!(left, whole, "seed {seed}");
    }
    assert!(finished > 20, "{finished}");
}
