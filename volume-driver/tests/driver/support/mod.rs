//! What the tests share: a pool of their own on a loop device, layers, an image registry in the process, and a cluster of
//! one object.

pub mod cluster;
pub mod place;
pub mod registry;
pub mod tarball;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::Notify;
use vivarium_node::authority::Promises;
use vivarium_node::authority::published::Leases;
use vivarium_node::claim::Claims;
use vivarium_node::csi::node::Node;
use vivarium_node::ids::VolumeId;
use vivarium_node::journal::keeper::Keeper;
use vivarium_node::kube::stores::Stores;
use vivarium_node::pool::{Pool, PoolSource};
use vivarium_node::publish::guard::Operations;
use vivarium_node::publish::pending::Pending;
use vivarium_node::publish::{Me, Publisher};
use vivarium_node::template::TemplateCache;
use vivarium_node::template::unpack::Limits;
use vivarium_node::view::Views;
use vivarium_node::volume::Volumes;
use vivarium_node::volume::record::Records;
use vivarium_ownership::Timing;

/// Small enough to be quick, large enough for btrfs.
pub const POOL_SIZE: u64 = 512 << 20;
pub const LIMITS: Limits = Limits { entries: 10_000, bytes: 256 << 20 };

/// After this long something hangs, on the slowest machine.
pub const HANG: Duration = Duration::from_secs(60);

/// A deadline for what takes moments.
pub fn soon() -> tokio::time::Instant {
    tokio::time::Instant::now() + HANG
}

/// A node's directories with a mounted pool; unmounted and removed in the end.
pub struct TestNode {
    pub dir: TempDir,
    /// How long a call waits for the operator.
    pub wait: Duration,
}

impl TestNode {
    pub fn new() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests mount a btrfs file system of their own: run them as root"
        );
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::Builder::new().prefix("vivarium-node-test").tempdir().unwrap();
        Self { dir, wait: Duration::from_secs(1) }
    }

    pub fn state(&self) -> std::path::PathBuf {
        self.dir.path().join("state")
    }

    pub fn run(&self) -> std::path::PathBuf {
        self.dir.path().join("run")
    }

    pub fn target(&self, pod: &str) -> std::path::PathBuf {
        let parent = self.dir.path().join("pods").join(pod);
        std::fs::create_dir_all(&parent).unwrap();
        parent.join("mount")
    }

    pub fn pool(&self) -> Arc<Pool> {
        self.pool_of(POOL_SIZE)
    }

    pub fn pool_of(&self, size: u64) -> Arc<Pool> {
        Arc::new(Pool::open("n1", &PoolSource::File { size }, &self.state()).unwrap())
    }

    pub fn templates(&self, pool: &Arc<Pool>, registry: &str) -> Arc<TemplateCache> {
        Arc::new(TemplateCache::open(pool.clone(), vec![registry.to_owned()], LIMITS).unwrap())
    }

    /// A node whose `Lease` was renewed for an hour.
    fn promises(&self) -> Arc<Promises> {
        let leases = Leases::open(&self.run(), "s1", "boot").unwrap();
        let timing = Timing { lease: Duration::from_secs(3600), ..Timing::default() };
        let promises = Promises::open(timing, "s1", leases).unwrap();
        promises.renewed(vivarium_node::authority::now(), &promises.lease());
        Arc::new(promises)
    }

    /// The node service as `serve` builds it, in front of a cluster of one object.
    pub fn service(&self, pool: &Arc<Pool>, cluster: &cluster::Cluster, registry: &str) -> Node {
        let directory = Arc::new(cluster.clone());
        let volumes = Volumes::open(pool.clone()).unwrap();
        let templates = self.templates(pool, registry);
        let publisher = Publisher {
            me: me(),
            stores: Stores::default(),
            keeper: Arc::new(
                Keeper::new(volumes.clone(), templates.clone(), directory.clone(), Duration::from_hours(1)).0,
            ),
            directory,
            volumes,
            templates,
            records: Records::open(&self.run()).unwrap(),
            pending: Arc::new(Pending::open(&self.run()).unwrap()),
            promises: self.promises(),
            operations: Operations::default(),
            changing: Operations::default(),
            changed: Arc::new(Notify::new()),
            wait: self.wait,
        };
        let publisher = Arc::new(publisher);
        let views = Arc::new(Views::open(publisher.clone(), &self.run()).unwrap());
        let claims = Arc::new(Claims::open(&publisher, Arc::new(cluster.clone())).unwrap());
        Node { publisher, views, claims, name: "n1".into() }
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        let root = self.dir.path().to_owned();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mut ours: Vec<&str> = mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .filter(|at| Path::new(at).starts_with(&root))
            .collect();
        ours.reverse();
        for at in ours {
            let _ = rustix::mount::unmount(at, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

pub fn me() -> Me {
    Me { node: "n1".into(), session: "s1".into() }
}

pub fn id(text: &str) -> VolumeId {
    VolumeId::parse(text).unwrap()
}

/// Loop devices whose backing file was below a directory.
pub fn loop_devices(below: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/sys/block").unwrap() {
        let file = entry.unwrap().path().join("loop/backing_file");
        if let Ok(backing) = std::fs::read_to_string(file)
            && Path::new(backing.trim().trim_end_matches(" (deleted)")).starts_with(below)
        {
            found.push(backing);
        }
    }
    found
}
