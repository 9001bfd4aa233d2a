//! A store as the cluster's objects describe it: a `JournalStore` and the Secrets with its credentials.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use k8s_openapi::api::core::v1::Secret;
use vivarium_api::v1alpha1::JournalStore;
use vivarium_api::v1alpha1::store::S3Store;

use crate::{Backend, Cause, Config, Credential, OpenError, ProveError, S3};

/// Keys of the Secret, as other programs and operators name them.
pub const ACCESS_KEY: &str = "AWS_ACCESS_KEY_ID";
/// See [`ACCESS_KEY`].
pub const SECRET_KEY: &str = "AWS_SECRET_ACCESS_KEY";

/// Why a store cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// It does not do what it has to.
    #[error("{0}")]
    NotAtomic(String),
    /// No credentials.
    #[error("{0}")]
    CredentialsMissing(String),
    /// No answer, or none of use.
    #[error("{0}")]
    Unreachable(String),
    /// The spec is wrong.
    #[error("{0}")]
    Invalid(String),
}

impl StoreError {
    /// As one word of the runbook.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotAtomic(_) => "NotAtomic",
            Self::CredentialsMissing(_) => "CredentialsMissing",
            Self::Unreachable(_) => "Unreachable",
            Self::Invalid(_) => "Invalid",
        }
    }
}

impl From<OpenError> for StoreError {
    fn from(error: OpenError) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl From<ProveError> for StoreError {
    fn from(error: ProveError) -> Self {
        let text = error.to_string();
        match error {
            ProveError::NotAtomic { .. } => Self::NotAtomic(text),
            ProveError::Failed { failure, .. } => match failure.cause {
                Cause::Denied => Self::Invalid(format!("{text}. Check the credentials and what they allow")),
                Cause::Missing => Self::Invalid(format!("{text}. Create the bucket, or correct its name")),
                Cause::Full => Self::Unreachable(format!("{text}. It is full: make room in it")),
                Cause::TimedOut | Cause::Unreachable | Cause::Other => Self::Unreachable(text),
            },
        }
    }
}

/// Secrets by name, as far as they are there.
pub type Secrets = BTreeMap<String, Secret>;

/// Names of the Secrets that hold the credentials of an object's buckets.
#[must_use]
pub fn secrets(object: &JournalStore) -> BTreeSet<&str> {
    object.spec.buckets().map(|s3| s3.credentials_secret.name.as_str()).collect()
}

/// How to open the store of an object.
///
/// # Errors
/// The object is neither of the two kinds of stores, or a Secret is missing or lacks a key.
pub fn config(object: &JournalStore, secrets: &Secrets) -> Result<Config, StoreError> {
    let name = object.metadata.name.clone().unwrap_or_default();
    let open = |s3: &S3Store| -> Result<Backend, StoreError> {
        let named = &s3.credentials_secret.name;
        let missing = || StoreError::CredentialsMissing(format!("there is no Secret '{named}' for store '{name}'"));
        let (access_key, secret_key) = credentials(secrets.get(named).ok_or_else(missing)?)?;
        Ok(Backend::S3(Box::new(bucket(s3, access_key, secret_key))))
    };
    let backend = match (&object.spec.s3, &object.spec.local) {
        (Some(s3), None) => open(s3)?,
        (None, Some(local)) => Backend::Local { directory: PathBuf::from(&local.path) },
        _ => return Err(StoreError::Invalid("give exactly one of spec.s3 and spec.local".into())),
    };
    let mirrors = object.spec.mirrors.iter().map(open).collect::<Result<_, _>>()?;
    Ok(Config { name, backend, mirrors })
}

/// What is in the Secret.
fn credentials(secret: &Secret) -> Result<(Credential, Credential), StoreError> {
    let value = |key: &str| {
        let value = secret.data.as_ref()?.get(key)?;
        std::str::from_utf8(&value.0).ok().map(Credential::new)
    };
    match (value(ACCESS_KEY), value(SECRET_KEY)) {
        (Some(access), Some(secret)) => Ok((access, secret)),
        _ => Err(StoreError::CredentialsMissing(format!(
            "Secret '{}' lacks one of the keys {ACCESS_KEY} and {SECRET_KEY}, or it is no text",
            secret.metadata.name.as_deref().unwrap_or_default()
        ))),
    }
}

fn bucket(s3: &S3Store, access_key: Credential, secret_key: Credential) -> S3 {
    S3 {
        endpoint: s3.endpoint.clone(),
        bucket: s3.bucket.clone(),
        region: s3.region.clone(),
        prefix: s3.prefix.clone(),
        path_style: s3.path_style,
        allow_http: s3.allow_http,
        access_key,
        secret_key,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    #[test]
    fn credentials_that_lack_a_key_are_named() {
        let secret = |data: &[(&str, &[u8])]| {
            let data: BTreeMap<_, _> =
                data.iter().map(|(key, value)| ((*key).to_owned(), ByteString(value.to_vec()))).collect();
            let mut secret = Secret { data: Some(data), ..Secret::default() };
            secret.metadata.name = Some("keys".into());
            secret
        };
        assert!(credentials(&secret(&[(ACCESS_KEY, b"a"), (SECRET_KEY, b"b")])).is_ok());
        let incomplete: [&[(&str, &[u8])]; 3] =
            [&[], &[(ACCESS_KEY, b"a")], &[(ACCESS_KEY, b"a"), (SECRET_KEY, b"\xff")]];
        for data in incomplete {
            let error = credentials(&secret(data)).unwrap_err();
            assert_eq!(error.reason(), "CredentialsMissing");
            assert!(error.to_string().contains("'keys'") && error.to_string().contains(SECRET_KEY), "{error}");
        }
    }
}
