//! How much memory a reader may take, whatever a file or a stream says. Alone in its program: it counts all of it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says what must hold by unwrapping it")]

mod common;
#[allow(dead_code, reason = "only what makes digests and checksums right is used")]
#[path = "../fuzz/entries.rs"]
mod entries;

use std::io::Cursor;

use peak_alloc::PeakAlloc;
use vivarium_journal::TreePath;
use vivarium_journal::header::Kind;
use vivarium_journal::read::{ReadError, Transaction};
use vivarium_journal::send::Commands;
use vivarium_journal::touched::{Touched, What};
use vivarium_journal::write::Writer;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// A header, one frame as it lies in the file (at most 2 MiB) and unpacked (1 MiB), and a buffer for the digest.
const READER: usize = 4 << 20;
/// What a touched name takes: itself, and its place in a tree that is half full at worst.
const NAMED: usize = 128;
/// How many.
const NAMES: usize = 1_000_000;
/// The longest command, and what holds it while it grows.
const COMMANDS: usize = 1 << 20;

fn peak(work: impl FnOnce()) -> usize {
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    work();
    MEMORY.peak_usage().saturating_sub(before)
}

fn read(bytes: &[u8]) -> usize {
    peak(|| {
        let Ok(mut transaction) = Transaction::open(Cursor::new(bytes)) else { return };
        transaction.each(|_| Ok::<(), ReadError>(())).unwrap();
    })
}

#[test]
fn memory_is_bounded_whatever_is_read() {
    let good = common::file(&common::one_of_each());
    for at in 0..good.len() {
        for value in [0, 0x7f, 0xff] {
            let mut bad = good.clone();
            bad[at] = value;
            let bad = entries::sealed(&bad);
            let most = read(&bad);
            assert!(most <= READER, "byte {at} = {value:#x}: {most} bytes were taken");
        }
    }
    // A large file, and a large index, of a few bytes in it.
    let mut index = Vec::new();
    for number in 0..60_000 {
        index.extend_from_slice(b"\x10");
        index.extend_from_slice(format!("name{number:012}").as_bytes());
        index.push(4);
    }
    index.truncate((1 << 20) / 18 * 18);
    let large = entries::sealed(&common::around(&[], &index, 0));
    let most = read(&large);
    assert!(most <= READER, "{most} bytes were taken for an index of {}", index.len());
    assert!(Transaction::open(Cursor::new(&large)).is_ok_and(|t| t.header().kind == Kind::Delta));

    let real = std::fs::read("fuzz/corpus/send_stream/real").unwrap();
    for at in 0..real.len().min(4000) {
        let mut bad = real.clone();
        bad[at] = 0xff;
        let bad = entries::summed(&bad);
        let most = peak(|| {
            let Ok(mut commands) = Commands::new(&bad[..]) else { return };
            while let Ok(Some(_)) = commands.next() {}
        });
        assert!(most <= COMMANDS, "byte {at}: {most} bytes were taken");
    }

    // `chmod -R` of a million files: what is kept of it until the index is written.
    let most = peak(|| {
        let mut touched = Touched::default();
        for number in 0..NAMES {
            let path = format!("upper/home/someone/src/directory{:04}/file-{number:07}.c", number / 250);
            touched.touch(TreePath::parse(path.as_bytes()).unwrap(), What::METADATA);
        }
        let (_, summary) = Writer::new(std::io::sink(), &common::header()).unwrap().finish(&touched.changes()).unwrap();
        assert!(summary.length > 1 << 19, "{}", summary.length);
    });
    assert!(most <= NAMED * NAMES, "{} bytes were taken for a name", most / NAMES);
}
