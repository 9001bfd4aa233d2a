//! Where a file has data, by `FS_IOC_FIEMAP`, and sharing of data between files, by `FICLONERANGE` (`ioctl_ficlonerange(2)`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `FS_IOC_FIEMAP`: `_IOWR('f', 11, struct fiemap)`.
const FIEMAP: libc::c_ulong = 0xc020_660b;
/// `FICLONERANGE`: `_IOW(0x94, 13, struct file_clone_range)`.
const CLONE_RANGE: libc::c_ulong = 0x4020_940d;
const EXTENT_LAST: u32 = 1;
const EXTENT_UNWRITTEN: u32 = 1 << 11;
/// `FIEMAP_EXTENT_UNKNOWN | FIEMAP_EXTENT_DELALLOC | FIEMAP_EXTENT_ENCODED | FIEMAP_EXTENT_DATA_INLINE`: the place says
/// nothing.
const EXTENT_NO_PLACE: u32 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 9;
/// Extents that are asked for at a time.
const BATCH: usize = 64;

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Clone, Copy)]
struct RawExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved: [u64; 2],
    flags: u32,
    more_reserved: [u32; 3],
}

/// `struct fiemap` with room for [`BATCH`] extents.
#[repr(C)]
struct Map {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
    extents: [RawExtent; BATCH],
}

/// A part of a file that has blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// How long it is, in bytes.
    pub length: u64,
    /// Whether it was reserved and never written (preallocated).
    pub unwritten: bool,
    /// Where its blocks are in the file system, in bytes, if they have a place of their own there: who shares data with
    /// another file has the same.
    pub place: Option<u64>,
}

/// The extents of a file, in order, also those behind its end.
pub fn extents(file: BorrowedFd<'_>) -> io::Result<Vec<Extent>> {
    let mut found = Vec::new();
    let mut start = 0;
    loop {
        let empty = RawExtent { logical: 0, physical: 0, length: 0, reserved: [0; 2], flags: 0, more_reserved: [0; 3] };
        let mut map = Map {
            start,
            length: u64::MAX - start,
            flags: 0,
            mapped: 0,
            count: BATCH as u32,
            reserved: 0,
            extents: [empty; BATCH],
        };
        // SAFETY: the kernel fills at most `count` extents, for which there is room, and `mapped`.
        if unsafe { libc::ioctl(file.as_raw_fd(), FIEMAP, std::ptr::from_mut(&mut map)) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let batch = map.extents.get(..map.mapped as usize).unwrap_or_default();
        let Some(last) = batch.last() else { return Ok(found) };
        found.extend(batch.iter().map(|raw| Extent {
            offset: raw.logical,
            length: raw.length,
            unwritten: raw.flags & EXTENT_UNWRITTEN != 0,
            place: (raw.flags & EXTENT_NO_PLACE == 0).then_some(raw.physical),
        }));
        if last.flags & EXTENT_LAST != 0 {
            return Ok(found);
        }
        start = last.logical.saturating_add(last.length);
    }
}

/// `struct file_clone_range`.
#[repr(C)]
struct CloneRange {
    from: i64,
    from_offset: u64,
    length: u64,
    to_offset: u64,
}

/// Shares `length` bytes at `from_offset` of `from` at `to_offset` of `to`. `EINVAL` where they do not lie on blocks,
/// `EXDEV` between file systems.
pub fn clone_range(
    from: BorrowedFd<'_>,
    from_offset: u64,
    length: u64,
    to: BorrowedFd<'_>,
    to_offset: u64,
) -> io::Result<()> {
    let range = CloneRange { from: i64::from(from.as_raw_fd()), from_offset, length, to_offset };
    // SAFETY: the kernel reads `range`, which outlives the call.
    if unsafe { libc::ioctl(to.as_raw_fd(), CLONE_RANGE, std::ptr::from_ref(&range)) } < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
