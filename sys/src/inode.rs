//! Files of another subvolume by their number, from its tree itself: no path leads there, and none is needed.

use std::io;
use std::os::fd::BorrowedFd;

use crate::btrfs::items;

/// Key types of `struct btrfs_inode_item` and `struct btrfs_file_extent_item` (`linux/btrfs_tree.h`).
const INODE_ITEM: u32 = 1;
const EXTENT_DATA: u32 = 108;
/// Where the size is in the one, and type and length in the other.
const INODE_SIZE: usize = 16;
const EXTENT_TYPE: usize = 20;
const EXTENT_LENGTH: usize = 45;
/// `BTRFS_FILE_EXTENT_PREALLOC`.
const PREALLOCATED: u8 = 2;

/// What is asked of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Size in bytes.
    pub size: u64,
    /// Offset and length of each extent that is reserved and was never written, in order.
    pub reserved: Vec<(u64, u64)>,
}

/// Size and reserved room of the inode `number` in the subvolume `subvolume`; `None` if it has no such inode. Numbers of
/// inodes are never reused in a subvolume and are the same in its snapshots. Needs `CAP_SYS_ADMIN`.
pub fn room(file_system: BorrowedFd<'_>, subvolume: u64, number: u64) -> io::Result<Option<Room>> {
    let mut size = None;
    items(file_system, subvolume, number, INODE_ITEM, &mut |_, item| size = integer(item, INODE_SIZE))?;
    let Some(size) = size else { return Ok(None) };
    Ok(Some(Room { size, reserved: reserved(file_system, subvolume, number)? }))
}

/// Offset and length of the extents that are reserved and were never written, of the inode `number`; none if there is no
/// such inode. One call for most files.
pub fn reserved(file_system: BorrowedFd<'_>, subvolume: u64, number: u64) -> io::Result<Vec<(u64, u64)>> {
    let mut reserved = Vec::new();
    items(file_system, subvolume, number, EXTENT_DATA, &mut |offset, item| {
        if item.get(EXTENT_TYPE) == Some(&PREALLOCATED)
            && let Some(length) = integer(item, EXTENT_LENGTH)
        {
            reserved.push((offset, length));
        }
    })?;
    Ok(reserved)
}

fn integer(item: &[u8], at: usize) -> Option<u64> {
    item.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}
