//! Whether layers, lying on each other as overlayfs will lay them, hold an operating system.

use std::ffi::{OsStr, OsString};
use std::io;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::TemplateError;
use crate::ids::LayerDigest;
use crate::pool::{Pool, open_beneath};

/// Places where the shim looks for the first program.
pub(super) const INITS: &[&str] = &["/sbin/init", "/usr/lib/systemd/systemd", "/lib/systemd/systemd"];
/// Places of os-release(5), in its order.
const OS_RELEASE: &[&str] = &["/etc/os-release", "/usr/lib/os-release"];
/// Symbolic links that are followed in one name, as in the kernel.
const LINKS_MAX: u32 = 40;
/// What is read of an os-release file.
const OS_RELEASE_MAX: u64 = 64 << 10;

/// What an image holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatingSystem {
    /// `PRETTY_NAME` of os-release(5), if it says.
    pub name: Option<String>,
}

/// A thing in the merged tree.
enum Found {
    /// The same directory in one or more layers, the highest first.
    Directory(Vec<OwnedFd>),
    File(OwnedFd),
    Link(PathBuf),
    Other,
}

/// Looks for an init and for the name of the system in the layers, lowest first.
pub(super) fn check(pool: &Pool, layers: &[LayerDigest], image: &str) -> Result<OperatingSystem, TemplateError> {
    let mut roots = Vec::new();
    for layer in layers.iter().rev() {
        let root = open_beneath(pool.templates(), layer.directory().as_ref());
        roots.push(root.map_err(|source| TemplateError::Io {
            attempt: "open the subvolume",
            layer: layer.clone(),
            source,
        })?);
    }
    let failed = |source| TemplateError::Tree { image: image.to_owned(), source };
    let mut has_init = false;
    for init in INITS {
        has_init |=
            matches!(find(&roots, Path::new(init)).map_err(failed)?, Some(Found::File(file)) if is_program(&file));
    }
    if !has_init {
        return Err(TemplateError::NotAnOperatingSystem { image: image.to_owned() });
    }
    for place in OS_RELEASE {
        if let Some(Found::File(file)) = find(&roots, Path::new(place)).map_err(failed)? {
            return Ok(OperatingSystem { name: read_os_release(file.as_fd()).map_err(failed)? });
        }
    }
    Ok(OperatingSystem { name: None })
}

fn is_program(file: &OwnedFd) -> bool {
    rustix::fs::fstat(file).is_ok_and(|stat| stat.st_mode & 0o111 != 0)
}

fn read_os_release(file: BorrowedFd<'_>) -> io::Result<Option<String>> {
    let file = rustix::fs::open(
        format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file)),
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mut bytes = Vec::new();
    std::fs::File::from(file).take(OS_RELEASE_MAX).read_to_end(&mut bytes)?;
    Ok(pretty_name(&String::from_utf8_lossy(&bytes)))
}

/// `PRETTY_NAME` of an os-release(5), which is written as shell assignments.
fn pretty_name(text: &str) -> Option<String> {
    let value = text.lines().rev().find_map(|line| line.trim().strip_prefix("PRETTY_NAME="))?.trim();
    let inner = ['"', '\''].iter().find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote)).unwrap_or(value);
    // It goes into an object of the API: one line, and not for ever.
    let clean: String = inner.replace('\\', "").chars().filter(|c| !c.is_control()).take(128).collect();
    (!clean.is_empty()).then_some(clean)
}

/// Finds a path in the merged tree, following symbolic links within it.
fn find(roots: &[OwnedFd], path: &Path) -> io::Result<Option<Found>> {
    let mut links = 0;
    // Names still to walk, the next one last; and the directories above the present one.
    let mut names = reversed(path);
    let mut stack: Vec<Vec<OwnedFd>> = vec![duplicate(roots)?];
    while let Some(name) = names.pop() {
        if name == ".." {
            if stack.len() > 1 {
                stack.pop();
            }
            continue;
        }
        let Some(here) = stack.last() else { return Ok(None) };
        match lookup(here, &name)? {
            None => return Ok(None),
            Some(Found::Directory(layers)) => stack.push(layers),
            Some(Found::Link(target)) => {
                links += 1;
                if links > LINKS_MAX {
                    return Ok(None);
                }
                if target.has_root() {
                    stack.truncate(1);
                }
                names.extend(reversed(&target));
            }
            Some(other) => return Ok(names.is_empty().then_some(other)),
        }
    }
    Ok(stack.pop().map(Found::Directory))
}

fn reversed(path: &Path) -> Vec<OsString> {
    let mut names: Vec<OsString> = path
        .components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        })
        .collect();
    names.reverse();
    names
}

fn duplicate(layers: &[OwnedFd]) -> io::Result<Vec<OwnedFd>> {
    layers.iter().map(OwnedFd::try_clone).collect()
}

/// Finds a name in a directory that several layers have, the highest first, by the rules of overlayfs.
fn lookup(layers: &[OwnedFd], name: &OsStr) -> io::Result<Option<Found>> {
    let mut directories = Vec::new();
    for layer in layers {
        let stat = match rustix::fs::statat(layer, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(error.into()),
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != FileType::Directory && !directories.is_empty() {
            break; // A directory above hides it.
        }
        match kind {
            FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let directory = rustix::fs::openat(layer, name, flags, Mode::empty())?;
                let opaque = rustix::fs::fgetxattr(&directory, c"trusted.overlay.opaque", &mut [0u8; 1][..]).is_ok();
                directories.push(directory);
                if opaque {
                    break;
                }
            }
            FileType::CharacterDevice if stat.st_rdev == 0 => return Ok(None),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(layer, name, Vec::new())?;
                return Ok(Some(Found::Link(PathBuf::from(OsString::from_vec(target.into_bytes())))));
            }
            FileType::RegularFile => {
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                return Ok(Some(Found::File(rustix::fs::openat(layer, name, flags, Mode::empty())?)));
            }
            _ => return Ok(Some(Found::Other)),
        }
    }
    Ok((!directories.is_empty()).then_some(Found::Directory(directories)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_system_is_read_as_a_shell_would() {
        for (text, name) in [
            ("PRETTY_NAME=\"Debian GNU/Linux 13 (trixie)\"\nID=debian", Some("Debian GNU/Linux 13 (trixie)")),
            ("ID=x\nPRETTY_NAME=Arch", Some("Arch")),
            ("PRETTY_NAME='A \\$ B'", Some("A $ B")),
            ("NAME=x", None),
            ("PRETTY_NAME=", None),
        ] {
            assert_eq!(pretty_name(text).as_deref(), name, "{text}");
        }
    }
}
