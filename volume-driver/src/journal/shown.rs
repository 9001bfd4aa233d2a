//! Bringing back what overlayfs has shown, so that it shows that again.
//!
//! What was as in the template could simply be uncovered, and mostly is: the volume's own copy or whiteout goes, and nothing
//! takes its place. But overlayfs knows a directory or file by what it is a copy of in the layers. If something that lies
//! elsewhere now is a copy of the same, because the tenant has renamed it, one of the two would be stale, or even show the
//! content of the other. Then all of what is brought back is made as files of the volume, which are copies of nothing; their data is
//! still shared with the template.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::XattrFlags;
use rustix::io::Errno;
use vivarium_sys::btrfs;

use super::copy::{At, Copier, directory_like, parent};
use super::overlay::{Directory, Entry, Leaf, Lower, OPAQUE, ORIGIN, OVERLAY, Tree, look};

/// What of the template is shown elsewhere than where it is there.
#[derive(Debug, Default)]
pub struct Displaced {
    /// Directories of the template, with everything in them.
    directories: Vec<PathBuf>,
    /// Files of it: number of the subvolume, and of the file.
    files: HashSet<(u64, u64)>,
}

/// Looks through an upper tree, but for what lies at `but`, which is about to go.
///
/// # Errors
/// It cannot be read.
pub fn displaced(tree: Tree<'_>, but: &[PathBuf]) -> io::Result<Displaced> {
    let mut all = Displaced::default();
    let Some(root) = tree.upper else { return Ok(all) };
    let mut pending = vec![tree.root()];
    while let Some(directory) = pending.pop() {
        let Some(path) = &directory.upper else { continue };
        for name in super::copy::names(root, path)? {
            let below = path.join(&name);
            if but.contains(&below) {
                continue;
            }
            match tree.entry(&directory, &name)? {
                Some(Entry::Directory(found)) => {
                    all.directories.extend(found.lowers.iter().map(|lower| lower.path.clone()).filter(|l| *l != below));
                    pending.push(found);
                }
                Some(Entry::Leaf(_)) => all.files.extend(origin(tree, &below)?),
                None => {}
            }
        }
    }
    Ok(all)
}

/// What a file is a copy of.
fn origin(tree: Tree<'_>, path: &Path) -> io::Result<Option<(u64, u64)>> {
    let Some((found, _)) = tree.upper.map(|root| look(root, path)).transpose()?.flatten() else { return Ok(None) };
    let name = std::str::from_utf8(ORIGIN).unwrap_or_default();
    let mut value = [0; 256];
    match rustix::fs::getxattr(format!("/proc/self/fd/{}", found.as_raw_fd()), name, &mut value[..]) {
        Ok(length) => Ok(value.get(..length).and_then(handle)),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Subvolume and number of the file that a handle is of: `struct ovl_fb` of fs/overlayfs/overlayfs.h with a `struct btrfs_fid`
/// of fs/btrfs/export.h in it.
fn handle(value: &[u8]) -> Option<(u64, u64)> {
    const FILE: usize = 21;
    let number = |at: usize| Some(u64::from_le_bytes(value.get(at..at + 8)?.try_into().ok()?));
    Some((number(FILE + 8)?, number(FILE)?))
}

/// Whether a former entry can be uncovered and laid over the template as it was, where its directory is merged from the same.
///
/// # Errors
/// A tree cannot be read.
pub fn can_be_uncovered(tree: Tree<'_>, entry: &Entry, elsewhere: &Displaced) -> io::Result<bool> {
    let numbers = tree.layers.iter().map(|layer| Ok(btrfs::subvolume_info(layer.as_fd())?.id));
    let numbers = numbers.collect::<io::Result<Vec<_>>>()?;
    let mut pending = vec![entry.clone()];
    while let Some(entry) = pending.pop() {
        match entry {
            Entry::Leaf(Leaf { lower: Some(Lower { layer, path }), .. }) => {
                let Some(root) = tree.layers.get(layer) else { continue };
                let found = look(root.as_fd(), &path)?.map(|(_, stat)| stat.st_ino);
                let file = numbers.get(layer).copied().zip(found);
                if file.is_some_and(|file| elsewhere.files.contains(&file)) {
                    return Ok(false);
                }
            }
            Entry::Leaf(_) => {}
            Entry::Directory(directory) => {
                let taken = |lower: &Lower| elsewhere.directories.iter().any(|taken| lower.path.starts_with(taken));
                if directory.lowers.iter().any(taken) {
                    return Ok(false);
                }
                for name in tree.names(&directory)? {
                    let Some(entry) = tree.entry(&directory, &name)? else { continue };
                    // One that was renamed then.
                    if let Entry::Directory(Directory { lowers, .. }) = &entry
                        && let (Some(lower), Some(parent)) = (lowers.first(), directory.lowers.first())
                        && lower.path != parent.path.join(&name)
                    {
                        return Ok(false);
                    }
                    if let Entry::Directory(Directory { lowers, .. }) = &entry
                        && directory.lowers.is_empty()
                        && !lowers.is_empty()
                    {
                        return Ok(false);
                    }
                    pending.push(entry);
                }
            }
        }
    }
    Ok(true)
}

/// Makes what is shown as files of the volume's own at `to`. `overlaid`: an overlay will show it, and shall show nothing else.
///
/// # Errors
/// As the kernel says, `EDQUOT` when the volume is full.
pub fn make(copier: &mut Copier<'_>, tree: Tree<'_>, entry: &Entry, to: &Path, overlaid: bool) -> io::Result<()> {
    let (mut pending, mut directories) = (vec![(entry.clone(), to.to_owned())], Vec::new());
    while let Some((entry, to)) = pending.pop() {
        match entry {
            Entry::Leaf(Leaf { upper: Some(path), .. }) => {
                let root = tree.upper.ok_or(io::ErrorKind::NotFound)?;
                copier.leaf(None, At { root, path: &path }, &to, &[])?;
            }
            Entry::Leaf(Leaf { lower, .. }) => {
                let lower = lower.ok_or(io::ErrorKind::NotFound)?;
                let root = tree.layers.get(lower.layer).ok_or(io::ErrorKind::NotFound)?.as_fd();
                let like = std::slice::from_ref(&lower);
                copier.leaf(Some(lower.layer), At { root, path: &lower.path }, &to, like)?;
            }
            Entry::Directory(directory) => {
                directory_like(
                    tree.attributes_of(&directory).ok_or(io::ErrorKind::NotFound)?,
                    At { root: copier.to, path: &to },
                )?;
                for name in tree.names(&directory)? {
                    if let Some(entry) = tree.entry(&directory, &name)? {
                        pending.push((entry, to.join(name)));
                    }
                }
                directories.push((directory, to));
            }
        }
    }
    for (directory, to) in directories.iter().rev() {
        if overlaid {
            set_opaque(copier.to, to)?;
        }
        let from = tree.attributes_of(directory).ok_or(io::ErrorKind::NotFound)?;
        copier.finish(from, to, &|name| !name.starts_with(OVERLAY))?;
    }
    Ok(())
}

/// Nothing below a directory is shown but what is in it.
///
/// # Errors
/// As the kernel says.
pub fn set_opaque(root: BorrowedFd<'_>, at: &Path) -> io::Result<()> {
    let (directory, name) = parent(root, at)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
    Ok(rustix::fs::lsetxattr(path, OPAQUE, b"y", XattrFlags::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_is_a_copy_of_is_read_from_its_handle() {
        let mut value = vec![0, 0xfb, 41, 0, 0x4d];
        value.extend([7; 16]);
        value.extend(261_u64.to_le_bytes());
        value.extend(300_u64.to_le_bytes());
        value.extend(9_u32.to_le_bytes());
        assert_eq!(handle(&value), Some((300, 261)));
        assert_eq!(handle(&value[..30]), None);
    }
}
