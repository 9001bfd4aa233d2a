//! What is asked of every store.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use vivarium_store::{CreateError, Created, Digest, Key, Name, Prefix, Slice, Source, Span, Store};

pub fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

pub fn key(seq: u64) -> Key {
    Key::Transaction { volume: Name::new("volume").unwrap(), seq }
}

/// A content like no other, and its digest.
pub fn content(length: usize) -> (Bytes, Digest) {
    let mut bytes = vec![0; length];
    fastrand::Rng::new().fill(&mut bytes);
    // Not by chance one that has to be split.
    bytes[0] = b'-';
    let digest = blake3::hash(&bytes).into();
    (bytes.into(), digest)
}

/// Everything that the store's users rely on, with contents that fit into one object of `part` bytes and that do not.
pub async fn behaves(store: &Store, part: usize) {
    store.prove(soon()).await.unwrap();
    assert_eq!(store.list(&Prefix::Probes, None, soon()).await.unwrap(), [], "a proof cleans up");

    let volume = Name::random();
    let key = |seq| Key::Transaction { volume: volume.clone(), seq };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("content");
    for (seq, length) in [(1, 1), (2, part), (3, part + 1), (4, 2 * part + part / 2)] {
        let key = key(seq);
        let (body, digest) = content(length);
        assert_eq!(store.read(&key, 1 << 30, soon()).await.unwrap(), None);
        assert!(!store.exists(&key, soon()).await.unwrap());
        std::fs::write(&path, &body).unwrap();
        assert_eq!(store.create(&key, Source::File(&path), digest, soon()).await.unwrap(), Created::New);
        assert_eq!(store.create(&key, Source::Bytes(body.clone()), digest, soon()).await.unwrap(), Created::Ours);
        let (other, other_digest) = content(length);
        if other != body {
            let lost = store.create(&key, Source::Bytes(other), other_digest, soon()).await;
            assert!(matches!(lost, Err(CreateError::Conflict { .. })), "{lost:?}");
        }

        assert!(store.exists(&key, soon()).await.unwrap());
        let object = store.read(&key, 1 << 30, soon()).await.unwrap().unwrap();
        assert!(object.bytes == body && object.digest == digest, "{length} bytes");
        let mut out = Vec::new();
        let read = store.read_to(&key, &mut out, soon()).await.unwrap().unwrap();
        assert!(out == body && read.digest == digest && read.length == length as u64, "{length} bytes");
        let total = length as u64;
        for span in [Span::Tail(10), Span::Tail(2 * total), Span::Range(0..1), Span::Range(total / 2..total + 5)] {
            let slice = store.read_span(&key, span.clone(), soon()).await.unwrap().unwrap();
            let at = slice.offset as usize;
            let expected = body.slice(at..at + slice.bytes.len());
            assert!(slice == Slice { bytes: expected, offset: at as u64, total }, "{span:?} of {length} bytes");
            assert!(!slice.bytes.is_empty());
        }
    }

    let listed = |after: Option<u64>| {
        let after = after.map(key);
        let prefix = Prefix::Transactions(volume.clone());
        async move { store.list(&prefix, after.as_ref(), soon()).await.unwrap() }
    };
    let keys: Vec<Key> = listed(None).await.into_iter().map(|entry| entry.key).collect();
    assert_eq!(keys, [1, 2, 3, 4].map(key));
    let keys: Vec<Key> = listed(Some(2)).await.into_iter().map(|entry| entry.key).collect();
    assert_eq!(keys, [3, 4].map(key));

    assert!(store.volumes(soon()).await.unwrap().contains(&volume));
    let modified = store.modified(&key(1), soon()).await.unwrap().unwrap();
    let all = store.list(&Prefix::Transactions(volume.clone()), None, soon()).await.unwrap();
    // An S3 tells thousandths in a list, and whole seconds in the header of one object.
    let seconds = |time: std::time::SystemTime| time.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert_eq!(seconds(all[0].modified), seconds(modified));
    assert_eq!(store.modified(&key(5), soon()).await.unwrap(), None);

    for seq in [1, 2, 3, 4, 4] {
        store.delete(&key(seq), soon()).await.unwrap();
        assert!(!store.exists(&key(seq), soon()).await.unwrap());
    }
    assert_eq!(store.list(&Prefix::Volume(volume), None, soon()).await.unwrap(), [], "parts go with their object");
}
