//! A pool of one loop file with a template layer and a volume, as the node driver makes them.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};
use vivarium_api::names;
use vivarium_api::node::boot::BootConfig;
use vivarium_api::node::guest::GuestReport;
use vivarium_api::node::lease::{self, PublishedLease};
use vivarium_api::node::stage::{StageRecord, VERSION, default_binds};

use super::{Lab, Plan, Streams};

pub const POD_UID: &str = "0b5f1e7c-pod";

/// A mounted btrfs.
pub struct Pool {
    dir: tempfile::TempDir,
    records: Vec<PathBuf>,
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Pool {
    pub fn new(size: &str) -> Self {
        super::require_root();
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let (image, mount) = (dir.path().join("image"), dir.path().join("pool"));
        fs::create_dir(&mount).unwrap();
        let (image, mount) = (image.to_str().unwrap(), mount.to_str().unwrap());
        run("truncate", &["-s", size, image]);
        run("mkfs.btrfs", &["-q", image]);
        run("mount", &["-o", "loop", image, mount]);
        Self { dir, records: Vec::new() }
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("pool")
    }

    /// A template layer.
    pub fn layer(&self, name: &str, fill: impl FnOnce(&Path)) -> PathBuf {
        let layer = self.path().join(name);
        run("btrfs", &["-q", "subvolume", "create", layer.to_str().unwrap()]);
        fill(&layer);
        layer
    }

    /// A live volume with its record.
    pub fn volume(&mut self, name: &str, layers: &[PathBuf], pod_uid: &str, lease: Option<&Lease>) -> PathBuf {
        let live = self.path().join(name);
        run("btrfs", &["-q", "subvolume", "create", live.to_str().unwrap()]);
        for dir in ["upper", "work", "data/docker", "data/containerd"] {
            fs::create_dir_all(live.join(dir)).unwrap();
        }
        let directory = fs::File::open(&live).unwrap();
        let uuid = vivarium_sys::btrfs::subvolume_info(directory.as_fd()).unwrap().uuid.to_string();
        let record = StageRecord {
            version: VERSION,
            volume_id: format!("volume-{name}"),
            subvolume_uuid: uuid.clone(),
            pod_uid: pod_uid.into(),
            epoch: 7,
            session: lease.map_or_else(|| "test".into(), |lease| lease.session.clone()),
            lease: lease.map(Lease::file_name),
            layers: layers.to_vec(),
            binds: default_binds(),
        };
        fs::create_dir_all(names::STAGE_RECORDS).unwrap();
        let path = Path::new(names::STAGE_RECORDS).join(format!("{uuid}.json"));
        fs::write(&path, serde_json::to_vec(&record).unwrap()).unwrap();
        self.records.push(path);
        live
    }
}

/// A lease as the node driver publishes it, of a session of its own.
pub struct Lease {
    pub session: String,
}

impl Lease {
    /// One that holds for an hour.
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let lease = Self { session: format!("session-{}-{number}", std::process::id()) };
        fs::create_dir_all(names::LEASES).unwrap();
        lease.renew();
        lease
    }

    fn file_name(&self) -> String {
        lease::file_name(&self.session, "store")
    }

    fn path(&self) -> PathBuf {
        Path::new(names::LEASES).join(self.file_name())
    }

    fn publish(&self, act_until: u64) {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().to_owned();
        let record = PublishedLease { version: lease::VERSION, boot_id, session: self.session.clone(), act_until };
        let new = self.path().with_extension("new");
        fs::write(&new, serde_json::to_vec(&record).unwrap()).unwrap();
        fs::rename(new, self.path()).unwrap();
    }

    pub fn renew(&self) {
        self.publish(Self::now() + 3_600_000_000_000);
    }

    /// Lapses now: as if it had never been renewed so far. A driver never takes a promise back; that makes the test short.
    pub fn lapse_in(&self, milliseconds: u64) {
        self.publish(Self::now() + milliseconds * 1_000_000);
    }

    pub fn end(&self) {
        fs::remove_file(self.path()).unwrap();
    }

    fn now() -> u64 {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        fs::remove_file(self.path()).ok();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for record in &self.records {
            fs::remove_file(record).ok();
        }
        run("umount", &["--lazy", self.path().to_str().unwrap()]);
    }
}

pub fn boot_config() -> BootConfig {
    BootConfig {
        version: 1,
        machine_uuid: "6b2c9a34-11d2-4c7e-9f0a-5d8e7a6b4c3d".into(),
        hostname: "shop".into(),
        timezone: None,
        locale: None,
        sysctls: Vec::new(),
        limits: Vec::new(),
        authorized_keys: 1,
    }
}

/// Writes the projected volume as the kubelet lays it out.
pub fn write_config(dir: &Path, boot: &BootConfig, key: &str) {
    let version = format!("..{}", fs::read_dir(dir).map_or(0, Iterator::count));
    let data = dir.join(&version);
    fs::create_dir_all(data.join("authorized-keys")).unwrap();
    fs::write(data.join("boot.json"), serde_json::to_vec(boot).unwrap()).unwrap();
    fs::write(data.join("authorized-keys/0"), key).unwrap();
    std::os::unix::fs::symlink(&version, dir.join("..data_tmp")).unwrap();
    fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
    for name in ["boot.json", "authorized-keys"] {
        if fs::symlink_metadata(dir.join(name)).is_err() {
            std::os::unix::fs::symlink(format!("..data/{name}"), dir.join(name)).unwrap();
        }
    }
}

impl Lab {
    /// The pod's sandbox container, which says which pod it is.
    pub async fn up_sandbox(&self, pod_uid: &str) -> Streams {
        let plan = Plan::shell("trap exit TERM; while :; do sleep 1000 & wait; done");
        let mut spec = self.spec(&self.shim_id, &plan);
        spec["annotations"] = json!({
            "io.kubernetes.cri.container-type": "sandbox",
            "io.kubernetes.cri.sandbox-uid": pod_uid,
            "io.kubernetes.cri.sandbox-name": "shop-7",
            "io.kubernetes.cri.sandbox-namespace": "team-a",
        });
        let (streams, created) = self.create_from(&self.shim_id, &plan, &spec).await;
        created.unwrap();
        self.start(&self.shim_id, "").await.unwrap();
        streams
    }

    /// Spec of an environment's container.
    pub fn environment_spec(&self, id: &str, volume: &Path, config: &Path) -> Value {
        let mut plan = Plan::new(&["/stub"]);
        plan.terminal = true;
        let mut spec = self.spec(id, &plan);
        let map = json!([{"containerID": 0, "hostID": self.base, "size": 65536}]);
        let resolv = self.dir.path().join("resolv.conf");
        fs::write(&resolv, "nameserver 192.0.2.53\n").unwrap();
        let bind = |destination: &str, source: &Path, option: &str| {
            json!({"destination": destination, "type": "bind", "source": source, "options": ["rbind", "rprivate", option],
                "uidMappings": map, "gidMappings": map})
        };
        let mounts = spec["mounts"].as_array_mut().unwrap();
        mounts.push(bind(names::MOUNT_ROOT, volume, "rw"));
        mounts.push(bind(names::MOUNT_CONFIG, config, "ro"));
        mounts.push(bind("/etc/resolv.conf", &resolv, "rw"));
        spec
    }

    /// Boots an environment; gives its console.
    pub async fn up_environment(&self, id: &str, volume: &Path, config: &Path) -> Streams {
        let mut plan = Plan::new(&["/stub"]);
        plan.terminal = true;
        let spec = self.environment_spec(id, volume, config);
        let (streams, created) = self.create_from(id, &plan, &spec).await;
        created.unwrap_or_else(|e| panic!("create {id}: {e:?}\n{}", self.log()));
        self.start(id, "").await.unwrap_or_else(|e| panic!("start {id}: {e:?}\n{}", self.log()));
        streams
    }

    pub fn report(&self) -> Option<GuestReport> {
        let path = Path::new(names::GUEST_REPORTS).join(format!("{}.json", self.shim_id));
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }
}
