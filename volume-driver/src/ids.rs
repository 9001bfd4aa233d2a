//! Names that become file names in the pool: checked once, trusted afterwards.

use std::fmt;

/// A name from outside that cannot become a file name in the pool.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IdError {
    /// Not the handle of a volume.
    #[error(
        "'{0}' is not a volume handle: it must be 1 to 128 letters, digits and '-', beginning with a letter or digit"
    )]
    Volume(String),
    /// Not a digest of a layer.
    #[error("'{0}' is not the digest of a layer: it must be 'sha256:' and 64 lower-case hexadecimal digits")]
    Layer(String),
}

/// CSI handle of a volume, and name of its directory in the pool: UID of its `EnvironmentVolume`, or one that
/// [`crate::claim::request`] makes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VolumeId(String);

impl VolumeId {
    /// Checks a handle.
    ///
    /// # Errors
    /// [`IdError::Volume`].
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let clean = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if (1..=128).contains(&text.len()) && clean && !text.starts_with('-') {
            Ok(Self(text.to_owned()))
        } else {
            Err(IdError::Volume(text.to_owned()))
        }
    }

    /// A handle of our own making.
    pub(crate) fn made(text: String) -> Self {
        debug_assert!(Self::parse(&text).is_ok(), "{text}");
        Self(text)
    }

    /// The handle as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Digest of a layer's uncompressed content (OCI diff id).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LayerDigest {
    hex: String,
}

impl LayerDigest {
    /// Checks a digest `sha256:<hex>`.
    ///
    /// # Errors
    /// [`IdError::Layer`].
    pub fn parse(text: &str) -> Result<Self, IdError> {
        match text.strip_prefix("sha256:") {
            Some(hex) if hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) => {
                Ok(Self { hex: hex.to_owned() })
            }
            _ => Err(IdError::Layer(text.to_owned())),
        }
    }

    /// Name of its directory in the pool: `sha256-<hex>`.
    #[must_use]
    pub fn directory(&self) -> String {
        format!("sha256-{}", self.hex)
    }

    /// The digest that a directory of the pool is named by; `None` for names that [`Self::directory`] does not make.
    #[must_use]
    pub fn from_directory(name: &str) -> Option<Self> {
        Self::parse(&format!("sha256:{}", name.strip_prefix("sha256-")?)).ok()
    }
}

impl fmt::Display for LayerDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_that_could_leave_their_directory_are_refused() {
        assert_eq!(VolumeId::parse("6f1c-A0").unwrap().as_str(), "6f1c-A0");
        for bad in ["", ".", "..", "a/b", "-x", ".deleted-a", "a\0", "ä", &"a".repeat(129)] {
            assert_eq!(VolumeId::parse(bad), Err(IdError::Volume(bad.into())));
        }
    }

    #[test]
    fn layers_and_their_directories_name_each_other() {
        let digest = LayerDigest::parse(&format!("sha256:{}", "a1".repeat(32))).unwrap();
        assert_eq!(LayerDigest::from_directory(&digest.directory()), Some(digest));
        for bad in ["", "sha256:", &format!("sha256:{}", "A1".repeat(32)), "sha512:00", "sha256:../x"] {
            assert_eq!(LayerDigest::parse(bad), Err(IdError::Layer(bad.into())));
        }
        assert_eq!(LayerDigest::from_directory(".partial-x"), None);
    }
}
