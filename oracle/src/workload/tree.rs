//! Changes of names.

use std::io;

use rustix::fs::{AtFlags, FileType, Mode, RenameFlags};
use rustix::io::Errno;

use super::Workload;
use crate::names::{self, Entry};
use crate::rng::Rng;

impl Workload<'_> {
    pub(super) fn make_directory(&mut self, rng: &mut Rng) -> io::Result<()> {
        let path = self.place(rng)?;
        self.names_change();
        Ok(rustix::fs::mkdirat(self.root, &path[..], Mode::from_raw_mode(0o755))?)
    }

    pub(super) fn make_deep(&mut self, rng: &mut Rng) -> io::Result<()> {
        let mut path = self.place(rng)?;
        self.names_change();
        let longest = *rng.pick(&[100, 1000, self.longest]).unwrap_or(&100);
        let name = vec![b'd'; rng.between(1, 256) as usize];
        rustix::fs::mkdirat(self.root, &path[..], Mode::from_raw_mode(0o755))?;
        for _ in 0..60 {
            let next = names::join(&path, &name);
            if next.len() > longest {
                break;
            }
            rustix::fs::mkdirat(self.root, &next[..], Mode::from_raw_mode(0o755))?;
            path = next;
        }
        if let Some(room) = longest.checked_sub(path.len() + 1).filter(|room| (1..=255).contains(room)) {
            // Exactly the longest path that can be named.
            let next = names::join(&path, &vec![b'e'; room]);
            rustix::fs::mkdirat(self.root, &next[..], Mode::from_raw_mode(0o755))?;
        }
        Ok(())
    }

    /// Whether everything below `from` could still be named below `to`: longer paths are a limit of the kernel's stream.
    fn fits_below(&mut self, from: &[u8], to: &[u8]) -> io::Result<bool> {
        let longest =
            |entry: &Entry| entry.path.strip_prefix(from).filter(|rest| rest.starts_with(b"/")).map(<[u8]>::len);
        let rest = self.names()?.iter().filter_map(longest).max().unwrap_or(0);
        Ok(to.len() + rest <= self.longest)
    }

    pub(super) fn rename(&mut self, rng: &mut Rng) -> io::Result<()> {
        let from = self.some(rng, |_| true)?;
        let to = if rng.once_in(3) { self.some(rng, |_| true)? } else { self.place(rng)? };
        self.move_to(&from, &to, RenameFlags::empty())
    }

    fn move_to(&mut self, from: &[u8], to: &[u8], flags: RenameFlags) -> io::Result<()> {
        if !self.fits_below(from, to)? || (flags.contains(RenameFlags::EXCHANGE) && !self.fits_below(to, from)?) {
            return Err(Errno::NAMETOOLONG.into());
        }
        self.names_change();
        Ok(rustix::fs::renameat_with(self.root, from, self.root, to, flags)?)
    }

    pub(super) fn exchange(&mut self, rng: &mut Rng) -> io::Result<()> {
        let (from, to) = (self.some(rng, |_| true)?, self.some(rng, |_| true)?);
        self.move_to(&from, &to, RenameFlags::EXCHANGE)
    }

    pub(super) fn rename_whiteout(&mut self, rng: &mut Rng) -> io::Result<()> {
        let (from, to) = (self.some(rng, |_| true)?, self.place(rng)?);
        self.move_to(&from, &to, RenameFlags::WHITEOUT)
    }

    pub(super) fn rotate(&mut self, rng: &mut Rng) -> io::Result<()> {
        let (one, two) = (self.some(rng, |_| true)?, self.some(rng, |_| true)?);
        let aside = names::invent(rng, false);
        self.move_to(&one, &aside, RenameFlags::NOREPLACE)?;
        self.move_to(&two, &one, RenameFlags::NOREPLACE)?;
        self.move_to(&aside, &two, RenameFlags::NOREPLACE)
    }

    pub(super) fn link(&mut self, rng: &mut Rng) -> io::Result<()> {
        let from = self.some(rng, |kind| kind != FileType::Directory)?;
        let many = if rng.once_in(10) { 40 } else { 1 };
        for _ in 0..many {
            let to = self.place(rng)?;
            self.names_change();
            rustix::fs::linkat(self.root, &from[..], self.root, &to[..], AtFlags::empty())?;
        }
        Ok(())
    }

    pub(super) fn unlink(&mut self, rng: &mut Rng) -> io::Result<()> {
        let path = self.some(rng, |kind| kind != FileType::Directory)?;
        self.names_change();
        Ok(rustix::fs::unlinkat(self.root, &path[..], AtFlags::empty())?)
    }

    pub(super) fn remove_tree(&mut self, rng: &mut Rng) -> io::Result<()> {
        let path = self.some(rng, |kind| kind == FileType::Directory)?;
        self.remove(&path)
    }

    /// A name, with all that is below it.
    fn remove(&mut self, path: &[u8]) -> io::Result<()> {
        let below = |entry: &&Entry| {
            entry.path.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
        };
        let mut doomed: Vec<Entry> = self.names()?.iter().filter(below).cloned().collect();
        self.names_change();
        // In reverse order what is in a directory comes before it.
        doomed.reverse();
        for Entry { path, kind } in doomed {
            let flags = if kind == FileType::Directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
            rustix::fs::unlinkat(self.root, &path[..], flags)?;
        }
        Ok(())
    }

    pub(super) fn replace_kind(&mut self, rng: &mut Rng) -> io::Result<()> {
        let path = self.some(rng, |_| true)?;
        self.remove(&path)?;
        self.make(rng, &path)
    }

    pub(super) fn symlink(&mut self, rng: &mut Rng) -> io::Result<()> {
        let path = self.place(rng)?;
        self.names_change();
        let target = match rng.below(5) {
            0 => b"/etc/passwd".to_vec(),
            1 => self.some(rng, |_| true)?,
            2 => b"../../../\xff".to_vec(),
            3 => vec![b'l'; rng.between(1000, 3900) as usize],
            _ => names::invent(rng, true),
        };
        Ok(rustix::fs::symlinkat(&target[..], self.root, &path[..])?)
    }

    pub(super) fn special(&mut self, rng: &mut Rng) -> io::Result<()> {
        let path = self.place(rng)?;
        self.make(rng, &path)
    }

    /// Something that is mostly no file.
    fn make(&mut self, rng: &mut Rng, path: &[u8]) -> io::Result<()> {
        self.names_change();
        let (kind, device) = match rng.below(7) {
            0 => (FileType::Fifo, 0),
            1 => (FileType::Socket, 0),
            2 => (FileType::CharacterDevice, rustix::fs::makedev(rng.below(1 << 12) as u32, rng.below(1 << 20) as u32)),
            3 => (FileType::BlockDevice, rustix::fs::makedev(rng.below(300) as u32, rng.below(300) as u32)),
            4 => (FileType::RegularFile, 0),
            5 => return Ok(rustix::fs::symlinkat("f1", self.root, path)?),
            _ => return Ok(rustix::fs::mkdirat(self.root, path, Mode::from_raw_mode(0o750))?),
        };
        self.note(&format!(" {kind:?}"));
        Ok(rustix::fs::mknodat(self.root, path, kind, Mode::from_raw_mode(0o640), device)?)
    }

    /// As overlayfs makes them: links to one device node 0/0, aside; or a node of its own.
    pub(super) fn whiteout(&mut self, rng: &mut Rng) -> io::Result<()> {
        let path = self.place(rng)?;
        self.names_change();
        let make = |path: &[u8]| {
            rustix::fs::mknodat(self.root, path, FileType::CharacterDevice, Mode::empty(), 0)
                .or_else(|error| if error == Errno::EXIST { Ok(()) } else { Err(error) })
        };
        if rng.once_in(3) {
            return Ok(make(&path)?);
        }
        make(b"whiteout")?;
        Ok(rustix::fs::linkat(self.root, "whiteout", self.root, &path[..], AtFlags::empty())?)
    }
}
