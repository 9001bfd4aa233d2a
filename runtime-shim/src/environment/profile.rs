//! The spec of an environment, made from that of its container. Pure: what is on the host and in the tree comes in as
//! arguments.
//!
//! An operating system gets what a virtual machine would give it: every capability inside its own user namespace, an
//! unmasked `/proc` (the namespace protects what is the node's), its control group to manage, `/run` and `/tmp` in
//! memory. Where the pod's spec says otherwise it is overruled, for the pod asks for an operating system by its volume.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType, LinuxNamespace,
    LinuxNamespaceBuilder, LinuxNamespaceType, LinuxResources, Mount, MountBuilder, PosixRlimit, Process, Spec, User,
};
use vivarium_api::names;
use vivarium_api::node::boot::{BootConfig, is_namespaced_sysctl};

use crate::error::{Error, Result};
use crate::helper::credentials;

/// Where the guest's program search begins (Debian's root).
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Where the guest finds what it is told (systemd's container interface).
pub const HOST_DIR: &str = "/run/host";
/// Mounts of the kubelet that would hide files that belong to the guest.
const KUBELET_FILES: &[&str] = &["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];

/// What was prepared for the guest on the host's side.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// Program to boot, as the guest sees it.
    pub init: String,
    /// Root file system.
    pub root: PathBuf,
    /// tmpfs for `/run`.
    pub run: PathBuf,
    /// Directory for `/run/host`.
    pub host: PathBuf,
    /// Directories of the volume: where they are staged and where they go.
    pub data: Vec<(PathBuf, PathBuf)>,
    /// Character devices of the node that exist and are shared: path, major, minor.
    pub devices: Vec<(&'static str, i64, i64)>,
}

/// Devices that an environment gets if the node has them, with their numbers (`Documentation/admin-guide/devices.txt`).
pub const SHARED_DEVICES: &[(&str, i64, i64)] = &[("/dev/fuse", 10, 229), ("/dev/net/tun", 10, 200)];

/// Whether a mount of the container's spec is left out of the guest.
#[must_use]
pub fn is_dropped(mount: &Mount) -> bool {
    let destination = mount.destination();
    destination.starts_with("/.vivarium") || KUBELET_FILES.iter().any(|file| destination == Path::new(file))
}

/// Rewrites the spec. Bind mounts in it must be staged already.
pub fn rewrite(mut spec: Spec, boot: &BootConfig, prepared: &Prepared) -> Result<Spec> {
    let process = process(spec.process().clone().unwrap_or_default(), boot, prepared);
    spec.set_process(Some(process));
    let mut root = spec.root().clone().unwrap_or_default();
    root.set_path(prepared.root.clone());
    root.set_readonly(Some(false));
    spec.set_root(Some(root));
    let mounts = mounts(spec.mounts().clone().unwrap_or_default(), prepared)?;
    spec.set_mounts(Some(mounts));
    let mut linux = spec.linux().clone().unwrap_or_default();
    linux.set_masked_paths(None);
    linux.set_readonly_paths(None);
    linux.set_seccomp(None);
    linux.set_namespaces(Some(namespaces(linux.namespaces().clone().unwrap_or_default())?));
    linux.set_sysctl(Some(sysctls(linux.sysctl().clone().unwrap_or_default(), boot)?));
    let mut devices = linux.devices().clone().unwrap_or_default();
    devices.retain(|d| !prepared.devices.iter().any(|(path, ..)| d.path() == Path::new(path)));
    let mut resources = linux.resources().clone().unwrap_or_default();
    for shared in &prepared.devices {
        devices.push(device(shared)?);
        allow(&mut resources, shared)?;
    }
    linux.set_devices(Some(devices));
    linux.set_resources(Some(resources));
    spec.set_linux(Some(linux));
    Ok(spec)
}

fn process(mut process: Process, boot: &BootConfig, prepared: &Prepared) -> Process {
    process.set_args(Some(vec![prepared.init.clone()]));
    process.set_cwd("/".into());
    process.set_user(User::default());
    process.set_no_new_privileges(Some(false));
    process.set_capabilities(Some(credentials::full()));
    process.set_rlimits(None);
    process.set_apparmor_profile(None);
    process.set_env(Some(vec![
        PATH.into(),
        "container=vivarium".into(),
        format!("container_uuid={}", boot.machine_uuid),
        format!("NOTIFY_SOCKET={HOST_DIR}/notify"),
        format!("CREDENTIALS_DIRECTORY={HOST_DIR}/credentials"),
        "TERM=xterm-256color".into(),
    ]));
    process
}

/// What an exec into an environment runs as: the root of an operating system, with its limits, whatever the stub image or
/// the pod say.
#[must_use]
pub fn exec(mut process: Process, limits: &[PosixRlimit]) -> Process {
    process.set_no_new_privileges(Some(false));
    process.set_capabilities(Some(credentials::full()));
    process.set_rlimits((!limits.is_empty()).then(|| limits.to_vec()));
    process.set_apparmor_profile(None);
    let mut env = process.env().clone().unwrap_or_default();
    let has = |env: &[String], name: &str| env.iter().any(|e| e.strip_prefix(name).is_some_and(|r| r.starts_with('=')));
    // The stub image has no PATH of its own; what containerd adds lacks nothing but may lack `sbin`.
    env.retain(|e| !e.starts_with("PATH="));
    env.push(PATH.into());
    if !has(&env, "HOME") && process.user().uid() == 0 {
        env.push("HOME=/root".into());
    }
    if !has(&env, "TERM") && process.terminal().unwrap_or(false) {
        env.push("TERM=xterm".into());
    }
    process.set_env(Some(env));
    process
}

fn mounts(mounts: Vec<Mount>, prepared: &Prepared) -> Result<Vec<Mount>> {
    let mut system = Vec::new();
    let mut binds = Vec::new();
    for mut mount in mounts.into_iter().filter(|m| !is_dropped(m)) {
        if crate::volumes::is_bind(&mount) {
            binds.push(mount);
        } else if mount.typ().as_deref() == Some("cgroup") {
            system.push(filesystem("/sys/fs/cgroup", "cgroup2", &["nosuid", "noexec", "nodev"])?);
        } else if !matches!(mount.destination().to_str(), Some("/run" | "/tmp")) {
            if mount.typ().as_deref() == Some("sysfs") {
                // Read-only, so that the guest's udev keeps off the node's devices (systemd CONTAINER_INTERFACE).
                mount.set_options(Some(["nosuid", "noexec", "nodev", "ro"].map(String::from).into()));
            }
            system.push(mount);
        }
    }
    system.push(bind(&prepared.run, Path::new("/run"), &["rbind", "rw"])?);
    system.push(bind(&prepared.host, Path::new(HOST_DIR), &["bind", "ro"])?);
    system.push(filesystem("/tmp", "tmpfs", &["nosuid", "nodev", "mode=1777", "size=50%", "nr_inodes=1m"])?);
    for (staged, target) in &prepared.data {
        system.push(bind(staged, target, &["bind", "rw"])?);
    }
    system.extend(binds);
    Ok(system)
}

fn invalid(what: &str, error: &dyn std::fmt::Display) -> Error {
    Error::Failed(format!("The {what} of the environment's spec cannot be made: {error}."))
}

fn filesystem(destination: &str, kind: &str, options: &[&str]) -> Result<Mount> {
    MountBuilder::default()
        .destination(destination)
        .typ(kind)
        .source(kind)
        .options(options.iter().map(ToString::to_string).collect::<Vec<_>>())
        .build()
        .map_err(|e| invalid("mount", &e))
}

fn bind(source: &Path, destination: &Path, options: &[&str]) -> Result<Mount> {
    MountBuilder::default()
        .destination(destination)
        .typ("bind")
        .source(source)
        .options(options.iter().map(ToString::to_string).collect::<Vec<_>>())
        .build()
        .map_err(|e| invalid("mount", &e))
}

/// containerd asks for no cgroup namespace on v1 hosts; without one `cgroup2` cannot be mounted in a user namespace.
fn namespaces(mut namespaces: Vec<LinuxNamespace>) -> Result<Vec<LinuxNamespace>> {
    if !namespaces.iter().any(|n| n.typ() == LinuxNamespaceType::Cgroup) {
        let cgroup = LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::Cgroup).build();
        namespaces.push(cgroup.map_err(|e| invalid("namespace", &e))?);
    }
    Ok(namespaces)
}

fn sysctls(mut sysctls: HashMap<String, String>, boot: &BootConfig) -> Result<HashMap<String, String>> {
    for sysctl in &boot.sysctls {
        if !is_namespaced_sysctl(&sysctl.name) {
            return Err(Error::Refused(format!(
                "the kernel parameter {:?} does not belong to a namespace of the environment, so setting it would \
                 change the whole node; remove it from spec.os.sysctls",
                sysctl.name
            )));
        }
        sysctls.insert(sysctl.name.clone(), sysctl.value.clone());
    }
    Ok(sysctls)
}

fn device(&(path, major, minor): &(&str, i64, i64)) -> Result<LinuxDevice> {
    LinuxDeviceBuilder::default()
        .path(path)
        .typ(LinuxDeviceType::C)
        .major(major)
        .minor(minor)
        .file_mode(0o666u32)
        .build()
        .map_err(|e| invalid("device", &e))
}

fn allow(resources: &mut LinuxResources, &(_, major, minor): &(&str, i64, i64)) -> Result<()> {
    let rule: LinuxDeviceCgroup = LinuxDeviceCgroupBuilder::default()
        .allow(true)
        .typ(LinuxDeviceType::C)
        .major(major)
        .minor(minor)
        .access("rwm")
        .build()
        .map_err(|e| invalid("device rule", &e))?;
    let mut rules = resources.devices().clone().unwrap_or_default();
    rules.push(rule);
    resources.set_devices(Some(rules));
    Ok(())
}

/// Whether a container's mounts hold the guest's configuration, and where.
#[must_use]
pub fn config_source(spec: &Spec) -> Option<PathBuf> {
    super::find_mount(spec, names::MOUNT_CONFIG).and_then(|mount| mount.source().clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vivarium_api::node::boot::{Sysctl, VERSION};

    fn boot() -> BootConfig {
        BootConfig {
            version: VERSION,
            machine_uuid: "7d0c".into(),
            hostname: "shop".into(),
            timezone: None,
            locale: None,
            sysctls: Vec::new(),
            limits: Vec::new(),
            authorized_keys: 0,
        }
    }

    fn prepared() -> Prepared {
        Prepared {
            init: "/sbin/init".into(),
            root: "/stage/1".into(),
            run: "/stage/2".into(),
            host: "/stage/3".into(),
            data: vec![("/stage/4".into(), "/var/lib/docker".into())],
            devices: vec![("/dev/fuse", 10, 229)],
        }
    }

    /// A spec as CRI writes it for a hybrid host, shortened.
    fn cri() -> Spec {
        serde_json::from_value(serde_json::json!({
            "ociVersion": "1.2.0",
            "process": {"args": ["/pause"], "cwd": "/srv", "user": {"uid": 7, "gid": 7}, "noNewPrivileges": true,
                "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 1}], "env": ["PATH=/bin", "A=b"],
                "oomScoreAdj": 900},
            "root": {"path": "rootfs", "readonly": true},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
                {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["rw"]},
                {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]},
                {"destination": "/.vivarium/root", "type": "bind", "source": "/vol", "options": ["rbind"]},
                {"destination": "/.vivarium/config", "type": "bind", "source": "/conf", "options": ["rbind"]},
                {"destination": "/etc/hosts", "type": "bind", "source": "/h", "options": ["rbind"]},
                {"destination": "/etc/resolv.conf", "type": "bind", "source": "/r", "options": ["rbind"]},
                {"destination": "/etc/hostname", "type": "bind", "source": "/n", "options": ["rbind"]},
                {"destination": "/dev/shm", "type": "bind", "source": "/shm", "options": ["rbind"]},
                {"destination": "/run", "type": "tmpfs", "source": "tmpfs"}
            ],
            "linux": {"maskedPaths": ["/proc/kcore"], "readonlyPaths": ["/proc/sys"],
                "namespaces": [{"type": "user", "path": "/proc/7/ns/user"}, {"type": "mount"}],
                "seccomp": {"defaultAction": "SCMP_ACT_ERRNO"}}
        }))
        .unwrap()
    }

    #[test]
    fn mounts_come_in_an_order_in_which_none_hides_another() {
        let spec = rewrite(cri(), &boot(), &prepared()).unwrap();
        let destinations: Vec<_> =
            spec.mounts().iter().flatten().map(|m| m.destination().to_str().unwrap().to_owned()).collect();
        assert_eq!(
            destinations,
            ["/proc", "/dev", "/sys", "/sys/fs/cgroup", "/run", "/run/host", "/tmp", "/var/lib/docker", "/dev/shm"]
        );
        let cgroup = super::super::find_mount(&spec, "/sys/fs/cgroup").unwrap();
        assert_eq!(cgroup.typ().as_deref(), Some("cgroup2"));
        assert!(!cgroup.options().as_ref().unwrap().contains(&"ro".to_owned()));
        let sysfs = super::super::find_mount(&spec, "/sys").unwrap();
        assert!(sysfs.options().as_ref().unwrap().contains(&"ro".to_owned()));
    }

    #[test]
    fn init_is_root_with_everything() {
        let spec = rewrite(cri(), &boot(), &prepared()).unwrap();
        let process = spec.process().as_ref().unwrap();
        assert_eq!(process.args().as_ref().unwrap(), &["/sbin/init"]);
        assert_eq!((process.user().uid(), process.cwd().to_str()), (0, Some("/")));
        assert_eq!(process.no_new_privileges(), Some(false));
        assert_eq!(process.rlimits(), &None);
        assert_eq!(process.oom_score_adj(), Some(900));
        assert!(process.env().as_ref().unwrap().contains(&"container_uuid=7d0c".to_owned()));
        assert!(!process.env().as_ref().unwrap().contains(&"A=b".to_owned()));
        let linux = spec.linux().as_ref().unwrap();
        assert!(linux.masked_paths().is_none() && linux.readonly_paths().is_none() && linux.seccomp().is_none());
        assert!(linux.namespaces().iter().flatten().any(|n| n.typ() == LinuxNamespaceType::Cgroup));
        assert_eq!(spec.root().as_ref().unwrap().readonly(), Some(false));
    }

    #[test]
    fn a_kernel_parameter_of_the_node_is_refused() {
        let sysctl = |name: &str| Sysctl { name: name.into(), value: "1".into() };
        let mut boot = boot();
        boot.sysctls = vec![sysctl("net.ipv4.ip_forward")];
        let spec = rewrite(cri(), &boot, &prepared()).unwrap();
        assert_eq!(spec.linux().as_ref().unwrap().sysctl().as_ref().unwrap()["net.ipv4.ip_forward"], "1");
        boot.sysctls.push(sysctl("kernel.core_pattern"));
        let error = rewrite(cri(), &boot, &prepared()).unwrap_err().to_string();
        assert!(error.contains("kernel.core_pattern") && error.contains("remove it"), "{error}");
    }

    #[test]
    fn an_exec_is_roots_login() {
        let mut process = Process::default();
        process.set_env(Some(vec!["PATH=/x".into(), "TERM=vt100".into()]));
        process.set_terminal(Some(true));
        let process = exec(process, &[PosixRlimit::default()]);
        assert_eq!(process.rlimits().as_deref(), Some(&[PosixRlimit::default()][..]));
        let env = process.env().clone().unwrap();
        assert_eq!(env, ["TERM=vt100", PATH, "HOME=/root"]);
        assert_eq!(process.capabilities().as_ref().unwrap(), &credentials::full());
    }
}
