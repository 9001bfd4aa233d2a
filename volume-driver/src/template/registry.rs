//! Reading an image from its registry: reference to manifest, manifest to layers. Every document is checked against the
//! digest that names it, also where the client library does so too.

use std::time::Duration;

use futures::StreamExt;
use oci_client::client::{ClientConfig, ClientProtocol, current_platform_resolver};
use oci_client::errors::{DigestError, OciDistributionError, OciErrorCode};
use oci_client::manifest::{OciDescriptor, OciManifest};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use tokio::sync::OnceCell;

use super::TemplateError;
use crate::ids::LayerDigest;

/// Without a byte for so long a transfer is given up.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Documents that are read.
const MANIFEST_TYPES: &[&str] = &[
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
/// Largest configuration document of an image.
const CONFIG_MAX: u64 = 4 << 20;
/// Most layers of an image; overlayfs takes no more either.
const LAYERS_MAX: usize = 128;

/// How a layer's blob is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    None,
    Gzip,
    Zstd,
}

/// One layer of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layer {
    /// Digest of the content, which names it in the pool.
    pub digest: LayerDigest,
    /// Digest of the blob.
    pub blob: String,
    /// Bytes of the blob.
    pub size: u64,
    pub packing: Packing,
}

/// An image whose manifest and configuration were read.
#[derive(Clone, Debug)]
pub struct Image {
    pub(super) reference: Reference,
    /// Digest of the manifest for this platform.
    pub digest: String,
    /// Layers, lowest first.
    pub(super) layers: Vec<Layer>,
}

impl Image {
    /// Digests of the layers' content, lowest first.
    #[must_use]
    pub fn layers(&self) -> Vec<LayerDigest> {
        self.layers.iter().map(|layer| layer.digest.clone()).collect()
    }
}

/// The part of an image's configuration that is read.
#[derive(Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

/// Registries, read without credentials.
pub(super) struct Registry {
    /// Those that are spoken to in plain HTTP.
    plain_http: Vec<String>,
    /// Made when it is first needed: it reads all certificates of the system.
    client: OnceCell<Client>,
}

impl Registry {
    /// Plain HTTP is spoken to the given registries and HTTPS to all others.
    pub fn new(plain_http: Vec<String>) -> Self {
        Self { plain_http, client: OnceCell::new() }
    }

    async fn client(&self) -> Result<&Client, TemplateError> {
        let make = async || {
            let config = ClientConfig {
                protocol: ClientProtocol::HttpsExcept(self.plain_http.clone()),
                read_timeout: Some(READ_TIMEOUT),
                connect_timeout: Some(CONNECT_TIMEOUT),
                ..ClientConfig::default()
            };
            Client::try_from(config).map_err(|error| TemplateError::Client(chain(&error)))
        };
        self.client.get_or_try_init(make).await
    }

    /// Reads manifest and configuration of an image.
    pub async fn resolve(&self, image: &str) -> Result<Image, TemplateError> {
        let reference: Reference = image.parse().map_err(|error: oci_client::ParseError| TemplateError::Reference {
            image: image.to_owned(),
            message: error.to_string(),
        })?;
        let (manifest, digest) = self.manifest(image, &reference).await?;
        let (manifest, digest) = match manifest {
            OciManifest::Image(manifest) => (manifest, digest),
            OciManifest::ImageIndex(index) => {
                let missing = || TemplateError::NotFound {
                    image: image.to_owned(),
                    message: format!("it has no variant for {}", std::env::consts::ARCH),
                };
                let digest = current_platform_resolver(&index.manifests).ok_or_else(missing)?;
                match self.manifest(image, &reference.clone_with_digest(digest)).await? {
                    (OciManifest::Image(manifest), digest) => (manifest, digest),
                    (OciManifest::ImageIndex(_), _) => {
                        return Err(invalid(image, "its index names another index instead of a manifest"));
                    }
                }
            }
        };
        let config = self.config(image, &reference, &manifest.config).await?;
        if manifest.layers.is_empty() || manifest.layers.len() > LAYERS_MAX {
            let count = manifest.layers.len();
            return Err(invalid(image, &format!("it has {count} layers, and 1 to {LAYERS_MAX} are possible")));
        }
        if manifest.layers.len() != config.rootfs.diff_ids.len() {
            return Err(invalid(image, "its manifest and its configuration name different numbers of layers"));
        }
        let layers = manifest.layers.iter().zip(&config.rootfs.diff_ids).map(|(layer, id)| {
            Ok(Layer {
                digest: LayerDigest::parse(id).map_err(|error| invalid(image, &error.to_string()))?,
                blob: LayerDigest::parse(&layer.digest)
                    .map_err(|error| invalid(image, &error.to_string()))?
                    .to_string(),
                size: u64::try_from(layer.size).map_err(|_| invalid(image, "a layer has a negative size"))?,
                packing: packing(&layer.media_type)
                    .ok_or_else(|| invalid(image, &format!("a layer has the unknown type '{}'", layer.media_type)))?,
            })
        });
        let layers = layers.collect::<Result<_, TemplateError>>()?;
        Ok(Image { reference, digest, layers })
    }

    async fn manifest(&self, image: &str, reference: &Reference) -> Result<(OciManifest, String), TemplateError> {
        let (bytes, _) = self
            .client()
            .await?
            .pull_manifest_raw(reference, &RegistryAuth::Anonymous, MANIFEST_TYPES)
            .await
            .map_err(|error| classify(image, &error))?;
        let digest = digest_of(&bytes);
        if let Some(wanted) = reference.digest()
            && wanted != digest
        {
            return Err(TemplateError::Digest {
                what: format!("manifest of {image}"),
                wanted: wanted.into(),
                found: digest,
            });
        }
        let manifest = serde_json::from_slice(&bytes)
            .map_err(|error| invalid(image, &format!("its manifest cannot be read: {error}")))?;
        Ok((manifest, digest))
    }

    async fn config(&self, image: &str, reference: &Reference, blob: &OciDescriptor) -> Result<Config, TemplateError> {
        let size = u64::try_from(blob.size).unwrap_or(u64::MAX);
        if size > CONFIG_MAX {
            return Err(invalid(image, &format!("its configuration of {size} bytes is too large")));
        }
        let mut bytes = Vec::new();
        self.blob(image, reference, &blob.digest, size, &mut bytes).await?;
        serde_json::from_slice(&bytes)
            .map_err(|error| invalid(image, &format!("its configuration cannot be read: {error}")))
    }

    /// Writes a blob out. It has exactly the size and the digest that are asked for, or this fails.
    pub async fn blob(
        &self,
        image: &str,
        reference: &Reference,
        digest: &str,
        size: u64,
        out: &mut (impl tokio::io::AsyncWrite + Unpin),
    ) -> Result<(), TemplateError> {
        let mismatch =
            |found: String| TemplateError::Digest { what: format!("blob of {image}"), wanted: digest.into(), found };
        // By digest alone: a descriptor may also name other places to load from, which nobody asked for.
        let mut stream =
            self.client().await?.pull_blob_stream(reference, digest).await.map_err(|error| classify(image, &error))?;
        let mut hash = Sha256::new();
        let mut received = 0u64;
        while let Some(piece) = stream.next().await {
            let piece = piece.map_err(|error| match error.get_ref().and_then(|e| e.downcast_ref::<DigestError>()) {
                Some(error) => mismatch(error.to_string()),
                None => TemplateError::Unreachable { image: image.into(), message: chain(&error) },
            })?;
            received += piece.len() as u64;
            if received > size {
                return Err(mismatch(format!("more than the {size} bytes that its descriptor names")));
            }
            hash.update(&piece);
            out.write_all(&piece).await.map_err(TemplateError::blob)?;
        }
        out.flush().await.map_err(TemplateError::blob)?;
        let found = format!("sha256:{}", hex(&hash.finalize()));
        if received == size && found == digest {
            Ok(())
        } else {
            Err(mismatch(format!("{received} bytes with {found}")))
        }
    }
}

fn packing(media_type: &str) -> Option<Packing> {
    match media_type {
        "application/vnd.oci.image.layer.v1.tar" | "application/vnd.docker.image.rootfs.diff.tar" => {
            Some(Packing::None)
        }
        "application/vnd.oci.image.layer.v1.tar+gzip" | "application/vnd.docker.image.rootfs.diff.tar.gzip" => {
            Some(Packing::Gzip)
        }
        "application/vnd.oci.image.layer.v1.tar+zstd" => Some(Packing::Zstd),
        _ => None,
    }
}

fn invalid(image: &str, message: &str) -> TemplateError {
    TemplateError::Invalid { image: image.to_owned(), message: message.to_owned() }
}

/// Whether the image is not there, or its registry does not answer.
fn classify(image: &str, error: &OciDistributionError) -> TemplateError {
    let (image, message) = (image.to_owned(), chain(error));
    let missing = |code: &OciErrorCode| {
        matches!(
            code,
            OciErrorCode::ManifestUnknown
                | OciErrorCode::ManifestBlobUnknown
                | OciErrorCode::BlobUnknown
                | OciErrorCode::NameUnknown
                | OciErrorCode::NameInvalid
                | OciErrorCode::NotFound
                | OciErrorCode::Denied
                | OciErrorCode::Unauthorized
        )
    };
    match error {
        OciDistributionError::RegistryError { envelope, .. } if envelope.errors.iter().any(|e| missing(&e.code)) => {
            TemplateError::NotFound { image, message }
        }
        OciDistributionError::ImageManifestNotFoundError(_)
        | OciDistributionError::UnauthorizedError { .. }
        | OciDistributionError::AuthenticationFailure(_)
        | OciDistributionError::ServerError { code: 401 | 403 | 404, .. } => TemplateError::NotFound { image, message },
        OciDistributionError::DigestError(_) => TemplateError::Digest {
            what: format!("content of {image}"),
            wanted: "the digest asked for".into(),
            found: message,
        },
        OciDistributionError::ManifestParsingError(_)
        | OciDistributionError::ManifestEncodingError(_)
        | OciDistributionError::VersionedParsingError(_)
        | OciDistributionError::UnsupportedMediaTypeError(_)
        | OciDistributionError::UnsupportedSchemaVersionError(_)
        | OciDistributionError::JsonError(_) => TemplateError::Invalid { image, message },
        _ => TemplateError::Unreachable { image, message },
    }
}

/// An error with all its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// `sha256:` and the digest of bytes.
pub(crate) fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

/// Lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
