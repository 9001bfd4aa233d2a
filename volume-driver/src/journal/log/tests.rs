use vivarium_journal::Kind;
use vivarium_journal::touched::Touched;
use vivarium_journal::write::Writer;

use super::*;

/// Adds barriers that were written at these seconds.
async fn add(log: &Log, first: u64, seconds: &[i64]) {
    for (sequence, second) in (first..).zip(seconds) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let header = Header {
            kind: Kind::Barrier,
            volume: "v".into(),
            writer: [0; 16],
            epoch: 1,
            first: sequence,
            sequence,
            parent: Digest::EMPTY,
            time: second * 1_000_000_000,
            layers: vec![],
        };
        let writer = Writer::new(file.as_file(), &header).unwrap();
        let (_, summary) = writer.finish(&Touched::default().changes()).unwrap();
        let appended = log.append(sequence, file.path(), summary.length, summary.content).await.unwrap();
        assert_eq!(appended, Appended::Yes);
    }
}

async fn at(log: &Log, second: i64) -> (u64, bool) {
    let moment = log.at(Timestamp::from_second(second).unwrap(), 0).await.unwrap();
    (moment.position.sequence, moment.too_old)
}

#[tokio::test]
async fn an_instant_is_found_by_time_and_not_before_what_can_be_restored() {
    let log = Log::new(&VolumeId::parse("v").unwrap(), Arc::new(Store::memory("test"))).unwrap();
    assert_eq!(at(&log, 5).await, (0, true));
    add(&log, 1, &[10, 20, 30, 40, 50, 60, 70, 80, 90]).await;
    let cases = [(9, 1, true), (10, 1, false), (19, 1, false), (20, 2, false), (69, 6, false), (70, 7, false)];
    for (second, sequence, too_old) in cases.into_iter().chain([(89, 8, false), (90, 9, false), (1000, 9, false)]) {
        assert_eq!(at(&log, second).await, (sequence, too_old), "{second}");
    }
    log.raise_boundary(Boundary::NONE, 6).await.unwrap();
    for sequence in 1..6 {
        log.delete(&log.key(sequence)).await.unwrap();
    }
    for (second, sequence, too_old) in [(5, 6, true), (59, 6, true), (60, 6, false), (75, 7, false), (90, 9, false)] {
        assert_eq!(at(&log, second).await, (sequence, too_old), "{second}");
    }
}

#[tokio::test]
async fn clocks_that_disagree_turn_no_order_around_and_what_is_added_changes_no_answer() {
    let log = Log::new(&VolumeId::parse("v").unwrap(), Arc::new(Store::memory("test"))).unwrap();
    add(&log, 1, &[10, 20, 50, 60, 30, 40, 70, 65, 80, 75, 90]).await;
    let mut before = Vec::new();
    for second in 10..90 {
        before.push(at(&log, second).await.0);
    }
    assert!(before.is_sorted(), "{before:?}");
    assert_eq!((before[0], before[79]), (1, 10));
    add(&log, 12, &[95, 99, 100, 101, 102, 103, 104, 105]).await;
    for (second, sequence) in (10..90).zip(before) {
        assert_eq!(at(&log, second).await.0, sequence, "{second}");
    }
}
