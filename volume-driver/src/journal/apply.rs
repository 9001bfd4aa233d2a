//! Carries a transaction out in a subvolume.
//!
//! The file was checked as a whole before, so each operation is well formed; but what is in the tree, and what is in the
//! file, was chosen by a tenant. Nothing is therefore ever reached through a symbolic link, a magic link or a mount
//! (`openat2` with `RESOLVE_BENEATH | NO_SYMLINKS | NO_MAGICLINKS | NO_XDEV`), and nothing is opened for data before it
//! is known to be a regular file: a device node or fifo of the tenant's is never opened. The caller owns the tree alone
//! while this works.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rustix::fs::{AtFlags, FallocateFlags, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use vivarium_journal::TreePath;
use vivarium_journal::op::{Op, Range, Time};
use vivarium_journal::read::{ReadError, Transaction};
use vivarium_sys::extents;

/// Bytes that are copied at a time where data cannot be shared.
const COPY: usize = 128 << 10;

/// Attributes of a directory that the kernel hands down, and to which attributes of what is made in it.
const HANDED_DOWN: [(&str, &[&str]); 2] = [
    ("system.posix_acl_default", &["system.posix_acl_access", "system.posix_acl_default"]),
    ("btrfs.compression", &["btrfs.compression"]),
];

/// Why a transaction could not be carried out. The subvolume is then in no useful state.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The file.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// An operation.
    #[error("operation {number} of transaction {sequence} cannot be carried out: {attempt} '{path}': {source}")]
    Op {
        /// Number of the transaction.
        sequence: u64,
        /// Number of the operation, from 0.
        number: u64,
        /// What was tried.
        attempt: &'static str,
        /// On what.
        path: String,
        /// Why not.
        source: io::Error,
    },
}

/// A subvolume that transactions are applied to.
#[derive(Debug)]
pub struct Target {
    root: OwnedFd,
    /// Layers of the template, lowest first, as in the headers of the transactions.
    layers: Vec<OwnedFd>,
    /// The directory that was used last.
    directory: Option<(Vec<u8>, OwnedFd)>,
    /// The regular file that was written last.
    file: Option<(Vec<u8>, File)>,
}

impl Target {
    /// The subvolume with the root `root`, and the roots of the template's layers, lowest first.
    #[must_use]
    pub fn new(root: OwnedFd, layers: Vec<OwnedFd>) -> Self {
        Self { root, layers, directory: None, file: None }
    }

    /// Carries out a whole transaction.
    ///
    /// # Errors
    /// [`ApplyError`]; the subvolume is to be thrown away then.
    pub fn apply<R: Read + Seek>(&mut self, transaction: &mut Transaction<R>) -> Result<(), ApplyError> {
        let sequence = transaction.header().sequence;
        let mut number = 0;
        let result = transaction.each(|op| {
            self.carry_out(op).map_err(|source| ApplyError::Op {
                sequence,
                number,
                attempt: attempt(op),
                path: op.path().to_string(),
                source,
            })?;
            number += 1;
            Ok(())
        });
        self.forget();
        result
    }

    fn forget(&mut self) {
        self.directory = None;
        self.file = None;
    }

    fn carry_out(&mut self, op: &Op<'_>) -> io::Result<()> {
        match *op {
            Op::MakeFile(path) => self.make(path, FileType::RegularFile, 0),
            Op::MakeFifo(path) => self.make(path, FileType::Fifo, 0),
            Op::MakeSocket(path) => self.make(path, FileType::Socket, 0),
            Op::MakeDevice { path, character, major, minor } => {
                let kind = if character { FileType::CharacterDevice } else { FileType::BlockDevice };
                self.make(path, kind, rustix::fs::makedev(major, minor))
            }
            Op::MakeDirectory(path) => {
                let (directory, name) = self.parent(path)?;
                rustix::fs::mkdirat(directory, name, Mode::RWXU)?;
                self.disinherit(path)
            }
            Op::MakeSymlink { path, target } => {
                let (directory, name) = self.parent(path)?;
                Ok(rustix::fs::symlinkat(OsStr::from_bytes(target), directory, name)?)
            }
            Op::Rename { from, to } => {
                self.forget();
                let old = open_directory(self.root.as_fd(), from)?;
                let (new, name) = self.parent(to)?;
                rustix::fs::renameat(&old, name_of(from)?, new, name)?;
                self.forget();
                Ok(())
            }
            Op::Link { existing, path } => {
                let old = open_directory(self.root.as_fd(), existing)?;
                let (new, name) = self.parent(path)?;
                Ok(rustix::fs::linkat(&old, name_of(existing)?, new, name, AtFlags::empty())?)
            }
            Op::Unlink(path) => {
                self.file = None;
                let (directory, name) = self.parent(path)?;
                Ok(rustix::fs::unlinkat(directory, name, AtFlags::empty())?)
            }
            Op::RemoveDirectory(path) => {
                self.forget();
                let (directory, name) = self.parent(path)?;
                rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR)?;
                self.forget();
                Ok(())
            }
            Op::Write { path, offset, data } => self.file(path)?.write_all_at(data, offset),
            Op::Hole { path, range } => {
                let file = self.file(path)?;
                if file.metadata()?.len() < range.offset + range.length {
                    file.set_len(range.offset + range.length)?;
                }
                let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                Ok(rustix::fs::fallocate(file, mode, range.offset, range.length)?)
            }
            Op::Preallocate { path, range } => {
                let file = self.file(path)?;
                Ok(rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, range.offset, range.length)?)
            }
            Op::Truncate { path, size } => self.file(path)?.set_len(size),
            Op::CloneOwn { path, offset, from, range } => {
                let from = open_data(self.root.as_fd(), from, OFlags::RDONLY)?;
                share(&from, range, self.file(path)?, offset)
            }
            Op::CloneTemplate { path, offset, layer, from, range } => {
                let layer = self.layers.get(layer as usize).ok_or(io::ErrorKind::NotFound)?;
                let from = open_data(layer.as_fd(), from, OFlags::RDONLY)?;
                share(&from, range, self.file(path)?, offset)
            }
            Op::SetXattr { path, name, value } => {
                Ok(rustix::fs::lsetxattr(self.magic(path)?, OsStr::from_bytes(name), value, XattrFlags::empty())?)
            }
            Op::RemoveXattr { path, name } => Ok(rustix::fs::lremovexattr(self.magic(path)?, OsStr::from_bytes(name))?),
            Op::Owner { path, user, group } => {
                let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
                if path.is_root() {
                    return Ok(rustix::fs::fchown(&self.root, Some(user), Some(group))?);
                }
                let (directory, name) = self.parent(path)?;
                Ok(rustix::fs::chownat(directory, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)?)
            }
            Op::Mode { path, mode } => self.set_mode(path, Mode::from_raw_mode(mode)),
            Op::Times { path, access, modification } => {
                let times = Timestamps { last_access: timespec(access), last_modification: timespec(modification) };
                if path.is_root() {
                    return Ok(rustix::fs::futimens(&self.root, &times)?);
                }
                let (directory, name) = self.parent(path)?;
                Ok(rustix::fs::utimensat(directory, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
            }
        }
    }

    fn make(&mut self, path: TreePath<'_>, kind: FileType, device: u64) -> io::Result<()> {
        let (directory, name) = self.parent(path)?;
        rustix::fs::mknodat(directory, name, kind, Mode::RUSR | Mode::WUSR, device)?;
        self.disinherit(path)
    }

    /// Takes from something new what its directory has handed down to it: all that it shall have follows.
    fn disinherit(&mut self, path: TreePath<'_>) -> io::Result<()> {
        let (directory, name) = self.parent(path)?;
        let parent = PathBuf::from(format!("/proc/self/fd/{}/.", directory.as_raw_fd()));
        let mut names = [0; 1024];
        match rustix::fs::listxattr(&parent, &mut names[..]) {
            Ok(length) => {
                let mut names = names[..length].split(|byte| *byte == 0);
                if !names.any(|name| HANDED_DOWN.iter().any(|(from, _)| from.as_bytes() == name)) {
                    return Ok(());
                }
            }
            // More than fits; among them may be one.
            Err(Errno::RANGE) => {}
            Err(error) => return Err(error.into()),
        }
        let new = parent.join(name);
        for attribute in HANDED_DOWN.iter().flat_map(|(_, to)| *to) {
            match rustix::fs::lremovexattr(&new, *attribute) {
                Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Of what is no symbolic link: those have no mode, and through one the mode of something else would be set.
    fn set_mode(&mut self, path: TreePath<'_>, mode: Mode) -> io::Result<()> {
        if path.is_root() {
            return Ok(rustix::fs::fchmod(&self.root, mode)?);
        }
        let (directory, name) = self.parent(path)?;
        let there =
            rustix::fs::openat(directory, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        if FileType::from_raw_mode(rustix::fs::fstat(&there)?.st_mode) == FileType::Symlink {
            return Err(io::Error::other("a symbolic link has no mode"));
        }
        Ok(rustix::fs::chmod(format!("/proc/self/fd/{}", there.as_raw_fd()), mode)?)
    }

    /// The directory that a name is in, and the name.
    fn parent<'p>(&mut self, path: TreePath<'p>) -> io::Result<(BorrowedFd<'_>, &'p OsStr)> {
        let name = name_of(path)?;
        let parent = path.split().map_or(TreePath::ROOT, |(parent, _)| parent);
        if self.directory.as_ref().is_none_or(|(known, _)| known != parent.as_bytes()) {
            let opened = open_directory(self.root.as_fd(), path)?;
            self.directory = Some((parent.as_bytes().to_vec(), opened));
        }
        let (_, directory) = self.directory.as_ref().ok_or(io::ErrorKind::NotFound)?;
        Ok((directory.as_fd(), name))
    }

    /// A path for calls that take no directory: through our own table of open files, then one name that such a call does
    /// not follow.
    fn magic(&mut self, path: TreePath<'_>) -> io::Result<PathBuf> {
        if path.is_root() {
            return Ok(PathBuf::from(format!("/proc/self/fd/{}/.", self.root.as_raw_fd())));
        }
        let (directory, name) = self.parent(path)?;
        Ok(PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name))
    }

    /// A regular file, for writing.
    fn file(&mut self, path: TreePath<'_>) -> io::Result<&File> {
        if self.file.as_ref().is_none_or(|(known, _)| known != path.as_bytes()) {
            let opened = open_data(self.root.as_fd(), path, OFlags::RDWR)?;
            self.file = Some((path.as_bytes().to_vec(), opened));
        }
        Ok(self.file.as_ref().map(|(_, file)| file).ok_or(io::ErrorKind::NotFound)?)
    }
}

fn name_of(path: TreePath<'_>) -> io::Result<&OsStr> {
    path.split().map(|(_, name)| OsStr::from_bytes(name)).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// How every path of a tenant is resolved.
pub(crate) const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// The directory that a name is in.
fn open_directory(root: BorrowedFd<'_>, path: TreePath<'_>) -> io::Result<OwnedFd> {
    let parent = path.split().map_or(TreePath::ROOT, |(parent, _)| parent);
    let parent = if parent.is_root() { std::path::Path::new(".") } else { parent.as_path() };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat2(root, parent, flags, Mode::empty(), BENEATH)?)
}

/// A regular file, opened for its data. Anything else is refused before it is opened.
pub(crate) fn open_data(root: BorrowedFd<'_>, path: TreePath<'_>, access: OFlags) -> io::Result<File> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let there = rustix::fs::openat2(root, path.as_path(), flags, Mode::empty(), BENEATH)?;
    if FileType::from_raw_mode(rustix::fs::fstat(&there)?.st_mode) != FileType::RegularFile {
        return Err(io::Error::other("this is no regular file"));
    }
    reopen(there.as_fd(), access)
}

/// What was opened as a path only, and is known to be a regular file, opened for its data.
pub(crate) fn reopen(there: BorrowedFd<'_>, access: OFlags) -> io::Result<File> {
    let magic = format!("/proc/self/fd/{}", there.as_raw_fd());
    Ok(rustix::fs::open(magic, access | OFlags::NOATIME | OFlags::CLOEXEC, Mode::empty())?.into())
}

/// Shares blocks where the file system can, and copies otherwise (ends of files that lie on no block, another pool).
fn share(from: &File, range: Range, to: &File, offset: u64) -> io::Result<()> {
    match extents::clone_range(from.as_fd(), range.offset, range.length, to.as_fd(), offset) {
        Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::INVAL | Errno::XDEV)) => {}
        other => return other,
    }
    let mut buffer = vec![0; COPY];
    let mut done = 0;
    while done < range.length {
        let want = buffer.len().min(usize::try_from(range.length - done).unwrap_or(usize::MAX));
        from.read_exact_at(&mut buffer[..want], range.offset + done)?;
        to.write_all_at(&buffer[..want], offset + done)?;
        done += want as u64;
    }
    Ok(())
}

fn timespec(time: Time) -> Timespec {
    Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() }
}

fn attempt(op: &Op<'_>) -> &'static str {
    match op {
        Op::MakeFile(_) => "make the file",
        Op::MakeDirectory(_) => "make the directory",
        Op::MakeFifo(_) => "make the fifo",
        Op::MakeSocket(_) => "make the socket",
        Op::MakeSymlink { .. } => "make the symbolic link",
        Op::MakeDevice { .. } => "make the device node",
        Op::Rename { .. } => "rename",
        Op::Link { .. } => "link",
        Op::Unlink(_) => "remove",
        Op::RemoveDirectory(_) => "remove the directory",
        Op::Write { .. } => "write to",
        Op::Hole { .. } => "make a hole in",
        Op::Preallocate { .. } => "reserve room in",
        Op::Truncate { .. } => "set the size of",
        Op::CloneOwn { .. } => "share data of the volume with",
        Op::CloneTemplate { .. } => "share data of the template with",
        Op::SetXattr { .. } => "set an attribute of",
        Op::RemoveXattr { .. } => "remove an attribute of",
        Op::Owner { .. } => "set the owner of",
        Op::Mode { .. } => "set the mode of",
        Op::Times { .. } => "set the times of",
    }
}
