//! `kubectl ve ls`, `cat` and `cp`.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ChildStdout;

use vivarium_cli::quote;
use vivarium_cli::wire::{Entry, Type};

use crate::kubectl::Kubectl;
use crate::place::Place;
use crate::reader::{Reader, Show, root};
use crate::{Error, Tree};

fn start(kubectl: &Kubectl, place: &Place, tree: &Tree) -> Result<Reader, Error> {
    let show = match &tree.diverged {
        Some(which) => Show::Diverged(which.clone()),
        None => Show::Tree(tree.at),
    };
    Reader::start(kubectl, &place.environment, &[show], &tree.reading)
}

/// Lets the program that reads do something with a path.
fn ask<T>(
    reader: &Reader,
    what: &str,
    path: &Path,
    take: impl FnOnce(BufReader<ChildStdout>) -> Result<T, Error>,
) -> Result<T, Error> {
    let top = root(0);
    // What follows the dashes is no option, whatever it begins with.
    reader.read([OsStr::new(what), OsStr::new("--"), OsStr::new(&top), path.as_os_str()], take)
}

fn entries(reader: &Reader, path: &Path) -> Result<Vec<Entry>, Error> {
    ask(reader, "list", path, |out| {
        out.lines()
            .map(|line| {
                let line = line.map_err(Error::io("read the list"))?;
                serde_json::from_str(&line).map_err(|error| Error::NotUnderstood("ve-reader", error))
            })
            .collect()
    })
}

/// Lists a directory.
pub fn list(kubectl: &Kubectl, place: &Place, tree: &Tree) -> Result<(), Error> {
    let reader = start(kubectl, place, tree)?;
    let mut out = std::io::stdout().lock();
    for entry in entries(&reader, &place.path)? {
        writeln!(out, "{}", line(&entry)).map_err(Error::io("print"))?;
    }
    Ok(())
}

/// Prints a file.
pub fn print(kubectl: &Kubectl, place: &Place, tree: &Tree) -> Result<(), Error> {
    let reader = start(kubectl, place, tree)?;
    ask(&reader, "cat", &place.path, |mut from| {
        std::io::copy(&mut from, &mut std::io::stdout().lock()).map(drop).map_err(Error::io("print"))
    })
}

/// Copies a file or directory to this machine.
pub fn copy(kubectl: &Kubectl, place: &Place, to: &Path, tree: &Tree) -> Result<(), Error> {
    let to = target(&place.path, to)?;
    let reader = start(kubectl, place, tree)?;
    let shown = to.display().to_string();
    let is_file = matches!(&entries(&reader, &place.path)?[..], [only] if only.path == place.path.as_os_str().as_bytes() && only.kind != Type::Directory);
    if is_file {
        return ask(&reader, "cat", &place.path, |mut from| {
            let mut file = File::create_new(&to).map_err(Error::io(format!("make {shown}")))?;
            std::io::copy(&mut from, &mut file).map(drop).map_err(Error::io(format!("write {shown}")))
        });
    }
    std::fs::create_dir(&to).map_err(Error::io(format!("make {shown}")))?;
    ask(&reader, "pack", &place.path, |from| unpack(from, &to))
}

/// What the copy is called.
fn target(path: &Path, to: &Path) -> Result<PathBuf, Error> {
    if !to.is_dir() {
        return Ok(to.to_owned());
    }
    match path.file_name() {
        Some(name) => Ok(to.join(name)),
        None => Err(Error::said(format!("{} is there already: name a directory that is not", to.display()))),
    }
}

/// Puts an archive of a tenant's tree below a directory, as files of whoever runs this: without owners, set-user-ID bits or
/// attributes, and nothing beside the directory.
fn unpack(from: impl Read, to: &Path) -> Result<(), Error> {
    let shown = to.display().to_string();
    let mut archive = tar::Archive::new(from);
    archive.set_preserve_permissions(false);
    archive.set_preserve_ownerships(false);
    archive.set_unpack_xattrs(false);
    archive.set_overwrite(false);
    let failed = || Error::io(format!("write below {shown}"));
    // Directories last, so that one without the right to write gets its content first.
    archive.unpack(to).map_err(failed())?;
    // kubectl is not to be cut off before it knows how the program ended.
    let mut rest = archive.into_inner();
    std::io::copy(&mut rest, &mut std::io::sink()).map(drop).map_err(failed())
}

/// As `ls -l` shows it.
fn line(entry: &Entry) -> String {
    let kind = match entry.kind {
        Type::File => '-',
        Type::Directory => 'd',
        Type::Link => 'l',
        Type::Character => 'c',
        Type::Block => 'b',
        Type::Fifo => 'p',
        Type::Socket => 's',
    };
    let time = jiff::Timestamp::from_second(entry.modified.0).unwrap_or_default();
    let mut name = quote::name(&entry.path);
    if let Some(target) = &entry.target {
        name = format!("{name} -> {}", quote::name(target));
    }
    let owner = format!("{}:{}", entry.uid, entry.gid);
    format!("{kind}{} {owner:>11} {:>12} {time} {name}", permissions(entry.mode), entry.size)
}

fn permissions(mode: u32) -> String {
    let mut text = String::with_capacity(9);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, mode & special != 0) {
            (true, true) => letter,
            (false, true) => letter.to_ascii_uppercase(),
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsFd;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_line_is_what_ls_shows() {
        let entry = Entry {
            path: b"su\x1b".to_vec(),
            kind: Type::File,
            mode: 0o4754,
            uid: 0,
            gid: 33,
            size: 1234,
            modified: (0, 0),
            target: None,
            device: 0,
        };
        assert_eq!(line(&entry), "-rwsr-xr--        0:33         1234 1970-01-01T00:00:00Z su\\u{1b}");
        for (mode, shown) in [(0o1777, "rwxrwxrwt"), (0o1776, "rwxrwxrwT"), (0o2645, "rw-r-Sr-x"), (0, "---------")] {
            assert_eq!(permissions(mode), shown);
        }
    }

    #[test]
    fn a_directory_arrives_whole_and_harmless() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let outside = to.path().join("outside");
        fs::create_dir(&outside).unwrap();
        let at = |name: &str| from.path().join(name);
        fs::create_dir_all(at("a/b")).unwrap();
        fs::write(at("a/b/file"), b"content").unwrap();
        fs::write(at("suid"), b"x").unwrap();
        fs::set_permissions(at("suid"), fs::Permissions::from_mode(0o4755)).unwrap();
        symlink("a/b/file", at("link")).unwrap();
        symlink(&outside, at("out")).unwrap();
        let long = "n".repeat(200);
        fs::write(at(&long), b"long").unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, at("pipe"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
            .unwrap();

        let mut left_out = Vec::new();
        let mut archive = Vec::new();
        let root = vivarium_cli::tree::root(from.path()).unwrap();
        vivarium_cli::tree::pack(root.as_fd(), Path::new(""), &mut archive, &mut |path| left_out.push(path.to_vec()))
            .unwrap();
        assert_eq!(left_out, [b"pipe"]);
        let copy = to.path().join("copy");
        fs::create_dir(&copy).unwrap();
        unpack(&archive[..], &copy).unwrap();
        assert_eq!(fs::read(copy.join("a/b/file")).unwrap(), b"content");
        assert_eq!(fs::read(copy.join(&long)).unwrap(), b"long");
        assert_eq!(fs::read_link(copy.join("link")).unwrap(), Path::new("a/b/file"));
        assert_eq!(fs::metadata(copy.join("suid")).unwrap().permissions().mode() & 0o7000, 0);
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    }

    #[test]
    fn an_archive_that_leads_elsewhere_writes_nothing_there() {
        let to = tempfile::tempdir().unwrap();
        let (outside, copy) = (to.path().join("outside"), to.path().join("copy"));
        fs::create_dir(&outside).unwrap();
        fs::create_dir(&copy).unwrap();
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        archive.append_link(&mut header, "way", &outside).unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_size(1);
        header.set_mode(0o644);
        archive.append_data(&mut header, "way/in", &b"x"[..]).unwrap();
        assert!(unpack(&archive.into_inner().unwrap()[..], &copy).is_err());
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    }

    #[test]
    fn a_copy_goes_into_a_directory_or_gets_the_name() {
        let there = tempfile::tempdir().unwrap();
        let fresh = there.path().join("fresh");
        assert_eq!(target(Path::new("etc/passwd"), there.path()).unwrap(), there.path().join("passwd"));
        assert_eq!(target(Path::new("etc/passwd"), &fresh).unwrap(), fresh);
        assert_eq!(target(Path::new(""), &fresh).unwrap(), fresh);
        assert!(target(Path::new(""), there.path()).is_err());
    }
}
