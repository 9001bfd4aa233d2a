//! The node side of Vivarium: CSI driver, template cache and volumes of one node.
//!
//! # What it needs of the node
//! The pod of the daemon set is privileged, sees the processes of the node (`hostPID: true`, to restart containerd) and
//! mounts, each **at the same path** as on the node:
//!
//! | path | mount propagation | for |
//! |---|---|---|
//! | `/var/lib/vivarium` | Bidirectional | the pool is mounted in it, and the shim on the node opens template layers there |
//! | `/var/lib/kubelet` | Bidirectional | targets of volumes, the CSI socket, the registration socket |
//! | `/run/vivarium` | none | session, leases and stage records for the shims, guest reports from the shim (`DirectoryOrCreate`) |
//! | `/dev` | none | loop devices, or the pool's block device |
//! | `/etc/containerd/conf.d` | none | drop-in of the runtime (`DirectoryOrCreate`; k3s and RKE2: their directories) |
//! | `/opt/vivarium` | none | the shim (`DirectoryOrCreate`) |
//! | `/run/containerd` | none | containerd's socket; the directory, because the socket is replaced when containerd restarts |
//!
//! `/sys` is the one that a privileged container has. `install-runtime` (an init container of the same pod) needs only the last three. The image holds
//! `mkfs.btrfs` (btrfs-progs), CA certificates, and the shim at `/usr/local/bin/containerd-shim-vivarium-v1`.
//!
//! # What it may do in the cluster
//! `environmenttemplates`, `environmentvolumes`: get, list, watch; `environmentvolumes`: patch (its finalizer);
//! `environmenttemplates/status`, `environmentvolumes/status`: get, patch, update; `pods`: get, list, watch;
//! `journalstores`: get, list, watch; `journalstores/status`: get, patch, update; the Secrets that they name in its own
//! namespace: get, list, watch; `pods/status`: patch; `leases` in its own namespace: get, list, watch, create, update, patch.

pub mod authority;
pub mod claim;
pub mod csi;
pub mod directory;
mod files;
pub mod garbage;
pub mod health;
pub mod ids;
pub mod journal;
pub mod kube;
pub mod pool;
pub mod publish;
pub mod registration;
pub mod runtime_install;
pub mod serve;
pub mod session;
pub mod settings;
pub mod supervise;
pub mod template;
pub mod view;
pub mod volume;

/// gRPC types of the interfaces that are spoken on the node's sockets.
#[allow(missing_docs, clippy::pedantic, reason = "generated from proto/")]
pub mod proto {
    pub mod csi {
        tonic::include_proto!("csi.v1");
    }
    pub mod registration {
        tonic::include_proto!("pluginregistration");
    }
    pub mod cri {
        tonic::include_proto!("runtime.v1");
    }
}
