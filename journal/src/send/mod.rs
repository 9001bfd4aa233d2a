//! The kernel's send stream (`BTRFS_IOC_SEND`), version 2, as a sequence of commands.
//!
//! The format is that of linux/fs/btrfs/send.h and btrfs-progs' `dev-send-stream.rst`. Names in it are bytes that a
//! tenant chose, not text: the reason why no ready-made parser serves here. Each command's checksum is checked. Memory
//! is bounded by the longest command.

use std::io::{self, Read};

use crate::op::Time;

/// First bytes of a stream.
const MAGIC: &[u8; 13] = b"btrfs-stream\0";
/// The version that is asked for: the first with more than 64 KiB of data in a command (Linux 6.0).
pub const VERSION: u32 = 2;
/// Length of a command's header: length of its attributes, number, checksum.
const HEADER: usize = 10;
/// Longest command: version 2 sends at most 128 KiB of data and 16 KiB of all else; more is room to spare.
const MAX_COMMAND: usize = 512 << 10;

/// Why a stream cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The kernel, or the pipe, failed.
    #[error("the send stream cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It begins as no send stream does.
    #[error("the data are no send stream")]
    Foreign,
    /// Another version.
    #[error("the send stream has version {0}; this build asks for version {VERSION}")]
    Version(u32),
    /// A command is damaged.
    #[error("command {command} of the send stream is damaged: {what}")]
    Damaged {
        /// Number of the command.
        command: u16,
        /// What is wrong.
        what: &'static str,
    },
    /// A command that nothing is known of.
    #[error("the send stream has the unknown command {0}")]
    Unknown(u16),
}

/// A command. Paths are relative to the subvolume; the root is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// The stream is of a whole subvolume.
    Subvolume,
    /// The stream is of what changed since another.
    Snapshot,
    /// See mknod(2) and its kin. Owner, mode and times follow as commands.
    MakeFile(&'a [u8]),
    /// Directory.
    MakeDirectory(&'a [u8]),
    /// Device node, with `st_mode` and the kernel's 32-bit encoding of the number (`new_encode_dev`).
    MakeNode(&'a [u8], u64, u64),
    /// Fifo.
    MakeFifo(&'a [u8]),
    /// Socket.
    MakeSocket(&'a [u8]),
    /// Symbolic link: name, target.
    MakeSymlink(&'a [u8], &'a [u8]),
    /// From, to.
    Rename(&'a [u8], &'a [u8]),
    /// New name, existing name.
    Link(&'a [u8], &'a [u8]),
    /// Remove a name.
    Unlink(&'a [u8]),
    /// Remove a directory.
    RemoveDirectory(&'a [u8]),
    /// Path, name, value.
    SetXattr(&'a [u8], &'a [u8], &'a [u8]),
    /// Path, name.
    RemoveXattr(&'a [u8], &'a [u8]),
    /// Path, offset, data.
    Write(&'a [u8], u64, &'a [u8]),
    /// Share data of a clone source.
    Clone(CloneCommand<'a>),
    /// Path, size.
    Truncate(&'a [u8], u64),
    /// Path, mode.
    ChangeMode(&'a [u8], u64),
    /// Path, user, group.
    ChangeOwner(&'a [u8], u64, u64),
    /// Path, access, modification.
    ChangeTimes(&'a [u8], Time, Time),
    /// Path, `FALLOC_FL_*`, offset, length.
    Allocate(&'a [u8], u32, u64, u64),
    /// Path, inode flags of btrfs (chattr(1)).
    Attributes(&'a [u8], u64),
    /// End of the stream.
    End,
}

/// Share `length` bytes at `from_offset` of `from` in the subvolume `uuid`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CloneCommand<'a> {
    /// File that gets the data.
    pub path: &'a [u8],
    /// Where.
    pub offset: u64,
    /// How many.
    pub length: u64,
    /// Subvolume of the source.
    pub uuid: [u8; 16],
    /// File of the source.
    pub from: &'a [u8],
    /// Where in it.
    pub from_offset: u64,
}

/// Attribute numbers of the stream.
mod attribute {
    pub const UUID: usize = 1;
    pub const SIZE: usize = 4;
    pub const MODE: usize = 5;
    pub const UID: usize = 6;
    pub const GID: usize = 7;
    pub const RDEV: usize = 8;
    pub const MTIME: usize = 10;
    pub const ATIME: usize = 11;
    pub const XATTR_NAME: usize = 13;
    pub const XATTR_DATA: usize = 14;
    pub const PATH: usize = 15;
    pub const PATH_TO: usize = 16;
    pub const PATH_LINK: usize = 17;
    pub const FILE_OFFSET: usize = 18;
    pub const DATA: usize = 19;
    pub const CLONE_UUID: usize = 20;
    pub const CLONE_PATH: usize = 22;
    pub const CLONE_OFFSET: usize = 23;
    pub const CLONE_LEN: usize = 24;
    pub const FALLOCATE_MODE: usize = 25;
    pub const FILEATTR: usize = 26;
    /// One more than the last of version 2.
    pub const COUNT: usize = 32;
}

/// Reads commands.
#[derive(Debug)]
pub struct Commands<R> {
    from: R,
    buffer: Vec<u8>,
    ended: bool,
}

impl<R: Read> Commands<R> {
    /// Reads the head of the stream.
    pub fn new(mut from: R) -> Result<Self, SendError> {
        let mut head = [0; 17];
        from.read_exact(&mut head)?;
        if head[..13] != *MAGIC {
            return Err(SendError::Foreign);
        }
        let version = number(&head[13..]) as u32;
        if version != VERSION {
            return Err(SendError::Version(version));
        }
        Ok(Self { from, buffer: Vec::new(), ended: false })
    }

    /// The next command; `None` behind [`Command::End`]. A stream that ends before that is an error.
    #[allow(clippy::should_implement_trait, reason = "what is given out borrows the buffer")]
    pub fn next(&mut self) -> Result<Option<Command<'_>>, SendError> {
        if self.ended {
            return Ok(None);
        }
        let mut header = [0; HEADER];
        self.from.read_exact(&mut header)?;
        let (length, command) = (number(&header[..4]) as usize, number(&header[4..6]) as u16);
        let damaged = |what| SendError::Damaged { command, what };
        if length > MAX_COMMAND {
            return Err(damaged("it is too long"));
        }
        self.buffer.resize(length, 0);
        self.from.read_exact(&mut self.buffer)?;
        // CRC-32C without the inversions at both ends, over the command with its checksum taken as zero.
        let sum = header[6..].to_vec();
        header[6..].fill(0);
        let found = !crc32c::crc32c_append(crc32c::crc32c_append(!0, &header), &self.buffer);
        if u64::from(found) != number(&sum) {
            return Err(damaged("its checksum is wrong"));
        }
        let attributes = Attributes::parse(command, &self.buffer)?;
        let parsed = attributes.command()?;
        self.ended = parsed == Command::End;
        Ok(Some(parsed))
    }
}

/// Little-endian, at most eight bytes.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

struct Attributes<'a> {
    command: u16,
    values: [Option<&'a [u8]>; attribute::COUNT],
}

impl<'a> Attributes<'a> {
    fn parse(command: u16, mut rest: &'a [u8]) -> Result<Self, SendError> {
        let damaged = |what| SendError::Damaged { command, what };
        let mut values = [None; attribute::COUNT];
        while let Some((kind, behind)) = rest.split_first_chunk::<2>() {
            let kind = usize::from(u16::from_le_bytes(*kind));
            // Data come last and take all that is left.
            let (value, behind) = if kind == attribute::DATA {
                (behind, &[][..])
            } else {
                let (length, behind) = behind.split_first_chunk::<2>().ok_or(damaged("an attribute is cut off"))?;
                behind.split_at_checked(u16::from_le_bytes(*length).into()).ok_or(damaged("an attribute is cut off"))?
            };
            *values.get_mut(kind).ok_or(damaged("it has an unknown attribute"))? = Some(value);
            rest = behind;
        }
        if rest.is_empty() { Ok(Self { command, values }) } else { Err(damaged("an attribute is cut off")) }
    }

    fn bytes(&self, attribute: usize) -> Result<&'a [u8], SendError> {
        let missing = SendError::Damaged { command: self.command, what: "an attribute is missing" };
        self.values.get(attribute).copied().flatten().ok_or(missing)
    }

    fn sized<const N: usize>(&self, attribute: usize) -> Result<[u8; N], SendError> {
        let wrong = SendError::Damaged { command: self.command, what: "an attribute has a wrong length" };
        self.bytes(attribute)?.try_into().map_err(|_| wrong)
    }

    fn number(&self, attribute: usize) -> Result<u64, SendError> {
        self.sized(attribute).map(u64::from_le_bytes)
    }

    fn time(&self, attribute: usize) -> Result<Time, SendError> {
        let bytes: [u8; 12] = self.sized(attribute)?;
        Ok(Time { seconds: number(&bytes[..8]) as i64, nanoseconds: number(&bytes[8..]) as u32 })
    }

    fn command(&self) -> Result<Command<'a>, SendError> {
        use attribute as a;
        let path = || self.bytes(a::PATH);
        Ok(match self.command {
            1 => {
                self.bytes(a::UUID)?;
                Command::Subvolume
            }
            2 => Command::Snapshot,
            3 => Command::MakeFile(path()?),
            4 => Command::MakeDirectory(path()?),
            5 => Command::MakeNode(path()?, self.number(a::MODE)?, self.number(a::RDEV)?),
            6 => Command::MakeFifo(path()?),
            7 => Command::MakeSocket(path()?),
            8 => Command::MakeSymlink(path()?, self.bytes(a::PATH_LINK)?),
            9 => Command::Rename(path()?, self.bytes(a::PATH_TO)?),
            10 => Command::Link(path()?, self.bytes(a::PATH_LINK)?),
            11 => Command::Unlink(path()?),
            12 => Command::RemoveDirectory(path()?),
            13 => Command::SetXattr(path()?, self.bytes(a::XATTR_NAME)?, self.bytes(a::XATTR_DATA)?),
            14 => Command::RemoveXattr(path()?, self.bytes(a::XATTR_NAME)?),
            15 => Command::Write(path()?, self.number(a::FILE_OFFSET)?, self.bytes(a::DATA)?),
            16 => Command::Clone(CloneCommand {
                path: path()?,
                offset: self.number(a::FILE_OFFSET)?,
                length: self.number(a::CLONE_LEN)?,
                uuid: self.sized(a::CLONE_UUID)?,
                from: self.bytes(a::CLONE_PATH)?,
                from_offset: self.number(a::CLONE_OFFSET)?,
            }),
            17 => Command::Truncate(path()?, self.number(a::SIZE)?),
            18 => Command::ChangeMode(path()?, self.number(a::MODE)?),
            19 => Command::ChangeOwner(path()?, self.number(a::UID)?, self.number(a::GID)?),
            20 => Command::ChangeTimes(path()?, self.time(a::ATIME)?, self.time(a::MTIME)?),
            21 => Command::End,
            23 => {
                let mode = u32::from_le_bytes(self.sized(a::FALLOCATE_MODE)?);
                Command::Allocate(path()?, mode, self.number(a::FILE_OFFSET)?, self.number(a::SIZE)?)
            }
            24 => Command::Attributes(path()?, self.number(a::FILEATTR)?),
            other => return Err(SendError::Unknown(other)),
        })
    }
}
