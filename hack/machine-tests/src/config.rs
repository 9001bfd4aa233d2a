//! Files that containerd, CNI and crictl read, rendered from values. What a kubelet would fill in is filled in the same
//! way, so that the runtime meets here what it meets in a cluster.

use std::path::Path;

use serde_json::{Value, json};
use vivarium_api::names::{RUNTIME_CLASS, RUNTIME_TYPE, SHIM_BINARY};

use crate::options::{IMAGE, PROGRAMS};

/// Handler of runc, the control.
pub const CONTROL_HANDLER: &str = "runc";

/// Users of a pod: `length` of them, from 0 inside and from `host` outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// First id outside.
    pub host: u32,
    /// How many.
    pub length: u32,
}

impl IdRange {
    fn mappings(self) -> Value {
        json!([{ "container_id": 0, "host_id": self.host, "length": self.length }])
    }
}

/// A pod as the kubelet would ask for it.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Namespace, `shop-1`, UID.
    pub namespace: &'static str,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// Users of its own; none: those of the machine.
    pub users: Option<IdRange>,
}

impl Pod {
    /// Parent of the containers' cgroups, from the root of the hierarchy.
    #[must_use]
    pub fn cgroup(&self) -> String {
        format!("/kubepods/pod{}", self.uid)
    }

    /// Where its containers log to.
    #[must_use]
    pub fn log_directory(&self) -> String {
        format!("/var/log/pods/{}_{}_{}", self.namespace, self.name, self.uid)
    }

    /// The kubelet's directory of this pod.
    #[must_use]
    pub fn directory(&self) -> String {
        format!("/var/lib/kubelet/pods/{}", self.uid)
    }

    fn namespaces(&self) -> Value {
        // Numbers of NamespaceMode: 0 is of the pod, 1 of the container, 2 of the node.
        let users = match self.users {
            Some(range) => json!({ "mode": 0, "uids": range.mappings(), "gids": range.mappings() }),
            None => json!({ "mode": 2 }),
        };
        json!({ "network": 0, "pid": 1, "ipc": 0, "userns_options": users })
    }

    /// `PodSandboxConfig` for crictl.
    #[must_use]
    pub fn render(&self) -> Value {
        json!({
            "metadata": { "namespace": self.namespace, "name": self.name, "uid": self.uid, "attempt": 0 },
            "hostname": self.name,
            "log_directory": self.log_directory(),
            "dns_config": { "servers": ["192.0.2.53"] },
            "labels": {
                "io.kubernetes.pod.namespace": self.namespace,
                "io.kubernetes.pod.name": self.name,
                "io.kubernetes.pod.uid": self.uid,
            },
            "linux": {
                "cgroup_parent": self.cgroup(),
                "security_context": { "namespace_options": self.namespaces(), "seccomp": { "profile_type": 0 } },
            },
        })
    }
}

/// A container as the kubelet would ask for it.
#[derive(Clone, Debug, Default)]
pub struct Container {
    /// Name.
    pub name: &'static str,
    /// Program and arguments; empty: those of the image.
    pub command: Vec<String>,
    /// Directory outside, place inside.
    pub mounts: Vec<(String, String)>,
    /// `memory.max` in bytes.
    pub memory: Option<u64>,
    /// `cpu.max`: microseconds of each 100 ms.
    pub cpu_quota: Option<u32>,
    /// Files of the cgroup and what is written there.
    pub unified: Vec<(&'static str, String)>,
    /// A terminal, with input.
    pub terminal: bool,
}

impl Container {
    /// `ContainerConfig` for crictl.
    #[must_use]
    pub fn render(&self, pod: &Pod) -> Value {
        let mounts: Vec<Value> = self.mounts.iter().map(|(host, inside)| mount(pod, host, inside)).collect();
        let mut resources = json!({ "cpu_period": 100_000, "cpu_shares": 102, "oom_score_adj": 1000 });
        if let Some(bytes) = self.memory {
            resources["memory_limit_in_bytes"] = bytes.into();
        }
        if let Some(quota) = self.cpu_quota {
            resources["cpu_quota"] = quota.into();
        }
        let unified: serde_json::Map<_, _> =
            self.unified.iter().map(|(file, value)| ((*file).to_owned(), Value::from(value.as_str()))).collect();
        if !unified.is_empty() {
            resources["unified"] = unified.into();
        }
        json!({
            "metadata": { "name": self.name, "attempt": 0 },
            "image": { "image": IMAGE },
            "command": self.command,
            "mounts": mounts,
            "log_path": format!("{}/0.log", self.name),
            "stdin": self.terminal,
            "tty": self.terminal,
            "labels": { "io.kubernetes.container.name": self.name },
            "linux": {
                "resources": resources,
                "security_context": { "namespace_options": pod.namespaces(), "seccomp": { "profile_type": 0 } },
            },
        })
    }
}

/// The kubelet puts the pod's mappings on every mount.
fn mount(pod: &Pod, host: &str, inside: &str) -> Value {
    let mut mount = json!({ "host_path": host, "container_path": inside });
    if let Some(range) = pod.users {
        mount["uidMappings"] = range.mappings();
        mount["gidMappings"] = range.mappings();
    }
    mount
}

/// Configuration of containerd with both runtimes.
#[must_use]
pub fn containerd() -> String {
    format!(
        r#"version = 3
disabled_plugins = ["io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.erofs", "io.containerd.snapshotter.v1.native", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "{IMAGE}"
[plugins.'io.containerd.cri.v1.runtime']
  disable_apparmor = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ["{PROGRAMS}/bin"]
  conf_dir = "/etc/cni/net.d"
[plugins.'io.containerd.cri.v1.runtime'.containerd]
  default_runtime_name = "{CONTROL_HANDLER}"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.{CONTROL_HANDLER}]
  runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.{CONTROL_HANDLER}.options]
  BinaryName = "{PROGRAMS}/bin/runc"
  SystemdCgroup = false
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.{RUNTIME_CLASS}]
  runtime_type = "{RUNTIME_TYPE}"
  runtime_path = "{PROGRAMS}/bin/{SHIM_BINARY}"
"#
    )
}

/// Unit of containerd, with what its own unit file says about processes that outlive it and about its cgroup.
#[must_use]
pub fn containerd_unit() -> String {
    format!(
        "[Unit]\nDescription=containerd\n[Service]\nType=notify\nExecStart={PROGRAMS}/bin/containerd\n\
         Environment=PATH={PROGRAMS}/bin:/usr/sbin:/usr/bin\nDelegate=yes\nKillMode=process\nLimitNOFILE=infinity\n\
         TasksMax=infinity\nOOMScoreAdjust=-999\n"
    )
}

/// CNI network: a bridge, addresses from one subnet, forgotten with the machine.
#[must_use]
pub fn network() -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [{
            "type": "bridge", "bridge": "cni0", "isGateway": true,
            "ipam": { "type": "host-local", "dataDir": "/run/cni-ipam", "ranges": [[{ "subnet": "10.88.0.0/24" }]] },
        }],
    })
}

/// crictl's own configuration.
#[must_use]
pub fn crictl(socket: &Path) -> String {
    format!("runtime-endpoint: unix://{0}\nimage-endpoint: unix://{0}\ntimeout: 120\n", socket.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(users: Option<IdRange>) -> Pod {
        Pod { namespace: "team-a", name: "shop-1".into(), uid: "u1".into(), users }
    }

    #[test]
    fn users_of_a_pod_stand_on_the_sandbox_the_container_and_every_mount() {
        let range = IdRange { host: 131_072, length: 65_536 };
        let pod = pod(Some(range));
        let mapping = json!([{ "container_id": 0, "host_id": 131_072, "length": 65_536 }]);
        let sandbox = pod.render();
        let users = &sandbox["linux"]["security_context"]["namespace_options"]["userns_options"];
        assert_eq!(users, &json!({ "mode": 0, "uids": mapping, "gids": mapping }));
        let container = Container { mounts: vec![("/h".into(), "/c".into())], ..Container::default() }.render(&pod);
        assert_eq!(&container["linux"]["security_context"]["namespace_options"]["userns_options"], users);
        assert_eq!(
            container["mounts"],
            json!([{ "host_path": "/h", "container_path": "/c", "uidMappings": mapping, "gidMappings": mapping }])
        );
    }

    #[test]
    fn a_pod_with_the_users_of_the_machine_maps_nothing() {
        let pod = pod(None);
        let sandbox = pod.render();
        assert_eq!(sandbox["linux"]["security_context"]["namespace_options"]["userns_options"], json!({ "mode": 2 }));
        let container = Container { mounts: vec![("/h".into(), "/c".into())], ..Container::default() }.render(&pod);
        assert_eq!(container["mounts"], json!([{ "host_path": "/h", "container_path": "/c" }]));
    }

    #[test]
    fn limits_are_left_out_when_not_asked_for() {
        let limited = Container {
            memory: Some(1 << 20),
            cpu_quota: Some(50_000),
            unified: vec![("pids.max", "64".into())],
            ..Container::default()
        };
        let resources = |container: &Container| container.render(&pod(None))["linux"]["resources"].clone();
        assert_eq!(resources(&limited)["memory_limit_in_bytes"], 1 << 20);
        assert_eq!(resources(&limited)["cpu_quota"], 50_000);
        assert_eq!(resources(&limited)["unified"], json!({ "pids.max": "64" }));
        let free = resources(&Container::default());
        assert!(
            ["memory_limit_in_bytes", "cpu_quota", "unified"].iter().all(|name| free.get(name).is_none()),
            "{free}"
        );
    }

    #[test]
    fn containerd_finds_the_shim_by_its_absolute_path() {
        let text = containerd();
        assert!(text.contains("runtime_path = \"/opt/machine/bin/containerd-shim-vivarium-v1\""), "{text}");
        assert!(text.contains("runtimes.vivarium]\n  runtime_type = \"io.containerd.vivarium.v1\""), "{text}");
    }
}
