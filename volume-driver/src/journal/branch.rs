//! A volume that begins with a state of another one.
//!
//! Its own log holds nothing but barriers then. The tree is put together from the log of the other volume, loses what makes
//! an operating system this one and no other, and is committed as a whole before anything runs: from then on the branch
//! needs nothing of its source any more. A crash before that leaves a volume whose log holds nothing, and all of it is done
//! again.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};

use super::JournalError;
use super::apply::BENEATH;
use super::begin::{Origin, Source};
use super::commit::Journal;
use super::restore::layer_roots;
use super::revert::put_in_place;
use crate::ids::LayerDigest;
use crate::template::TemplateCache;

/// Files that make an environment this one and no other: the directory, and the name, or with `*` how names begin. `true`: it
/// becomes an empty file, which systemd fills at the next boot; one that is missing would mean a first boot to it.
const IDENTITY: [(&str, &str, bool); 4] = [
    ("upper/etc", "machine-id", true),
    ("upper/etc/ssh", "ssh_host_*", false),
    ("upper/var/lib/dbus", "machine-id", false),
    ("upper/var/lib/systemd", "random-seed", false),
];

impl Journal {
    /// Whether nothing of this volume was ever committed.
    pub(super) async fn is_bare(&mut self) -> Result<bool, JournalError> {
        self.with_local(|local| Ok(local.base()?.is_none())).await
    }

    /// Begins with the state of the source, which is committed when this returns.
    pub(super) async fn branch(
        &mut self,
        templates: &TemplateCache,
        source: &Source,
        size: u64,
    ) -> Result<Origin, JournalError> {
        let no_source = |(reason, message)| JournalError::NoSource {
            volume: self.id.clone(),
            source_volume: source.log.volume().clone(),
            reason,
            message,
        };
        let newest = source.log.tail(0).await?.sequence;
        if newest == 0 {
            let message = format!(
                "this node sees nothing of its journal in the store `{}`: it was deleted since, or the store is a directory of \
                 another node",
                source.log.store()
            );
            return Err(no_source(("SourceNotFound", message)));
        }
        let moment = source.wanted.find(&source.log, newest).await?.map_err(no_source)?;
        let layers: Vec<LayerDigest> = self.layers.iter().map(|(layer, _)| layer.clone()).collect();
        let roots = layer_roots(templates, &self.id, &layers)?;
        let (id, log, to) = (self.id.clone(), source.log.clone(), moment.position);
        put_in_place(&self.volumes, &id, &log, to, roots, size, forget_identity).await?;
        self.clean = None;
        let head = self.commit_all().await?;
        tracing::info!(volume = %id, source = %log.volume(), sequence = to.sequence, head = head.sequence, "branched");
        Ok(Origin::Branched(to.sequence))
    }
}

/// Takes from a tree what no two environments may share. Nothing is reached through a link of the tenant's.
fn forget_identity(live: &OwnedFd) -> io::Result<()> {
    for (directory, pattern, empties) in IDENTITY {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = match rustix::fs::openat2(live, directory, flags, Mode::empty(), BENEATH) {
            Ok(directory) => directory,
            // Not in the volume: it is as in the template. Or no directory: nothing looks for the files there then.
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => continue,
            Err(error) => return Err(error.into()),
        };
        let is_meant = |name: &[u8]| match pattern.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning.as_bytes()),
            None => name == pattern.as_bytes(),
        };
        let names: Vec<CString> = Dir::read_from(&directory)?
            .map(|entry| Ok(entry?.file_name().to_owned()))
            .collect::<Result<_, rustix::io::Errno>>()?;
        for name in names.iter().filter(|name| is_meant(name.to_bytes())) {
            forget(directory.as_fd(), name, empties)?;
        }
    }
    Ok(())
}

fn forget(directory: BorrowedFd<'_>, name: &CStr, empties: bool) -> io::Result<()> {
    let kind = FileType::from_raw_mode(rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode);
    match kind {
        // A whiteout, or what nobody reads an identity from.
        FileType::CharacterDevice | FileType::BlockDevice | FileType::Directory => return Ok(()),
        _ => rustix::fs::unlinkat(directory, name, AtFlags::empty())?,
    }
    if empties {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::openat(directory, name, flags, Mode::RUSR)?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(0o444))?;
    }
    Ok(())
}
