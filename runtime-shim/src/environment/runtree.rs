//! The `/run` that a guest boots with: masks for units that cannot work in a container and would leave the system
//! `degraded`, and the limits of the boot configuration. It is a fresh tmpfs at every boot, so the guest's tree is not
//! touched, and the guest may unmask what it likes.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use vivarium_api::node::boot::{LIMIT_NAMES, ResourceLimit};

use crate::error::{Attempt, Error, Result};

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
pub fn fill(run: &Path, limits: &[ResourceLimit]) -> Result<()> {
    let manager = manager_configuration(limits)?;
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
fn manager_configuration(limits: &[ResourceLimit]) -> Result<Option<String>> {
    use std::fmt::Write;
    if limits.is_empty() {
        return Ok(None);
    }
    let mut text = String::from("# From spec.os.limits of the environment.\n[Manager]\n");
    for limit in limits {
        if !LIMIT_NAMES.contains(&limit.name.as_str()) {
            return Err(Error::Refused(format!(
                "the resource limit {:?} of spec.os.limits does not exist; use one of {}",
                limit.name,
                LIMIT_NAMES.join(", ")
            )));
        }
        let (soft, hard) = (value(limit, &limit.soft)?, value(limit, &limit.hard)?);
        writeln!(text, "DefaultLimit{}={soft}:{hard}", limit.name.to_uppercase()).ok();
    }
    Ok(Some(text))
}

fn value<'a>(limit: &ResourceLimit, text: &'a str) -> Result<&'a str> {
    match text {
        "unlimited" => Ok("infinity"),
        number if number.parse::<u64>().is_ok() => Ok(number),
        other => Err(Error::Refused(format!(
            "the value {other:?} of resource limit {} is neither a number nor \"unlimited\"",
            limit.name
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(name: &str, soft: &str, hard: &str) -> ResourceLimit {
        ResourceLimit { name: name.into(), soft: soft.into(), hard: hard.into() }
    }

    #[test]
    fn limits_become_manager_defaults() {
        let text = manager_configuration(&[limit("nofile", "1024", "unlimited")]).unwrap().unwrap();
        assert!(text.ends_with("[Manager]\nDefaultLimitNOFILE=1024:infinity\n"), "{text}");
        assert_eq!(manager_configuration(&[]).unwrap(), None);
    }

    #[test]
    fn what_is_no_limit_is_refused() {
        for bad in [limit("files", "1", "1"), limit("nofile", "many", "1"), limit("nofile", "1", "1\nX=y")] {
            assert!(matches!(manager_configuration(std::slice::from_ref(&bad)), Err(Error::Refused(_))), "{bad:?}");
        }
    }
}
