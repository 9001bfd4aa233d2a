//! Writes the entries of a tree as an OCI layer: a PAX archive with owners, modes, times, hard links and every extended
//! attribute; what a lower layer has and this one has not is hidden by whiteouts
//! (image-spec, `layer.md`). Written twice from the same tree it is the same to the byte.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};

use super::difference::Change;
use super::tree::{Entry, Kind, Tree};

/// Longest name that the header itself holds; longer ones travel in a PAX record.
const HEADER_NAME: usize = 100;

/// Writes `changes` of the tree at `root` to `out` as an uncompressed archive.
pub fn write(root: &Path, tree: &Tree, changes: &[Change], out: impl Write) -> Result<(), LayerError> {
    let mut archive = Builder::new(out);
    let mut linked: HashMap<(u64, u64), &Path> = HashMap::new();
    for change in changes {
        let path = change.path();
        let cannot = |source| LayerError { path: path.into(), source };
        match change {
            Change::Remove(path) => whiteout(&mut archive, path).map_err(cannot)?,
            Change::Put(path) => {
                let entry = tree.get(path).ok_or_else(|| cannot(io::ErrorKind::NotFound.into()))?;
                put(&mut archive, root, path, entry, &mut linked).map_err(cannot)?;
            }
        }
    }
    let cannot = |source| LayerError { path: PathBuf::new(), source };
    archive.into_inner().and_then(|mut out| out.flush()).map_err(cannot)
}

fn put<'t>(
    archive: &mut Builder<impl Write>,
    root: &Path,
    path: &'t Path,
    entry: &Entry,
    linked: &mut HashMap<(u64, u64), &'t Path>,
) -> io::Result<()> {
    let mut header = header(entry);
    match &entry.kind {
        Kind::Directory => {
            header.set_entry_type(EntryType::Directory);
            append(archive, header, path, None, entry, io::empty())
        }
        Kind::Link(to) => {
            header.set_entry_type(EntryType::Symlink);
            header.set_mode(0o777);
            append(archive, header, path, Some(to), entry, io::empty())
        }
        Kind::File { size, .. } => {
            if let Some(first) = linked.get(&entry.inode) {
                header.set_entry_type(EntryType::Link);
                return append(archive, header, path, Some(first), entry, io::empty());
            }
            linked.insert(entry.inode, path);
            header.set_entry_type(EntryType::Regular);
            header.set_size(*size);
            append(archive, header, path, None, entry, File::open(root.join(path))?)
        }
        // Devices belong to the machine; what runs the environment mounts its own.
        Kind::Special => Ok(()),
    }
}

fn whiteout(archive: &mut Builder<impl Write>, path: &Path) -> io::Result<()> {
    let mut name = std::ffi::OsString::from(".wh.");
    name.push(path.file_name().unwrap_or_default());
    let hidden = Entry {
        kind: Kind::Special,
        mode: 0o644,
        owner: (0, 0),
        modified: 0,
        xattrs: std::collections::BTreeMap::new(),
        inode: (0, 0),
    };
    let mut header = header(&hidden);
    header.set_entry_type(EntryType::Regular);
    append(archive, header, &path.with_file_name(name), None, &hidden, io::empty())
}

fn header(entry: &Entry) -> Header {
    let mut header = Header::new_ustar();
    header.set_mode(entry.mode);
    header.set_uid(entry.owner.0);
    header.set_gid(entry.owner.1);
    header.set_mtime(entry.modified);
    header.set_size(0);
    header
}

/// Appends one entry, with a PAX header before it if its names or attributes ask for one.
fn append(
    archive: &mut Builder<impl Write>,
    mut header: Header,
    path: &Path,
    target: Option<&Path>,
    entry: &Entry,
    content: impl io::Read,
) -> io::Result<()> {
    let records = records(path, target, entry);
    if !records.is_empty() {
        archive.append_pax_extensions(records.iter().map(|(name, value)| (name.as_str(), value.as_slice())))?;
    }
    let fields = header.as_old_mut();
    fill(&mut fields.name, path.as_os_str().as_bytes());
    if let Some(target) = target {
        fill(&mut fields.linkname, target.as_os_str().as_bytes());
    }
    header.set_cksum();
    archive.append(&header, content)
}

/// What the header cannot say.
fn records(path: &Path, target: Option<&Path>, entry: &Entry) -> Vec<(String, Vec<u8>)> {
    let mut records = Vec::new();
    for (name, value) in [("path", Some(path)), ("linkpath", target)] {
        if let Some(value) = value.map(|value| value.as_os_str().as_bytes())
            && value.len() > HEADER_NAME
        {
            records.push((name.to_owned(), value.to_vec()));
        }
    }
    records.extend(entry.xattrs.iter().map(|(name, value)| (format!("SCHILY.xattr.{name}"), value.clone())));
    records
}

/// Copies as much of a name as the field holds: all of it, or a part that a PAX record replaces.
fn fill(field: &mut [u8; HEADER_NAME], name: &[u8]) {
    let length = name.len().min(HEADER_NAME);
    field[..length].copy_from_slice(&name[..length]);
}

/// A layer could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write '{path}' into a layer of the template; is there room in the cache?", path = .path.display())]
pub struct LayerError {
    path: PathBuf,
    source: io::Error,
}
