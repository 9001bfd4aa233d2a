//! Identity of a btrfs subvolume (`BTRFS_IOC_GET_SUBVOL_INFO`), by which a mounted volume is recognised whatever its
//! path is called.

use std::fmt::Write as _;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `struct btrfs_ioctl_timespec` of `linux/btrfs.h`.
#[repr(C)]
struct Timespec {
    sec: u64,
    nsec: u32,
}

/// `struct btrfs_ioctl_get_subvol_info_args` of `linux/btrfs.h`.
#[repr(C)]
struct SubvolInfo {
    treeid: u64,
    name: [u8; 256],
    parent_id: u64,
    dirid: u64,
    generation: u64,
    flags: u64,
    uuid: [u8; 16],
    parent_uuid: [u8; 16],
    received_uuid: [u8; 16],
    ctransid: u64,
    otransid: u64,
    stransid: u64,
    rtransid: u64,
    times: [Timespec; 4],
    reserved: [u64; 8],
}

/// `_IOR(BTRFS_IOCTL_MAGIC, 60, struct btrfs_ioctl_get_subvol_info_args)`.
const GET_SUBVOL_INFO: libc::c_ulong =
    (2 << 30) | ((std::mem::size_of::<SubvolInfo>() as libc::c_ulong) << 16) | (0x94 << 8) | 0x3c;
/// Inode number of a subvolume's root directory (`BTRFS_FIRST_FREE_OBJECTID`).
const ROOT_INODE: u64 = 256;

/// UUID of the subvolume whose root directory `directory` is, lower-case with dashes. `None` if it is anything else: a
/// directory inside a subvolume, or on another file system. `directory` must be open for reading (no `O_PATH`).
pub fn uuid_of_root(directory: BorrowedFd<'_>) -> io::Result<Option<String>> {
    let kind = rustix::fs::fstatfs(directory)?;
    let stat = rustix::fs::fstat(directory)?;
    if kind.f_type != libc::BTRFS_SUPER_MAGIC || stat.st_ino != ROOT_INODE {
        return Ok(None);
    }
    // SAFETY: the structure is plain integers, for which all-zero is a valid value.
    let mut info: SubvolInfo = unsafe { std::mem::zeroed() };
    // SAFETY: the request number carries the size of `info`, which the kernel fills and which outlives the call; the
    // descriptor was found to be of btrfs, so no other driver interprets the number.
    let result = unsafe { libc::ioctl(directory.as_raw_fd(), GET_SUBVOL_INFO, &raw mut info) };
    // The kernel (6.18) answers 1 if it finds no back reference behind the last item of a leaf; what is read here has
    // been filled in by then.
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Some(format_uuid(&info.uuid)))
}

fn format_uuid(bytes: &[u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_number_is_the_kernels() {
        assert_eq!(std::mem::size_of::<SubvolInfo>(), 504);
        assert_eq!(GET_SUBVOL_INFO, 0x81f8_943c);
    }

    #[test]
    fn uuids_are_written_with_dashes() {
        let bytes = [0xf1, 0x1d, 0x4f, 0x2d, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0xa, 0xb];
        assert_eq!(format_uuid(&bytes), "f11d4f2d-0001-0203-0405-060708090a0b");
    }
}
