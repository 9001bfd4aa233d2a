//! What the kernel's stream does not say of a file: which of its zeros are holes, and which room is reserved
//! (`fallocate`). Read from the snapshot for each file that the transaction touches.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FileType, Mode, OFlags};
use vivarium_journal::TreePath;
use vivarium_journal::op::{MAX_DATA, Op, Range, Time};
use vivarium_journal::touched::{Change, Changes, What};
use vivarium_journal::write::Writer;
use vivarium_sys::extents::{self, Extent};

use super::apply::BENEATH;

/// The one attribute that the kernel drops at a write (capabilities(7)).
const CAPABILITY: &str = "security.capability";

/// Adds what is missing. `snapshot` is the root of the read-only snapshot that the changes lead to.
pub fn complete<W: Write>(snapshot: BorrowedFd<'_>, changes: &Changes, to: &mut Writer<W>) -> io::Result<()> {
    for change in changes.iter().filter(|change| !only_gone(change.what)) {
        let Ok(path) = TreePath::parse(&change.path) else { continue };
        if path.is_root() {
            continue;
        }
        let Some((file, stat)) = regular_file(snapshot, path)? else { continue };
        // Without room of its own a file has no layout.
        if stat.st_blocks == 0 && change.zeros.is_empty() {
            continue;
        }
        let extents = extents::extents(file.as_fd())?;
        if layout(change, path, &extents, stat.st_size as u64, to)? {
            restore_metadata(&file, path, &stat, to)?;
        }
    }
    Ok(())
}

fn only_gone(what: What) -> bool {
    what == What::REMOVED
}

fn regular_file(root: BorrowedFd<'_>, path: TreePath<'_>) -> io::Result<Option<(File, rustix::fs::Stat)>> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let there = match rustix::fs::openat2(root, path.as_path(), flags, Mode::empty(), BENEATH) {
        Ok(there) => there,
        // The last name of something that was only on its way: the kernel's own names.
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let stat = rustix::fs::fstat(&there)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(None);
    }
    Ok(Some((super::apply::open_data(root, path, OFlags::RDONLY)?, stat)))
}

/// Adds reserved room and written zeros; whether there were any.
fn layout<W: Write>(
    change: &Change,
    path: TreePath<'_>,
    extents: &[Extent],
    size: u64,
    to: &mut Writer<W>,
) -> io::Result<bool> {
    let mut any = false;
    for zeros in &change.zeros {
        let end = (zeros.offset + zeros.length).min(size);
        for data in extents.iter().filter(|extent| !extent.unwritten) {
            let mut at = data.offset.max(zeros.offset);
            let stop = (data.offset + data.length).min(end);
            while at < stop {
                let length = (stop - at).min(MAX_DATA as u64);
                to.push(&Op::Write { path, offset: at, data: &ZEROS[..length as usize] })?;
                at += length;
                any = true;
            }
        }
    }
    for reserved in extents.iter().filter(|extent| extent.unwritten) {
        let range = Range { offset: reserved.offset, length: reserved.length };
        to.push(&Op::Preallocate { path, range })?;
        any = true;
    }
    Ok(any)
}

static ZEROS: [u8; MAX_DATA] = [0; MAX_DATA];

/// What the operations above change besides.
fn restore_metadata<W: Write>(
    file: &File,
    path: TreePath<'_>,
    stat: &rustix::fs::Stat,
    to: &mut Writer<W>,
) -> io::Result<()> {
    let mut value = [0; 64];
    match rustix::fs::fgetxattr(file, CAPABILITY, &mut value[..]) {
        Ok(length) => {
            let value = value.get(..length).unwrap_or_default();
            to.push(&Op::SetXattr { path, name: CAPABILITY.as_bytes(), value })?;
        }
        Err(rustix::io::Errno::NODATA) => {}
        Err(error) => return Err(error.into()),
    }
    to.push(&Op::Mode { path, mode: stat.st_mode & 0o7777 })?;
    let time = |seconds, nanoseconds| Time { seconds, nanoseconds };
    let access = time(stat.st_atime, stat.st_atime_nsec as u32);
    let modification = time(stat.st_mtime, stat.st_mtime_nsec as u32);
    to.push(&Op::Times { path, access, modification })
}
