//! The difference between two trees: names that came, went or stand for something else. A time of change alone is no
//! difference; where it is the same and the size too, the bytes are taken to be, unless they are to be read.

use std::cmp::Ordering;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{Mode, OFlags};

use crate::tree::{look, names};
use crate::wire::{Aspect, Change, Entry, Type};

const BLOCK: usize = 128 << 10;

/// A directory of both trees that is still to be compared.
struct Pair {
    parents: (Rc<OwnedFd>, Rc<OwnedFd>),
    name: CString,
    path: Vec<u8>,
}

/// Tells every difference from `before` to `after`, directory by directory. `read_all`: files are read even if size and time
/// are the same.
///
/// # Errors
/// Something cannot be read, or what `tell` says.
pub fn compare(
    before: OwnedFd,
    after: OwnedFd,
    read_all: bool,
    tell: &mut dyn FnMut(Change) -> io::Result<()>,
) -> io::Result<()> {
    let mut pending =
        vec![Pair { parents: (Rc::new(before), Rc::new(after)), name: c".".to_owned(), path: Vec::new() }];
    while let Some(Pair { parents, name, path }) = pending.pop() {
        let (old, new) = (Rc::new(directory(&parents.0, &name)?), Rc::new(directory(&parents.1, &name)?));
        drop(parents);
        let (mut olds, mut news) =
            (names(old.as_fd())?.into_iter().peekable(), names(new.as_fd())?.into_iter().peekable());
        loop {
            let order = match (olds.peek(), news.peek()) {
                (None, None) => break,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(a), Some(b)) => a.cmp(b),
            };
            let (a, b) = (
                if order == Ordering::Greater { None } else { olds.next() },
                if order == Ordering::Less { None } else { news.next() },
            );
            let Some(name) = a.as_ref().or(b.as_ref()) else { break };
            let mut below = path.clone();
            below.push(b'/');
            below.extend_from_slice(name.to_bytes());
            let before = a.as_ref().map(|name| look(old.as_fd(), name, below.clone())).transpose()?;
            let after = b.as_ref().map(|name| look(new.as_fd(), name, below.clone())).transpose()?;
            let is_directory =
                |entry: &Option<Entry>| entry.as_ref().is_some_and(|entry| entry.kind == Type::Directory);
            let aspects = match (&before, &after) {
                (Some(a), Some(b)) => aspects((old.as_fd(), a), (new.as_fd(), b), name, read_all)?,
                _ => Vec::new(),
            };
            if is_directory(&before) && is_directory(&after) {
                pending.push(Pair { parents: (old.clone(), new.clone()), name: name.clone(), path: below });
            }
            if before.is_some() && after.is_some() && aspects.is_empty() {
                continue;
            }
            let other = is_directory(&before) != is_directory(&after);
            let mut count = 0;
            if other {
                let at = if is_directory(&before) { &old } else { &new };
                count = entries(directory(at, name)?)?;
            }
            tell(Change { before, after, aspects, below: count })?;
        }
    }
    Ok(())
}

fn directory(parent: &OwnedFd, name: &CString) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// Names below a directory.
fn entries(top: OwnedFd) -> io::Result<u64> {
    let mut count = 0;
    let mut open = vec![top];
    while let Some(at) = open.pop() {
        for name in names(at.as_fd())? {
            count += 1;
            match directory(&at, &name) {
                Ok(below) => open.push(below),
                Err(rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(count)
}

fn aspects(
    (old, a): (BorrowedFd<'_>, &Entry),
    (new, b): (BorrowedFd<'_>, &Entry),
    name: &CString,
    read_all: bool,
) -> io::Result<Vec<Aspect>> {
    if a.kind != b.kind {
        return Ok(vec![Aspect::Type]);
    }
    let mut found = Vec::new();
    let same_content = match a.kind {
        Type::File if a.size != b.size => false,
        Type::File if a.modified == b.modified && !read_all => true,
        Type::File => digest(old, name)? == digest(new, name)?,
        _ => a.target == b.target && a.device == b.device,
    };
    if !same_content {
        found.push(Aspect::Content);
    }
    if a.mode != b.mode {
        found.push(Aspect::Mode);
    }
    if (a.uid, a.gid) != (b.uid, b.gid) {
        found.push(Aspect::Owner);
    }
    // Of links, devices and pipes there are none that a reader could see.
    if matches!(a.kind, Type::File | Type::Directory) && attributes(old, name)? != attributes(new, name)? {
        found.push(Aspect::Attributes);
    }
    Ok(found)
}

fn open(directory: BorrowedFd<'_>, name: &CString) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(directory, name, flags, Mode::empty())?)
}

fn digest(directory: BorrowedFd<'_>, name: &CString) -> io::Result<blake3::Hash> {
    let mut file = File::from(open(directory, name)?);
    let (mut hasher, mut block) = (blake3::Hasher::new(), vec![0; BLOCK]);
    loop {
        match file.read(&mut block)? {
            0 => return Ok(hasher.finalize()),
            length => hasher.update(&block[..length]),
        };
    }
}

/// Extended attributes, in order of their names.
fn attributes(directory: BorrowedFd<'_>, name: &CString) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let file = open(directory, name)?;
    // The kernel's own limits for a list and for a value (xattr(7)).
    let mut buffer = vec![0; 64 << 10];
    let length = match rustix::fs::flistxattr(&file, &mut buffer[..]) {
        Err(rustix::io::Errno::NOTSUP) => return Ok(Vec::new()),
        other => other?,
    };
    let list = buffer[..length].to_vec();
    let mut all = Vec::new();
    for name in list.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let length = match rustix::fs::fgetxattr(&file, name, &mut buffer[..]) {
            // Some that are listed are only for those with more rights.
            Err(rustix::io::Errno::NODATA | rustix::io::Errno::PERM) => continue,
            other => other?,
        };
        all.push((name.to_vec(), buffer[..length].to_vec()));
    }
    all.sort_unstable();
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;

    use super::*;
    use crate::quote;

    fn differences(old: &Path, new: &Path, read_all: bool) -> Vec<String> {
        let mut all = Vec::new();
        let root = |path| crate::tree::root(path).unwrap();
        compare(root(old), root(new), read_all, &mut |change| {
            let path = &change.before.as_ref().or(change.after.as_ref()).unwrap().path;
            let sign = match (&change.before, &change.after) {
                (Some(_), None) => '-',
                (None, Some(_)) => '+',
                _ => 'M',
            };
            all.push(format!("{sign} {} {:?} {}", quote::name(path), change.aspects, change.below));
            Ok(())
        })
        .unwrap();
        all.sort();
        all
    }

    #[test]
    fn differences_are_told_and_nothing_else() {
        let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for root in [old.path(), new.path()] {
            fs::create_dir_all(root.join("same/deep")).unwrap();
            for name in ["same/deep/file", "changed", "mode", "turned", "quiet"] {
                fs::write(root.join(name), b"before").unwrap();
                let time = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
                File::options().write(true).open(root.join(name)).unwrap().set_times(time).unwrap();
            }
            symlink("a", root.join("link")).unwrap();
        }
        assert_eq!(differences(old.path(), new.path(), true), [] as [String; 0]);
        let at = |name: &str| new.path().join(name);
        fs::write(at("changed"), b"after!").unwrap();
        fs::set_permissions(at("mode"), fs::Permissions::from_mode(0o4755)).unwrap();
        fs::remove_file(at("turned")).unwrap();
        fs::create_dir(at("turned")).unwrap();
        fs::write(at("turned/in"), b"").unwrap();
        fs::remove_file(at("link")).unwrap();
        symlink("b", at("link")).unwrap();
        fs::write(old.path().join("gone\n"), b"").unwrap();
        fs::create_dir_all(at("fresh/a/b")).unwrap();
        fs::write(at("touched"), b"").unwrap();
        fs::write(old.path().join("touched"), b"").unwrap();
        // The same size and time, and other bytes.
        fs::write(at("quiet"), b"rofeeb").unwrap();
        let time = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
        File::options().write(true).open(at("quiet")).unwrap().set_times(time).unwrap();
        let expected = [
            "+ /fresh [] 2",
            "- /gone\\n [] 0",
            "M /changed [Content] 0",
            "M /link [Content] 0",
            "M /mode [Mode] 0",
            "M /turned [Type] 1",
        ];
        assert_eq!(differences(old.path(), new.path(), false), expected);
        let all = differences(old.path(), new.path(), true);
        assert!(all.contains(&"M /quiet [Content] 0".to_owned()) && all.len() == expected.len() + 1, "{all:?}");
    }

    #[test]
    fn a_tree_that_is_very_deep_is_compared() {
        let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for root in [old.path(), new.path()] {
            let mut at = crate::tree::root(root).unwrap();
            for _ in 0..1500 {
                rustix::fs::mkdirat(&at, c"deeper", Mode::RWXU).unwrap();
                at = directory(&at, &c"deeper".to_owned()).unwrap();
            }
        }
        assert_eq!(differences(old.path(), new.path(), false), [] as [String; 0]);
    }
}
