//! Trees that are only read, in front of a real kernel: what is shown equals what the environment had at that instant, on the
//! node that runs it and on another one; nobody can write to it; nothing stays.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::support::cluster::Cluster;
use crate::support::registry::{Packing, Registry};
use crate::support::tarball::Tarball;
use crate::support::{TestNode, id};
use jiff::Timestamp;
use rustix::fs::{FileType, Mode, StatVfsMountFlags as Flags};
use rustix::mount::{MountFlags, UnmountFlags};
use tonic::{Code, Request, Status};
use vivarium_api::view::History;
use vivarium_node::csi::node::Node;
use vivarium_node::journal::keep::{Memory, Policy, Subject, keep};
use vivarium_node::journal::log::Log;
use vivarium_node::proto::csi::node_server::Node as _;
use vivarium_node::proto::csi::{
    NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest, VolumeCapability, volume_capability,
};
use vivarium_store::Store;

const VOLUME: &str = "11111111-2222-3333-4444-555555555555";

/// An environment that runs on one node, and another node.
struct World {
    runs: TestNode,
    other: TestNode,
    registry: Registry,
    cluster: Cluster,
    store: Arc<Store>,
    here: Node,
    there: Node,
}

fn capability() -> VolumeCapability {
    use volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode};
    VolumeCapability {
        access_type: Some(AccessType::Mount(MountVolume::default())),
        access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
    }
}

async fn world() -> World {
    let (runs, other) = (TestNode::new(), TestNode::new());
    let registry = Registry::start().await;
    let layers = [
        (
            Tarball::new().program("sbin/init", b"#!").file("etc/gone", b"x").dir("var/lib/docker").finish(),
            Packing::Gzip,
        ),
        (Tarball::new().file("etc/motd", b"hello").file("opt/app/one", b"1").finish(), Packing::Zstd),
    ];
    let (image, layers) = registry.image("1", &layers);
    let cluster = Cluster::new(VOLUME, &image, layers, "64Mi");
    cluster.change(|object| object.spec.store = Some("s".into()));
    let store = Arc::new(Store::memory("s"));
    let service = |node: &TestNode| {
        let service = node.service(&node.pool(), &cluster, &registry.address);
        service.publisher.stores.put("s", Some(store.clone()));
        service
    };
    let (here, there) = (service(&runs), service(&other));
    tokio::spawn(here.publisher.keeper.clone().run());
    let world = World { runs, other, registry, cluster, store, here, there };
    let stage = NodeStageVolumeRequest {
        volume_id: VOLUME.into(),
        staging_target_path: "/var/lib/kubelet/staging".into(),
        volume_capability: Some(capability()),
        volume_context: HashMap::from([("vivarium.dev/volume".into(), "team-a/shop".into())]),
        ..Default::default()
    };
    world.here.node_stage_volume(Request::new(stage)).await.unwrap();
    let publish = NodePublishVolumeRequest {
        volume_id: VOLUME.into(),
        staging_target_path: "/var/lib/kubelet/staging".into(),
        target_path: world.target().to_str().unwrap().into(),
        volume_capability: Some(capability()),
        volume_context: HashMap::from([
            ("vivarium.dev/volume".into(), "team-a/shop".into()),
            ("csi.storage.k8s.io/pod.namespace".into(), "team-a".into()),
            ("csi.storage.k8s.io/pod.name".into(), "shop-1".into()),
            ("csi.storage.k8s.io/pod.uid".into(), "uid-shop-1".into()),
        ]),
        ..Default::default()
    };
    world.here.node_publish_volume(Request::new(publish)).await.unwrap();
    world
}

impl World {
    fn target(&self) -> PathBuf {
        self.runs.target("uid-shop-1")
    }

    /// The tree as the environment sees and writes it.
    fn guest(&self) -> Guest {
        let (volume, root) = (self.target(), self.runs.dir.path().join("guest"));
        fs::create_dir_all(&root).unwrap();
        let layers = self.cluster_layers();
        let options = format!(
            "lowerdir={},upperdir={},workdir={},redirect_dir=on,index=off,metacopy=off",
            layers.join(":"),
            volume.join("upper").display(),
            volume.join("work").display()
        );
        let options = std::ffi::CString::new(options).unwrap();
        rustix::mount::mount("guest", &root, "overlay", MountFlags::empty(), options.as_c_str()).unwrap();
        let bind = root.join("var/lib/docker");
        rustix::mount::mount_bind(volume.join("data/docker"), &bind).unwrap();
        Guest { root }
    }

    fn cluster_layers(&self) -> Vec<String> {
        let list = fs::read_dir(self.runs.run().join("volumes")).unwrap();
        let path = list.map(|entry| entry.unwrap().path()).next().unwrap();
        let record: vivarium_api::node::stage::StageRecord = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        record.layers.iter().map(|layer| layer.to_str().unwrap().to_owned()).collect()
    }

    fn log(&self) -> Log {
        Log::new(&id(VOLUME), self.store.clone()).unwrap()
    }

    /// Waits until everything that was written is in the store; tells the newest transaction.
    async fn committed(&self) -> u64 {
        let marker = self.target().join("upper/marker");
        let before = self.log().tail(0).await.unwrap().sequence;
        fs::write(marker, before.to_string()).unwrap();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        loop {
            let tail = self.log().tail(before).await.unwrap().sequence;
            // The first may have begun before the marker was written.
            if tail > before + 1 {
                return tail;
            }
            if tail > before {
                fs::write(self.target().join("upper/marker"), format!("{before} once more")).unwrap();
            }
            assert!(tokio::time::Instant::now() < deadline, "nothing is committed");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until a commit that is under way has ended and nothing is left to commit.
    async fn settled(&self) -> u64 {
        let mut last = self.committed().await;
        loop {
            tokio::time::sleep(Duration::from_millis(2500)).await;
            let tail = self.log().tail(0).await.unwrap().sequence;
            if tail == last {
                return tail;
            }
            last = tail;
        }
    }
}

struct Guest {
    root: PathBuf,
}

impl Drop for Guest {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.root, UnmountFlags::DETACH).unwrap();
    }
}

/// A name as the kubelet makes them.
fn handle(number: u8) -> String {
    format!("csi-{}", format!("{number:02x}").repeat(32))
}

fn show_request(handle: &str, target: &Path, attributes: &[(&str, &str)]) -> NodePublishVolumeRequest {
    let mut context = HashMap::from([
        ("csi.storage.k8s.io/ephemeral".to_owned(), "true".to_owned()),
        ("csi.storage.k8s.io/pod.namespace".into(), "team-a".into()),
        ("csi.storage.k8s.io/pod.name".into(), "reader".into()),
        ("environment".into(), "shop".into()),
    ]);
    context.extend(attributes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    NodePublishVolumeRequest {
        volume_id: handle.into(),
        target_path: target.to_str().unwrap().into(),
        volume_capability: Some(capability()),
        readonly: true,
        volume_context: context,
        ..Default::default()
    }
}

async fn show(service: &Node, handle: &str, target: &Path, attributes: &[(&str, &str)]) -> Result<(), Status> {
    service.node_publish_volume(Request::new(show_request(handle, target, attributes))).await.map(|_| ())
}

async fn hide(service: &Node, handle: &str, target: &Path) {
    let request = NodeUnpublishVolumeRequest { volume_id: handle.into(), target_path: target.to_str().unwrap().into() };
    service.node_unpublish_volume(Request::new(request)).await.unwrap();
    assert!(!target.exists());
}

/// Names of copies in the pool.
fn copies(service: &Node) -> Vec<String> {
    service.publisher.volumes.views().unwrap().iter().map(ToString::to_string).collect()
}

/// Everything that a reader can see, but for the helper of [`World::committed`].
fn picture(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(path) = open.pop() {
        let stat = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap();
        if name == Path::new("marker") {
            continue;
        }
        let mut line = format!("{} {:o} {}:{}", name.display(), stat.mode(), stat.uid(), stat.gid());
        if stat.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if stat.is_symlink() {
            write!(line, " -> {}", fs::read_link(&path).unwrap().display()).unwrap();
        } else if stat.is_file() {
            write!(line, " {} {:?} {}", stat.nlink(), fs::read(&path).unwrap(), stat.mtime_nsec()).unwrap();
        } else {
            write!(line, " {:x}", stat.rdev()).unwrap();
        }
        lines.push(line);
    }
    lines.sort();
    lines
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_is_shown_as_it_was_and_as_it_is_on_any_node() {
    let world = world().await;
    let guest = world.guest();
    let at = |path: &str| guest.root.join(path);
    fs::write(at("etc/version"), b"one").unwrap();
    fs::write(at("var/lib/docker/image"), b"layer").unwrap();
    fs::write(at("suid"), b"#!").unwrap();
    fs::set_permissions(at("suid"), fs::Permissions::from_mode(0o4755)).unwrap();
    symlink("/etc/version", at("link")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, at("null"), FileType::CharacterDevice, Mode::from_raw_mode(0o666), 0x103)
        .unwrap();
    let first = world.settled().await;
    let (before, then) = (picture(&guest.root), Timestamp::now());
    fs::write(at("etc/version"), b"two").unwrap();
    fs::remove_file(at("etc/gone")).unwrap();
    fs::rename(at("opt/app"), at("opt/moved")).unwrap();
    fs::remove_dir_all(at("opt/moved")).unwrap();
    fs::create_dir(at("opt/app")).unwrap();
    fs::write(at("opt/app/two"), b"2").unwrap();
    fs::rename(at("etc"), at("etc.moved")).unwrap();
    world.settled().await;
    let after = picture(&guest.root);
    assert_ne!(before, after);

    let (then, number) = (then.to_string(), first.to_string());
    let mut handles = 0;
    for (service, node) in [(&world.here, &world.runs), (&world.there, &world.other)] {
        for (attributes, expected) in [
            (&[("at", then.as_str())][..], &before),
            (&[("at", number.as_str())], &before),
            (&[("at", "")], &after),
            (&[], &after),
        ] {
            handles += 1;
            let (handle, target) = (handle(handles), node.target(&format!("reader{handles}")));
            show(service, &handle, &target, attributes).await.unwrap();
            assert_eq!(&picture(&target), expected, "{attributes:?}");
            hide(service, &handle, &target).await;
        }
    }
    drop(guest);

    // Stopped, and then with nothing of it left on its node.
    world.here.publisher.keeper.release(&id(VOLUME)).await.unwrap();
    let target = world.runs.target("reader");
    show(&world.here, &handle(99), &target, &[]).await.unwrap();
    assert_eq!(picture(&target), after);
    hide(&world.here, &handle(99), &target).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_shown_cannot_be_written_and_gives_no_rights() {
    let world = world().await;
    let guest = world.guest();
    fs::write(guest.root.join("file"), b"x").unwrap();
    fs::write(guest.root.join("var/lib/docker/image"), b"x").unwrap();
    for path in ["null", "var/lib/docker/null"] {
        let (path, mode) = (guest.root.join(path), Mode::from_raw_mode(0o666));
        rustix::fs::mknodat(rustix::fs::CWD, path, FileType::CharacterDevice, mode, 0x103).unwrap();
    }
    world.settled().await;
    for (service, node) in [(&world.here, &world.runs), (&world.there, &world.other)] {
        let target = node.target("reader");
        show(service, &handle(1), &target, &[]).await.unwrap();
        for directory in [target.clone(), target.join("var/lib/docker")] {
            let read_only = Some(rustix::io::Errno::ROFS.raw_os_error());
            let error = |result: std::io::Result<()>| result.unwrap_err().raw_os_error();
            assert_eq!(error(fs::write(directory.join("new"), b"")), read_only);
            assert_eq!(error(fs::create_dir(directory.join("new"))), read_only);
            assert_eq!(error(fs::remove_file(directory.join("null"))), read_only);
            assert_eq!(error(fs::set_permissions(&directory, fs::Permissions::from_mode(0o777))), read_only);
            assert!(fs::metadata(directory.join("null")).unwrap().file_type().is_char_device());
            assert_eq!(
                error(fs::read(directory.join("null")).map(drop)),
                Some(rustix::io::Errno::ACCESS.raw_os_error())
            );
            let flags = rustix::fs::statvfs(&directory).unwrap().f_flag;
            assert!(flags.contains(Flags::NOSUID | Flags::NODEV | Flags::RDONLY), "{flags:?}");
        }
        let error = fs::write(target.join("file"), b"y").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::ROFS.raw_os_error()));
        hide(service, &handle(1), &target).await;
    }
    // Whoever did get at the copy itself cannot write there either.
    let live = world.there.publisher.volumes.view_path(&world.there.publisher.volumes.views().unwrap()[0]);
    assert!(fs::write(live.join("upper/new"), b"").is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_shared_by_its_readers_and_goes_with_the_last() {
    let world = world().await;
    let number = world.committed().await.to_string();
    let at = [("at", number.as_str())];
    let targets = [world.other.target("a"), world.other.target("b")];
    let (a, b) = (handle(1), handle(2));
    let (first, second) =
        tokio::join!(show(&world.there, &a, &targets[0], &at), show(&world.there, &b, &targets[1], &at));
    first.unwrap();
    second.unwrap();
    let copy = vec![format!(".view-{VOLUME}.{number}")];
    assert_eq!(copies(&world.there), copy);
    // Again, as the kubelet does, and by the next process of the driver.
    show(&world.there, &handle(1), &targets[0], &at).await.unwrap();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert_eq!(mounts.lines().filter(|line| line.split(' ').nth(4) == targets[0].to_str()).count(), 1);
    let next = world.other.service(&world.other.pool(), &world.cluster, &world.registry.address);
    next.publisher.stores.put("s", Some(world.store.clone()));
    show(&next, &handle(1), &targets[0], &at).await.unwrap();
    let sweep =
        async |later: Duration| next.views.sweep(vivarium_node::view::IDLE, SystemTime::now() + later).await.unwrap();

    sweep(Duration::from_secs(3600)).await;
    hide(&next, &handle(1), &targets[0]).await;
    hide(&next, &handle(1), &targets[0]).await;
    sweep(Duration::from_secs(3600)).await;
    assert_eq!(copies(&next), copy, "the second reader is still there");
    assert_eq!(fs::read(targets[1].join("etc/motd")).unwrap(), b"hello");
    hide(&next, &handle(2), &targets[1]).await;
    sweep(Duration::ZERO).await;
    assert_eq!(copies(&next), copy, "the next question may be about the same");
    sweep(Duration::from_secs(3600)).await;
    assert_eq!(copies(&next), [] as [String; 0]);
    let left: Vec<_> = fs::read_dir(world.other.state().join("pool/volumes")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(fs::read_dir(world.other.run().join("views")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_shown_is_refused_with_the_reason() {
    let world = world().await;
    let newest = world.settled().await;
    let target = world.other.target("reader");
    let ask = async |change: &dyn Fn(&mut NodePublishVolumeRequest)| {
        let mut request = show_request(&handle(1), &target, &[]);
        change(&mut request);
        let refused = world.there.node_publish_volume(Request::new(request)).await.unwrap_err();
        assert!(!target.exists(), "{refused}");
        refused
    };
    let with = |key: &'static str, value: String| {
        move |request: &mut NodePublishVolumeRequest| drop(request.volume_context.insert(key.into(), value.clone()))
    };
    let namespace = "csi.storage.k8s.io/pod.namespace";
    for (refused, code, message) in [
        (ask(&with(namespace, "team-b".into())).await, Code::NotFound, "no environment shop in namespace team-b"),
        (ask(&with("environment", "other".into())).await, Code::NotFound, "no environment other"),
        (ask(&with("environment", "team-a/shop".into())).await, Code::InvalidArgument, "name of an environment"),
        (ask(&with("namespace", "team-a".into())).await, Code::InvalidArgument, "namespace"),
        (ask(&|request| request.readonly = false).await, Code::InvalidArgument, "readOnly: true"),
        (ask(&with("at", (newest + 1).to_string())).await, Code::OutOfRange, "the newest one is"),
        (ask(&with("at", "yesterday".into())).await, Code::InvalidArgument, "RFC 3339"),
        (ask(&with("at", "2001-01-01T00:00:00Z".into())).await, Code::OutOfRange, "(transaction 1)"),
        (ask(&with("at", "1".into())).await, Code::FailedPrecondition, "nothing of EnvironmentVolume team-a/shop"),
        (ask(&with("diverged", "n7/1".into())).await, Code::FailedPrecondition, "on node n7 alone"),
        (ask(&with("diverged", "n1/1".into())).await, Code::NotFound, "set nothing aside"),
    ] {
        assert_eq!(refused.code(), code, "{refused}");
        assert!(refused.message().contains(message), "{refused}");
    }
    // Once the beginning is gone.
    let publisher = &world.there.publisher;
    let object = world.cluster_object();
    let layers: Vec<_> = object.iter().map(|layer| vivarium_node::ids::LayerDigest::parse(layer).unwrap()).collect();
    publisher.templates.ensure(&world.image(), &layers, &[]).await.unwrap();
    let now = Policy {
        bytes: 1,
        transactions: 1,
        retention: Duration::ZERO,
        fine: Duration::ZERO,
        coarse: 0,
        deletions: usize::MAX,
        merges: 0,
    };
    let subject = Subject { volume: id(VOLUME), layers, size: 64 << 20, room: 0, known: 0, wanted: vec![] };
    let (log, mut memory) = (world.log(), Memory::default());
    let kept = keep(&publisher.volumes, &publisher.templates, &log, &subject, &mut memory, &now).await.unwrap();
    assert_eq!(kept.boundary, newest);
    let refused = ask(&with("at", (newest - 1).to_string())).await;
    assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
    let oldest = world.log().written(newest).await.unwrap();
    assert!(refused.message().contains(&format!("can be shown is {oldest} (transaction {newest})")), "{refused}");
    let refused = ask(&with("at", "2001-01-01T00:00:00Z".into())).await;
    assert!(refused.message().contains(&oldest.to_string()), "{refused}");
    show(&world.there, &handle(1), &target, &[("at", &newest.to_string())]).await.unwrap();
    hide(&world.there, &handle(1), &target).await;

    world.cluster.change(|object| object.spec.store = None);
    let refused = ask(&|_| ()).await;
    assert!(refused.message().contains("has no journal"), "{refused}");
    assert_eq!(world.cluster.reasons(), ["Published"], "a reader's mistakes are not the volume's");
}

impl World {
    fn cluster_object(&self) -> Vec<String> {
        self.object().spec.template.layers
    }

    fn image(&self) -> String {
        self.object().spec.template.image
    }

    fn object(&self) -> vivarium_api::v1alpha1::EnvironmentVolume {
        let mut found = None;
        self.cluster.change(|object| found = Some(object.clone()));
        found.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_set_aside_can_be_read_where_it_is() {
    let world = world().await;
    world.committed().await;
    world.here.publisher.keeper.release(&id(VOLUME)).await.unwrap();
    fs::write(world.target().join("upper/lost"), b"never committed").unwrap();
    rustix::mount::unmount(world.target(), UnmountFlags::empty()).unwrap();
    let volumes = &world.here.publisher.volumes;
    volumes.set_aside(&id(VOLUME), 1, SystemTime::now()).unwrap();
    let target = world.runs.target("reader");
    show(&world.here, &handle(1), &target, &[("diverged", "n1/1")]).await.unwrap();
    assert_eq!(fs::read(target.join("lost")).unwrap(), b"never committed");
    assert_eq!(fs::read(target.join("etc/motd")).unwrap(), b"hello");
    // It is not kept longer than it would be, and whoever reads it is not cut off.
    volumes.expire_diverged(Duration::ZERO, SystemTime::now()).unwrap();
    assert_eq!(volumes.diverged().unwrap(), []);
    assert_eq!(fs::read(target.join("lost")).unwrap(), b"never committed");
    hide(&world.here, &handle(1), &target).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_instants_that_can_be_shown_are_listed() {
    let world = world().await;
    let newest = world.settled().await;
    let target = world.other.target("reader");
    show(&world.there, &handle(1), &target, &[("view", "history")]).await.unwrap();
    let history: History = serde_json::from_slice(&fs::read(target.join("history.json")).unwrap()).unwrap();
    assert_eq!((history.oldest, history.newest, history.omitted), (1, newest, 0));
    let numbers: Vec<u64> = history.transactions.iter().map(|entry| entry.sequence).collect();
    assert_eq!(numbers, (1..=newest).collect::<Vec<_>>());
    assert_eq!(history.epochs.len(), 1);
    assert!(fs::write(target.join("history.json"), b"").is_err());
    hide(&world.there, &handle(1), &target).await;
    assert_eq!(copies(&world.there), [] as [String; 0]);
}
