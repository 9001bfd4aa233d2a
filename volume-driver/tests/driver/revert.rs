//! Former states that are brought back: what is there then, that the journal goes on, and that a crash loses nothing.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::support::id;
use crate::support::place::Place;
use object_store::memory::InMemory;
use vivarium_node::journal::JournalError;
use vivarium_node::journal::begin::Origin;
use vivarium_node::journal::commit::Journal;
use vivarium_node::journal::keep::{Memory, Policy, Subject, keep};
use vivarium_node::journal::log::Log;
use vivarium_node::journal::revert::{Revert, Reverted};
use vivarium_store::faults::{Faults, Faulty};
use vivarium_store::{Key, Name, Sizes, Store};

const SIZE: u64 = 64 << 20;

fn log(store: &Arc<Store>) -> Log {
    Log::new(&id("v1"), store.clone()).unwrap()
}

async fn revert(place: &Place, journal: &mut Journal, sequence: u64) -> Result<Reverted, JournalError> {
    static ORDERS: AtomicU64 = AtomicU64::new(0);
    let order = ORDERS.fetch_add(1, Ordering::Relaxed).to_string();
    journal.revert(&place.templates, &Revert { order, from: None, sequence, paths: vec![] }, SIZE).await
}

/// A tree with some of everything.
fn furnish(place: &Place) {
    fs::create_dir_all(place.upper("etc/ssh")).unwrap();
    fs::write(place.upper("etc/ssh/key"), b"secret").unwrap();
    fs::set_permissions(place.upper("etc/ssh/key"), PermissionsExt::from_mode(0o600)).unwrap();
    fs::hard_link(place.upper("etc/ssh/key"), place.upper("etc/same")).unwrap();
    symlink("/etc/ssh/key", place.upper("etc/link")).unwrap();
    fs::write(place.upper("big"), vec![7; 3 << 20]).unwrap();
    rustix::fs::lsetxattr(place.upper("etc/ssh"), "trusted.overlay.opaque", b"y", rustix::fs::XattrFlags::empty())
        .unwrap();
    let whiteout = rustix::fs::makedev(0, 0);
    let kind = rustix::fs::FileType::CharacterDevice;
    rustix::fs::mknodat(rustix::fs::CWD, place.upper("gone"), kind, rustix::fs::Mode::empty(), whiteout).unwrap();
}

/// Makes something else of it.
fn wreck(place: &Place) {
    fs::remove_dir_all(place.upper("etc")).unwrap();
    fs::remove_file(place.upper("gone")).unwrap();
    fs::rename(place.upper("big"), place.upper("moved")).unwrap();
    fs::write(place.upper("etc"), b"a file by now").unwrap();
}

fn nothing_is_left_over(place: &Place) {
    let names: Vec<_> =
        fs::read_dir(place.pool.path().join("volumes")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["v1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_former_state_comes_back_and_the_way_back_is_open() {
    let (a, b, store) = (Place::new(), Place::new(), Arc::new(Store::memory("test")));
    let (mut journal, _) = a.begin(&store, 1).await.unwrap();
    furnish(&a);
    a.commit(&mut journal).await;
    let (good, furnished) = (log(&store).tail(0).await.unwrap(), a.tree());
    wreck(&a);
    a.commit(&mut journal).await;
    // This is in no transaction yet.
    fs::write(a.upper("last"), b"written last").unwrap();
    let wrecked = a.tree();
    let reverted = revert(&a, &mut journal, good.sequence).await.unwrap();
    assert_eq!(a.tree(), furnished);
    nothing_is_left_over(&a);
    assert_eq!(reverted.before.sequence, good.sequence + 2, "what was written last was committed first");
    assert_eq!(reverted.head.sequence, good.sequence + 3, "one transaction brings it back");
    assert_eq!(log(&store).tail(0).await.unwrap(), reverted.head);
    // History goes on, here and elsewhere.
    fs::write(a.upper("after"), b"x").unwrap();
    a.commit(&mut journal).await;
    let after = a.tree();
    drop(journal);
    let (mut journal, origin) = b.begin(&store, 2).await.unwrap();
    assert!(matches!(origin, Origin::Restored(_)), "{origin:?}");
    assert_eq!(b.tree(), after);
    // The restore is undone.
    let undone = revert(&b, &mut journal, reverted.before.sequence).await.unwrap();
    assert_eq!(b.tree(), wrecked);
    // Twice is once.
    let twice = revert(&b, &mut journal, reverted.before.sequence).await.unwrap();
    assert_eq!((twice.before, b.tree()), (undone.head, wrecked));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_before_the_first_change_is_an_empty_volume() {
    let (a, store) = (Place::new(), Arc::new(Store::memory("test")));
    let (mut journal, _) = a.begin(&store, 1).await.unwrap();
    let fresh = fs::read_dir(a.upper("..")).unwrap().count();
    furnish(&a);
    a.commit(&mut journal).await;
    revert(&a, &mut journal, 1).await.unwrap();
    assert_eq!(fs::read_dir(a.upper("")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(a.upper("..")).unwrap().count(), fresh);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_cannot_be_had_leaves_everything_as_it_is() {
    let (a, keeper, memory) = (Place::new(), Place::new(), Arc::new(InMemory::new()));
    let store = Arc::new(Store::over("test", memory, Sizes::default()));
    let (mut journal, _) = a.begin(&store, 1).await.unwrap();
    for round in 0..4 {
        fs::write(a.upper("file"), round.to_string()).unwrap();
        a.commit(&mut journal).await;
    }
    let tree = a.tree();
    for (sequence, word) in [(99, "not kept"), (0, "not kept")] {
        let error = revert(&a, &mut journal, sequence).await.unwrap_err();
        assert!(error.is_final() && error.to_string().contains(word), "{error}");
    }
    let everything = Policy { bytes: 1, transactions: 1, retention: Duration::ZERO, ..Policy::default() };
    let subject = Subject { volume: id("v1"), layers: vec![], size: 64 << 20, room: 0, known: 0, wanted: vec![] };
    let (volumes, templates) = (&keeper.volumes, &keeper.templates);
    keep(volumes, templates, &log(&store), &subject, &mut Memory::default(), &everything).await.unwrap();
    let error = revert(&a, &mut journal, 3).await.unwrap_err();
    assert!(error.is_final() && error.to_string().contains("not kept"), "{error}");
    assert_eq!(a.tree(), tree);
    // One whose log has a hole.
    fs::write(a.upper("file"), b"5").unwrap();
    a.commit(&mut journal).await;
    fs::write(a.upper("file"), b"6").unwrap();
    a.commit(&mut journal).await;
    let tree = a.tree();
    log(&store).delete(&Key::Transaction { volume: Name::new("v1").unwrap(), seq: 6 }).await.unwrap();
    let error = revert(&a, &mut journal, 7).await.unwrap_err();
    assert!(error.is_final(), "{error}");
    assert_eq!(a.tree(), tree);
    nothing_is_left_over(&a);
    fs::write(a.upper("file"), b"it goes on").unwrap();
    assert!(a.commit(&mut journal).await > 0);
}

/// Runs something in a process of its own, so to speak: nothing of it runs any more afterwards. Whether it came to its end.
fn cut_off<T: Send>(after: Duration, work: impl Future<Output = Result<T, JournalError>> + Send) -> bool {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // Its end waits for what runs on its threads.
            let runtime = tokio::runtime::Runtime::new().unwrap();
            matches!(runtime.block_on(async { tokio::time::timeout(after, work).await }), Ok(Ok(_)))
        });
        thread.join().unwrap()
    })
}

/// The store fails and loses answers, and the process dies at any moment: the volume is as it was or as it was to become,
/// the journal has everything that was written, and the next attempt brings it to its end.
#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_breaks_off_anywhere_is_done_again() {
    let mut finished = 0;
    for seed in 0..12 {
        let (a, b) = (Place::new(), Place::new());
        let memory: Arc<InMemory> = Arc::new(InMemory::new());
        let store = Arc::new(Store::over("whole", memory.clone(), Sizes::default()));
        let (mut journal, _) = a.begin(&store, 1).await.unwrap();
        furnish(&a);
        a.commit(&mut journal).await;
        let (good, furnished) = (log(&store).tail(0).await.unwrap().sequence, a.tree());
        wreck(&a);
        a.commit(&mut journal).await;
        fs::write(a.upper("last"), b"written last").unwrap();
        let wrecked = a.tree();
        drop(journal);
        let faults = Faults { fails: 0.1, answer_lost: 0.1, stale_list: 0.2, ..Faults::NONE };
        let broken = Arc::new(Store::over("broken", Arc::new(Faulty::new(memory, seed, faults)), Sizes::default()));
        finished += u32::from(cut_off(Duration::from_millis(20 << seed), async {
            let (mut journal, _) = a.begin(&broken, 2).await?;
            revert(&a, &mut journal, good).await
        }));
        let tree = a.tree();
        assert!(tree == wrecked || tree == furnished, "seed {seed}");
        let (mut journal, _) = a.begin(&store, 3).await.unwrap();
        revert(&a, &mut journal, good).await.unwrap();
        assert_eq!(a.tree(), furnished, "seed {seed}");
        drop(journal);
        let (mut journal, _) = b.begin(&store, 4).await.unwrap();
        assert_eq!(b.tree(), furnished, "seed {seed}");
        // What was written last is in the journal, before the restore.
        let mut found = false;
        for sequence in good + 1..log(&store).tail(0).await.unwrap().sequence {
            revert(&b, &mut journal, sequence).await.unwrap();
            found |= b.tree() == wrecked;
        }
        assert!(found, "seed {seed}: what was written last is lost");
    }
    assert!((1..12).contains(&finished), "{finished} of 12 were finished: the moments are badly chosen");
}
