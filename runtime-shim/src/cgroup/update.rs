//! Changes the limits of a running container. What is to be written is computed first ([`changes`]), then written.

use std::fs;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxResources;

use super::{Group, write_existing};
use crate::error::{Error, Result};

/// One write to a control file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Change {
    /// v1 controller, `None` for the unified hierarchy.
    controller: Option<&'static str>,
    file: &'static str,
    value: String,
}

/// Applies those limits that the resources mention.
pub fn apply(group: &Group, resources: &LinuxResources) -> Result<()> {
    let unified = group.layout().is_unified();
    let mut changes = changes(resources, unified);
    if !unified {
        order_v1_memory(&mut changes, &group.v1("memory").unwrap_or_default());
    }
    for change in changes {
        let dir = match change.controller {
            Some(controller) => group.v1(controller),
            None => group.unified(),
        };
        let path = dir.map_or_else(PathBuf::new, |dir| dir.join(change.file));
        write_existing(&path, &change.value).map_err(|source| {
            // A limit below what is in use is EBUSY on v1.
            Error::System { attempt: format!("cannot set {} to {}", path.display(), change.value), source }
        })?;
    }
    Ok(())
}

fn changes(resources: &LinuxResources, unified: bool) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut add = |controller, file, value: String| {
        changes.push(Change { controller: if unified { None } else { Some(controller) }, file, value });
    };
    if let Some(cpu) = resources.cpu() {
        if let Some(shares) = cpu.shares().filter(|shares| *shares > 0) {
            if unified {
                add("cpu", "cpu.weight", weight(shares).to_string());
            } else {
                add("cpu", "cpu.shares", shares.to_string());
            }
        }
        let period = cpu.period().filter(|period| *period > 0);
        let quota = cpu.quota().filter(|quota| *quota != 0);
        if unified {
            if let Some(quota) = quota {
                let quota = if quota < 0 { "max".into() } else { quota.to_string() };
                add("cpu", "cpu.max", format!("{quota} {}", period.unwrap_or(100_000)));
            }
        } else {
            if let Some(period) = period {
                add("cpu", "cpu.cfs_period_us", period.to_string());
            }
            if let Some(quota) = quota {
                add("cpu", "cpu.cfs_quota_us", quota.max(-1).to_string());
            }
        }
        for (value, file) in [(cpu.cpus(), "cpuset.cpus"), (cpu.mems(), "cpuset.mems")] {
            if let Some(value) = value.as_ref().filter(|value| !value.is_empty()) {
                add("cpuset", file, value.clone());
            }
        }
    }
    if let Some(memory) = resources.memory() {
        let limit = memory.limit().filter(|limit| *limit != 0);
        let swap = memory.swap().filter(|swap| *swap != 0);
        if unified {
            let text = |value: i64| if value < 0 { "max".to_owned() } else { value.to_string() };
            if let Some(limit) = limit {
                add("memory", "memory.max", text(limit));
            }
            // OCI counts memory and swap together, v2 swap alone.
            if let (Some(limit), Some(swap)) = (limit, swap) {
                add("memory", "memory.swap.max", if swap < 0 { "max".into() } else { text((swap - limit).max(0)) });
            }
        } else {
            if let Some(limit) = limit {
                add("memory", "memory.limit_in_bytes", limit.to_string());
            }
            if let Some(swap) = swap {
                add("memory", "memory.memsw.limit_in_bytes", swap.to_string());
            }
        }
    }
    if let Some(limit) = resources.pids().as_ref().map(oci_spec::runtime::LinuxPids::limit).filter(|limit| *limit != 0)
    {
        add("pids", "pids.max", if limit < 0 { "max".into() } else { limit.to_string() });
    }
    changes
}

/// The mapping of OCI runtimes from v1's 2..262144 to v2's 1..10000.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

/// v1 refuses a memory limit above the one of memory and swap together, so that one is raised first, and lowered last.
fn order_v1_memory(changes: &mut [Change], dir: &Path) {
    let position = |changes: &[Change], file: &str| changes.iter().position(|change| change.file == file);
    let (Some(memory), Some(both)) =
        (position(changes, "memory.limit_in_bytes"), position(changes, "memory.memsw.limit_in_bytes"))
    else {
        return;
    };
    let present = fs::read_to_string(dir.join("memory.memsw.limit_in_bytes")).unwrap_or_default();
    let present: i64 = present.trim().parse().unwrap_or(i64::MAX);
    let wanted: i64 = changes[both].value.parse().unwrap_or(-1);
    if wanted < 0 || wanted > present {
        changes.swap(memory, both);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources() -> LinuxResources {
        serde_json::from_value(serde_json::json!({
            "cpu": {"shares": 1024, "quota": 50000, "period": 100_000},
            "memory": {"limit": 1000, "swap": 1500},
            "pids": {"limit": 7}
        }))
        .unwrap()
    }

    fn written(unified: bool) -> Vec<(Option<&'static str>, &'static str, String)> {
        changes(&resources(), unified).into_iter().map(|c| (c.controller, c.file, c.value)).collect()
    }

    #[test]
    fn v2_files_are_written() {
        assert_eq!(
            written(true),
            [
                (None, "cpu.weight", "39".into()),
                (None, "cpu.max", "50000 100000".into()),
                (None, "memory.max", "1000".into()),
                (None, "memory.swap.max", "500".into()),
                (None, "pids.max", "7".into()),
            ]
        );
    }

    #[test]
    fn v1_files_are_written() {
        assert_eq!(
            written(false),
            [
                (Some("cpu"), "cpu.shares", "1024".into()),
                (Some("cpu"), "cpu.cfs_period_us", "100000".into()),
                (Some("cpu"), "cpu.cfs_quota_us", "50000".into()),
                (Some("memory"), "memory.limit_in_bytes", "1000".into()),
                (Some("memory"), "memory.memsw.limit_in_bytes", "1500".into()),
                (Some("pids"), "pids.max", "7".into()),
            ]
        );
    }

    #[test]
    fn v1_raises_the_larger_limit_first() {
        let dir = tempfile::tempdir().unwrap();
        let order = |present: &str| {
            fs::write(dir.path().join("memory.memsw.limit_in_bytes"), present).unwrap();
            let mut changes = changes(&resources(), false);
            order_v1_memory(&mut changes, dir.path());
            changes.iter().position(|c| c.file == "memory.memsw.limit_in_bytes").unwrap()
                < changes.iter().position(|c| c.file == "memory.limit_in_bytes").unwrap()
        };
        assert!(order("1200"));
        assert!(!order("9000"));
    }

    #[test]
    fn shares_become_weights() {
        assert_eq!([weight(2), weight(1024), weight(262_144), weight(0)], [1, 39, 10_000, 1]);
    }
}
