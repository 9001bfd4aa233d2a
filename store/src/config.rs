//! Where a store is, as a plain value that was checked before anything is opened. Credentials are a type of their own
//! that no message can show.

use std::fmt;
use std::path::PathBuf;

/// A configuration that cannot be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The endpoint.
    #[error("the endpoint '{endpoint}' of the store is not usable: {reason}")]
    Endpoint {
        /// As given, without what stands before an '@'.
        endpoint: String,
        /// What is wrong, and what to do.
        reason: &'static str,
    },
    /// The bucket.
    #[error("'{0}' is not the name of a bucket: it must be 3 to 63 small letters, digits, '-' and '.'")]
    Bucket(String),
    /// The prefix.
    #[error(
        "'{0}' cannot stand before the names of objects: it must be segments of letters, digits, '-', '_' and '.' with '/' between them"
    )]
    Prefix(String),
    /// The region.
    #[error("'{0}' is not a region: it must be letters, digits and '-'")]
    Region(String),
    /// The directory.
    #[error("the directory '{}' of the store must be an absolute path without '..'", .0.display())]
    Directory(PathBuf),
    /// A mirror that is none.
    #[error("{0} is named twice: a mirror of the store has to be another place")]
    Twice(String),
    /// Credentials.
    #[error(
        "the credentials of the store are empty or hold characters that no credentials have: give the access key and the secret key as they are, without line breaks"
    )]
    Credential,
}

/// Something that must not be seen: neither `Debug` nor any message shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential(String);

impl Credential {
    /// Takes it as it is, without white space around it.
    #[must_use]
    pub fn new(value: &str) -> Self {
        Self(value.trim().to_owned())
    }

    /// For the back end alone.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }

    fn is_usable(&self) -> bool {
        !self.0.is_empty() && self.0.chars().all(|c| c.is_ascii_graphic())
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[hidden]")
    }
}

/// A bucket of an S3 store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3 {
    /// URL of the server.
    pub endpoint: String,
    /// The bucket; it must exist.
    pub bucket: String,
    /// Region that requests are signed for.
    pub region: String,
    /// What stands before the name of each object; may be empty.
    pub prefix: String,
    /// Whether the bucket is part of the path and not of the host name.
    pub path_style: bool,
    /// Whether the endpoint may be plain http.
    pub allow_http: bool,
    /// Who asks.
    pub access_key: Credential,
    /// Proof of it.
    pub secret_key: Credential,
}

/// The engine that keeps the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// A bucket.
    S3(Box<S3>),
    /// A directory of this machine.
    Local {
        /// Absolute; made when it is not there.
        directory: PathBuf,
    },
    /// The memory of this process, for tests.
    Memory,
}

/// A store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What messages call it.
    pub name: String,
    /// The engine.
    pub backend: Backend,
    /// Those that get everything after it, one after the other.
    pub mirrors: Vec<Backend>,
}

impl Config {
    /// Checks everything that can be checked without asking the store.
    ///
    /// # Errors
    /// [`ConfigError`] names what is wrong.
    pub fn check(&self) -> Result<(), ConfigError> {
        let all: Vec<&Backend> = std::iter::once(&self.backend).chain(&self.mirrors).collect();
        for (n, backend) in all.iter().enumerate() {
            backend.check()?;
            if all[..n].iter().any(|other| other.is_same_place(backend)) {
                return Err(ConfigError::Twice(backend.to_string()));
            }
        }
        Ok(())
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::S3(s3) => write!(f, "bucket '{}'", s3.bucket),
            Self::Local { directory } => write!(f, "directory {}", directory.display()),
            Self::Memory => f.write_str("memory"),
        }
    }
}

impl Backend {
    /// Whether what is in the one is in the other, as far as can be seen from here.
    fn is_same_place(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::S3(a), Self::S3(b)) => (&a.endpoint, &a.bucket, &a.prefix) == (&b.endpoint, &b.bucket, &b.prefix),
            (Self::Local { directory: a }, Self::Local { directory: b }) => a == b,
            _ => false,
        }
    }

    fn check(&self) -> Result<(), ConfigError> {
        match self {
            Self::Memory => Ok(()),
            Self::Local { directory } => {
                let plain = |part| !matches!(part, std::path::Component::ParentDir);
                if directory.is_absolute() && directory.components().all(plain) {
                    Ok(())
                } else {
                    Err(ConfigError::Directory(directory.clone()))
                }
            }
            Self::S3(s3) => s3.check(),
        }
    }
}

impl S3 {
    fn check(&self) -> Result<(), ConfigError> {
        if let Err(reason) = check_endpoint(&self.endpoint, self.allow_http) {
            // What stands before an '@' may be a password.
            let endpoint = self.endpoint.rsplit('@').next().unwrap_or_default().to_owned();
            return Err(ConfigError::Endpoint { endpoint, reason });
        }
        let bucket = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
        if !(3..=63).contains(&self.bucket.len())
            || !self.bucket.chars().all(bucket)
            || self.bucket.starts_with('.')
            || self.bucket.contains("..")
        {
            return Err(ConfigError::Bucket(self.bucket.clone()));
        }
        if self.region.is_empty() || !self.region.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
            return Err(ConfigError::Region(self.region.clone()));
        }
        let segments = self.prefix.split('/').all(|segment| crate::Name::new(segment).is_ok());
        if !(self.prefix.is_empty() || segments) {
            return Err(ConfigError::Prefix(self.prefix.clone()));
        }
        if !self.access_key.is_usable() || !self.secret_key.is_usable() {
            return Err(ConfigError::Credential);
        }
        Ok(())
    }
}

fn check_endpoint(endpoint: &str, allow_http: bool) -> Result<(), &'static str> {
    let host = if let Some(host) = endpoint.strip_prefix("https://") {
        host
    } else if let Some(host) = endpoint.strip_prefix("http://") {
        if !allow_http {
            return Err("it is plain http, which shows everything to the network: use https, or allow plain text");
        }
        host
    } else {
        return Err("it must begin with https:// (or http://)");
    };
    if host.contains('@') {
        return Err("it must not hold credentials: give them apart from it");
    }
    if host.contains(['?', '#']) || host.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err("it must be a host, a port if need be, and a path at most");
    }
    if host.split('/').next().is_none_or(str::is_empty) {
        return Err("it names no host");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s3() -> S3 {
        S3 {
            endpoint: "https://store.example.org:8443".into(),
            bucket: "journals".into(),
            region: "us-east-1".into(),
            prefix: "cluster-a/vivarium".into(),
            path_style: true,
            allow_http: false,
            access_key: Credential::new("AKIA-visible-nowhere"),
            secret_key: Credential::new("hush-visible-nowhere\n"),
        }
    }

    #[test]
    fn what_cannot_be_right_is_refused_by_its_name() {
        let refused = |change: fn(&mut S3), message: &str| {
            let mut s3 = s3();
            change(&mut s3);
            let error = s3.check().unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        };
        assert_eq!(s3().check(), Ok(()));
        refused(|s| s.endpoint = "http://store".into(), "plain http");
        refused(|s| s.endpoint = "store:80".into(), "must begin with https://");
        refused(|s| s.endpoint = "https://a:b@store".into(), "credentials");
        refused(|s| s.endpoint = "https:///x".into(), "names no host");
        refused(|s| s.endpoint = "https://store?x=y".into(), "a path at most");
        refused(|s| s.bucket = "No".into(), "not the name of a bucket");
        refused(|s| s.region = String::new(), "not a region");
        refused(|s| s.prefix = "../other".into(), "cannot stand before");
        refused(|s| s.prefix = "a//b".into(), "cannot stand before");
        refused(|s| s.access_key = Credential::new(" "), "credentials");
        refused(|s| s.secret_key = Credential::new("a\nb"), "credentials");
        for (path, good) in [("/var/lib/x", true), ("var", false), ("/var/../etc", false)] {
            let config =
                Config { name: "x".into(), backend: Backend::Local { directory: path.into() }, mirrors: vec![] };
            assert_eq!(config.check().is_ok(), good, "{path}");
        }
    }

    #[test]
    fn a_mirror_is_right_by_itself_and_another_place() {
        let at = |change: fn(&mut S3)| {
            let mut s3 = s3();
            change(&mut s3);
            Backend::S3(Box::new(s3))
        };
        let checked = |mirrors: Vec<Backend>| Config { name: "x".into(), backend: at(|_| {}), mirrors }.check();
        assert_eq!(checked(vec![at(|s| s.bucket = "other".into()), at(|s| s.prefix = "other".into())]), Ok(()));
        assert_eq!(checked(vec![at(|s| s.endpoint = "https://elsewhere".into())]), Ok(()));
        let other = || at(|s| s.bucket = "other".into());
        for mirrors in [vec![at(|s| s.region = "eu".into())], vec![other(), other()]] {
            let error = checked(mirrors).unwrap_err().to_string();
            assert!(error.contains("bucket '") && error.contains("twice"), "{error}");
        }
        assert_eq!(checked(vec![at(|s| s.bucket = "No".into())]), Err(ConfigError::Bucket("No".into())));
    }

    #[test]
    fn credentials_are_in_no_message() {
        let mut shown = vec![
            format!("{:?}", s3()),
            format!("{:#?}", Config { name: "x".into(), backend: Backend::S3(Box::new(s3())), mirrors: vec![] }),
        ];
        let mut wrong = s3();
        wrong.secret_key = Credential::new("hush-visible-nowhere and a blank");
        wrong.endpoint = "https://x:hush-visible-nowhere@store".into();
        shown.extend([wrong.check().unwrap_err().to_string(), format!("{:?}", wrong.check().unwrap_err())]);
        wrong.endpoint = s3().endpoint;
        shown.extend([wrong.check().unwrap_err().to_string(), format!("{:?}", wrong.check().unwrap_err())]);
        for text in shown {
            assert!(!text.contains("visible-nowhere"), "{text}");
        }
    }
}
