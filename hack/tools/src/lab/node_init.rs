//! The init process of a node, in namespaces of its own: makes the mounts that turn this machine's tree into a node's,
//! writes the node's configuration, starts containerd, kubelet, kube-proxy and the node's part of the object store, and
//! from then on reaps what is orphaned and starts each of them again when it ends (so that an installer may end containerd to have its configuration
//! read again).
//!
//! Every standard path is the node's own, bound from the node's disk, and `/run` is a tmpfs: lost with the power.
//! Everything is shared inside the node, for the mount propagation of pods, and nothing gets out to this machine.

use std::{
    collections::HashMap,
    fs::{self, File},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::CWD,
    mount::{
        MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount, mount_bind, mount_change, move_mount,
        open_tree,
    },
    process::{WaitOptions, wait},
    system::sethostname,
};

use super::{
    ceph, config,
    error::{Error, errno, io, refused},
    node::Node,
    process::Record,
    state::{self, Layout},
    wait,
};

/// Paths that belong to the node, bound from `nodes/NAME/<path with dashes>`.
const OWN: &[&str] = &[
    "/var/lib/kubelet",
    "/var/lib/containerd",
    "/var/lib/vivarium",
    "/var/lib/cni",
    "/var/log",
    "/etc/cni",
    "/etc/containerd",
    "/opt",
];

/// Kernel parameters as the kubelet wants them. They are the machine's, so the node is shown files that already say so.
const SYSCTLS: &[(&str, &str)] = &[
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

const CNI_PROGRAMS: &[&str] = &["bridge", "loopback", "ptp", "host-local", "portmap", "firewall"];

/// A service that ends sooner than this after its start waits before the next.
const QUICK: Duration = Duration::from_secs(2);

/// Never returns unless the node cannot be made. `nodes` is how many there are.
pub fn run(layout: &Layout, node: Node, nodes: u8) -> Result<(), Error> {
    // The /proc of the machine, still mounted, tells the pid that the machine sees.
    let pid = fs::read_link("/proc/self").map_err(io("read", "/proc/self"))?;
    let record = Record::of(&pid.to_string_lossy())?;
    sethostname(node.name().as_bytes()).map_err(errno("set", "the host name"))?;
    mounts(layout, node)?;
    configure(layout, node, nodes)?;
    record.save(layout, &node.init())?;
    supervise(layout, node)
}

fn mounts(layout: &Layout, node: Node) -> Result<(), Error> {
    let shared = |path: &str| {
        mount_change(path, MountPropagationFlags::REC | MountPropagationFlags::SHARED).map_err(errno("share", path))
    };
    shared("/")?;
    let proc = |path: &str| {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("proc", path, "proc", flags, None).map_err(errno("mount proc on", path))
    };
    proc("/proc")?;

    // A sysfs of the node's network namespace, with the cgroup hierarchies of the machine put back.
    let cgroups = open_tree(
        CWD,
        "/sys/fs/cgroup",
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::AT_RECURSIVE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    );
    let cgroups = cgroups.map_err(errno("clone", "/sys/fs/cgroup"))?;
    let plain = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("sysfs", "/sys", "sysfs", plain, None).map_err(errno("mount sysfs on", "/sys"))?;
    move_mount(&cgroups, "", CWD, "/sys/fs/cgroup", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(errno("mount the cgroups on", "/sys/fs/cgroup"))?;

    mount("tmpfs", "/run", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=755"))
        .map_err(errno("mount tmpfs on", "/run"))?;
    for folder in ["/run/lock", "/run/netns", "/run/proc-clean"] {
        state::create(Path::new(folder))?;
    }
    for path in OWN {
        let own = layout.node(node).join(path.trim_start_matches('/').replace('/', "-"));
        state::create(&own)?;
        state::create(Path::new(path))?;
        mount_bind(&own, *path).map_err(errno("bind", path))?;
        // A propagation group of its own: otherwise each mount below it would appear a second time on the node's disk.
        mount_change(*path, MountPropagationFlags::PRIVATE).map_err(errno("make private", path))?;
        shared(path)?;
    }

    // A procfs without anything mounted over it. The kernel lets a user namespace mount its own procfs only where such a
    // one is visible (mount_too_revealing), and the files below would spoil that.
    proc("/run/proc-clean")?;
    for (name, value) in SYSCTLS {
        let file = PathBuf::from("/run/sysctl").join(name.replace('/', "_"));
        state::write(&file, format!("{value}\n"))?;
        let target = format!("/proc/sys/{name}");
        mount_bind(&file, &target).map_err(errno("bind", target))?;
    }
    Ok(())
}

fn configure(layout: &Layout, node: Node, nodes: u8) -> Result<(), Error> {
    let write = |path: &str, content: String| state::write(Path::new(path), content);
    write("/etc/containerd/config.toml", config::containerd(layout))?;
    state::create(Path::new("/etc/containerd/conf.d"))?;
    let hosts = format!("/etc/containerd/certs.d/{}/hosts.toml", config::REGISTRY);
    write(&hosts, config::registry_host())?;
    write("/etc/cni/net.d/10-lab.conflist", config::cni(node))?;
    state::create(Path::new("/opt/cni/bin"))?;
    for name in CNI_PROGRAMS {
        let target = Path::new("/opt/cni/bin").join(name);
        fs::copy(layout.program(name), &target).map_err(io("write", target.display()))?;
        fs::set_permissions(&target, fs::Permissions::from_mode(0o755))
            .map_err(io("make executable", target.display()))?;
    }
    // Pods that ask for the node's resolver get one that answers nothing: there is no way out of the lab.
    write("/run/resolv.conf", "nameserver 10.250.0.1\n".to_owned())?;
    write("/run/kubelet.yaml", config::kubelet(layout, node, reserved(nodes)?))?;
    write("/run/kube-proxy.yaml", config::kube_proxy(layout, node))?;
    write("/run/crictl.yaml", format!("runtime-endpoint: unix://{}\n", config::CONTAINERD_SOCKET))
}

/// Memory in MiB that this node leaves to the others.
fn reserved(nodes: u8) -> Result<u64, Error> {
    let text = fs::read_to_string("/proc/meminfo").map_err(io("read", "/proc/meminfo"))?;
    Ok(share_of_others(&text, nodes))
}

fn share_of_others(meminfo: &str, nodes: u8) -> u64 {
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let total: u64 = total.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0);
    let nodes = u64::from(nodes.max(1));
    total / 1024 * (nodes - 1) / nodes
}

struct Service {
    name: &'static str,
    /// Program and arguments.
    words: Vec<String>,
}

fn services(layout: &Layout, node: Node) -> Vec<Service> {
    let words = |program: &str, line: &str| -> Vec<String> {
        let program = layout.program(program).display().to_string();
        std::iter::once(program).chain(line.split_whitespace().map(Into::into)).collect()
    };
    let kubeconfig = layout.kubeconfig_of(&node.name());
    let kubelet = format!(
        "--config=/run/kubelet.yaml --kubeconfig={} --hostname-override={node} --node-ip={} --root-dir=/var/lib/kubelet",
        kubeconfig.display(),
        node.address(),
    );
    let mut services = vec![
        Service { name: "containerd", words: words("containerd", "--config /etc/containerd/config.toml") },
        Service { name: "kubelet", words: words("kubelet", &kubelet) },
        Service { name: "kube-proxy", words: words("kube-proxy", "--config=/run/kube-proxy.yaml") },
    ];
    if ceph::is_here(layout) {
        // First: the store takes longest until it answers.
        services.insert(0, Service { name: "ceph-osd", words: ceph::osd(layout, node) });
    }
    services
}

fn start(layout: &Layout, node: Node, service: &Service) -> Result<i32, Error> {
    let path = layout.log(&format!("{node}-{}", service.name));
    let log = File::options().create(true).append(true).open(&path).map_err(io("open", path.display()))?;
    let copy = log.try_clone().map_err(io("open", path.display()))?;
    let (program, arguments) = service.words.split_first().ok_or_else(|| refused("a service without a program"))?;
    let mut command = Command::new(program);
    command.args(arguments).env("PATH", layout.search_path()).env_remove("VIVARIUM_LAB");
    command.stdin(Stdio::null()).stdout(log).stderr(copy);
    let child = command.spawn().map_err(io("start", service.name))?;
    Ok(child.id().cast_signed())
}

fn supervise(layout: &Layout, node: Node) -> Result<(), Error> {
    let services = services(layout, node);
    let mut running = HashMap::new();
    for service in &services {
        if service.name == "kubelet" {
            // Without a runtime the kubelet gives up.
            let what = "the socket of containerd";
            wait::until(Duration::from_secs(60), Duration::from_millis(50), what, "see its log", || {
                Ok(UnixStream::connect(config::CONTAINERD_SOCKET).ok())
            })?;
        }
        running.insert(start(layout, node, service)?, (service, Instant::now()));
    }
    loop {
        let ended = wait(WaitOptions::empty()).map_err(errno("wait for", "children"))?;
        let Some((pid, status)) = ended else { continue };
        let Some((service, since)) = running.remove(&pid.as_raw_nonzero().get()) else { continue };
        println!("{} ended with {status:?}; starting it again", service.name);
        if since.elapsed() < QUICK {
            thread::sleep(QUICK);
        }
        running.insert(start(layout, node, service)?, (service, Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_share_the_memory_evenly() {
        let meminfo = "MemTotal:       24576000 kB\nMemFree: 1 kB\n";
        assert_eq!(share_of_others(meminfo, 3), 16000);
        assert_eq!(share_of_others(meminfo, 1), 0);
    }
}
