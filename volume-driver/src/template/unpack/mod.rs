//! Unpacking one layer into an empty directory, as overlayfs wants it: whiteouts become 0/0 character devices, opaque
//! directories get `trusted.overlay.opaque`.
//!
//! A layer is hostile until proven otherwise. Each name is resolved beneath the layer's root by openat2(2) without
//! symbolic links, parent by parent, and what is made there is made new: nothing that the layer holds can make it write,
//! link or look anywhere else. Entries, bytes and names are limited. What is not refused is reproduced: owners, modes
//! with set-user-ID, times, hard links, holes, devices, `user.*` attributes, file capabilities, access control lists.
//! Attributes in other name spaces (`security.selinux`, ...) mean nothing on another machine and are left out.

mod acl;
mod archive;
mod path;
mod pax;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use crate::pool::PoolError;
use archive::{Archive, Attribute, Entry, Kind};
use path::Meaning;

/// Holes are kept where this many bytes at once are zero: the block of the pool's file system.
const HOLE: usize = 4096;
/// Data is copied in pieces of so many bytes.
const CHUNK: usize = 256 * 1024;
/// Room in the pool is checked each time that so many bytes were written.
const CHECK_EVERY: u64 = 32 << 20;
/// Mode bits of a directory that the archive implies and does not describe.
const IMPLIED: u32 = 0o755;

/// Why a layer was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// It tries something that no honest layer does.
    #[error(
        "entry '{entry}' of the layer is refused: {why}. No honest image has that: do not trust it, or build it anew"
    )]
    Hostile {
        /// Name of the entry.
        entry: String,
        /// What is wrong with it.
        why: String,
    },
    /// It is larger than allowed.
    #[error(
        "the layer holds more than {limit} {unit}: make the image smaller, or raise node.layers in the chart's values"
    )]
    TooLarge {
        /// How many are allowed.
        limit: u64,
        /// Of what.
        unit: &'static str,
    },
    /// It cannot be read.
    #[error("the layer cannot be read behind entry '{entry}': {source}")]
    Corrupt {
        /// Name of the last entry.
        entry: String,
        /// What is wrong.
        source: io::Error,
    },
    /// The pool refuses.
    #[error("cannot {attempt} for entry '{entry}' of the layer: {source}")]
    Io {
        /// What was tried.
        attempt: &'static str,
        /// Name of the entry.
        entry: String,
        /// Why not.
        source: io::Error,
    },
    /// No room.
    #[error(transparent)]
    Pool(#[from] PoolError),
}

/// What a layer may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Files, directories and others, those that are only implied included.
    pub entries: u64,
    /// Bytes of content.
    pub bytes: u64,
}

/// What a layer held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Files, directories and others.
    pub entries: u64,
    /// Bytes of content.
    pub bytes: u64,
}

/// Unpacks a tar stream into the empty directory `root`. `has_room` is asked now and then whether there still is
/// some, with the bytes that were written so far.
///
/// # Errors
/// Any [`UnpackError`]; what was made until then is left for the caller to destroy.
pub fn unpack(
    root: BorrowedFd<'_>,
    reader: impl Read,
    limits: Limits,
    has_room: &mut dyn FnMut(u64) -> Result<(), PoolError>,
) -> Result<Totals, UnpackError> {
    let mut unpacker = Unpacker {
        root,
        limits,
        has_room,
        totals: Totals::default(),
        unchecked: 0,
        directories: Vec::new(),
        name: String::new(),
        buffer: vec![0; CHUNK],
    };
    let mut archive = Archive::new(reader);
    loop {
        let next = archive.next();
        match next.map_err(|source| UnpackError::Corrupt { entry: unpacker.name.clone(), source })? {
            Some(entry) => unpacker.entry(&entry, &mut archive)?,
            None => break,
        }
    }
    unpacker.finish()
}

/// What is set on a thing after it was made.
struct Metadata {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: (i64, u32),
    xattrs: Vec<Attribute>,
}

struct Unpacker<'a> {
    root: BorrowedFd<'a>,
    limits: Limits,
    has_room: &'a mut dyn FnMut(u64) -> Result<(), PoolError>,
    totals: Totals,
    /// Bytes written since room was last asked for.
    unchecked: u64,
    /// Times of directories, set when nothing is put into them any more.
    directories: Vec<(PathBuf, (i64, u32))>,
    /// The entry at hand, for messages.
    name: String,
    buffer: Vec<u8>,
}

impl Unpacker<'_> {
    fn entry(&mut self, entry: &Entry, data: &mut impl Read) -> Result<(), UnpackError> {
        self.name = String::from_utf8_lossy(&entry.path).into_owned();
        self.count()?;
        let path = path::relative(&entry.path).map_err(|why| self.hostile(why))?;
        let metadata = Metadata {
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            xattrs: self.xattrs(&entry.xattrs)?,
        };
        let (Some(name), Some(parent)) = (path.file_name(), path.parent()) else {
            if entry.kind != Kind::Directory {
                return Err(self.hostile("the root of a layer must be a directory"));
            }
            let root = self.reopen(self.root)?;
            self.describe(root.as_fd(), &metadata)?;
            self.directories.push((PathBuf::new(), metadata.mtime));
            return Ok(());
        };
        if path::in_whiteout(parent) {
            return Err(self.hostile("it lies in a directory with the name of a whiteout"));
        }
        let directory = self.directory(parent)?;
        match path::meaning(name).map_err(|why| self.hostile(why))? {
            Meaning::Opaque => return self.make_opaque(directory.as_fd()),
            Meaning::Whiteout(name) => return self.whiteout(directory.as_fd(), name),
            Meaning::Plain => {}
        }
        // A layer that was made from overlayfs has whiteouts in that form.
        if entry.kind == Kind::Char && entry.device == (0, 0) {
            return self.whiteout(directory.as_fd(), name);
        }
        self.make(&entry.kind_of(&path), directory.as_fd(), name, &metadata, data)
    }

    /// Makes one thing that is not a whiteout.
    fn make(
        &mut self,
        what: &Thing<'_>,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        metadata: &Metadata,
        data: &mut impl Read,
    ) -> Result<(), UnpackError> {
        let was = self.clear(parent, name, matches!(what, Thing::Directory(_)))?;
        match what {
            Thing::Directory(path) => {
                if was != Was::Directory {
                    rustix::fs::mkdirat(parent, name, Mode::RWXU).map_err(self.io("make a directory"))?;
                }
                let made = self.open(parent, name, OFlags::RDONLY | OFlags::DIRECTORY)?;
                if was == Was::Whiteout {
                    self.make_opaque(made.as_fd())?;
                }
                self.describe(made.as_fd(), metadata)?;
                self.directories.push(((*path).to_owned(), metadata.mtime));
                Ok(())
            }
            Thing::File { size, segments } => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file =
                    rustix::fs::openat(parent, name, flags, Mode::RUSR | Mode::WUSR).map_err(self.io("make a file"))?;
                let file = File::from(file);
                self.copy(&file, *size, *segments, data)?;
                self.describe(file.as_fd(), metadata)?;
                rustix::fs::futimens(&file, &times(metadata.mtime)).map_err(self.io("set the times"))
            }
            Thing::HardLink(target) => self.link(target, parent, name),
            Thing::Symlink(target) => {
                rustix::fs::symlinkat(OsStr::from_bytes(target), parent, name)
                    .map_err(self.io("make a symbolic link"))?;
                self.describe_by_name(parent, name, metadata)
            }
            Thing::Node(kind, device) => {
                rustix::fs::mknodat(parent, name, *kind, Mode::RUSR | Mode::WUSR, *device)
                    .map_err(self.io("make a device or pipe"))?;
                self.describe_by_name(parent, name, metadata)?;
                rustix::fs::chmodat(parent, name, mode(metadata.mode), AtFlags::empty())
                    .map_err(self.io("set the mode"))
            }
        }
    }

    /// Removes what an earlier entry of the same name made. Of one kind they may follow each other, as when an archive was
    /// appended to; a directory that turns into something else, or the other way round, is a trick.
    fn clear(&self, parent: BorrowedFd<'_>, name: &OsStr, for_directory: bool) -> Result<Was, UnpackError> {
        let stat = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(Was::Nothing),
            Err(error) => return Err(self.io("inspect what was there")(error)),
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        let whiteout = kind == FileType::CharacterDevice && stat.st_rdev == 0;
        match (kind == FileType::Directory, for_directory) {
            (true, true) => return Ok(Was::Directory),
            (true, false) => return Err(self.hostile("it replaces a directory of the same layer")),
            (false, true) if !whiteout => {
                return Err(self.hostile("it is a directory that replaces a file of the same layer"));
            }
            (false, _) => {}
        }
        rustix::fs::unlinkat(parent, name, AtFlags::empty()).map_err(self.io("replace an earlier entry"))?;
        Ok(if whiteout { Was::Whiteout } else { Was::Nothing })
    }

    fn whiteout(&self, parent: BorrowedFd<'_>, name: &OsStr) -> Result<(), UnpackError> {
        match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            // What the layer itself has under the name stays; of a directory nothing that lies below shows through.
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                let directory = self.open(parent, name, OFlags::RDONLY | OFlags::DIRECTORY)?;
                self.make_opaque(directory.as_fd())
            }
            Ok(_) => Ok(()),
            Err(Errno::NOENT) => rustix::fs::mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), 0)
                .map_err(self.io("make a whiteout")),
            Err(error) => Err(self.io("inspect what is there")(error)),
        }
    }

    fn make_opaque(&self, directory: BorrowedFd<'_>) -> Result<(), UnpackError> {
        rustix::fs::fsetxattr(directory, c"trusted.overlay.opaque", b"y", XattrFlags::empty())
            .map_err(self.io("make a directory opaque"))
    }

    fn link(&self, target: &[u8], parent: BorrowedFd<'_>, name: &OsStr) -> Result<(), UnpackError> {
        let target =
            path::relative(target).map_err(|why| self.hostile(format!("the target of the hard link: {why}")))?;
        let (Some(target_name), Some(target_parent)) = (target.file_name(), target.parent()) else {
            return Err(self.hostile("it is a hard link to the root"));
        };
        let missing =
            || self.hostile(format!("it is a hard link to '{}', which the layer does not hold", target.display()));
        let directory = match self.resolve(target_parent) {
            Ok(directory) => directory,
            Err(Errno::NOENT) => return Err(missing()),
            Err(Errno::LOOP | Errno::NOTDIR | Errno::XDEV) => {
                return Err(self.hostile("it is a hard link through a symbolic link or a file"));
            }
            Err(error) => return Err(self.io("find the target of a hard link")(error)),
        };
        match rustix::fs::linkat(&directory, target_name, parent, name, AtFlags::empty()) {
            Ok(()) => Ok(()),
            Err(Errno::NOENT) => Err(missing()),
            Err(Errno::PERM) => Err(self.hostile("it is a hard link to a directory")),
            Err(error) => Err(self.io("make a hard link")(error)),
        }
    }

    /// Writes the data of a file; blocks of zeros become holes.
    fn copy(
        &mut self,
        file: &File,
        size: u64,
        segments: Option<&[(u64, u64)]>,
        data: &mut impl Read,
    ) -> Result<(), UnpackError> {
        let whole = [(0, size)];
        for (offset, length) in segments.unwrap_or(&whole) {
            let (mut at, end) = (*offset, offset + length);
            while at < end {
                // Up to a boundary of blocks, so that whole blocks can be told to be zero.
                let most = (end - at).min(CHUNK as u64 - at % HOLE as u64) as usize;
                let mut chunk = std::mem::take(&mut self.buffer);
                let read = data.read_exact(&mut chunk[..most]);
                let written = read
                    .map_err(|source| UnpackError::Corrupt { entry: self.name.clone(), source })
                    .and_then(|()| self.account(most as u64))
                    .and_then(|()| self.write(file, at, &chunk[..most]));
                self.buffer = chunk;
                written?;
                at += most as u64;
            }
        }
        file.set_len(size).map_err(self.io("set the length of a file"))
    }

    fn write(&self, mut file: &File, at: u64, data: &[u8]) -> Result<(), UnpackError> {
        let mut start = 0;
        while start < data.len() {
            let block = HOLE - (at as usize + start) % HOLE;
            let end = data.len().min(start + block);
            let zero = |range: &[u8]| range.iter().all(|byte| *byte == 0);
            if zero(&data[start..end]) {
                start = end;
                continue;
            }
            let mut stop = end;
            while stop < data.len() && !zero(&data[stop..data.len().min(stop + HOLE)]) {
                stop = data.len().min(stop + HOLE);
            }
            io::Seek::seek(&mut file, io::SeekFrom::Start(at + start as u64)).map_err(self.io("write a file"))?;
            file.write_all(&data[start..stop]).map_err(self.io("write a file"))?;
            start = stop;
        }
        Ok(())
    }

    fn account(&mut self, bytes: u64) -> Result<(), UnpackError> {
        self.totals.bytes += bytes;
        if self.totals.bytes > self.limits.bytes {
            return Err(UnpackError::TooLarge { limit: self.limits.bytes, unit: "bytes" });
        }
        self.unchecked += bytes;
        if self.unchecked >= CHECK_EVERY {
            self.unchecked = 0;
            (self.has_room)(self.totals.bytes)?;
        }
        Ok(())
    }

    fn count(&mut self) -> Result<(), UnpackError> {
        self.totals.entries += 1;
        if self.totals.entries > self.limits.entries {
            return Err(UnpackError::TooLarge { limit: self.limits.entries, unit: "entries" });
        }
        // An entry without data takes room as well.
        self.unchecked += 1024;
        Ok(())
    }

    /// The directory of a path, made if the archive only implies it.
    fn directory(&mut self, path: &Path) -> Result<OwnedFd, UnpackError> {
        let through = |this: &Self| this.hostile("it would be written through a symbolic link or a file of the layer");
        match self.resolve(path) {
            Ok(directory) => return Ok(directory),
            Err(Errno::NOENT) => {}
            Err(Errno::LOOP | Errno::NOTDIR | Errno::XDEV) => return Err(through(self)),
            Err(error) => return Err(self.io("find the directory")(error)),
        }
        let mut directory = self.reopen(self.root)?;
        for name in path {
            match rustix::fs::mkdirat(&directory, name, Mode::RWXU) {
                Ok(()) => {
                    self.count()?;
                    directory = self.open(directory.as_fd(), name, OFlags::RDONLY | OFlags::DIRECTORY)?;
                    rustix::fs::fchmod(&directory, mode(IMPLIED)).map_err(self.io("set the mode"))?;
                }
                Err(Errno::EXIST) => {
                    directory = match Self::open_raw(directory.as_fd(), name, OFlags::RDONLY | OFlags::DIRECTORY) {
                        Ok(directory) => directory,
                        Err(Errno::LOOP | Errno::NOTDIR) => return Err(through(self)),
                        Err(error) => return Err(self.io("find the directory")(error)),
                    };
                }
                Err(error) => return Err(self.io("make a directory")(error)),
            }
        }
        Ok(directory)
    }

    /// A directory that is there, through directories alone.
    fn resolve(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        rustix::fs::openat2(
            self.root,
            path,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV,
        )
    }

    fn open_raw(parent: BorrowedFd<'_>, name: &OsStr, flags: OFlags) -> Result<OwnedFd, Errno> {
        rustix::fs::openat(parent, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
    }

    fn open(&self, parent: BorrowedFd<'_>, name: &OsStr, flags: OFlags) -> Result<OwnedFd, UnpackError> {
        Self::open_raw(parent, name, flags).map_err(self.io("open what was made"))
    }

    fn reopen(&self, directory: BorrowedFd<'_>) -> Result<OwnedFd, UnpackError> {
        self.open(directory, OsStr::new("."), OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// Owner, mode and attributes of a file or directory. In this order: a change of owner takes set-user-ID bits and
    /// capabilities away.
    fn describe(&self, fd: BorrowedFd<'_>, metadata: &Metadata) -> Result<(), UnpackError> {
        let (uid, gid) = (Uid::from_raw(metadata.uid), Gid::from_raw(metadata.gid));
        rustix::fs::fchown(fd, Some(uid), Some(gid)).map_err(self.io("set the owner"))?;
        rustix::fs::fchmod(fd, mode(metadata.mode)).map_err(self.io("set the mode"))?;
        for (name, value) in &metadata.xattrs {
            rustix::fs::fsetxattr(fd, OsStr::from_bytes(name), value, XattrFlags::empty())
                .map_err(self.io("set an extended attribute"))?;
        }
        Ok(())
    }

    /// Owner, attributes and times of what cannot be opened. No other process changes the tree, so the name still is what
    /// was made a moment ago.
    fn describe_by_name(&self, parent: BorrowedFd<'_>, name: &OsStr, metadata: &Metadata) -> Result<(), UnpackError> {
        let (uid, gid) = (Uid::from_raw(metadata.uid), Gid::from_raw(metadata.gid));
        rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(self.io("set the owner"))?;
        if !metadata.xattrs.is_empty() {
            let mut path = PathBuf::from(format!("/proc/self/fd/{}", parent.as_raw_fd()));
            path.push(name);
            for (attribute, value) in &metadata.xattrs {
                match rustix::fs::lsetxattr(&path, OsStr::from_bytes(attribute), value, XattrFlags::empty()) {
                    // The kernel allows `user.*` on files and directories alone.
                    Ok(()) | Err(Errno::PERM | Errno::OPNOTSUPP) => {}
                    Err(error) => return Err(self.io("set an extended attribute")(error)),
                }
            }
        }
        rustix::fs::utimensat(parent, name, &times(metadata.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(self.io("set the times"))
    }

    /// Those attributes that are kept. Attributes of overlayfs in a layer could make it show what lies elsewhere.
    fn xattrs(&self, all: &[Attribute]) -> Result<Vec<Attribute>, UnpackError> {
        let mut kept = Vec::new();
        for (name, value) in all {
            if name.contains(&0) || name.len() > 255 {
                return Err(self.hostile("the name of an extended attribute is not one"));
            }
            if name.starts_with(b"trusted.overlay.") {
                return Err(self.hostile("it has an attribute that controls overlayfs"));
            }
            let known = matches!(
                name.as_slice(),
                b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default"
            );
            if known || name.starts_with(b"user.") {
                kept.push((name.clone(), value.clone()));
            }
        }
        Ok(kept)
    }

    /// Sets the times of directories and asks for room a last time.
    fn finish(mut self) -> Result<Totals, UnpackError> {
        (self.has_room)(self.totals.bytes)?;
        for (path, mtime) in std::mem::take(&mut self.directories) {
            self.name = path.display().to_string();
            let directory = self.resolve(&path).map_err(self.io("find a directory"))?;
            rustix::fs::futimens(&directory, &times(mtime)).map_err(self.io("set the times"))?;
        }
        Ok(self.totals)
    }

    fn hostile(&self, why: impl Into<String>) -> UnpackError {
        UnpackError::Hostile { entry: self.name.clone(), why: why.into() }
    }

    fn io<E: Into<io::Error>>(&self, attempt: &'static str) -> impl FnOnce(E) -> UnpackError + use<E> {
        let entry = self.name.clone();
        move |source| UnpackError::Io { attempt, entry, source: source.into() }
    }
}

/// What was under a name before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Was {
    Nothing,
    Directory,
    Whiteout,
}

/// What an entry makes.
enum Thing<'a> {
    Directory(&'a Path),
    File { size: u64, segments: Option<&'a [(u64, u64)]> },
    HardLink(&'a [u8]),
    Symlink(&'a [u8]),
    Node(FileType, u64),
}

impl Entry {
    fn kind_of<'a>(&'a self, path: &'a Path) -> Thing<'a> {
        let device = rustix::fs::makedev(self.device.0, self.device.1);
        match self.kind {
            Kind::Directory => Thing::Directory(path),
            Kind::File => Thing::File { size: self.size, segments: self.segments.as_deref() },
            Kind::HardLink => Thing::HardLink(&self.link),
            Kind::Symlink => Thing::Symlink(&self.link),
            Kind::Char => Thing::Node(FileType::CharacterDevice, device),
            Kind::Block => Thing::Node(FileType::BlockDevice, device),
            Kind::Fifo => Thing::Node(FileType::Fifo, 0),
        }
    }
}

fn mode(bits: u32) -> Mode {
    Mode::from_raw_mode(bits & 0o7777)
}

fn times((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: i64::from(nanoseconds) };
    Timestamps { last_access: time, last_modification: time }
}
