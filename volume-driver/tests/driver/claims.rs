//! Volumes of ordinary pods in front of a real kernel: what they hold, how much, and what becomes of copies and snapshots.

use std::collections::HashMap;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::support::cluster::Cluster;
use crate::support::registry::{Packing, Registry};
use crate::support::tarball::Tarball;
use crate::support::{TestNode, id};
use tonic::Code;
use vivarium_api::v1alpha1::{EnvironmentTemplate, EnvironmentTemplateSpec, EnvironmentTemplateStatus};
use vivarium_node::claim::Claims;
use vivarium_node::claim::record::{Claim, Origin};
use vivarium_node::claim::request::{NewClaim, Range, claim_id, snapshot_id};
use vivarium_node::ids::VolumeId;
use vivarium_node::pool::Pool;
use vivarium_node::publish::Refusal;

const MIB: u64 = 1 << 20;
const VOLUME: &str = "11111111-2222-3333-4444-555555555555";

struct Bench {
    claims: Arc<Claims>,
    pool: Arc<Pool>,
    node: TestNode,
    cluster: Cluster,
}

fn bench_at(registry: &str) -> Bench {
    let node = TestNode::new();
    let pool = node.pool_of(2 << 30);
    let cluster = Cluster::new(VOLUME, "none", vec![], "1Gi");
    let claims = node.service(&pool, &cluster, registry).claims;
    Bench { claims, pool, node, cluster }
}

fn bench() -> Bench {
    bench_at("127.0.0.1:1")
}

fn wanted(name: &str, size: u64, origin: Origin) -> NewClaim {
    let range = Range { required: size, limit: 0 };
    NewClaim { origin, ..NewClaim::new(name, "n1", range, &HashMap::new(), None).unwrap() }
}

impl Bench {
    async fn create(&self, name: &str, size: u64, origin: Origin) -> Result<Claim, Refusal> {
        self.claims.create(wanted(name, size, origin)).await
    }

    /// Mounts a volume for a pod and tells where.
    async fn mount(&self, id: &VolumeId, pod: &str) -> PathBuf {
        let target = self.node.target(pod);
        self.claims.stage(id.clone()).await.unwrap();
        self.claims.publish(id.clone(), target.clone(), false).await.unwrap();
        target
    }

    async fn unmount(&self, id: &VolumeId, target: PathBuf) {
        self.claims.unpublish(id.clone(), target).await.unwrap();
    }

    async fn used(&self, id: &VolumeId, target: &Path) -> u64 {
        self.pool.sync().unwrap();
        self.claims.stats(id.clone(), target.to_owned()).await.unwrap().unwrap().used
    }
}

/// Writes a file of that many MiB that cannot be compressed away, and waits until it is counted.
fn write(path: &Path, mib: u64) -> std::io::Result<()> {
    let mut file = std::fs::File::create(path)?;
    for n in 0..mib {
        file.write_all(&vec![n as u8 + 1; MIB as usize])?;
    }
    file.sync_all()
}

fn code<T: std::fmt::Debug>(result: Result<T, Refusal>) -> Code {
    result.unwrap_err().code()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_pod_wrote_is_there_for_the_next_and_goes_with_the_volume() {
    let bench = bench();
    let claim = bench.create("pvc-a", 64 * MIB, Origin::Empty).await.unwrap();
    let first = bench.mount(&claim.id, "first").await;
    std::fs::write(first.join("note"), "kept").unwrap();
    let second = bench.mount(&claim.id, "second").await;
    assert_eq!(std::fs::read_to_string(second.join("note")).unwrap(), "kept", "two pods of a node share it");
    bench.unmount(&claim.id, first).await;
    assert_eq!(code(bench.claims.delete(claim.id.clone()).await), Code::FailedPrecondition, "a pod still has it");
    bench.unmount(&claim.id, second).await;

    let read_only = bench.node.target("reader");
    bench.claims.publish(claim.id.clone(), read_only.clone(), true).await.unwrap();
    let refused = std::fs::write(read_only.join("note"), "changed").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    assert_eq!(std::fs::read_to_string(read_only.join("note")).unwrap(), "kept");
    bench.unmount(&claim.id, read_only).await;

    for _ in 0..2 {
        bench.claims.delete(claim.id.clone()).await.unwrap();
    }
    assert_eq!(code(bench.claims.stage(claim.id.clone()).await), Code::NotFound);
    assert_eq!(bench.claims.list().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_holds_its_size_and_grows_while_a_pod_writes() {
    let bench = bench();
    let claim = bench.create("pvc-a", 32 * MIB, Origin::Empty).await.unwrap();
    let target = bench.mount(&claim.id, "pod").await;
    let full = write(&target.join("big"), 60).unwrap_err();
    assert_eq!(full.raw_os_error(), Some(rustix::io::Errno::DQUOT.raw_os_error()), "{full}");
    let expand = |required, limit| bench.claims.expand(claim.id.clone(), Range { required, limit });
    assert_eq!(expand(96 * MIB, 0).await.unwrap(), 96 * MIB);
    write(&target.join("big"), 60).unwrap();
    assert_eq!(expand(16 * MIB, 0).await.unwrap(), 96 * MIB, "it never shrinks");
    assert_eq!(code(expand(0, 16 * MIB).await), Code::OutOfRange);
    assert_eq!(code(expand(1 << 40, 0).await), Code::ResourceExhausted);
    assert_eq!(bench.claims.get(claim.id.clone()).await.unwrap().record.size, 96 * MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_and_a_restored_snapshot_are_volumes_of_their_own() {
    let bench = bench();
    let source = bench.create("pvc-a", 64 * MIB, Origin::Empty).await.unwrap();
    let target = bench.mount(&source.id, "source").await;
    write(&target.join("data"), 8).unwrap();
    std::fs::hard_link(target.join("data"), target.join("link")).unwrap();
    symlink("/etc/passwd", target.join("symlink")).unwrap();
    std::os::unix::fs::chown(target.join("data"), Some(1234), Some(4321)).unwrap();
    std::fs::set_permissions(target.join("data"), std::fs::Permissions::from_mode(0o4751)).unwrap();
    rustix::fs::setxattr(target.join("data"), "user.note", b"hello", rustix::fs::XattrFlags::empty()).unwrap();
    std::fs::set_permissions(&target, std::fs::Permissions::from_mode(0o2770)).unwrap();

    let taken = bench.claims.snapshot("snap-a".into(), source.id.clone()).await.unwrap();
    let again = bench.claims.snapshot("snap-a".into(), source.id.clone()).await.unwrap();
    assert_eq!(taken, again);
    std::fs::write(target.join("later"), "not in the snapshot").unwrap();

    let clone = bench.create("pvc-b", 0, Origin::Claim(source.id.to_string())).await.unwrap();
    let restored = bench.create("pvc-c", 0, Origin::Snapshot(taken.id.to_string())).await.unwrap();
    assert_eq!((clone.record.size, restored.record.size), (64 * MIB, 64 * MIB));
    for (claim, later) in [(&clone, true), (&restored, false)] {
        let copy = bench.mount(&claim.id, claim.id.as_str()).await;
        assert_eq!(copy.join("later").exists(), later);
        let (data, link) =
            (std::fs::metadata(copy.join("data")).unwrap(), std::fs::metadata(copy.join("link")).unwrap());
        assert_eq!((data.uid(), data.gid(), data.mode() & 0o7777, data.ino()), (1234, 4321, 0o4751, link.ino()));
        assert_eq!(std::fs::metadata(&copy).unwrap().mode() & 0o7777, 0o2770);
        assert_eq!(std::fs::read_link(copy.join("symlink")).unwrap(), Path::new("/etc/passwd"));
        let mut note = [0; 8];
        let length = rustix::fs::getxattr(copy.join("data"), "user.note", &mut note).unwrap();
        assert_eq!(&note[..length], b"hello");
        assert_eq!(std::fs::read(copy.join("data")).unwrap(), std::fs::read(target.join("data")).unwrap());
        // Blocks that it shared with the source would count for that, and for nobody once that is gone.
        assert!(bench.used(&claim.id, &copy).await >= 8 * MIB, "what it holds counts against its own size");
    }
    bench.unmount(&source.id, target).await;
    bench.claims.delete(source.id.clone()).await.unwrap();
    assert_eq!(
        bench.claims.list_snapshots().await.unwrap(),
        std::slice::from_ref(&taken),
        "a snapshot outlives its volume"
    );
    bench.create("pvc-d", 0, Origin::Snapshot(taken.id.to_string())).await.unwrap();
    bench.claims.delete_snapshot(taken.id.clone()).await.unwrap();
    let gone = bench.create("pvc-e", 0, Origin::Snapshot(taken.id.to_string())).await;
    assert_eq!(code(gone), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_snapshot_keeps_does_not_take_room_from_its_volume() {
    let bench = bench();
    let claim = bench.create("pvc-a", 64 * MIB, Origin::Empty).await.unwrap();
    let target = bench.mount(&claim.id, "pod").await;
    write(&target.join("data"), 60).unwrap();
    let taken = bench.claims.snapshot("snap-a".into(), claim.id.clone()).await.unwrap();
    assert!(taken.record.held >= 60 * MIB, "{taken:?}");
    // Every block of it anew, while the snapshot keeps the old ones.
    write(&target.join("data"), 60).unwrap();
    bench.claims.delete_snapshot(taken.id).await.unwrap();
    bench.claims.stage(claim.id.clone()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_refused_and_leaves_nothing() {
    let bench = bench();
    let source = bench.create("pvc-a", 64 * MIB, Origin::Empty).await.unwrap();
    let small = bench.create("pvc-b", 32 * MIB, Origin::Claim(source.id.to_string())).await;
    assert_eq!(code(small), Code::OutOfRange);
    let other = bench.create("pvc-a", 65 * MIB, Origin::Empty).await;
    assert_eq!(code(other), Code::AlreadyExists);
    assert_eq!(code(bench.create("pvc-b", 1 << 40, Origin::Empty).await), Code::ResourceExhausted);
    let environment = bench.create("pvc-b", 0, Origin::Claim(VOLUME.into())).await;
    assert_eq!(code(environment), Code::NotFound, "the disks of environments are not for pods");
    assert_eq!(code(bench.create("pvc-b", 0, Origin::Template("none".into())).await), Code::InvalidArgument);
    let names: Vec<_> = std::fs::read_dir(bench.pool.path().join("claims")).unwrap().collect();
    assert_eq!(names.len(), 1, "{names:?}");
    bench.claims.delete(id(VOLUME)).await.unwrap();
    // The scheduler looks for another node, and what is there stays.
    let there = bench.create("pvc-b", 0, Origin::Snapshot(snapshot_id("s", "n2").to_string())).await;
    assert_eq!(code(there), Code::ResourceExhausted);
    let there = bench.create("pvc-b", 0, Origin::Claim(claim_id("c", "n2").to_string())).await;
    assert_eq!(code(there), Code::ResourceExhausted);
    assert_eq!(code(bench.claims.delete(claim_id("c", "n2")).await), Code::FailedPrecondition);
    assert_eq!(code(bench.claims.delete_snapshot(snapshot_id("s", "n2")).await), Code::FailedPrecondition);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_can_begin_with_the_tree_of_a_template() {
    let registry = Registry::start().await;
    let layers = [
        (Tarball::new().program("sbin/init", b"#!").file("etc/motd", b"old").finish(), Packing::Gzip),
        (Tarball::new().file("etc/motd", b"hello").finish(), Packing::Zstd),
    ];
    let (image, layers) = registry.image("1", &layers);
    let bench = bench_at(&registry.address);
    let mut template = EnvironmentTemplate::new("debian-13", EnvironmentTemplateSpec { image: image.clone() });
    let set = |template: &EnvironmentTemplate| *bench.cluster.template.lock().unwrap() = Some(template.clone());
    set(&template);
    let early = bench.create("pvc-a", 64 * MIB, Origin::Template("debian-13".into())).await;
    assert_eq!(code(early), Code::FailedPrecondition, "nobody has resolved it");
    template.status = Some(EnvironmentTemplateStatus {
        resolved_image: Some(image.clone()),
        digest: image.split_once('@').map(|(_, digest)| digest.to_owned()),
        layers,
        ..Default::default()
    });
    set(&template);
    let claim = bench.create("pvc-a", 64 * MIB, Origin::Template("debian-13".into())).await.unwrap();
    let target = bench.mount(&claim.id, "pod").await;
    assert_eq!(std::fs::read_to_string(target.join("etc/motd")).unwrap(), "hello");
    assert!(target.join("sbin/init").exists());
    std::fs::write(target.join("etc/motd"), "mine").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_left_half_made_goes_at_the_next_start() {
    let bench = bench();
    let claim = bench.create("pvc-a", 64 * MIB, Origin::Empty).await.unwrap();
    for left in ["claims/.partial-pvc-b", "claims/.deleted-pvc-c", "snapshots/.partial-pvc-b"] {
        std::fs::create_dir(bench.pool.path().join(left)).unwrap();
    }
    let again = bench.node.service(&bench.pool, &bench.cluster, "127.0.0.1:1").claims;
    assert_eq!(again.list().await.unwrap(), [claim]);
    for (place, left) in [("claims", 1), ("snapshots", 0)] {
        assert_eq!(std::fs::read_dir(bench.pool.path().join(place)).unwrap().count(), left, "{place}");
    }
}
