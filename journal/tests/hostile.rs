//! Broken and hostile files: refused, and never more than that.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests say what must hold by unwrapping it"
)]

mod common;
#[path = "../fuzz/entries.rs"]
mod entries;

use std::fs;
use std::io::Cursor;
use std::path::Path;

use common::{around, count, file, header, one_of_each, parts};
use proptest::prelude::*;
use vivarium_journal::Header;
use vivarium_journal::op::Op;
use vivarium_journal::read::{ReadError, Transaction};
use vivarium_journal::wire::Input;

fn refused(bytes: &[u8]) -> bool {
    Transaction::open(Cursor::new(bytes)).is_err()
}

#[test]
fn a_file_with_any_byte_changed_is_refused() {
    let good = file(&one_of_each());
    assert!(!refused(&good));
    for at in 0..good.len() {
        for flip in [1, 0x80, 0xff] {
            let mut bad = good.clone();
            bad[at] ^= flip;
            assert!(refused(&bad), "byte {at} ^ {flip:#x}");
        }
    }
}

#[test]
fn a_file_that_was_cut_off_or_is_longer_is_refused() {
    let good = file(&one_of_each());
    for length in 0..good.len() {
        assert!(refused(&good[..length]), "the first {length} bytes");
        assert!(refused(&good[good.len() - length..]), "the last {length} bytes");
    }
    assert!(refused(&[&good[..], b"\n"].concat()));
    assert!(refused(&[b"\n", &good[..]].concat()));
    assert!(refused(&[&good[..], &good[..]].concat()));
}

#[test]
fn the_begin_of_one_file_and_the_end_of_another_are_refused() {
    let (one, other) = (file(&one_of_each()), file(&one_of_each()[..11]));
    for at in 1..one.len().min(other.len()) {
        for spliced in [[&one[..at], &other[at..]].concat(), [&other[..at], &one[at..]].concat()] {
            assert!(spliced == one || spliced == other || refused(&spliced), "at {at}");
        }
        let end = [&one[..one.len() - at], &other[other.len() - at..]].concat();
        assert!(end == one || end == other || refused(&end), "the last {at} bytes");
    }
}

#[test]
fn a_changed_bit_under_a_digest_that_was_made_right_does_no_harm() {
    let good = file(&one_of_each());
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        entries::transaction(&bad);
    }
}

#[test]
fn what_a_file_says_of_itself_must_be_so() {
    let mut operations = Vec::new();
    for parts in one_of_each() {
        parts.op().encode(&mut operations);
    }
    let open =
        |bytes: &[u8]| Transaction::open(Cursor::new(entries::sealed(bytes))).map(|_| ()).map_err(|e| e.to_string());
    let good = around(&operations, b"\x01a\x01\x01b\x02", 22);
    assert_eq!(open(&good), Ok(()));
    let layers = Op::CloneTemplate {
        path: vivarium_journal::TreePath::parse(b"f").unwrap(),
        offset: 0,
        layer: 2,
        from: vivarium_journal::TreePath::parse(b"f").unwrap(),
        range: vivarium_journal::op::Range { offset: 0, length: 1 },
    };
    let mut third_layer = Vec::new();
    layers.encode(&mut third_layer);
    let trailer = good.len() - 64;
    for (what, bad, says) in [
        ("another count", around(&operations, b"", 21), "22 operations"),
        ("an index that is not sorted", around(&operations, b"\x01b\x01\x01a\x01", 22), "not sorted"),
        ("an index with a name twice", around(&operations, b"\x01a\x01\x01a\x01", 22), "not sorted"),
        ("an index that says nothing of a name", around(&operations, b"\x01a\x00", 22), "says nothing"),
        ("an index with a name outside", around(&operations, b"\x02..\x01", 22), "no path in a volume"),
        ("half an operation", around(&operations[..operations.len() - 1], b"", 22), "operation 21"),
        ("a layer that the header does not have", around(&third_layer, b"", 1), "number of a layer"),
        ("bytes behind the index", [&good[..trailer], b"more", &good[trailer..]].concat(), "between its index"),
        ("another version", [&good[..8], b"\x02", &good[9..]].concat(), "version 2"),
        ("a header that is longer than the file", [&good[..12], b"\x00\xff\x00\x00", &good[16..]].concat(), "header"),
        (
            "a frame that is longer than may be",
            {
                let at = good.len() - 64 - 8 - 8;
                let _ = at;
                let empty = around(b"", b"", 0);
                let frames = empty.len() - 64 - 16;
                [&empty[..frames], &[1, 0, 0, 0, 1, 0, 0x10, 0, 0], &empty[frames..]].concat()
            },
            "a frame of 1 bytes for 1048577",
        ),
    ] {
        let error = open(&bad).expect_err(what);
        assert!(error.contains(says), "{what}: {error}");
    }
}

/// The number that means "as it is" to chown(2) is no owner.
#[test]
fn an_owner_that_is_none_is_refused() {
    for (user, group) in [(u32::MAX, 0), (0, u32::MAX)] {
        let path = vivarium_journal::TreePath::parse(b"f").unwrap();
        let mut bytes = Vec::new();
        Op::Owner { path, user, group }.encode(&mut bytes);
        assert!(Op::decode(&mut Input(&bytes)).is_err(), "{user}:{group}");
    }
}

#[test]
fn a_header_that_could_not_be_read_is_not_written() {
    for bad in [
        Header { volume: "v".repeat(256), ..header() },
        Header { layers: vec!["sha256:aa".into(); 129], ..header() },
        Header { first: 6, ..header() },
    ] {
        let error = vivarium_journal::write::Writer::new(Vec::new(), &bad).err().unwrap();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput, "{error}");
    }
}

/// Bytes that unpack to much more than they say.
#[test]
fn a_frame_that_unpacks_to_more_than_it_says_is_refused() {
    let packed = zstd::bulk::compress(&vec![0; 1 << 20], 19).unwrap();
    for says in [1u32, 1000, 1 << 19] {
        let empty = around(b"", b"", 0);
        let frames = empty.len() - 64 - 16;
        let lengths = [(packed.len() as u32).to_le_bytes(), says.to_le_bytes()].concat();
        let bad = entries::sealed(&[&empty[..frames], &lengths, &packed, &empty[frames..]].concat());
        let error = Transaction::open(Cursor::new(bad)).unwrap_err();
        assert!(error.to_string().contains("cannot be decompressed"), "{error}");
    }
}

#[test]
fn the_corpus_of_the_fuzzer_does_no_harm() {
    for (target, entry) in [
        ("transaction", entries::transaction as fn(&[u8])),
        ("operations", entries::operations),
        ("send_stream", entries::send_stream),
    ] {
        let directory = Path::new("fuzz/corpus").join(target);
        let mut count = 0;
        for file in fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display())) {
            entry(&fs::read(file.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count > 0, "the corpus of {target} is empty");
    }
}

/// A stream that a kernel sent: every kind of command, names that are no text.
fn real_stream() -> Vec<u8> {
    fs::read("fuzz/corpus/send_stream/real").unwrap()
}

#[test]
fn a_real_stream_with_any_byte_changed_does_no_harm() {
    let good = real_stream();
    let stop = good.len().min(3000);
    for at in 0..stop {
        for flip in [1, 0x80] {
            let mut bad = good.clone();
            bad[at] ^= flip;
            entries::send_stream(&bad);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn operations_come_back(list in proptest::collection::vec(parts(), 0..40)) {
        let file = file(&list);
        let mut transaction = Transaction::open(Cursor::new(&file)).unwrap();
        prop_assert_eq!(transaction.header(), &header());
        let mut expected = list.iter();
        transaction.each(|op| {
            assert_eq!(op, &expected.next().unwrap().op());
            Ok::<(), ReadError>(())
        }).unwrap();
        prop_assert!(expected.next().is_none());
    }

    #[test]
    fn damaged_operations_name_nothing_outside(
        list in proptest::collection::vec(parts(), 1..6),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = Vec::new();
        for parts in &list {
            parts.op().encode(&mut bytes);
        }
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        entries::operations(&bytes);
        entries::transaction(&around(&bytes, b"", count(&bytes)));
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        entries::transaction(&bytes);
        entries::operations(&bytes);
        entries::transaction(&around(&bytes, &bytes, count(&bytes)));
        entries::send_stream(&bytes);
        entries::send_stream(&[b"btrfs-stream\0\x02\0\0\0", &bytes[..]].concat());
    }

    #[test]
    fn headers_come_back(
        volume in "\\PC{0,60}",
        writer: [u8; 16],
        epoch: u64,
        sequence in 1u64..,
        parent: [u8; 32],
        time: i64,
        layers in proptest::collection::vec("[a-z0-9:]{1,72}", 0..128),
    ) {
        let volume: String = volume.chars().take(60).collect();
        let header = Header {
            volume, writer, epoch, first: sequence, sequence, parent: vivarium_journal::Digest(parent), time, layers,
            ..header()
        };
        let mut bytes = Vec::new();
        header.encode(&mut bytes);
        prop_assert_eq!(Header::decode(&bytes), Ok(header));
    }

    #[test]
    fn commands_in_another_order_do_no_harm(
        order in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>()), 1..60),
    ) {
        let real = real_stream();
        let mut commands = Vec::new();
        let mut at = 17;
        while let Some(header) = real.get(at..at + 10) {
            let end = at + 10 + u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
            commands.push(&real[at..end]);
            at = end;
        }
        let mut stream = real[..17].to_vec();
        for (command, at, change) in order {
            let start = stream.len();
            stream.extend_from_slice(command.get::<&[u8]>(&commands));
            // Its length stays, so that the next command is found.
            let at = start + 10 + at.index((stream.len() - start - 9).max(1));
            if let Some(byte) = stream.get_mut(at) {
                *byte = change;
            }
        }
        stream.extend_from_slice(commands.last().unwrap());
        entries::send_stream(&stream);
    }

    #[test]
    fn any_number_comes_back_from_its_bytes_only(bytes in proptest::collection::vec(any::<u8>(), 0..12)) {
        let mut input = Input(&bytes);
        if let Ok(number) = input.number(u64::MAX, "n") {
            let mut again = Vec::new();
            vivarium_journal::wire::put_number(&mut again, number);
            prop_assert_eq!(&bytes[..again.len()], &again[..]);
        }
    }
}
