//! The `/run` that a guest boots with: masks for units that cannot work in a container and would leave the system
//! `degraded`, and the limits of the boot configuration. It is a fresh tmpfs at every boot, so the guest's tree is not
//! touched, and the guest may unmask what it likes.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use oci_spec::runtime::PosixRlimit;

use crate::error::{Attempt, Result};

/// Units of systemd that fail in any container, or would wait for a person at the console.
const MASKED: &[&str] = &[
    "dev-hugepages.mount",
    "proc-sys-fs-binfmt_misc.automount",
    "proc-sys-fs-binfmt_misc.mount",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-binfmt.service",
    "systemd-firstboot.service",
    "systemd-journald-audit.socket",
    "systemd-modules-load.service",
];

/// Fills the directory, which must be new and empty. The caller does so as the guest's root user.
pub fn fill(run: &Path, limits: &[PosixRlimit]) -> Result<()> {
    let manager = manager_configuration(limits);
    let write = || -> io::Result<()> {
        fs::create_dir(run.join("host"))?;
        let units = run.join("systemd/system");
        fs::create_dir_all(&units)?;
        for unit in MASKED {
            symlink("/dev/null", units.join(unit))?;
        }
        if let Some(text) = manager {
            let dir = run.join("systemd/system.conf.d");
            fs::create_dir_all(&dir)?;
            fs::write(dir.join("50-vivarium.conf"), text)?;
        }
        Ok(())
    };
    write().attempt(|| "fill the guest's /run")
}

/// `systemd-system.conf(5)` for the limits.
fn manager_configuration(limits: &[PosixRlimit]) -> Option<String> {
    use std::fmt::Write;
    if limits.is_empty() {
        return None;
    }
    let value = |limit: u64| if limit == u64::MAX { "infinity".to_owned() } else { limit.to_string() };
    let mut text = String::from("# From spec.os.limits of the environment.\n[Manager]\n");
    for limit in limits {
        // As in `RLIMIT_NOFILE` and `DefaultLimitNOFILE`.
        let name = limit.typ().to_string();
        let name = name.trim_start_matches("RLIMIT_");
        writeln!(text, "DefaultLimit{name}={}:{}", value(limit.soft()), value(limit.hard())).ok();
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use vivarium_api::node::boot::ResourceLimit;

    use super::*;
    use crate::environment::limits::posix;

    #[test]
    fn limits_become_manager_defaults() {
        let limit = ResourceLimit { name: "nofile".into(), soft: "1024".into(), hard: "unlimited".into() };
        let text = manager_configuration(&posix(&[limit]).unwrap()).unwrap();
        assert!(text.ends_with("[Manager]\nDefaultLimitNOFILE=1024:infinity\n"), "{text}");
        assert_eq!(manager_configuration(&[]), None);
    }
}
