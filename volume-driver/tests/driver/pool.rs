//! The pool and the volumes in it: sizes, growth, and what tenants can do inside.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::support::{HANG, POOL_SIZE, TestNode, id};
use vivarium_node::pool::probe::Probe;
use vivarium_node::pool::{Pool, PoolError, PoolSource, Quota};
use vivarium_node::volume::{VolumeError, Volumes};
use vivarium_sys::btrfs;

/// Writes until the file system refuses; tells how much went in.
fn fill(path: &Path) -> (u64, ErrorKind) {
    let mut file = fs::File::create(path).unwrap();
    let block: Vec<u8> = (0..1 << 20).map(|i: u32| ((i * 31) >> 3) as u8).collect();
    let mut written = 0;
    loop {
        match file.write_all(&block).and_then(|()| file.sync_data()) {
            Ok(()) => written += block.len() as u64,
            Err(error) => return (written, error.kind()),
        }
        assert!(written < POOL_SIZE, "nothing stops the writer");
    }
}

fn volumes(pool: &Arc<Pool>) -> Volumes {
    Volumes::open(pool.clone()).unwrap()
}

#[test]
fn a_volume_takes_its_size_and_no_more() {
    let node = TestNode::new();
    let pool = node.pool();
    assert_eq!(pool.quota(), Quota::Simple, "these tests need Linux 6.7 or later");
    let volumes = volumes(&pool);
    let volume = id("v1");
    volumes.create(&volume, 40 << 20).unwrap();
    pool.sync().unwrap();
    let fresh = volumes.usage(&volume).unwrap().unwrap();
    assert!(fresh.used < 1 << 20, "a fresh volume costs {} bytes", fresh.used);
    let live = volumes.live_path(&volume);

    let (written, error) = fill(&live.join("upper/big"));
    assert_eq!(error, ErrorKind::QuotaExceeded);
    assert!((40 << 20..=56 << 20).contains(&written), "size and headroom: {written}");

    // It grows while it is full and in use.
    volumes.set_size(&volume, 80 << 20).unwrap();
    let (more, error) = fill(&live.join("upper/more"));
    assert_eq!(error, ErrorKind::QuotaExceeded);
    assert!((80 << 20..=96 << 20).contains(&(written + more)), "{}", written + more);

    pool.sync().unwrap();
    let refused = volumes.set_size(&volume, 20 << 20).unwrap_err();
    assert!(matches!(refused, VolumeError::TooSmall { size: 20_971_520, .. }), "{refused}");
    assert_eq!(volumes.usage(&volume).unwrap().unwrap().limit, 96 << 20, "and nothing was changed");
}

#[test]
fn subvolumes_that_a_tenant_makes_count_and_go_with_the_volume() {
    let node = TestNode::new();
    let pool = node.pool();
    let volumes = volumes(&pool);
    let volume = id("v1");
    let live = volumes.create(&volume, 16 << 20).unwrap();
    let data = volumes.live_path(&volume).join("data/docker");
    let directory = fs::File::open(&data).unwrap();
    for name in [c"a", c"b"] {
        btrfs::create_subvolume(directory.as_fd(), name).unwrap();
    }
    let inner = fs::File::open(data.join("a")).unwrap();
    btrfs::create_subvolume(inner.as_fd(), c"deep").unwrap();
    let (written, error) = fill(&data.join("a/deep/big"));
    assert_eq!(error, ErrorKind::QuotaExceeded);
    assert!(written <= 32 << 20, "{written} bytes escaped into a subvolume");
    drop((inner, directory, live));

    volumes.delete(&volume).unwrap();
    volumes.delete(&volume).unwrap();
    assert_eq!(fs::read_dir(pool.volumes_path()).unwrap().count(), 0);
    // What remains of the pool's subvolumes, by the tree of roots.
    assert_eq!(btrfs::children(pool.root(), 5).unwrap(), Vec::<u64>::new());
}

#[test]
fn the_pool_grows_and_is_found_again() {
    let node = TestNode::new();
    let total = node.pool().space().unwrap().total;
    assert_eq!(total, POOL_SIZE);
    let pool = node.pool_of(POOL_SIZE + (256 << 20));
    assert_eq!(pool.space().unwrap().total, POOL_SIZE + (256 << 20), "while it is mounted");
    volumes(&pool).create(&id("v1"), 16 << 20).unwrap();
    drop(pool);
    let path = node.state().join("pool");
    // A process that another test starts has the pool open between fork and exec.
    let unmounted = (0..100).any(|_| {
        let done = rustix::mount::unmount(&path, rustix::mount::UnmountFlags::empty());
        if done == Err(rustix::io::Errno::BUSY) {
            std::thread::sleep(std::time::Duration::from_millis(20));
            return false;
        }
        done.map(|()| true).unwrap()
    });
    assert!(unmounted, "the pool stays busy");
    let pool = node.pool();
    assert_eq!(pool.space().unwrap().total, POOL_SIZE + (256 << 20), "it never shrinks");
    assert_eq!(pool.quota(), Quota::Simple);
    assert_eq!(volumes(&pool).list().unwrap(), [id("v1")]);
}

#[test]
fn the_pool_is_for_root_alone_and_its_mount_gives_nothing_away() {
    use std::os::unix::fs::PermissionsExt;
    let node = TestNode::new();
    let pool = node.pool();
    assert_eq!(fs::metadata(pool.path()).unwrap().permissions().mode() & 0o777, 0o700);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = mounts.lines().find(|line| line.split(' ').nth(4) == pool.path().to_str()).unwrap();
    for option in ["nosuid", "nodev", "noatime"] {
        assert!(line.contains(option), "{line}");
    }
}

#[test]
fn what_holds_data_is_never_formatted() {
    let node = TestNode::new();
    fs::create_dir_all(node.state()).unwrap();
    let image = node.state().join("pool.img");
    fs::write(&image, vec![b'x'; 1 << 20]).unwrap();
    let source = PoolSource::File { size: POOL_SIZE };
    let refused = Pool::open("n1", &source, &node.state()).unwrap_err();
    assert!(matches!(refused, PoolError::Io { attempt: "mount the pool at", .. }), "{refused}");
    assert!(fs::read(&image).unwrap().starts_with(b"xxxx"));

    // A device with another file system is refused by name.
    let other = node.state().join("other.img");
    fs::File::create(&other).unwrap().set_len(POOL_SIZE).unwrap();
    let made = std::process::Command::new("mkfs.ext4").arg("-q").arg(&other).status().unwrap();
    assert!(made.success());
    let file = fs::File::options().read(true).write(true).open(&other).unwrap();
    let device = vivarium_sys::loopdev::LoopDevice::attach(&file).unwrap();
    fs::remove_file(&image).unwrap();
    let refused = Pool::open("n1", &PoolSource::Device(device.path().to_owned()), &node.state()).unwrap_err();
    assert!(matches!(refused, PoolError::Format { .. }), "{refused}");
    assert!(refused.to_string().contains("wipefs"), "{refused}");
}

#[test]
fn a_block_device_is_formatted_once_adopted_again_and_grown_while_it_is_mounted() {
    let node = TestNode::new();
    fs::create_dir_all(node.state()).unwrap();
    let image = node.state().join("disk");
    let file = fs::File::options().read(true).write(true).create_new(true).open(&image).unwrap();
    file.set_len(POOL_SIZE).unwrap();
    let device = vivarium_sys::loopdev::LoopDevice::attach(&file).unwrap();
    let open = || Pool::open("n1", &PoolSource::Device(device.path().to_owned()), &node.state()).unwrap();
    let size = |pool: &Pool| {
        let stat = rustix::fs::statvfs(pool.path()).unwrap();
        stat.f_blocks * stat.f_frsize
    };
    let pool = open();
    assert_eq!(size(&pool), POOL_SIZE);
    fs::write(pool.path().join("kept"), "precious").unwrap();
    // As a process does that finds the pool of the last one still mounted, on a device that was enlarged meanwhile.
    file.set_len(2 * POOL_SIZE).unwrap();
    device.refresh_size().unwrap();
    let grown = open();
    assert_eq!(size(&grown), 2 * POOL_SIZE, "a mounted pool does not grow with its device");
    // And as one that finds the device after the node was off.
    let path = pool.path().to_owned();
    drop((pool, grown));
    rustix::mount::unmount(&path, rustix::mount::UnmountFlags::empty()).unwrap();
    assert!(!path.join("kept").exists());
    let pool = open();
    assert_eq!(fs::read_to_string(pool.path().join("kept")).unwrap(), "precious");
}

#[test]
fn two_trees_of_a_volume_can_be_set_aside_in_one_second() {
    let node = TestNode::new();
    let volumes = volumes(&node.pool());
    let now = std::time::SystemTime::now();
    for content in ["one", "two"] {
        volumes.create(&id("v1"), 40 << 20).unwrap();
        fs::write(volumes.live_path(&id("v1")).join("upper/file"), content).unwrap();
        volumes.set_aside(&id("v1"), 3, now).unwrap();
    }
    let aside = volumes.diverged().unwrap();
    let contents =
        aside.iter().map(|one| fs::read_to_string(volumes.diverged_path(one).join("live/upper/file")).unwrap());
    assert_eq!(contents.collect::<Vec<_>>(), ["one", "two"]);
}

#[test]
fn a_pool_that_is_too_small_is_refused() {
    let node = TestNode::new();
    let refused = Pool::open("n1", &PoolSource::File { size: 1 << 20 }, &node.state()).unwrap_err();
    assert!(matches!(refused, PoolError::TooSmall { size: 1_048_576 }), "{refused}");
}

/// Where the kernel's search for a subvolume ends at the border of a leaf of the tree of roots, its answer is 1, which
/// is no failure. Enough subvolumes for a few leaves come past every border.
#[test]
fn every_one_of_many_subvolumes_is_identified() {
    let node = TestNode::new();
    let pool = node.pool();
    let mut known = std::collections::HashMap::new();
    for number in 0..200 {
        let name = std::ffi::CString::new(format!("s{number}")).unwrap();
        btrfs::create_subvolume(pool.volumes(), &name).unwrap();
        let root = fs::File::open(pool.volumes_path().join(name.to_str().unwrap())).unwrap();
        known.insert(btrfs::subvolume_info(root.as_fd()).unwrap().uuid, name);
    }
    assert_eq!(known.len(), 200, "a UUID came twice");
    pool.sync().unwrap();
    // Those behind a removed one change their place in the leaves.
    let (gone, stay): (Vec<_>, Vec<_>) = known.into_iter().enumerate().partition(|(number, _)| number % 3 == 0);
    for (_, (_, name)) in gone {
        btrfs::destroy_subvolume(pool.volumes(), &name).unwrap();
    }
    pool.sync().unwrap();
    for (_, (uuid, name)) in stay {
        let root = fs::File::open(pool.volumes_path().join(name.to_str().unwrap())).unwrap();
        assert_eq!(btrfs::subvolume_at(root.as_fd()).unwrap().unwrap().uuid, uuid);
        fs::create_dir(pool.volumes_path().join(name.to_str().unwrap()).join("d")).unwrap();
        let inside = fs::File::open(pool.volumes_path().join(name.to_str().unwrap()).join("d")).unwrap();
        assert_eq!(btrfs::subvolume_at(inside.as_fd()).unwrap(), None, "a directory inside is no subvolume");
    }
    assert_eq!(btrfs::subvolume_at(fs::File::open("/proc").unwrap().as_fd()).unwrap(), None);
}

#[test]
fn a_disk_that_hangs_is_noticed_and_so_is_its_return() {
    let node = TestNode::new();
    let pool = node.pool();
    let patience = Duration::from_millis(800);
    let probe = Probe::start(&pool, Some(patience)).unwrap();
    let forgiving = Probe::start(&pool, None).unwrap();
    std::thread::sleep(patience * 2);
    assert!(!probe.hangs(), "it answers");
    // Whoever writes to a file system that is frozen waits until it is thawed.
    let frozen = Frozen::new(pool.path());
    assert!(soon(|| probe.hangs()), "a disk that writes nothing passes for a living one");
    assert!(!forgiving.hangs());
    drop(frozen);
    assert!(soon(|| !probe.hangs()), "it answers again");
}

struct Frozen<'a>(&'a Path);

impl<'a> Frozen<'a> {
    fn new(path: &'a Path) -> Self {
        assert!(Command::new("fsfreeze").arg("-f").arg(path).status().unwrap().success());
        Self(path)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        assert!(Command::new("fsfreeze").arg("-u").arg(self.0).status().unwrap().success());
    }
}

fn soon(so: impl Fn() -> bool) -> bool {
    let begin = Instant::now();
    while begin.elapsed() < HANG {
        if so() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}

/// The space of a tree comes free only long after it was destroyed; what an owner may still want does not go meanwhile.
#[test]
fn of_what_was_set_aside_no_more_goes_than_makes_room() {
    const TREE: u64 = 24 << 20;
    let node = TestNode::new();
    let pool = node.pool();
    let volumes = volumes(&pool);
    let aside = |volume: &str, seconds| {
        volumes.create(&id(volume), 64 << 20).unwrap();
        fs::write(volumes.live_path(&id(volume)).join("upper/big"), vec![b'x'; TREE as usize]).unwrap();
        pool.sync().unwrap();
        volumes.set_aside(&id(volume), 1, SystemTime::now() + Duration::from_secs(seconds)).unwrap();
    };
    (0..5).for_each(|number| aside(&format!("v{number}"), number));
    let expire = || {
        volumes.expire_diverged(Duration::from_hours(1), SystemTime::now()).unwrap();
        volumes.diverged().unwrap().iter().map(|one| one.volume.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(expire().len(), 5, "there is room");

    // Down to where a tenth is kept and a tenth is to be free beside it, and half a tree is lacking.
    let space = pool.space().unwrap();
    let filler = fs::File::create(pool.path().join("filler")).unwrap();
    let length = space.usable() - space.total / 10 + TREE / 2;
    rustix::fs::fallocate(&filler, rustix::fs::FallocateFlags::empty(), 0, length).unwrap();
    pool.sync().unwrap();
    assert_eq!(expire(), ["v1", "v2", "v3", "v4"], "the oldest makes room enough");
    assert_eq!(expire(), ["v1", "v2", "v3", "v4"], "what is being freed counts as free");
    let deadline = Instant::now() + HANG;
    while pool.space().unwrap().usable() < space.total / 10 {
        assert!(Instant::now() < deadline, "nothing is freed");
        pool.sync().unwrap();
    }
    assert_eq!(expire(), ["v1", "v2", "v3", "v4"]);
    // One and a half are lacking.
    filler.set_len(length).unwrap();
    rustix::fs::fallocate(&filler, rustix::fs::FallocateFlags::empty(), 0, length + 2 * TREE).unwrap();
    pool.sync().unwrap();
    assert_eq!(expire(), ["v3", "v4"]);
}
