//! The small object that stands for a large one: which parts it has and what is in them. Pure: bytes to value and back.
//! The layout is specified in `docs/src/formats/store.md`.

use crate::{Digest, Name};

/// First bytes of a manifest. A content that begins like this is always stored behind a manifest of its own, so that
/// nothing that a tenant can write is ever taken for one.
pub const MAGIC: [u8; 8] = *b"VIVSPLIT";
const VERSION: u16 = 1;
const WRITER: usize = 16;
const HEADER: usize = MAGIC.len() + 2 + 2 + 4 + WRITER + 8 + 32;
const ENTRY: usize = 4 + 32;
const TRAILER: usize = 32;
/// Most parts that a manifest can name; it still fits into one object.
pub const MAX_PARTS: usize = 1 << 18;

/// One part of a content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its bytes.
    pub length: u32,
    /// BLAKE3 of them.
    pub digest: Digest,
}

/// What is behind a large object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The attempt that wrote it; its parts carry the same.
    pub writer: u128,
    /// Bytes of the content.
    pub length: u64,
    /// BLAKE3 of the content.
    pub digest: Digest,
    /// Its parts, in order.
    pub parts: Vec<Part>,
}

/// Why bytes are no manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Shorter or longer than it says.
    #[error("its list of parts has {found} bytes instead of {expected}")]
    Length {
        /// What there should be.
        expected: usize,
        /// What there is.
        found: usize,
    },
    /// Damaged.
    #[error("its list of parts does not have the checksum that it should have")]
    Checksum,
    /// From a later release.
    #[error("its list of parts has format version {0}, this release reads {VERSION}")]
    Version(u16),
    /// Contradicts itself.
    #[error("its list of parts does not add up: {0}")]
    Inconsistent(&'static str),
}

/// Whether an object is a manifest, by its first bytes.
#[must_use]
pub fn is_manifest(object: &[u8]) -> bool {
    object.starts_with(&MAGIC)
}

impl Manifest {
    /// Name of the writer in the keys of the parts.
    pub fn writer_name(&self) -> Result<Name, crate::KeyError> {
        crate::writer::name(self.writer)
    }

    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER + self.parts.len() * ENTRY + TRAILER);
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend([0; 2]);
        out.extend((self.parts.len() as u32).to_le_bytes());
        out.extend(self.writer.to_be_bytes());
        out.extend(self.length.to_le_bytes());
        out.extend(self.digest);
        for part in &self.parts {
            out.extend(part.length.to_le_bytes());
            out.extend(part.digest);
        }
        let checksum = blake3::hash(&out);
        out.extend(checksum.as_bytes());
        out
    }

    /// From bytes, checked whole: what comes out is consistent.
    pub fn decode(object: &[u8]) -> Result<Self, ManifestError> {
        let found = object.len();
        if found < HEADER + TRAILER {
            return Err(ManifestError::Length { expected: HEADER + TRAILER, found });
        }
        let version = u16::from_le_bytes(array(object, 8));
        if version != VERSION {
            return Err(ManifestError::Version(version));
        }
        let count = u32::from_le_bytes(array(object, 12)) as usize;
        if count > MAX_PARTS {
            return Err(ManifestError::Inconsistent("it names more parts than there can be"));
        }
        let expected = HEADER + count * ENTRY + TRAILER;
        if found != expected {
            return Err(ManifestError::Length { expected, found });
        }
        let (body, checksum) = object.split_at(found - TRAILER);
        if blake3::hash(body).as_bytes() != checksum {
            return Err(ManifestError::Checksum);
        }
        let parts: Vec<Part> = body[HEADER..]
            .chunks_exact(ENTRY)
            .map(|entry| Part { length: u32::from_le_bytes(array(entry, 0)), digest: array(entry, 4) })
            .collect();
        let length = u64::from_le_bytes(array(body, 32));
        if parts.iter().any(|part| part.length == 0) {
            return Err(ManifestError::Inconsistent("a part is empty"));
        }
        if parts.iter().map(|part| u64::from(part.length)).sum::<u64>() != length {
            return Err(ManifestError::Inconsistent("the parts are not as long as the whole"));
        }
        Ok(Self { writer: u128::from_be_bytes(array(body, 16)), length, digest: array(body, 40), parts })
    }
}

/// `N` bytes from `at`; zeros where the slice is too short, which every caller has excluded.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..at + N).and_then(|slice| slice.try_into().ok()).unwrap_or([0; N])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn manifest(parts: &[u32]) -> Manifest {
        Manifest {
            writer: 0x1234,
            length: parts.iter().map(|part| u64::from(*part)).sum(),
            digest: [7; 32],
            parts: parts.iter().map(|part| Part { length: *part, digest: [*part as u8; 32] }).collect(),
        }
    }

    proptest! {
        #[test]
        fn a_manifest_is_read_back(parts in proptest::collection::vec(1..=u32::MAX, 0..20)) {
            let manifest = manifest(&parts);
            let bytes = manifest.encode();
            prop_assert!(is_manifest(&bytes));
            prop_assert_eq!(Manifest::decode(&bytes), Ok(manifest));
        }

        #[test]
        fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), magic in any::<bool>()) {
            if magic && bytes.len() > 10 {
                bytes[..8].copy_from_slice(&MAGIC);
                bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
            }
            let _ = Manifest::decode(&bytes);
        }

        #[test]
        fn a_changed_byte_is_noticed(at in 0usize..144, flip in 1u8..) {
            let mut bytes = manifest(&[5, 6]).encode();
            bytes[at] ^= flip;
            prop_assert!(!is_manifest(&bytes) || Manifest::decode(&bytes).is_err());
        }
    }

    #[test]
    fn the_layout_is_as_the_format_page_says() {
        let bytes = manifest(&[5, 6]).encode();
        assert_eq!(bytes.len(), 72 + 2 * 36 + 32);
        assert_eq!(&bytes[..16], b"VIVSPLIT\x01\0\0\0\x02\0\0\0");
        assert_eq!(bytes[31], 0x34);
        assert_eq!(bytes[32..40], 11u64.to_le_bytes());
        assert_eq!(bytes[40..72], [7; 32]);
        assert_eq!(bytes[72..76], 5u32.to_le_bytes());
    }

    #[test]
    fn what_does_not_add_up_is_refused() {
        let wrong = |change: fn(&mut Manifest), message: &'static str| {
            let mut manifest = manifest(&[5, 6]);
            change(&mut manifest);
            assert_eq!(Manifest::decode(&manifest.encode()), Err(ManifestError::Inconsistent(message)));
        };
        wrong(|manifest| manifest.length = 10, "the parts are not as long as the whole");
        wrong(|manifest| (manifest.parts[0].length, manifest.length) = (0, 6), "a part is empty");
        let bytes = manifest(&[5, 6]).encode();
        assert!(matches!(Manifest::decode(&bytes[..bytes.len() - 1]), Err(ManifestError::Length { .. })));
    }
}
