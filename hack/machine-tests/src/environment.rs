//! Does for one environment what the operator, the node driver and the kubelet do in a cluster: a volume in the pool, its
//! stage record, the projected configuration, the pod's directories and cgroup; and takes all of it back.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::mount::{UnmountFlags, mount_bind, unmount};
use vivarium_api::{
    names::{BOOT_CONFIG_FILE, GUEST_REPORTS, MOUNT_CONFIG, MOUNT_ROOT, POOL_DIR, RUN_DIR, STAGE_RECORDS},
    node::{
        boot::{self, BootConfig},
        guest::GuestReport,
        stage::{self, StageRecord, default_binds},
    },
};
use vivarium_machine_tests::{
    config::{Container, IdRange, Pod},
    options::{Options, PROGRAMS},
};

use crate::{
    command::{output, words},
    failure::{Failure, directory, write},
    groups,
};

/// Memory limit of every environment here.
pub const MEMORY: u64 = 256 << 20;
/// Limit of processes.
pub const PIDS: u64 = 200;
/// CPU at the start, in microseconds of each 100 ms: more than the boot uses.
pub const CPU: u32 = 200_000;
/// Where the environments have the program of this crate.
pub const PAYLOAD: &str = "/usr/local/bin/payload";

const LIMIT: Duration = Duration::from_secs(60);

/// One environment's volume and pod.
#[derive(Debug)]
pub struct Environment {
    pub pod: Pod,
    /// Live subvolume.
    pub live: PathBuf,
    record: PathBuf,
    /// Where the kubelet mounted the volume.
    target: PathBuf,
    projected: PathBuf,
}

impl Environment {
    /// Makes the volume and publishes it. `number` tells environments of one run apart.
    pub fn publish(number: u32, options: &Options) -> Result<Self, Failure> {
        let id = |kind: u32| format!("00000000-0000-4000-8000-{kind:04}{number:08}");
        let volume_id = id(1);
        let users = IdRange { host: 65_536 * (100 + number), length: 65_536 };
        let pod = Pod { namespace: "team-a", name: format!("shop{number}-1"), uid: id(2), users: Some(users) };
        let volume = Path::new(POOL_DIR).join("volumes").join(&volume_id);
        let live = volume.join("live");
        directory(&volume)?;
        btrfs(&["subvolume", "create", &live.to_string_lossy()])?;
        fill(&live)?;
        let uuid = subvolume_uuid(&live)?;
        let directory_of =
            |plugin: &str, name: &str| PathBuf::from(pod.directory()).join("volumes").join(plugin).join(name);
        let target = directory_of("kubernetes.io~csi", &format!("vivarium-{volume_id}")).join("mount");
        let projected = directory_of("kubernetes.io~projected", "config");
        let record = Path::new(STAGE_RECORDS).join(format!("{uuid}.json"));
        let this = Self { pod, live, record, target, projected };
        this.write_record(&volume_id, &uuid, options)?;
        directory(&this.target)?;
        mount_bind(&this.live, &this.target)?;
        this.project(&volume_id)?;
        groups::make_pod(&this.pod)?;
        Ok(this)
    }

    /// The container as the operator's pod asks for it.
    pub fn container(&self) -> Container {
        let outside = |path: &Path| path.to_string_lossy().into_owned();
        Container {
            name: "environment",
            mounts: vec![
                (outside(&self.target), MOUNT_ROOT.into()),
                (outside(&self.projected), MOUNT_CONFIG.into()),
                (outside(&Path::new(&self.pod.directory()).join("etc-hosts")), "/etc/hosts".into()),
            ],
            memory: Some(MEMORY),
            cpu_quota: Some(CPU),
            unified: vec![("pids.max", PIDS.to_string())],
            terminal: true,
            ..Container::default()
        }
    }

    /// What the shim last said about the guest.
    pub fn report(sandbox: &str) -> Option<GuestReport> {
        let text = fs::read(Path::new(GUEST_REPORTS).join(format!("{sandbox}.json"))).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// A file of the tree as it lies in the volume.
    pub fn written(&self, path: &str) -> io::Result<String> {
        fs::read_to_string(self.live.join("upper").join(path.trim_start_matches('/')))
            .map(|text| text.trim().to_owned())
    }

    /// Takes back what the kubelet and the node driver did; what is left then is what the runtime left.
    pub fn unpublish(&self) -> Result<(), Failure> {
        fs::remove_file(&self.record)?;
        unmount(&self.target, UnmountFlags::empty())
            .map_err(|error| Failure(format!("cannot unmount {}: {error}", self.target.display())))?;
        fs::remove_dir_all(self.pod.directory())?;
        groups::remove_pod(&self.pod)?;
        // A mount that something still holds would keep the subvolume's content alive after this.
        btrfs(&["subvolume", "delete", &self.live.to_string_lossy()]).map(drop)
    }

    fn write_record(&self, volume_id: &str, uuid: &str, options: &Options) -> Result<(), Failure> {
        let templates = Path::new(POOL_DIR).join("templates");
        let record = StageRecord {
            version: stage::VERSION,
            volume_id: volume_id.into(),
            subvolume_uuid: uuid.into(),
            pod_uid: self.pod.uid.clone(),
            epoch: 1,
            session: "00000000-0000-4000-8000-000000000000".into(),
            lease: None,
            layers: options.layers.iter().map(|layer| templates.join(layer)).collect(),
            binds: default_binds(),
        };
        directory(STAGE_RECORDS)?;
        fs::set_permissions(RUN_DIR, Permissions::from_mode(0o755))?;
        fs::set_permissions(STAGE_RECORDS, Permissions::from_mode(0o700))?;
        write(&self.record, serde_json::to_vec(&record)?)
    }

    /// The projected volume, with the links by which the kubelet swaps all its files at once.
    fn project(&self, volume_id: &str) -> Result<(), Failure> {
        let config = BootConfig {
            version: boot::VERSION,
            machine_uuid: volume_id.into(),
            hostname: self.pod.name.trim_end_matches("-1").into(),
            timezone: None,
            locale: None,
            sysctls: Vec::new(),
            limits: Vec::new(),
            authorized_keys: 0,
        };
        let now = self.projected.join("..now");
        directory(&now)?;
        write(now.join(BOOT_CONFIG_FILE), serde_json::to_vec(&config)?)?;
        symlink("..now", self.projected.join("..data"))?;
        symlink(format!("..data/{BOOT_CONFIG_FILE}"), self.projected.join(BOOT_CONFIG_FILE))?;
        write(Path::new(&self.pod.directory()).join("etc-hosts"), "127.0.0.1 localhost\n")
    }
}

/// The directories of a fresh volume; in its upper layer, what its user put there: the payload.
fn fill(live: &Path) -> Result<(), Failure> {
    for (name, mode) in
        [("upper", 0o755), ("work", 0o755), ("data", 0o755), ("data/docker", 0o711), ("data/containerd", 0o700)]
    {
        directory(live.join(name))?;
        fs::set_permissions(live.join(name), Permissions::from_mode(mode))?;
    }
    let payload = live.join("upper").join(PAYLOAD.trim_start_matches('/'));
    directory(payload.parent().unwrap_or(live))?;
    fs::copy(format!("{PROGRAMS}/bin/machine-tests"), &payload)?;
    Ok(fs::set_permissions(&payload, Permissions::from_mode(0o755))?)
}

fn subvolume_uuid(live: &Path) -> Result<String, Failure> {
    let shown = btrfs(&["subvolume", "show", &live.to_string_lossy()])?;
    let uuid = shown.lines().find_map(|line| line.trim().strip_prefix("UUID:"));
    uuid.map(|uuid| uuid.trim().to_owned()).ok_or_else(|| Failure(format!("no UUID in: {shown}")))
}

fn btrfs(arguments: &[&str]) -> Result<String, Failure> {
    Ok(output(&mut words(&[&["btrfs"], arguments].concat()), LIMIT)?)
}
