//! Bringing a tree into a new volume, byte for byte. Blocks are never shared between volumes: the kernel's simple quotas count
//! a block for the subvolume that wrote it first, so a tenant whose volumes shared blocks with ones that he deletes could
//! fill the pool with a single small volume.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Command, Stdio};

use super::error::ClaimError;

/// Copies the tree of directory `from`, which nobody changes, into the empty directory `to`, with owners, modes, times, links,
/// device nodes and extended attributes. `size` is that of the volume.
///
/// # Errors
/// [`ClaimError::DoesNotFit`], [`ClaimError::Copy`].
pub fn tree(from: &OwnedFd, to: &OwnedFd, size: u64) -> Result<(), ClaimError> {
    // By the descriptors of this process: when it ends, a copy that is still going on cannot name its target any more.
    let of = |directory: &OwnedFd| format!("/proc/{}/fd/{}/.", std::process::id(), directory.as_raw_fd());
    let output = Command::new("cp")
        .args(["--archive", "--reflink=never", "--sparse=auto", "--"])
        .args([of(from), of(to)])
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .output()
        .map_err(|error| ClaimError::Copy(format!("cannot run cp (package coreutils): {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let full = [rustix::io::Errno::DQUOT, rustix::io::Errno::NOSPC].map(|error| text(&error.into()));
    if full.iter().any(|full| said.contains(full)) {
        return Err(ClaimError::DoesNotFit { size });
    }
    // A tenant's names are in it: the first line tells enough.
    Err(ClaimError::Copy(said.lines().next().unwrap_or("cp failed").chars().take(512).collect()))
}

/// As strerror(3) says it.
fn text(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_volume_is_known_by_what_cp_says() {
        assert_eq!(text(&rustix::io::Errno::DQUOT.into()), "Disk quota exceeded");
        assert_eq!(text(&rustix::io::Errno::NOSPC.into()), "No space left on device");
    }
}
