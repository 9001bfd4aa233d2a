//! Reading a tar stream entry by entry: ustar, GNU and PAX, sparse files of all GNU kinds. Nothing is interpreted beyond
//! what the format says, and nothing of a size that the stream chooses is kept in memory.

use std::io::{self, Read};

use super::pax::{self, Records};

/// Longest extension header that is read: more than any file system's names and attributes need.
const EXTENSION_MAX: u64 = 1 << 20;
/// Most segments of a sparse file.
const SEGMENTS_MAX: usize = 1 << 18;
const BLOCK: usize = 512;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    HardLink,
    Symlink,
    Char,
    Block,
    Directory,
    Fifo,
}

/// An extended attribute: name and value.
pub(super) type Attribute = (Vec<u8>, Vec<u8>);

/// One entry; its data is read from the [`Archive`] afterwards.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub path: Vec<u8>,
    pub kind: Kind,
    /// Length of the file that it makes.
    pub size: u64,
    /// Parts of a sparse file that have data, in order: offset and length. `None`: all of it.
    pub segments: Option<Vec<(u64, u64)>>,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Target of a link.
    pub link: Vec<u8>,
    /// Major and minor number.
    pub device: (u32, u32),
    /// Extended attributes, by full name.
    pub xattrs: Vec<Attribute>,
}

/// A tar stream.
pub(super) struct Archive<R> {
    reader: R,
    /// Data of the current entry that was not read yet.
    data: u64,
    /// Bytes behind the data up to the next header.
    padding: u64,
}

pub(super) fn corrupt(message: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message.into())
}

impl<R: Read> Archive<R> {
    pub fn new(reader: R) -> Self {
        Self { reader, data: 0, padding: 0 }
    }

    /// The next entry; `None` at the end of the archive. Data that was not read is passed over.
    pub fn next(&mut self) -> io::Result<Option<Entry>> {
        let mut records = Records::default();
        let (mut long_path, mut long_link) = (None, None);
        loop {
            self.skip_rest()?;
            let Some(header) = self.header()? else { return Ok(None) };
            let size = header.entry_size()?;
            let kind = header.entry_type().as_byte();
            match kind {
                b'x' | b'X' => records = pax::parse(&self.extension(size)?)?,
                // Defaults for all entries: nothing that an image needs is said that way.
                b'g' => drop(self.extension(size)?),
                b'L' => long_path = Some(trimmed(self.extension(size)?)),
                b'K' => long_link = Some(trimmed(self.extension(size)?)),
                _ => {
                    let path = long_path.unwrap_or_else(|| header.path_bytes().into_owned());
                    let link = long_link.unwrap_or_else(|| {
                        header.link_name_bytes().map(std::borrow::Cow::into_owned).unwrap_or_default()
                    });
                    return self.entry(&header, kind, path, link, records).map(Some);
                }
            }
        }
    }

    fn entry(
        &mut self,
        header: &tar::Header,
        kind: u8,
        path: Vec<u8>,
        link: Vec<u8>,
        mut records: Records,
    ) -> io::Result<Entry> {
        let path = records.take("path").unwrap_or(path);
        let kind = match kind {
            // An old way to write a directory is a file whose name ends so.
            0 | b'0' | b'7' if path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::Char,
            b'4' => Kind::Block,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => return Err(corrupt(format!("entry type {:?} is unknown", char::from(other)))),
        };
        let stored = records.number("size")?.map_or_else(|| header.entry_size(), Ok)?;
        // Only files have data, whatever the header of another entry says.
        self.start(if kind == Kind::File { stored } else { 0 })?;
        let id = |text: Option<u64>, header: io::Result<u64>, what: &str| {
            let id = text.map_or(header, Ok)?;
            u32::try_from(id).map_err(|_| corrupt(format!("{what} {id} is out of range")))
        };
        let mut entry = Entry {
            path,
            kind,
            size: stored,
            segments: None,
            mode: header.mode()? & 0o7777,
            uid: id(records.number("uid")?, header.uid(), "owner")?,
            gid: id(records.number("gid")?, header.gid(), "group")?,
            mtime: records.time("mtime")?.map_or_else(|| header.mtime().map(|s| (s.cast_signed(), 0)), Ok)?,
            link: records.take("linkpath").unwrap_or(link),
            device: (0, 0),
            xattrs: records.xattrs()?,
        };
        if matches!(kind, Kind::Char | Kind::Block) {
            entry.device = (header.device_major()?.unwrap_or(0), header.device_minor()?.unwrap_or(0));
        }
        if kind == Kind::File {
            if header.entry_type().as_byte() == b'S' {
                self.old_gnu_sparse(header, &mut entry)?;
            } else if let Some(sparse) = records.sparse()? {
                entry.path = sparse.name.unwrap_or(entry.path);
                entry.size = sparse.size;
                entry.segments = Some(match sparse.segments {
                    Some(segments) => segments,
                    None => self.sparse_map()?,
                });
            }
            if let Some(segments) = &entry.segments {
                check_segments(segments, entry.size, self.data)?;
            }
        }
        Ok(entry)
    }

    /// The map of the oldest sparse format: four segments in the header, more in blocks behind it.
    fn old_gnu_sparse(&mut self, header: &tar::Header, entry: &mut Entry) -> io::Result<()> {
        let gnu = header.as_gnu().ok_or_else(|| corrupt("a sparse file without a GNU header"))?;
        entry.size = gnu.real_size()?;
        let mut segments = Vec::new();
        let mut take = |list: &[tar::GnuSparseHeader]| -> io::Result<()> {
            for part in list.iter().filter(|part| !part.is_empty()) {
                segments.push((part.offset()?, part.length()?));
            }
            if segments.len() > SEGMENTS_MAX {
                return Err(corrupt("a sparse file has too many parts"));
            }
            Ok(())
        };
        take(&gnu.sparse)?;
        let mut more = gnu.is_extended();
        while more {
            let mut block = tar::GnuExtSparseHeader::new();
            self.reader.read_exact(block.as_mut_bytes())?;
            take(&block.sparse)?;
            more = block.is_extended();
        }
        entry.segments = Some(segments);
        Ok(())
    }

    /// The map of the newest sparse format: decimal numbers, one a line, at the beginning of the data, filled up to a
    /// block.
    fn sparse_map(&mut self) -> io::Result<Vec<(u64, u64)>> {
        let mut used = 0usize;
        let count = self.line(&mut used)? as usize;
        if count > SEGMENTS_MAX {
            return Err(corrupt("a sparse file has too many parts"));
        }
        let mut segments = Vec::new();
        for _ in 0..count {
            segments.push((self.line(&mut used)?, self.line(&mut used)?));
        }
        let mut rest = [0; BLOCK];
        self.read_exact(&mut rest[..used.next_multiple_of(BLOCK) - used])?;
        Ok(segments)
    }

    fn line(&mut self, used: &mut usize) -> io::Result<u64> {
        let mut number = 0u64;
        for position in 0..=20 {
            let mut byte = [0];
            self.read_exact(&mut byte)?;
            *used += 1;
            match byte[0] {
                b'\n' if position > 0 => return Ok(number),
                digit @ b'0'..=b'9' => {
                    number = number
                        .checked_mul(10)
                        .and_then(|n| n.checked_add(u64::from(digit - b'0')))
                        .ok_or_else(|| corrupt("a number in a sparse map is too large"))?;
                }
                _ => break,
            }
        }
        Err(corrupt("the map of a sparse file is broken"))
    }

    /// The next header; `None` for the end marker or the end of the stream.
    fn header(&mut self) -> io::Result<Option<tar::Header>> {
        let mut header = tar::Header::new_old();
        let block = header.as_mut_bytes();
        let mut filled = 0;
        while filled < BLOCK {
            match self.reader.read(&mut block[filled..])? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(corrupt("the archive ends within a header")),
                read => filled += read,
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum: u32 =
            block.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) }).sum();
        if header.cksum()? != sum {
            return Err(corrupt("the checksum of a header is wrong"));
        }
        Ok(Some(header))
    }

    fn start(&mut self, size: u64) -> io::Result<()> {
        let whole = size.checked_next_multiple_of(BLOCK as u64).ok_or_else(|| corrupt("an entry is too large"))?;
        (self.data, self.padding) = (size, whole - size);
        Ok(())
    }

    fn extension(&mut self, size: u64) -> io::Result<Vec<u8>> {
        if size > EXTENSION_MAX {
            return Err(corrupt(format!("an extension header of {size} bytes is too large")));
        }
        self.start(size)?;
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn skip_rest(&mut self) -> io::Result<()> {
        let rest = self.data.checked_add(self.padding).ok_or_else(|| corrupt("an entry is too large"))?;
        (self.data, self.padding) = (0, 0);
        let skipped = io::copy(&mut (&mut self.reader).take(rest), &mut io::sink())?;
        if skipped < rest {
            return Err(corrupt("the archive ends within an entry"));
        }
        Ok(())
    }
}

/// Reads the data of the current entry.
impl<R: Read> Read for Archive<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.data).unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0);
        }
        let read = self.reader.read(&mut buffer[..most])?;
        if read == 0 {
            return Err(corrupt("the archive ends within an entry"));
        }
        self.data -= read as u64;
        Ok(read)
    }
}

fn check_segments(segments: &[(u64, u64)], size: u64, stored: u64) -> io::Result<()> {
    let (mut end, mut sum) = (0u64, 0u64);
    for (offset, length) in segments {
        let next = offset.checked_add(*length).filter(|next| *offset >= end && *next <= size);
        end = next.ok_or_else(|| corrupt("the parts of a sparse file overlap or lie outside of it"))?;
        sum += length;
    }
    if sum == stored { Ok(()) } else { Err(corrupt("the parts of a sparse file do not match its data")) }
}

/// A long name without the NUL that ends it.
fn trimmed(mut name: Vec<u8>) -> Vec<u8> {
    if let Some(end) = name.iter().position(|byte| *byte == 0) {
        name.truncate(end);
    }
    name
}
