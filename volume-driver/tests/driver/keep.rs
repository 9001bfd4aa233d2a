//! Journals that are kept short: checkpoints, what is deleted, and what can be restored afterwards.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use crate::support::place::Place;
use crate::support::{id, soon};
use object_store::memory::InMemory;
use vivarium_node::journal::JournalError;
use vivarium_node::journal::begin::Origin;
use vivarium_node::journal::commit::Journal;
use vivarium_node::journal::keep::{Kept, Memory, Policy, Subject, keep};
use vivarium_node::journal::log::{Boundary, Log};
use vivarium_node::pool::PoolError;
use vivarium_node::volume::VolumeError;
use vivarium_store::faults::{Faults, Faulty};
use vivarium_store::{Key, Name, Prefix, Sizes, Store};

/// A checkpoint whenever it is asked for, and nothing is old enough to go.
const CHECKPOINT: Policy = Policy {
    bytes: 1,
    transactions: 1,
    retention: Duration::from_hours(1),
    fine: Duration::from_hours(1),
    coarse: 60,
    deletions: usize::MAX,
    merges: usize::MAX,
};
/// Everything that can go, goes.
const COLLECT: Policy = Policy { retention: Duration::ZERO, bytes: u64::MAX, transactions: u64::MAX, ..CHECKPOINT };

fn store() -> Arc<Store> {
    Arc::new(Store::memory("test"))
}

fn log(store: &Arc<Store>) -> Log {
    Log::new(&id("v1"), store.clone()).unwrap()
}

async fn kept(place: &Place, store: &Arc<Store>, policy: &Policy) -> Result<Kept, JournalError> {
    kept_as(place, store, &subject(), policy).await
}

fn subject() -> Subject {
    Subject { volume: id("v1"), layers: vec![], size: 64 << 20, room: 0, known: 0, wanted: vec![] }
}

async fn kept_as(place: &Place, store: &Arc<Store>, subject: &Subject, policy: &Policy) -> Result<Kept, JournalError> {
    keep(&place.volumes, &place.templates, &log(store), subject, &mut Memory::default(), policy).await
}

/// Writes and commits until transaction `last`.
async fn write_to(place: &Place, journal: &mut Journal, store: &Arc<Store>, last: u64) {
    loop {
        let tail = log(store).tail(0).await.unwrap().sequence;
        if tail >= last {
            return;
        }
        fs::write(place.upper(&format!("file{}", tail % 5)), vec![tail as u8; 5000]).unwrap();
        fs::write(place.upper("newest"), tail.to_string()).unwrap();
        assert!(place.commit(journal).await > 0);
    }
}

async fn objects(store: &Arc<Store>) -> Vec<String> {
    let all = store.list(&Prefix::All, None, soon()).await.unwrap();
    all.iter().map(|entry| entry.key.path().trim_start_matches("volumes/v1/").to_owned()).collect()
}

fn nothing_is_left_over(place: &Place) {
    let names: Vec<_> =
        fs::read_dir(place.pool.path().join("volumes")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| name == "v1"), "{names:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_spares_a_restore_everything_before_it() {
    let (a, keeper, b, store) = (Place::new(), Place::new(), Place::new(), store());
    let (mut journal, _) = a.begin(&store, 1).await.unwrap();
    write_to(&a, &mut journal, &store, 8).await;
    let done = kept(&keeper, &store, &CHECKPOINT).await.unwrap();
    assert_eq!((done.checkpoint, done.boundary, done.deleted), (8, 0, 0));
    nothing_is_left_over(&keeper);
    write_to(&a, &mut journal, &store, 10).await;
    // Whoever needed them would fail.
    for sequence in 2..=7 {
        log(&store).delete(&Key::Transaction { volume: Name::new("v1").unwrap(), seq: sequence }).await.unwrap();
    }
    let tree = a.tree();
    let (_, origin) = b.begin(&store, 2).await.unwrap();
    let Origin::Restored(restored) = origin else { panic!("{origin:?}") };
    assert_eq!(restored.transactions, 3, "the checkpoint and two after it");
    assert_eq!(b.tree(), tree);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_collected_is_gone_and_what_is_left_is_enough() {
    let (a, keeper, b, store) = (Place::new(), Place::new(), Place::new(), store());
    let (mut journal, _) = a.begin(&store, 1).await.unwrap();
    write_to(&a, &mut journal, &store, 4).await;
    drop(journal);
    let (mut journal, _) = a.begin(&store, 2).await.unwrap();
    write_to(&a, &mut journal, &store, 8).await;
    kept(&keeper, &store, &CHECKPOINT).await.unwrap();
    write_to(&a, &mut journal, &store, 11).await;
    kept(&keeper, &store, &CHECKPOINT).await.unwrap();
    write_to(&a, &mut journal, &store, 12).await;
    let done = kept(&keeper, &store, &COLLECT).await.unwrap();
    assert_eq!((done.checkpoint, done.boundary), (11, 11));
    let number = |number: u64| format!("{number:020}");
    let mut expected = vec![format!("boundary/{}", number(1)), format!("checkpoint/{}", number(11))];
    // Both barriers, and everything from the boundary on.
    expected.extend([1, 5, 11, 12].map(|sequence| format!("log/{}", number(sequence))));
    assert_eq!(objects(&store).await, expected);
    // Nobody is misled by what is missing, also without a hint of where the log ends.
    assert_eq!(log(&store).tail(0).await.unwrap().sequence, 12);
    let tree = a.tree();
    let (mut second, origin) = b.begin(&store, 3).await.unwrap();
    assert!(matches!(origin, Origin::Restored(_)), "{origin:?}");
    assert_eq!(b.tree(), tree);
    write_to(&b, &mut second, &store, 15).await;
    let error = {
        a.pool.sync().unwrap();
        fs::write(a.upper("late"), b"x").unwrap();
        a.pool.sync().unwrap();
        journal.commit().await.unwrap_err()
    };
    assert!(matches!(error, JournalError::Superseded { .. }), "{error}");
    assert_eq!(kept(&keeper, &store, &COLLECT).await.unwrap().deleted, 0, "nothing more is old enough");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_that_shows_nothing_misleads_nobody() {
    let (a, keeper, b) = (Place::new(), Place::new(), Place::new());
    let memory: Arc<InMemory> = Arc::new(InMemory::new());
    let store = Arc::new(Store::over("whole", memory.clone(), Sizes::default()));
    let (mut journal, _) = a.begin(&store, 1).await.unwrap();
    write_to(&a, &mut journal, &store, 6).await;
    kept(&keeper, &store, &CHECKPOINT).await.unwrap();
    kept(&keeper, &store, &COLLECT).await.unwrap();
    write_to(&a, &mut journal, &store, 8).await;
    let blind = Arc::new(Faulty::new(memory, 1, Faults { stale_list: 1.0, ..Faults::NONE }));
    let blind = Arc::new(Store::over("blind", blind, Sizes::default()));
    assert_eq!(log(&blind).boundary().await.unwrap(), Boundary { generation: 1, sequence: 6 });
    assert_eq!(log(&blind).tail(0).await.unwrap().sequence, 8);
    let tree = a.tree();
    b.begin(&blind, 2).await.unwrap();
    assert_eq!(b.tree(), tree);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_is_damaged_is_passed_over_while_the_log_is_whole() {
    use object_store::{ObjectStoreExt, path::Path};
    let (a, keeper, b, c) = (Place::new(), Place::new(), Place::new(), Place::new());
    let memory: Arc<InMemory> = Arc::new(InMemory::new());
    let store = Arc::new(Store::over("store", memory.clone(), Sizes::default()));
    let (mut journal, _) = a.begin(&store, 1).await.unwrap();
    write_to(&a, &mut journal, &store, 6).await;
    kept(&keeper, &store, &CHECKPOINT).await.unwrap();
    let path = Path::from(Key::Checkpoint { volume: Name::new("v1").unwrap(), seq: 6 }.path());
    let mut bytes = memory.get(&path).await.unwrap().bytes().await.unwrap().to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    memory.put(&path, bytes.into()).await.unwrap();
    let tree = a.tree();
    b.begin(&store, 2).await.unwrap();
    assert_eq!(b.tree(), tree, "it was not read from the log");
    // It counts as absent: the log before it stays, and another one is made.
    let done = kept(&keeper, &store, &COLLECT).await.unwrap();
    assert_eq!((done.checkpoint, done.boundary, done.deleted), (0, 0, 0));
    let done = kept(&keeper, &store, &Policy { retention: Duration::ZERO, ..CHECKPOINT }).await.unwrap();
    assert_eq!((done.checkpoint, done.boundary), (7, 7), "{done:?}");
    // One that is damaged after the log before it is gone is an error, and no empty volume.
    let path = Path::from(Key::Checkpoint { volume: Name::new("v1").unwrap(), seq: 7 }.path());
    memory.put(&path, "no checkpoint".into()).await.unwrap();
    let Err(error) = c.begin(&store, 3).await else { panic!("something was made") };
    assert!(matches!(error, JournalError::Read { .. } | JournalError::Damaged { .. }), "{error}");
    assert!(c.volumes.get(&id("v1")).is_err());
    nothing_is_left_over(&c);
}

/// A checkpoint that is whole, but of another state than that of its transaction.
#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_of_another_state_counts_as_damaged() {
    use object_store::{ObjectStoreExt, path::Path};
    let (a, keeper, b) = (Place::new(), Place::new(), Place::new());
    let memory: Arc<InMemory> = Arc::new(InMemory::new());
    let store = Arc::new(Store::over("store", memory.clone(), Sizes::default()));
    let (mut journal, _) = a.begin(&store, 1).await.unwrap();
    write_to(&a, &mut journal, &store, 4).await;
    kept(&keeper, &store, &CHECKPOINT).await.unwrap();
    let checkpoint = Path::from(Key::Checkpoint { volume: Name::new("v1").unwrap(), seq: 4 }.path());
    let transaction = Path::from(Key::Transaction { volume: Name::new("v1").unwrap(), seq: 4 }.path());
    let mut bytes = memory.get(&checkpoint).await.unwrap().bytes().await.unwrap().to_vec();
    let theirs = memory.get(&transaction).await.unwrap().bytes().await.unwrap();
    let digest = &theirs[theirs.len() - 40..theirs.len() - 8];
    let at = bytes.windows(32).position(|part| part == digest).expect("it names its transaction");
    bytes[at] ^= 1;
    let end = bytes.len() - 40;
    let sealed = *blake3::hash(&bytes[..end]).as_bytes();
    bytes[end..end + 32].copy_from_slice(&sealed);
    memory.put(&checkpoint, bytes.into()).await.unwrap();
    let done = kept(&keeper, &store, &COLLECT).await.unwrap();
    assert_eq!((done.boundary, done.deleted), (0, 0));
    let tree = a.tree();
    b.begin(&store, 2).await.unwrap();
    assert_eq!(b.tree(), tree);
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_that_nothing_is_made_of_go_once_their_number_is_decided() {
    use object_store::{ObjectStoreExt, path::Path};
    let (a, keeper, b) = (Place::new(), Place::new(), Place::new());
    let memory: Arc<InMemory> = Arc::new(InMemory::new());
    let store = Arc::new(Store::over("store", memory.clone(), Sizes { part: 4000, ..Sizes::default() }));
    let (mut journal, _) = a.begin(&store, 1).await.unwrap();
    write_to(&a, &mut journal, &store, 4).await;
    // Of two attempts to add transactions, whose writers died before they added the lists of parts.
    let writer = |number: u64| Name::new(format!("01{number:016x}{:014x}", 7)).unwrap();
    let part = |number| Key::Part { volume: Name::new("v1").unwrap(), writer: writer(number), number: 0 };
    for number in [3, 5] {
        memory.put(&Path::from(part(number).path()), "part".into()).await.unwrap();
    }
    let are_there =
        async || [store.exists(&part(3), soon()).await.unwrap(), store.exists(&part(5), soon()).await.unwrap()];
    assert_eq!(kept(&keeper, &store, &CHECKPOINT).await.unwrap().deleted, 1);
    assert_eq!(are_there().await, [false, true], "whoever adds number 5 may be slow");
    let noise: Vec<u8> = (0u64..2000).flat_map(|i| scattered(i).to_le_bytes()).collect();
    fs::write(a.upper("noise"), noise).unwrap();
    assert!(a.commit(&mut journal).await > 8000);
    write_to(&a, &mut journal, &store, 7).await;
    kept(&keeper, &store, &CHECKPOINT).await.unwrap();
    assert_eq!(are_there().await, [false, false]);
    // A list that arrives when its parts are gone and its number is passed holds nothing up.
    let parts = Prefix::Parts(Name::new("v1").unwrap());
    let own: Vec<_> = store.list(&parts, None, soon()).await.unwrap().into_iter().map(|listed| listed.key).collect();
    let is_of_5 = |key: &Key| matches!(key.part_of(), Some((Key::Transaction { seq: 5, .. }, _)));
    let of_5: Vec<_> = own.into_iter().filter(is_of_5).collect();
    assert!(of_5.len() > 2, "{of_5:?}");
    store.delete_whole(&of_5, soon()).await.unwrap();
    let done = kept(&keeper, &store, &COLLECT).await.unwrap();
    assert_eq!(done.boundary, 7);
    assert!(!objects(&store).await.contains(&"log/00000000000000000005".to_owned()));
    b.begin(&store, 2).await.unwrap();
    assert_eq!(b.tree(), a.tree());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_does_not_fill_the_pool_of_the_node_that_keeps_it() {
    let (a, keeper, store) = (Place::new(), Place::new(), store());
    let (mut journal, _) = a.begin(&store, 1).await.unwrap();
    let noise: Vec<u8> = (0u64..7_500_000).flat_map(|i| scattered(i).to_le_bytes()).collect();
    fs::write(a.upper("noise"), noise).unwrap();
    assert!(a.commit(&mut journal).await > 0);
    // As much as its pool would hold.
    let small = Subject { size: 4 << 20, ..subject() };
    let Err(error) = kept_as(&keeper, &store, &small, &CHECKPOINT).await else { panic!("60 MB in a volume of 4") };
    assert!(matches!(error, JournalError::Apply { .. }), "{error}");
    nothing_is_left_over(&keeper);
    let large = Subject { room: 10 << 30, ..subject() };
    let Err(error) = kept_as(&keeper, &store, &large, &CHECKPOINT).await else { panic!("there is no such room") };
    assert!(matches!(error, JournalError::Volume(VolumeError::Pool(PoolError::Full { .. }))), "{error}");
    assert_eq!(kept(&keeper, &store, &CHECKPOINT).await.unwrap().checkpoint, 2);
    let mut files: Vec<_> = fs::read_dir(keeper.pool.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["claims", "snapshots", "templates", "volumes"], "nothing else is left");
}

/// Numbers that do not compress.
fn scattered(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

/// The store fails and loses answers, and the process dies at any moment: the volume can be restored, and the next attempt
/// brings the collection to its end.
#[tokio::test(flavor = "multi_thread")]
async fn a_collection_that_breaks_off_anywhere_loses_nothing() {
    let everything = Policy { retention: Duration::ZERO, ..CHECKPOINT };
    let mut finished = 0;
    for seed in 0..16 {
        let (a, keeper, b) = (Place::new(), Place::new(), Place::new());
        let memory: Arc<InMemory> = Arc::new(InMemory::new());
        let store = Arc::new(Store::over("whole", memory.clone(), Sizes::default()));
        let (mut journal, _) = a.begin(&store, 1).await.unwrap();
        write_to(&a, &mut journal, &store, 4).await;
        let faults = Faults { fails: 0.1, answer_lost: 0.1, stale_list: 0.2, ..Faults::NONE };
        let broken = Arc::new(Store::over("broken", Arc::new(Faulty::new(memory, seed, faults)), Sizes::default()));
        let life = Duration::from_millis(20 + seed * 40);
        let attempt = tokio::time::timeout(life, kept(&keeper, &broken, &everything)).await;
        finished += u32::from(matches!(attempt, Ok(Ok(_))));
        let tree = a.tree();
        b.begin(&store, 2).await.unwrap();
        assert_eq!(b.tree(), tree, "seed {seed}");
        let done = kept(&keeper, &store, &everything).await.unwrap();
        assert_eq!(done.boundary, done.checkpoint);
    }
    assert!((1..16).contains(&finished), "{finished} of 16 were finished: the moments are badly chosen");
}
