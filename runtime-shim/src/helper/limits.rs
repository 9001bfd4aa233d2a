//! Resource limits (getrlimit(2)) of processes in containers. A hard limit can only be raised by the node's root, so that is
//! done before a process enters its user namespace; everything else is set by the process itself.

use oci_spec::runtime::{PosixRlimit, PosixRlimitType};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::error::{Attempt, Error, Result};

/// Raises the hard limits that are lower than wanted.
pub fn raise(limits: &[PosixRlimit]) -> Result<()> {
    for limit in limits {
        let resource = resource(limit.typ());
        let present = getrlimit(resource);
        let wanted = value(limit.hard());
        let enough = match (wanted, present.maximum) {
            (_, None) => true,
            (None, Some(_)) => false,
            (Some(wanted), Some(maximum)) => wanted <= maximum,
        };
        if !enough {
            setrlimit(resource, Rlimit { current: present.current, maximum: wanted }).map_err(|e| {
                let shown = |limit: Option<u64>| limit.map_or_else(|| "unlimited".into(), |limit| limit.to_string());
                Error::Refused(format!(
                    "the resource limit {:?} cannot be raised to {} on this node, where {} is the most: {e}",
                    limit.typ(),
                    shown(wanted),
                    shown(present.maximum)
                ))
            })?;
        }
    }
    Ok(())
}

/// Sets a limit, which is not above the hard one.
pub fn set(limit: &PosixRlimit) -> Result<()> {
    setrlimit(resource(limit.typ()), Rlimit { current: value(limit.soft()), maximum: value(limit.hard()) })
        .attempt(|| format!("set {:?}", limit.typ()))
}

/// `RLIM_INFINITY` is no limit.
fn value(limit: u64) -> Option<u64> {
    (limit != u64::MAX).then_some(limit)
}

fn resource(kind: PosixRlimitType) -> Resource {
    use PosixRlimitType as T;
    match kind {
        T::RlimitCpu => Resource::Cpu,
        T::RlimitFsize => Resource::Fsize,
        T::RlimitData => Resource::Data,
        T::RlimitStack => Resource::Stack,
        T::RlimitCore => Resource::Core,
        T::RlimitRss => Resource::Rss,
        T::RlimitNproc => Resource::Nproc,
        T::RlimitNofile => Resource::Nofile,
        T::RlimitMemlock => Resource::Memlock,
        T::RlimitAs => Resource::As,
        T::RlimitLocks => Resource::Locks,
        T::RlimitSigpending => Resource::Sigpending,
        T::RlimitMsgqueue => Resource::Msgqueue,
        T::RlimitNice => Resource::Nice,
        T::RlimitRtprio => Resource::Rtprio,
        T::RlimitRttime => Resource::Rttime,
    }
}
