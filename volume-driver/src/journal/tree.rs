//! What a tree looks like from inside, as lines of text: the measure of whether a restored volume equals its source.
//!
//! One line for each name, in order of names: path, type, mode, owner, size or target or device number, modification
//! time, extended attributes (access control lists and file capabilities are such), the other name of a hard link,
//! where data, holes and reserved room are, and the digest of the content. Left out is what belongs to the place and not
//! to the tree: inode numbers, times of change and access.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use vivarium_journal::Digest;
use vivarium_sys::extents::{self, Extent};

/// Gives a line for each name below `root` (and `.` for itself) to `line`.
///
/// # Errors
/// Something in the tree cannot be read, for example because it changes.
pub fn describe(root: BorrowedFd<'_>, line: &mut dyn FnMut(&str)) -> io::Result<()> {
    let mut walk = Walk { links: HashMap::new(), line };
    let top = rustix::fs::openat(root, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut stat = rustix::fs::fstat(&top)?;
    (stat.st_mtime, stat.st_mtime_nsec) = (0, 0);
    let mut text = String::from(".");
    Walk::metadata(&mut text, &stat, &magic(&top, Path::new(".")))?;
    (walk.line)(&text);
    walk.directory(&top, &PathBuf::new())
}

/// BLAKE3 over the lines of [`describe`].
///
/// # Errors
/// As [`describe`].
pub fn digest(root: BorrowedFd<'_>) -> io::Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    describe(root, &mut |line| {
        hasher.update(line.as_bytes());
        hasher.update(b"\n");
    })?;
    Ok(Digest(*hasher.finalize().as_bytes()))
}

/// What a snapshot shows in place of a subvolume that lies in it (`BTRFS_EMPTY_SUBVOL_DIR_OBJECTID`). No journal holds those.
const EMPTY_SUBVOLUME: u64 = 2;

struct Walk<'a> {
    /// First name of each file that has several.
    links: HashMap<u64, PathBuf>,
    line: &'a mut dyn FnMut(&str),
}

impl Walk<'_> {
    fn directory(&mut self, directory: &OwnedFd, path: &Path) -> io::Result<()> {
        let mut names: Vec<OsString> = Vec::new();
        for entry in rustix::fs::Dir::read_from(directory)? {
            let entry = entry?;
            if entry.file_name() != c"." && entry.file_name() != c".." {
                names.push(std::ffi::OsStr::from_bytes(entry.file_name().to_bytes()).to_owned());
            }
        }
        names.sort();
        for name in names {
            let below = path.join(&name);
            let stat = rustix::fs::statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW)?;
            if stat.st_ino == EMPTY_SUBVOLUME && FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                continue;
            }
            let mut text = quoted(&below);
            Self::metadata(&mut text, &stat, &magic(directory, Path::new(&name)))?;
            if stat.st_nlink > 1 && FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                if let Some(first) = self.links.get(&stat.st_ino) {
                    let _ = write!(text, " same={}", quoted(first));
                    (self.line)(&text);
                    continue;
                }
                self.links.insert(stat.st_ino, below.clone());
            }
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile => content(&mut text, directory, Path::new(&name))?,
                FileType::Symlink => {
                    let target = rustix::fs::readlinkat(directory, &name, Vec::new())?;
                    let _ = write!(text, " target={target:?}");
                }
                _ => {}
            }
            (self.line)(&text);
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let next = rustix::fs::openat(directory, &name, flags, Mode::empty())?;
                self.directory(&next, &below)?;
            }
        }
        Ok(())
    }

    fn metadata(text: &mut String, stat: &Stat, at: &Path) -> io::Result<()> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let _ = write!(
            text,
            " {kind:?} {:o} {}:{} mtime={}.{:09}",
            stat.st_mode & 0o7777,
            stat.st_uid,
            stat.st_gid,
            stat.st_mtime,
            stat.st_mtime_nsec
        );
        match kind {
            FileType::RegularFile => {
                let _ = write!(text, " size={}", stat.st_size);
            }
            FileType::CharacterDevice | FileType::BlockDevice => {
                let _ = write!(text, " device={}:{}", rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
            }
            _ => {}
        }
        for (name, value) in attributes(at)? {
            let _ = write!(text, " {}={}", String::from_utf8_lossy(&name), hexadecimal(&value));
        }
        Ok(())
    }
}

/// A name as one word that shows every odd byte.
#[allow(clippy::unnecessary_debug_formatting, reason = "for people, `display` hides what this is to show")]
fn quoted(path: &Path) -> String {
    format!("{path:?}")
}

/// A path through our own table of open files, for calls that take no directory.
fn magic(directory: &OwnedFd, name: &Path) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name)
}

fn attributes(at: &Path) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut names = vec![0; 64 << 10];
    let length = match rustix::fs::llistxattr(at, &mut names[..]) {
        Ok(length) => length,
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(error.into()),
    };
    let mut found = Vec::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 64 << 10];
        let length = rustix::fs::lgetxattr(at, name, &mut value[..])?;
        value.truncate(length);
        found.push((name.to_vec(), value));
    }
    found.sort();
    Ok(found)
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn content(text: &mut String, directory: &OwnedFd, name: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NOATIME | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(directory, name, flags, Mode::empty())?);
    let mut last: Option<Extent> = None;
    let mut map = String::new();
    let mut put = |extent: Extent| {
        let kind = if extent.unwritten { "reserved" } else { "data" };
        let _ = write!(map, "{kind}@{}+{},", extent.offset, extent.length);
    };
    for extent in extents::extents(file.as_fd())? {
        match &mut last {
            Some(last) if last.offset + last.length == extent.offset && last.unwritten == extent.unwritten => {
                last.length += extent.length;
            }
            _ => {
                if let Some(whole) = last.replace(extent) {
                    put(whole);
                }
            }
        }
    }
    last.into_iter().for_each(&mut put);
    let mut hasher = blake3::Hasher::new();
    io::copy(&mut file, &mut hasher)?;
    let _ = write!(text, " map={map} blake3={}", hasher.finalize().to_hex());
    Ok(())
}
