//! What the kernel's stream does not say of a file: which of its zeros are holes, which room is reserved (`fallocate`), and
//! which reserved room is no longer. Read from the snapshot for each file that the transaction touches, and from the one
//! before where the stream keeps silent.
//!
//! btrfs itself is in the way: whenever a file grows from, or room is reserved behind, an end that lies inside a block, it
//! writes zeros into that block. So for a last block that holds no data the file is first made shorter to the block's
//! beginning, and has its size again in the end.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{FileType, Mode, OFlags};
use vivarium_journal::TreePath;
use vivarium_journal::op::{MAX_DATA, Op, Range, Time};
use vivarium_journal::touched::{Change, Changes, What};
use vivarium_journal::write::Writer;
use vivarium_sys::extents::{self, Extent};
use vivarium_sys::inode::{self, Room};

use super::apply::BENEATH;

/// The one attribute that the kernel drops at a write (capabilities(7)).
const CAPABILITY: &str = "security.capability";
/// Size of a block of btrfs where pages have 4 KiB; elsewhere a file has no room that begins inside a larger one.
const BLOCK: u64 = 4096;

/// Adds what is missing. `snapshot` is the root of the read-only snapshot that the changes lead to, and `number` its
/// number; `base` that of the one that they begin from.
pub fn complete<W: Write>(
    snapshot: BorrowedFd<'_>,
    number: u64,
    base: Option<u64>,
    changes: Changes<'_>,
    to: &mut Writer<W>,
) -> io::Result<()> {
    changes.each(|change| complete_one(snapshot, number, base, &change, to))
}

fn complete_one<W: Write>(
    snapshot: BorrowedFd<'_>,
    number: u64,
    base: Option<u64>,
    change: &Change<'_>,
    to: &mut Writer<W>,
) -> io::Result<()> {
    let Ok(path) = TreePath::parse(change.path) else { return Ok(()) };
    if only_gone(change.what) || path.is_root() {
        return Ok(());
    }
    let Some((there, stat)) = regular_file(snapshot, path)? else { return Ok(()) };
    // Most files have nothing to say, and are not even opened: somebody may have changed the owner of a million.
    let reserved = !inode::reserved(snapshot, number, stat.st_ino)?.is_empty();
    let before = before(snapshot, base, change, stat.st_ino)?;
    let unsaid = unsaid(change, &before);
    if !reserved && unsaid.is_empty() {
        return Ok(());
    }
    let file = super::apply::reopen(there.as_fd(), OFlags::RDONLY)?;
    let layout =
        Layout { size: stat.st_size as u64, extents: extents::extents(file.as_fd())?, zeros: change.zeros, unsaid };
    let operations = layout.operations();
    for operation in &operations {
        operation.put(&file, path, to)?;
    }
    if operations.is_empty() { Ok(()) } else { restore_metadata(&file, path, &stat, to) }
}

/// What the file was like in the snapshot before. Its size matters only if data have changed.
fn before(file_system: BorrowedFd<'_>, base: Option<u64>, change: &Change<'_>, inode: u64) -> io::Result<Room> {
    let Some(base) = base else { return Ok(Room::default()) };
    if change.what.contains(What::CONTENT) {
        return Ok(inode::room(file_system, base, inode)?.unwrap_or_default());
    }
    Ok(Room { size: 0, reserved: inode::reserved(file_system, base, inode)? })
}

fn only_gone(what: What) -> bool {
    what == What::REMOVED
}

fn regular_file(root: BorrowedFd<'_>, path: TreePath<'_>) -> io::Result<Option<(OwnedFd, rustix::fs::Stat)>> {
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
    Ok(Some((there, stat)))
}

/// Where the stream does not say what is there if no data are.
fn unsaid(change: &Change<'_>, before: &Room) -> Vec<Range> {
    let mut unsaid = change.cloned.to_vec();
    unsaid.extend(change.zeros);
    unsaid.extend(before.reserved.iter().map(|&(offset, length)| Range { offset, length }));
    if !before.size.is_multiple_of(BLOCK) {
        unsaid.push(Range { offset: before.size / BLOCK * BLOCK, length: BLOCK });
    }
    unsaid
}

/// What is known of a file's layout.
struct Layout<'a> {
    size: u64,
    /// As it shall be.
    extents: Vec<Extent>,
    /// Parts that came as zeros.
    zeros: &'a [Range],
    unsaid: Vec<Range>,
}

/// One more operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Addition {
    /// Write what the file holds.
    Data(Range),
    Hole(Range),
    Reserve(Range),
    Size(u64),
}

impl Layout<'_> {
    fn operations(&self) -> Vec<Addition> {
        let mut operations = Vec::new();
        for zeros in self.zeros {
            for data in self.extents.iter().filter(|extent| !extent.unwritten) {
                let (start, end) = common(*zeros, range(data));
                operations.extend(parts(start, end.min(self.size)).map(Addition::Data));
            }
        }
        // The last block, if the file ends inside it and it holds no data.
        let last = Range { offset: self.size / BLOCK * BLOCK, length: BLOCK };
        let open_end = !self.size.is_multiple_of(BLOCK) && !self.has_data(last);
        let mut reset = false;
        for part in &self.unsaid {
            let (_, end) = common(*part, last);
            reset |= part.offset + part.length > self.size.next_multiple_of(BLOCK) || (open_end && end > last.offset);
            self.holes(*part, last.offset, &mut operations);
        }
        let reserved: Vec<Range> = self.extents.iter().filter(|extent| extent.unwritten).map(range).collect();
        let shorter = open_end && (reset || !reserved.is_empty());
        if shorter {
            operations.push(Addition::Size(last.offset));
        } else if reset {
            // Room behind the end goes when a size is set.
            operations.push(Addition::Size(self.size));
        }
        operations.extend(reserved.into_iter().map(Addition::Reserve));
        if shorter {
            operations.push(Addition::Size(self.size));
        }
        operations
    }

    fn has_data(&self, part: Range) -> bool {
        self.extents.iter().any(|extent| {
            let (start, end) = common(range(extent), part);
            !extent.unwritten && start < end
        })
    }

    /// The parts of `part` before `end` that hold no data.
    fn holes(&self, part: Range, end: u64, operations: &mut Vec<Addition>) {
        let end = (part.offset + part.length).min(end);
        let mut at = part.offset;
        for data in self.extents.iter().filter(|extent| !extent.unwritten) {
            if at >= end {
                return;
            }
            let (start, stop) = common(range(data), Range { offset: at, length: end - at });
            if start < stop {
                if at < start {
                    operations.push(Addition::Hole(Range { offset: at, length: start - at }));
                }
                at = stop;
            }
        }
        if at < end {
            operations.push(Addition::Hole(Range { offset: at, length: end - at }));
        }
    }
}

fn range(extent: &Extent) -> Range {
    Range { offset: extent.offset, length: extent.length }
}

/// Beginning and end of what two ranges have in common; nothing if the end is not behind the beginning.
fn common(one: Range, other: Range) -> (u64, u64) {
    (one.offset.max(other.offset), (one.offset + one.length).min(other.offset + other.length))
}

/// Cut into pieces that one write can carry.
fn parts(start: u64, end: u64) -> impl Iterator<Item = Range> {
    (start..end).step_by(MAX_DATA).map(move |offset| Range { offset, length: (end - offset).min(MAX_DATA as u64) })
}

impl Addition {
    fn put<W: Write>(self, file: &File, path: TreePath<'_>, to: &mut Writer<W>) -> io::Result<()> {
        match self {
            Self::Data(Range { offset, length }) => {
                let mut data = vec![0; length as usize];
                file.read_exact_at(&mut data, offset)?;
                to.push(&Op::Write { path, offset, data: &data })
            }
            Self::Hole(range) => to.push(&Op::Hole { path, range }),
            Self::Reserve(range) => to.push(&Op::Preallocate { path, range }),
            Self::Size(size) => to.push(&Op::Truncate { path, size }),
        }
    }
}

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

#[cfg(test)]
mod tests {
    use super::Addition::{Data, Hole, Reserve, Size};
    use super::*;

    fn range(offset: u64, length: u64) -> Range {
        Range { offset: offset * BLOCK, length: length * BLOCK }
    }

    fn data(offset: u64, length: u64) -> Extent {
        Extent { offset: offset * BLOCK, length: length * BLOCK, unwritten: false, place: None }
    }

    fn reserved(offset: u64, length: u64) -> Extent {
        Extent { unwritten: true, ..data(offset, length) }
    }

    #[test]
    fn what_the_stream_leaves_open_is_said() {
        let b = BLOCK;
        for (what, size, extents, zeros, unsaid, expected) in [
            ("nothing is open", 2 * b, vec![data(0, 2)], vec![], vec![], vec![]),
            (
                "zeros that are a hole",
                4 * b,
                vec![data(0, 2)],
                vec![range(2, 2)],
                vec![range(2, 2)],
                vec![Hole(range(2, 2))],
            ),
            (
                "zeros that are data",
                4 * b,
                vec![data(0, 4)],
                vec![range(2, 2)],
                vec![range(2, 2)],
                vec![Data(range(2, 2))],
            ),
            (
                "zeros that are data up to an end inside a block",
                4 * b - 1,
                vec![data(0, 4)],
                vec![Range { offset: 2 * b, length: 2 * b - 1 }],
                vec![],
                vec![Data(Range { offset: 2 * b, length: 2 * b - 1 })],
            ),
            (
                "reserved room in a file",
                4 * b,
                vec![data(0, 1), reserved(1, 3)],
                vec![],
                vec![],
                vec![Reserve(range(1, 3))],
            ),
            (
                "reserved room that was punched",
                8 * b,
                vec![data(0, 1), reserved(3, 1), data(4, 1)],
                vec![],
                vec![range(1, 6)],
                vec![Hole(range(1, 3)), Hole(range(5, 2)), Reserve(range(3, 1))],
            ),
            (
                "reserved room behind the end that is gone",
                b,
                vec![data(0, 1), reserved(5, 1)],
                vec![],
                vec![range(1, 9)],
                vec![Size(b), Reserve(range(5, 1))],
            ),
            (
                "room behind an end inside a block without data",
                b + 1,
                vec![data(0, 1), reserved(5, 1)],
                vec![],
                vec![],
                vec![Size(b), Reserve(range(5, 1)), Size(b + 1)],
            ),
            ("an empty file that had room", 0, vec![], vec![], vec![range(0, 1)], vec![Size(0)]),
            (
                "a last block that was reserved and is a hole",
                b + 1,
                vec![data(0, 1)],
                vec![],
                vec![range(1, 1)],
                vec![Size(b), Size(b + 1)],
            ),
        ] {
            let layout = Layout { size, extents, zeros: &zeros, unsaid };
            assert_eq!(layout.operations(), expected, "{what}");
        }
    }
}
