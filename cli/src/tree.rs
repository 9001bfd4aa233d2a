//! Reading a tree: lookups are confined to its root by the kernel, as if it were the root directory, so links in it lead where
//! they lead inside the environment and never out of it.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};

use crate::wire::{Entry, Type};

/// Opens the root of a tree.
///
/// # Errors
/// It is not there.
pub fn root(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Opens a path of a tree; the last link of it too is followed.
///
/// # Errors
/// It is not there, or links go round in circles.
pub fn open(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    Ok(rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)?)
}

/// What the names in a directory stand for, in order of names; of anything else, itself.
///
/// # Errors
/// It cannot be read.
pub fn list(root: BorrowedFd<'_>, path: &Path) -> io::Result<Vec<Entry>> {
    let found = open(root, path, OFlags::PATH)?;
    let stat = rustix::fs::fstat(&found)?;
    if !FileType::from_raw_mode(stat.st_mode).is_dir() {
        return Ok(vec![entry(path.as_os_str().as_bytes().to_vec(), &stat, None)?]);
    }
    let directory = open(root, path, OFlags::RDONLY | OFlags::DIRECTORY)?;
    names(directory.as_fd())?.into_iter().map(|name| look(directory.as_fd(), &name, name.to_bytes().to_vec())).collect()
}

/// The names in a directory, sorted.
///
/// # Errors
/// It cannot be read.
pub fn names(directory: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for found in Dir::read_from(directory)? {
        let found = found?;
        if found.file_name() != c"." && found.file_name() != c".." {
            names.push(found.file_name().to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// What a name in a directory stands for, told under the path `path`.
///
/// # Errors
/// It is not there.
pub fn look(directory: BorrowedFd<'_>, name: &CString, path: Vec<u8>) -> io::Result<Entry> {
    let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let target = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Symlink => Some(rustix::fs::readlinkat(directory, name, Vec::new())?.into_bytes()),
        _ => None,
    };
    entry(path, &stat, target)
}

fn entry(path: Vec<u8>, stat: &Stat, target: Option<Vec<u8>>) -> io::Result<Entry> {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Type::File,
        FileType::Directory => Type::Directory,
        FileType::Symlink => Type::Link,
        FileType::CharacterDevice => Type::Character,
        FileType::BlockDevice => Type::Block,
        FileType::Fifo => Type::Fifo,
        FileType::Socket => Type::Socket,
        FileType::Unknown => return Err(io::Error::other("a file of a type that is not known")),
    };
    Ok(Entry {
        path,
        kind,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: if kind == Type::File { stat.st_size as u64 } else { 0 },
        modified: (stat.st_mtime, stat.st_mtime_nsec as u32),
        target,
        device: if matches!(kind, Type::Character | Type::Block) { stat.st_rdev } else { 0 },
    })
}

/// Opens a regular file of a tree.
///
/// # Errors
/// It is not there, or is something else.
pub fn file(root: BorrowedFd<'_>, path: &Path) -> io::Result<File> {
    // Opening a pipe or device could wait or act: look first, and open what was looked at.
    let found = open(root, path, OFlags::PATH)?;
    if !FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode).is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let file = File::from(open(root, path, OFlags::RDONLY | OFlags::NONBLOCK)?);
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is no regular file")) }
}

/// Writes everything below a directory as a tar archive. What an archive for a person's own machine cannot hold, devices, pipes and
/// sockets, is left out and told to `left_out`.
///
/// # Errors
/// Something cannot be read, or the archive not be written.
pub fn pack(root: BorrowedFd<'_>, path: &Path, to: impl Write, left_out: &mut dyn FnMut(&[u8])) -> io::Result<()> {
    let mut archive = tar::Builder::new(to);
    let mut open: Vec<(OwnedFd, Vec<u8>)> =
        vec![(self::open(root, path, OFlags::RDONLY | OFlags::DIRECTORY)?, Vec::new())];
    while let Some((directory, below)) = open.pop() {
        for name in names(directory.as_fd())? {
            let mut path = below.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name.to_bytes());
            let found = look(directory.as_fd(), &name, path.clone())?;
            let mut header = tar::Header::new_gnu();
            header.set_mode(found.mode);
            header.set_mtime(found.modified.0.max(0) as u64);
            let shown = Path::new(std::ffi::OsStr::from_bytes(&path));
            match found.kind {
                Type::Directory => {
                    header.set_entry_type(tar::EntryType::Directory);
                    header.set_size(0);
                    archive.append_data(&mut header, shown, io::empty())?;
                    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    open.push((rustix::fs::openat(&directory, &name, flags, Mode::empty())?, path));
                }
                Type::Link => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    header.set_size(0);
                    let target = found.target.unwrap_or_default();
                    archive.append_link(&mut header, shown, Path::new(std::ffi::OsStr::from_bytes(&target)))?;
                }
                Type::File => {
                    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                    let file = File::from(rustix::fs::openat(&directory, &name, flags, Mode::empty())?);
                    header.set_size(found.size);
                    archive.append_data(&mut header, shown, file.take(found.size))?;
                }
                _ => left_out(&path),
            }
        }
    }
    archive.into_inner()?.flush()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_followed_inside_the_tree_alone_and_only_files_are_read() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "s").unwrap();
        let tree = tempfile::tempdir().unwrap();
        let at = |name: &str| tree.path().join(name);
        std::fs::create_dir(at("srv")).unwrap();
        std::fs::write(at("srv/version"), "one").unwrap();
        symlink("/srv/version", at("link")).unwrap();
        symlink(outside.path().join("secret"), at("out")).unwrap();
        symlink("round", at("round")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, at("fifo"), Mode::RUSR).unwrap();
        let root = root(tree.path()).unwrap();
        let read = |path: &str| {
            let mut text = String::new();
            file(root.as_fd(), Path::new(path)).and_then(|mut file| file.read_to_string(&mut text)).map(|_| text)
        };
        assert_eq!(read("srv/version").unwrap(), "one");
        assert_eq!(read("link").unwrap(), "one");
        for refused in ["out", "round", "fifo", "srv", "none"] {
            assert!(read(refused).is_err(), "{refused}");
        }
        let names = |path: &str| {
            let entries = list(root.as_fd(), Path::new(path)).unwrap();
            entries.into_iter().map(|entry| String::from_utf8(entry.path).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(names(""), ["fifo", "link", "out", "round", "srv"]);
        assert_eq!(names("link"), ["link"]);
    }
}
