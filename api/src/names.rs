//! Names that more than one part uses: labels, annotations, finalizers, conditions, paths, and how child objects are called.

/// API group of every custom resource.
pub const GROUP: &str = "vivarium.dev";
/// Name of the CSI driver (`CSIDriver` object, socket directory, `csi.driver` of persistent volumes).
pub const CSI_DRIVER: &str = "csi.vivarium.dev";
/// `RuntimeClass` and containerd handler name.
pub const RUNTIME_CLASS: &str = "vivarium";
/// containerd runtime type; containerd finds the binary [`SHIM_BINARY`] from it.
pub const RUNTIME_TYPE: &str = "io.containerd.vivarium.v1";
/// File name of the runtime shim.
pub const SHIM_BINARY: &str = "containerd-shim-vivarium-v1";
/// The one container of an environment's pod.
pub const CONTAINER: &str = "environment";

/// Label on everything that belongs to an environment: the environment's name.
pub const LABEL_ENVIRONMENT: &str = "vivarium.dev/environment";
/// Label on an environment's pod: the epoch of the incarnation.
pub const LABEL_EPOCH: &str = "vivarium.dev/epoch";
/// Topology key (and node label) of nodes that have a pool; its value is `true`.
pub const TOPOLOGY_POOL: &str = "topology.csi.vivarium.dev/pool";
/// Topology key (and node label) of one node; its value is the node's name. Volumes of ordinary pods are on one node.
pub const TOPOLOGY_NODE: &str = "topology.csi.vivarium.dev/node";
/// Annotation on an environment's pod: the [`crate::node::boot::BootConfig`] of this incarnation (JSON).
pub const ANNOTATION_BOOT: &str = "vivarium.dev/boot";
/// Annotation on an environment's pod: what else of the spec this incarnation was started with (JSON).
pub const ANNOTATION_STARTED_WITH: &str = "vivarium.dev/started-with";
/// Annotation on an environment: the epoch of an incarnation that is to be stopped and started on another node.
pub const ANNOTATION_MOVE_FROM: &str = "vivarium.dev/move-from";
/// Annotation on a pod whose sandbox was long in coming: it was changed so that the kubelet looks at it again.
pub const ANNOTATION_AWAITED: &str = "vivarium.dev/awaited";
/// Annotation on a `VirtualEnvironment`: the node that it is to be moved to. The operator takes it off when that is done.
pub const ANNOTATION_MOVE_TO: &str = "vivarium.dev/move-to";
/// Annotation on a node's `Lease`: the session of the node driver.
pub const ANNOTATION_SESSION: &str = "vivarium.dev/session";
/// On the same `Lease`: when the node renewed it, in milliseconds of `CLOCK_BOOTTIME` there.
pub const ANNOTATION_RENEWED: &str = "vivarium.dev/renewed";
/// On the same `Lease`: the session that was fenced, if one was. It counts while it is the lease's own session.
pub const ANNOTATION_FENCED: &str = "vivarium.dev/fenced";
/// On the same `Lease`: the session that somebody wants to be ended, as if its node had fallen silent.
pub const ANNOTATION_END: &str = "vivarium.dev/end";
/// Annotation on a node's `Lease` while Vivarium is uninstalled: [`uninstall::CHECK`] by the uninstaller, then
/// [`uninstall::READY`] by the node; once all nodes have said so, [`uninstall::REQUESTED`], then [`uninstall::DONE`].
pub const ANNOTATION_UNINSTALL: &str = "vivarium.dev/uninstall";
/// Values of [`ANNOTATION_UNINSTALL`].
pub mod uninstall {
    /// The node is asked whether it could take the runtime back.
    pub const CHECK: &str = "check";
    /// It could.
    pub const READY: &str = "ready";
    /// The node is asked to take it back.
    pub const REQUESTED: &str = "requested";
    /// It has.
    pub const DONE: &str = "done";
}
/// Finalizer on a `VirtualEnvironment`.
pub const FINALIZER_ENVIRONMENT: &str = "vivarium.dev/environment";
/// Finalizer on an `EnvironmentVolume`; removed by whoever destroyed the data.
pub const FINALIZER_VOLUME: &str = "vivarium.dev/volume-data";
/// Condition of a pod that waits for its volume: everything but the volume is there, and, if one could be made, a copy
/// that follows its journal.
pub const CONDITION_PREPARED: &str = "vivarium.dev/Prepared";
/// Pod condition (a readiness gate) that the node driver publishes for the guest.
pub const CONDITION_BOOTED: &str = "vivarium.dev/Booted";

/// Persistent volume attribute: `<namespace>/<name>` of the `EnvironmentVolume`.
pub const ATTRIBUTE_VOLUME: &str = "vivarium.dev/volume";

/// Where the pod mounts the volume; the shim takes a container with this mount for an environment.
pub const MOUNT_ROOT: &str = "/.vivarium/root";
/// Where the pod mounts the projected configuration ([`crate::node::boot`]).
pub const MOUNT_CONFIG: &str = "/.vivarium/config";
/// File below [`MOUNT_CONFIG`] that holds the [`crate::node::boot::BootConfig`].
pub const BOOT_CONFIG_FILE: &str = "boot.json";
/// Directory below [`MOUNT_CONFIG`]: one file per reference of `spec.root.authorizedKeysFrom`, named by its index.
pub const AUTHORIZED_KEYS_DIR: &str = "authorized-keys";

/// Node-local state that dies with the boot.
pub const RUN_DIR: &str = "/run/vivarium";
/// Node-local state that stays.
pub const STATE_DIR: &str = "/var/lib/vivarium";
/// Where the pool is mounted on the node.
pub const POOL_DIR: &str = "/var/lib/vivarium/pool";
/// Stage records, `<subvolume uuid>.json` ([`crate::node::stage::StageRecord`]).
pub const STAGE_RECORDS: &str = "/run/vivarium/volumes";
/// Volumes that are still to be handed over, `<pod uid>.json` ([`crate::node::stage::PendingRecord`]); beside it, while a shim
/// waits for that, an empty file `<pod uid>.waiting`.
pub const PENDING_RECORDS: &str = "/run/vivarium/pending";
/// Stops that are held back, `<pod uid>`: while such a file is there, the guest of that pod is not told to stop. The node driver
/// makes it when the node is closed (cordoned), and takes it away when the next incarnation is prepared on another one.
pub const HELD_BACK: &str = "/run/vivarium/held-back";
/// Guest reports, `<sandbox>.json` ([`crate::node::guest::GuestReport`]).
pub const GUEST_REPORTS: &str = "/run/vivarium/guests";
/// Published leases ([`crate::node::lease::PublishedLease`]).
pub const LEASES: &str = "/run/vivarium/leases";

/// Longest name of an environment: leaves room for `-<epoch>` in a pod name that must stay a DNS label.
pub const ENVIRONMENT_NAME_MAX: usize = 50;

/// Pod of one incarnation. Its uniqueness in the API server is what lets only one incarnation of an epoch exist.
#[must_use]
pub fn pod(environment: &str, epoch: u64) -> String {
    format!("{environment}-{epoch}")
}

/// Epoch of the incarnation that a pod name stands for; `None` if the name is not one of `environment`.
#[must_use]
pub fn epoch_of_pod(environment: &str, pod: &str) -> Option<u64> {
    let digits = pod.strip_prefix(environment)?.strip_prefix('-')?;
    // `007` and `+7` parse as numbers but are not names that `pod` makes.
    digits.parse().ok().filter(|epoch: &u64| epoch.to_string() == digits)
}

/// Persistent volume claim of a volume, in the volume's namespace.
#[must_use]
pub fn claim(volume: &str) -> String {
    format!("vivarium-{volume}")
}

/// Persistent volume of a volume; also its CSI volume handle. `uid` is that of the `EnvironmentVolume`.
#[must_use]
pub fn persistent_volume(uid: &str) -> String {
    format!("vivarium-{uid}")
}

/// `Lease` of a node driver, in the namespace that Vivarium is installed in.
#[must_use]
pub fn node_lease(node: &str) -> String {
    format!("{NODE_LEASE_PREFIX}{node}")
}

const NODE_LEASE_PREFIX: &str = "vivarium-node-";

/// The node that a `Lease` of that name is of; `None` for other leases.
#[must_use]
pub fn node_of_lease(lease: &str) -> Option<&str> {
    lease.strip_prefix(NODE_LEASE_PREFIX).filter(|node| !node.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_epoch_is_read_back_from_the_pod_name() {
        for epoch in [0, 1, 42, u64::MAX] {
            assert_eq!(epoch_of_pod("shop", &pod("shop", epoch)), Some(epoch));
        }
    }

    #[test]
    fn foreign_pod_names_have_no_epoch() {
        for name in ["shop", "shop-", "shop-x", "shop-1-2", "shop-007", "shop-+7", "shopping-1", "x-shop-1"] {
            assert_eq!(epoch_of_pod("shop", name), None, "{name}");
        }
    }
}
