//! The last steps of a process before it becomes the container's program: system call filter, capabilities, and the
//! lookup of the program itself. The same for init and for exec.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Capability, LinuxCapabilities, Process};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::error::{Attempt, Error, Result};
use crate::seccomp::Filter;

/// Capabilities as sets of bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    bounding: CapabilitySet,
    effective: CapabilitySet,
    permitted: CapabilitySet,
    inheritable: CapabilitySet,
    ambient: CapabilitySet,
}

/// Number of capabilities of the kernel interface that this build knows (`CAP_CHECKPOINT_RESTORE` is the last).
const COUNT: u32 = 41;

/// Name and number of each capability, in the kernel's order.
#[must_use]
pub fn all() -> Vec<Capability> {
    use Capability as C;
    vec![
        C::Chown,
        C::DacOverride,
        C::DacReadSearch,
        C::Fowner,
        C::Fsetid,
        C::Kill,
        C::Setgid,
        C::Setuid,
        C::Setpcap,
        C::LinuxImmutable,
        C::NetBindService,
        C::NetBroadcast,
        C::NetAdmin,
        C::NetRaw,
        C::IpcLock,
        C::IpcOwner,
        C::SysModule,
        C::SysRawio,
        C::SysChroot,
        C::SysPtrace,
        C::SysPacct,
        C::SysAdmin,
        C::SysBoot,
        C::SysNice,
        C::SysResource,
        C::SysTime,
        C::SysTtyConfig,
        C::Mknod,
        C::Lease,
        C::AuditWrite,
        C::AuditControl,
        C::Setfcap,
        C::MacOverride,
        C::MacAdmin,
        C::Syslog,
        C::WakeAlarm,
        C::BlockSuspend,
        C::AuditRead,
        C::Perfmon,
        C::Bpf,
        C::CheckpointRestore,
    ]
}

/// All capabilities in the sets that a root user has, none that are inherited.
#[must_use]
pub fn full() -> LinuxCapabilities {
    let set: std::collections::HashSet<Capability> = all().into_iter().collect();
    let mut capabilities = LinuxCapabilities::default();
    capabilities.set_bounding(Some(set.clone()));
    capabilities.set_effective(Some(set.clone()));
    capabilities.set_permitted(Some(set));
    capabilities.set_inheritable(None);
    capabilities.set_ambient(None);
    capabilities
}

impl Capabilities {
    /// Those of a spec; none where it says nothing.
    #[must_use]
    pub fn of(spec: Option<&LinuxCapabilities>) -> Self {
        let order = all();
        let bits = |set: Option<&std::collections::HashSet<Capability>>| {
            set.into_iter()
                .flatten()
                .filter_map(|c| order.iter().position(|known| known == c))
                .fold(CapabilitySet::empty(), |bits, index| bits | CapabilitySet::from_bits_retain(1 << index))
        };
        Self {
            bounding: bits(spec.and_then(|s| s.bounding().as_ref())),
            effective: bits(spec.and_then(|s| s.effective().as_ref())),
            permitted: bits(spec.and_then(|s| s.permitted().as_ref())),
            inheritable: bits(spec.and_then(|s| s.inheritable().as_ref())),
            ambient: bits(spec.and_then(|s| s.ambient().as_ref())),
        }
    }

    fn apply(&self) -> Result<()> {
        for index in 0..COUNT {
            let one = CapabilitySet::from_bits_retain(1 << index);
            if !self.bounding.contains(one) {
                rustix::thread::remove_capability_from_bounding_set(one)
                    .attempt(|| format!("drop capability {index} from the bounding set"))?;
            }
        }
        let sets =
            CapabilitySets { effective: self.effective, permitted: self.permitted, inheritable: self.inheritable };
        rustix::thread::set_capabilities(None, sets).attempt(|| "set the capabilities")?;
        rustix::thread::clear_ambient_capability_set().attempt(|| "clear the ambient capabilities")?;
        for index in 0..COUNT {
            let one = CapabilitySet::from_bits_retain(1 << index);
            // The kernel refuses to raise what is not permitted and inheritable; OCI runtimes leave those out too.
            if self.ambient.contains(one) && self.permitted.contains(one) && self.inheritable.contains(one) {
                rustix::thread::configure_capability_in_ambient_set(one, true)
                    .attempt(|| format!("raise ambient capability {index}"))?;
            }
        }
        Ok(())
    }
}

/// Installs the filters and drops the capabilities. Without `no_new_privileges` a filter needs `CAP_SYS_ADMIN`, so it
/// comes first and must let `capset` and `prctl` pass, as with runc; with it, it comes last.
pub fn drop_privileges(capabilities: &Capabilities, filters: &[Filter], no_new_privileges: bool) -> Result<()> {
    if no_new_privileges {
        rustix::thread::set_no_new_privs(true).attempt(|| "set no_new_privs")?;
        capabilities.apply()?;
    }
    for filter in filters {
        filter.install()?;
    }
    if !no_new_privileges {
        capabilities.apply()?;
    }
    Ok(())
}

/// Replaces the calling process by the program. Returns only to say why that failed.
pub fn execute(process: &Process) -> Error {
    let arguments = process.args().as_deref().unwrap_or_default();
    let environment = process.env().as_deref().unwrap_or_default();
    let Some(name) = arguments.first() else {
        return Error::Refused("the process has no arguments".into());
    };
    let strings = |list: &[String]| -> Result<Vec<CString>> {
        list.iter()
            .map(|s| CString::new(s.as_bytes()))
            .collect::<Result<_, _>>()
            .map_err(|_| Error::Refused("an argument or environment variable holds a NUL byte".into()))
    };
    let (arguments, variables) = match (strings(arguments), strings(environment)) {
        (Ok(arguments), Ok(variables)) => (arguments, variables),
        (Err(error), _) | (_, Err(error)) => return error,
    };
    let path = environment.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    let mut answer = std::io::Error::from_raw_os_error(2);
    for candidate in candidates(name, path) {
        let Ok(candidate) = CString::new(candidate.as_os_str().as_bytes()) else { continue };
        let error = vivarium_sys::process::execute(&candidate, &arguments, &variables);
        // As execvp(3): go on looking, but remember that something was there and could not be executed.
        match error.raw_os_error() {
            Some(2 | 20) => {}
            Some(13) => answer = error,
            _ => {
                answer = error;
                break;
            }
        }
    }
    Error::Refused(match answer.raw_os_error() {
        Some(2) if name.contains('/') => format!("exec: {name:?}: no such file or directory"),
        Some(2) => format!("exec: {name:?}: executable file not found in $PATH"),
        _ => format!("exec: {name:?}: {answer}"),
    })
}

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn candidates(name: &str, path: &str) -> Vec<PathBuf> {
    if name.contains('/') {
        return vec![name.into()];
    }
    path.split(':').map(|dir| Path::new(if dir.is_empty() { "." } else { dir }).join(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_become_the_kernels_bits() {
        let bits = Capabilities::of(Some(&full()));
        assert_eq!(bits.effective.bits(), (1 << COUNT) - 1);
        assert_eq!(bits.bounding, bits.permitted);
        assert!(bits.inheritable.is_empty() && bits.ambient.is_empty());
        assert_eq!(all().len(), COUNT as usize);
        assert_eq!(all().iter().position(|c| *c == Capability::SysAdmin), Some(21));
        assert!(Capabilities::of(None).bounding.is_empty());
    }

    #[test]
    fn a_name_with_a_slash_is_not_searched() {
        assert_eq!(candidates("./x", "/a:/b"), [PathBuf::from("./x")]);
        assert_eq!(candidates("x", "/a::/b"), [PathBuf::from("/a/x"), "./x".into(), "/b/x".into()]);
    }
}
