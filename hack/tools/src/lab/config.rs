//! Configuration files of a node, as text. Pure: paths and numbers in, text out.

use serde_json::json;

use super::{cgroup, network, node::Node, state::Layout};

/// Sandbox image; what is in it is [`super::images`]' business.
pub const PAUSE: &str = "registry.k8s.io/pause:3.10.1";
pub const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";
/// Where the registry of the lab listens.
pub const REGISTRY: &str = "10.250.0.1:5000";

/// `/etc/containerd/config.toml`.
pub fn containerd(layout: &Layout) -> String {
    let runc = layout.program("runc");
    format!(
        r#"version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
# Runtimes of installers.
imports = ["/etc/containerd/conf.d/*.toml"]
disabled_plugins = ["io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.blockfile"]

[grpc]
  address = "{CONTAINERD_SOCKET}"

[plugins.'io.containerd.cri.v1.images']
  snapshotter = "overlayfs"

[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "{PAUSE}"

[plugins.'io.containerd.cri.v1.images'.registry]
  config_path = "/etc/containerd/certs.d"

[plugins.'io.containerd.cri.v1.runtime']
  enable_selinux = false
  disable_apparmor = true
  # Root may lack CAP_SYS_RESOURCE, without which a score cannot be lowered.
  restrict_oom_score_adj = true

[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ["/opt/cni/bin"]
  conf_dir = "/etc/cni/net.d"

[plugins.'io.containerd.cri.v1.runtime'.containerd]
  default_runtime_name = "runc"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
  BinaryName = "{runc}"
  SystemdCgroup = false
"#,
        runc = runc.display()
    )
}

/// `/etc/containerd/certs.d/<registry>/hosts.toml`: the registry speaks plain HTTP.
pub fn registry_host() -> String {
    format!(
        "server = \"http://{REGISTRY}\"\n\n[host.\"http://{REGISTRY}\"]\n  capabilities = [\"pull\", \"resolve\", \"push\"]\n"
    )
}

/// `/etc/cni/net.d/10-lab.conflist`. The addresses given are kept on a tmpfs: a power cut frees them all.
pub fn cni(node: Node) -> String {
    json!({
        "cniVersion": "1.0.0", "name": "lab", "plugins": [
            { "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
              "ipam": { "type": "host-local", "dataDir": "/run/cni-ipam", "ranges": [[{ "subnet": node.pods() }]],
                        "routes": [{ "dst": "0.0.0.0/0" }] } },
            { "type": "portmap", "capabilities": { "portMappings": true }, "backend": "nftables" },
        ]
    })
    .to_string()
}

/// Configuration of the kubelet. `reserved` is the memory in MiB that belongs to the other nodes of this machine.
pub fn kubelet(layout: &Layout, node: Node, reserved: u64) -> String {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "failCgroupV1": false, "cgroupDriver": "cgroupfs", "cgroupRoot": cgroup::root(node), "cgroupsPerQOS": true,
        "enforceNodeAllocatable": ["pods"],
        "systemReserved": { "memory": format!("{reserved}Mi") },
        "containerRuntimeEndpoint": format!("unix://{CONTAINERD_SOCKET}"),
        "address": "0.0.0.0",
        "authentication": {
            "anonymous": { "enabled": false }, "webhook": { "enabled": true },
            "x509": { "clientCAFile": layout.pki("ca.crt") },
        },
        "authorization": { "mode": "Webhook" },
        "tlsCertFile": layout.pki(&format!("{}.crt", node.name())),
        "tlsPrivateKeyFile": layout.pki(&format!("{}.key", node.name())),
        "clusterDNS": [network::DNS], "clusterDomain": "cluster.local", "resolvConf": "/run/resolv.conf",
        "failSwapOn": false,
        // The node shows it kernel parameters that are as it wants them; the machine's are not touched.
        "protectKernelDefaults": true, "makeIPTablesUtilChains": false,
        // The nodes share one disk and one memory.
        "evictionHard": { "memory.available": "100Mi", "nodefs.available": "1%", "nodefs.inodesFree": "1%", "imagefs.available": "1%" },
        "imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
        "maxPods": 110, "maxOpenFiles": 20000, "syncFrequency": "10s",
        "serializeImagePulls": false, "registryPullQPS": 0, "eventRecordQPS": 0,
        "logging": { "verbosity": 2 },
    })
    .to_string()
}

/// Configuration of kube-proxy.
pub fn kube_proxy(layout: &Layout, node: Node) -> String {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
        "mode": "nftables", "clusterCIDR": network::PODS, "detectLocalMode": "ClusterCIDR",
        "hostnameOverride": node.name(), "clientConnection": { "kubeconfig": layout.kubeconfig_of("proxy") },
        // Limits of the machine, not of a network namespace.
        "conntrack": { "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s" },
    })
    .to_string()
}

/// Configuration of the OCI registry.
pub fn registry(layout: &Layout) -> String {
    json!({
        "version": "0.1",
        "log": { "level": "warn", "accesslog": { "disabled": true } },
        "storage": { "filesystem": { "rootdirectory": layout.root().join("registry") }, "delete": { "enabled": true } },
        "http": { "addr": REGISTRY },
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::Value;

    use super::*;

    fn layout() -> Layout {
        Layout::at(Path::new("/lab"))
    }

    fn parse(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn each_node_has_its_own_range_and_cgroup_root() {
        assert_eq!(parse(&cni(Node::new(2)))["plugins"][0]["ipam"]["ranges"][0][0]["subnet"], "10.244.2.0/24");
        let kubelet = parse(&kubelet(&layout(), Node::new(2), 16000));
        assert_eq!(kubelet["cgroupRoot"], "/vivarium-lab/n2");
        assert_eq!(kubelet["systemReserved"]["memory"], "16000Mi");
        assert_eq!(kubelet["tlsCertFile"], "/lab/pki/n2.crt");
        assert_eq!(parse(&kube_proxy(&layout(), Node::new(2)))["hostnameOverride"], "n2");
    }

    #[test]
    fn containerd_reads_the_drop_ins_of_installers() {
        let text = containerd(&layout());
        assert!(text.contains(r#"imports = ["/etc/containerd/conf.d/*.toml"]"#), "{text}");
        assert!(text.contains(r#"BinaryName = "/lab/bin/runc""#), "{text}");
    }
}
