//! Opens the back end that a configuration names. Nothing is asked of the store yet; that is what a proof is for.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, S3ConditionalPut};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::{ClientOptions, ObjectStore, RetryConfig};

use crate::failure::Redaction;
use crate::store::Inner;
use crate::{Backend, Config, ConfigError, S3, Store, durable};

/// A server that does not take a connection in this time is not there.
const CONNECT: Duration = Duration::from_secs(3);

/// The store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// What was configured.
    #[error("store '{name}': {source}")]
    Config {
        /// Name of the store.
        name: String,
        /// What is wrong.
        source: ConfigError,
    },
    /// The directory.
    #[error("store '{name}': the directory {} cannot be used: {source}. It must be possible to make it or write in it", directory.display())]
    Directory {
        /// Name of the store.
        name: String,
        /// The directory.
        directory: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The back end refused.
    #[error("store '{name}' cannot be opened: {message}")]
    Backend {
        /// Name of the store.
        name: String,
        /// What it said.
        message: String,
    },
}

impl Store {
    /// Opens a store and its mirrors.
    ///
    /// # Errors
    /// [`OpenError`]: the configuration is wrong, or a directory cannot be made.
    pub fn open(config: &Config) -> Result<Self, OpenError> {
        let name = &config.name;
        config.check().map_err(|source| OpenError::Config { name: name.clone(), source })?;
        let inner = open(name, &config.backend)?;
        let mirror = |(n, backend)| {
            let name = format!("{name}, mirror {}", n + 1);
            open(&name, backend).map(|inner| Self::of(&name, inner))
        };
        let mirrors = config.mirrors.iter().enumerate().map(mirror).collect::<Result<_, _>>()?;
        Ok(Self::of(name, Inner { mirrors, ..inner }))
    }
}

fn open(name: &str, backend: &Backend) -> Result<Inner, OpenError> {
    match backend {
        Backend::Memory => Ok(Inner::of(Arc::new(InMemory::new()))),
        Backend::Local { directory } => {
            let failed = |source| OpenError::Directory { name: name.into(), directory: directory.clone(), source };
            durable::make_root(directory).map_err(failed)?;
            let directory = directory.canonicalize().map_err(failed)?;
            let swept = durable::sweep(&directory).map_err(failed)?;
            if swept > 0 {
                tracing::info!(store = name, swept, "removed what interrupted writers had left");
            }
            let objects = LocalFileSystem::new_with_prefix(&directory)
                .map_err(|error| OpenError::Backend { name: name.into(), message: error.to_string() })?
                .with_fsync(true);
            Ok(Inner { root: Some(directory), ..Inner::of(Arc::new(objects)) })
        }
        Backend::S3(s3) => {
            let secrets = [&s3.access_key, &s3.secret_key].map(|secret| secret.reveal().to_owned());
            let redaction = Redaction::of(secrets);
            let objects = client(s3).map_err(|error| OpenError::Backend {
                name: name.into(),
                message: redaction.clean(&error.to_string()),
            })?;
            Ok(Inner { prefix: s3.prefix.clone(), redaction, ..Inner::of(objects) })
        }
    }
}

fn client(s3: &S3) -> object_store::Result<Arc<dyn ObjectStore>> {
    // The one cryptography of the process; whoever was first, it is the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // Time-outs are those of each call. Retries are the business of those who know what a lost answer means.
    let options = ClientOptions::new()
        .with_allow_http(s3.allow_http)
        .with_connect_timeout(CONNECT)
        .with_timeout_disabled()
        .with_http1_only();
    let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
    let client = AmazonS3Builder::new()
        .with_endpoint(&s3.endpoint)
        .with_bucket_name(&s3.bucket)
        .with_region(&s3.region)
        .with_virtual_hosted_style_request(!s3.path_style)
        .with_allow_http(s3.allow_http)
        .with_access_key_id(s3.access_key.reveal())
        .with_secret_access_key(s3.secret_key.reveal())
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_disable_tagging(true)
        .with_disable_bulk_delete(true)
        .with_client_options(options)
        .with_retry(retry)
        .build()?;
    Ok(Arc::new(client))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Credential;

    #[test]
    fn an_open_store_shows_no_credentials() {
        let config = Config {
            name: "default".into(),
            backend: Backend::S3(Box::new(S3 {
                endpoint: "https://127.0.0.1:1".into(),
                bucket: "journals".into(),
                region: "us-east-1".into(),
                prefix: String::new(),
                path_style: true,
                allow_http: false,
                access_key: Credential::new("AKIA-visible-nowhere"),
                secret_key: Credential::new("hush-visible-nowhere"),
            })),
            mirrors: vec![],
        };
        let store = Store::open(&config).unwrap();
        for text in [format!("{store:?}"), format!("{store:#?}"), store.to_string()] {
            assert!(!text.contains("visible-nowhere"), "{text}");
        }
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let config = Config {
            name: "default".into(),
            backend: Backend::Local { directory: "/proc/none/x".into() },
            mirrors: vec![],
        };
        let error = Store::open(&config).unwrap_err().to_string();
        assert!(error.contains("store 'default'") && error.contains("/proc/none/x"), "{error}");
    }
}
