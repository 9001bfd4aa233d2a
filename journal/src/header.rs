//! What a transaction file says of itself before the first operation.

use std::fmt;

use crate::op::MAX_LAYERS;
use crate::wire::{Input, WireError, put_bytes, put_number, put_signed};

/// First bytes of every file: not text, and damaged visibly by transfers that change line ends or strip the eighth bit.
pub const MAGIC: [u8; 8] = *b"\x89VTX\r\n\x1a\n";
/// Version of the format that this crate writes and reads.
pub const VERSION: u16 = 1;
/// Longest encoded header.
pub const MAX_HEADER: usize = 64 << 10;
/// Longest name of a volume or layer in a header.
const MAX_TEXT: usize = 255;

/// BLAKE3 of a transaction file; names the state of the volume after it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The state before the first transaction: an empty volume.
    pub const EMPTY: Self = Self([0; 32]);

    /// Reads 64 lower-case hexadecimal digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != 64 || !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
        let mut bytes = [0; 32];
        for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// From the state of the transaction before to that of this one.
    Delta,
    /// The whole tree at a transaction, from nothing.
    Checkpoint,
    /// No change: begins an epoch, and keeps every earlier one from going on.
    Barrier,
    /// Several deltas and barriers in one.
    Merged {
        /// Digest of the newest transaction that is in it: what the next one follows.
        state: Digest,
    },
}

impl Kind {
    fn code(self) -> u8 {
        match self {
            Self::Delta => 1,
            Self::Checkpoint => 2,
            Self::Barrier => 3,
            Self::Merged { .. } => 4,
        }
    }
}

/// The header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the file is.
    pub kind: Kind,
    /// The volume.
    pub volume: String,
    /// Random, so that no two files are equal by accident: who finds this one in a store knows who wrote it.
    pub writer: [u8; 16],
    /// Incarnation of the environment that wrote.
    pub epoch: u64,
    /// First transaction that is in the file: `sequence`, but for a merged one, and 0 for a checkpoint.
    pub first: u64,
    /// Number of the transaction, or of the newest one whose effect is in the file.
    pub sequence: u64,
    /// Digest of the transaction before `first`; of a checkpoint: of transaction `sequence` itself.
    pub parent: Digest,
    /// Wall clock of the instant that the file holds, in nanoseconds since 1970.
    pub time: i64,
    /// Layers of the template, lowest first, by diff id (`sha256:...`).
    pub layers: Vec<String>,
}

/// Bytes that are no header of this version.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HeaderError {
    /// The first bytes are others.
    #[error("this is no transaction file: its first bytes are others, or its header is too long")]
    Foreign,
    /// A later version of the format.
    #[error("the transaction file has version {0} of the format; this build knows version {VERSION}")]
    Version(u16),
    /// A field is damaged.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A kind of a later version, or none.
    #[error("there is no kind {0} of transaction")]
    Kind(u8),
    /// A name is no text.
    #[error("{0} is not UTF-8")]
    Text(&'static str),
    /// Numbers that do not fit the kind.
    #[error("a {kind:?} cannot reach from transaction {first} to {sequence}")]
    Sequence {
        /// The kind.
        kind: Kind,
        /// As read.
        first: u64,
        /// As read.
        sequence: u64,
    },
    /// More bytes than fields.
    #[error("bytes follow the last field of the header")]
    Trailing,
}

impl Header {
    /// Appends the fields in the order of their declaration.
    pub fn encode(&self, to: &mut Vec<u8>) {
        to.push(self.kind.code());
        put_bytes(to, self.volume.as_bytes());
        to.extend_from_slice(&self.writer);
        put_number(to, self.epoch);
        put_number(to, self.first);
        put_number(to, self.sequence);
        to.extend_from_slice(&self.parent.0);
        put_signed(to, self.time);
        put_number(to, self.layers.len() as u64);
        for layer in &self.layers {
            put_bytes(to, layer.as_bytes());
        }
        if let Kind::Merged { state } = self.kind {
            to.extend_from_slice(&state.0);
        }
    }

    /// Reads the header from the first bytes of a file: at least 16 and the header.
    pub fn peek(front: &[u8]) -> Result<Self, HeaderError> {
        let (start, rest) = front.split_first_chunk::<16>().ok_or(HeaderError::Foreign)?;
        let length = preamble(start)?;
        Self::decode(rest.get(..length).ok_or(HeaderError::Foreign)?)
    }

    /// Reads a whole header.
    pub fn decode(bytes: &[u8]) -> Result<Self, HeaderError> {
        let mut input = Input(bytes);
        let mut kind = match input.byte("the kind")? {
            1 => Kind::Delta,
            2 => Kind::Checkpoint,
            3 => Kind::Barrier,
            4 => Kind::Merged { state: Digest::EMPTY },
            other => return Err(HeaderError::Kind(other)),
        };
        let volume = text(input.bytes(MAX_TEXT, "the volume")?, "the volume")?;
        let writer = input.array("the writer")?;
        let epoch = input.number(u64::MAX, "the epoch")?;
        let first = input.number(u64::MAX, "the first transaction")?;
        let sequence = input.number(u64::MAX, "the number of the transaction")?;
        let parent = Digest(input.array("the parent")?);
        let time = input.signed("the time")?;
        let count = input.number(MAX_LAYERS, "the number of layers")?;
        let mut layers = Vec::new();
        for _ in 0..count {
            layers.push(text(input.bytes(MAX_TEXT, "a layer")?, "a layer")?);
        }
        if let Kind::Merged { state } = &mut kind {
            *state = Digest(input.array("the state")?);
        }
        if !input.is_empty() {
            return Err(HeaderError::Trailing);
        }
        let fits = match kind {
            Kind::Delta | Kind::Barrier => first == sequence && sequence > 0,
            Kind::Checkpoint => first == 0,
            Kind::Merged { .. } => 0 < first && first <= sequence,
        };
        if !fits {
            return Err(HeaderError::Sequence { kind, first, sequence });
        }
        Ok(Self { kind, volume, writer, epoch, first, sequence, parent, time, layers })
    }
}

/// Appends what stands before a header of `length` bytes: magic number, version, two bytes of zero, length.
pub(crate) fn put_preamble(to: &mut Vec<u8>, length: usize) {
    to.extend_from_slice(&MAGIC);
    to.extend_from_slice(&VERSION.to_le_bytes());
    to.extend_from_slice(&0u16.to_le_bytes());
    to.extend_from_slice(&(length as u32).to_le_bytes());
}

/// Checks what stands before a header; tells the header's length.
pub(crate) fn preamble(start: &[u8; 16]) -> Result<usize, HeaderError> {
    let (magic, rest) = start.split_at(8);
    if magic != MAGIC {
        return Err(HeaderError::Foreign);
    }
    let version = u16::from_le_bytes([rest[0], rest[1]]);
    if version != VERSION || rest[2..4] != [0, 0] {
        return Err(HeaderError::Version(version));
    }
    let length = u32::from_le_bytes([rest[4], rest[5], rest[6], rest[7]]) as usize;
    if length <= MAX_HEADER { Ok(length) } else { Err(HeaderError::Foreign) }
}

fn text(bytes: &[u8], what: &'static str) -> Result<String, HeaderError> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| HeaderError::Text(what))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MERGED: Kind = Kind::Merged { state: Digest([8; 32]) };

    fn header(kind: Kind, first: u64, sequence: u64) -> Header {
        Header {
            kind,
            volume: "6f1c".into(),
            writer: [7; 16],
            epoch: 3,
            first,
            sequence,
            parent: Digest([9; 32]),
            time: -5,
            layers: vec!["sha256:aa".into(), "sha256:bb".into()],
        }
    }

    #[test]
    fn a_header_comes_back_and_its_numbers_fit_its_kind() {
        for (kind, first, sequence, good) in [
            (Kind::Delta, 4, 4, true),
            (Kind::Delta, 3, 4, false),
            (Kind::Delta, 0, 0, false),
            (Kind::Barrier, 1, 1, true),
            (Kind::Checkpoint, 0, 9, true),
            (Kind::Checkpoint, 9, 9, false),
            (MERGED, 2, 9, true),
            (MERGED, 9, 2, false),
            (MERGED, 0, 2, false),
        ] {
            let header = header(kind, first, sequence);
            let mut bytes = Vec::new();
            header.encode(&mut bytes);
            let expected = if good { Ok(header) } else { Err(HeaderError::Sequence { kind, first, sequence }) };
            assert_eq!(Header::decode(&bytes), expected);
            bytes.push(0);
            assert!(Header::decode(&bytes).is_err(), "bytes behind the header");
        }
    }

    #[test]
    fn a_digest_is_written_and_read_as_hexadecimal() {
        let digest = Digest(std::array::from_fn(|i| i as u8 * 8));
        assert_eq!(Digest::parse(&digest.to_string()), Some(digest));
        for bad in ["", "00", &"G".repeat(64), &"A".repeat(64), &"0".repeat(65)] {
            assert_eq!(Digest::parse(bad), None);
        }
    }
}
