//! Configuration, manifest, index and the archive.

use std::{
    fs::File,
    io::{self, Seek},
    path::Path,
};

use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use super::{
    Error,
    digest::Digest,
    layer::{self, Compression, Entry, Layer},
    reference::Reference,
};

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const SEARCH_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Zero, as in the layers.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// An image in the making, for linux/amd64.
#[derive(Debug)]
pub struct ImageBuilder {
    reference: Reference,
    layers: Vec<Layer>,
    entrypoint: Vec<String>,
    command: Vec<String>,
    labels: serde_json::Map<String, Value>,
    user: Option<String>,
    stop_signal: Option<String>,
}

impl ImageBuilder {
    /// `reference` is the name that the image gets at import and push: `[registry/]repository:tag`.
    pub fn new(reference: &str) -> Result<Self, Error> {
        Ok(Self {
            reference: Reference::parse(reference)?,
            layers: Vec::new(),
            entrypoint: Vec::new(),
            command: Vec::new(),
            labels: serde_json::Map::new(),
            user: None,
            stop_signal: None,
        })
    }

    /// One more layer on top, from a list of entries.
    pub fn layer_from_files(mut self, entries: impl IntoIterator<Item = Entry>) -> Result<Self, Error> {
        self.layers.push(layer::from_entries(entries, Compression::None)?);
        Ok(self)
    }

    /// One more layer on top, from an uncompressed tar archive, stored with `compression`.
    pub fn layer_from_tar(mut self, path: &Path, compression: Compression) -> Result<Self, Error> {
        self.layers.push(layer::from_tar(path, compression)?);
        Ok(self)
    }

    pub fn entrypoint(mut self, words: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.entrypoint = words.into_iter().map(Into::into).collect();
        self
    }

    /// Default arguments.
    pub fn command(mut self, words: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.command = words.into_iter().map(Into::into).collect();
        self
    }

    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(name.into(), Value::String(value.into()));
        self
    }

    /// `uid`, `uid:gid` or a name of the image's `/etc/passwd`.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// Signal that asks the process to end, such as `SIGRTMIN+3`.
    pub fn stop_signal(mut self, signal: impl Into<String>) -> Self {
        self.stop_signal = Some(signal.into());
        self
    }

    /// Digest of the manifest: of the image as it is so far, whatever it is called.
    pub fn digest(&self) -> String {
        Digest::of(&self.manifest(&self.config())).to_string()
    }

    /// Calls the image something else.
    pub fn named(mut self, reference: &str) -> Result<Self, Error> {
        self.reference = Reference::parse(reference)?;
        Ok(self)
    }

    /// Writes an image layout as a tar archive and returns the digest of the manifest.
    pub fn write_archive(&self, path: &Path) -> Result<String, Error> {
        let writing = || Error::file("write", path);
        let config = self.config();
        let manifest = self.manifest(&config);
        let index = self.index(&manifest);
        let mut archive = Builder::new(File::create(path).map_err(writing())?);
        let mut append = |name: &str, bytes: &[u8]| append(&mut archive, name, bytes.len() as u64, bytes);
        append("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#).map_err(writing())?;
        append("index.json", &index).map_err(writing())?;
        for blob in [&config, &manifest] {
            append(&blob_path(&Digest::of(blob)), blob).map_err(writing())?;
        }
        for layer in &self.layers {
            let mut blob = &layer.blob;
            blob.rewind().map_err(writing())?;
            self::append(&mut archive, &blob_path(&layer.digest), layer.size, blob).map_err(writing())?;
        }
        archive.into_inner().and_then(|file| file.sync_all()).map_err(writing())?;
        Ok(Digest::of(&manifest).to_string())
    }

    fn config(&self) -> Vec<u8> {
        let mut config = json!({ "Env": [SEARCH_PATH] });
        let mut set = |name: &str, value: Value| config[name] = value;
        if !self.entrypoint.is_empty() {
            set("Entrypoint", json!(self.entrypoint));
        }
        if !self.command.is_empty() {
            set("Cmd", json!(self.command));
        }
        if !self.labels.is_empty() {
            set("Labels", json!(self.labels));
        }
        if let Some(user) = &self.user {
            set("User", json!(user));
        }
        if let Some(signal) = &self.stop_signal {
            set("StopSignal", json!(signal));
        }
        let diff_ids: Vec<_> = self.layers.iter().map(|layer| &layer.diff_id).collect();
        let history: Vec<_> = self.layers.iter().map(|_| json!({ "created": CREATED })).collect();
        bytes(&json!({
            "created": CREATED, "architecture": "amd64", "os": "linux", "config": config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids }, "history": history,
        }))
    }

    fn manifest(&self, config: &[u8]) -> Vec<u8> {
        let layers: Vec<_> =
            self.layers.iter().map(|l| descriptor(l.compression.media_type(), &l.digest, l.size)).collect();
        bytes(&json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "layers": layers,
            "config": descriptor(CONFIG, &Digest::of(config), config.len() as u64),
        }))
    }

    fn index(&self, manifest: &[u8]) -> Vec<u8> {
        let mut entry = descriptor(MANIFEST, &Digest::of(manifest), manifest.len() as u64);
        entry["platform"] = json!({ "architecture": "amd64", "os": "linux" });
        entry["annotations"] = json!({
            // Where containerd takes the name of the imported image from.
            "io.containerd.image.name": self.reference.full(),
            "org.opencontainers.image.ref.name": self.reference.tag(),
        });
        bytes(&json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry] }))
    }
}

fn descriptor(media_type: &str, digest: &Digest, size: u64) -> Value {
    json!({ "mediaType": media_type, "digest": digest, "size": size })
}

fn bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn append<W: io::Write>(archive: &mut Builder<W>, name: &str, size: u64, content: impl io::Read) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_size(size);
    header.set_mtime(0);
    archive.append_data(&mut header, name, content)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, io::Read};

    use super::*;

    fn image() -> ImageBuilder {
        ImageBuilder::new("docker.io/library/thing:lab")
            .unwrap()
            .layer_from_files([Entry::bytes("/bin/thing", "#!", 0o755)])
            .unwrap()
            .entrypoint(["/bin/thing"])
            .stop_signal("SIGRTMIN+3")
    }

    fn unpack(path: &Path) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(File::open(path).unwrap());
        archive
            .entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                (entry.path().unwrap().display().to_string(), content)
            })
            .collect()
    }

    #[test]
    fn every_descriptor_of_an_archive_names_a_blob_of_that_digest_and_size() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let digest = image().write_archive(file.path()).unwrap();
        let files = unpack(file.path());
        let parse = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
        let resolve = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap();
            let blob = &files[&format!("blobs/sha256/{}", digest.trim_start_matches("sha256:"))];
            assert_eq!(Digest::of(blob).to_string(), digest);
            assert_eq!(blob.len() as u64, descriptor["size"].as_u64().unwrap());
            blob.clone()
        };
        let entry = parse(&files["index.json"])["manifests"][0].clone();
        assert_eq!(entry["digest"], digest);
        assert_eq!(entry["annotations"]["io.containerd.image.name"], "docker.io/library/thing:lab");
        let manifest = parse(&resolve(&entry));
        let config = parse(&resolve(&manifest["config"]));
        assert_eq!(config["config"]["Entrypoint"], json!(["/bin/thing"]));
        assert_eq!(config["config"]["StopSignal"], "SIGRTMIN+3");
        let layer = resolve(&manifest["layers"][0]);
        assert_eq!(config["rootfs"]["diff_ids"], json!([Digest::of(&layer)]));
    }

    #[test]
    fn the_digest_depends_on_the_content_alone() {
        let digest = |image: &ImageBuilder| {
            let file = tempfile::NamedTempFile::new().unwrap();
            image.write_archive(file.path()).unwrap()
        };
        assert_eq!(digest(&image()), digest(&image()));
        assert_ne!(digest(&image()), digest(&image().user("1000")));
    }
}
