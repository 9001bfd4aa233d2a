//! Changes of content and layout.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{AtFlags, FallocateFlags, Mode, OFlags};
use rustix::io::Errno;
use vivarium_sys::extents;

use super::Workload;
use crate::bytes;
use crate::change::Change;
use crate::names;
use crate::rng::Rng;

/// Files without a name that are kept open.
const UNLINKED: usize = 4;

impl Workload<'_> {
    pub(super) fn create(&mut self, rng: &mut Rng) -> io::Result<()> {
        let path = self.place(rng)?;
        self.names_change();
        let file = self.open(&path, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)?;
        if rng.once_in(10) {
            return Ok(());
        }
        let size = bytes::size(rng);
        let at = if rng.once_in(5) { bytes::offset(rng, size) } else { 0 };
        self.note(&format!(" {size}@{at}"));
        file.write_all_at(&bytes::content(rng, size), at)?;
        if rng.once_in(4) { file.sync_all() } else { Ok(()) }
    }

    pub(super) fn create_many(&mut self, rng: &mut Rng) -> io::Result<()> {
        let path = self.place(rng)?;
        self.names_change();
        rustix::fs::mkdirat(self.root, &path[..], Mode::from_raw_mode(0o755))?;
        let count = rng.between(20, 200);
        self.note(&format!(" {count}"));
        for number in 0..count {
            let file =
                self.open(&names::join(&path, format!("m{number}").as_bytes()), OFlags::RDWR | OFlags::CREATE)?;
            file.write_all_at(&rng.noise((number * 7 % 300) as usize), 0)?;
        }
        Ok(())
    }

    pub(super) fn replace(&mut self, rng: &mut Rng) -> io::Result<()> {
        let path = self.some_file(rng)?;
        let (parent, _) = vivarium_journal::TreePath::parse(&path)
            .ok()
            .and_then(vivarium_journal::TreePath::split)
            .ok_or(Errno::INVAL)?;
        let new = names::join(parent.as_bytes(), format!("f{}.new", rng.below(3)).as_bytes());
        self.names_change();
        let file = self.open(&new, OFlags::RDWR | OFlags::CREATE)?;
        let size = bytes::size(rng);
        file.write_all_at(&bytes::content(rng, size), 0)?;
        if rng.once_in(2) {
            file.sync_all()?;
        }
        Ok(rustix::fs::renameat(self.root, &new[..], self.root, &path[..])?)
    }

    pub(super) fn link_unnamed(&mut self, rng: &mut Rng) -> io::Result<()> {
        use std::os::fd::AsRawFd;
        let path = self.place(rng)?;
        self.names_change();
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        let file: File = rustix::fs::openat(self.root, ".", flags, Mode::from_raw_mode(0o600))?.into();
        let size = bytes::size(rng);
        file.write_all_at(&bytes::content(rng, size), 0)?;
        let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
        Ok(rustix::fs::linkat(rustix::fs::CWD, unnamed, self.root, &path[..], AtFlags::SYMLINK_FOLLOW)?)
    }

    pub(super) fn write(&mut self, rng: &mut Rng, append: bool) -> io::Result<()> {
        let path = self.some_file(rng)?;
        let file = self.open(&path, OFlags::RDWR)?;
        let length = file.metadata()?.len();
        let (at, size) = if append { (length, bytes::size(rng)) } else { bytes::range(rng, length) };
        self.note(&format!(" {size}@{at} of {length}"));
        file.write_all_at(&bytes::content(rng, size), at)
    }

    pub(super) fn truncate(&mut self, rng: &mut Rng) -> io::Result<()> {
        let path = self.some_file(rng)?;
        let file = self.open(&path, OFlags::RDWR)?;
        let old = file.metadata()?.len();
        let new = if rng.once_in(8) { old } else { bytes::new_length(rng, old) };
        self.note(&format!(" {old} to {new}"));
        file.set_len(new)
    }

    pub(super) fn allocate(&mut self, kind: Change, rng: &mut Rng) -> io::Result<()> {
        let path = self.some_file(rng)?;
        let file = self.open(&path, OFlags::RDWR)?;
        let length = file.metadata()?.len();
        let (mut at, mut size) = bytes::range(rng, length);
        let mode = match kind {
            Change::Punch => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            Change::Collapse => {
                (at, size) = (at / 4096 * 4096, size.next_multiple_of(4096));
                FallocateFlags::COLLAPSE_RANGE
            }
            Change::ZeroRange if rng.once_in(2) => FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
            Change::ZeroRange => FallocateFlags::ZERO_RANGE,
            Change::AllocateKeepingSize => FallocateFlags::KEEP_SIZE,
            _ => FallocateFlags::empty(),
        };
        self.note(&format!(" {mode:?} {size}@{at} of {length}"));
        Ok(rustix::fs::fallocate(&file, mode, at, size)?)
    }

    pub(super) fn sync(&mut self, rng: &mut Rng) -> io::Result<()> {
        let path = self.some_file(rng)?;
        self.open(&path, OFlags::RDWR)?.sync_all()
    }

    pub(super) fn clone_own(&mut self, rng: &mut Rng) -> io::Result<()> {
        let from = self.some_file(rng)?;
        let to = if rng.once_in(4) { from.clone() } else { self.some_file(rng)? };
        let (source, target) = (self.open(&from, OFlags::RDONLY)?, self.open(&to, OFlags::RDWR)?);
        if rng.once_in(3) {
            self.note(" whole");
            return Ok(rustix::fs::ioctl_ficlone(&target, &source)?);
        }
        self.clone_part(rng, &source, &target)
    }

    pub(super) fn clone_template(&mut self, rng: &mut Rng) -> io::Result<()> {
        let source = self.template_file(rng)?;
        let path = self.some_file(rng)?;
        let target = self.open(&path, OFlags::RDWR)?;
        self.clone_part(rng, &source, &target)
    }

    pub(super) fn copy_up(&mut self, rng: &mut Rng) -> io::Result<()> {
        let source = self.template_file(rng)?;
        let path = self.place(rng)?;
        self.names_change();
        let target = self.open(&path, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)?;
        rustix::fs::ioctl_ficlone(&target, &source)?;
        let length = target.metadata()?.len();
        let (at, size) = bytes::range(rng, length);
        if rng.once_in(4) { Ok(()) } else { target.write_all_at(&bytes::content(rng, size), at) }
    }

    fn template_file(&mut self, rng: &mut Rng) -> io::Result<File> {
        let layer = rng.pick(self.layers).ok_or(Errno::NOENT)?;
        let path = rng.pick(&layer.files).ok_or(Errno::NOENT)?;
        let file = rustix::fs::openat(&layer.root, &path[..], OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        self.note_path(path);
        Ok(file.into())
    }

    fn clone_part(&mut self, rng: &mut Rng, source: &File, target: &File) -> io::Result<()> {
        let (from, to) = (source.metadata()?.len(), target.metadata()?.len());
        let block = |offset: u64| offset / 4096 * 4096;
        let at = block(rng.below(from + 1));
        let length = if rng.once_in(2) { from - at } else { block(rng.between(4096, 40 * 4096)).min(from - at) };
        let target_at = block(bytes::offset(rng, to));
        self.note(&format!(" {length}@{at} of {from} to {target_at} of {to}"));
        extents::clone_range(source.as_fd(), at, length, target.as_fd(), target_at)
    }

    pub(super) fn open_unlinked(&mut self, rng: &mut Rng) -> io::Result<()> {
        let path = self.some_file(rng)?;
        let file = self.open(&path, OFlags::RDWR)?;
        self.names_change();
        rustix::fs::unlinkat(self.root, &path[..], AtFlags::empty())?;
        if self.unlinked.len() == UNLINKED {
            self.unlinked.remove(0);
        }
        self.unlinked.push(file);
        Ok(())
    }

    pub(super) fn write_unlinked(&mut self, rng: &mut Rng) -> io::Result<()> {
        let file = rng.pick(&self.unlinked).ok_or(Errno::NOENT)?;
        let (at, size) = bytes::range(rng, file.metadata()?.len());
        file.write_all_at(&bytes::content(rng, size), at)
    }
}
