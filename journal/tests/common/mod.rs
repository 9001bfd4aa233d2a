//! Operations and files that the tests make up.

#![allow(dead_code, reason = "each test file uses a part")]

use proptest::prelude::*;
use vivarium_journal::op::{Op, Range, Time};
use vivarium_journal::touched::{Touched, What};
use vivarium_journal::write::Writer;
use vivarium_journal::{Digest, Header, Kind, TreePath};

/// What an operation is made of.
#[derive(Clone, Debug)]
pub struct Parts {
    pub kind: u8,
    pub path: Vec<u8>,
    pub other: Vec<u8>,
    pub data: Vec<u8>,
    pub numbers: [u64; 3],
}

impl Parts {
    pub fn op(&self) -> Op<'_> {
        let (path, other) = (TreePath::parse(&self.path).unwrap(), TreePath::parse(&self.other).unwrap());
        let [one, two, three] = self.numbers;
        let data = &self.data[..];
        let text = || if data.contains(&0) { &b"text"[..] } else { data };
        let range = Range { offset: one >> 2, length: (two >> 2).max(1) };
        let time = |number: u64| Time { seconds: number as i64, nanoseconds: (number % 1_000_000_000) as u32 };
        match self.kind % 22 {
            0 => Op::MakeFile(path),
            1 => Op::MakeDirectory(path),
            2 => Op::MakeFifo(path),
            3 => Op::MakeSocket(path),
            4 => Op::MakeSymlink { path, target: text() },
            kind @ 5..=6 => {
                Op::MakeDevice { path, character: kind == 5, major: one as u32 & 0xfff, minor: two as u32 & 0xf_ffff }
            }
            7 => Op::Rename { from: path, to: other },
            8 => Op::Link { existing: path, path: other },
            9 => Op::Unlink(path),
            10 => Op::RemoveDirectory(path),
            11 => Op::Write { path, offset: one >> 1, data },
            12 => Op::Hole { path, range },
            13 => Op::Preallocate { path, range },
            14 => Op::Truncate { path, size: one >> 1 },
            15 => Op::CloneOwn { path, offset: three >> 2, from: other, range },
            16 => Op::CloneTemplate { path, offset: three >> 2, layer: three as u32 & 1, from: other, range },
            17 => Op::SetXattr { path, name: &text()[..text().len().min(255)], value: data },
            18 => Op::RemoveXattr { path, name: &text()[..text().len().min(255)] },
            19 => Op::Owner { path, user: one as u32 >> 1, group: two as u32 >> 1 },
            20 => Op::Mode { path, mode: one as u32 & 0o7777 },
            _ => Op::Times { path, access: time(one), modification: time(two) },
        }
    }
}

prop_compose! {
    /// Of every kind, with odd names and numbers of every length.
    pub fn parts()(
        kind in 0u8..22,
        path in path(),
        other in path(),
        data in proptest::collection::vec(any::<u8>(), 1..600),
        numbers in proptest::array::uniform3(number()),
    ) -> Parts {
        Parts { kind, path, other, data, numbers }
    }
}

fn number() -> impl Strategy<Value = u64> {
    (any::<u64>(), 0u32..64).prop_map(|(number, shift)| number >> shift)
}

/// A path that is not the root.
fn path() -> impl Strategy<Value = Vec<u8>> {
    let name =
        proptest::collection::vec(any::<u8>().prop_map(|b| if matches!(b, 0 | b'/' | b'.') { b'x' } else { b }), 1..20);
    proptest::collection::vec(name, 1..5).prop_map(|names| names.join(&b'/'))
}

pub fn header() -> Header {
    Header {
        kind: Kind::Delta,
        volume: "6f1c1b3e".into(),
        writer: *b"sixteen bytes ok",
        epoch: 3,
        first: 7,
        sequence: 7,
        parent: Digest([9; 32]),
        time: 1_700_000_000_000_000_000,
        layers: vec!["sha256:aa".into(), "sha256:bb".into()],
    }
}

/// A transaction file of operations.
pub fn file(parts: &[Parts]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), &header()).unwrap();
    let mut touched = Touched::default();
    for parts in parts {
        let op = parts.op();
        writer.push(&op).unwrap();
        touched.touch(op.path(), What::CONTENT);
    }
    writer.finish(&touched.changes()).unwrap().0
}

/// One operation of each kind.
pub fn one_of_each() -> Vec<Parts> {
    (0..22)
        .map(|kind| Parts {
            kind,
            path: format!("upper/etc/{kind}").into_bytes(),
            other: b"upper/\xff other".to_vec(),
            data: vec![kind + 1; 40],
            numbers: [1 << kind, 77 << kind, 1_000_000_007],
        })
        .collect()
}

/// A file around raw bytes of operations and of an index, each one frame; everything about it is right but they.
pub fn around(operations: &[u8], index: &[u8], count: u64) -> Vec<u8> {
    let empty = Writer::new(Vec::new(), &header()).unwrap().finish(&Touched::default().changes()).unwrap().0;
    // Behind the header of an empty file: two frames that end, the trailer.
    let mut file = empty[..empty.len() - 16 - 64].to_vec();
    let frame = |file: &mut Vec<u8>, bytes: &[u8]| {
        if !bytes.is_empty() {
            let packed = zstd::bulk::compress(bytes, 1).unwrap();
            file.extend((packed.len() as u32).to_le_bytes());
            file.extend((bytes.len() as u32).to_le_bytes());
            file.extend(packed);
        }
        file.extend([0; 8]);
    };
    frame(&mut file, operations);
    let at = file.len() as u64;
    frame(&mut file, index);
    for number in [at, count, operations.len() as u64] {
        file.extend(number.to_le_bytes());
    }
    file.extend([0; 40]);
    file
}

/// How many whole operations begin the bytes.
pub fn count(bytes: &[u8]) -> u64 {
    let mut input = vivarium_journal::wire::Input(bytes);
    let mut count = 0;
    while !input.is_empty() && Op::decode(&mut input).is_ok() {
        count += 1;
    }
    count
}
