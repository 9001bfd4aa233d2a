//! What the runtime can do, for containerd's `-info`: the kubelet offers user namespaces for a handler only if the
//! runtime says so here. Asked before any pod runs and again at every container, so it does nothing but answer.

use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};

use crate::helper::credentials;

/// Type of the features message: JSON of the OCI runtime specification (features.md).
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// The answer to `-info`.
#[must_use]
pub fn runtime_info(runtime: &str) -> RuntimeInfo {
    let features = Any { type_url: FEATURES.into(), value: features().to_string().into_bytes(), ..Any::default() };
    let version = RuntimeVersion { version: env!("CARGO_PKG_VERSION").into(), ..RuntimeVersion::default() };
    RuntimeInfo {
        name: runtime.into(),
        version: MessageField::some(version),
        features: MessageField::some(features),
        ..RuntimeInfo::default()
    }
}

fn features() -> serde_json::Value {
    let capabilities: Vec<String> = credentials::all().into_iter().map(|c| format!("CAP_{c}")).collect();
    serde_json::json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.2.0",
        "hooks": [],
        "mountOptions": ["bind", "dev", "exec", "idmap", "nodev", "noexec", "nosuid", "private", "rbind", "ridmap",
            "rnodev", "rnoexec", "rnosuid", "ro", "rprivate", "rro", "rslave", "rw", "slave", "suid"],
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "user", "uts"],
            "capabilities": capabilities,
            "cgroup": {"v1": true, "v2": true, "systemd": false, "systemdUser": false},
            "seccomp": {"enabled": true, "actions": ["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL",
                "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_LOG", "SCMP_ACT_TRAP"]},
            "apparmor": {"enabled": false},
            "selinux": {"enabled": false},
            "intelRdt": {"enabled": false},
            "mountExtensions": {"idmap": {"enabled": true}}
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kubelet_looks_for_is_there() {
        let features = features();
        assert!(features["linux"]["namespaces"].as_array().unwrap().contains(&"user".into()));
        assert_eq!(features["linux"]["mountExtensions"]["idmap"]["enabled"], true);
        assert!(features["mountOptions"].as_array().unwrap().contains(&"rro".into()));
        assert!(features["linux"]["capabilities"].as_array().unwrap().contains(&"CAP_SYS_ADMIN".into()));
    }
}
