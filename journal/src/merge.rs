//! Several transactions that follow each other as one: their operations one after the other, those left out that a later
//! one makes superfluous.
//!
//! What is left out is only what can be told from the operations alone: data that is overwritten as a whole by one later
//! operation under the same name, and times that are set again, as long as nothing in between could give the name another
//! file, or copy from it. All else stays, so the merged transaction leads from the same state to the same state.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, Write};

use crate::op::Op;
use crate::path::TreePath;
use crate::read::{ReadError, Transaction};
use crate::touched::Touched;
use crate::write::{Summary, Writer};
use crate::{Header, Kind};

/// Most operations that are remembered because a later one may make them superfluous. Beyond, all are forgotten, which
/// costs room in the file and nothing else.
const REMEMBERED: usize = 1 << 16;

/// Why transactions cannot become one.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// One of them.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The file that is written.
    #[error("the merged transaction cannot be written: {0}")]
    Write(#[from] io::Error),
    /// They do not follow each other.
    #[error("transaction {sequence} cannot be merged with those before it: {what}")]
    Unfit {
        /// The one that does not fit.
        sequence: u64,
        /// Why not.
        what: &'static str,
    },
}

/// Header of the transaction that does what `parts` do, which are given in order. `writer` is random.
pub fn header<R: Read + Seek>(parts: &[Transaction<R>], writer: [u8; 16]) -> Result<Header, MergeError> {
    let unfit = |sequence, what| Err(MergeError::Unfit { sequence, what });
    let (Some(first), Some(last)) = (parts.first(), parts.last()) else { return unfit(0, "there is none") };
    for pair in parts.windows(2) {
        let (before, header) = (&pair[0], pair[1].header());
        let wrong = if header.first != before.header().sequence + 1 {
            "it does not follow"
        } else if header.parent != before.state() {
            "it follows another state"
        } else if header.volume != before.header().volume || header.layers != before.header().layers {
            "it is of another volume or template"
        } else {
            continue;
        };
        return unfit(header.sequence, wrong);
    }
    if let Some(checkpoint) = parts.iter().find(|part| part.header().kind == Kind::Checkpoint) {
        return unfit(checkpoint.header().sequence, "it is a checkpoint");
    }
    let Header { first, parent, .. } = first.header().clone();
    Ok(Header { kind: Kind::Merged { state: last.state() }, writer, first, parent, ..last.header().clone() })
}

/// Writes the transaction of that header to `to`. Memory does not grow with the operations, but for a bit for each and a
/// bounded number that are remembered, and for the names that are touched.
pub fn merge<R: Read + Seek, W: Write>(
    parts: &mut [Transaction<R>],
    header: &Header,
    to: W,
) -> Result<(W, Summary), MergeError> {
    let mut superseded = Superseded::default();
    for part in &mut *parts {
        part.each(|op| {
            superseded.see(op);
            Ok::<(), MergeError>(())
        })?;
    }
    let mut writer = Writer::new(to, header)?;
    let mut touched = Touched::default();
    let mut number = 0;
    for part in parts {
        part.each(|op| {
            touched.note(op);
            if !superseded.has(number) {
                writer.push(op)?;
            }
            number += 1;
            Ok::<(), MergeError>(())
        })?;
    }
    Ok(writer.finish(&touched.changes())?)
}

/// Operations of one name that a later one may make superfluous.
#[derive(Debug, Default)]
struct Pending {
    /// Data by offset: length and number of the operation.
    data: BTreeMap<u64, (u64, usize)>,
    times: Option<usize>,
}

/// Finds what is superfluous.
#[derive(Debug, Default)]
struct Superseded {
    /// A bit for each operation.
    bits: Vec<u64>,
    seen: usize,
    pending: BTreeMap<Vec<u8>, Pending>,
    remembered: usize,
}

impl Superseded {
    fn has(&self, number: usize) -> bool {
        self.bits.get(number / 64).is_some_and(|bits| bits >> (number % 64) & 1 == 1)
    }

    fn set(&mut self, number: usize) {
        if let Some(bits) = self.bits.get_mut(number / 64) {
            *bits |= 1 << (number % 64);
        }
    }

    fn see(&mut self, op: &Op<'_>) {
        let number = self.seen;
        self.seen += 1;
        if number.is_multiple_of(64) {
            self.bits.push(0);
        }
        match *op {
            Op::Write { path, offset, data } => self.data(path, offset, data.len() as u64, number),
            Op::Hole { path, range } => self.data(path, range.offset, range.length, number),
            Op::Times { path, .. } => {
                if let Some(before) = self.of(path).times.replace(number) {
                    self.set(before);
                }
            }
            // The name is of another file now, or of one with several names.
            Op::Rename { from, to } => {
                self.forget(from);
                self.forget(to);
            }
            Op::Link { existing, path } => {
                self.forget(existing);
                self.forget(path);
            }
            Op::Unlink(path) | Op::RemoveDirectory(path) | Op::CloneTemplate { path, .. } => self.forget(path),
            // Of a file that may have several names.
            Op::CloneOwn { .. } => self.forget_all(),
            // Neither gives a name another file, nor depends on data or times.
            Op::MakeFile(_)
            | Op::MakeDirectory(_)
            | Op::MakeFifo(_)
            | Op::MakeSocket(_)
            | Op::MakeSymlink { .. }
            | Op::MakeDevice { .. }
            | Op::Preallocate { .. }
            | Op::Truncate { .. }
            | Op::SetXattr { .. }
            | Op::RemoveXattr { .. }
            | Op::Owner { .. }
            | Op::Mode { .. } => {}
        }
    }

    fn of(&mut self, path: TreePath<'_>) -> &mut Pending {
        if self.remembered >= REMEMBERED {
            self.forget_all();
        }
        self.remembered += 1;
        self.pending.entry(path.as_bytes().to_vec()).or_default()
    }

    fn data(&mut self, path: TreePath<'_>, offset: u64, length: u64, number: usize) {
        let end = offset.saturating_add(length);
        let data = &mut self.of(path).data;
        let covered: Vec<(u64, usize)> = data
            .range(offset..end)
            .filter(|(start, (length, _))| start.saturating_add(*length) <= end)
            .map(|(start, (_, number))| (*start, *number))
            .collect();
        for (start, _) in &covered {
            data.remove(start);
        }
        data.insert(offset, (length, number));
        for (_, before) in covered {
            self.set(before);
        }
    }

    /// Of a name and of what is below it.
    fn forget(&mut self, path: TreePath<'_>) {
        let path = path.as_bytes();
        self.pending.remove(path);
        let below = [path, b"/"].concat();
        while let Some(name) = self.pending.range(below.clone()..).next().map(|(name, _)| name.clone()) {
            if !name.starts_with(&below) {
                return;
            }
            self.pending.remove(&name);
        }
    }

    fn forget_all(&mut self) {
        self.pending.clear();
        self.remembered = 0;
    }
}
