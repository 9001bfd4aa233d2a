//! Names: those that are in the tree, and those that a tenant might choose next.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};

use crate::rng::Rng;

/// One name in the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Relative to the root of the tree.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: FileType,
}

/// All names below `root` in order, the root itself left out.
pub fn list(root: BorrowedFd<'_>) -> io::Result<Vec<Entry>> {
    let mut found = Vec::new();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut pending: Vec<(Vec<u8>, OwnedFd)> = vec![(Vec::new(), rustix::fs::openat(root, ".", flags, Mode::empty())?)];
    while let Some((path, directory)) = pending.pop() {
        for entry in rustix::fs::Dir::read_from(&directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let below = join(&path, name.to_bytes());
            let stat = rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let kind = FileType::from_raw_mode(stat.st_mode);
            if kind == FileType::Directory {
                pending.push((below.clone(), rustix::fs::openat(&directory, name, flags, Mode::empty())?));
            }
            found.push(Entry { path: below, kind });
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// A path and a name behind it.
#[must_use]
pub fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() }
}

/// A name for something new: mostly one of a few, so that names are used again; sometimes one that is hard to handle.
/// The kernel makes names like `o257-9-0` for things on their way; a tenant may have such, too.
pub fn invent(rng: &mut Rng, hostile: bool) -> Vec<u8> {
    const ODD: [&[u8]; 12] = [
        b"\xff\xfe",
        b"\xc3",
        b"new\nline",
        b" ",
        b"-rf",
        b"...",
        b"'\"\\$(x)",
        b"o257-8-0",
        b"o258-9-0",
        b".wh.file",
        b"\x1b[2J",
        b"tab\t",
    ];
    match rng.below(if hostile { 8 } else { 4 }) {
        0..=2 => format!("f{}", rng.below(12)).into_bytes(),
        3 => format!("dir{}", rng.below(6)).into_bytes(),
        4 => rng.pick(&ODD).copied().unwrap_or(b"x").to_vec(),
        5 => {
            let length = if rng.once_in(2) { 255 } else { rng.between(200, 255) as usize };
            let fill = *rng.pick(b"L\xe4\x01").unwrap_or(&b'L');
            let mut name = vec![fill; length];
            name.splice(..1, [b'0' + rng.below(4) as u8]);
            name
        }
        6 => format!("o{}-{}-{}", rng.between(257, 280), rng.between(7, 30), rng.below(2)).into_bytes(),
        _ => {
            let mut name = rng.noise(3);
            for byte in &mut name {
                if matches!(*byte, 0 | b'/' | b'.') {
                    *byte = b'_';
                }
            }
            name
        }
    }
}
