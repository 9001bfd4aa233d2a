//! Layers: tar archives, made from a list of entries or taken as they are, kept in temporary files.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
};

use flate2::{GzBuilder, write::GzEncoder};
use tar::{Builder, EntryType, Header};

use super::{
    Error,
    digest::{Digest, Hashing},
};

/// How a layer is stored; its diff id is the same either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
}

impl Compression {
    pub fn media_type(self) -> &'static str {
        match self {
            Self::None => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
        }
    }
}

/// One file, directory or link of a layer, owned by root. Parent directories that are not listed are made.
#[derive(Clone, Debug)]
pub struct Entry {
    path: PathBuf,
    mode: u32,
    content: Content,
}

#[derive(Clone, Debug)]
enum Content {
    File(PathBuf),
    Bytes(Vec<u8>),
    Directory,
    Symlink(PathBuf),
}

impl Entry {
    /// A file of this machine, at `path` in the image.
    pub fn file(path: impl Into<PathBuf>, source: impl Into<PathBuf>, mode: u32) -> Self {
        Self { path: path.into(), mode, content: Content::File(source.into()) }
    }

    pub fn bytes(path: impl Into<PathBuf>, bytes: impl Into<Vec<u8>>, mode: u32) -> Self {
        Self { path: path.into(), mode, content: Content::Bytes(bytes.into()) }
    }

    pub fn directory(path: impl Into<PathBuf>, mode: u32) -> Self {
        Self { path: path.into(), mode, content: Content::Directory }
    }

    /// A symbolic link at `path` that points to `target`.
    pub fn symlink(path: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), mode: 0o777, content: Content::Symlink(target.into()) }
    }

    fn relative(&self) -> PathBuf {
        self.path.strip_prefix("/").unwrap_or(&self.path).to_path_buf()
    }
}

/// A finished layer. The file is deleted when this is dropped.
#[derive(Debug)]
pub struct Layer {
    pub blob: File,
    pub digest: Digest,
    pub size: u64,
    pub diff_id: Digest,
    pub compression: Compression,
}

/// Packs `entries` in their order.
pub fn from_entries(entries: impl IntoIterator<Item = Entry>, compression: Compression) -> Result<Layer, Error> {
    store(compression, |writer| {
        let mut archive = Builder::new(writer);
        let mut made = BTreeSet::new();
        for entry in entries {
            append(&mut archive, &entry, &mut made).map_err(Error::file("pack", &entry.path))?;
        }
        archive.finish().map_err(Error::file("finish", "layer"))
    })
}

/// Takes an uncompressed tar archive as it is.
pub fn from_tar(path: &Path, compression: Compression) -> Result<Layer, Error> {
    let mut source = File::open(path).map_err(Error::file("open", path))?;
    store(compression, |writer| io::copy(&mut source, writer).map(drop).map_err(Error::file("copy", path)))
}

fn append<W: Write>(archive: &mut Builder<W>, entry: &Entry, made: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    let path = entry.relative();
    let mut parents: Vec<_> = path.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()).collect();
    parents.reverse();
    for parent in parents {
        if made.insert(parent.to_path_buf()) {
            archive.append_data(&mut header(EntryType::Directory, 0o755, 0), parent, io::empty())?;
        }
    }
    match &entry.content {
        Content::Directory => {
            if made.insert(path.clone()) {
                archive.append_data(&mut header(EntryType::Directory, entry.mode, 0), path, io::empty())?;
            }
            Ok(())
        }
        Content::Symlink(target) => archive.append_link(&mut header(EntryType::Symlink, entry.mode, 0), path, target),
        Content::Bytes(bytes) => {
            archive.append_data(&mut header(EntryType::Regular, entry.mode, bytes.len() as u64), path, bytes.as_slice())
        }
        Content::File(source) => {
            let file = File::open(source)?;
            let size = file.metadata()?.len();
            // A file that grows meanwhile must not spoil the archive.
            archive.append_data(&mut header(EntryType::Regular, entry.mode, size), path, file.take(size))
        }
    }
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

enum Sink {
    Plain(Hashing<File>),
    // No name and no time in the gzip header: the same layer gives the same blob.
    Gzip(GzEncoder<Hashing<File>>),
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(writer) => writer.write(bytes),
            Self::Gzip(writer) => writer.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(writer) => writer.flush(),
            Self::Gzip(writer) => writer.flush(),
        }
    }
}

/// What `fill` writes becomes a layer.
fn store(compression: Compression, fill: impl FnOnce(&mut dyn Write) -> Result<(), Error>) -> Result<Layer, Error> {
    let unnamed = || Error::file("write", std::env::temp_dir());
    let blob = Hashing::new(tempfile::tempfile().map_err(unnamed())?);
    let sink = match compression {
        Compression::None => Sink::Plain(blob),
        Compression::Gzip => Sink::Gzip(GzBuilder::new().write(blob, flate2::Compression::fast())),
    };
    let mut outer = Hashing::new(sink);
    fill(&mut outer)?;
    let (sink, diff_id, _) = outer.finish();
    let (mut blob, digest, size) = match sink {
        Sink::Plain(writer) => writer,
        Sink::Gzip(writer) => writer.finish().map_err(unnamed())?,
    }
    .finish();
    blob.rewind().map_err(unnamed())?;
    Ok(Layer { blob, digest, size, diff_id, compression })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(layer: &Layer) -> Vec<(String, u32, u64)> {
        let mut archive = tar::Archive::new(&layer.blob);
        archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let path = entry.path().unwrap().display().to_string();
                (path, entry.header().mode().unwrap(), entry.size())
            })
            .collect()
    }

    fn entries() -> Vec<Entry> {
        vec![
            Entry::directory("/tmp", 0o1777),
            Entry::bytes("/etc/app/config", "x=1", 0o644),
            Entry::bytes("/etc/app/other", "", 0o600),
            Entry::symlink("/bin/sh", "busybox"),
        ]
    }

    #[test]
    fn parents_are_made_once_and_modes_are_kept() {
        let layer = from_entries(entries(), Compression::None).unwrap();
        let expected = [
            ("tmp", 0o1777, 0),
            ("etc", 0o755, 0),
            ("etc/app", 0o755, 0),
            ("etc/app/config", 0o644, 3),
            ("etc/app/other", 0o600, 0),
            ("bin", 0o755, 0),
            ("bin/sh", 0o777, 0),
        ];
        assert_eq!(names(&layer), expected.map(|(name, mode, size)| (name.to_owned(), mode, size)));
    }

    #[test]
    fn compression_changes_the_blob_and_not_the_diff_id() {
        let plain = from_entries(entries(), Compression::None).unwrap();
        let packed = from_entries(entries(), Compression::Gzip).unwrap();
        assert_eq!(plain.digest, plain.diff_id);
        assert_eq!(packed.diff_id, plain.diff_id);
        assert_ne!(packed.digest, plain.digest);
        assert_eq!(packed.size, packed.blob.metadata().unwrap().len());
    }

    #[test]
    fn the_same_entries_give_the_same_digest() {
        let digest = |compression| from_entries(entries(), compression).unwrap().digest;
        assert_eq!(digest(Compression::None), digest(Compression::None));
        assert_eq!(digest(Compression::Gzip), digest(Compression::Gzip));
    }

    #[test]
    fn a_tar_is_taken_byte_for_byte() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"abc").unwrap();
        let layer = from_tar(file.path(), Compression::Gzip).unwrap();
        assert_eq!(layer.diff_id, Digest::of(b"abc"));
    }
}
