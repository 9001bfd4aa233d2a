//! Journals in two stores at once: gaps are closed by who goes on, and either store is enough.

use std::fs;
use std::sync::Arc;

use crate::support::id;
use crate::support::place::Place;
use object_store::memory::InMemory;
use object_store::{ObjectStoreExt, path::Path};
use vivarium_node::journal::JournalError;
use vivarium_node::journal::begin::Origin;
use vivarium_node::journal::commit::Journal;
use vivarium_node::journal::log::Log;
use vivarium_node::journal::standby::{Followed, Follower};
use vivarium_store::{Key, Name, Prefix, Sizes, Store};

/// Two stores, and both as one.
fn stores() -> [Arc<Store>; 3] {
    let (first, mirror) = (Store::memory("first"), Store::memory("mirror"));
    let both = first.clone().with_mirrors(vec![mirror.clone()]);
    [first, mirror, both].map(Arc::new)
}

/// Commits as a process does that dies before the mirror has it.
async fn commit_to_the_first(place: &Place, first: &Arc<Store>, epoch: u64) {
    let log = Log::new(&id("v1"), first.clone()).unwrap();
    let mut journal = Journal::resume(&place.volumes, &place.templates, log, &Place::opening(epoch)).unwrap();
    assert!(place.commit(&mut journal).await > 0);
}

async fn objects(store: &Store) -> usize {
    store
        .list(&Prefix::All, None, tokio::time::Instant::now() + std::time::Duration::from_secs(60))
        .await
        .unwrap()
        .len()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_over_closes_the_gap_and_each_store_is_enough() {
    let (a, b, c, [first, mirror, both]) = (Place::new(), Place::new(), Place::new(), stores());
    let (mut journal, _) = a.begin(&both, 1).await.unwrap();
    fs::write(a.upper("one"), "1").unwrap();
    assert!(a.commit(&mut journal).await > 0);
    drop(journal);
    fs::write(a.upper("two"), "2").unwrap();
    commit_to_the_first(&a, &first, 1).await;
    assert!(objects(&mirror).await < objects(&first).await);

    let (mut journal, origin) = b.begin(&both, 2).await.unwrap();
    assert!(matches!(origin, Origin::Restored(restored) if restored.transactions == 2), "{origin:?}");
    assert_eq!((fs::read(b.upper("two")).unwrap(), objects(&mirror).await), (b"2".to_vec(), objects(&first).await));
    fs::write(b.upper("three"), "3").unwrap();
    assert!(b.commit(&mut journal).await > 0);
    let tree = b.tree();
    for (epoch, store) in [(3, &first), (3, &mirror)] {
        let (_, origin) = c.begin(store, epoch).await.unwrap();
        assert!(matches!(origin, Origin::Restored(_)), "{origin:?}");
        assert_eq!(c.tree(), tree);
        c.volumes.delete(&id("v1")).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_a_store_has_that_was_given_up_counts_for_nobody() {
    let (a, b, [first, mirror, both]) = (Place::new(), Place::new(), stores());
    let (mut journal, _) = a.begin(&both, 1).await.unwrap();
    fs::write(a.upper("one"), "1").unwrap();
    assert!(a.commit(&mut journal).await > 0);
    drop(journal);
    let acknowledged = a.tree();
    let follower = Follower {
        volumes: b.volumes.clone(),
        id: id("v1"),
        size: 64 << 20,
        log: Log::new(&id("v1"), first.clone()).unwrap(),
        layers: vec![],
    };
    assert!(matches!(follower.step(&b.templates, 0, 0).await.unwrap(), Followed::Made(_)));
    fs::write(a.upper("two"), "2").unwrap();
    commit_to_the_first(&a, &first, 1).await;
    // A copy that runs ahead has it.
    assert!(matches!(follower.step(&b.templates, 0, 0).await.unwrap(), Followed::Moved { .. }));

    let (_, origin) = b.begin(&mirror, 2).await.unwrap();
    assert!(matches!(origin, Origin::Restored(_)), "the copy was taken over: {origin:?}");
    assert_eq!(b.tree(), acknowledged);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_or_lost_in_the_first_store_is_read_of_its_mirror() {
    let (a, b, c) = (Place::new(), Place::new(), Place::new());
    let memory = Arc::new(InMemory::new());
    let first = Arc::new(Store::over("first", memory.clone(), Sizes::default()));
    let both = Arc::new(Store::clone(&first).with_mirrors(vec![Store::memory("mirror")]));
    let (mut journal, _) = a.begin(&both, 1).await.unwrap();
    for name in ["one", "two", "three", "four"] {
        fs::write(a.upper(name), name).unwrap();
        assert!(a.commit(&mut journal).await > 0);
    }
    drop(journal);
    let key = |seq| Path::from(Key::Transaction { volume: Name::new("v1").unwrap(), seq }.path());
    let mut bytes = memory.get(&key(2)).await.unwrap().bytes().await.unwrap().to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    memory.put(&key(2), bytes.into()).await.unwrap();
    memory.delete(&key(3)).await.unwrap();
    memory.put(&key(5), "no header".into()).await.unwrap();

    let Err(error) = c.begin(&first, 2).await else { panic!("it was not damaged") };
    assert!(matches!(error, JournalError::Read { .. } | JournalError::Damaged { .. }), "{error}");
    b.begin(&both, 2).await.unwrap();
    assert_eq!(b.tree(), a.tree());
}
