//! A node that comes back, on a real pool: what it had of a volume becomes its standby copy.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde_json::json;
use vivarium_api::v1alpha1::volume::StandbyStatus;
use vivarium_journal::Digest;
use vivarium_node::directory::VolumeName;
use vivarium_node::journal::JournalError;
use vivarium_node::journal::begin::{Opening, Origin};
use vivarium_node::journal::commit::Journal;
use vivarium_node::journal::local::Local;
use vivarium_node::journal::log::Log;
use vivarium_node::journal::rejoin::{Former, Rejoined};
use vivarium_node::journal::standby::{Followed, drop_standby};
use vivarium_node::journal::tree::digest;
use vivarium_node::pool::{Pool, PoolSource};
use vivarium_node::volume::{Volumes, limit_for};
use vivarium_store::Store;
use vivarium_sys::btrfs;

use crate::standby::{ROOM, change, copy, follow, follower, same_tree, shared, store};
use crate::support::cluster::Cluster;
use crate::support::place::Place;
use crate::support::{HANG, POOL_SIZE, TestNode, id};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;

fn former(volumes: &Volumes) -> Former {
    Former { volumes: volumes.clone(), id: id("v1"), size: SIZE, log: "v1".into() }
}

fn rejoin(place: &Place) -> Rejoined {
    former(&place.volumes).rejoin().unwrap()
}

fn tree(path: &Path) -> Digest {
    digest(fs::File::open(path).unwrap().as_fd()).unwrap()
}

fn live(place: &Place) -> std::path::PathBuf {
    place.volumes.live_path(&id("v1"))
}

/// Names beside the live subvolume of the copy.
fn beside(place: &Place) -> Vec<String> {
    let names = fs::read_dir(copy(place)).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name != "live").collect();
    names.sort();
    names
}

/// The one tree that is set aside.
fn aside(place: &Place) -> std::path::PathBuf {
    let all = place.volumes.diverged().unwrap();
    assert_eq!(all.len(), 1, "{all:?}");
    place.volumes.diverged_path(&all[0]).join("live")
}

async fn step(place: &Place, store: &Arc<Store>) -> Result<Followed, JournalError> {
    follower(&place.volumes, store).step(&place.templates, 0, ROOM).await
}

/// A volume that was on `a` and is on `b` now, with some commits on either.
async fn moved(a: &Place, b: &Place, store: &Arc<Store>) -> Journal {
    let (mut first, _) = a.begin(store, 1).await.unwrap();
    for round in 1..5 {
        change(a, &mut first, round).await;
    }
    let (mut second, _) = b.begin(store, 2).await.unwrap();
    for round in 5..8 {
        change(b, &mut second, round).await;
    }
    second
}

/// All kinds of changes that no commit has seen.
fn diverge(place: &Place) {
    let upper = place.upper("");
    fs::write(upper.join("late"), b"in no transaction").unwrap();
    fs::write(upper.join("file4"), b"something else").unwrap();
    fs::File::options().append(true).open(upper.join("kept")).unwrap().set_len(70_000).unwrap();
    fs::File::options().write(true).open(upper.join("holes")).unwrap().write_all_at(b"x", 40_000).unwrap();
    fs::remove_file(upper.join("gone")).unwrap();
    fs::remove_dir_all(upper.join("tree")).unwrap();
    fs::write(upper.join("tree"), b"a file where a directory was").unwrap();
    fs::rename(upper.join("here"), upper.join("there")).unwrap();
    fs::rename(upper.join("one"), upper.join("swap")).unwrap();
    fs::rename(upper.join("two"), upper.join("one")).unwrap();
    fs::rename(upper.join("swap"), upper.join("two")).unwrap();
    fs::remove_file(upper.join("link")).unwrap();
    symlink("elsewhere", upper.join("link")).unwrap();
    fs::hard_link(upper.join("kept"), upper.join("again")).unwrap();
    rustix::fs::setxattr(upper.join("kept"), "user.a", b"2", rustix::fs::XattrFlags::empty()).unwrap();
    rustix::fs::chmod(upper.join("kept"), 0o600.into()).unwrap();
}

/// What [`diverge`] changes.
fn furnish(place: &Place) {
    let upper = place.upper("");
    let noise: Vec<u8> = (0..100_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
    fs::write(upper.join("kept"), &noise).unwrap();
    rustix::fs::setxattr(upper.join("kept"), "user.a", b"1", rustix::fs::XattrFlags::empty()).unwrap();
    fs::File::create(upper.join("holes")).unwrap().set_len(1 << 20).unwrap();
    for (name, content) in [("gone", "g"), ("here", "h"), ("one", "1"), ("two", "2")] {
        fs::write(upper.join(name), content).unwrap();
    }
    fs::create_dir_all(upper.join("tree/below")).unwrap();
    fs::write(upper.join("tree/below/leaf"), &noise[..9000]).unwrap();
    symlink("somewhere", upper.join("link")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_had_that_comes_back_follows_and_nothing_is_made_anew() {
    let (a, b, store) = (Place::new(), Place::new(), store());
    let second = moved(&a, &b, &store).await;
    drop(second);
    let (committed, subvolume) = (tree(&live(&a)), a.volumes.get(&id("v1")).unwrap().info);
    let head = Local::open(&a.volumes, &id("v1")).unwrap().head();
    assert_eq!(rejoin(&a), Rejoined { at: Some(head), set_aside: None });
    assert!(a.volumes.get(&id("v1")).is_err(), "the volume is still here");
    assert_eq!(a.volumes.diverged().unwrap(), []);
    assert_eq!(beside(&a), ["standby.json"]);
    assert_eq!(tree(&copy(&a).join("live")), committed);
    let root = fs::File::open(copy(&a).join("live")).unwrap();
    assert_eq!(btrfs::subvolume_info(root.as_fd()).unwrap().uuid, subvolume.uuid, "its blocks are counted elsewhere");
    let (_, limit) = btrfs::qgroup_usage(a.pool.uuid(), btrfs::Qgroup::new(1, subvolume.id)).unwrap();
    assert_eq!(limit, 2 * limit_for(SIZE), "it is on the way from one state to another");
    // The barrier, and what came after it.
    let moved = step(&a, &store).await.unwrap();
    assert!(matches!(moved, Followed::Moved { count: 4, more: false, .. }), "{moved:?}");
    same_tree(&b, copy(&a).join("live"));
    let (mut third, origin) = a.begin(&store, 3).await.unwrap();
    assert!(matches!(origin, Origin::TakenOver(_)), "{origin:?}");
    same_tree(&b, live(&a));
    assert_eq!(a.volumes.usage(&id("v1")).unwrap().unwrap().limit, limit_for(SIZE));
    change(&a, &mut third, 9).await;
    // And so on.
    assert!(rejoin(&b).at.is_some());
    assert!(matches!(step(&b, &store).await.unwrap(), Followed::Moved { .. }));
    same_tree(&a, copy(&b).join("live"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_alone_had_is_set_aside_and_is_not_in_the_copy() {
    let (a, b, store) = (Place::new(), Place::new(), store());
    let (mut first, _) = a.begin(&store, 1).await.unwrap();
    furnish(&a);
    for round in 1..5 {
        change(&a, &mut first, round).await;
    }
    let committed = tree(&live(&a));
    let (mut second, _) = b.begin(&store, 2).await.unwrap();
    change(&b, &mut second, 5).await;
    diverge(&a);
    let written = tree(&live(&a));
    assert_ne!(written, committed);
    let rejoined = rejoin(&a);
    assert!(rejoined.at.is_some() && rejoined.set_aside == Some(1), "{rejoined:?}");
    assert_eq!(tree(&copy(&a).join("live")), committed);
    assert_eq!(tree(&aside(&a)), written, "something of it is lost");
    assert_eq!(beside(&a), ["shared.json", "standby.json"]);
    let moved = step(&a, &store).await.unwrap();
    assert!(matches!(moved, Followed::Moved { count: 2, .. }), "{moved:?}");
    same_tree(&b, copy(&a).join("live"));
    assert_eq!(tree(&aside(&a)), written, "what is set aside changes with the copy");
    let (_, origin) = a.begin(&store, 3).await.unwrap();
    assert!(matches!(origin, Origin::TakenOver(_)), "{origin:?}");
    same_tree(&b, live(&a));
}

/// Numbers that follow from a seed (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % end as u64) as usize
    }
}

/// Changes among a few names, so that they meet; what cannot be done is not.
fn mess(root: &Path, random: &mut Random) {
    use rustix::fs::{FallocateFlags, XattrFlags};
    for _ in 0..40 {
        let path = |random: &mut Random| {
            let directory = ["", "d0", "d1", "d0/d2", "d1/d3"][random.below(5)];
            root.join(directory).join(format!("{}{}", ["f", "d"][random.below(2)], random.below(4)))
        };
        let (one, two) = (path(random), path(random));
        let (offset, length) = (random.below(60_000) as u64, 1 + random.below(30_000));
        let noise: Vec<u8> = (0..length).map(|at| (at * 31 + random.0 as usize) as u8).collect();
        let open = || fs::File::options().write(true).open(&one);
        let _ = match random.below(18) {
            0 | 1 => fs::write(&one, &noise),
            2 => open().and_then(|file| file.write_all_at(&noise, offset)),
            3 => open().and_then(|file| file.set_len(offset)),
            4 => open().and_then(|file| {
                let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                Ok(rustix::fs::fallocate(&file, mode, offset, length as u64)?)
            }),
            5 => open().and_then(|file| {
                let mode = [FallocateFlags::empty(), FallocateFlags::KEEP_SIZE][random.below(2)];
                Ok(rustix::fs::fallocate(&file, mode, offset, length as u64)?)
            }),
            6 | 7 => fs::create_dir(&one),
            8 | 9 => fs::rename(&one, &two),
            10 => rustix::fs::renameat_with(
                rustix::fs::CWD,
                &one,
                rustix::fs::CWD,
                &two,
                rustix::fs::RenameFlags::EXCHANGE,
            )
            .map_err(Into::into),
            11 => fs::hard_link(&one, &two),
            12 => fs::remove_file(&one),
            13 => fs::remove_dir_all(&one),
            14 => symlink(format!("to{offset}"), &one),
            15 => rustix::fs::lsetxattr(&one, format!("user.{}", offset % 3), &noise[..1], XattrFlags::empty())
                .map_err(Into::into),
            16 => rustix::fs::lremovexattr(&one, format!("user.{}", offset % 3)).map_err(Into::into),
            _ => fs::symlink_metadata(&one).and_then(|stat| {
                if !stat.is_symlink() {
                    rustix::fs::chmod(&one, rustix::fs::Mode::from_raw_mode(0o700 | (offset as u32 % 0o77)))?;
                }
                let owner = rustix::fs::Uid::from_raw(offset as u32 % 9);
                Ok(rustix::fs::chownat(
                    rustix::fs::CWD,
                    &one,
                    Some(owner),
                    None,
                    rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
                )?)
            }),
        };
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_node_alone_had_its_copy_goes_on_from_what_was_committed() {
    let seed = std::env::var("VIVARIUM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let (a, b, store) = (Place::new(), Place::new(), store());
    let mut random = Random(seed);
    let mut set_aside = 0;
    for round in 0..40 {
        let (mut first, _) = a.begin(&store, 2 * round + 1).await.unwrap();
        for _ in 0..2 {
            mess(&a.upper(""), &mut random);
            a.pool.sync().unwrap();
            first.commit().await.unwrap();
        }
        let committed = tree(&live(&a));
        let (mut second, _) = b.begin(&store, 2 * round + 2).await.unwrap();
        same_tree(&a, live(&b));
        (0..random.below(3)).for_each(|_| mess(&a.upper(""), &mut random));
        let written = tree(&live(&a));
        let rejoined = rejoin(&a);
        assert!(rejoined.at.is_some(), "seed {seed}, round {round}");

        assert!(rejoined.set_aside.is_some() || written == committed, "seed {seed}, round {round}");
        assert_eq!(tree(&copy(&a).join("live")), committed, "seed {seed}, round {round}");
        if rejoined.set_aside.is_some() {
            assert_eq!(tree(&aside(&a)), written, "seed {seed}, round {round}");
            set_aside += 1;
        }
        a.volumes.expire_diverged(Duration::ZERO, SystemTime::now()).unwrap();
        mess(&b.upper(""), &mut random);
        b.pool.sync().unwrap();
        second.commit().await.unwrap();
        let followed = step(&a, &store).await;
        assert!(matches!(followed, Ok(Followed::Moved { .. })), "seed {seed}, round {round}: {followed:?}");
        same_tree(&b, copy(&a).join("live"));
        b.volumes.delete(&id("v1")).unwrap();
    }
    assert!((10..40).contains(&set_aside), "{set_aside}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_whose_number_went_to_another_is_set_aside() {
    let (a, b, store) = (Place::new(), Place::new(), store());
    let (mut first, _) = a.begin(&store, 1).await.unwrap();
    change(&a, &mut first, 1).await;
    let (mut second, _) = b.begin(&store, 2).await.unwrap();
    diverge_a_little(&a);
    a.pool.sync().unwrap();
    // Its number went to the barrier.
    assert!(matches!(first.commit().await, Err(JournalError::Superseded { .. })));
    assert!(a.volumes.directory_path(&id("v1")).join("attempt.vtx").exists());
    assert_eq!(rejoin(&a).set_aside, Some(1));
    assert_eq!(beside(&a), ["shared.json", "standby.json"]);
    change(&b, &mut second, 9).await;
    assert!(matches!(step(&a, &store).await.unwrap(), Followed::Moved { .. }));
    same_tree(&b, copy(&a).join("live"));
}

fn diverge_a_little(place: &Place) {
    fs::write(place.upper("late"), b"in no transaction").unwrap();
}

/// Makes what is here unfit.
type Spoil = Box<dyn Fn(&Place) -> Former>;

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_treated_as_if_no_copy_were_wanted() {
    let plain = |place: &Place| former(&place.volumes);
    let cases: [(&str, Spoil); 5] = [
        ("of another log", Box::new(|place| Former { log: "v1-2".into(), ..former(&place.volumes) })),
        (
            "a subvolume inside, which is in no snapshot",
            Box::new(move |place| {
                btrfs::create_subvolume(fs::File::open(place.upper("")).unwrap().as_fd(), c"inside").unwrap();
                plain(place)
            }),
        ),
        (
            "no base",
            Box::new(move |place| {
                let directory = place.volumes.directory(&id("v1")).unwrap();
                let base = Local::newest(&place.volumes, &id("v1")).unwrap().unwrap().base;
                let name = std::ffi::CString::new(format!("base.{base}")).unwrap();
                btrfs::destroy_subvolume(directory.as_fd(), &name).unwrap();
                plain(place)
            }),
        ),
        (
            "a state that cannot be read",
            Box::new(move |place| {
                fs::write(place.volumes.directory_path(&id("v1")).join("journal.json"), b"{").unwrap();
                plain(place)
            }),
        ),
        ("holds more than it may", Box::new(|place| Former { size: 0, ..former(&place.volumes) })),
    ];
    for (what, spoil) in cases {
        let (a, b, store) = (Place::new(), Place::new(), store());
        let (mut first, _) = a.begin(&store, 1).await.unwrap();
        fs::write(a.upper("large"), vec![7; 20 << 20]).unwrap();
        change(&a, &mut first, 1).await;
        let (mut second, _) = b.begin(&store, 2).await.unwrap();
        change(&b, &mut second, 2).await;
        diverge_a_little(&a);
        let former = spoil(&a);
        let written = fs::read_dir(a.upper("")).unwrap().count();
        match former.rejoin() {
            Ok(rejoined) => {
                assert!(rejoined.at.is_none() && rejoined.set_aside.is_some(), "{what}: {rejoined:?}");
                assert_eq!(fs::read_dir(aside(&a).join("upper")).unwrap().count(), written, "{what}");
                assert!(a.volumes.get(&id("v1")).is_err(), "{what}");
            }
            // As ever: nothing is touched.
            Err(_) => assert_eq!(what, "no base"),
        }
        assert!(!copy(&a).exists(), "{what}");
        assert!(matches!(step(&a, &store).await.unwrap(), Followed::Made(_)), "{what}");
        same_tree(&b, copy(&a).join("live"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_from_beside_the_chain_of_the_log_is_made_anew_and_never_taken_over() {
    let edits: [(&str, serde_json::Value); 3] =
        [("digest", "ab".repeat(32).into()), ("epoch", 9.into()), ("sequence", 3.into())];
    for (round, (field, value)) in (0u64..).zip(edits) {
        for follows in [true, false] {
            let (a, b, store) = (Place::new(), Place::new(), store());
            drop(moved(&a, &b, &store).await);
            let state = a.volumes.directory_path(&id("v1")).join("journal.json");
            let mut stored: serde_json::Value = serde_json::from_str(&fs::read_to_string(&state).unwrap()).unwrap();
            assert_ne!(stored[field], value);
            stored[field] = value.clone();
            fs::write(&state, stored.to_string()).unwrap();
            assert!(rejoin(&a).at.is_some());
            if follows {
                let error = step(&a, &store).await.unwrap_err();
                assert!(matches!(error, JournalError::Damaged { .. }), "{field}: {error}");
                assert!(!copy(&a).exists(), "{field}");
                assert!(matches!(step(&a, &store).await.unwrap(), Followed::Made(_)), "{field}");
                same_tree(&b, copy(&a).join("live"));
            }
            let (_, origin) = a.begin(&store, 10 + round).await.unwrap();
            assert_eq!(matches!(origin, Origin::TakenOver(_)), follows, "{field}: {origin:?}");
            same_tree(&b, live(&a));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_here_already_is_kept_and_the_volume_goes() {
    let (a, b, store) = (Place::new(), Place::new(), store());
    drop(moved(&a, &b, &store).await);
    assert!(matches!(step(&a, &store).await.unwrap(), Followed::Made(_)));
    diverge_a_little(&a);
    assert_eq!(rejoin(&a), Rejoined { at: None, set_aside: Some(1) });
    assert!(a.volumes.get(&id("v1")).is_err());
    assert!(matches!(step(&a, &store).await.unwrap(), Followed::Same(_)));
    same_tree(&b, copy(&a).join("live"));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_step_that_was_cut_off_is_gone_on_from_or_begun_anew() {
    for copy_first in [true, false] {
        let (a, b, store) = (Place::new(), Place::new(), store());
        let mut second = moved(&a, &b, &store).await;
        if copy_first {
            // The copy has its name, and what it was made of is not set aside.
            diverge_a_little(&a);
            let head = Local::open(&a.volumes, &id("v1")).unwrap().head();
            let state = json!({"version": 1, "sequence": head.sequence, "epoch": head.epoch,
                "digest": head.digest.to_string()});
            let base = Local::newest(&a.volumes, &id("v1")).unwrap().unwrap().root;
            a.volumes.snapshot_standby(&id("v1"), SIZE, base.as_fd(), &state).unwrap();
            assert_eq!(rejoin(&a), Rejoined { at: None, set_aside: Some(1) });
            assert_eq!(fs::read(aside(&a).join("upper/late")).unwrap(), b"in no transaction");
            assert!(matches!(step(&a, &store).await.unwrap(), Followed::Moved { .. }));
        } else {
            // It has the name of a copy, with all that the journal of the volume keeps.
            drop(a.volumes.demote(&id("v1"), SIZE).unwrap());
            assert!(beside(&a).contains(&"journal.json".to_owned()), "{:?}", beside(&a));
            assert_eq!(rejoin(&a), Rejoined { at: None, set_aside: None });
            assert!(matches!(step(&a, &store).await.unwrap(), Followed::Made(_)));
        }
        change(&b, &mut second, 9).await;
        follow(&a, &store).await;
        same_tree(&b, copy(&a).join("live"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn data_of_a_volume_that_moved_become_the_copy_if_its_object_says_so_and_wait_until_it_says_where_that_is() {
    const VOLUME: &str = "11111111-2222-3333-4444-555555555555";
    let name = VolumeName::parse("team-a/shop").unwrap();
    let (id, log) = (id(VOLUME), |store: &Arc<Store>| Log::new(&id(VOLUME), store.clone()).unwrap());
    for (standby, chosen, is_patient, stays, is_copied) in [
        (1, Some("n1"), false, true, true),
        (1, None, true, true, false),
        (1, Some("n2"), true, true, false),
        (1, None, false, false, false),
        (1, Some("n3"), true, false, false),
        (0, None, true, false, false),
    ] {
        let (node, store) = (TestNode::new(), store());
        let cluster = Cluster::new(VOLUME, "i", vec![], "64Mi");
        let publisher = node.service(&node.pool(), &cluster, "127.0.0.1:1").publisher;
        publisher.stores.put("s", Some(store.clone()));
        let opening = Opening { id: id.clone(), ..Place::opening(1) };
        let begun = Journal::begin(&publisher.volumes, &publisher.templates, log(&store), &opening, async || true);
        let (mut journal, _) = begun.await.unwrap();
        fs::write(publisher.volumes.live_path(&id).join("upper/file"), b"1").unwrap();
        publisher.volumes.pool().sync().unwrap();
        journal.commit().await.unwrap();
        cluster.give("n2", "s9", 2);
        cluster.change(|object| {
            (object.spec.store, object.spec.standby) = (Some("s".into()), standby);
            let status = object.status.as_mut().unwrap();
            status.standby = chosen.map(|node| StandbyStatus { node: node.into(), sequence: None });
        });
        let case = format!("{standby} {chosen:?} {is_patient}");
        assert_eq!(publisher.drop_former(&name, &id, is_patient).await.unwrap(), !stays, "{case}");
        assert_eq!(publisher.volumes.get(&id).is_ok(), stays, "{case}");
        publisher.rejoin(&name, &id).await.unwrap();
        assert_eq!(publisher.volumes.has_standby(&id), is_copied, "{case}");
        assert_eq!(publisher.volumes.get(&id).is_ok(), stays && !is_copied, "{case}");
        if is_copied {
            let followed = publisher.bring_copy_on(&id, &cluster.object()).await.unwrap();
            assert!(matches!(followed, Followed::Same(at) if at.sequence == 2), "{followed:?}");
        }
    }
}

/// Process that [`a_return_that_is_killed_at_any_moment_loses_nothing`] kills.
#[test]
#[ignore = "is started by another test"]
fn child() {
    let Ok(state) = std::env::var("VIVARIUM_TEST_STATE") else { return };
    let source = PoolSource::File { size: POOL_SIZE };
    let pool = Arc::new(Pool::open("n1", &source, state.as_ref()).unwrap());
    let volumes = Volumes::open(pool).unwrap();
    println!("comes back");
    former(&volumes).rejoin().unwrap();
    println!("is back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_return_that_is_killed_at_any_moment_loses_nothing() {
    use std::io::BufRead;
    let directory = tempfile::tempdir().unwrap();
    let store = shared(directory.path().to_str().unwrap());
    let (a, b) = (Place::new(), Place::new());
    let (mut stays, mut cut, mut whole) = (0, 0, 0);
    for round in 0..24u32 {
        let epoch = u64::from(round) * 2 + 1;
        let (mut first, _) = a.begin(&store, epoch).await.unwrap();
        if round == 0 {
            furnish(&a);
        }
        change(&a, &mut first, round + 2).await;
        let (mut second, _) = b.begin(&store, epoch + 1).await.unwrap();
        fs::write(a.upper("late"), format!("of round {round}")).unwrap();
        for number in 0..20 {
            fs::write(a.upper(&format!("late{number}")), vec![round as u8; 50_000]).unwrap();
        }
        a.pool.sync().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "rejoin::child", "--nocapture"])
            .env("VIVARIUM_TEST_STATE", a.node.state())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.by_ref().map_while(Result::ok).any(|line| line.contains("comes back")), "it did not start");
        tokio::time::sleep(Duration::from_millis(u64::from(round))).await;
        child.kill().unwrap();
        child.wait().unwrap();
        let here = a.volumes.get(&id("v1")).is_ok();
        match (here, copy(&a).join("standby.json").exists()) {
            (true, _) => stays += 1,
            (false, false) => cut += 1,
            (false, true) => whole += 1,
        }
        // A driver that is started anew.
        let volumes = Volumes::open(a.pool.clone()).unwrap();
        former(&volumes).rejoin().unwrap();
        let is_there = |diverged| {
            let late = volumes.diverged_path(&diverged).join("live/upper/late");
            fs::read(late).unwrap() == format!("of round {round}").as_bytes()
        };
        assert!(volumes.diverged().unwrap().into_iter().any(is_there), "round {round}: what was written last is lost");
        volumes.expire_diverged(Duration::ZERO, SystemTime::now()).unwrap();
        change(&b, &mut second, round + 100).await;
        follow(&a, &store).await;
        same_tree(&b, copy(&a).join("live"));
        // The next round begins on the same two nodes.
        b.volumes.delete(&id("v1")).unwrap();
        drop_standby(&b.volumes, &id("v1")).unwrap();
    }
    println!("{stays} were killed before, {cut} in between, {whole} afterwards");
    assert!(stays + cut > 0 && whole > 0, "every one was killed at the same point");
}

/// Fills a volume; tells how many bytes it could take.
fn fill(place: &Place, noise: &[u8]) -> u64 {
    for number in 0..60 {
        let path = place.upper(&format!("fill{number}"));
        if let Err(error) = fs::write(&path, noise).and_then(|()| fs::File::open(&path)?.sync_all()) {
            assert_eq!(error.kind(), std::io::ErrorKind::QuotaExceeded, "{error}");
            return number * noise.len() as u64;
        }
    }
    panic!("nothing stops it");
}

/// What is set aside shares blocks with the volume, and is counted with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_exceeds_its_size_by_no_more_than_it_shares_with_what_was_set_aside_and_has_its_own() {
    for rewritten in [true, false] {
        let (a, b, store) = (Place::new(), Place::new(), store());
        let (mut first, _) = a.begin(&store, 1).await.unwrap();
        let noise: Vec<u8> = (0..20 * MIB).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        fs::write(a.upper("noise"), &noise).unwrap();
        a.commit(&mut first).await;
        let (mut second, _) = b.begin(&store, 2).await.unwrap();
        fs::write(a.upper("late"), &noise[..4 << 20]).unwrap();
        assert_eq!(rejoin(&a).set_aside, Some(1));
        if rewritten {
            fs::write(b.upper("noise"), noise.iter().map(|byte| byte ^ 0x55).collect::<Vec<_>>()).unwrap();
        }
        change(&b, &mut second, 1).await;
        follow(&a, &store).await;
        let (_, origin) = a.begin(&store, 3).await.unwrap();
        assert!(matches!(origin, Origin::TakenOver(_)), "{origin:?}");
        same_tree(&b, live(&a));
        a.pool.sync().unwrap();
        let usage = || a.volumes.usage(&id("v1")).unwrap().unwrap();
        let shared = usage().limit - limit_for(SIZE);
        assert!((24 * MIB..26 * MIB).contains(&shared), "{shared} bytes may be held beside its size");
        let used = usage().used / MIB;
        assert!(if rewritten { (44..47).contains(&used) } else { (24..27).contains(&used) }, "{used} MiB are counted");
        a.volumes.set_size(&id("v1"), SIZE).unwrap();
        assert_eq!(usage().limit, limit_for(SIZE) + shared);

        let taken = 20 * MIB + fill(&a, &noise[..4 << 20]);
        println!("rewritten: {rewritten}: a tree of {} MiB in a volume of {} MiB", taken / MIB, SIZE / MIB);
        assert!(taken >= SIZE, "what was set aside is taken from the tenant's room");
        assert!(taken <= limit_for(SIZE) + shared, "nothing bounds it");

        // Nothing is set aside any more: it has the room of its size again as soon as it holds no more.
        a.volumes.expire_diverged(Duration::ZERO, SystemTime::now()).unwrap();
        let ends = || {
            a.pool.sync().unwrap();
            a.volumes.set_size(&id("v1"), SIZE).unwrap();
            std::thread::sleep(Duration::from_millis(50));
            !a.volumes.is_shared(&id("v1"))
        };
        if !rewritten {
            assert!(!(0..40).any(|_| ends()), "a tenant whose tree is too large cannot even remove anything");
            (0..10).for_each(|number| fs::remove_file(a.upper(&format!("fill{number}"))).unwrap());
        }
        let deadline = Instant::now() + HANG;
        while !ends() {
            assert!(Instant::now() < deadline, "it may hold more for ever: {:?}", usage());
        }
        assert_eq!(usage().limit, limit_for(SIZE));
    }
}

/// Waits until the pool has no quota group of a volume.
fn no_group_is_left(place: &Place) {
    let deadline = Instant::now() + HANG;
    while !btrfs::qgroups(place.pool.uuid(), 1).unwrap().is_empty() {
        let left = btrfs::qgroups(place.pool.uuid(), 1).unwrap();
        assert!(Instant::now() < deadline, "groups {left:?} stay");
        place.pool.sync().unwrap();
        place.volumes.sweep_quota();
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// However often its node dies: each time what it wrote last is set aside, and the copy is a snapshot once more.
#[tokio::test(flavor = "multi_thread")]
async fn no_block_escapes_the_limit_when_a_node_comes_back_again_and_again_and_no_group_is_left() {
    for copy_goes_first in [true, false] {
        let (a, b, store) = (Place::new(), Place::new(), store());
        for round in 0..3u64 {
            let (mut first, _) = a.begin(&store, 2 * round + 1).await.unwrap();
            fs::write(a.upper(&format!("noise{round}")), vec![round as u8; 10 << 20]).unwrap();
            a.commit(&mut first).await;
            b.begin(&store, 2 * round + 2).await.unwrap();
            diverge_a_little(&a);
            let rejoined = rejoin(&a);
            assert!(rejoined.at.is_some() && rejoined.set_aside.is_some(), "{rejoined:?}");
            a.volumes.expire_diverged(Duration::ZERO, SystemTime::now()).unwrap();
        }
        follow(&a, &store).await;
        let (_, origin) = a.begin(&store, 9).await.unwrap();
        assert!(matches!(origin, Origin::TakenOver(_)), "{origin:?}");
        a.pool.sync().unwrap();
        let used = a.volumes.usage(&id("v1")).unwrap().unwrap().used;
        assert!((30 * MIB..36 * MIB).contains(&used), "{used} bytes are counted, and there are 30 MiB");
        diverge_a_little(&a);
        b.begin(&store, 10).await.unwrap();
        assert!(rejoin(&a).at.is_some());
        let go: [&dyn Fn(); 2] = [&|| drop_standby(&a.volumes, &id("v1")).unwrap(), &|| {
            a.volumes.expire_diverged(Duration::ZERO, SystemTime::now()).unwrap();
        }];
        let [first, last] = if copy_goes_first { [0, 1] } else { [1, 0] };
        go[first]();
        for _ in 0..10 {
            a.pool.sync().unwrap();
            a.volumes.sweep_quota();
            std::thread::sleep(Duration::from_millis(50));
        }
        go[last]();
        no_group_is_left(&a);
    }
}

/// Whoever makes room by destroying what was set aside does not believe that what a copy has of it is being freed.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_copy_shares_with_what_was_set_aside_makes_no_room() {
    const TREE: u64 = 24 << 20;
    let (a, b, store) = (Place::new(), Place::new(), store());
    let (mut first, _) = a.begin(&store, 1).await.unwrap();
    fs::write(a.upper("noise"), vec![7; TREE as usize]).unwrap();
    a.commit(&mut first).await;
    b.begin(&store, 2).await.unwrap();
    diverge_a_little(&a);
    assert!(rejoin(&a).set_aside.is_some());
    a.volumes.create(&id("v2"), SIZE).unwrap();
    fs::write(a.volumes.live_path(&id("v2")).join("upper/noise"), vec![7; TREE as usize]).unwrap();
    a.pool.sync().unwrap();
    a.volumes.set_aside(&id("v2"), 1, SystemTime::now() + Duration::from_secs(9)).unwrap();
    let space = a.pool.space().unwrap();
    let filler = fs::File::create(a.pool.path().join("filler")).unwrap();
    let length = space.usable() - space.total / 10 + TREE / 2;
    rustix::fs::fallocate(&filler, rustix::fs::FallocateFlags::empty(), 0, length).unwrap();
    a.pool.sync().unwrap();
    let expire = || {
        a.volumes.expire_diverged(Duration::from_hours(1), SystemTime::now()).unwrap();
        a.pool.sync().unwrap();
        a.volumes.diverged().unwrap().iter().map(|one| one.volume.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(expire(), ["v2"], "it is not known how much that makes room");
    assert_eq!(expire(), [] as [&str; 0], "next to nothing is being freed");
}

/// What a return costs. Run with `--ignored --nocapture`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures, and asserts nothing about time"]
async fn a_return_beside_a_copy_that_is_made_anew() {
    for (what, files, late) in [("as committed", 2000, 0), ("1 MB later", 2000, 100), ("20 MB later", 2000, 2000)] {
        let (a, b, c, store) = (Place::new(), Place::new(), Place::new(), store());
        let block: Vec<u8> = (0..10_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
        let (mut first, _) = a.begin(&store, 1).await.unwrap();
        for file in 0..files {
            fs::write(a.upper(&format!("f{file}")), &block).unwrap();
        }
        a.commit(&mut first).await;
        b.begin(&store, 2).await.unwrap();
        for file in 0..late {
            fs::write(a.upper(&format!("f{file}")), &block[1..]).unwrap();
        }
        a.pool.sync().unwrap();
        let begun = Instant::now();
        let rejoined = rejoin(&a);
        let back = begun.elapsed();
        follow(&a, &store).await;
        let (followed, begun) = (begun.elapsed(), Instant::now());
        follow(&c, &store).await;
        println!(
            "{files} files of 10 kB, {what}: set aside {:?}, back in {} ms, follows after {} ms; made anew in {} ms",
            rejoined.set_aside,
            back.as_millis(),
            followed.as_millis(),
            begun.elapsed().as_millis()
        );
    }
}
