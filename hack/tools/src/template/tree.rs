//! What a file tree holds, read without following any symbolic link. Two such listings are compared by
//! [`super::difference`]; file contents are compared by digest.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// A tree: relative path to entry, the root itself left out. Parents come before their children.
pub type Tree = BTreeMap<PathBuf, Entry>;

/// One entry of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u64, u64),
    /// Time of the last change of the content, in seconds.
    pub modified: u64,
    /// Extended attributes, access control lists and file capabilities among them.
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// Device and inode number: two files with the same ones are hard links.
    pub inode: (u64, u64),
}

/// Kind of an entry with what distinguishes two of the same kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file by size and digest of its content.
    File {
        /// Bytes.
        size: u64,
        /// SHA-256 of the content.
        digest: [u8; 32],
    },
    /// A symbolic link and where it points.
    Link(PathBuf),
    /// A character or block device, a fifo or a socket: none belongs into a template.
    Special,
}

impl Entry {
    /// Whether an unpacked copy of `self` can stand for `other`. Times count for nothing else, so that a file which a
    /// package script wrote again with the same content is the same file; directories change their time with every
    /// entry, so theirs does not count either.
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        (&self.kind, self.mode, self.owner, &self.xattrs) == (&other.kind, other.mode, other.owner, &other.xattrs)
    }
}

/// Reads a tree.
pub fn read(root: &Path) -> Result<Tree, TreeError> {
    let mut tree = Tree::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(directory) = pending.pop() {
        let place = root.join(&directory);
        let cannot = |source| TreeError { path: place.clone(), source };
        for found in fs::read_dir(&place).map_err(cannot)? {
            let path = directory.join(found.map_err(cannot)?.file_name());
            let entry = entry(&root.join(&path)).map_err(|source| TreeError { path: root.join(&path), source })?;
            if entry.kind == Kind::Directory {
                pending.push(path.clone());
            }
            tree.insert(path, entry);
        }
    }
    Ok(tree)
}

fn entry(path: &Path) -> io::Result<Entry> {
    let metadata = fs::symlink_metadata(path)?;
    Ok(Entry {
        kind: kind(path, &metadata)?,
        mode: metadata.mode() & 0o7777,
        owner: (metadata.uid().into(), metadata.gid().into()),
        modified: metadata.mtime().max(0) as u64,
        xattrs: xattrs(path)?,
        inode: (metadata.dev(), metadata.ino()),
    })
}

fn kind(path: &Path, metadata: &Metadata) -> io::Result<Kind> {
    let of = metadata.file_type();
    if of.is_dir() {
        Ok(Kind::Directory)
    } else if of.is_symlink() {
        Ok(Kind::Link(fs::read_link(path)?))
    } else if of.is_file() {
        let mut hash = Sha256::new();
        io::copy(&mut File::open(path)?, &mut Sink(&mut hash))?;
        Ok(Kind::File { size: metadata.len(), digest: hash.finalize().into() })
    } else {
        debug_assert!(of.is_block_device() || of.is_char_device() || of.is_fifo() || of.is_socket());
        Ok(Kind::Special)
    }
}

/// Every extended attribute of a path, by name.
fn xattrs(path: &Path) -> io::Result<BTreeMap<String, Vec<u8>>> {
    let mut all = BTreeMap::new();
    for name in xattr::list(path)? {
        let value = xattr::get(path, &name)?.unwrap_or_default();
        all.insert(name.to_string_lossy().into_owned(), value);
    }
    // Labels of the building machine's security module say nothing on another machine.
    all.retain(|name, _| name != "security.selinux");
    Ok(all)
}

/// Feeds a digest from a reader.
struct Sink<'a>(&'a mut Sha256);

impl io::Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A tree could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {path} of the template's file tree", path = .path.display())]
pub struct TreeError {
    path: PathBuf,
    source: io::Error,
}
