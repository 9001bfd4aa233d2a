//! What is built, and with which flags. The versions must be those of `hack/modules/*/go.mod`: a test compares them.

/// Oldest Go that builds all of it.
pub const GO: &str = "1.26.6";

/// One Go module of `hack/modules` and the programs that come out of it.
#[derive(Debug)]
pub struct Module {
    /// Folder below `hack/modules`.
    pub name: &'static str,
    /// Version that `go.mod` requires, with `v`.
    pub version: &'static str,
    /// Build tags, separated by commas.
    pub tags: &'static str,
    /// Whether C code is part of it.
    pub cgo: bool,
    /// Variables that hold the version that the program reports.
    version_variables: &'static [&'static str],
    /// Further linker flags.
    link: &'static str,
    pub programs: &'static [Program],
}

/// One command of a module.
#[derive(Debug)]
pub struct Program {
    pub name: &'static str,
    pub package: &'static str,
}

impl Module {
    /// All that a build depends on beside `go.mod`, `go.sum` and the tool chain.
    pub fn recipe(&self) -> String {
        let programs: Vec<_> = self.programs.iter().map(|p| format!("{}={}", p.name, p.package)).collect();
        format!("{}|{}|{}|{}", self.tags, self.cgo, self.linker_flags(), programs.join(","))
    }

    /// Value of `-ldflags`.
    pub fn linker_flags(&self) -> String {
        let mut flags = vec!["-s -w".to_owned()];
        if !self.link.is_empty() {
            flags.push(self.link.to_owned());
        }
        flags.extend(self.version_variables.iter().map(|variable| format!("-X {variable}={}", self.version)));
        if self.name == "kubernetes" {
            flags.push(kubernetes_version(self.version));
        }
        flags.join(" ")
    }
}

/// Without these the server calls itself v0.0.0 and clients refuse the skew.
fn kubernetes_version(version: &str) -> String {
    let mut numbers = version.trim_start_matches('v').split('.');
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    let of = |package: &str| {
        format!(
            "-X {package}.gitVersion={version} -X {package}.gitMajor={major} -X {package}.gitMinor={minor} \
             -X {package}.gitTreeState=clean -X {package}.buildDate=1970-01-01T00:00:00Z"
        )
    };
    [of("k8s.io/component-base/version"), of("k8s.io/client-go/pkg/version")].join(" ")
}

const fn program(name: &'static str, package: &'static str) -> Program {
    Program { name, package }
}

const DEFAULT: Module =
    Module { name: "", version: "", tags: "", cgo: false, version_variables: &[], link: "", programs: &[] };

/// What only tests need.
pub const TESTS: &[Module] = &[Module {
    name: "csi-sanity",
    version: "v5.6.0",
    programs: &[program("csi-sanity", "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity")],
    ..DEFAULT
}];

/// What provisions, enlarges and snapshots the volumes of ordinary pods in a cluster.
pub const SIDECARS: &[Module] = &[
    Module {
        name: "csi-provisioner",
        version: "v6.4.0",
        version_variables: &["main.version"],
        programs: &[program(
            "csi-provisioner",
            "github.com/kubernetes-csi/external-provisioner/v6/cmd/csi-provisioner",
        )],
        ..DEFAULT
    },
    Module {
        name: "csi-snapshotter",
        version: "v8.7.0",
        version_variables: &["main.version"],
        programs: &[
            program("csi-snapshotter", "github.com/kubernetes-csi/external-snapshotter/v8/cmd/csi-snapshotter"),
            program("snapshot-controller", "github.com/kubernetes-csi/external-snapshotter/v8/cmd/snapshot-controller"),
        ],
        ..DEFAULT
    },
    Module {
        name: "csi-resizer",
        version: "v2.3.0",
        version_variables: &["main.version"],
        programs: &[program("csi-resizer", "github.com/kubernetes-csi/external-resizer/v2/cmd/csi-resizer")],
        ..DEFAULT
    },
];

/// In the order of building: what takes longest comes last.
pub const MODULES: &[Module] = &[
    Module {
        name: "cni",
        version: "v1.9.1",
        version_variables: &["github.com/containernetworking/plugins/pkg/utils/buildversion.BuildVersion"],
        programs: &[
            program("bridge", "github.com/containernetworking/plugins/plugins/main/bridge"),
            program("loopback", "github.com/containernetworking/plugins/plugins/main/loopback"),
            program("ptp", "github.com/containernetworking/plugins/plugins/main/ptp"),
            program("host-local", "github.com/containernetworking/plugins/plugins/ipam/host-local"),
            program("portmap", "github.com/containernetworking/plugins/plugins/meta/portmap"),
            program("firewall", "github.com/containernetworking/plugins/plugins/meta/firewall"),
        ],
        ..DEFAULT
    },
    Module {
        name: "runc",
        version: "v1.5.2",
        tags: "seccomp,urfave_cli_no_docs,netgo,osusergo",
        cgo: true,
        link: "-linkmode external -extldflags -static",
        programs: &[program("runc", "github.com/opencontainers/runc")],
        ..DEFAULT
    },
    Module {
        name: "etcd",
        version: "v3.7.3",
        programs: &[program("etcd", "go.etcd.io/etcd/server/v3"), program("etcdctl", "go.etcd.io/etcd/etcdctl/v3")],
        ..DEFAULT
    },
    Module {
        name: "containerd",
        version: "v2.4.2",
        tags: "no_btrfs",
        version_variables: &["github.com/containerd/containerd/v2/version.Version"],
        programs: &[
            program("containerd", "github.com/containerd/containerd/v2/cmd/containerd"),
            program("ctr", "github.com/containerd/containerd/v2/cmd/ctr"),
            program("containerd-shim-runc-v2", "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"),
        ],
        ..DEFAULT
    },
    Module {
        name: "registry",
        version: "v3.1.2",
        version_variables: &["github.com/distribution/distribution/v3/version.version"],
        programs: &[program("registry", "github.com/distribution/distribution/v3/cmd/registry")],
        ..DEFAULT
    },
    Module {
        name: "crictl",
        version: "v1.36.0",
        version_variables: &["sigs.k8s.io/cri-tools/pkg/version.Version"],
        programs: &[program("crictl", "sigs.k8s.io/cri-tools/cmd/crictl")],
        ..DEFAULT
    },
    Module {
        name: "coredns",
        version: "v1.15.0",
        programs: &[program("coredns", "github.com/coredns/coredns")],
        ..DEFAULT
    },
    Module {
        name: "helm",
        version: "v4.3.1",
        version_variables: &["helm.sh/helm/v4/internal/version.version"],
        programs: &[program("helm", "helm.sh/helm/v4/cmd/helm")],
        ..DEFAULT
    },
    Module {
        name: "kubernetes",
        version: "v1.37.1",
        programs: &[
            program("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
            program("kubelet", "k8s.io/kubernetes/cmd/kubelet"),
            program("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
            program("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"),
            program("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
            program("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"),
        ],
        ..DEFAULT
    },
];

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    fn go_mod(module: &Module) -> String {
        let folder = Path::new("../modules").join(module.name);
        fs::read_to_string(folder.join("go.mod")).unwrap()
    }

    #[test]
    fn each_module_file_requires_the_version_of_the_table() {
        for module in MODULES.iter().chain(TESTS).chain(SIDECARS) {
            let text = go_mod(module);
            let package = module.programs[0].package;
            let required = text.lines().any(|line| {
                let line = line.trim_start_matches("require").trim();
                line.split_once(' ')
                    .is_some_and(|(path, version)| package.starts_with(path) && version == module.version)
            });
            assert!(required, "hack/modules/{}/go.mod does not require {package} {}", module.name, module.version);
        }
    }

    #[test]
    fn each_program_is_a_tool_of_its_module_file() {
        for module in MODULES.iter().chain(TESTS).chain(SIDECARS) {
            let text = go_mod(module);
            for program in module.programs {
                let named = text.lines().any(|line| line.trim().trim_start_matches("tool").trim() == program.package);
                assert!(named, "hack/modules/{}/go.mod has no tool {}", module.name, program.package);
            }
        }
    }

    #[test]
    fn the_server_reports_its_version() {
        let kubernetes = MODULES.iter().find(|module| module.name == "kubernetes").unwrap();
        let flags = kubernetes.linker_flags();
        for flag in [
            "-X k8s.io/component-base/version.gitVersion=v1.37.1",
            "-X k8s.io/component-base/version.gitMinor=37",
            "-X k8s.io/client-go/pkg/version.gitMajor=1",
        ] {
            assert!(flags.contains(flag), "{flags}");
        }
    }

    #[test]
    fn a_flag_more_is_another_recipe() {
        let module = Module { name: "a", version: "v1", ..DEFAULT };
        let tagged = Module { name: "a", version: "v1", tags: "x", ..DEFAULT };
        assert_ne!(module.recipe(), tagged.recipe());
    }
}
