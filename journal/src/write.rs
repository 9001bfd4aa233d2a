//! Encoding: operations go in, a transaction file comes out, in memory for one frame at a time.

use std::io::{self, Write};

use crate::header::{self, Digest, Header};
use crate::op::Op;
use crate::touched::Changes;
use crate::wire::{put_bytes, put_number};

/// Most bytes of operations in one frame, uncompressed.
pub const MAX_FRAME: usize = 1 << 20;
/// A frame is closed when it has this much: so the longest operation still fits.
pub(crate) const FULL_FRAME: usize = MAX_FRAME - (300 << 10);
/// Last bytes of every file.
pub const END: [u8; 8] = *b"VTX-END\n";
/// Length of the trailer: offset of the index, counts of operations and of their bytes, digest, [`END`].
pub const TRAILER: usize = 8 + 8 + 8 + 32 + 8;
/// zstd level: the default of the library, about 500 MB/s a core on what file systems hold.
const LEVEL: i32 = 3;

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Digest of the file, as in its trailer: of everything before it.
    pub digest: Digest,
    /// BLAKE3 of all bytes, the trailer's among them.
    pub content: Digest,
    /// Its length in bytes.
    pub length: u64,
    /// How many operations it has.
    pub operations: u64,
    /// How many bytes they were before compression.
    pub raw: u64,
}

/// Writes a transaction file.
pub struct Writer<W> {
    to: W,
    hash: blake3::Hasher,
    zstd: zstd::bulk::Compressor<'static>,
    /// Operations of the frame that is being filled.
    frame: Vec<u8>,
    length: u64,
    operations: u64,
    raw: u64,
}

impl<W: Write> Writer<W> {
    /// Begins a file. A header that a reader would refuse is refused ([`io::ErrorKind::InvalidInput`]).
    pub fn new(to: W, header: &Header) -> io::Result<Self> {
        let zstd = zstd::bulk::Compressor::new(LEVEL)?;
        let frame = Vec::with_capacity(64 << 10);
        let mut writer = Self { to, hash: blake3::Hasher::new(), zstd, frame, length: 0, operations: 0, raw: 0 };
        let mut bytes = Vec::new();
        header.encode(&mut bytes);
        // Nothing is written that could not be read.
        Header::decode(&bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let mut start = Vec::with_capacity(16);
        header::put_preamble(&mut start, bytes.len());
        writer.put(&start)?;
        writer.put(&bytes)?;
        Ok(writer)
    }

    /// Adds an operation.
    pub fn push(&mut self, op: &Op<'_>) -> io::Result<()> {
        let before = self.frame.len();
        op.encode(&mut self.frame);
        self.operations += 1;
        self.raw += (self.frame.len() - before) as u64;
        if self.frame.len() >= FULL_FRAME { self.flush_frame() } else { Ok(()) }
    }

    /// How many operations were added.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.operations
    }

    /// Ends the file with the index of what was changed.
    pub fn finish(mut self, changes: &Changes<'_>) -> io::Result<(W, Summary)> {
        self.flush_frame()?;
        self.put(&[0; 8])?;
        let index = self.length;
        changes.each(|change| {
            put_bytes(&mut self.frame, change.path);
            put_number(&mut self.frame, change.what.bits().into());
            if self.frame.len() >= FULL_FRAME { self.flush_frame() } else { Ok(()) }
        })?;
        self.flush_frame()?;
        self.put(&[0; 8])?;
        for number in [index, self.operations, self.raw] {
            self.put(&number.to_le_bytes())?;
        }
        let digest = Digest(*self.hash.finalize().as_bytes());
        self.put(&digest.0)?;
        self.put(&END)?;
        self.to.flush()?;
        let content = Digest(*self.hash.finalize().as_bytes());
        let Self { to, length, operations, raw, .. } = self;
        Ok((to, Summary { digest, content, length, operations, raw }))
    }

    fn flush_frame(&mut self) -> io::Result<()> {
        if self.frame.is_empty() {
            return Ok(());
        }
        let packed = self.zstd.compress(&self.frame)?;
        let mut lengths = [0; 8];
        lengths[..4].copy_from_slice(&(packed.len() as u32).to_le_bytes());
        lengths[4..].copy_from_slice(&(self.frame.len() as u32).to_le_bytes());
        self.frame.clear();
        self.put(&lengths)?;
        self.put(&packed)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.length += bytes.len() as u64;
        self.to.write_all(bytes)
    }
}
