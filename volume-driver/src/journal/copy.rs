//! Copying what a volume held into the volume again: with owners, modes, times, hard links among what is copied, device
//! nodes, holes, reserved room and all attributes.
//!
//! Data that lies in a layer of the template is shared with it, anything else is copied. For the kernel counts a block for
//! the subvolume that wrote it: a tenant to whom blocks of another subvolume are given would escape the size of his volume.

use std::collections::HashMap;
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FallocateFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use vivarium_sys::extents::{self, Extent};

use super::apply::{BENEATH, reopen};
use super::overlay::{Lower, ORIGIN, OVERLAY, is_whiteout, look};
use crate::pool::{destroy_tree, open_beneath};

/// Bytes that are copied at a time.
const PIECE: usize = 1 << 20;
/// Number of the root of a subvolume.
const SUBVOLUME: u64 = 256;
/// What a snapshot shows in place of a subvolume that lies in it (`BTRFS_EMPTY_SUBVOL_DIR_OBJECTID`).
const EMPTY_SUBVOLUME: u64 = 2;

/// Attributes that the kernel gives to what is made in a directory that has them.
const INHERITED: [&str; 2] = ["system.posix_acl_access", "system.posix_acl_default"];

/// A place in a tree.
#[derive(Clone, Copy, Debug)]
pub struct At<'a> {
    /// Root of the tree.
    pub root: BorrowedFd<'a>,
    /// Where below it.
    pub path: &'a Path,
}

/// What brings things into a tree. Names that one file has are one file there as well.
#[derive(Debug)]
pub struct Copier<'a> {
    /// Root of the tree.
    pub to: BorrowedFd<'a>,
    /// Layers, lowest first, whose data is shared.
    pub layers: &'a [OwnedFd],
    /// By where a file came from (none: not from a layer) and its number there.
    links: HashMap<(Option<usize>, u64), PathBuf>,
}

impl<'a> Copier<'a> {
    /// One that has brought nothing yet.
    #[must_use]
    pub fn new(to: BorrowedFd<'a>, layers: &'a [OwnedFd]) -> Self {
        Self { to, layers, links: HashMap::new() }
    }

    /// Copies what is at a place, with all that is below it, to a place where nothing is. `like` are places in the layers where
    /// there may be what is like it.
    ///
    /// # Errors
    /// As the kernel says, `EDQUOT` when the volume is full. What was copied so far stays.
    pub fn tree(&mut self, from: At<'_>, to: &Path, like: &[Lower]) -> io::Result<()> {
        let mut directories = Vec::new();
        let mut pending = vec![PathBuf::new()];
        // Without recursion: how deep a tree is, its tenant decides.
        while let Some(below) = pending.pop() {
            let (source, target) = (join(from.path, &below), join(to, &below));
            let Some((_, stat)) = look(from.root, &source)? else { continue };
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                let like: Vec<_> = like
                    .iter()
                    .map(|Lower { layer, path }| Lower { layer: *layer, path: join(path, &below) })
                    .collect();
                self.leaf(None, At { root: from.root, path: &source }, &target, &like)?;
                continue;
            }
            let (directory, name) = parent(self.to, &target)?;
            rustix::fs::mkdirat(&directory, &name, Mode::RWXU)?;
            // One that was a subvolume of its own is in no journal, and what stands for it is empty.
            if stat.st_ino != EMPTY_SUBVOLUME {
                pending.extend(names(from.root, &source)?.into_iter().map(|name| below.join(name)));
            }
            directories.push(below);
        }
        // What is made in a directory changes its times, and could inherit from it: so it gets its own last, the deepest first.
        for below in directories.iter().rev() {
            let source = join(from.path, below);
            self.finish(At { root: from.root, path: &source }, &join(to, below), &|name| name != ORIGIN)?;
        }
        Ok(())
    }

    /// Copies something that is no directory. `layer` says where it comes from, if from one of the layers.
    ///
    /// # Errors
    /// As for [`Self::tree`].
    pub fn leaf(&mut self, layer: Option<usize>, from: At<'_>, to: &Path, like: &[Lower]) -> io::Result<()> {
        let (found, stat) = look(from.root, from.path)?.ok_or(Errno::NOENT)?;
        let (directory, name) = parent(self.to, to)?;
        // Whiteouts are all one file, which has nothing to keep.
        if stat.st_nlink > 1 && !is_whiteout(&stat) {
            if let Some(first) = self.links.get(&(layer, stat.st_ino)) {
                let (old, first) = parent(self.to, first)?;
                return Ok(rustix::fs::linkat(&old, first, &directory, &name, AtFlags::empty())?);
            }
            self.links.insert((layer, stat.st_ino), to.to_owned());
        }
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {
                let link = rustix::fs::readlinkat(&found, "", Vec::new())?;
                rustix::fs::symlinkat(link, &directory, &name)?;
            }
            FileType::RegularFile => file(&found, &stat, &directory, &name, self.layers, like)?,
            kind => rustix::fs::mknodat(&directory, &name, kind, Mode::empty(), stat.st_rdev)?,
        }
        metadata(&found, &stat, &directory, &name, &|name| name != ORIGIN)
    }

    /// Gives a directory that is there the owner, mode, times and those attributes of another one that are wanted.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn finish(&self, from: At<'_>, to: &Path, wanted: &dyn Fn(&[u8]) -> bool) -> io::Result<()> {
        let (found, stat) = look(from.root, from.path)?.ok_or(Errno::NOENT)?;
        let (directory, name) = parent(self.to, to)?;
        metadata(&found, &stat, &directory, &name, wanted)
    }
}

/// Makes a directory with the owner, mode, times and attributes of another one, but for those of overlayfs.
///
/// # Errors
/// As the kernel says; `EEXIST` when something is there.
pub fn directory_like(from: At<'_>, to: At<'_>) -> io::Result<()> {
    let (found, stat) = look(from.root, from.path)?.ok_or(Errno::NOENT)?;
    let (directory, name) = parent(to.root, to.path)?;
    rustix::fs::mkdirat(&directory, &name, Mode::RWXU)?;
    metadata(&found, &stat, &directory, &name, &|name| !name.starts_with(OVERLAY))
}

/// Removes what is at a place, with all that is below it and subvolumes in it. `pool` is the root of the pool's mount.
///
/// # Errors
/// As the kernel says.
pub fn remove(pool: BorrowedFd<'_>, at: At<'_>) -> io::Result<()> {
    let mut pending = vec![(at.path.to_owned(), false)];
    while let Some((path, emptied)) = pending.pop() {
        let (directory, name) = parent(at.root, &path)?;
        if emptied {
            rustix::fs::unlinkat(&directory, &name, AtFlags::REMOVEDIR)?;
            continue;
        }
        match rustix::fs::unlinkat(&directory, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => continue,
            Err(Errno::ISDIR) => {}
            Err(error) => return Err(error.into()),
        }
        let stat = rustix::fs::statat(&directory, &name, AtFlags::SYMLINK_NOFOLLOW)?;
        if stat.st_ino == SUBVOLUME {
            destroy_tree(pool, directory.as_fd(), &CString::new(name.as_bytes())?)?;
            continue;
        }
        pending.push((path.clone(), true));
        pending.extend(names(at.root, &path)?.into_iter().map(|name| (path.join(name), false)));
    }
    Ok(())
}

/// The directory that a path is in, and the name there.
///
/// # Errors
/// As openat2(2).
pub fn parent(root: BorrowedFd<'_>, path: &Path) -> io::Result<(OwnedFd, OsString)> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok((rustix::fs::openat2(root, directory, flags, Mode::empty(), BENEATH)?, name.to_owned()))
}

/// `path.join("")` would end with a slash.
fn join(path: &Path, below: &Path) -> PathBuf {
    if below.as_os_str().is_empty() { path.to_owned() } else { path.join(below) }
}

/// Names in a directory.
///
/// # Errors
/// As the kernel says.
pub fn names(root: BorrowedFd<'_>, path: &Path) -> io::Result<Vec<OsString>> {
    let directory = open_beneath(root, if path.as_os_str().is_empty() { Path::new(".") } else { path })?;
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        if entry.file_name() != c"." && entry.file_name() != c".." {
            names.push(OsStr::from_bytes(entry.file_name().to_bytes()).to_owned());
        }
    }
    Ok(names)
}

fn file(
    found: &OwnedFd,
    stat: &Stat,
    directory: &OwnedFd,
    name: &OsStr,
    layers: &[OwnedFd],
    like: &[Lower],
) -> io::Result<()> {
    let from = reopen(found.as_fd(), OFlags::RDONLY)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let to = File::from(rustix::fs::openat(directory, name, flags, Mode::RUSR | Mode::WUSR)?);
    let all = extents::extents(from.as_fd())?;
    let shared = if all.iter().any(|extent| extent.place.is_some()) { lying_in(layers, like)? } else { Vec::new() };
    let size = stat.st_size as u64;
    for extent in all.iter().filter(|extent| !extent.unwritten) {
        let length = extent.length.min(size.saturating_sub(extent.offset));
        if length == 0 {
            continue;
        }
        let lies_in = |layer: &Extent| match (extent.place, layer.place) {
            (Some(place), Some(begin)) => begin <= place && place + extent.length <= begin + layer.length,
            _ => false,
        };
        let share = shared.iter().any(lies_in)
            && extents::clone_range(from.as_fd(), extent.offset, length, to.as_fd(), extent.offset).is_ok();
        if !share {
            copy(&from, &to, extent.offset, length)?;
        }
    }
    to.set_len(size)?;
    for extent in all.iter().filter(|extent| extent.unwritten) {
        rustix::fs::fallocate(&to, FallocateFlags::KEEP_SIZE, extent.offset, extent.length)?;
    }
    Ok(())
}

/// The blocks of the files in the layers that may share data with a file.
fn lying_in(layers: &[OwnedFd], like: &[Lower]) -> io::Result<Vec<Extent>> {
    let mut all = Vec::new();
    for Lower { layer, path } in like {
        let Some(root) = layers.get(*layer) else { continue };
        let Ok(Some((found, stat))) = look(root.as_fd(), path) else { continue };
        if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
            all.extend(extents::extents(reopen(found.as_fd(), OFlags::RDONLY)?.as_fd())?);
        }
    }
    Ok(all)
}

fn copy(from: &File, to: &File, offset: u64, length: u64) -> io::Result<()> {
    let mut buffer = vec![0; PIECE.min(usize::try_from(length).unwrap_or(PIECE))];
    let mut done = 0;
    while done < length {
        let want = buffer.len().min(usize::try_from(length - done).unwrap_or(usize::MAX));
        let piece = &mut buffer[..want];
        from.read_exact_at(piece, offset + done)?;
        to.write_all_at(piece, offset + done)?;
        done += want as u64;
    }
    Ok(())
}

/// Owner, mode, attributes and times, in this order: a new owner takes mode bits and capabilities away.
fn metadata(
    found: &OwnedFd,
    stat: &Stat,
    directory: &OwnedFd,
    name: &OsStr,
    wanted: &dyn Fn(&[u8]) -> bool,
) -> io::Result<()> {
    let there = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
    // What it was made with comes from the directory that it was made in.
    for inherited in INHERITED {
        match rustix::fs::lremovexattr(&there, inherited) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let (user, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::chownat(directory, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        // Nobody but us is at it, and it was just made: no link.
        rustix::fs::chmod(&there, Mode::from_raw_mode(stat.st_mode))?;
    }
    let of = format!("/proc/self/fd/{}", found.as_raw_fd());
    let mut names = vec![0; 64 << 10];
    let length = rustix::fs::listxattr(&of, &mut names[..])?;
    for attribute in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty() && wanted(name)) {
        let mut value = vec![0; 64 << 10];
        let length = rustix::fs::getxattr(&of, attribute, &mut value[..])?;
        rustix::fs::lsetxattr(&there, OsStr::from_bytes(attribute), &value[..length], XattrFlags::empty())?;
    }
    let time = |seconds, nanoseconds| Timespec { tv_sec: seconds, tv_nsec: nanoseconds as _ };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    Ok(rustix::fs::utimensat(directory, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}
