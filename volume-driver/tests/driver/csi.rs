//! The CSI node service in front of a real kernel: pool, volumes, mounts and records, with a cluster of one object.

use std::collections::HashMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::cluster::Cluster;
use crate::support::registry::{Packing, Registry};
use crate::support::tarball::Tarball;
use crate::support::{HANG, TestNode, id, loop_devices};
use tonic::{Code, Request};
use vivarium_api::node::guest::{self, GuestReport, GuestState, PodReference, Process};
use vivarium_api::node::stage::StageRecord;
use vivarium_node::csi::node::Node;
use vivarium_node::directory::VolumeName;
use vivarium_node::proto::csi::node_server::Node as _;
use vivarium_node::proto::csi::{
    CapacityRange, NodeExpandVolumeRequest, NodeGetVolumeStatsRequest, NodePublishVolumeRequest,
    NodeStageVolumeRequest, NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest, VolumeCapability, volume_capability,
};
use vivarium_store::Store;

const VOLUME: &str = "11111111-2222-3333-4444-555555555555";

/// A node with a staged image in its registry.
struct Bench {
    node: TestNode,
    registry: Registry,
    cluster: Cluster,
    service: Node,
}

async fn bench(size: &str) -> Bench {
    bench_on(TestNode::new(), size).await
}

async fn bench_on(node: TestNode, size: &str) -> Bench {
    let registry = Registry::start().await;
    let layers = [
        (Tarball::new().program("sbin/init", b"#!").finish(), Packing::Gzip),
        (Tarball::new().file("etc/motd", b"hello").finish(), Packing::Zstd),
    ];
    let (image, layers) = registry.image("1", &layers);
    let cluster = Cluster::new(VOLUME, &image, layers, size);
    let service = node.service(&node.pool(), &cluster, &registry.address);
    Bench { node, registry, cluster, service }
}

fn capability() -> VolumeCapability {
    use volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode};
    VolumeCapability {
        access_type: Some(AccessType::Mount(MountVolume::default())),
        access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
    }
}

fn stage_request() -> NodeStageVolumeRequest {
    NodeStageVolumeRequest {
        volume_id: VOLUME.into(),
        staging_target_path: "/var/lib/kubelet/staging".into(),
        volume_capability: Some(capability()),
        volume_context: HashMap::from([("vivarium.dev/volume".into(), "team-a/shop".into())]),
        ..Default::default()
    }
}

fn publish_request(target: &Path, pod: &str) -> NodePublishVolumeRequest {
    NodePublishVolumeRequest {
        volume_id: VOLUME.into(),
        staging_target_path: "/var/lib/kubelet/staging".into(),
        target_path: target.to_str().unwrap().into(),
        volume_capability: Some(capability()),
        volume_context: HashMap::from([
            ("vivarium.dev/volume".into(), "team-a/shop".into()),
            ("csi.storage.k8s.io/pod.namespace".into(), "team-a".into()),
            ("csi.storage.k8s.io/pod.name".into(), pod.into()),
            ("csi.storage.k8s.io/pod.uid".into(), format!("uid-{pod}")),
        ]),
        ..Default::default()
    }
}

impl Bench {
    async fn stage(&self) -> Result<(), tonic::Status> {
        self.service.node_stage_volume(Request::new(stage_request())).await.map(|_| ())
    }

    async fn publish(&self, target: &Path, pod: &str) -> Result<(), tonic::Status> {
        self.service.node_publish_volume(Request::new(publish_request(target, pod))).await.map(|_| ())
    }

    async fn unpublish(&self, target: &Path) -> Result<(), tonic::Status> {
        let request =
            NodeUnpublishVolumeRequest { volume_id: VOLUME.into(), target_path: target.to_str().unwrap().into() };
        self.service.node_unpublish_volume(Request::new(request)).await.map(|_| ())
    }

    async fn unstage(&self) -> Result<(), tonic::Status> {
        let request = NodeUnstageVolumeRequest {
            volume_id: VOLUME.into(),
            staging_target_path: "/var/lib/kubelet/staging".into(),
        };
        self.service.node_unstage_volume(Request::new(request)).await.map(|_| ())
    }

    fn stage_records(&self) -> Vec<StageRecord> {
        let list = std::fs::read_dir(self.node.run().join("volumes")).unwrap();
        list.map(|entry| serde_json::from_slice(&std::fs::read(entry.unwrap().path()).unwrap()).unwrap()).collect()
    }
}

fn mounts_at(target: &Path) -> usize {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.lines().filter(|line| line.split(' ').nth(4) == target.to_str()).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubelet_that_finds_the_disk_of_an_environment_grown_is_told_that_all_is_done() {
    let bench = bench("64Mi").await;
    let expand = |path: &Path| {
        let request = NodeExpandVolumeRequest {
            volume_id: VOLUME.into(),
            volume_path: path.to_str().unwrap().into(),
            capacity_range: Some(CapacityRange { required_bytes: 1 << 30, limit_bytes: 0 }),
            ..Default::default()
        };
        bench.service.node_expand_volume(Request::new(request))
    };
    let target = bench.node.target("uid-shop-1");
    // A volume with a journal is not here yet when it is staged; the kubelet asks about the directory that it made.
    let staging = target.parent().unwrap();
    assert_eq!(expand(staging).await.unwrap().into_inner().capacity_bytes, 1 << 30);
    assert_eq!(expand(&target).await.unwrap_err().code(), Code::NotFound, "nothing is there");
    bench.stage().await.unwrap();
    bench.publish(&target, "shop-1").await.unwrap();
    assert_eq!(expand(&target).await.unwrap().into_inner().capacity_bytes, 1 << 30);
    let usage = bench.service.publisher.volumes.usage(&id(VOLUME)).unwrap().unwrap();
    assert!(usage.limit < 128 << 20, "its size is what its object says: {usage:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_staged_published_and_taken_back() {
    let bench = bench("64Mi").await;
    let target = bench.node.target("uid-shop-1");
    bench.stage().await.unwrap();
    bench.publish(&target, "shop-1").await.unwrap();

    assert_eq!(mounts_at(&target), 1);
    for (path, mode) in [
        ("", 0o755),
        ("upper", 0o755),
        ("work", 0o755),
        ("data", 0o755),
        ("data/docker", 0o711),
        ("data/containerd", 0o700),
    ] {
        let found = std::fs::metadata(target.join(path)).unwrap();
        assert_eq!((found.uid(), found.gid(), found.permissions().mode() & 0o7777), (0, 0, mode), "{path}");
    }
    let records = bench.stage_records();
    assert_eq!(records.len(), 1);
    let record = &records[0];
    assert_eq!((record.volume_id.as_str(), record.epoch, record.session.as_str()), (VOLUME, 1, "s1"));
    assert_eq!(record.pod_uid, "uid-shop-1");
    assert!(bench.node.run().join("volumes").join(format!("{}.json", record.subvolume_uuid)).exists());
    assert!(record.layers[0].join("etc/motd").exists(), "the top layer comes first");
    assert!(record.layers[1].join("sbin/init").exists());
    assert_eq!(std::fs::metadata(bench.node.run().join("volumes")).unwrap().permissions().mode() & 0o777, 0o700);

    bench.unpublish(&target).await.unwrap();
    assert_eq!(mounts_at(&target), 0);
    assert!(!target.exists());
    assert_eq!(bench.stage_records(), []);
    bench.unstage().await.unwrap();
    assert_eq!(bench.cluster.reasons(), ["Published"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_can_be_repeated() {
    let bench = bench("64Mi").await;
    let target = bench.node.target("uid-shop-1");
    bench.unpublish(&target).await.unwrap();
    for _ in 0..2 {
        bench.stage().await.unwrap();
    }
    for _ in 0..2 {
        bench.publish(&target, "shop-1").await.unwrap();
        assert_eq!(mounts_at(&target), 1);
        assert_eq!(bench.stage_records().len(), 1);
    }
    // A mount that somebody else took away comes back, records or not.
    rustix::mount::unmount(&target, rustix::mount::UnmountFlags::empty()).unwrap();
    bench.publish(&target, "shop-1").await.unwrap();
    assert_eq!(mounts_at(&target), 1);
    for _ in 0..2 {
        bench.unpublish(&target).await.unwrap();
    }
    for _ in 0..2 {
        bench.unstage().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_is_there_for_the_next_pod() {
    let bench = bench("64Mi").await;
    let (first, second) = (bench.node.target("uid-shop-1"), bench.node.target("uid-shop-2"));
    bench.stage().await.unwrap();
    bench.publish(&first, "shop-1").await.unwrap();
    std::fs::write(first.join("upper/kept"), b"data").unwrap();

    bench.cluster.give("n1", "s1", 2);
    let refused = bench.publish(&second, "shop-2").await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "one pod at a time: {refused}");
    assert!(refused.message().contains("uid-shop-1"), "{refused}");

    bench.unpublish(&first).await.unwrap();
    bench.publish(&second, "shop-2").await.unwrap();
    assert_eq!(std::fs::read(second.join("upper/kept")).unwrap(), b"data");
    assert_eq!(bench.stage_records()[0].epoch, 2);
    // A late call for the former pod takes nothing from the present one.
    bench.unpublish(&first).await.unwrap();
    assert_eq!((mounts_at(&second), bench.stage_records().len()), (1, 1));
    assert_eq!(bench.cluster.reasons(), ["Published", "InUse", "Published"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_holder_mounts() {
    let bench = bench("64Mi").await;
    let target = bench.node.target("uid-shop-1");
    bench.stage().await.unwrap();
    for (node, session, epoch, message) in [
        ("n2", "s1", 1, "not given to this node"),
        ("n1", "s0", 1, "not given to this node"),
        ("n1", "s1", 2, "superseded"),
        ("n1", "s1", 0, "not given to this node"),
    ] {
        bench.cluster.give(node, session, epoch);
        let refused = bench.publish(&target, "shop-1").await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        assert!(refused.message().contains(message), "{refused}");
        assert_eq!((mounts_at(&target), bench.stage_records().len()), (0, 0));
    }
    let refused = bench.publish(&target, "other-1").await.unwrap_err();
    assert!(refused.message().contains("no incarnation"), "{refused}");

    // The operator's word arrives while the call waits.
    bench.cluster.status(|status| (status.holder, status.epoch) = (None, 0));
    let operator = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        bench.cluster.give("n1", "s1", 1);
    };
    let (published, ()) = tokio::join!(bench.publish(&target, "shop-1"), operator);
    published.unwrap();
}

async fn eventually(what: &str, holds: &dyn Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + HANG;
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_store_has_of_a_promised_volume_is_brought_here_before_it_is_given() {
    let bench = bench("64Mi").await;
    bench.cluster.change(|object| object.spec.store = Some("s".into()));
    let publisher = &bench.service.publisher;
    publisher.stores.put("s", Some(Store::memory("s").into()));
    tokio::spawn(publisher.keeper.clone().run());
    bench.stage().await.unwrap();
    let target = bench.node.target("uid-shop-1");
    bench.publish(&target, "shop-1").await.unwrap();
    std::fs::write(target.join("upper/kept"), "data").unwrap();
    bench.unpublish(&target).await.unwrap();
    // From here on this node is another one: it has only what is in the store.
    publisher.volumes.delete(&id(VOLUME)).unwrap();
    bench.cluster.give("n2", "s9", 1);
    let target = bench.node.target("uid-shop-2");
    bench.publish(&target, "shop-2").await.unwrap();
    eventually("a copy is made", &|| !publisher.volumes.standbys().unwrap().is_empty()).await;
    assert_eq!((mounts_at(&target), publisher.volumes.list().unwrap().len()), (0, 0));
    // That is said once the shim waits for it, too, and once.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let prepared = || bench.cluster.prepared.lock().unwrap().clone();
    assert_eq!(prepared(), Vec::<String>::new(), "its sandbox is not there yet");
    let waiting = bench.node.run().join("pending/uid-shop-2.waiting");
    std::fs::write(&waiting, "").unwrap();
    eventually("it is said to be prepared", &|| !prepared().is_empty()).await;
    bench.cluster.give("n1", "s1", 2);
    eventually("it is handed over", &|| mounts_at(&target) == 1).await;
    assert_eq!(std::fs::read(target.join("upper/kept")).unwrap(), b"data");
    assert_eq!(prepared(), ["uid-shop-2"]);
    eventually("nothing is left of the waiting", &|| !waiting.exists()).await;
    assert_eq!(publisher.volumes.standbys().unwrap(), [], "the copy became the volume");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_node_has_is_promised_and_mounted_once_it_is_given() {
    let bench = bench("64Mi").await;
    bench.cluster.change(|object| object.spec.store = Some("s".into()));
    bench.service.publisher.stores.put("s", Some(Store::memory("s").into()));
    let pending = |pod: &str| bench.node.run().join(format!("pending/uid-{pod}.json"));
    bench.cluster.give("n2", "s9", 1);
    bench.stage().await.unwrap();
    let target = bench.node.target("uid-shop-2");
    for _ in 0..2 {
        bench.publish(&target, "shop-2").await.unwrap();
        assert!(target.is_dir() && pending("shop-2").exists());
        assert_eq!((mounts_at(&target), bench.stage_records().len()), (0, 0), "nothing may start on it yet");
    }
    bench.cluster.give("n1", "s1", 2);
    eventually("it is handed over", &|| !pending("shop-2").exists()).await;
    assert_eq!((mounts_at(&target), bench.stage_records()[0].epoch), (1, 2));
    bench.publish(&target, "shop-2").await.unwrap();
    bench.unpublish(&target).await.unwrap();

    // What the kubelet takes back is not mounted any more.
    bench.cluster.give("n1", "s0", 2);
    let target = bench.node.target("uid-shop-3");
    bench.publish(&target, "shop-3").await.unwrap();
    let promised = std::fs::read(pending("shop-3")).unwrap();
    bench.unpublish(&target).await.unwrap();
    bench.cluster.give("n1", "s1", 3);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!((mounts_at(&target), target.exists(), pending("shop-3").exists()), (0, false, false));

    // The next process goes on with what the former one has promised.
    std::fs::write(pending("shop-3"), promised).unwrap();
    bench.service.publisher.resume_pending().unwrap();
    eventually("it is handed over by the next process", &|| !pending("shop-3").exists()).await;
    assert_eq!((mounts_at(&target), bench.stage_records()[0].epoch), (1, 3));
    bench.unpublish(&target).await.unwrap();

    // A pod that never gets it is told so.
    bench.cluster.give("n2", "s9", 3);
    let target = bench.node.target("uid-shop-4");
    bench.publish(&target, "shop-4").await.unwrap();
    bench.cluster.give("n2", "s9", 5);
    let refused = || std::fs::read_to_string(pending("shop-4")).unwrap().contains("is superseded and never gets it");
    eventually("it is refused", &refused).await;
    assert_eq!((mounts_at(&target), bench.stage_records().len()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_data_is_made_where_none_belongs() {
    let bench = bench("64Mi").await;
    bench.cluster.give("n2", "s9", 1);
    let refused = bench.stage().await.unwrap_err();
    assert!(refused.message().contains("is on node n2"), "{refused}");
    // The object says that data was here once; an empty tree must not take its place.
    bench.cluster.give("n1", "s1", 1);
    bench.cluster.status(|status| status.capacity_bytes = Some(64 << 20));
    let refused = bench.stage().await.unwrap_err();
    assert!(refused.message().contains("not in the node's pool any more"), "{refused}");
    assert_eq!(bench.service.publisher.volumes.list().unwrap(), []);
    assert_eq!(bench.cluster.reasons(), ["OtherNode", "DataMissing"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_calls_on_one_volume_are_answered_aborted() {
    let mut node = TestNode::new();
    node.wait = HANG;
    let bench = bench_on(node, "64Mi").await;
    let target = bench.node.target("uid-shop-1");
    bench.stage().await.unwrap();
    bench.cluster.status(|status| status.holder = None);
    let first = tokio::spawn({
        let (service, request) = (bench.service.clone(), publish_request(&target, "shop-1"));
        async move { service.node_publish_volume(Request::new(request)).await }
    });
    let operations = &bench.service.publisher.operations;
    eventually("it begins", &|| operations.begin(&id(VOLUME)).is_none()).await;
    for refused in [bench.stage().await, bench.publish(&target, "shop-1").await, bench.unpublish(&target).await] {
        assert_eq!(refused.unwrap_err().code(), Code::Aborted);
    }
    // A caller that goes away does not cut the operation off.
    first.abort();
    bench.cluster.give("n1", "s1", 1);
    eventually("the operation runs to its end", &|| mounts_at(&target) == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_name_the_field() {
    let bench = bench("64Mi").await;
    let stage = |change: fn(&mut NodeStageVolumeRequest)| {
        let mut request = stage_request();
        change(&mut request);
        let service = bench.service.clone();
        async move { service.node_stage_volume(Request::new(request)).await.unwrap_err() }
    };
    for (refused, code, field) in [
        (stage(|r| r.volume_id.clear()).await, Code::InvalidArgument, "volume_id"),
        (stage(|r| r.staging_target_path.clear()).await, Code::InvalidArgument, "staging_target_path"),
        (stage(|r| r.staging_target_path = "a/b".into()).await, Code::InvalidArgument, "absolute"),
        (stage(|r| r.volume_capability = None).await, Code::InvalidArgument, "volume_capability"),
        (stage(|r| r.volume_context.clear()).await, Code::InvalidArgument, "vivarium.dev/volume"),
        (stage(|r| r.volume_id = "../x".into()).await, Code::NotFound, "volume handle"),
        (stage(|r| r.volume_id = "unknown".into()).await, Code::NotFound, "no EnvironmentVolume"),
        (
            stage(|r| drop(r.volume_context.insert("vivarium.dev/volume".into(), "team-b/shop".into()))).await,
            Code::NotFound,
            "team-b/shop",
        ),
    ] {
        assert_eq!(refused.code(), code, "{refused}");
        assert!(refused.message().contains(field), "{refused}");
    }
    let mut request = publish_request(&bench.node.target("x"), "shop-1");
    request.volume_context.remove("csi.storage.k8s.io/pod.uid");
    let refused = bench.service.node_publish_volume(Request::new(request)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("pod.uid"), "{refused}");
    let refused = bench.publish(&bench.node.target("x"), "shop-1").await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "not staged: {refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_is_that_of_the_volume_alone() {
    let bench = bench("64Mi").await;
    let target = bench.node.target("uid-shop-1");
    bench.stage().await.unwrap();
    bench.publish(&target, "shop-1").await.unwrap();
    std::fs::write(target.join("upper/file"), vec![1; 5 << 20]).unwrap();
    bench.service.publisher.volumes.get(&id(VOLUME)).map(|live| rustix::fs::syncfs(&live.directory)).unwrap().unwrap();
    let stats = |path: &Path| {
        let request = NodeGetVolumeStatsRequest {
            volume_id: VOLUME.into(),
            volume_path: path.to_str().unwrap().into(),
            ..Default::default()
        };
        bench.service.node_get_volume_stats(Request::new(request))
    };
    let usage = stats(&target).await.unwrap().into_inner().usage;
    assert_eq!(usage.len(), 1);
    assert!((5 << 20..6 << 20).contains(&usage[0].used), "{usage:?}");
    assert_eq!(usage[0].total, 80 << 20, "size and headroom");
    let refused = stats(Path::new("/proc")).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_pool_is_resource_exhausted_and_says_what_to_do() {
    let bench = bench("64Mi").await;
    let pool = bench.node.state().join("pool");
    let space = bench.node.pool().space().unwrap();
    rustix::fs::fallocate(
        std::fs::File::create(pool.join("ballast")).unwrap(),
        rustix::fs::FallocateFlags::empty(),
        0,
        space.usable(),
    )
    .unwrap();
    let refused = bench.stage().await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("Enlarge the pool"), "{refused}");
    assert!(refused.message().contains("the pool of node n1 is full"), "{refused}");
    assert_eq!(bench.cluster.reasons(), ["PoolFull"]);
    std::fs::remove_file(pool.join("ballast")).unwrap();
    bench.node.pool().sync().unwrap();
    bench.stage().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_smaller_than_its_content_is_refused() {
    let bench = bench("64Mi").await;
    let target = bench.node.target("uid-shop-1");
    bench.stage().await.unwrap();
    bench.publish(&target, "shop-1").await.unwrap();
    std::fs::write(target.join("upper/file"), vec![1; 40 << 20]).unwrap();
    bench.node.pool().sync().unwrap();
    bench.unpublish(&target).await.unwrap();
    bench.cluster.change(|object| object.spec.size.0 = "20Mi".into());
    let refused = bench.stage().await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert_eq!(bench.cluster.reasons(), ["Published", "DiskTooSmall"]);
    bench.cluster.change(|object| object.spec.size.0 = "50Mi".into());
    bench.stage().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_driver_finds_pool_volume_and_mount_again() {
    let bench = bench("64Mi").await;
    let target = bench.node.target("uid-shop-1");
    bench.stage().await.unwrap();
    bench.publish(&target, "shop-1").await.unwrap();
    std::fs::write(target.join("upper/kept"), b"data").unwrap();
    let Bench { node, registry, cluster, service } = bench;
    drop(service);

    let pool = node.pool();
    assert_eq!(mounts_at(&node.state().join("pool")), 1, "it is adopted, not mounted again");
    let service = node.service(&pool, &cluster, &registry.address);
    let bench = Bench { node, registry, cluster, service };
    bench.stage().await.unwrap();
    bench.publish(&target, "shop-1").await.unwrap();
    assert_eq!(mounts_at(&target), 1);
    assert_eq!(std::fs::read(target.join("upper/kept")).unwrap(), b"data");
}

/// Field 22 of `/proc/PID/stat`.
fn started(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn from_a_guest_that_has_ended_the_volume_is_taken_back_at_once() {
    let bench = bench("64Mi").await;
    let target = bench.node.target("uid-shop-1");
    bench.stage().await.unwrap();
    bench.publish(&target, "shop-1").await.unwrap();
    let mut init = Command::new("sleep").arg("20").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let pid = init.id().cast_signed();
    let pod = PodReference { namespace: "team-a".into(), name: "shop-1".into(), uid: "uid-shop-1".into() };
    let report = GuestReport {
        version: guest::VERSION,
        pod: pod.clone(),
        volume_id: VOLUME.into(),
        lease: None,
        init: Process { pid, started: started(pid) },
        shim: Process { pid, started: started(pid) },
        epoch: 1,
        state: GuestState::PoweredOff,
        since: "2026-01-02T03:04:05.678Z".parse().unwrap(),
        boots: 1,
        leaving: false,
        message: String::new(),
    };
    let take_back = async |report: GuestReport| bench.service.publisher.take_back_from(&report).await.unwrap();
    take_back(report.clone()).await;
    assert_eq!(mounts_at(&target), 1, "its init still runs");
    init.kill().unwrap();
    init.wait().unwrap();
    for other in [
        GuestReport { state: GuestState::Stopping, ..report.clone() },
        GuestReport { state: GuestState::Rebooting, ..report.clone() },
        GuestReport { epoch: 2, ..report.clone() },
        GuestReport { pod: PodReference { uid: "uid-shop-2".into(), ..pod }, ..report.clone() },
        GuestReport { volume_id: "another".into(), ..report.clone() },
    ] {
        take_back(other.clone()).await;
        assert_eq!((mounts_at(&target), bench.stage_records().len()), (1, 1), "{other:?}");
    }
    take_back(report.clone()).await;
    assert_eq!((mounts_at(&target), bench.stage_records().len()), (0, 0));
    // The kubelet does not know of that, and whoever has the volume next has nothing to do with it.
    bench.unpublish(&target).await.unwrap();
    bench.cluster.give("n1", "s1", 2);
    let next = bench.node.target("uid-shop-2");
    bench.publish(&next, "shop-2").await.unwrap();
    take_back(report).await;
    bench.unpublish(&target).await.unwrap();
    assert_eq!((mounts_at(&next), bench.stage_records().len()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_condition_is_taken_back_once_no_pod_has_the_volume() {
    let bench = bench("64Mi").await;
    let target = bench.node.target("uid-shop-1");
    let name = VolumeName::parse("team-a/shop").unwrap();
    let volume = id(VOLUME);
    let settle = || bench.service.publisher.settle(&name, &volume);
    bench.stage().await.unwrap();
    settle().await.unwrap();
    assert_eq!(bench.cluster.reasons(), [""; 0], "nothing was said, so nothing is taken back");
    bench.publish(&target, "shop-1").await.unwrap();
    settle().await.unwrap();
    assert_eq!(bench.cluster.reasons(), ["Published"], "a pod has it");
    bench.unpublish(&target).await.unwrap();
    for _ in 0..2 {
        settle().await.unwrap();
    }
    assert_eq!(bench.cluster.reasons(), ["Published", "NotPublished"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_published_volume_is_not_destroyed_and_a_destroyed_one_leaves_nothing() {
    let bench = bench("64Mi").await;
    let target = bench.node.target("uid-shop-1");
    bench.stage().await.unwrap();
    bench.publish(&target, "shop-1").await.unwrap();
    let name = VolumeName::parse("team-a/shop").unwrap();
    let volume = id(VOLUME);
    let destroy = || bench.service.publisher.destroy(&name, &volume);
    let refused = destroy().await.unwrap_err().to_string();
    assert!(refused.contains("still given to node n1 (session s1) at epoch 1"), "{refused}");
    bench.cluster.status(|status| status.holder = None);
    let refused = destroy().await.unwrap_err().to_string();
    assert!(refused.contains("still mounted into pod uid-shop-1"), "{refused}");
    // Unmounted, but whoever holds it may mount it again.
    bench.cluster.give("n1", "s1", 1);
    bench.unpublish(&target).await.unwrap();
    let refused = destroy().await.unwrap_err().to_string();
    assert!(refused.contains("still given to"), "{refused}");
    assert_eq!(bench.service.publisher.volumes.list().unwrap(), [id(VOLUME)]);
    bench.cluster.status(|status| status.holder = None);
    for _ in 0..2 {
        destroy().await.unwrap();
    }
    assert_eq!(std::fs::read_dir(bench.node.state().join("pool/volumes")).unwrap().count(), 0);

    let root = bench.node.dir.path().to_owned();
    drop(bench);
    eventually("its loop devices go", &|| loop_devices(&root).is_empty()).await;
}
