//! The example on the page that specifies the format is what the writer writes.

#![allow(clippy::unwrap_used, reason = "a test says what must hold by unwrapping it")]

use std::io::Cursor;

use vivarium_journal::op::Op;
use vivarium_journal::read::Transaction;
use vivarium_journal::touched::{Touched, What};
use vivarium_journal::write::Writer;
use vivarium_journal::{Digest, Header, Kind, TreePath};

const PAGE: &str = include_str!("../../docs/src/formats/vtx.md");

fn example() -> Vec<u8> {
    let header = Header {
        kind: Kind::Delta,
        volume: "v1".into(),
        writer: [0xaa; 16],
        epoch: 3,
        first: 300,
        sequence: 300,
        parent: Digest([0xbb; 32]),
        time: 1_000_000_000,
        layers: vec!["sha256:00".into()],
    };
    let path = TreePath::parse(b"hi").unwrap();
    let mut writer = Writer::new(Vec::new(), &header).unwrap();
    let mut touched = Touched::default();
    touched.touch(path, What::MADE);
    touched.touch(path, What::CONTENT);
    for op in [Op::MakeFile(path), Op::Write { path, offset: 0, data: b"hello" }, Op::Mode { path, mode: 0o644 }] {
        writer.push(&op).unwrap();
    }
    writer.finish(&touched.changes()).unwrap().0
}

/// Lines of an offset, two spaces, bytes in hexadecimal, a bar, and what they are.
fn dump(page: &str) -> Vec<u8> {
    let (_, rest) = page.split_once("```dump\n").unwrap();
    let (block, _) = rest.split_once("```").unwrap();
    let mut bytes = Vec::new();
    for line in block.lines() {
        let (front, _) = line.split_once('|').unwrap();
        let (offset, hex) = front.split_once("  ").unwrap();
        assert_eq!(usize::from_str_radix(offset, 16), Ok(bytes.len()), "offset of: {line}");
        bytes.extend(hex.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()));
    }
    bytes
}

#[test]
fn the_example_of_the_page_is_what_is_written() {
    let written = example();
    let shown: Vec<String> = written
        .chunks(16)
        .map(|row| row.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(dump(PAGE), written, "the writer writes:\n{}", shown.join("\n"));
    let mut transaction = Transaction::open(Cursor::new(dump(PAGE))).unwrap();
    assert_eq!(transaction.summary().operations, 3);
    assert_eq!(transaction.index().unwrap().len(), 1);
}
