//! A volume's changes as transaction files, carried out again elsewhere: the trees must be equal.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::support::TestNode;
use rustix::fs::{AtFlags, FallocateFlags, FileType, Mode, OFlags};
use vivarium_journal::op::{Op, Range};
use vivarium_journal::read::Transaction;
use vivarium_journal::touched::Touched;
use vivarium_journal::write::{Summary, Writer};
use vivarium_journal::{Digest, Header, Kind, TreePath};
use vivarium_node::journal::apply::{ApplyError, Target};
use vivarium_node::journal::capture::{CaptureError, Difference, capture};
use vivarium_node::journal::tree::describe;
use vivarium_node::pool::Pool;
use vivarium_sys::btrfs;

/// A pool with a template layer, a volume, and a second volume that its transactions are applied to.
struct Pair {
    node: TestNode,
    pool: Arc<Pool>,
    snapshots: u64,
}

impl Pair {
    fn new() -> Self {
        let node = TestNode::new();
        let pool = node.pool();
        let pair = Self { node, pool, snapshots: 0 };
        for name in ["layer", "source", "target"] {
            btrfs::create_subvolume(pair.pool.root(), &CString::new(name).unwrap()).unwrap();
        }
        let block: Vec<u8> = (0..4 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        fs::write(pair.at("layer").join("large"), block).unwrap();
        btrfs::set_read_only(pair.open("layer").as_fd(), true).unwrap();
        pair
    }

    fn at(&self, name: &str) -> PathBuf {
        self.pool.path().join(name)
    }

    fn open(&self, name: &str) -> OwnedFd {
        rustix::fs::open(self.at(name), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap()
    }

    /// Captures what has changed since the last call and applies it; tells the file's path and summary.
    fn commit(&mut self) -> (PathBuf, Option<Summary>) {
        self.try_commit().unwrap()
    }

    fn try_commit(&mut self) -> Result<(PathBuf, Option<Summary>), CaptureError> {
        let (old, new) = (self.snapshots, self.snapshots + 1);
        let name = format!("snapshot{new}");
        btrfs::snapshot(self.open("source").as_fd(), self.pool.root(), &CString::new(name.clone()).unwrap(), true)
            .unwrap();
        let snapshot = self.open(&name);
        let base = (old > 0).then(|| btrfs::subvolume_info(self.open(&format!("snapshot{old}")).as_fd()).unwrap().id);
        let layers = [btrfs::subvolume_info(self.open("layer").as_fd()).unwrap()];
        let info = btrfs::subvolume_info(snapshot.as_fd()).unwrap();
        let path = self.node.dir.path().join(format!("{new}.vtx"));
        let file = File::create(&path).unwrap();
        let difference = Difference { snapshot: snapshot.as_fd(), info, base, layers: &layers };
        let captured = capture(&difference, &header(new), &file);
        if captured.is_err() {
            btrfs::destroy_subvolume(self.pool.root(), &CString::new(name).unwrap()).unwrap();
        }
        let summary = captured?;
        self.snapshots = new;
        if summary.is_some() {
            self.apply(&path).unwrap();
        }
        Ok((path, summary))
    }

    fn apply(&self, path: &Path) -> Result<(), ApplyError> {
        let mut transaction = Transaction::open(File::open(path).unwrap()).unwrap();
        Target::new(self.open("target"), vec![self.open("layer")]).apply(&mut transaction)
    }

    /// Both trees must look the same.
    fn compare(&self, after: &str) {
        let [source, target] =
            [format!("snapshot{}", self.snapshots), "target".into()].map(|name| lines(&self.open(&name)));
        let differences: Vec<_> = source.iter().filter(|line| !target.contains(line)).collect();
        let others: Vec<_> = target.iter().filter(|line| !source.contains(line)).collect();
        assert!(differences.is_empty() && others.is_empty(), "after {after}:\n- {differences:#?}\n+ {others:#?}");
    }
}

fn lines(root: &OwnedFd) -> Vec<String> {
    let mut lines = Vec::new();
    describe(root.as_fd(), &mut |line| lines.push(line.to_owned())).unwrap();
    lines
}

fn header(sequence: u64) -> Header {
    Header {
        kind: Kind::Delta,
        volume: "v1".into(),
        writer: [1; 16],
        epoch: 1,
        first: sequence,
        sequence,
        parent: Digest::EMPTY,
        time: 0,
        layers: vec!["sha256:aa".into()],
    }
}

fn xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, rustix::fs::XattrFlags::empty()).unwrap();
}

/// A file capability as setcap(8) writes it: revision 2, `cap_net_raw`, effective.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// An access control list: rwx for user 1000 besides owner, group, mask and others.
const ACL: [u8; 44] = [
    2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 7, 0, 232, 3, 0, 0, 4, 0, 4, 0, 255, 255, 255, 255, 16, 0, 7, 0,
    255, 255, 255, 255, 32, 0, 4, 0, 255, 255, 255, 255,
];

/// What is done, and how.
type Step = (&'static str, Box<dyn Fn()>);

#[test]
fn every_kind_of_change_arrives() {
    let mut pair = Pair::new();
    let at = |path: &str| pair_path(&pair, path);
    let noise: Vec<u8> = (0..300_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
    let steps: Vec<Step> = vec![
        ("plain files and directories", {
            let (dir, file) = (at("dir/below"), at("dir/below/file"));
            let noise = noise.clone();
            Box::new(move || {
                fs::create_dir_all(&dir).unwrap();
                fs::write(&file, &noise).unwrap();
                fs::set_permissions(&file, fs::Permissions::from_mode(0o4755)).unwrap();
                std::os::unix::fs::chown(&file, Some(33), Some(65535)).unwrap();
                fs::set_permissions(&file, fs::Permissions::from_mode(0o6751)).unwrap();
            })
        }),
        ("names that are no text", {
            let dir = at("dir");
            Box::new(move || {
                let name = std::ffi::OsStr::from_bytes(b"\xff\xfe \n\"'\\ name");
                fs::write(dir.join(name), b"x").unwrap();
                fs::write(dir.join("o257-8-0"), b"like the kernel's own").unwrap();
            })
        }),
        ("links, fifos, sockets, devices, whiteouts", {
            let root = at("");
            Box::new(move || {
                symlink("/etc/passwd", root.join("absolute")).unwrap();
                symlink(std::ffi::OsStr::from_bytes(b"../\xff"), root.join("odd")).unwrap();
                fs::hard_link(root.join("dir/below/file"), root.join("second-name")).unwrap();
                let directory = File::open(&root).unwrap();
                let make = |name: &str, kind, device| {
                    rustix::fs::mknodat(&directory, name, kind, Mode::from_raw_mode(0o640), device).unwrap();
                };
                make("fifo", FileType::Fifo, 0);
                make("socket", FileType::Socket, 0);
                make("null", FileType::CharacterDevice, rustix::fs::makedev(1, 3));
                make("disk", FileType::BlockDevice, rustix::fs::makedev(259, 70_000));
                make("whiteout", FileType::CharacterDevice, 0);
                fs::hard_link(root.join("whiteout"), root.join("whiteout2")).unwrap();
                rustix::fs::chownat(
                    &directory,
                    "absolute",
                    Some(rustix::process::Uid::from_raw(7)),
                    None,
                    AtFlags::SYMLINK_NOFOLLOW,
                )
                .unwrap();
            })
        }),
        ("attributes, lists, capabilities", {
            let root = at("");
            Box::new(move || {
                xattr(&root.join("dir"), "trusted.overlay.opaque", b"y");
                xattr(&root.join("dir"), "trusted.overlay.redirect", b"/old name");
                xattr(&root.join("dir/below/file"), "user.long", &[7; 3000]);
                xattr(&root.join("dir/below/file"), "security.capability", &CAPABILITY);
                xattr(&root.join("dir/below/file"), "system.posix_acl_access", &ACL);
                xattr(&root.join("dir"), "system.posix_acl_default", &ACL);
                xattr(&root.join("absolute"), "trusted.of-a-link", b"1");
                xattr(&root.join("whiteout"), "trusted.of-a-device", b"1");
            })
        }),
        ("a write into a file with capabilities", {
            let file = at("dir/below/file");
            let root = at("");
            Box::new(move || {
                File::options().write(true).open(&file).unwrap().write_all_at(b"changed", 5000).unwrap();
                // The kernel has dropped it; it is given again.
                xattr(&file, "security.capability", &CAPABILITY);
                rustix::fs::lremovexattr(root.join("dir/below/file"), "user.long").unwrap();
            })
        }),
        ("holes and reserved room", {
            let root = at("");
            let noise = noise.clone();
            Box::new(move || {
                let sparse = File::create(root.join("sparse")).unwrap();
                sparse.write_all_at(b"end", 50 << 20).unwrap();
                let zeros = File::create(root.join("zeros")).unwrap();
                zeros.write_all_at(&[0; 100_000], 0).unwrap();
                let reserved = File::create(root.join("reserved")).unwrap();
                reserved.write_all_at(&noise, 0).unwrap();
                rustix::fs::fallocate(&reserved, FallocateFlags::KEEP_SIZE, 1 << 20, 1 << 20).unwrap();
                rustix::fs::fallocate(&reserved, FallocateFlags::empty(), 4 << 20, 100_000).unwrap();
                let punched = File::create(root.join("punched")).unwrap();
                punched.write_all_at(&noise, 0).unwrap();
                let caps = File::create(root.join("capable")).unwrap();
                caps.write_all_at(&[0; 8192], 0).unwrap();
                fs::set_permissions(root.join("capable"), fs::Permissions::from_mode(0o4755)).unwrap();
                xattr(&root.join("capable"), "security.capability", &CAPABILITY);
            })
        }),
        ("a hole in old data, data in a hole, in reserved room", {
            let root = at("");
            Box::new(move || {
                let open = |name: &str| File::options().write(true).open(root.join(name)).unwrap();
                let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(open("punched"), punch, 65_536, 131_072).unwrap();
                open("sparse").write_all_at(&[9; 5000], 20 << 20).unwrap();
                open("reserved").write_all_at(&[8; 5000], 1 << 20).unwrap();
                open("zeros").write_all_at(b"no zeros", 4096).unwrap();
            })
        }),
        ("sizes", {
            let root = at("");
            Box::new(move || {
                let open = |name: &str| File::options().write(true).open(root.join(name)).unwrap();
                open("punched").set_len(100).unwrap();
                open("zeros").set_len(1 << 20).unwrap();
                open("sparse").set_len(30 << 20).unwrap();
            })
        }),
        ("names that change places", {
            let root = at("");
            Box::new(move || {
                fs::create_dir_all(root.join("a/x/y")).unwrap();
                fs::create_dir_all(root.join("b/x")).unwrap();
                fs::write(root.join("a/x/y/f"), b"a").unwrap();
                fs::write(root.join("b/x/f"), b"b").unwrap();
            })
        }),
        ("an exchange, a move into what was below, a name used again", {
            let root = at("");
            Box::new(move || {
                rustix::fs::renameat_with(
                    rustix::fs::CWD,
                    root.join("a"),
                    rustix::fs::CWD,
                    root.join("b"),
                    rustix::fs::RenameFlags::EXCHANGE,
                )
                .unwrap();
                fs::rename(root.join("b/x/y"), root.join("y")).unwrap();
                fs::rename(root.join("b"), root.join("y/b")).unwrap();
                fs::rename(root.join("second-name"), root.join("dir/third-name")).unwrap();
                fs::remove_file(root.join("dir/below/file")).unwrap();
                fs::create_dir(root.join("dir/below/file")).unwrap();
                fs::remove_file(root.join("fifo")).unwrap();
                symlink("sparse", root.join("fifo")).unwrap();
                File::options().append(true).open(root.join("y/f")).unwrap().write_all(b"more").unwrap();
            })
        }),
        ("clones of the template and of own data", {
            let root = at("");
            Box::new(move || {
                let from = File::open(root.parent().unwrap().join("layer/large")).unwrap();
                let to = File::create(root.join("copied-up")).unwrap();
                rustix::fs::ioctl_ficlone(&to, &from).unwrap();
                File::options().append(true).open(root.join("copied-up")).unwrap().write_all(b"!").unwrap();
                let to = File::create(root.join("copy-of-own")).unwrap();
                rustix::fs::ioctl_ficlone(&to, File::open(root.join("reserved")).unwrap()).unwrap();
            })
        }),
        ("removal of much", {
            let root = at("");
            Box::new(move || {
                fs::remove_dir_all(root.join("dir")).unwrap();
                fs::remove_dir_all(root.join("y")).unwrap();
                fs::remove_file(root.join("copied-up")).unwrap();
            })
        }),
        ("times and modes of directories", {
            let root = at("");
            Box::new(move || {
                fs::set_permissions(root.join("a"), fs::Permissions::from_mode(0o1777)).unwrap();
                let old = std::time::UNIX_EPOCH - std::time::Duration::new(86_400, 5);
                File::open(root.join("a")).unwrap().set_modified(old).unwrap();
            })
        }),
    ];
    for (what, change) in steps {
        change();
        let (_, summary) = pair.commit();
        assert!(summary.is_some(), "nothing was captured of: {what}");
        pair.compare(what);
    }
    let (_, nothing) = pair.commit();
    assert_eq!(nothing, None, "an unchanged volume makes no transaction");
    // The comparison can fail.
    File::options().write(true).open(pair.at("target/zeros")).unwrap().write_all_at(b"?", 70_000).unwrap();
    let same = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| pair.compare("a change of one byte")));
    assert!(same.is_err(), "the comparison does not see a changed byte");
}

fn pair_path(pair: &Pair, path: &str) -> PathBuf {
    pair.at("source").join(path)
}

#[test]
fn a_byte_more_in_a_large_file_of_the_template_is_a_small_transaction() {
    let mut pair = Pair::new();
    let from = File::open(pair.at("layer/large")).unwrap();
    let mut to = File::create(pair.at("source/large")).unwrap();
    rustix::fs::ioctl_ficlone(&to, &from).unwrap();
    to.write_all_at(b"!", 4 << 20).unwrap();
    to.flush().unwrap();
    let (_, summary) = pair.commit();
    pair.compare("a copy-up");
    let length = summary.unwrap().length;
    assert!(length < 1024, "one byte in a file of 4 MiB makes a transaction of {length} bytes");
}

/// What the kernel cannot name cannot be kept; that is said, and it is over when the path is gone.
#[test]
fn a_path_that_is_too_long_is_an_error_that_goes_away() {
    let mut pair = Pair::new();
    fs::write(pair.at("source/before"), b"1").unwrap();
    pair.commit();
    let name = "d".repeat(200);
    // Directory by directory: as one path it could not be made either.
    let mut at = rustix::fs::open(pair.at("source"), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
    for _ in 0..21 {
        rustix::fs::mkdirat(&at, &name, Mode::from_raw_mode(0o755)).unwrap();
        at = rustix::fs::openat(&at, &name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    fs::write(pair.at("source/beside"), b"2").unwrap();
    let error = pair.try_commit().unwrap_err();
    assert!(matches!(error, CaptureError::TooDeep), "{error}");
    fs::remove_dir_all(pair.at("source").join(&name)).unwrap();
    pair.commit();
    pair.compare("a removal of what was too deep");
    assert_eq!(fs::read(pair.at("target/beside")).unwrap(), b"2");
}

/// Transactions that a tenant might have somebody apply: each must fail, and leave what is outside as it was.
#[test]
fn a_hostile_transaction_reaches_nothing_outside() {
    let pair = Pair::new();
    let outside = pair.node.dir.path().join("outside");
    fs::write(&outside, b"precious").unwrap();
    fs::set_permissions(&outside, fs::Permissions::from_mode(0o600)).unwrap();
    let target = outside.as_os_str().as_bytes();
    let path = |text: &'static str| TreePath::parse(text.as_bytes()).unwrap();
    let link = Op::MakeSymlink { path: path("link"), target };
    let up = Op::MakeSymlink { path: path("up"), target: b"/" };
    let cases: Vec<(&str, Vec<Op<'_>>)> = vec![
        ("a write through a link", vec![link, Op::Write { path: path("link"), offset: 0, data: b"gone" }]),
        ("a size through a link", vec![link, Op::Truncate { path: path("link"), size: 0 }]),
        ("a mode through a link", vec![link, Op::Mode { path: path("link"), mode: 0o777 }]),
        ("a file below a link", vec![up, Op::MakeFile(path("up/made"))]),
        ("a removal below a link", vec![up, Op::Unlink(path("up/etc"))]),
        (
            "a clone from a link",
            vec![
                link,
                Op::MakeFile(path("f")),
                Op::CloneOwn { path: path("f"), offset: 0, from: path("link"), range: Range { offset: 0, length: 8 } },
            ],
        ),
        (
            "a clone from a link's directory",
            vec![
                up,
                Op::MakeFile(path("f")),
                Op::CloneOwn {
                    path: path("f"),
                    offset: 0,
                    from: path("up/etc/passwd"),
                    range: Range { offset: 0, length: 8 },
                },
            ],
        ),
        ("a link to a name below a link", vec![up, Op::Link { existing: path("up/etc/passwd"), path: path("passwd") }]),
        (
            "a write to a device",
            vec![
                Op::MakeDevice { path: path("full"), character: true, major: 1, minor: 7 },
                Op::Write { path: path("full"), offset: 0, data: b"x" },
            ],
        ),
        (
            "a write to a fifo, which would wait for ever",
            vec![Op::MakeFifo(path("fifo")), Op::Write { path: path("fifo"), offset: 0, data: b"x" }],
        ),
    ];
    for (what, operations) in cases {
        let file = pair.node.dir.path().join("hostile.vtx");
        let mut writer = Writer::new(File::create(&file).unwrap(), &header(1)).unwrap();
        for op in &operations {
            writer.push(op).unwrap();
        }
        writer.finish(&Touched::default().changes()).unwrap();
        let error = pair.apply(&file).expect_err(what).to_string();
        assert!(error.contains("cannot be carried out"), "{what}: {error}");
        assert_eq!(fs::read(&outside).unwrap(), b"precious", "{what}");
        assert_eq!(fs::metadata(&outside).unwrap().permissions().mode() & 0o7777, 0o600, "{what}");
        for name in fs::read_dir(pair.at("target")).unwrap() {
            fs::remove_file(name.unwrap().path()).unwrap();
        }
    }
}
