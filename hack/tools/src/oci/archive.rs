//! An image archive as [`super::ImageBuilder::write_archive`] left it, read without unpacking it, so that what is in the
//! cache can be pushed again at the cost of asking the registry what it has.

use std::{collections::BTreeMap, fs::File, io::Read, path::Path};

use serde_json::Value;

use super::{
    Error,
    digest::Digest,
    push::{Blob, Registry},
    reference::Reference,
};

/// An archive with one image.
#[derive(Debug)]
pub struct Archive {
    file: File,
    reference: Reference,
    digest: String,
    manifest: Vec<u8>,
    /// Blobs by the digits of their digest: where they begin and how long they are.
    blobs: BTreeMap<String, (u64, u64)>,
}

impl Archive {
    /// Reads the table of contents.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let reading = || Error::file("read", path);
        let wrong = |what: &'static str| Error::Archive { path: path.into(), what };
        let file = File::open(path).map_err(reading())?;
        let mut index = Vec::new();
        let mut blobs = BTreeMap::new();
        let mut archive = tar::Archive::new(&file);
        for entry in archive.entries_with_seek().map_err(reading())? {
            let mut entry = entry.map_err(reading())?;
            let name = entry.path().map_err(reading())?.to_string_lossy().into_owned();
            if let Some(digits) = name.strip_prefix("blobs/sha256/") {
                blobs.insert(digits.to_owned(), (entry.raw_file_position(), entry.size()));
            } else if name == "index.json" {
                entry.read_to_end(&mut index).map_err(reading())?;
            }
        }
        let index: Value = serde_json::from_slice(&index).map_err(|_| wrong("its index.json is missing or damaged"))?;
        let image = &index["manifests"][0];
        let digest = image["digest"].as_str().ok_or_else(|| wrong("its index names no manifest"))?;
        let name = image["annotations"]["io.containerd.image.name"].as_str();
        let reference = Reference::parse(name.ok_or_else(|| wrong("its index does not say what it is called"))?)?;
        let mut archive = Self { file, reference, digest: digest.to_owned(), manifest: Vec::new(), blobs };
        let manifest = Digest::parse(digest).and_then(|digest| archive.blob(&digest));
        archive.manifest = match manifest {
            Some(Blob { file, offset, size }) => {
                let mut bytes = vec![0; size as usize];
                std::os::unix::fs::FileExt::read_exact_at(file, &mut bytes, offset).map_err(reading())?;
                bytes
            }
            None => return Err(wrong("its manifest is missing")),
        };
        Ok(archive)
    }

    /// What the image is called: `[registry/]repository:tag`.
    pub fn reference(&self) -> &str {
        self.reference.full()
    }

    /// Digest of the manifest.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The manifest as it stands in the archive.
    pub fn manifest(&self) -> &[u8] {
        &self.manifest
    }

    /// Uploads what the registry at `base` (`http://host:port`) does not have yet, then the manifest. Must run where the
    /// registry can be reached.
    pub fn push(&self, base: &str) -> Result<(), Error> {
        let registry = Registry::new(base, self.reference.repository());
        let manifest: Value = serde_json::from_slice(&self.manifest).unwrap_or_default();
        let layers = manifest["layers"].as_array().into_iter().flatten();
        for descriptor in layers.chain([&manifest["config"]]) {
            let digest = descriptor["digest"].as_str().and_then(Digest::parse);
            let blob = digest.as_ref().and_then(|digest| Some((digest, self.blob(digest)?)));
            let (digest, blob) = blob.ok_or_else(|| Error::Archive {
                path: self.reference().into(),
                what: "its manifest names a blob that it does not hold",
            })?;
            registry.upload(digest, &blob)?;
        }
        registry.tag(self.reference.tag(), &self.manifest)
    }

    fn blob(&self, digest: &Digest) -> Option<Blob<'_>> {
        let (offset, size) = *self.blobs.get(digest.hex())?;
        Some(Blob { file: &self.file, offset, size })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Entry, ImageBuilder};
    use super::*;

    #[test]
    fn an_archive_says_what_it_was_written_as() {
        let image = ImageBuilder::new("10.0.0.1:5000/a/b:1").unwrap();
        let image = image.layer_from_files([Entry::bytes("/f", "x", 0o644)]).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let digest = image.write_archive(file.path()).unwrap();
        let archive = Archive::open(file.path()).unwrap();
        assert_eq!((archive.reference(), archive.digest()), ("10.0.0.1:5000/a/b:1", digest.as_str()));
        assert_eq!(Digest::of(&archive.manifest).to_string(), digest);
        assert_eq!(archive.blobs.len(), 3);
    }

    #[test]
    fn a_file_that_is_no_archive_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Archive::open(file.path()).unwrap_err();
        assert!(error.to_string().contains("index.json"), "{error}");
    }
}
