//! Decoding: a file is checked as a whole, its digest and every operation, before the first operation is given out.
//! Memory is bounded by one frame, whatever the file says.

use std::io::{self, Read, Seek, SeekFrom};

use crate::header::{self, Digest, Header, HeaderError, Kind};
use crate::op::{Op, OpError};
use crate::path::{PathError, TreePath};
use crate::touched::What;
use crate::wire::{Input, WireError};
use crate::write::{END, MAX_FRAME, Summary, TRAILER};

/// Bytes behind the part that the digest covers.
const UNHASHED: u64 = 40;

/// Why a file is not a transaction.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It cannot be read.
    #[error("the transaction file cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It begins or ends as no transaction file does.
    #[error("this is no transaction file: {0}")]
    Foreign(&'static str),
    /// Bytes were changed, or are missing.
    #[error("the transaction file is damaged: its digest is {found}, and it says {said}")]
    Digest {
        /// Of the bytes.
        found: Digest,
        /// In the trailer.
        said: Digest,
    },
    /// The header is not valid.
    #[error("the header of the transaction file is not valid: {0}")]
    Header(#[from] HeaderError),
    /// An operation is not valid.
    #[error("operation {number} of the transaction file is not valid: {source}")]
    Op {
        /// Which, counted from 0.
        number: u64,
        /// What is wrong.
        source: OpError,
    },
    /// A frame or the index is not valid.
    #[error("the transaction file is not valid: {0}")]
    Invalid(String),
}

/// A checked transaction file.
#[derive(Debug)]
pub struct Transaction<R> {
    from: R,
    header: Header,
    summary: Summary,
    /// Where the first frame of operations begins.
    body: u64,
}

impl<R: Read + Seek> Transaction<R> {
    /// Checks the whole file.
    pub fn open(mut from: R) -> Result<Self, ReadError> {
        let length = from.seek(SeekFrom::End(0))?;
        if length < (16 + 16 + TRAILER) as u64 {
            return Err(ReadError::Foreign("it is too short"));
        }
        let trailer = Trailer::read(&mut from, length)?;
        from.rewind()?;
        let mut hasher = blake3::Hasher::new();
        hash(&mut from, length - UNHASHED, &mut hasher)?;
        let found = Digest(*hasher.finalize().as_bytes());
        if found != trailer.digest {
            return Err(ReadError::Digest { found, said: trailer.digest });
        }
        hash(&mut from, UNHASHED, &mut hasher)?;
        let content = Digest(*hasher.finalize().as_bytes());
        from.rewind()?;
        let mut start = [0; 16];
        from.read_exact(&mut start)?;
        let header_length = header::preamble(&start)?;
        if header_length as u64 + 16 > length {
            return Err(ReadError::Foreign("its header is too long"));
        }
        let mut header = vec![0; header_length];
        from.read_exact(&mut header)?;
        let header = Header::decode(&header)?;
        let summary =
            Summary { digest: trailer.digest, content, length, operations: trailer.operations, raw: trailer.raw };
        let body = 16 + header_length as u64;
        let mut transaction = Self { from, header, summary, body };
        transaction.check(&trailer)?;
        Ok(transaction)
    }

    /// What it is read from.
    #[must_use]
    pub fn source(&self) -> &R {
        &self.from
    }

    /// The header.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Digest of the newest transaction whose effect is in the file: what the next one names as its parent.
    #[must_use]
    pub fn state(&self) -> Digest {
        match self.header.kind {
            Kind::Delta | Kind::Barrier => self.summary.digest,
            Kind::Checkpoint => self.header.parent,
            Kind::Merged { state } => state,
        }
    }

    /// Digest and counts.
    #[must_use]
    pub fn summary(&self) -> Summary {
        self.summary
    }

    /// Gives each operation to `visit`, in order, until that fails.
    pub fn each<E: From<ReadError>>(&mut self, mut visit: impl FnMut(&Op<'_>) -> Result<(), E>) -> Result<(), E> {
        let layers = self.header.layers.len();
        self.from.seek(SeekFrom::Start(self.body)).map_err(ReadError::from)?;
        let mut frames = Frames::new(&mut self.from, self.summary.length).map_err(ReadError::from)?;
        let mut number = 0;
        while let Some(frame) = frames.next()? {
            let mut input = Input(frame);
            while !input.is_empty() {
                let op = decode(&mut input, layers).map_err(|source| ReadError::Op { number, source })?;
                visit(&op)?;
                number += 1;
            }
        }
        Ok(())
    }

    /// Reads the index: each touched path with what happened to it, sorted by path.
    pub fn index(&mut self) -> Result<Vec<(Vec<u8>, What)>, ReadError> {
        let trailer = Trailer::read(&mut self.from, self.summary.length)?;
        let mut entries = Vec::new();
        self.each_index(&trailer, |path, what| {
            entries.push((path.as_bytes().to_vec(), what));
            Ok(())
        })?;
        Ok(entries)
    }

    fn check(&mut self, trailer: &Trailer) -> Result<(), ReadError> {
        let (mut operations, mut raw) = (0u64, 0u64);
        let layers = self.header.layers.len();
        let mut frames = Frames::new(&mut self.from, self.summary.length)?;
        while let Some(frame) = frames.next()? {
            raw += frame.len() as u64;
            let mut input = Input(frame);
            while !input.is_empty() {
                decode(&mut input, layers).map_err(|source| ReadError::Op { number: operations, source })?;
                operations += 1;
            }
        }
        if (operations, raw) != (trailer.operations, trailer.raw) {
            let Trailer { operations: said, raw: bytes, .. } = trailer;
            return Err(ReadError::Invalid(format!(
                "it has {operations} operations in {raw} bytes, and says {said} in {bytes}"
            )));
        }
        if self.from.stream_position()? != trailer.index {
            return Err(ReadError::Invalid("its index is not where it says".into()));
        }
        let mut last: Option<Vec<u8>> = None;
        self.each_index(trailer, |path, _| {
            if last.as_deref().is_some_and(|last| last >= path.as_bytes()) {
                return Err(ReadError::Invalid(format!("its index is not sorted at '{path}'")));
            }
            last = Some(path.as_bytes().to_vec());
            Ok(())
        })?;
        if self.from.stream_position()? != self.summary.length - TRAILER as u64 {
            return Err(ReadError::Invalid("bytes lie between its index and its trailer".into()));
        }
        Ok(())
    }

    fn each_index(
        &mut self,
        trailer: &Trailer,
        mut visit: impl FnMut(TreePath<'_>, What) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        self.from.seek(SeekFrom::Start(trailer.index))?;
        let mut frames = Frames::new(&mut self.from, self.summary.length)?;
        while let Some(frame) = frames.next()? {
            let mut input = Input(frame);
            while !input.is_empty() {
                let (path, what) = index_entry(&mut input)?;
                visit(path, what)?;
            }
        }
        Ok(())
    }
}

fn index_entry<'a>(input: &mut Input<'a>) -> Result<(TreePath<'a>, What), ReadError> {
    let invalid = |error: &dyn std::fmt::Display| ReadError::Invalid(format!("its index: {error}"));
    let path = input.bytes(crate::path::MAX_PATH, "a path").map_err(|e: WireError| invalid(&e))?;
    let path = TreePath::parse(path).map_err(|e: PathError| invalid(&e))?;
    let bits = input.number(u8::MAX.into(), "what happened").map_err(|e| invalid(&e))?;
    let what = What::from_bits(bits as u8).ok_or_else(|| invalid(&format!("{bits} says nothing of '{path}'")))?;
    Ok((path, what))
}

fn decode<'a>(input: &mut Input<'a>, layers: usize) -> Result<Op<'a>, OpError> {
    let op = Op::decode(input)?;
    if let Op::CloneTemplate { layer, .. } = op
        && layer as usize >= layers
    {
        let most = (layers as u64).saturating_sub(1);
        return Err(WireError::Range { what: "the number of a layer", value: layer.into(), most }.into());
    }
    Ok(op)
}

/// The fixed end of a file.
struct Trailer {
    index: u64,
    operations: u64,
    raw: u64,
    digest: Digest,
}

impl Trailer {
    fn read(from: &mut (impl Read + Seek), length: u64) -> Result<Self, ReadError> {
        from.seek(SeekFrom::Start(length - TRAILER as u64))?;
        let mut bytes = [0; TRAILER];
        from.read_exact(&mut bytes)?;
        let (numbers, rest) = bytes.split_at(24);
        if rest[32..] != END {
            return Err(ReadError::Foreign("its last bytes are others; the file may have been cut off"));
        }
        let number = |at: usize| numbers[at..at + 8].iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b));
        let mut digest = [0; 32];
        digest.copy_from_slice(&rest[..32]);
        Ok(Self { index: number(0), operations: number(8), raw: number(16), digest: Digest(digest) })
    }
}

fn hash(from: &mut impl Read, mut length: u64, hasher: &mut blake3::Hasher) -> io::Result<()> {
    let mut buffer = vec![0; 128 << 10];
    while length > 0 {
        let want = buffer.len().min(usize::try_from(length).unwrap_or(usize::MAX));
        from.read_exact(&mut buffer[..want])?;
        hasher.update(&buffer[..want]);
        length -= want as u64;
    }
    Ok(())
}

/// Reads frames until the empty one that ends them.
struct Frames<'a, R> {
    from: &'a mut R,
    limit: u64,
    packed: Vec<u8>,
    frame: Vec<u8>,
    zstd: zstd::bulk::Decompressor<'static>,
}

impl<'a, R: Read> Frames<'a, R> {
    fn new(from: &'a mut R, limit: u64) -> io::Result<Self> {
        Ok(Self { from, limit, packed: Vec::new(), frame: Vec::new(), zstd: zstd::bulk::Decompressor::new()? })
    }

    fn next(&mut self) -> Result<Option<&[u8]>, ReadError> {
        let mut lengths = [0; 8];
        self.from.read_exact(&mut lengths)?;
        let number = |at: usize| lengths[at..at + 4].iter().rev().fold(0usize, |n, b| n << 8 | usize::from(*b));
        let (packed, raw) = (number(0), number(4));
        match (packed, raw) {
            (0, 0) => return Ok(None),
            (0, _) | (_, 0) => return Err(ReadError::Invalid("it has an empty frame".into())),
            _ if raw > MAX_FRAME || packed as u64 > self.limit.min(2 * MAX_FRAME as u64) => {
                return Err(ReadError::Invalid(format!("it has a frame of {packed} bytes for {raw}")));
            }
            _ => {}
        }
        self.packed.resize(packed, 0);
        self.from.read_exact(&mut self.packed)?;
        self.frame.resize(raw, 0);
        // Into exactly `raw` bytes of room: what says little and unpacks to much is an error.
        let filled = self
            .zstd
            .decompress_to_buffer(&self.packed, &mut self.frame[..])
            .map_err(|error| ReadError::Invalid(format!("a frame cannot be decompressed: {error}")))?;
        if filled != raw {
            return Err(ReadError::Invalid(format!("a frame has {filled} bytes, and says {raw}")));
        }
        Ok(Some(&self.frame))
    }
}
