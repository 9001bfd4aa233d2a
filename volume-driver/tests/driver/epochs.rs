//! Journals on a real pool with a store in memory: epochs, restarts, restores, and who loses.

use std::fs;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectStore;
use object_store::memory::InMemory;

use crate::support::place::Place;
use crate::support::{HANG, id, soon};
use vivarium_node::journal::JournalError;
use vivarium_node::journal::begin::Origin;
use vivarium_node::journal::commit::Journal;
use vivarium_node::journal::local::Local;
use vivarium_node::journal::log::Log;
use vivarium_store::faults::{Faults, Faulty};
use vivarium_store::{Prefix, Sizes, Store};

fn store() -> Arc<Store> {
    Arc::new(Store::memory("test"))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_committed_comes_back_elsewhere_and_the_former_owner_is_out() {
    let (a, b, store) = (Place::new(), Place::new(), store());
    let (mut first, origin) = a.begin(&store, 1).await.unwrap();
    assert_eq!(origin, Origin::New);
    fs::write(a.upper("one"), b"1").unwrap();
    assert!(a.commit(&mut first).await > 0);
    fs::write(a.upper("two"), b"2").unwrap();
    assert!(a.commit(&mut first).await > 0);
    let committed = a.tree();
    assert_eq!(a.commit(&mut first).await, 0, "a volume that did not change is committed");
    fs::write(a.upper("late"), b"after the last commit").unwrap();

    let (mut second, origin) = b.begin(&store, 2).await.unwrap();
    let Origin::Restored(restored) = origin else { panic!("{origin:?}") };
    assert_eq!(restored.transactions, 2);
    assert_eq!(b.tree(), committed);
    fs::write(b.upper("three"), b"3").unwrap();
    assert!(b.commit(&mut second).await > 0);

    a.pool.sync().unwrap();
    let error = first.commit().await.unwrap_err();
    assert!(matches!(error, JournalError::Superseded { epoch: 1, current: 2, .. }), "{error}");
    assert!(matches!(a.begin(&store, 1).await, Err(JournalError::Superseded { .. })));

    // Back on the first node its stale tree is replaced.
    let committed = b.tree();
    let (mut third, origin) = a.begin(&store, 3).await.unwrap();
    assert!(matches!(origin, Origin::Restored(_)), "{origin:?}");
    assert_eq!(a.tree(), committed);
    assert!(!a.upper("late").exists());
    // What nobody else had is not thrown away.
    let aside = a.volumes.diverged().unwrap();
    assert_eq!(aside.iter().map(|d| (d.volume.as_str(), d.epoch)).collect::<Vec<_>>(), [("v1", 1)]);
    let late = a.volumes.diverged_path(&aside[0]).join("live/upper/late");
    assert_eq!(fs::read(late).unwrap(), b"after the last commit");
    a.volumes.expire_diverged(Duration::from_hours(1), std::time::SystemTime::now()).unwrap();
    assert_eq!(a.volumes.diverged().unwrap(), aside, "it is young, and there is room");
    a.volumes.expire_diverged(Duration::ZERO, std::time::SystemTime::now()).unwrap();
    assert_eq!(a.volumes.diverged().unwrap(), []);
    fs::write(a.upper("four"), b"4").unwrap();
    assert!(a.commit(&mut third).await > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_copies_the_base_does_not_hide_what_was_written_since() {
    let (a, b, store) = (Place::new(), Place::new(), store());
    let (mut journal, _) = a.begin(&store, 1).await.unwrap();
    fs::write(a.upper("one"), b"1").unwrap();
    a.commit(&mut journal).await;
    drop(journal);
    fs::write(a.upper("late"), b"2").unwrap();
    a.pool.sync().unwrap();
    // As for a trial.
    Local::open(&a.volumes, &id("v1")).unwrap().pin().unwrap().unwrap();
    a.pool.sync().unwrap();
    b.begin(&store, 2).await.unwrap();
    a.begin(&store, 3).await.unwrap();
    assert_eq!(a.volumes.diverged().unwrap().len(), 1, "it is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_a_moment_before_it_was_lost_is_set_aside() {
    let (a, b, store) = (Place::new(), Place::new(), store());
    let (mut journal, _) = a.begin(&store, 1).await.unwrap();
    fs::write(a.upper("one"), b"1").unwrap();
    a.commit(&mut journal).await;
    drop(journal);
    b.begin(&store, 2).await.unwrap();
    // In the page cache, and in no generation.
    fs::write(a.upper("late"), b"2").unwrap();
    a.begin(&store, 3).await.unwrap();
    let aside = a.volumes.diverged().unwrap();
    assert_eq!(aside.len(), 1, "it is gone");
    assert_eq!(fs::read(a.volumes.diverged_path(&aside[0]).join("live/upper/late")).unwrap(), b"2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_on_the_same_node_keeps_what_was_not_committed() {
    let (a, b, store) = (Place::new(), Place::new(), store());
    let (mut journal, _) = a.begin(&store, 1).await.unwrap();
    fs::write(a.upper("one"), b"1").unwrap();
    a.commit(&mut journal).await;
    drop(journal);
    fs::write(a.upper("two"), b"2").unwrap();
    let (mut journal, origin) = a.begin(&store, 2).await.unwrap();
    assert_eq!(origin, Origin::Here);
    assert_eq!(fs::read(a.upper("two")).unwrap(), b"2");
    assert!(a.commit(&mut journal).await > 0, "what was written between the epochs is not committed");
    // The same epoch once more, as after a restart of the driver.
    drop(journal);
    let (_, origin) = a.begin(&store, 2).await.unwrap();
    assert_eq!(origin, Origin::Here);
    let tree = a.tree();
    b.begin(&store, 3).await.unwrap();
    assert_eq!(b.tree(), tree);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_volume_has_its_directories_everywhere() {
    let (a, b, store) = (Place::new(), Place::new(), store());
    a.begin(&store, 1).await.unwrap();
    let (_, origin) = b.begin(&store, 2).await.unwrap();
    assert_eq!(origin, Origin::New);
    assert!(b.upper("").is_dir());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_is_taken_away_while_it_is_opened_is_not_restored() {
    let (a, b, store) = (Place::new(), Place::new(), store());
    let (mut journal, _) = a.begin(&store, 1).await.unwrap();
    fs::write(a.upper("one"), b"1").unwrap();
    a.commit(&mut journal).await;
    let opening = Place::opening(2);
    let lost =
        Journal::begin(&b.volumes, &b.templates, Log::new(&opening.id, store).unwrap(), &opening, async || false).await;
    assert!(matches!(lost, Err(JournalError::Lost { .. })));
    assert!(b.volumes.get(&id("v1")).is_err(), "something was made");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_volume_leaves_a_mark_alone_in_the_store() {
    let (a, store) = (Place::new(), store());
    let (mut journal, _) = a.begin(&store, 1).await.unwrap();
    // More than one object can hold: the transaction is split.
    let mut noise = vec![0; 20 << 20];
    fs::File::open("/dev/urandom").unwrap().read_exact(&mut noise).unwrap();
    fs::write(a.upper("large"), noise).unwrap();
    assert!(a.commit(&mut journal).await > 16 << 20);
    let all = || store.list(&Prefix::All, None, soon());
    assert!(all().await.unwrap().len() >= 4, "a barrier, a list of parts, two parts");
    vivarium_node::journal::log::Log::new(&id("v1"), store.clone()).unwrap().purge().await.unwrap();
    let left: Vec<String> = all().await.unwrap().iter().map(|entry| entry.key.path()).collect();
    assert_eq!(left, ["volumes/v1/deleted"]);
}

/// The store fails or loses answers, and the process dies meanwhile: the next one goes on, nothing is doubled, nothing
/// that was acknowledged is missing.
#[tokio::test(flavor = "multi_thread")]
async fn processes_that_die_while_the_store_fails_lose_nothing_and_double_nothing() {
    let failing = Faults { fails: 1.0, ..Faults::NONE };
    let silent = Faults { answer_lost: 1.0, ..Faults::NONE };
    let moody = Faults { fails: 0.3, answer_lost: 0.3, loser_told_500: 0.5, ..Faults::NONE };
    for seed in 0..3 {
        let (a, b) = (Place::new(), Place::new());
        let memory: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let faulty = Arc::new(Faulty::new(memory.clone(), seed, Faults::NONE));
        let broken = Arc::new(Store::over("broken", faulty.clone(), Sizes::default()));
        let whole = Arc::new(Store::over("whole", memory, Sizes::default()));
        let (mut journal, _) = a.begin(&broken, 1).await.unwrap();
        for step in 0..6u8 {
            fs::write(a.upper(&format!("file{step}")), vec![step; 10_000]).unwrap();
            fs::write(a.upper("same"), [step]).unwrap();
            let mode = (seed + u64::from(step)) % 3;
            faulty.set([moody, failing, silent][mode as usize]);
            a.pool.sync().unwrap();
            let enough = if mode == 1 { Duration::from_secs(3) } else { HANG };
            let committed = tokio::time::timeout(enough, journal.commit()).await;
            // A lost answer is found out; a store that fails for long is waited for.
            assert_eq!(committed.is_ok(), mode != 1, "{committed:?}");
            faulty.set(Faults::NONE);
            if mode > 0 {
                // What was written after the attempt must not get into it.
                fs::write(a.upper("same"), [step, step]).unwrap();
                drop(journal);
                journal = a.begin(&broken, 1).await.unwrap().0;
            }
        }
        a.commit(&mut journal).await;
        let last = a.tree();
        let (_, origin) = b.begin(&whole, 2).await.unwrap();
        assert!(matches!(origin, Origin::Restored(_)), "{origin:?}");
        assert_eq!(b.tree(), last, "seed {seed}");
    }
}

/// The kernel cannot name what lies deeper than 4095 bytes of path. A tenant can put something there; that is no reason to
/// lose anything, nor to stop for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_is_too_long_to_be_sent_holds_the_journal_up_until_it_is_gone() {
    use rustix::fs::{Mode, OFlags};
    let (a, b, store) = (Place::new(), Place::new(), store());
    let (mut journal, _) = a.begin(&store, 1).await.unwrap();
    a.commit(&mut journal).await;
    let name = "d".repeat(250);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let top = rustix::fs::open(a.upper(""), flags, Mode::empty()).unwrap();
    let mut at = top.try_clone().unwrap();
    for _ in 0..20 {
        rustix::fs::mkdirat(&at, &name, Mode::RWXU).unwrap();
        at = rustix::fs::openat(&at, &name, flags, Mode::empty()).unwrap();
    }
    drop(at);
    a.pool.sync().unwrap();
    let error = journal.commit().await.unwrap_err();
    assert!(matches!(error, JournalError::Capture { .. }) && error.to_string().contains("4095 bytes"), "{error}");
    // Out of the way in pieces, as nothing can name the whole.
    rustix::fs::renameat(&top, format!("{name}/{name}/{name}/{name}/{name}/{name}"), &top, "half").unwrap();
    fs::write(a.upper("after"), b"1").unwrap();
    assert!(a.commit(&mut journal).await > 0);
    let tree = a.tree();
    b.begin(&store, 2).await.unwrap();
    assert_eq!(b.tree(), tree);
}
