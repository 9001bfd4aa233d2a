//! Merged transactions lead to the same state as those that are in them.

#![allow(clippy::unwrap_used, reason = "a test says what must hold by unwrapping it")]

use std::collections::BTreeMap;
use std::io::Cursor;

use proptest::prelude::*;
use vivarium_journal::merge::{MergeError, header, merge};
use vivarium_journal::op::{Op, Range, Time};
use vivarium_journal::read::{ReadError, Transaction};
use vivarium_journal::touched::{Touched, What};
use vivarium_journal::write::Writer;
use vivarium_journal::{Digest, Header, Kind, TreePath};

/// What an operation is made of.
#[derive(Clone, Copy, Debug)]
struct Step {
    kind: u8,
    path: usize,
    other: usize,
    offset: u64,
    length: u64,
    value: u8,
}

const NAMES: [&str; 5] = ["a", "b", "d/a", "d/b", "d/e/a"];

fn path(number: usize) -> TreePath<'static> {
    TreePath::parse(NAMES[number % NAMES.len()].as_bytes()).unwrap()
}

const DATA: [[u8; 8]; 16] = {
    let mut data = [[0; 8]; 16];
    let mut value = 0;
    while value < 16 {
        data[value] = [value as u8 + 1; 8];
        value += 1;
    }
    data
};

impl Step {
    fn op(self) -> Op<'static> {
        let (path, other) = (path(self.path), path(self.other));
        let range = Range { offset: self.offset, length: self.length };
        let time = Time { seconds: self.value.into(), nanoseconds: 0 };
        match self.kind {
            0 => Op::MakeFile(path),
            1 => Op::Unlink(path),
            2 => Op::Rename { from: path, to: other },
            3 => Op::Link { existing: path, path: other },
            4 => Op::Truncate { path, size: self.offset + self.length },
            5 => Op::CloneOwn { path, offset: self.offset, from: other, range: Range { offset: 1, ..range } },
            6 => Op::Hole { path, range },
            // A directory, with all that is in it.
            7 => Op::Rename { from: TreePath::parse(b"d").unwrap(), to: TreePath::parse(b"f").unwrap() },
            8 => Op::Rename { from: TreePath::parse(b"f").unwrap(), to: TreePath::parse(b"d").unwrap() },
            9..=11 => Op::Times { path, access: time, modification: time },
            _ => Op::Write { path, offset: self.offset, data: &DATA[self.value as usize % 16][..self.length as usize] },
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    (0u8..20, 0usize..5, 0usize..5, 0u64..12, 1u64..8, any::<u8>())
        .prop_map(|(kind, path, other, offset, length, value)| Step { kind, path, other, offset, length, value })
}

/// Files with their data and times, under one name or several.
#[derive(Clone, Debug, Default, PartialEq)]
struct Tree {
    names: BTreeMap<String, usize>,
    files: Vec<(Vec<u8>, i64)>,
}

impl Tree {
    /// Carries out what can be; tells whether it could.
    fn apply(&mut self, op: &Op<'_>) -> bool {
        let name = |path: TreePath<'_>| path.to_string();
        match *op {
            Op::MakeFile(path) if !self.names.contains_key(&name(path)) => {
                self.files.push((Vec::new(), 0));
                self.names.insert(name(path), self.files.len() - 1);
                true
            }
            Op::Unlink(path) => self.names.remove(&name(path)).is_some(),
            Op::Rename { from, to } if matches!(name(from).as_str(), "d" | "f") => {
                let (from, to) = (name(from) + "/", name(to) + "/");
                let moved: Vec<String> = self.names.keys().filter(|name| name.starts_with(&from)).cloned().collect();
                if moved.is_empty() || self.names.keys().any(|name| name.starts_with(&to)) {
                    return false;
                }
                for name in moved {
                    let file = self.names.remove(&name).unwrap();
                    self.names.insert(name.replacen(&from, &to, 1), file);
                }
                true
            }
            Op::Rename { from, to } if name(from) != name(to) => match self.names.remove(&name(from)) {
                Some(file) => {
                    self.names.insert(name(to), file);
                    true
                }
                None => false,
            },
            Op::Link { existing, path } if !self.names.contains_key(&name(path)) => {
                match self.names.get(&name(existing)).copied() {
                    Some(file) => self.names.insert(name(path), file).is_none(),
                    None => false,
                }
            }
            Op::Write { path, offset, data } => self.put(&name(path), offset, data),
            Op::Hole { path, range } => self.put(&name(path), range.offset, &vec![0; range.length as usize]),
            Op::Truncate { path, size } => self.file(&name(path), |file| file.0.resize(size as usize, 0)),
            Op::CloneOwn { path, offset, from, range } => {
                let Some(source) = self.names.get(&name(from)).copied() else { return false };
                let (start, end) = (range.offset as usize, (range.offset + range.length) as usize);
                let Some(data) = self.files[source].0.get(start..end).map(<[u8]>::to_vec) else { return false };
                self.put(&name(path), offset, &data)
            }
            Op::Times { path, access, .. } => self.file(&name(path), |file| file.1 = access.seconds),
            _ => false,
        }
    }

    fn file(&mut self, name: &str, change: impl FnOnce(&mut (Vec<u8>, i64))) -> bool {
        self.names.get(name).copied().map(|file| change(&mut self.files[file])).is_some()
    }

    fn put(&mut self, name: &str, offset: u64, data: &[u8]) -> bool {
        self.file(name, |file| {
            let end = offset as usize + data.len();
            file.0.resize(file.0.len().max(end), 0);
            file.0[offset as usize..end].copy_from_slice(data);
            // As if the clock had moved.
            file.1 = -1;
        })
    }

    /// Files as names show them.
    fn seen(&self) -> BTreeMap<&str, (usize, &(Vec<u8>, i64))> {
        self.names.iter().map(|(name, file)| (name.as_str(), (*file, &self.files[*file]))).collect()
    }
}

fn delta(sequence: u64, parent: Digest, ops: &[Op<'_>]) -> Transaction<Cursor<Vec<u8>>> {
    let kind = if ops.is_empty() { Kind::Barrier } else { Kind::Delta };
    let header = Header {
        kind,
        volume: "v".into(),
        writer: [1; 16],
        epoch: 1,
        first: sequence,
        sequence,
        parent,
        time: sequence as i64,
        layers: vec![],
    };
    let mut writer = Writer::new(Vec::new(), &header).unwrap();
    let mut touched = Touched::default();
    for op in ops {
        writer.push(op).unwrap();
        touched.note(op);
    }
    Transaction::open(Cursor::new(writer.finish(&touched.changes()).unwrap().0)).unwrap()
}

/// Deltas with so many operations each; those that cannot be carried out are left out.
fn log(steps: &[Step], each: usize) -> (Vec<Transaction<Cursor<Vec<u8>>>>, Tree) {
    let mut tree = Tree::default();
    let (mut parts, mut parent) = (Vec::new(), Digest([5; 32]));
    for (number, steps) in steps.chunks(each).enumerate() {
        let ops: Vec<Op<'_>> = steps.iter().map(|step| step.op()).filter(|op| tree.apply(op)).collect();
        let part = delta(number as u64 + 7, parent, &ops);
        parent = part.state();
        parts.push(part);
    }
    (parts, tree)
}

fn merged(parts: &mut [Transaction<Cursor<Vec<u8>>>]) -> Result<Transaction<Cursor<Vec<u8>>>, MergeError> {
    let header = header(parts, [2; 16])?;
    Ok(Transaction::open(Cursor::new(merge(parts, &header, Vec::new())?.0)).unwrap())
}

fn replay(transaction: &mut Transaction<Cursor<Vec<u8>>>) -> Tree {
    let mut tree = Tree::default();
    transaction
        .each(|op| {
            assert!(tree.apply(op), "{op:?} cannot be carried out");
            Ok::<(), ReadError>(())
        })
        .unwrap();
    tree
}

proptest! {
    #[test]
    fn a_merged_transaction_does_what_its_parts_do(steps in proptest::collection::vec(step(), 1..120), each in 1usize..9) {
        let (mut parts, tree) = log(&steps, each);
        let mut whole = merged(&mut parts).unwrap();
        let replayed = replay(&mut whole);
        prop_assert_eq!(replayed.seen(), tree.seen());
        prop_assert_eq!(whole.state(), parts.last().unwrap().state());
        // Merged once more, it follows and is followed as its parts are.
        let last = whole.header().sequence;
        let next = delta(last + 1, whole.state(), &[]);
        let mut again = merged(&mut [whole, next]).unwrap();
        let replayed = replay(&mut again);
        prop_assert_eq!(replayed.seen(), tree.seen());
        prop_assert_eq!((again.header().first, again.header().sequence), (7, last + 1));
    }
}

#[test]
fn what_is_written_again_and_again_is_there_once() {
    let path = TreePath::parse(b"db").unwrap();
    let mut parts = vec![delta(7, Digest([5; 32]), &[Op::MakeFile(path)])];
    for number in 8..100u8 {
        let time = Time { seconds: number.into(), nanoseconds: 0 };
        let data = [number; 4096];
        let ops = [
            Op::Write { path, offset: 8192, data: &data },
            Op::Write { path, offset: 4096 * u64::from(number), data: &data },
            Op::Times { path, access: time, modification: time },
        ];
        parts.push(delta(number.into(), parts.last().unwrap().state(), &ops));
    }
    let mut whole = merged(&mut parts).unwrap();
    assert_eq!(whole.summary().operations, 1 + 1 + 92 + 1);
    let header = whole.header().clone();
    assert_eq!((header.first, header.sequence, header.parent, header.time), (7, 99, Digest([5; 32]), 99));
    let index = whole.index().unwrap();
    let touched: Vec<_> = index.iter().map(|(path, what)| (&path[..], what.bits())).collect();
    let all = What::MADE.bits() | What::CONTENT.bits() | What::METADATA.bits();
    assert_eq!(touched, [(&b"db"[..], all)]);
}

#[test]
fn what_does_not_follow_is_not_merged() {
    let first = || delta(7, Digest([5; 32]), &[]);
    let wrong = |second, what: &str| {
        let Err(error) = merged(&mut [first(), second]) else { panic!("it was merged") };
        assert!(error.to_string().ends_with(what), "{error}");
    };
    wrong(delta(9, first().state(), &[]), "it does not follow");
    wrong(delta(8, Digest([1; 32]), &[]), "it follows another state");
    assert!(merged(&mut []).is_err());
}
