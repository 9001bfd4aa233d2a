//! From the kernel's send stream to operations.
//!
//! What names this node alone is replaced: a clone source is the volume itself or a numbered layer of the template, a
//! device number is major and minor. The stream does not tell holes from written zeros and does not know
//! preallocation; zeros become [`Op::Hole`], and [`Touched`] remembers where, so that the caller can look at the
//! snapshot and add what is missing.

use std::io::{self, Read, Write};

use crate::op::{Op, OpError, Range};
use crate::path::{PathError, TreePath};
use crate::send::{Command, Commands, SendError};
use crate::touched::Touched;
use crate::wire::Input;
use crate::write::Writer;

/// `FALLOC_FL_PUNCH_HOLE` (linux/falloc.h).
const PUNCH_HOLE: u32 = 2;
/// File type bits of `st_mode`, and those of device nodes.
const TYPE: u64 = 0o170_000;
const CHARACTER: u64 = 0o020_000;
const BLOCK: u64 = 0o060_000;

/// Where clones may come from, by the UUID that the kernel's stream names them with.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The snapshot that is sent.
    pub own: [u8; 16],
    /// Layers of the template, lowest first.
    pub layers: Vec<[u8; 16]>,
}

/// Why a stream cannot become a transaction.
#[derive(Debug, thiserror::Error)]
pub enum TranslateError {
    /// The stream is damaged.
    #[error(transparent)]
    Send(#[from] SendError),
    /// The transaction cannot be written.
    #[error("the transaction file cannot be written: {0}")]
    Write(#[from] io::Error),
    /// A name that is none.
    #[error("the kernel sends {0}")]
    Path(#[from] PathError),
    /// Something that the format cannot hold.
    #[error("the kernel sends '{path}' with something that a transaction cannot hold: {source}")]
    Op {
        /// Of what.
        path: String,
        /// What.
        source: OpError,
    },
    /// A clone of something else than the volume and its template.
    #[error("the kernel sends '{path}' as a copy of data outside the volume and its template")]
    Source {
        /// Of what.
        path: String,
    },
    /// A device node of another type.
    #[error("the kernel sends '{path}' as a device node of mode {mode:o}")]
    Device {
        /// Its name.
        path: String,
        /// Its mode.
        mode: u64,
    },
}

/// Translates a whole stream.
pub fn translate<W: Write>(
    stream: impl Read,
    sources: &Sources,
    to: &mut Writer<W>,
) -> Result<Touched, TranslateError> {
    let mut commands = Commands::new(stream)?;
    let mut touched = Touched::default();
    let mut scratch = Vec::new();
    while let Some(command) = commands.next()? {
        let Some(op) = operation(&command, sources)? else { continue };
        // What the kernel sends is checked as what a file says is: nothing is written that could not be read.
        scratch.clear();
        op.encode(&mut scratch);
        Op::decode(&mut Input(&scratch))
            .map_err(|source| TranslateError::Op { path: op.path().to_string(), source })?;
        touched.note(&op);
        to.push(&op)?;
    }
    Ok(touched)
}

fn operation<'a>(command: &Command<'a>, sources: &Sources) -> Result<Option<Op<'a>>, TranslateError> {
    let parse = TreePath::parse;
    Ok(Some(match *command {
        // Flags of chattr(1) are of this file system's own, and no part of what a volume promises to keep.
        Command::Subvolume | Command::Snapshot | Command::End | Command::Attributes(..) | Command::Write(_, _, []) => {
            return Ok(None);
        }
        Command::MakeFile(path) => Op::MakeFile(parse(path)?),
        Command::MakeDirectory(path) => Op::MakeDirectory(parse(path)?),
        Command::MakeFifo(path) => Op::MakeFifo(parse(path)?),
        Command::MakeSocket(path) => Op::MakeSocket(parse(path)?),
        Command::MakeSymlink(path, target) => Op::MakeSymlink { path: parse(path)?, target },
        Command::MakeNode(path, mode, number) => {
            let path = parse(path)?;
            let character = match mode & TYPE {
                CHARACTER => true,
                BLOCK => false,
                _ => return Err(TranslateError::Device { path: path.to_string(), mode }),
            };
            let major = (number >> 8) as u32 & 0xfff;
            let minor = number as u32 & 0xff | (number >> 12) as u32 & 0xf_ff00;
            Op::MakeDevice { path, character, major, minor }
        }
        Command::Rename(from, to) => Op::Rename { from: parse(from)?, to: parse(to)? },
        Command::Link(path, existing) => Op::Link { existing: parse(existing)?, path: parse(path)? },
        Command::Unlink(path) => Op::Unlink(parse(path)?),
        Command::RemoveDirectory(path) => Op::RemoveDirectory(parse(path)?),
        Command::SetXattr(path, name, value) => Op::SetXattr { path: parse(path)?, name, value },
        Command::RemoveXattr(path, name) => Op::RemoveXattr { path: parse(path)?, name },
        Command::Write(path, offset, data) if is_zero(data) => {
            Op::Hole { path: parse(path)?, range: Range { offset, length: data.len() as u64 } }
        }
        Command::Write(path, offset, data) => Op::Write { path: parse(path)?, offset, data },
        Command::Clone(clone) => {
            let (path, from) = (parse(clone.path)?, parse(clone.from)?);
            let range = Range { offset: clone.from_offset, length: clone.length };
            if clone.uuid == sources.own {
                Op::CloneOwn { path, offset: clone.offset, from, range }
            } else if let Some(layer) = sources.layers.iter().position(|uuid| *uuid == clone.uuid) {
                Op::CloneTemplate { path, offset: clone.offset, layer: layer as u32, from, range }
            } else {
                return Err(TranslateError::Source { path: path.to_string() });
            }
        }
        Command::Truncate(path, size) => Op::Truncate { path: parse(path)?, size },
        Command::ChangeMode(path, mode) => Op::Mode { path: parse(path)?, mode: mode as u32 & 0o7777 },
        Command::ChangeOwner(path, user, group) => {
            Op::Owner { path: parse(path)?, user: user as u32, group: group as u32 }
        }
        Command::ChangeTimes(path, access, modification) => Op::Times { path: parse(path)?, access, modification },
        Command::Allocate(path, mode, offset, length) => {
            let (path, range) = (parse(path)?, Range { offset, length });
            if mode & PUNCH_HOLE != 0 { Op::Hole { path, range } } else { Op::Preallocate { path, range } }
        }
    }))
}

fn is_zero(data: &[u8]) -> bool {
    let (words, after) = data.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && after.iter().all(|byte| *byte == 0)
}
