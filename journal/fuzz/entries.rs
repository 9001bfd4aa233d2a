//! What is done with arbitrary bytes, for the fuzzer and for the tests alike: one function for each kind of input. Each
//! panics if something does not hold.

use std::io::{Cursor, Read, Seek};

use vivarium_journal::op::Op;
use vivarium_journal::read::{ReadError, Transaction};
use vivarium_journal::translate::{Sources, translate};
use vivarium_journal::wire::Input;
use vivarium_journal::write::{END, Writer};
use vivarium_journal::{Digest, Header, Kind, TreePath};

/// Bytes of a transaction file behind those that its digest covers.
const UNHASHED: usize = 32 + END.len();

/// A whole file: as it is, and with the digest that its bytes have.
pub fn transaction(bytes: &[u8]) {
    open(Cursor::new(bytes));
    open(Cursor::new(sealed(bytes)));
}

/// The file with its digest made right, as somebody would who wants his damage to be believed.
pub fn sealed(bytes: &[u8]) -> Vec<u8> {
    let mut file = bytes[..bytes.len().saturating_sub(UNHASHED)].to_vec();
    let digest = blake3::hash(&file);
    file.extend_from_slice(digest.as_bytes());
    file.extend_from_slice(&END);
    file
}

fn open(from: impl Read + Seek) {
    let Ok(mut transaction) = Transaction::open(from) else { return };
    let layers = transaction.header().layers.len();
    let mut count = 0;
    let walked = transaction.each(|op| {
        count += 1;
        inside(op, layers);
        Ok::<(), ReadError>(())
    });
    walked.expect("what was checked can be read again");
    assert_eq!(count, transaction.summary().operations);
    for (path, _) in transaction.index().expect("a checked index can be read") {
        TreePath::parse(&path).expect("names of the index are inside");
    }
}

/// An operation that a reader gives out names nothing outside of the volume.
fn inside(op: &Op<'_>, layers: usize) {
    let good = |path: TreePath<'_>| {
        TreePath::parse(path.as_bytes()).expect("paths are inside");
        assert!(path.components().all(|name| !matches!(name, b"" | b"." | b"..") && !name.contains(&b'/')));
    };
    good(op.path());
    match *op {
        Op::Rename { to: other, .. } | Op::Link { path: other, .. } | Op::CloneOwn { from: other, .. } => good(other),
        Op::CloneTemplate { from, layer, .. } => {
            good(from);
            assert!((layer as usize) < layers, "the layer is one of the header's");
        }
        _ => {}
    }
}

/// Operations without a file around them. Each has one form only.
pub fn operations(bytes: &[u8]) {
    let mut input = Input(bytes);
    let mut again = Vec::new();
    while let Ok(op) = Op::decode(&mut input) {
        inside(&op, usize::MAX);
        again.clear();
        op.encode(&mut again);
        let begun = bytes.len() - input.0.len();
        assert!(bytes[..begun].ends_with(&again), "{op:?} is encoded as something else than it was read from");
    }
    let _ = Header::decode(bytes).map(|header| {
        again.clear();
        header.encode(&mut again);
        assert_eq!(again, bytes, "a header has one form");
    });
}

/// A send stream: as it is, and with the checksums that its commands have. What becomes a transaction can be read.
pub fn send_stream(bytes: &[u8]) {
    for stream in [bytes.to_vec(), summed(bytes)] {
        let header = Header {
            kind: Kind::Delta,
            volume: "v".into(),
            writer: [0; 16],
            epoch: 1,
            first: 1,
            sequence: 1,
            parent: Digest::EMPTY,
            time: 0,
            layers: vec!["sha256:0".into()],
        };
        let mut writer = Writer::new(Vec::new(), &header).expect("memory can be written");
        let sources = Sources { own: [1; 16], layers: vec![[2; 16]] };
        let Ok(touched) = translate(&stream[..], &sources, &mut writer) else { continue };
        let (file, summary) = writer.finish(&touched.changes()).expect("memory can be written");
        let transaction = Transaction::open(Cursor::new(&file)).expect("what was written can be read");
        assert_eq!(transaction.summary(), summary);
    }
}

/// The stream with each command's checksum made right.
pub fn summed(bytes: &[u8]) -> Vec<u8> {
    let mut stream = bytes.to_vec();
    let mut at = 17;
    while let Some(header) = stream.get(at..at + 10) {
        let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let Some(end) = at.checked_add(10 + length).filter(|end| *end <= stream.len()) else { break };
        stream[at + 6..at + 10].fill(0);
        let sum = !crc32c::crc32c_append(!0, &stream[at..end]);
        stream[at + 6..at + 10].copy_from_slice(&sum.to_le_bytes());
        at = end;
    }
    stream
}
