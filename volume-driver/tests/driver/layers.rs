//! Template layers on a real btrfs: what they hold is reproduced, what they must not do is refused and leaves nothing.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use crate::support::registry::{Fault, Packing, Registry, digest};
use crate::support::tarball::{Item, Tarball};
use crate::support::{LIMITS, TestNode, soon};
use serde_json::json;
use vivarium_node::ids::LayerDigest;
use vivarium_node::pool::Pool;
use vivarium_node::template::unpack::Limits;
use vivarium_node::template::{TemplateCache, TemplateError};

struct Bench {
    node: TestNode,
    registry: Registry,
    pool: Arc<Pool>,
    cache: Arc<TemplateCache>,
}

async fn bench() -> Bench {
    let node = TestNode::new();
    let registry = Registry::start().await;
    let pool = node.pool();
    let cache = node.templates(&pool, &registry.address);
    Bench { node, registry, pool, cache }
}

impl Bench {
    /// Pulls an image of one layer; tells the path of the layer.
    async fn unpack(&self, tar: Vec<u8>) -> Result<std::path::PathBuf, TemplateError> {
        let (image, layers) = self.registry.image("1", &[(tar, Packing::None)]);
        let layers = digests(&layers);
        self.cache.ensure(&image, &layers, &[]).await?;
        Ok(self.cache.path(&layers[0]))
    }

    fn left(&self) -> Vec<String> {
        let list = fs::read_dir(self.pool.templates_path()).unwrap();
        list.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

fn digests(layers: &[String]) -> Vec<LayerDigest> {
    layers.iter().map(|layer| LayerDigest::parse(layer).unwrap()).collect()
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 1024];
    let length = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    value.truncate(length);
    Some(value)
}

/// `VFS_CAP_REVISION_2` with `cap_net_raw` permitted and effective (linux/capability.h).
const CAPABILITY: &[u8] = &[1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_is_reproduced_in_all_that_it_says() {
    let bench = bench().await;
    let long = format!("{}/file", "long-name-".repeat(20));
    let tar = Tarball::new()
        .item(Item { path: "./", kind: b'5', mode: 0o755, mtime: 5, ..Item::default() })
        .item(Item { path: "./bin/", kind: b'5', mode: 0o2755, uid: 1, gid: 2, mtime: 77, ..Item::default() })
        .item(Item { path: "bin/su", mode: 0o4755, uid: 3, gid: 4, mtime: 99, data: b"su", ..Item::default() })
        .hardlink("bin/su-too", "./bin/su")
        .symlink("bin/sh", "/no/such/../place")
        .hardlink("bin/sh-too", "bin/sh")
        .pax(&[
            ("SCHILY.xattr.security.capability", CAPABILITY),
            ("SCHILY.xattr.user.note", b"a\nb=\0"),
            ("SCHILY.xattr.security.selinux", b"left out"),
            ("mtime", b"1234567890.123456789"),
        ])
        .item(Item { path: "bin/ping", mode: 0o755, data: b"ping", ..Item::default() })
        .pax(&[("SCHILY.acl.access", b"user::rw-,user:1000:rwx,group::r--,mask::rwx,other::---")])
        .item(Item { path: "acl", mode: 0o670, data: b"x", ..Item::default() })
        .item(Item { path: "dev/tty9", kind: b'3', mode: 0o620, gid: 5, device: (4, 9), ..Item::default() })
        .item(Item { path: "dev/sda", kind: b'4', mode: 0o660, device: (8, 0), ..Item::default() })
        .item(Item { path: "pipe", kind: b'6', mode: 0o600, ..Item::default() })
        .file(&long, b"found")
        .pax(&[("path", "ünïcode/ß".as_bytes()), ("uid", b"65534"), ("size", b"3")])
        .item(Item { path: "ignored", data: b"pax", ..Item::default() })
        .finish();
    let root = bench.unpack(tar).await.unwrap();
    let stat = |path: &str| fs::symlink_metadata(root.join(path)).unwrap();
    let facts = |path: &str| (stat(path).mode() & 0o7777, stat(path).uid(), stat(path).gid(), stat(path).mtime());

    assert_eq!(facts(""), (0o755, 0, 0, 5));
    assert_eq!(facts("bin"), (0o2755, 1, 2, 77), "times of directories are set last");
    assert_eq!(facts("bin/su"), (0o4755, 3, 4, 99));
    assert_eq!(stat("bin/su").ino(), stat("bin/su-too").ino());
    assert_eq!(stat("bin/su").nlink(), 2);
    assert_eq!(fs::read_link(root.join("bin/sh")).unwrap(), Path::new("/no/such/../place"));
    assert_eq!(stat("bin/sh").ino(), stat("bin/sh-too").ino());
    assert_eq!(xattr(&root.join("bin/ping"), "security.capability").as_deref(), Some(CAPABILITY));
    assert_eq!(xattr(&root.join("bin/ping"), "user.note").as_deref(), Some(&b"a\nb=\0"[..]));
    assert_eq!(xattr(&root.join("bin/ping"), "security.selinux"), None);
    assert_eq!((stat("bin/ping").mtime(), stat("bin/ping").mtime_nsec()), (1_234_567_890, 123_456_789));
    let acl = xattr(&root.join("acl"), "system.posix_acl_access").unwrap();
    assert_eq!(acl.len(), 4 + 5 * 8);
    assert_eq!(acl[12..20], [2, 0, 7, 0, 0xe8, 3, 0, 0], "user 1000 may do all");
    assert!(stat("dev/tty9").file_type().is_char_device());
    assert_eq!(
        (stat("dev/tty9").rdev(), facts("dev/tty9").0, facts("dev/tty9").2),
        (rustix::fs::makedev(4, 9), 0o620, 5)
    );
    assert!(stat("dev/sda").file_type().is_block_device());
    assert_eq!(facts("dev"), (0o755, 0, 0, facts("dev").3), "implied directories are root's");
    assert!(stat("pipe").file_type().is_fifo());
    assert_eq!(fs::read(root.join(long)).unwrap(), b"found");
    assert_eq!(fs::read(root.join("ünïcode/ß")).unwrap(), b"pax");
    assert_eq!(facts("ünïcode/ß").1, 65534);

    let refused = fs::write(root.join("new"), b"").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "layers are read-only");
    assert_eq!(bench.left().len(), 1, "nothing but the layer: {:?}", bench.left());
}

#[tokio::test(flavor = "multi_thread")]
async fn holes_are_kept_in_every_form() {
    let bench = bench().await;
    let size = 8 << 20;
    let mut plain = vec![0; size as usize];
    plain[..3].copy_from_slice(b"abc");
    plain[4 << 20..(4 << 20) + 3].copy_from_slice(b"mid");
    let mut pax_1 = format!("2\n0\n512\n{}\n512\n", 4 << 20).into_bytes();
    pax_1.resize(512, 0);
    for part in [b"abc", b"mid"] {
        pax_1.extend_from_slice(part);
        pax_1.resize(pax_1.len().next_multiple_of(512), 0);
    }
    let parts: [u8; 1024] = std::array::from_fn(|i| match i {
        0..3 => b"abc"[i],
        512..515 => b"mid"[i - 512],
        _ => 0,
    });
    let tar = Tarball::new()
        .file("plain", &plain)
        .gnu_sparse("old", size, &[(0, &parts[..512]), (4 << 20, &parts[512..])])
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"one"),
            ("GNU.sparse.realsize", size.to_string().as_bytes()),
        ])
        .file("GNUSparseFile.0/one", &pax_1)
        .pax(&[
            ("GNU.sparse.size", size.to_string().as_bytes()),
            ("GNU.sparse.numblocks", b"2"),
            ("GNU.sparse.map", format!("0,512,{},512", 4 << 20).as_bytes()),
        ])
        .file("map", &parts)
        .pax(&[
            ("GNU.sparse.size", size.to_string().as_bytes()),
            ("GNU.sparse.offset", b"0"),
            ("GNU.sparse.numbytes", b"512"),
            ("GNU.sparse.offset", (4 << 20).to_string().as_bytes()),
            ("GNU.sparse.numbytes", b"512"),
        ])
        .file("zero", &parts)
        .file("behind", b"in step")
        .finish();
    let root = bench.unpack(tar).await.unwrap();
    for name in ["plain", "old", "one", "map", "zero"] {
        assert_eq!(fs::read(root.join(name)).unwrap(), plain, "{name}");
        let blocks = fs::metadata(root.join(name)).unwrap().blocks();
        assert!(blocks <= 32, "{name} takes {blocks} blocks");
    }
    assert_eq!(fs::read(root.join("behind")).unwrap(), b"in step");
    assert!(!root.join("GNUSparseFile.0").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn whiteouts_take_the_form_of_overlayfs() {
    let bench = bench().await;
    let tar = Tarball::new()
        .dir("etc")
        .file("etc/.wh.gone", b"")
        .dir("var/cache")
        .file("var/cache/.wh..wh..opq", b"")
        .file("var/cache/fresh", b"1")
        // Deleted and made anew in one layer: nothing of the old directory may show through.
        .file(".wh.opt", b"")
        .dir("opt")
        .file("opt/new", b"1")
        .file("srv/new", b"1")
        .file(".wh.srv", b"")
        .item(Item { path: "etc/native", kind: b'3', mode: 0, ..Item::default() })
        .finish();
    let root = bench.unpack(tar).await.unwrap();
    for name in ["etc/gone", "etc/native"] {
        let stat = fs::symlink_metadata(root.join(name)).unwrap();
        assert!(stat.file_type().is_char_device() && stat.rdev() == 0, "{name}");
    }
    for name in ["var/cache", "opt", "srv"] {
        assert_eq!(xattr(&root.join(name), "trusted.overlay.opaque").as_deref(), Some(&b"y"[..]), "{name}");
    }
    assert!(root.join("opt/new").exists() && root.join("srv/new").exists());
    assert!(!root.join("etc/.wh.gone").exists() && !root.join("var/cache/.wh..wh..opq").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_of_a_real_tar_are_the_same_tree() {
    let bench = bench().await;
    let source = bench.node.dir.path().join("source");
    fs::create_dir_all(source.join("d")).unwrap();
    fs::write(source.join("d/file"), vec![7; 100_000]).unwrap();
    fs::hard_link(source.join("d/file"), source.join("link")).unwrap();
    fs::write(source.join("x".repeat(150)), b"long").unwrap();
    let sparse = fs::File::create(source.join("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    std::os::unix::fs::FileExt::write_at(&sparse, b"data", 32 << 20).unwrap();
    for format in ["gnu", "posix"] {
        let tar = Command::new("tar")
            .args(["--sparse", "--numeric-owner", &format!("--format={format}"), "-C"])
            .arg(&source)
            .args(["-c", "."])
            .output()
            .unwrap();
        assert!(tar.status.success(), "{}", String::from_utf8_lossy(&tar.stderr));
        let root = bench.unpack(tar.stdout).await.unwrap();
        let same = Command::new("diff").arg("-r").args([&source, &root]).output().unwrap();
        assert!(same.status.success(), "{format}: {}", String::from_utf8_lossy(&same.stdout));
        assert_eq!(fs::metadata(root.join("link")).unwrap().nlink(), 2);
        assert!(fs::metadata(root.join("sparse")).unwrap().blocks() < 64);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_layers_are_refused_and_leave_nothing() {
    let bench = bench().await;
    let outside = bench.node.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), b"secret").unwrap();
    let out = outside.to_str().unwrap();
    let secret = format!("{out}/secret");
    let new = Tarball::new;
    let deep = "d/".repeat(2500);
    let huge = {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::XHeader);
        header.set_size(4 << 30);
        header.set_cksum();
        header.as_bytes().to_vec()
    };
    let cases: Vec<(&str, Tarball, &str)> = vec![
        ("dot-dot", new().file("../evil", b""), "HostileLayer"),
        ("dot-dot inside", new().file("a/../../evil", b""), "HostileLayer"),
        ("absolute", new().file("/evil", b""), "HostileLayer"),
        ("through a symlink", new().symlink("l", out).file("l/evil", b""), "HostileLayer"),
        ("through a relative symlink", new().dir("d").symlink("l", "d").file("l/evil", b""), "HostileLayer"),
        ("through a symlink deep down", new().dir("a").symlink("a/l", "../..").file("a/l/x/evil", b""), "HostileLayer"),
        ("over a symlink as directory", new().symlink("l", out).dir("l").file("l/evil", b""), "HostileLayer"),
        ("through a file", new().file("f", b"").file("f/x", b""), "HostileLayer"),
        ("through magic links", new().symlink("l", "/proc/self/root").file("l/evil", b""), "HostileLayer"),
        ("directory becomes a file", new().dir("d").file("d/x", b"").file("d", b""), "HostileLayer"),
        ("directory becomes a symlink", new().dir("d").symlink("d", out).file("d/evil", b""), "HostileLayer"),
        ("file becomes a directory", new().file("f", b"").dir("f"), "HostileLayer"),
        ("hard link outside", new().hardlink("h", &secret), "HostileLayer"),
        ("hard link by dot-dot", new().hardlink("h", "../../outside/secret"), "HostileLayer"),
        ("hard link through a symlink", new().symlink("l", out).hardlink("h", "l/secret"), "HostileLayer"),
        ("hard link to nothing", new().hardlink("h", "none"), "HostileLayer"),
        ("hard link to a directory", new().dir("d").hardlink("h", "d"), "HostileLayer"),
        ("hard link to itself", new().file("h", b"x").hardlink("h", "h"), "HostileLayer"),
        ("whiteout of dot-dot", new().dir("d").file("d/.wh...", b""), "HostileLayer"),
        ("whiteout of nothing", new().file(".wh.", b""), "HostileLayer"),
        ("inside a whiteout", new().file(".wh.d/x", b""), "HostileLayer"),
        ("overlay redirect", new().pax(&[("SCHILY.xattr.trusted.overlay.redirect", b"/etc")]).dir("d"), "HostileLayer"),
        ("root as a file", new().file("./", b"").symlink(".", out), "HostileLayer"),
        ("path too long", new().file(&deep, b""), "HostileLayer"),
        ("header of 4 GiB", new().raw(&huge), "InvalidImage"),
        ("cut off", new().raw(&new().file("f", &[1; 5000]).finish()[..2048]), "InvalidImage"),
        ("bad checksum", new().raw(&[b'x'; 512]), "InvalidImage"),
        ("unknown type", new().item(Item { path: "x", kind: b'Z', ..Item::default() }), "InvalidImage"),
        (
            "sparse parts beyond the end",
            new().pax(&[("GNU.sparse.size", b"10"), ("GNU.sparse.map", b"100,512")]).file("s", &[1; 512]),
            "InvalidImage",
        ),
        ("sparse parts that overlap", new().gnu_sparse("s", 4096, &[(512, &[1; 512]), (0, &[2; 512])]), "InvalidImage"),
    ];
    for (name, tar, reason) in cases {
        // A cut archive must not be mended by the end marker.
        let bytes = if name == "cut off" { tar.raw(b"").finish()[..2048].to_vec() } else { tar.finish() };
        let refused = bench.unpack(bytes).await.expect_err(name);
        assert_eq!(refused.reason(), reason, "{name}: {refused}");
        assert_eq!(bench.left(), Vec::<String>::new(), "{name}");
    }
    let there: Vec<_> = fs::read_dir(&outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(there, ["secret"], "nothing was written outside");
    assert_eq!(fs::metadata(outside.join("secret")).unwrap().nlink(), 1);
    assert!(!Path::new("/evil").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn bombs_are_refused_and_leave_nothing() {
    let bench = bench().await;
    let mut many = Tarball::new();
    for number in 0..=LIMITS.entries {
        many = many.file(&format!("{number}"), b"");
    }
    let refused = bench.unpack(many.finish()).await.unwrap_err();
    assert_eq!(refused.reason(), "LayerTooLarge", "{refused}");
    assert!(refused.to_string().contains("10000 entries"), "{refused}");

    // Zeros cost nothing on the way and no room in the pool, and count all the same.
    let zeros = Tarball::new().file("zeros", &vec![0; LIMITS.bytes as usize + 1]).finish();
    let (image, layers) = bench.registry.image("1", &[(zeros, Packing::Zstd)]);
    let refused = bench.cache.ensure(&image, &digests(&layers), &[]).await.unwrap_err();
    assert_eq!(refused.reason(), "LayerTooLarge", "{refused}");

    // Behind the end of the archive there can be a stream without end.
    let mut tail = Tarball::new().file("f", b"").finish();
    tail.resize((LIMITS.bytes + LIMITS.entries * 4096) as usize + 2048, 0);
    let (image, layers) = bench.registry.image("2", &[(tail, Packing::Zstd)]);
    let refused = bench.cache.ensure(&image, &digests(&layers), &[]).await.unwrap_err();
    assert_eq!(refused.reason(), "LayerTooLarge", "{refused}");

    // Room that the pool does not have.
    let limits = Limits { entries: 100, bytes: 4 << 30 };
    let cache =
        Arc::new(TemplateCache::open(bench.pool.clone(), vec![bench.registry.address.clone()], limits).unwrap());
    let big = Tarball::new().file("big", &vec![1; 600 << 20]).finish();
    let (image, layers) = bench.registry.image("3", &[(big, Packing::Zstd)]);
    let refused = cache.ensure(&image, &digests(&layers), &[]).await.unwrap_err();
    assert_eq!(refused.reason(), "PoolFull", "{refused}");
    assert_eq!(bench.left(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn content_that_is_not_what_its_digest_says_is_refused() {
    let bench = bench().await;
    let tar = Tarball::new().file("f", b"good").finish();
    let other = Tarball::new().file("f", b"evil").finish();
    let layer = |blob: &[u8], size: usize| json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest(blob), "size": size});
    let registry = &bench.registry;
    let octets = "application/octet-stream";

    // The blob is another one, of the same length.
    registry.put(&digest(&tar), octets, other.clone());
    let (image, _) = registry.manifest("1", &[layer(&tar, tar.len())], &[digest(&tar)]);
    let refused = bench.cache.ensure(&image, &digests(&[digest(&tar)]), &[]).await.unwrap_err();
    assert_eq!(refused.reason(), "DigestMismatch", "{refused}");

    // The blob is right, the content is not what the configuration names.
    registry.put(&digest(&other), octets, other.clone());
    let (image, _) = registry.manifest("2", &[layer(&other, other.len())], &[digest(&tar)]);
    let refused = bench.cache.ensure(&image, &digests(&[digest(&tar)]), &[]).await.unwrap_err();
    assert_eq!(refused.reason(), "DigestMismatch", "{refused}");

    // More, or less, than the descriptor says.
    for size in [other.len() - 1, other.len() + 1] {
        let (image, _) = registry.manifest("3", &[layer(&other, size)], &[digest(&other)]);
        let refused = bench.cache.ensure(&image, &digests(&[digest(&other)]), &[]).await.unwrap_err();
        assert_eq!(refused.reason(), "DigestMismatch", "{refused}");
    }

    // The manifest is another one.
    let (image, layers) = registry.image("4", &[(tar, Packing::Gzip)]);
    let name = image.rsplit('@').next().unwrap().to_owned();
    let stored = registry.store.lock().unwrap()[&name].clone();
    registry.put(&name, &stored.0, [stored.1, b" ".to_vec()].concat());
    let refused = bench.cache.ensure(&image, &digests(&layers), &[]).await.unwrap_err();
    assert_eq!(refused.reason(), "DigestMismatch", "{refused}");
    assert_eq!(bench.left(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn images_that_are_not_there_or_no_system_are_told_apart() {
    let bench = bench().await;
    for (image, reason, stalled) in [
        (bench.registry.tagged("none"), "ImageNotFound", true),
        ("Not An Image".into(), "ImageNotFound", true),
        ("127.0.0.1:1/os:1".into(), "RegistryUnreachable", false),
    ] {
        let refused = bench.cache.resolve(&image).await.unwrap_err();
        assert_eq!((refused.reason(), refused.is_stalled()), (reason, stalled), "{refused}");
    }

    let system = |layers: &[Vec<u8>]| {
        let packed: Vec<_> = layers.iter().map(|tar| (tar.clone(), Packing::Gzip)).collect();
        let (image, layers) = bench.registry.image("os", &packed);
        let cache = bench.cache.clone();
        async move {
            let layers = digests(&layers);
            cache.ensure(&image, &layers, &[]).await.unwrap();
            cache.check(&image, layers).await
        }
    };
    // As in a merged-/usr Debian: symbolic links of both kinds, over two layers.
    let base = Tarball::new()
        .dir("usr/sbin")
        .symlink("sbin", "usr/sbin")
        .symlink("usr/sbin/init", "/lib/systemd/systemd")
        .symlink("lib", "usr/lib")
        .symlink("etc/os-release", "../usr/lib/os-release")
        .file("usr/lib/os-release", b"PRETTY_NAME=\"Old 1\"\n")
        .finish();
    let systemd = Tarball::new()
        .program("usr/lib/systemd/systemd", b"#!")
        .file("usr/lib/os-release", b"PRETTY_NAME=\"New 2\"\n")
        .finish();
    assert_eq!(system(&[base.clone(), systemd.clone()]).await.unwrap().name.as_deref(), Some("New 2"));

    let removed = Tarball::new().file("usr/lib/systemd/.wh.systemd", b"").finish();
    let hidden = Tarball::new().dir("usr/lib").file("usr/lib/.wh..wh..opq", b"").finish();
    let loops = Tarball::new().symlink("sbin/init", "init2").symlink("sbin/init2", "init").finish();
    let outside = Tarball::new().symlink("sbin/init", "../../../../../../../bin/sh").finish();
    for layers in [
        vec![base.clone()],
        vec![base.clone(), systemd.clone(), removed],
        vec![base, systemd, hidden],
        vec![loops],
        vec![outside],
        vec![Tarball::new().file("sbin/init", b"not executable").finish()],
    ] {
        let refused = system(&layers).await.unwrap_err();
        assert_eq!(refused.reason(), "NotAnOperatingSystem", "{refused}");
    }
}

/// A registry that breaks off in the middle of a layer's blob, and later does not. Tells how much of the blob was seen
/// in the pool until then.
async fn broken_off(fault: Fault) -> u64 {
    let bench = bench().await;
    let content = vec![7_u8; 4 << 20];
    let (image, layers) = bench.registry.image("1", &[(Tarball::new().file("file", &content).finish(), Packing::None)]);
    // What is not packed has the digest of its content.
    bench.registry.faults.lock().unwrap().insert(layers[0].clone(), fault);
    let layers = digests(&layers);
    let pull = tokio::spawn({
        let (cache, image, layers) = (bench.cache.clone(), image.clone(), layers.clone());
        async move { cache.ensure(&image, &layers, &[]).await }
    });
    let deadline = soon();
    let mut arrived = 0_u64;
    while !pull.is_finished() {
        assert!(tokio::time::Instant::now() < deadline, "it waits for ever");
        assert!(!bench.cache.has(&layers[0]), "half of a layer is there");
        for name in bench.left() {
            assert!(name.starts_with(".blob-"), "{name} is there before its blob is");
            // It may be gone again by now.
            let file = fs::metadata(bench.pool.templates_path().join(name));
            arrived = arrived.max(file.as_ref().map_or(0, fs::Metadata::len));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let refused = pull.await.unwrap().unwrap_err();
    assert_eq!((refused.reason(), refused.is_stalled()), ("RegistryUnreachable", false), "{refused}");
    assert!(!bench.cache.has(&layers[0]));
    assert_eq!(bench.left(), Vec::<String>::new());

    bench.registry.faults.lock().unwrap().clear();
    bench.cache.ensure(&image, &layers, &[]).await.unwrap();
    assert!(bench.cache.has(&layers[0]));
    assert_eq!(fs::read(bench.cache.path(&layers[0]).join("file")).unwrap(), content);
    arrived
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_whose_blob_is_cut_off_is_not_there_until_it_comes_as_a_whole() {
    broken_off(Fault::Cut).await;
}

/// Takes as long as a transfer may be silent.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_whose_blob_stalls_is_given_up_and_comes_as_a_whole_later() {
    let arrived = broken_off(Fault::Stall).await;
    assert!((1..4 << 20).contains(&arrived), "{arrived} bytes of the blob came before it stalled");
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_are_shared_fetched_once_and_collected_when_unused() {
    let bench = bench().await;
    let shared = Tarball::new().file("base", &vec![1; 1 << 20]).finish();
    let top = |name: &str| Tarball::new().file(name, b"x").finish();
    let (a, a_layers) = bench.registry.image("a", &[(shared.clone(), Packing::Gzip), (top("a"), Packing::Zstd)]);
    let (b, b_layers) = bench.registry.image("b", &[(shared, Packing::Gzip), (top("b"), Packing::None)]);
    let (a_layers, b_layers) = (digests(&a_layers), digests(&b_layers));
    let (first, second, third) = tokio::join!(
        bench.cache.ensure(&a, &a_layers, &[]),
        bench.cache.ensure(&b, &b_layers, &[]),
        bench.cache.ensure(&a, &a_layers, &[])
    );
    first.and(second).and(third).unwrap();
    assert_eq!(bench.left().len(), 3);

    let keep = a_layers.iter().cloned().collect();
    let pin = bench.cache.pin(&b_layers);
    assert_eq!(bench.cache.collect(&keep).unwrap(), None, "what is pinned stays");
    drop(pin);
    assert_eq!(bench.cache.collect(&keep).unwrap(), Some(b_layers[1].clone()));
    assert_eq!(bench.cache.collect(&keep).unwrap(), None);
    assert!(a_layers.iter().all(|layer| bench.cache.has(layer)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_removes_what_a_crash_left() {
    let bench = bench().await;
    vivarium_sys::btrfs::create_subvolume(bench.pool.templates(), c".partial-sha256-x").unwrap();
    fs::write(bench.pool.templates_path().join(".partial-sha256-x/file"), b"half").unwrap();
    fs::write(bench.pool.templates_path().join(".blob-sha256-x"), b"half").unwrap();
    let name = CString::new(bench.pool.volumes_path().join(".deleted-v").as_os_str().as_bytes()).unwrap();
    rustix::fs::mkdirat(rustix::fs::CWD, &name, rustix::fs::Mode::RWXU).unwrap();
    bench.node.templates(&bench.pool, &bench.registry.address);
    vivarium_node::volume::Volumes::open(bench.pool.clone()).unwrap();
    assert_eq!(bench.left(), Vec::<String>::new());
    assert_eq!(fs::read_dir(bench.pool.volumes_path()).unwrap().count(), 0);
}
