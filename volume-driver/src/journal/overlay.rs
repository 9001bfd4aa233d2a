//! What overlayfs shows under a path, found out without mounting anything: an upper directory on the layers of a template, as
//! `Documentation/filesystems/overlayfs.rst` of the kernel defines it (whiteouts, opaque directories, redirects).
//!
//! All of it is a tenant's: nothing is reached through a link or a mount.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::apply::BENEATH;
use super::copy::{At, names};

/// A directory that hides what is below it: `y`.
pub const OPAQUE: &str = "trusted.overlay.opaque";
/// A directory that shows another one of the layers: its new name beside the old one, or a path from the root.
const REDIRECT: &str = "trusted.overlay.redirect";
/// What a file or directory was a copy of when it was first changed, as a file handle.
pub const ORIGIN: &[u8] = b"trusted.overlay.origin";
/// Attributes of overlayfs itself begin with this.
pub const OVERLAY: &[u8] = b"trusted.overlay.";

/// A place in a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lower {
    /// Which layer, from the lowest, 0.
    pub layer: usize,
    /// Where in it.
    pub path: PathBuf,
}

/// A directory: what is merged to show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    /// Where it is in the upper tree, if it is there.
    pub upper: Option<PathBuf>,
    /// Where it is in the layers, the topmost first.
    pub lowers: Vec<Lower>,
}

/// Something that is no directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Where in the upper tree; none: in a layer.
    pub upper: Option<PathBuf>,
    /// Where in a layer, if it is shown from there.
    pub lower: Option<Lower>,
    /// What it is.
    pub kind: FileType,
}

/// What a name shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A directory.
    Directory(Directory),
    /// Anything else.
    Leaf(Leaf),
}

/// An upper tree on layers.
#[derive(Clone, Copy, Debug)]
pub struct Tree<'a> {
    /// Root of the upper tree; none: nothing is in it.
    pub upper: Option<BorrowedFd<'a>>,
    /// Roots of the layers, lowest first.
    pub layers: &'a [OwnedFd],
}

/// Opens what is at a path, only to look at it; `None`: nothing is.
///
/// # Errors
/// As openat2(2), for example when the path leads through a link.
pub fn look(root: BorrowedFd<'_>, path: &Path) -> io::Result<Option<(OwnedFd, Stat)>> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat2(root, path, flags, Mode::empty(), BENEATH) {
        Ok(found) => {
            let stat = rustix::fs::fstat(&found)?;
            Ok(Some((found, stat)))
        }
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether this hides what is below it, and nothing else.
#[must_use]
pub fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// What one tree of several has under a name.
enum Layered {
    Nothing,
    Hidden,
    Directory { opaque: bool, redirect: Option<PathBuf> },
    Leaf(FileType),
}

fn layered(root: BorrowedFd<'_>, path: &Path) -> io::Result<Layered> {
    let Some((found, stat)) = look(root, path)? else { return Ok(Layered::Nothing) };
    match FileType::from_raw_mode(stat.st_mode) {
        _ if is_whiteout(&stat) => Ok(Layered::Hidden),
        FileType::Directory => Ok(Layered::Directory {
            opaque: attribute(&found, OPAQUE)?.is_some_and(|value| value == b"y"),
            redirect: attribute(&found, REDIRECT)?.map(|value| OsString::from_vec(value).into()),
        }),
        kind => Ok(Layered::Leaf(kind)),
    }
}

fn attribute(directory: &OwnedFd, name: &str) -> io::Result<Option<Vec<u8>>> {
    let mut value = vec![0; 4096];
    // What was opened to look at it has no attributes; its path in our own table has.
    match rustix::fs::getxattr(format!("/proc/self/fd/{}", directory.as_raw_fd()), name, &mut value[..]) {
        Ok(length) => {
            value.truncate(length);
            Ok(Some(value))
        }
        Err(Errno::NODATA) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl Tree<'_> {
    /// The root directory.
    #[must_use]
    pub fn root(&self) -> Directory {
        let lowers = (0..self.layers.len()).rev().map(|layer| Lower { layer, path: PathBuf::new() }).collect();
        Directory { upper: self.upper.map(|_| PathBuf::new()), lowers }
    }

    /// What a name in a directory shows; `None`: nothing.
    ///
    /// # Errors
    /// A tree cannot be read.
    pub fn entry(&self, directory: &Directory, name: &OsStr) -> io::Result<Option<Entry>> {
        let (mut upper, mut below) = (None, None);
        if let (Some(root), Some(path)) = (self.upper, &directory.upper) {
            let path = path.join(name);
            match layered(root, &path)? {
                Layered::Nothing => {}
                Layered::Hidden => return Ok(None),
                Layered::Leaf(kind) => return Ok(Some(Entry::Leaf(Leaf { upper: Some(path), lower: None, kind }))),
                Layered::Directory { opaque: true, .. } => {
                    return Ok(Some(Entry::Directory(Directory { upper: Some(path), lowers: Vec::new() })));
                }
                Layered::Directory { redirect, .. } => (upper, below) = (Some(path), redirect),
            }
        }
        let has_upper = upper.is_some();
        let found = match below {
            Some(path) if path.has_root() => self.layers_under(&path)?,
            Some(other) => self.lower(&directory.lowers, other.as_os_str(), has_upper)?,
            None => self.lower(&directory.lowers, name, has_upper)?,
        };
        Ok(match (upper, found) {
            (Some(upper), Some(Entry::Directory(Directory { lowers, .. }))) => {
                Some(Entry::Directory(Directory { upper: Some(upper), lowers }))
            }
            // Something else below a directory is hidden by it.
            (Some(upper), _) => Some(Entry::Directory(Directory { upper: Some(upper), lowers: Vec::new() })),
            (None, found) => found,
        })
    }

    /// Names that a directory may show: what some of them show may be nothing.
    ///
    /// # Errors
    /// A tree cannot be read.
    pub fn names(&self, directory: &Directory) -> io::Result<BTreeSet<OsString>> {
        let mut all = BTreeSet::new();
        if let (Some(root), Some(path)) = (self.upper, &directory.upper) {
            all.extend(names(root, path)?);
        }
        for Lower { layer, path } in &directory.lowers {
            if let Some(root) = self.layers.get(*layer) {
                all.extend(names(root.as_fd(), path)?);
            }
        }
        Ok(all)
    }

    /// Where the attributes of a directory are those that are seen.
    #[must_use]
    pub fn attributes_of<'b>(&'b self, directory: &'b Directory) -> Option<At<'b>> {
        match (&directory.upper, directory.lowers.first()) {
            (Some(path), _) => Some(At { root: self.upper?, path }),
            (None, Some(Lower { layer, path })) => Some(At { root: self.layers.get(*layer)?.as_fd(), path }),
            (None, None) => None,
        }
    }

    /// What the layers alone show under a path from their root.
    fn layers_under(&self, path: &Path) -> io::Result<Option<Entry>> {
        let mut entry = Entry::Directory(Directory { upper: None, ..self.root() });
        for name in path.components().filter_map(|part| match part {
            std::path::Component::Normal(name) => Some(name),
            _ => None,
        }) {
            let Entry::Directory(Directory { lowers, .. }) = &entry else { return Ok(None) };
            match self.lower(lowers, name, false)? {
                Some(next) => entry = next,
                None => return Ok(None),
            }
        }
        Ok(Some(entry))
    }

    /// What layers show under a name; `under`: a directory lies above.
    fn lower(&self, directories: &[Lower], name: &OsStr, under: bool) -> io::Result<Option<Entry>> {
        let mut lowers = Vec::new();
        for Lower { layer, path } in directories {
            let Some(root) = self.layers.get(*layer) else { continue };
            let place = Lower { layer: *layer, path: path.join(name) };
            match layered(root.as_fd(), &place.path)? {
                Layered::Nothing => {}
                Layered::Hidden => break,
                Layered::Leaf(_) if under || !lowers.is_empty() => break,
                Layered::Leaf(kind) => {
                    return Ok(Some(Entry::Leaf(Leaf { upper: None, lower: Some(place), kind })));
                }
                // No layer that was unpacked here has one.
                Layered::Directory { redirect: Some(_), .. } => {
                    return Err(io::Error::other("a layer of the template has a redirect of overlayfs"));
                }
                Layered::Directory { opaque, .. } => {
                    lowers.push(place);
                    if opaque {
                        break;
                    }
                }
            }
        }
        Ok((!lowers.is_empty()).then_some(Entry::Directory(Directory { upper: None, lowers })))
    }
}
