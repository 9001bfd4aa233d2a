//! Carries changes out on a real tree, as programs of a tenant would.
//!
//! What a change works on is chosen from what is there at that moment. A call that fails because the tree is as it is (the
//! name exists, the directory is not empty, the file system cannot do it) is a change that did nothing; any other failure is
//! an error of the case.

mod data;
mod metadata;
mod tree;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::change::{Change, Mixture};
use crate::names::{self, Entry};
use crate::rng::Rng;

/// What the tree's state may make a call answer.
const REFUSALS: [Errno; 19] = [
    Errno::NOENT,
    Errno::EXIST,
    Errno::NOTDIR,
    Errno::ISDIR,
    Errno::NOTEMPTY,
    Errno::INVAL,
    Errno::OPNOTSUPP,
    Errno::NAMETOOLONG,
    Errno::LOOP,
    Errno::XDEV,
    Errno::MLINK,
    Errno::PERM,
    Errno::ACCESS,
    Errno::NODATA,
    Errno::FBIG,
    Errno::BUSY,
    Errno::RANGE,
    Errno::NXIO,
    // An attribute that is too long for a leaf of the file system's tree says so.
    Errno::NOSPC,
];

/// A layer of the template: its root, and the names of its regular files.
#[derive(Debug)]
pub struct Layer {
    /// Opened for reading.
    pub root: OwnedFd,
    /// Of files with data.
    pub files: Vec<Vec<u8>>,
}

/// A tree, and who changes it.
#[derive(Debug)]
pub struct Workload<'a> {
    root: BorrowedFd<'a>,
    layers: &'a [Layer],
    seed: u64,
    mixture: Mixture,
    /// Longest path that is made.
    longest: usize,
    /// What is in the tree, until a change of names.
    known: Option<Vec<Entry>>,
    /// Files without a name that are still open.
    unlinked: Vec<File>,
    /// What was done, a line for each change.
    pub log: Vec<String>,
}

impl<'a> Workload<'a> {
    /// Of a seed, on the tree `root`, which lies `depth` bytes of a path below the root of the subvolume. Longer paths than
    /// the kernel's stream can name are not made: the kernel refuses to say what has changed there.
    #[must_use]
    pub fn new(root: BorrowedFd<'a>, depth: usize, layers: &'a [Layer], seed: u64) -> Self {
        let mixture = Mixture::of(seed);
        let longest = vivarium_journal::path::MAX_PATH - depth;
        Self { root, layers, seed, mixture, longest, known: None, unlinked: Vec::new(), log: Vec::new() }
    }

    /// Carries out the changes from this number on, with a pause of at most `longest` after each, until one fails.
    pub fn go_on(&mut self, first: u32, rng: &mut Rng, longest: Duration) -> io::Error {
        for number in first.. {
            if let Err(error) = self.change(number) {
                return io::Error::new(error.kind(), format!("change {number}: {error}"));
            }
            std::thread::sleep(Duration::from_micros(rng.below(longest.as_micros() as u64)));
        }
        io::Error::other("there are no more numbers of changes")
    }

    /// Carries out the change with this number.
    ///
    /// # Errors
    /// A call failed in a way that the state of the tree does not explain.
    pub fn change(&mut self, number: u32) -> io::Result<()> {
        let mut rng = Rng::new(self.seed, u64::from(number) + 1);
        let kind = self.mixture.choose(&mut rng);
        self.log.push(format!("{number} {kind:?}"));
        let outcome = self.carry_out(kind, &mut rng);
        if let Err(error) = &outcome {
            self.note(&format!(" -> {error}"));
        }
        match outcome {
            Err(error) if Errno::from_io_error(&error).is_some_and(|errno| REFUSALS.contains(&errno)) => Ok(()),
            other => other,
        }
    }

    fn carry_out(&mut self, kind: Change, rng: &mut Rng) -> io::Result<()> {
        match kind {
            Change::Create => self.create(rng),
            Change::CreateMany => self.create_many(rng),
            Change::Replace => self.replace(rng),
            Change::LinkUnnamed => self.link_unnamed(rng),
            Change::Append => self.write(rng, true),
            Change::Overwrite => self.write(rng, false),
            Change::Truncate => self.truncate(rng),
            Change::Punch | Change::Collapse | Change::ZeroRange | Change::Allocate | Change::AllocateKeepingSize => {
                self.allocate(kind, rng)
            }
            Change::Sync => self.sync(rng),
            Change::CloneOwn => self.clone_own(rng),
            Change::CloneTemplate => self.clone_template(rng),
            Change::CopyUp => self.copy_up(rng),
            Change::MakeDirectory => self.make_directory(rng),
            Change::MakeDeep => self.make_deep(rng),
            Change::Rename => self.rename(rng),
            Change::Exchange => self.exchange(rng),
            Change::RenameWhiteout => self.rename_whiteout(rng),
            Change::Rotate => self.rotate(rng),
            Change::Link => self.link(rng),
            Change::Unlink => self.unlink(rng),
            Change::RemoveTree => self.remove_tree(rng),
            Change::ReplaceKind => self.replace_kind(rng),
            Change::Symlink => self.symlink(rng),
            Change::Special => self.special(rng),
            Change::Whiteout => self.whiteout(rng),
            Change::OverlayAttribute => self.overlay_attribute(rng),
            Change::SetAttribute => self.set_attribute(rng),
            Change::RemoveAttribute => self.remove_attribute(rng),
            Change::AccessList => self.access_list(rng),
            Change::Capability => self.capability(rng),
            Change::Compress => self.compress(rng),
            Change::Owner => self.owner(rng),
            Change::Mode => self.mode(rng),
            Change::Times => self.times(rng),
            Change::Everything => self.everything(rng),
            Change::OpenUnlinked => self.open_unlinked(rng),
            Change::WriteUnlinked => self.write_unlinked(rng),
        }
    }

    fn note(&mut self, text: &str) {
        if let Some(line) = self.log.last_mut() {
            line.push_str(text);
        }
    }

    fn note_path(&mut self, path: &[u8]) {
        let shown = String::from_utf8_lossy(&path[..path.len().min(60)]).into_owned();
        self.note(&format!(" {shown:?}"));
    }

    fn names(&mut self) -> io::Result<&[Entry]> {
        if self.known.is_none() {
            self.known = Some(names::list(self.root)?);
        }
        Ok(self.known.as_deref().unwrap_or_default())
    }

    fn names_change(&mut self) {
        self.known = None;
    }

    /// One of the names that are there, of a kind.
    fn some(&mut self, rng: &mut Rng, fits: impl Fn(FileType) -> bool) -> io::Result<Vec<u8>> {
        let fitting: Vec<&Entry> = self.names()?.iter().filter(|entry| fits(entry.kind)).collect();
        let chosen = rng.pick(&fitting).map(|entry| entry.path.clone()).ok_or(Errno::NOENT)?;
        self.note_path(&chosen);
        Ok(chosen)
    }

    fn some_file(&mut self, rng: &mut Rng) -> io::Result<Vec<u8>> {
        self.some(rng, |kind| kind == FileType::RegularFile)
    }

    /// A path for something new: an invented name in one of the directories. It may exist.
    fn place(&mut self, rng: &mut Rng) -> io::Result<Vec<u8>> {
        let directories: Vec<&Entry> = self.names()?.iter().filter(|e| e.kind == FileType::Directory).collect();
        let parent = if rng.once_in(3) { None } else { rng.pick(&directories) };
        let parent = parent.map(|entry| entry.path.clone()).unwrap_or_default();
        let path = names::join(&parent, &names::invent(rng, self.mixture.hostile_names));
        if path.len() > self.longest {
            return Err(Errno::NAMETOOLONG.into());
        }
        self.note_path(&path);
        Ok(path)
    }

    fn open(&self, path: &[u8], flags: OFlags) -> io::Result<File> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(self.root, path, flags, Mode::from_raw_mode(0o644))?.into())
    }

    /// A path for calls that take no directory.
    fn magic(&self, path: &[u8]) -> Vec<u8> {
        use std::os::fd::AsRawFd;
        let below = if path.is_empty() { b".".as_slice() } else { path };
        names::join(format!("/proc/self/fd/{}", self.root.as_fd().as_raw_fd()).as_bytes(), below)
    }
}
