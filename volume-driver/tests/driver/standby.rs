//! Copies that follow a log on a real pool, and become the volume.

use crate::support;
use std::fs;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::id;
use crate::support::place::Place;
use vivarium_node::journal::JournalError;
use vivarium_node::journal::begin::Origin;
use vivarium_node::journal::commit::Journal;
use vivarium_node::journal::log::Log;
use vivarium_node::journal::standby::{Followed, Follower, drop_standby};
use vivarium_node::journal::tree::digest;
use vivarium_node::pool::PoolSource;
use vivarium_node::volume::Volumes;
use vivarium_store::{Backend, Config, Store};

pub const ROOM: u64 = 1 << 20;

/// Makes a copy useless.
type Spoil = Box<dyn Fn()>;

pub fn store() -> Arc<Store> {
    Arc::new(Store::memory("test"))
}

pub fn follower(volumes: &Volumes, store: &Arc<Store>) -> Follower {
    let log = Log::new(&id("v1"), store.clone()).unwrap();
    Follower { volumes: volumes.clone(), id: id("v1"), size: 64 << 20, log, layers: vec![] }
}

pub fn copy(place: &Place) -> PathBuf {
    place.pool.volumes_path().join(".standby-v1")
}

/// Follows until there is nothing more; tells the transactions that were carried out since the copy was made.
pub async fn follow(place: &Place, store: &Arc<Store>) -> usize {
    let mut moved = 0;
    loop {
        match follower(&place.volumes, store).step(&place.templates, 0, ROOM).await.unwrap() {
            Followed::Same(_) => return moved,
            Followed::Moved { count, .. } => moved += count,
            Followed::Made(_) => {}
            Followed::Nothing => panic!("there is nothing to follow"),
        }
    }
}

pub fn same_tree(a: &Place, copy: PathBuf) {
    let source = a.volumes.get(&id("v1")).unwrap();
    let copy = fs::File::open(copy).unwrap();
    assert_eq!(digest(copy.as_fd()).unwrap(), digest(source.directory.as_fd()).unwrap());
}

/// A change of some kind, and its commit.
pub async fn change(place: &Place, journal: &mut Journal, round: u32) {
    let upper = place.upper("");
    fs::write(upper.join(format!("file{round}")), vec![round as u8; 5000 + round as usize]).unwrap();
    if round > 1 {
        let _ = fs::rename(upper.join(format!("file{}", round - 1)), upper.join("renamed"));
    }
    if round.is_multiple_of(3) {
        fs::create_dir_all(upper.join(format!("dir{round}/below"))).unwrap();
        let _ = fs::remove_file(upper.join("renamed"));
    }
    assert!(place.commit(journal).await > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_follows_and_becomes_the_volume_with_what_came_last() {
    let (a, b, c, store) = (Place::new(), Place::new(), Place::new(), store());
    let (mut first, _) = a.begin(&store, 1).await.unwrap();
    assert_eq!(
        follower(&b.volumes, &store).step(&b.templates, 0, ROOM).await.unwrap(),
        Followed::Nothing,
        "there are only barriers"
    );
    assert!(!copy(&b).exists());
    for round in 1..4 {
        change(&a, &mut first, round).await;
    }
    assert_eq!(follow(&b, &store).await, 0, "it is made from the log");
    same_tree(&a, copy(&b).join("live"));
    for round in 4..10 {
        change(&a, &mut first, round).await;
        assert_eq!(follow(&b, &store).await, 1);
        same_tree(&a, copy(&b).join("live"));
    }
    // Two more that the copy has not seen, and one that nobody has.
    fs::write(a.volumes.live_path(&id("v1")).join("work/left"), b"what overlayfs had under way").unwrap();
    for round in 10..12 {
        change(&a, &mut first, round).await;
    }
    let committed = a.volumes.get(&id("v1")).unwrap();
    let committed = digest(committed.directory.as_fd()).unwrap();
    fs::write(a.upper("late"), b"in no transaction").unwrap();
    let (mut second, origin) = b.begin(&store, 2).await.unwrap();
    let Origin::TakenOver(taken) = origin else { panic!("{origin:?}") };
    assert_eq!(taken.transactions, 2);
    assert_eq!(fs::read_dir(b.volumes.live_path(&id("v1")).join("work")).unwrap().count(), 0);
    let barrier = Log::new(&id("v1"), store.clone()).unwrap().tail(0).await.unwrap().sequence;
    let base = fs::File::open(b.volumes.directory_path(&id("v1")).join(format!("base.{barrier}"))).unwrap();
    assert_eq!(digest(base.as_fd()).unwrap(), committed);
    assert!(!copy(&b).exists());
    assert_eq!(fs::read_dir(b.pool.volumes_path()).unwrap().count(), 1, "something is left over");
    // The former owner is out, the new one goes on, and another node restores just that.
    a.pool.sync().unwrap();
    assert!(matches!(first.commit().await, Err(JournalError::Superseded { .. })));
    for round in 20..23 {
        change(&b, &mut second, round).await;
    }
    let (_, origin) = c.begin(&store, 3).await.unwrap();
    assert!(matches!(origin, Origin::Restored(_)), "{origin:?}");
    same_tree(&b, c.volumes.live_path(&id("v1")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_was_cut_off_or_does_not_fit_is_made_anew_and_never_taken_over() {
    let (a, b, store) = (Place::new(), Place::new(), store());
    let (mut journal, _) = a.begin(&store, 1).await.unwrap();
    for round in 1..4 {
        change(&a, &mut journal, round).await;
    }
    let state = copy(&b).join("standby.json");
    let spoil: [(&str, Spoil); 4] = [
        ("cut off half way", {
            let state = state.clone();
            Box::new(move || fs::remove_file(&state).unwrap())
        }),
        ("a state that cannot be read", {
            let state = state.clone();
            Box::new(move || fs::write(&state, b"{").unwrap())
        }),
        ("of another log", {
            let state = state.clone();
            Box::new(move || {
                let text = fs::read_to_string(&state).unwrap();
                let mut stored: serde_json::Value = serde_json::from_str(&text).unwrap();
                stored["digest"] = "ab".repeat(32).into();
                fs::write(&state, stored.to_string()).unwrap();
            })
        }),
        ("from beyond the log", {
            let state = state.clone();
            Box::new(move || {
                let text = fs::read_to_string(&state).unwrap();
                let mut stored: serde_json::Value = serde_json::from_str(&text).unwrap();
                stored["sequence"] = 1000.into();
                fs::write(&state, stored.to_string()).unwrap();
            })
        }),
    ];
    for (round, (what, spoil)) in (4u64..).zip(spoil) {
        follow(&b, &store).await;
        // Something that no transaction holds: whoever finds it later has not made the copy anew.
        fs::write(copy(&b).join("live/upper/spoiled"), b"x").unwrap();
        spoil();
        change(&a, &mut journal, round as u32).await;
        if what != "from beyond the log" {
            let step = follower(&b.volumes, &store).step(&b.templates, 0, ROOM).await;
            match step {
                Ok(Followed::Made(_)) => {}
                Err(JournalError::Damaged { .. }) if what == "of another log" => assert!(!copy(&b).exists()),
                other => panic!("{what}: {other:?}"),
            }
            follow(&b, &store).await;
            same_tree(&a, copy(&b).join("live"));
            fs::write(copy(&b).join("live/upper/spoiled"), b"x").unwrap();
            spoil();
        }
        let (_, origin) = b.begin(&store, 2 * round).await.unwrap();
        assert!(matches!(origin, Origin::Restored(_)), "{what}: {origin:?}");
        assert!(!b.upper("spoiled").exists() && !copy(&b).exists(), "{what}");
        same_tree(&a, b.volumes.live_path(&id("v1")));
        b.volumes.delete(&id("v1")).unwrap();
        (journal, _) = a.begin(&store, 2 * round + 1).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_collected_below_a_copy_makes_it_anew() {
    use vivarium_node::journal::keep::{Memory, Policy, Subject, keep};
    let (a, b, store) = (Place::new(), Place::new(), store());
    let (mut journal, _) = a.begin(&store, 1).await.unwrap();
    change(&a, &mut journal, 1).await;
    follow(&b, &store).await;
    for round in 2..6 {
        change(&a, &mut journal, round).await;
    }
    let all = Policy {
        bytes: 1,
        transactions: 1,
        retention: Duration::ZERO,
        fine: Duration::ZERO,
        coarse: 0,
        deletions: usize::MAX,
        merges: 0,
    };
    let subject = Subject { volume: id("v1"), layers: vec![], size: 64 << 20, room: 0, known: 0, wanted: vec![] };
    let log = Log::new(&id("v1"), store.clone()).unwrap();
    let kept = keep(&a.volumes, &a.templates, &log, &subject, &mut Memory::default(), &all).await.unwrap();
    assert!(kept.deleted > 0, "{kept:?}");
    let known = log.tail(0).await.unwrap().sequence;
    let error = follower(&b.volumes, &store).step(&b.templates, known, ROOM).await.unwrap_err();
    assert!(matches!(error, JournalError::Damaged { .. }), "{error}");
    follow(&b, &store).await;
    same_tree(&a, copy(&b).join("live"));
}

/// The limit holds after every way in which a volume can come to a node, and what is in it is counted.
#[tokio::test(flavor = "multi_thread")]
async fn the_size_of_a_volume_holds_after_a_takeover_and_after_a_restore() {
    const MIB: u64 = 1 << 20;
    let (a, store) = (Place::new(), store());
    let (mut journal, _) = a.begin(&store, 1).await.unwrap();
    let noise: Vec<u8> = (0..20 * MIB).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    fs::write(a.upper("noise"), &noise).unwrap();
    a.commit(&mut journal).await;
    for (epoch, standby) in [(2, true), (3, false)] {
        let b = Place::new();
        if standby {
            follow(&b, &store).await;
            // The group of a copy is not taken for one that nobody needs.
            b.volumes.sweep_quota();
        }
        let (_, origin) = b.begin(&store, epoch).await.unwrap();
        assert_eq!(matches!(origin, Origin::TakenOver(_)), standby, "{origin:?}");
        b.pool.sync().unwrap();
        let usage = b.volumes.usage(&id("v1")).unwrap().expect("the kernel counts");
        assert!((20 * MIB..24 * MIB).contains(&usage.used), "{usage:?}");
        // 64 MiB, and 16 MiB of headroom.
        assert_eq!(usage.limit, 80 * MIB);
        let mut written = 0;
        let error = loop {
            let path = b.upper(&format!("fill{written}"));
            if let Err(error) = fs::write(&path, &noise[..4 << 20]).and_then(|()| fs::File::open(&path)?.sync_all()) {
                break error;
            }
            written += 1;
            assert!(written < 40, "nothing stops it");
        };
        assert_eq!(error.kind(), std::io::ErrorKind::QuotaExceeded, "{error}");
        assert!((11..=15).contains(&written), "{} MiB could be written", written * 4);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_taken_over_while_it_is_being_worked_on() {
    let (a, store) = (Place::new(), store());
    let (mut journal, _) = a.begin(&store, 1).await.unwrap();
    change(&a, &mut journal, 1).await;
    let b = Arc::new(Place::new());
    follow(&b, &store).await;
    let mut taken = 0;
    for epoch in 2..8 {
        for round in 10 * epoch..10 * epoch + 5 {
            change(&a, &mut journal, round).await;
        }
        let works = {
            let (b, store) = (b.clone(), store.clone());
            tokio::spawn(async move { follower(&b.volumes, &store).step(&b.templates, 0, ROOM).await })
        };
        tokio::time::sleep(Duration::from_millis(u64::from(epoch) * 3)).await;
        let (_, origin) = b.begin(&store, 2 * u64::from(epoch)).await.unwrap();
        works.await.unwrap().ok();
        taken += u32::from(matches!(origin, Origin::TakenOver(_)));
        same_tree(&a, b.volumes.live_path(&id("v1")));
        drop_standby(&b.volumes, &id("v1")).unwrap();
        b.volumes.delete(&id("v1")).unwrap();
        (journal, _) = a.begin(&store, 2 * u64::from(epoch) + 1).await.unwrap();
        follow(&b, &store).await;
    }
    assert_eq!(taken, 6, "a copy that is being worked on is waited for");
}

/// Process that [`a_follower_that_is_killed_at_any_moment_leaves_no_half_of_anything`] kills.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "is started by another test"]
async fn child() {
    let Ok(state) = std::env::var("VIVARIUM_TEST_STATE") else { return };
    let source = PoolSource::File { size: support::POOL_SIZE };
    let pool = Arc::new(vivarium_node::pool::Pool::open("n1", &source, state.as_ref()).unwrap());
    let volumes = Volumes::open(pool.clone()).unwrap();
    let templates = vivarium_node::template::TemplateCache::open(pool, vec![], support::LIMITS).unwrap();
    let store = shared(&std::env::var("VIVARIUM_TEST_STORE").unwrap());
    println!("follows");
    loop {
        follower(&volumes, &store).step(&templates, 0, ROOM).await.unwrap();
    }
}

pub fn shared(path: &str) -> Arc<Store> {
    let config = Config { name: "test".into(), backend: Backend::Local { directory: path.into() }, mirrors: vec![] };
    Arc::new(Store::open(&config).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_is_killed_at_any_moment_leaves_no_half_of_anything() {
    use std::io::BufRead;
    let directory = tempfile::tempdir().unwrap();
    let store = shared(directory.path().to_str().unwrap());
    let (a, b) = (Place::new(), Place::new());
    let (mut journal, _) = a.begin(&store, 1).await.unwrap();
    change(&a, &mut journal, 1).await;
    let (mut cut, mut whole) = (0, 0);
    for round in 0..24u32 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "standby::child", "--nocapture"])
            .env("VIVARIUM_TEST_STATE", b.node.state())
            .env("VIVARIUM_TEST_STORE", directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.map_while(Result::ok).any(|line| line.contains("follows")), "the child did not start");
        change(&a, &mut journal, round + 2).await;
        change(&a, &mut journal, round + 100).await;
        tokio::time::sleep(Duration::from_millis(u64::from(round % 8) * 7)).await;
        child.kill().unwrap();
        child.wait().unwrap();
        match (copy(&b).exists(), copy(&b).join("standby.json").exists()) {
            (true, false) => cut += 1,
            (true, true) => whole += 1,
            _ => {}
        }
        let volumes = Volumes::open(b.pool.clone()).unwrap();
        assert!(volumes.standbys().unwrap().len() <= 1);
        follow(&b, &store).await;
        same_tree(&a, copy(&b).join("live"));
    }
    assert!(whole > 0, "no copy was ever whole");
    println!("{cut} copies were cut off, {whole} were whole");
    let (_, origin) = b.begin(&store, 2).await.unwrap();
    assert!(matches!(origin, Origin::TakenOver(_)), "{origin:?}");
    same_tree(&a, b.volumes.live_path(&id("v1")));
}

/// What a takeover saves. Run with `--ignored --nocapture`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures, and asserts nothing about time"]
async fn a_takeover_beside_a_restore() {
    let (a, store) = (Place::new(), store());
    let (mut journal, _) = a.begin(&store, 1).await.unwrap();
    let block: Vec<u8> = (0..10_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
    for directory in 0..20 {
        fs::create_dir(a.upper(&format!("d{directory}"))).unwrap();
        for file in 0..100 {
            fs::write(a.upper(&format!("d{directory}/f{file}")), &block).unwrap();
        }
    }
    a.commit(&mut journal).await;
    for round in 1..200 {
        change(&a, &mut journal, round).await;
    }
    for (epoch, standby) in [(2, true), (3, false), (4, true), (5, false)] {
        let b = Place::new();
        if standby {
            follow(&b, &store).await;
        }
        let begun = Instant::now();
        let (_, origin) = b.begin(&store, epoch).await.unwrap();
        println!("2000 files, 200 transactions: {:?} in {} ms", origin, begun.elapsed().as_millis());
    }
}
