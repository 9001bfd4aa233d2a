//! Operations: what a transaction does to the tree, one by one and in order.
//!
//! Each is applied to the tree as the ones before it left it. Together they leave exactly what was in the volume at the
//! instant of the commit; in between, names of the kernel's own (`o257-9-0`) may be in use.

use crate::path::{MAX_NAME, MAX_PATH, PathError, TreePath};
use crate::wire::{Input, WireError, put_bytes, put_number, put_signed};

/// Most bytes that one [`Op::Write`] carries; longer writes are several.
pub const MAX_DATA: usize = 256 << 10;
/// Longest value of an extended attribute (`XATTR_SIZE_MAX`).
pub const MAX_XATTR: usize = 64 << 10;
/// Most layers that a template has.
pub const MAX_LAYERS: u64 = 128;
/// Largest offset in a file (`loff_t`).
const MAX_OFFSET: u64 = i64::MAX as u64;
/// Largest device number part: 12 bits of major, 20 of minor.
const MAX_MAJOR: u64 = (1 << 12) - 1;
const MAX_MINOR: u64 = (1 << 20) - 1;

/// Largest number of a user or group: the one above means "as it is" to chown(2).
const MAX_ID: u64 = u32::MAX as u64 - 1;

/// Seconds and nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time {
    /// Seconds; before 1970 negative.
    pub seconds: i64,
    /// Nanoseconds, below a thousand million.
    pub nanoseconds: u32,
}

/// A part of a file, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Where it begins.
    pub offset: u64,
    /// How long it is.
    pub length: u64,
}

/// One operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op<'a> {
    /// Make an empty regular file. Owner and mode follow.
    MakeFile(TreePath<'a>),
    /// Make a directory.
    MakeDirectory(TreePath<'a>),
    /// Make a fifo.
    MakeFifo(TreePath<'a>),
    /// Make a socket's name.
    MakeSocket(TreePath<'a>),
    /// Make a symbolic link.
    MakeSymlink {
        /// The link.
        path: TreePath<'a>,
        /// What it says: any bytes but NUL, at most 4095.
        target: &'a [u8],
    },
    /// Make a device node. `character` 0, 0 is a whiteout of overlayfs.
    MakeDevice {
        /// Its name.
        path: TreePath<'a>,
        /// Character or block device.
        character: bool,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// Give something another name, in place of what has that name (rename(2)).
    Rename {
        /// From here.
        from: TreePath<'a>,
        /// To here.
        to: TreePath<'a>,
    },
    /// Give a file one more name (hard link).
    Link {
        /// A name that it has.
        existing: TreePath<'a>,
        /// The new one.
        path: TreePath<'a>,
    },
    /// Remove a name of something that is no directory.
    Unlink(TreePath<'a>),
    /// Remove an empty directory.
    RemoveDirectory(TreePath<'a>),
    /// Put data into a file.
    Write {
        /// The file.
        path: TreePath<'a>,
        /// Where.
        offset: u64,
        /// At least one byte, at most [`MAX_DATA`].
        data: &'a [u8],
    },
    /// Make a part of a file a hole that reads as zeros. A file that ends before its end grows to it: zeros at the end of a
    /// file are sent so.
    Hole {
        /// The file.
        path: TreePath<'a>,
        /// Which part.
        range: Range,
    },
    /// Reserve room where a part of a file holds no data, also behind its end; the size stays.
    Preallocate {
        /// The file.
        path: TreePath<'a>,
        /// Which part.
        range: Range,
    },
    /// Set the size of a file. Room that was reserved behind it is gone, also if the size stays.
    Truncate {
        /// The file.
        path: TreePath<'a>,
        /// The size in bytes.
        size: u64,
    },
    /// Share data of another part of the volume.
    CloneOwn {
        /// The file that gets the data.
        path: TreePath<'a>,
        /// Where.
        offset: u64,
        /// The file that has them.
        from: TreePath<'a>,
        /// Which.
        range: Range,
    },
    /// Share data of the template.
    CloneTemplate {
        /// The file that gets the data.
        path: TreePath<'a>,
        /// Where.
        offset: u64,
        /// Number of the layer in [`crate::Header::layers`].
        layer: u32,
        /// The file of the layer.
        from: TreePath<'a>,
        /// Which.
        range: Range,
    },
    /// Set an extended attribute; access control lists and file capabilities are such.
    SetXattr {
        /// Of what.
        path: TreePath<'a>,
        /// Name with its namespace, at most 255 bytes, no NUL.
        name: &'a [u8],
        /// At most [`MAX_XATTR`].
        value: &'a [u8],
    },
    /// Remove an extended attribute.
    RemoveXattr {
        /// Of what.
        path: TreePath<'a>,
        /// Name with its namespace.
        name: &'a [u8],
    },
    /// Set owner and group, as they are on disk.
    Owner {
        /// Of what.
        path: TreePath<'a>,
        /// User.
        user: u32,
        /// Group.
        group: u32,
    },
    /// Set permission bits, set-ID and sticky bits among them.
    Mode {
        /// Of what.
        path: TreePath<'a>,
        /// At most 0o7777.
        mode: u32,
    },
    /// Set the times of access and modification.
    Times {
        /// Of what; a symbolic link itself.
        path: TreePath<'a>,
        /// Access.
        access: Time,
        /// Modification.
        modification: Time,
    },
}

/// Bytes that are no operation.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum OpError {
    /// A number or string is damaged.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A path leads out of the volume, or is none.
    #[error(transparent)]
    Path(#[from] PathError),
    /// An operation of a later version of the format, or none.
    #[error("there is no operation {0}")]
    Unknown(u8),
    /// An operation on the root that would remove or rename it.
    #[error("the root of a volume can be changed, but not made, renamed, linked or removed")]
    Root,
    /// A range that ends behind the largest offset, or an empty one.
    #[error("a range of {length} bytes at {offset} is no part of a file")]
    Range {
        /// Where it begins.
        offset: u64,
        /// How long it is.
        length: u64,
    },
    /// Something that must have bytes has none, or has a NUL among them.
    #[error("{0} is empty or has a NUL byte")]
    Text(&'static str),
}

mod code {
    pub const MAKE_FILE: u8 = 1;
    pub const MAKE_DIRECTORY: u8 = 2;
    pub const MAKE_FIFO: u8 = 3;
    pub const MAKE_SOCKET: u8 = 4;
    pub const MAKE_SYMLINK: u8 = 5;
    pub const MAKE_CHARACTER_DEVICE: u8 = 6;
    pub const MAKE_BLOCK_DEVICE: u8 = 7;
    pub const RENAME: u8 = 8;
    pub const LINK: u8 = 9;
    pub const UNLINK: u8 = 10;
    pub const REMOVE_DIRECTORY: u8 = 11;
    pub const WRITE: u8 = 12;
    pub const HOLE: u8 = 13;
    pub const PREALLOCATE: u8 = 14;
    pub const TRUNCATE: u8 = 15;
    pub const CLONE_OWN: u8 = 16;
    pub const CLONE_TEMPLATE: u8 = 17;
    pub const SET_XATTR: u8 = 18;
    pub const REMOVE_XATTR: u8 = 19;
    pub const OWNER: u8 = 20;
    pub const MODE: u8 = 21;
    pub const TIMES: u8 = 22;
}

impl<'a> Op<'a> {
    /// Appends the operation: its code, its path, then its other fields in the order in which they are declared.
    pub fn encode(&self, to: &mut Vec<u8>) {
        let mut begin = |code: u8, path: TreePath<'_>| {
            to.push(code);
            put_bytes(to, path.as_bytes());
        };
        match *self {
            Self::MakeFile(path) => begin(code::MAKE_FILE, path),
            Self::MakeDirectory(path) => begin(code::MAKE_DIRECTORY, path),
            Self::MakeFifo(path) => begin(code::MAKE_FIFO, path),
            Self::MakeSocket(path) => begin(code::MAKE_SOCKET, path),
            Self::Unlink(path) => begin(code::UNLINK, path),
            Self::RemoveDirectory(path) => begin(code::REMOVE_DIRECTORY, path),
            Self::MakeSymlink { path, target } => {
                begin(code::MAKE_SYMLINK, path);
                put_bytes(to, target);
            }
            Self::MakeDevice { path, character, major, minor } => {
                begin(if character { code::MAKE_CHARACTER_DEVICE } else { code::MAKE_BLOCK_DEVICE }, path);
                put_number(to, major.into());
                put_number(to, minor.into());
            }
            Self::Rename { from, to: target } => {
                begin(code::RENAME, from);
                put_bytes(to, target.as_bytes());
            }
            Self::Link { existing, path } => {
                begin(code::LINK, existing);
                put_bytes(to, path.as_bytes());
            }
            Self::Write { path, offset, data } => {
                begin(code::WRITE, path);
                put_number(to, offset);
                put_bytes(to, data);
            }
            Self::Hole { path, range } => {
                begin(code::HOLE, path);
                put_range(to, range);
            }
            Self::Preallocate { path, range } => {
                begin(code::PREALLOCATE, path);
                put_range(to, range);
            }
            Self::Truncate { path, size } => {
                begin(code::TRUNCATE, path);
                put_number(to, size);
            }
            Self::CloneOwn { path, offset, from, range } => {
                begin(code::CLONE_OWN, path);
                put_number(to, offset);
                put_bytes(to, from.as_bytes());
                put_range(to, range);
            }
            Self::CloneTemplate { path, offset, layer, from, range } => {
                begin(code::CLONE_TEMPLATE, path);
                put_number(to, offset);
                put_number(to, layer.into());
                put_bytes(to, from.as_bytes());
                put_range(to, range);
            }
            Self::SetXattr { path, name, value } => {
                begin(code::SET_XATTR, path);
                put_bytes(to, name);
                put_bytes(to, value);
            }
            Self::RemoveXattr { path, name } => {
                begin(code::REMOVE_XATTR, path);
                put_bytes(to, name);
            }
            Self::Owner { path, user, group } => {
                begin(code::OWNER, path);
                put_number(to, user.into());
                put_number(to, group.into());
            }
            Self::Mode { path, mode } => {
                begin(code::MODE, path);
                put_number(to, mode.into());
            }
            Self::Times { path, access, modification } => {
                begin(code::TIMES, path);
                for time in [access, modification] {
                    put_signed(to, time.seconds);
                    put_number(to, time.nanoseconds.into());
                }
            }
        }
    }

    /// The path that it is about: the one that is encoded first.
    #[must_use]
    pub fn path(&self) -> TreePath<'a> {
        match *self {
            Self::MakeFile(path)
            | Self::MakeDirectory(path)
            | Self::MakeFifo(path)
            | Self::MakeSocket(path)
            | Self::MakeSymlink { path, .. }
            | Self::MakeDevice { path, .. }
            | Self::Rename { from: path, .. }
            | Self::Link { existing: path, .. }
            | Self::Unlink(path)
            | Self::RemoveDirectory(path)
            | Self::Write { path, .. }
            | Self::Hole { path, .. }
            | Self::Preallocate { path, .. }
            | Self::Truncate { path, .. }
            | Self::CloneOwn { path, .. }
            | Self::CloneTemplate { path, .. }
            | Self::SetXattr { path, .. }
            | Self::RemoveXattr { path, .. }
            | Self::Owner { path, .. }
            | Self::Mode { path, .. }
            | Self::Times { path, .. } => path,
        }
    }

    /// Reads the next operation and checks it: what comes out can be carried out without leaving the volume.
    pub fn decode(input: &mut Input<'a>) -> Result<Self, OpError> {
        let code = input.byte("the code of an operation")?;
        let path = get_path(input)?;
        let op = match code {
            code::MAKE_FILE => Self::MakeFile(named(path)?),
            code::MAKE_DIRECTORY => Self::MakeDirectory(named(path)?),
            code::MAKE_FIFO => Self::MakeFifo(named(path)?),
            code::MAKE_SOCKET => Self::MakeSocket(named(path)?),
            code::MAKE_SYMLINK => {
                let target = text(input.bytes(MAX_PATH, "the target of a symbolic link")?, "the target of a link")?;
                Self::MakeSymlink { path: named(path)?, target }
            }
            code::MAKE_CHARACTER_DEVICE | code::MAKE_BLOCK_DEVICE => Self::MakeDevice {
                path: named(path)?,
                character: code == code::MAKE_CHARACTER_DEVICE,
                major: input.number(MAX_MAJOR, "a major device number")? as u32,
                minor: input.number(MAX_MINOR, "a minor device number")? as u32,
            },
            code::RENAME => Self::Rename { from: named(path)?, to: named(get_path(input)?)? },
            code::LINK => Self::Link { existing: named(path)?, path: named(get_path(input)?)? },
            code::UNLINK => Self::Unlink(named(path)?),
            code::REMOVE_DIRECTORY => Self::RemoveDirectory(named(path)?),
            code::WRITE => {
                let offset = input.number(MAX_OFFSET, "an offset")?;
                let data = input.bytes(MAX_DATA, "the data of a write")?;
                range(offset, data.len() as u64)?;
                Self::Write { path, offset, data }
            }
            code::HOLE => Self::Hole { path, range: get_range(input)? },
            code::PREALLOCATE => Self::Preallocate { path, range: get_range(input)? },
            code::TRUNCATE => Self::Truncate { path, size: input.number(MAX_OFFSET, "a size")? },
            code::CLONE_OWN => {
                let offset = input.number(MAX_OFFSET, "an offset")?;
                let (from, part) = (get_path(input)?, get_range(input)?);
                range(offset, part.length)?;
                Self::CloneOwn { path, offset, from, range: part }
            }
            code::CLONE_TEMPLATE => {
                let offset = input.number(MAX_OFFSET, "an offset")?;
                let layer = input.number(MAX_LAYERS - 1, "the number of a layer")? as u32;
                let (from, part) = (get_path(input)?, get_range(input)?);
                range(offset, part.length)?;
                Self::CloneTemplate { path, offset, layer, from, range: part }
            }
            code::SET_XATTR => Self::SetXattr {
                path,
                name: text(input.bytes(MAX_NAME, "the name of an attribute")?, "the name of an attribute")?,
                value: input.bytes(MAX_XATTR, "the value of an attribute")?,
            },
            code::REMOVE_XATTR => Self::RemoveXattr {
                path,
                name: text(input.bytes(MAX_NAME, "the name of an attribute")?, "the name of an attribute")?,
            },
            code::OWNER => Self::Owner {
                path,
                user: input.number(MAX_ID, "a user")? as u32,
                group: input.number(MAX_ID, "a group")? as u32,
            },
            code::MODE => Self::Mode { path, mode: input.number(0o7777, "a mode")? as u32 },
            code::TIMES => Self::Times { path, access: get_time(input)?, modification: get_time(input)? },
            other => return Err(OpError::Unknown(other)),
        };
        Ok(op)
    }
}

fn put_range(to: &mut Vec<u8>, range: Range) {
    put_number(to, range.offset);
    put_number(to, range.length);
}

fn get_range(input: &mut Input<'_>) -> Result<Range, OpError> {
    range(input.number(MAX_OFFSET, "an offset")?, input.number(MAX_OFFSET, "a length")?)
}

/// A part of a file that is not empty and does not end behind the largest offset.
fn range(offset: u64, length: u64) -> Result<Range, OpError> {
    match offset.checked_add(length) {
        Some(end) if length > 0 && end <= MAX_OFFSET => Ok(Range { offset, length }),
        _ => Err(OpError::Range { offset, length }),
    }
}

fn get_time(input: &mut Input<'_>) -> Result<Time, OpError> {
    let seconds = input.signed("a time")?;
    Ok(Time { seconds, nanoseconds: input.number(999_999_999, "nanoseconds")? as u32 })
}

fn get_path<'a>(input: &mut Input<'a>) -> Result<TreePath<'a>, OpError> {
    Ok(TreePath::parse(input.bytes(MAX_PATH, "a path")?)?)
}

/// Refuses the root for operations on a name.
fn named(path: TreePath<'_>) -> Result<TreePath<'_>, OpError> {
    if path.is_root() { Err(OpError::Root) } else { Ok(path) }
}

fn text<'a>(bytes: &'a [u8], what: &'static str) -> Result<&'a [u8], OpError> {
    if bytes.is_empty() || bytes.contains(&0) { Err(OpError::Text(what)) } else { Ok(bytes) }
}
