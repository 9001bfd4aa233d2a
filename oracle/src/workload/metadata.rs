//! Changes of owners, modes, times and attributes.

use std::io;

use rustix::fs::{AtFlags, FileType, Mode, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use super::Workload;
use crate::rng::Rng;

/// File capabilities as setcap(8) writes them: revision 2, `cap_net_raw`, effective.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// An access control list: rwx for user 1000 besides owner, group, mask and others.
const ACL: [u8; 44] = [
    2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 7, 0, 232, 3, 0, 0, 4, 0, 4, 0, 255, 255, 255, 255, 16, 0, 7, 0,
    255, 255, 255, 255, 32, 0, 4, 0, 255, 255, 255, 255,
];
const CAPABILITIES: &[u8] = b"security.capability";

impl Workload<'_> {
    /// A name of any kind; now and then the root.
    fn anything(&mut self, rng: &mut Rng) -> io::Result<Vec<u8>> {
        if rng.once_in(12) { Ok(Vec::new()) } else { self.some(rng, |_| true) }
    }

    fn set(&self, path: &[u8], name: &[u8], value: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::lsetxattr(self.magic(path), name, value, XattrFlags::empty())?)
    }

    pub(super) fn overlay_attribute(&mut self, rng: &mut Rng) -> io::Result<()> {
        let path = self.some(rng, |kind| kind == FileType::Directory)?;
        match rng.below(3) {
            0 => self.set(&path, b"trusted.overlay.opaque", b"y"),
            1 => self.set(&path, b"trusted.overlay.redirect", b"/old \xff name"),
            _ => self.set(&path, b"trusted.overlay.origin", &rng.noise(32)),
        }
    }

    pub(super) fn set_attribute(&mut self, rng: &mut Rng) -> io::Result<()> {
        let path = self.anything(rng)?;
        let name = match rng.below(4) {
            0 => b"trusted.a".to_vec(),
            1 => b"security.b".to_vec(),
            2 => format!("user.n{}", rng.below(4)).into_bytes(),
            _ => [b"trusted.\xff\xfe".to_vec(), vec![b'x'; rng.between(1, 240) as usize]].concat(),
        };
        let length = *rng.pick(&[0, 1, 100, 3000, 12_000]).unwrap_or(&1);
        self.note(&format!(" {} {length}", String::from_utf8_lossy(&name)));
        let value = rng.noise(length);
        self.set(&path, &name, &value)
    }

    pub(super) fn remove_attribute(&mut self, rng: &mut Rng) -> io::Result<()> {
        let path = self.anything(rng)?;
        let mut names = vec![0; 16 << 10];
        let length = rustix::fs::llistxattr(self.magic(&path), &mut names[..])?;
        let names: Vec<&[u8]> = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
        let name = rng.pick(&names).copied().ok_or(Errno::NODATA)?;
        self.note(&format!(" {}", String::from_utf8_lossy(name)));
        Ok(rustix::fs::lremovexattr(self.magic(&path), name)?)
    }

    pub(super) fn access_list(&mut self, rng: &mut Rng) -> io::Result<()> {
        let path = self.anything(rng)?;
        let name = if rng.once_in(2) { "system.posix_acl_access" } else { "system.posix_acl_default" };
        self.note(&format!(" {name}"));
        if rng.once_in(4) {
            return Ok(rustix::fs::lremovexattr(self.magic(&path), name)?);
        }
        self.set(&path, name.as_bytes(), &ACL)
    }

    pub(super) fn capability(&mut self, rng: &mut Rng) -> io::Result<()> {
        let path = self.some_file(rng)?;
        if rng.once_in(4) {
            return Ok(rustix::fs::lremovexattr(self.magic(&path), CAPABILITIES)?);
        }
        self.set(&path, CAPABILITIES, &CAPABILITY)
    }

    /// A property of btrfs, which it shows as an attribute; directories hand it down.
    pub(super) fn compress(&mut self, rng: &mut Rng) -> io::Result<()> {
        let path = self.some(rng, |kind| matches!(kind, FileType::RegularFile | FileType::Directory))?;
        if rng.once_in(3) {
            return Ok(rustix::fs::lremovexattr(self.magic(&path), "btrfs.compression")?);
        }
        self.set(&path, b"btrfs.compression", if rng.once_in(2) { b"zstd" } else { b"lzo" })
    }

    pub(super) fn owner(&mut self, rng: &mut Rng) -> io::Result<()> {
        let path = self.anything(rng)?;
        let (user, group) = (random_id(rng), random_id(rng));
        if path.is_empty() {
            return Ok(rustix::fs::fchown(self.root, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))?);
        }
        let (user, group) = (Some(Uid::from_raw(user)), Some(Gid::from_raw(group)));
        Ok(rustix::fs::chownat(self.root, &path[..], user, group, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    pub(super) fn mode(&mut self, rng: &mut Rng) -> io::Result<()> {
        let path = self.anything(rng)?;
        let mode = random_mode(rng);
        self.note(&format!(" {mode:o}"));
        self.set_mode(&path, mode)
    }

    fn set_mode(&mut self, path: &[u8], mode: u32) -> io::Result<()> {
        if path.is_empty() {
            return Ok(rustix::fs::fchmod(self.root, Mode::from_raw_mode(mode))?);
        }
        let known = self.names()?.iter().find(|entry| entry.path == path).map(|entry| entry.kind);
        // Through a symbolic link the mode of something outside would be set.
        if known.is_none_or(|kind| kind == FileType::Symlink) {
            return Err(Errno::OPNOTSUPP.into());
        }
        Ok(rustix::fs::chmodat(self.root, path, Mode::from_raw_mode(mode), AtFlags::empty())?)
    }

    pub(super) fn times(&mut self, rng: &mut Rng) -> io::Result<()> {
        let path = self.some(rng, |_| true)?;
        let mut time = || Timespec {
            tv_sec: rng.below(1 << 33) as i64 - (1 << 32),
            tv_nsec: if rng.once_in(3) { 0 } else { rng.below(1_000_000_000) as i64 },
        };
        let times = Timestamps { last_access: time(), last_modification: time() };
        Ok(rustix::fs::utimensat(self.root, &path[..], &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    pub(super) fn everything(&mut self, rng: &mut Rng) -> io::Result<()> {
        let names = self.names()?.to_vec();
        let (mode, user) = (random_mode(rng), random_id(rng));
        let owner = rng.once_in(2);
        for entry in names {
            if owner {
                let path = &entry.path[..];
                rustix::fs::chownat(self.root, path, Some(Uid::from_raw(user)), None, AtFlags::SYMLINK_NOFOLLOW)?;
            } else if entry.kind != FileType::Symlink {
                self.set_mode(&entry.path, mode)?;
            }
        }
        Ok(())
    }
}

fn random_id(rng: &mut Rng) -> u32 {
    *rng.pick(&[0, 33, 1000, 65_534, 65_535]).unwrap_or(&0)
}

fn random_mode(rng: &mut Rng) -> u32 {
    rng.below(0o10000) as u32
}
