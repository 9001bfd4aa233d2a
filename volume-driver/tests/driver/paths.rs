//! Files and directories of a former state that are brought back: what an environment sees then, through overlayfs itself, and
//! that nothing else is touched.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::support::registry::{Packing, Registry};
use crate::support::tarball::Tarball;
use crate::support::{TestNode, id};
use object_store::memory::InMemory;
use rustix::fs::{FallocateFlags, FileType, Mode, XattrFlags};
use vivarium_node::ids::LayerDigest;
use vivarium_node::journal::JournalError;
use vivarium_node::journal::begin::Opening;
use vivarium_node::journal::commit::Journal;
use vivarium_node::journal::log::Log;
use vivarium_node::journal::revert::{Revert, Reverted, check_paths};
use vivarium_node::journal::tree::describe;
use vivarium_node::pool::Pool;
use vivarium_node::template::TemplateCache;
use vivarium_node::volume::Volumes;
use vivarium_store::faults::{Faults, Faulty};
use vivarium_store::{Sizes, Store};

const SIZE: u64 = 64 << 20;

/// A node with one environment on a template of two layers.
struct World {
    node: TestNode,
    pool: Arc<Pool>,
    volumes: Volumes,
    templates: Arc<TemplateCache>,
    layers: Vec<LayerDigest>,
}

fn tool() -> Vec<u8> {
    (0u64..100_000).flat_map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)).to_le_bytes()).collect()
}

impl World {
    async fn new() -> Self {
        let (node, registry) = (TestNode::new(), Registry::start().await);
        let pool = node.pool();
        let templates = node.templates(&pool, &registry.address);
        let bottom = Tarball::new()
            .dir("etc/ssh/")
            .file("etc/ssh/config", b"as shipped")
            .file("etc/ssh/key", b"shipped key")
            .file("usr/share/doc/a", b"a")
            .file("usr/share/doc/b", b"b")
            .file("usr/share/man/m", b"m")
            .file("usr/bin/tool", &tool())
            .file("opt/app/x", b"x")
            .symlink("bin", "usr/bin");
        let top = Tarball::new().file("usr/share/doc/.wh.b", b"").file("usr/share/doc/c", b"c").file("opt/app/y", b"y");
        let layers = [(bottom.finish(), Packing::None), (top.finish(), Packing::None)];
        let (image, layers) = registry.image("1", &layers);
        let layers: Vec<_> = layers.iter().map(|layer| LayerDigest::parse(layer).unwrap()).collect();
        templates.ensure(&image, &layers, &[]).await.unwrap();
        Self { volumes: Volumes::open(pool.clone()).unwrap(), node, pool, templates, layers }
    }

    async fn begin(&self, store: &Arc<Store>, epoch: u64) -> Result<Journal, JournalError> {
        let opening = Opening {
            id: id("v1"),
            size: SIZE,
            room: 0,
            epoch,
            layers: self.layers.clone(),
            known: 0,
            revert: None,
            source: None,
        };
        let begun = Journal::begin(
            &self.volumes,
            &self.templates,
            Log::new(&opening.id, store.clone()).unwrap(),
            &opening,
            async || true,
        )
        .await;
        begun.map(|(journal, _)| journal)
    }

    fn live(&self, name: &str) -> PathBuf {
        self.volumes.live_path(&id("v1")).join(name)
    }

    /// Does something in the environment, as overlayfs shows it.
    fn inside<T>(&self, work: impl FnOnce(&Path) -> T) -> T {
        let target = self.node.target("overlay");
        fs::create_dir_all(&target).unwrap();
        let lowers: Vec<_> =
            self.layers.iter().rev().map(|layer| self.templates.path(layer).display().to_string()).collect();
        let options = format!(
            "redirect_dir=on,index=off,metacopy=off,nfs_export=off,lowerdir={},upperdir={},workdir={}",
            lowers.join(":"),
            self.live("upper").display(),
            self.live("work").display()
        );
        let mount = Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(&target).output();
        let mount = mount.unwrap();
        assert!(mount.status.success(), "{}", String::from_utf8_lossy(&mount.stderr));
        let done = work(&target);
        // Processes that other tests of this program start have its files open for a moment.
        rustix::mount::unmount(&target, rustix::mount::UnmountFlags::DETACH).unwrap();
        done
    }

    /// What the environment sees, a line for each name.
    fn view(&self) -> Vec<String> {
        self.inside(|root| {
            let mut lines = Vec::new();
            describe(fs::File::open(root).unwrap().as_fd(), &mut |line| lines.push(line.to_owned())).unwrap();
            lines
        })
    }

    /// What is in the volume, a line for each name.
    fn tree(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let live = self.volumes.get(&id("v1")).unwrap();
        describe(live.directory.as_fd(), &mut |line| lines.push(line.to_owned())).unwrap();
        lines
    }

    /// What the volume consists of.
    fn parts(&self) -> Vec<String> {
        let mut all: Vec<_> = fs::read_dir(self.live("."))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        all.sort();
        all
    }

    async fn commit(&self, journal: &mut Journal) -> u64 {
        self.pool.sync().unwrap();
        journal.commit().await.unwrap().head.sequence
    }

    async fn restore(&self, journal: &mut Journal, at: u64, paths: &[&str]) -> Result<Reverted, JournalError> {
        self.restore_in(SIZE, journal, at, paths).await
    }

    async fn restore_in(
        &self,
        size: u64,
        journal: &mut Journal,
        at: u64,
        paths: &[&str],
    ) -> Result<Reverted, JournalError> {
        static ORDERS: AtomicU64 = AtomicU64::new(0);
        let order = ORDERS.fetch_add(1, Ordering::Relaxed).to_string();
        let paths = paths.iter().map(PathBuf::from).collect();
        journal.revert(&self.templates, &Revert { order, from: None, sequence: at, paths }, size).await
    }
}

/// Whether a line is of a path, or of something in it.
fn is_in(line: &str, path: &str) -> bool {
    let name = line.split("\" ").next().unwrap_or_default().trim_start_matches('"');
    Path::new("/").join(name).starts_with(path)
}

/// Lines, but for times of directories that lead to a path: what is renamed into one changes its time.
fn untimed(lines: &[String], paths: &[&str]) -> Vec<String> {
    let leads = |line: &str| {
        paths.iter().any(|path| {
            Path::new(path)
                .ancestors()
                .skip(1)
                .any(|up| line.starts_with(&format!("\"{}\" ", up.display().to_string().trim_start_matches('/'))))
        })
    };
    let without = |line: &String| {
        line.split(' ')
            .filter(|word| !word.starts_with("mtime=") && !word.starts_with("trusted."))
            .collect::<Vec<_>>()
            .join(" ")
    };
    lines.iter().map(|line| if leads(line) || line.starts_with(". ") { without(line) } else { line.clone() }).collect()
}

type Change = fn(&Path);

fn nothing(_: &Path) {}

fn furnish(root: &Path) {
    let srv = root.join("srv/shop");
    fs::create_dir_all(srv.join("deep/er")).unwrap();
    fs::write(srv.join("page"), b"good").unwrap();
    fs::hard_link(srv.join("page"), srv.join("deep/same")).unwrap();
    symlink("../page", srv.join("deep/link")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, srv.join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    let tty = rustix::fs::makedev(4, 9);
    rustix::fs::mknodat(rustix::fs::CWD, srv.join("tty"), FileType::CharacterDevice, Mode::RUSR, tty).unwrap();
    let sparse = fs::File::create(srv.join("sparse")).unwrap();
    sparse.write_all_at(&[7; 9000], 1 << 20).unwrap();
    sparse.set_len(3 << 20).unwrap();
    let reserved = fs::File::create(srv.join("reserved")).unwrap();
    reserved.write_all_at(&[1; 4096], 0).unwrap();
    rustix::fs::fallocate(&reserved, FallocateFlags::KEEP_SIZE, 8192, 65536).unwrap();
    rustix::fs::setxattr(srv.join("deep"), "user.note", b"mine", XattrFlags::empty()).unwrap();
    rustix::fs::chown(srv.join("deep/er").as_path(), Some(rustix::fs::Uid::from_raw(33)), None).unwrap();
    fs::set_permissions(srv.join("deep/er"), std::os::unix::fs::PermissionsExt::from_mode(0o2750)).unwrap();
}

/// A directory that gives a right to user 33 to everything that is made in it from now on, and what was made before.
fn give_on(root: &Path, at: &str) {
    let at = root.join(at);
    fs::create_dir_all(at.join("sub")).unwrap();
    fs::write(at.join("sub/inner"), b"x").unwrap();
    fs::write(at.join("file"), b"x").unwrap();
    // `struct posix_acl_xattr_header`, and entries: tag, rights, id.
    let mut list = 2u32.to_le_bytes().to_vec();
    for (tag, rights, user) in
        [(1u16, 7u16, u32::MAX), (2, 7, 33), (4, 5, u32::MAX), (16, 7, u32::MAX), (32, 5, u32::MAX)]
    {
        list.extend(tag.to_le_bytes());
        list.extend(rights.to_le_bytes());
        list.extend(user.to_le_bytes());
    }
    rustix::fs::setxattr(&at, "system.posix_acl_default", &list, XattrFlags::empty()).unwrap();
}

fn wreck_shop(root: &Path) {
    let srv = root.join("srv/shop");
    fs::remove_file(srv.join("fifo")).unwrap();
    fs::remove_dir_all(srv.join("deep")).unwrap();
    fs::write(srv.join("deep"), b"a file by now").unwrap();
    fs::write(srv.join("page"), b"bad").unwrap();
    fs::write(srv.join("extra"), b"came later").unwrap();
    fs::write(root.join("srv/beside"), b"stays").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_named_is_as_it_was_and_nothing_else_is_touched() {
    let cases: [(&str, Change, Change, &[&str]); 20] = [
        (
            "a file that was as shipped",
            nothing,
            |root| fs::write(root.join("etc/ssh/key"), b"x").unwrap(),
            &["/etc/ssh/key"],
        ),
        (
            "a file of the template that was removed",
            nothing,
            |root| fs::remove_file(root.join("etc/ssh/key")).unwrap(),
            &["/etc/ssh/key"],
        ),
        ("a directory with some of everything", furnish, wreck_shop, &["/srv/shop"]),
        (
            "a directory that is gone",
            furnish,
            |root| fs::remove_dir_all(root.join("srv/shop")).unwrap(),
            &["/srv/shop"],
        ),
        (
            "a file in directories that are gone",
            furnish,
            |root| fs::remove_dir_all(root.join("srv")).unwrap(),
            &["/srv/shop/deep/same"],
        ),
        (
            "two of the template in a directory that is gone",
            nothing,
            |root| fs::remove_dir_all(root.join("usr/share")).unwrap(),
            &["/usr/share/doc", "/usr/share/man/m"],
        ),
        (
            "a directory of the template in one that was made anew",
            nothing,
            |root| {
                fs::remove_dir_all(root.join("usr/share")).unwrap();
                fs::create_dir(root.join("usr/share")).unwrap();
                fs::write(root.join("usr/share/new"), b"stays").unwrap();
            },
            &["/usr/share/doc"],
        ),
        (
            "a file of the template in a directory that was made anew",
            |root| fs::write(root.join("etc/ssh/config"), b"mine").unwrap(),
            |root| {
                fs::remove_dir_all(root.join("etc/ssh")).unwrap();
                fs::create_dir(root.join("etc/ssh")).unwrap();
            },
            &["/etc/ssh/key", "/etc/ssh/config"],
        ),
        (
            "a directory that was renamed then",
            |root| fs::rename(root.join("opt/app"), root.join("opt/moved")).unwrap(),
            |root| fs::remove_dir_all(root.join("opt/moved")).unwrap(),
            &["/opt/moved"],
        ),
        (
            "a directory that was renamed then, and the one that it is in since",
            |root| {
                fs::rename(root.join("opt/app"), root.join("opt/moved")).unwrap();
                fs::write(root.join("opt/moved/z"), b"z").unwrap();
            },
            |root| {
                fs::rename(root.join("opt"), root.join("opt2")).unwrap();
                fs::create_dir(root.join("opt")).unwrap();
            },
            &["/opt/moved"],
        ),
        (
            "a directory that was made anew then",
            |root| {
                fs::remove_dir_all(root.join("etc/ssh")).unwrap();
                fs::create_dir(root.join("etc/ssh")).unwrap();
                fs::write(root.join("etc/ssh/own"), b"own").unwrap();
            },
            |root| fs::remove_dir_all(root.join("etc/ssh")).unwrap(),
            &["/etc/ssh"],
        ),
        (
            "a directory of the template with something removed and something added",
            |root| {
                fs::remove_file(root.join("usr/share/doc/a")).unwrap();
                fs::write(root.join("usr/share/doc/d"), b"d").unwrap();
            },
            |root| fs::write(root.join("usr/share/doc/a"), b"back").unwrap(),
            &["/usr/share/doc"],
        ),
        (
            "a directory that is a file by now",
            nothing,
            |root| {
                fs::remove_dir_all(root.join("usr/share/doc")).unwrap();
                fs::write(root.join("usr/share/doc"), b"file").unwrap();
            },
            &["/usr/share/doc"],
        ),
        (
            "a directory of the template that was renamed since",
            nothing,
            |root| fs::rename(root.join("opt/app"), root.join("elsewhere")).unwrap(),
            &["/opt/app"],
        ),
        (
            "a directory of which a part was renamed since",
            |root| fs::write(root.join("opt/app/z"), b"z").unwrap(),
            |root| fs::rename(root.join("opt/app"), root.join("elsewhere")).unwrap(),
            &["/opt"],
        ),
        (
            "a file of the template that was changed and renamed since",
            nothing,
            |root| {
                fs::write(root.join("etc/ssh/key"), b"other").unwrap();
                fs::rename(root.join("etc/ssh/key"), root.join("etc/ssh/old")).unwrap();
            },
            &["/etc/ssh/key"],
        ),
        (
            "a directory that was renamed then and once more since",
            |root| fs::rename(root.join("opt/app"), root.join("first")).unwrap(),
            |root| fs::rename(root.join("first"), root.join("second")).unwrap(),
            &["/first"],
        ),
        (
            "what would inherit from a directory that is made again",
            |root| give_on(root, "srv/shop"),
            |root| fs::remove_dir_all(root.join("srv")).unwrap(),
            &["/srv/shop/sub", "/srv/shop/file"],
        ),
        (
            "what would inherit from a directory of the template that is made again",
            |root| give_on(root, "opt/app"),
            |root| fs::rename(root.join("opt/app"), root.join("elsewhere")).unwrap(),
            &["/opt/app"],
        ),
        ("what has not changed", furnish, nothing, &["/srv/shop", "/etc/ssh", "/usr/bin/tool"]),
    ];
    let world = World::new().await;
    for (what, before, later, paths) in cases {
        let store = Arc::new(Store::memory("test"));
        let mut journal = world.begin(&store, 1).await.unwrap();
        world.inside(before);
        let at = world.commit(&mut journal).await;
        let then = world.view();
        world.inside(later);
        let now = world.view();
        let reverted = world.restore(&mut journal, at, paths).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        let restored = world.view();
        for path in paths {
            let of = |lines: &[String]| lines.iter().filter(|line| is_in(line, path)).cloned().collect::<Vec<_>>();
            assert_eq!(of(&restored), of(&then), "{what}: {path}");
            assert!(!of(&restored).is_empty(), "{what}: {path} is not there");
        }
        let ancestors = |line: &String| {
            paths.iter().any(|path| {
                Path::new(path).ancestors().any(|up| {
                    is_in(line, path)
                        || line.starts_with(&format!("\"{}\" ", up.display().to_string().trim_start_matches('/')))
                })
            })
        };
        let others =
            |lines: &[String]| untimed(lines, paths).into_iter().filter(|line| !ancestors(line)).collect::<Vec<_>>();
        assert_eq!(others(&restored), others(&now), "{what}: something else was touched");
        assert_eq!(world.parts(), ["data", "upper", "work"], "{what}");
        // What was before the restore is one transaction away.
        let undone = world.restore(&mut journal, reverted.before.sequence, &[]).await.unwrap();
        assert_eq!(world.view(), now, "{what}: it cannot be undone");
        assert!(undone.head.sequence >= reverted.head.sequence);
        drop(journal);
        world.volumes.delete(&id("v1")).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_never_changed_takes_no_room_and_what_is_in_the_template_is_shared() {
    let (world, store) = (World::new().await, Arc::new(Store::memory("test")));
    let mut journal = world.begin(&store, 1).await.unwrap();
    let append = |root: &Path| {
        use std::io::Write;
        fs::File::options().append(true).open(root.join("usr/bin/tool")).unwrap().write_all(b"+").unwrap();
    };
    world.inside(append);
    let at = world.commit(&mut journal).await;
    world.inside(|root| fs::write(root.join("usr/bin/tool"), vec![1; 900_000]).unwrap());
    world.inside(|root| fs::write(root.join("etc/ssh/key"), b"x").unwrap());
    world.restore(&mut journal, at, &["/usr/bin/tool", "/etc/ssh/key"]).await.unwrap();
    let mut expected = tool();
    expected.push(b'+');
    assert_eq!(world.inside(|root| fs::read(root.join("usr/bin/tool")).unwrap()), expected);
    assert!(!world.live("upper/etc/ssh/key").exists(), "it is a copy of what the template has");
    let head = Log::new(&id("v1"), store.clone()).unwrap().list_all().await.unwrap();
    let largest = head.iter().rev().take(1).map(|entry| entry.size).max().unwrap();
    assert!(largest < 16 << 10, "the transaction has {largest} bytes: data of the template is in it");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_docker_keeps_is_restored_by_its_path_in_the_environment() {
    let (world, store) = (World::new().await, Arc::new(Store::memory("test")));
    let mut journal = world.begin(&store, 1).await.unwrap();
    fs::create_dir_all(world.live("data/docker/volumes/a")).unwrap();
    fs::write(world.live("data/docker/volumes/a/file"), b"good").unwrap();
    let at = world.commit(&mut journal).await;
    fs::remove_dir_all(world.live("data/docker/volumes")).unwrap();
    fs::write(world.live("data/docker/later"), b"stays").unwrap();
    world.restore(&mut journal, at, &["/var/lib/docker/volumes/a/file"]).await.unwrap();
    assert_eq!(fs::read(world.live("data/docker/volumes/a/file")).unwrap(), b"good");
    assert_eq!(fs::read(world.live("data/docker/later")).unwrap(), b"stays");
    world.restore(&mut journal, at, &["/var/lib/docker"]).await.unwrap();
    assert!(!world.live("data/docker/later").exists());
    assert_eq!(fs::metadata(world.live("data/docker")).unwrap().mode() & 0o7777, 0o711);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_had_is_refused_and_nothing_is_changed() {
    let (world, store) = (World::new().await, Arc::new(Store::memory("test")));
    let mut journal = world.begin(&store, 1).await.unwrap();
    let noise: Vec<u8> = (0..30).flat_map(|_| tool()).collect();
    world.inside(|root| {
        furnish(root);
        symlink("/", root.join("out")).unwrap();
        fs::write(root.join("srv/shop/noise"), &noise).unwrap();
        fs::write(root.join("srv/shop/caf\u{e9}"), b"x").unwrap();
    });
    let at = world.commit(&mut journal).await;
    world.inside(|root| {
        fs::remove_dir_all(root.join("opt")).unwrap();
        symlink("/etc", root.join("opt")).unwrap();
        fs::write(root.join("srv/later"), b"x").unwrap();
    });
    world.commit(&mut journal).await;
    // There is room for what is there, and not for it twice: blocks are not shared with the copy that they come from.
    let size = noise.len() as u64 + (4 << 20);
    world.volumes.set_size(&id("v1"), size).unwrap();
    let limit = world.volumes.usage(&id("v1")).unwrap().unwrap().limit;
    let tree = world.tree();
    let (too_long, too_deep) = (format!("/srv/{}", "x".repeat(256)), "/\u{1f600}".repeat(1000));
    for (paths, reason, words) in [
        (&["/etc/ssh", "/srv/later"][..], "NoSuchPath", "there was no `/srv/later` in the state after transaction 2"),
        (&["/usr/share/doc/b"], "NoSuchPath", "there was no `/usr/share/doc/b`"),
        (&["/etc/ssh/key/x"], "NoSuchPath", "there was no `/etc/ssh/key/x`"),
        // Names are bytes: these two are written alike.
        (&["/srv/shop/cafe\u{301}"], "NoSuchPath", "there was no"),
        (&[too_long.as_str()], "NoSuchPath", "there was no"),
        (&[too_deep.as_str()], "NoSuchPath", "there was no"),
        (&["/srv/../etc/ssh"], "NoSuchPath", "there was no `/srv/../etc/ssh`"),
        (&["/out/etc/passwd"], "NoSuchPath", "`/out` was a symbolic link"),
        (&["/bin/tool"], "NoSuchPath", "`/bin` was a symbolic link"),
        (&["/opt/app"], "NoSuchPath", "`/opt` is no directory any more"),
        (&["/var/lib/docker/none"], "NoSuchPath", "there was no `/var/lib/docker/none`"),
        (&["/etc/ssh", "/srv/shop"], "VolumeFull", "does not fit beside what is there"),
    ] {
        let error = world.restore_in(size, &mut journal, at, paths).await.unwrap_err();
        assert!(error.is_final() && error.reason() == reason, "{paths:?}: {error}");
        assert!(error.to_string().contains(words), "{paths:?}: {error}");
        assert_eq!(world.tree(), tree, "{paths:?}");
        let log = Log::new(&id("v1"), store.clone()).unwrap();
        let to = log.moment(at).await.unwrap().unwrap().position;
        let paths: Vec<PathBuf> = paths.iter().map(PathBuf::from).collect();
        let asked = check_paths(&world.volumes, &world.templates, &log, &world.layers, to, SIZE, paths.clone()).await;
        // What is there now decides only when nothing runs any more.
        let known_before = reason == "NoSuchPath" && !words.contains("any more");
        assert_eq!(asked.is_err(), known_before, "{paths:?}: {asked:?}");
    }
    let usage = world.volumes.usage(&id("v1")).unwrap().unwrap();
    assert_eq!(usage.limit, limit, "the limit was left raised");
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

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_of_paths_that_breaks_off_anywhere_is_done_again_and_can_be_undone() {
    let (world, mut finished) = (World::new().await, 0);
    for seed in 0..12 {
        let memory: Arc<InMemory> = Arc::new(InMemory::new());
        let store = Arc::new(Store::over("whole", memory.clone(), Sizes::default()));
        let mut journal = world.begin(&store, 1).await.unwrap();
        world.inside(furnish);
        let at = world.commit(&mut journal).await;
        let then = world.view();
        world.inside(wreck_shop);
        let wrecked = world.view();
        drop(journal);
        let order = Revert {
            order: format!("order {seed}"),
            from: None,
            sequence: at,
            paths: vec!["/srv/shop".into(), "/etc/ssh".into()],
        };
        let faults = Faults { fails: 0.1, answer_lost: 0.1, stale_list: 0.2, ..Faults::NONE };
        let broken = Arc::new(Store::over("broken", Arc::new(Faulty::new(memory, seed, faults)), Sizes::default()));
        finished += u32::from(cut_off(Duration::from_millis(20 << seed), async {
            world.begin(&broken, 2).await?.revert(&world.templates, &order, SIZE).await
        }));
        let mut journal = world.begin(&store, 3).await.unwrap();
        let reverted = journal.revert(&world.templates, &order, SIZE).await.unwrap();
        let of = |lines: &[String]| lines.iter().filter(|line| is_in(line, "/srv/shop")).cloned().collect::<Vec<_>>();
        assert_eq!(of(&world.view()), of(&then), "seed {seed}");
        world.restore(&mut journal, reverted.before.sequence, &[]).await.unwrap();
        assert_eq!(world.view(), wrecked, "seed {seed}: the state before is not the one that is told");
        drop(journal);
        world.volumes.delete(&id("v1")).unwrap();
    }
    assert!((1..12).contains(&finished), "{finished} of 12 were finished: the moments are badly chosen");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_is_repeated_is_decided_from_what_was_there_at_first() {
    let (world, store) = (World::new().await, Arc::new(Store::memory("test")));
    let mut journal = world.begin(&store, 1).await.unwrap();
    let noise: Vec<u8> = (0..30).flat_map(|_| tool()).collect();
    world.inside(|root| {
        furnish(root);
        fs::write(root.join("srv/shop/noise"), &noise).unwrap();
    });
    let at = world.commit(&mut journal).await;
    let then = world.view();
    world.inside(|root| fs::remove_dir_all(root.join("srv/shop")).unwrap());
    let now = world.view();
    let newest = world.commit(&mut journal).await;
    let wanted =
        Revert { order: "one".into(), from: None, sequence: at, paths: vec!["/srv/shop".into(), "/etc/ssh".into()] };
    let of = |lines: &[String]| lines.iter().filter(|line| is_in(line, "/srv/shop")).cloned().collect::<Vec<_>>();
    // Beside what the first time brought there is no room for it again.
    let size = noise.len() as u64 + (1 << 20);
    for time in 0..2 {
        let reverted = journal.revert(&world.templates, &wanted, size).await.unwrap();
        assert_eq!(reverted.before.sequence, newest, "{time}");
        assert_eq!(of(&world.view()), of(&then), "{time}");
    }
    // The disk was made smaller meanwhile: nothing of it stays.
    let error = journal.revert(&world.templates, &wanted, 4 << 20).await.unwrap_err();
    assert!(error.is_final() && error.reason() == "VolumeFull", "{error}");
    assert_eq!(world.parts(), ["data", "upper", "work"]);
    assert_eq!(world.view(), now);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_as_deep_as_paths_can_be_comes_back_and_goes() {
    let (world, store) = (World::new().await, Arc::new(Store::memory("test")));
    let mut journal = world.begin(&store, 1).await.unwrap();
    world.inside(|root| fs::create_dir(root.join("d")).unwrap());
    let without = world.commit(&mut journal).await;
    world.inside(|root| {
        // `upper/d` and this have 4095 bytes.
        let mut left = 4095 - "upper/d".len();
        let mut directory = fs::File::open(root.join("d")).unwrap();
        while left > 1 {
            let name = "n".repeat(if left > 300 { 200 } else { 1 });
            rustix::fs::mkdirat(&directory, &name, Mode::RWXU).unwrap();
            let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
            directory = rustix::fs::openat(&directory, &name, flags, Mode::empty()).unwrap().into();
            left -= 1 + name.len();
        }
    });
    let at = world.commit(&mut journal).await;
    let tree = world.tree();
    world.restore(&mut journal, without, &["/d"]).await.unwrap();
    assert_eq!(world.inside(|root| fs::read_dir(root.join("d")).unwrap().count()), 0);
    world.restore(&mut journal, at, &["/d"]).await.unwrap();
    assert_eq!(world.tree().len(), tree.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_kernel_does_not_let_be_copied_is_refused_for_good() {
    let (world, store) = (World::new().await, Arc::new(Store::memory("test")));
    let mut journal = world.begin(&store, 1).await.unwrap();
    world.inside(|root| {
        furnish(root);
        // More names than listxattr(2) tells.
        for number in 0..300 {
            let name = format!("user.{number:03}{}", "x".repeat(240));
            rustix::fs::setxattr(root.join("srv/shop/page"), name, b"", XattrFlags::empty()).unwrap();
        }
    });
    let at = world.commit(&mut journal).await;
    world.inside(|root| fs::remove_dir_all(root.join("srv/shop")).unwrap());
    world.commit(&mut journal).await;
    let tree = world.tree();
    let error = world.restore(&mut journal, at, &["/etc/ssh", "/srv/shop"]).await.unwrap_err();
    assert!(error.is_final() && error.reason() == "NodeError", "{error}");
    assert!(error.to_string().contains("Argument list too long"), "{error}");
    assert_eq!(world.tree(), tree);
    world.restore(&mut journal, at, &["/srv/shop/fifo"]).await.unwrap();
}
