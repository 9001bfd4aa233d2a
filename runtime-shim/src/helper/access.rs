//! File access as the root user of a container: files that are made belong to it, and quotas and modes apply as they
//! would inside.

use rustix::thread::{CapabilitiesSecureBits, set_capabilities_secure_bits};
use vivarium_sys::process::set_file_access_ids;

use crate::error::{Attempt, Result};

/// Runs `action` with the ids `base` for file access, with all capabilities kept. Undone afterwards, whatever came of
/// it; if that fails the process must not go on, which the error makes sure of.
pub fn as_guest_root<T>(base: (u32, u32), action: impl FnOnce() -> Result<T>) -> Result<T> {
    set_capabilities_secure_bits(CapabilitiesSecureBits::NO_SETUID_FIXUP)
        .attempt(|| "keep capabilities over a change of ids")?;
    set_file_access_ids(base.0, base.1).attempt(|| format!("access files as {}:{}", base.0, base.1))?;
    let result = action();
    set_file_access_ids(0, 0).attempt(|| "access files as root again")?;
    set_capabilities_secure_bits(CapabilitiesSecureBits::empty()).attempt(|| "reset the secure bits")?;
    result
}
