//! What an environment is told when it boots. The operator writes it, the kubelet keeps it current in a projected
//! volume, the shim reads it. Its content comes from the environment's owner and is as hostile as the owner.

use serde::{Deserialize, Serialize};

/// Version of [`BootConfig`] that this build writes and reads.
pub const VERSION: u32 = 1;

/// Boot-time configuration of an environment, file `boot.json` of the projected volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BootConfig {
    /// [`VERSION`].
    pub version: u32,
    /// UUID for `/etc/machine-id` of a fresh environment (`container_uuid` of systemd's container interface): the UID
    /// of the `VirtualEnvironment`.
    pub machine_uuid: String,
    /// Host name, one DNS label.
    pub hostname: String,
    /// IANA time zone such as `Europe/Prague`; none leaves what the tree says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
    /// Locale such as `C.UTF-8`; none leaves what the tree says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locale: Option<String>,
    /// Kernel parameters, all namespaced (checked again by the shim with [`is_namespaced_sysctl`]).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sysctls: Vec<Sysctl>,
    /// Resource limits of the services and logins in the environment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<ResourceLimit>,
    /// Number of files in the `authorized-keys` directory beside this file; zero: the shim leaves sshd alone.
    #[serde(default)]
    pub authorized_keys: u32,
}

/// One kernel parameter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kubernetes", derive(schemars::JsonSchema))]
pub struct Sysctl {
    /// Dotted name, for example `net.ipv4.ip_forward`.
    #[cfg_attr(feature = "kubernetes", schemars(length(min = 1, max = 128)))]
    pub name: String,
    /// Value as it is written to `/proc/sys`.
    #[cfg_attr(feature = "kubernetes", schemars(length(max = 256)))]
    pub value: String,
}

/// One resource limit (setrlimit(2)). Values are numbers as the kernel counts them, or `unlimited`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kubernetes", derive(schemars::JsonSchema))]
pub struct ResourceLimit {
    /// Lower-case name without `RLIMIT_`: `nofile`, `nproc`, `core`, `memlock`, `stack`, ...
    #[cfg_attr(feature = "kubernetes", schemars(length(min = 1, max = 32)))]
    pub name: String,
    /// Soft limit.
    #[cfg_attr(feature = "kubernetes", schemars(length(min = 1, max = 32)))]
    pub soft: String,
    /// Hard limit.
    #[cfg_attr(feature = "kubernetes", schemars(length(min = 1, max = 32)))]
    pub hard: String,
}

/// Resource limits that a spec may set, by the name that [`ResourceLimit::name`] uses.
pub const LIMIT_NAMES: &[&str] = &[
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// Kernel parameters outside `net.` and `fs.mqueue.` that belong to the IPC or UTS namespace of the environment
/// (`ipc_namespaces(7)`, `uts_namespaces(7)`). Host and domain name are left out: `spec.os.hostname` is for that.
pub const NAMESPACED_KERNEL_SYSCTLS: &[&str] = &[
    "kernel.auto_msgmni",
    "kernel.msg_next_id",
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.sem_next_id",
    "kernel.shm_next_id",
    "kernel.shm_rmid_forced",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
];

/// Whether a kernel parameter belongs to a namespace of the environment, so that setting it changes nothing outside.
/// Some names below `net.` are global all the same; the kernel shows those only in the initial network namespace, so
/// writing one fails and the environment does not start.
#[must_use]
pub fn is_namespaced_sysctl(name: &str) -> bool {
    let clean = name
        .split('.')
        .all(|part| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-')));
    clean && (name.starts_with("net.") || name.starts_with("fs.mqueue.") || NAMESPACED_KERNEL_SYSCTLS.contains(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctls_of_a_namespace_are_told_from_global_ones() {
        for name in ["net.ipv4.ip_forward", "net.core.somaxconn", "kernel.shmmax", "fs.mqueue.msg_max"] {
            assert!(is_namespaced_sysctl(name), "{name}");
        }
        for name in [
            "vm.overcommit_memory",
            "kernel.core_pattern",
            "kernel.hostname",
            "fs.file-max",
            "net",
            "net..x",
            "net.ipv4/../../vm.x",
            "",
        ] {
            assert!(!is_namespaced_sysctl(name), "{name}");
        }
    }
}
