//! What every back end does alike: the one in memory and the directory, each with contents that fit and that do not.
//! The same is asked of a real S3 in `s3.rs`.

use crate::common;
use std::sync::Arc;

use crate::common::{content, key, soon};
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt, path::Path};
use vivarium_store::{Backend, Config, CreateError, Created, Prefix, ReadError, Sizes, Source, Store};

fn memory() -> (Store, Arc<InMemory>) {
    let objects = Arc::new(InMemory::new());
    (Store::over("memory", objects.clone(), Sizes { part: 1000, in_flight: 3 }), objects)
}

fn local(directory: &std::path::Path) -> Store {
    let config =
        Config { name: "local".into(), backend: Backend::Local { directory: directory.into() }, mirrors: vec![] };
    Store::open(&config).unwrap()
}

#[tokio::test]
async fn the_memory_store_behaves() {
    common::behaves(&memory().0, 1000).await;
}

#[tokio::test]
async fn the_directory_store_behaves() {
    let directory = tempfile::tempdir().unwrap();
    common::behaves(&local(&directory.path().join("made/on/demand")), vivarium_store::PART_SIZE).await;
}

#[tokio::test]
async fn what_a_directory_store_holds_is_there_for_the_next_process_and_for_nobody_else() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    let (body, digest) = content(100);
    local(&root).create(&key(1), Source::Bytes(body.clone()), digest, soon()).await.unwrap();
    assert_eq!(std::fs::metadata(&root).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(std::fs::read(root.join(key(1).path())).unwrap(), body);
    assert_eq!(local(&root).create(&key(1), Source::Bytes(body), digest, soon()).await.unwrap(), Created::Ours);
}

#[tokio::test]
async fn a_file_that_changed_creates_nothing_and_leaves_nothing() {
    let (store, _) = memory();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("content");
    for length in [10, 5000] {
        let (body, digest) = content(length);
        let mut changed = body.to_vec();
        changed[0] ^= 1;
        std::fs::write(&path, changed).unwrap();
        let error = store.create(&key(1), Source::File(&path), digest, soon()).await.unwrap_err();
        assert!(matches!(error, CreateError::Changed { .. }), "{error}");
        assert_eq!(store.list(&Prefix::All, None, soon()).await.unwrap(), []);
    }
}

#[tokio::test]
async fn a_loser_takes_its_parts_away_and_the_winner_keeps_its_own() {
    let (store, _) = memory();
    let bodies: Vec<_> = (0..4).map(|_| content(5000)).collect();
    let key = key(1);
    let attempts = bodies.iter().map(|(body, digest)| store.create(&key, Source::Bytes(body.clone()), *digest, soon()));
    let told = futures::future::join_all(attempts).await;
    assert_eq!(told.iter().filter(|told| matches!(told, Ok(Created::New))).count(), 1, "{told:?}");
    let listed = store.list(&Prefix::All, None, soon()).await.unwrap();
    assert_eq!(listed.len(), 1 + 5, "{listed:?}");
    let winner = told.iter().position(Result::is_ok).unwrap();
    assert_eq!(store.read(&key, 5000, soon()).await.unwrap().unwrap().bytes, bodies[winner].0);
}

#[tokio::test]
async fn a_content_that_looks_like_a_list_of_parts_stays_a_content() {
    let (store, objects) = memory();
    let (body, digest) = content(5000);
    store.create(&key(1), Source::Bytes(body), digest, soon()).await.unwrap();
    let manifest = objects.get(&Path::from(key(1).path())).await.unwrap().bytes().await.unwrap();
    assert!(manifest.starts_with(b"VIVSPLIT"));
    let digest = blake3::hash(&manifest).into();
    store.create(&key(2), Source::Bytes(manifest.clone()), digest, soon()).await.unwrap();
    assert_eq!(store.read(&key(2), 5000, soon()).await.unwrap().unwrap().bytes, manifest);
}

#[tokio::test]
async fn damage_is_noticed_and_named() {
    for (change, message) in [("cut", "holds something else"), ("gone", "is missing"), ("manifest", "list of parts")] {
        let (store, objects) = memory();
        let (body, digest) = content(5000);
        store.create(&key(1), Source::Bytes(body.clone()), digest, soon()).await.unwrap();
        let listed = store.list(&Prefix::All, None, soon()).await.unwrap();
        let part = Path::from(listed.last().unwrap().key.path());
        match change {
            "cut" => drop(objects.put(&part, "short".into()).await.unwrap()),
            "gone" => objects.delete(&part).await.unwrap(),
            _ => drop(objects.put(&Path::from(key(1).path()), "VIVSPLIT\u{1}\0 and more".into()).await.unwrap()),
        }
        let error = store.read(&key(1), 5000, soon()).await.unwrap_err();
        assert!(matches!(error, ReadError::Damaged { .. }) && error.to_string().contains(message), "{change}: {error}");
        // What is damaged is not ours either.
        let again = store.create(&key(1), Source::Bytes(body), digest, soon()).await.unwrap_err();
        assert!(matches!(again, CreateError::Unreadable { .. }), "{change}: {again}");
        store.delete(&key(1), soon()).await.unwrap();
        assert!(!store.exists(&key(1), soon()).await.unwrap(), "{change}");
    }
}

#[tokio::test]
async fn what_is_too_large_for_the_reader_is_not_read() {
    let (store, _) = memory();
    for (seq, length) in [(1, 500), (2, 5000)] {
        let (body, digest) = content(length);
        store.create(&key(seq), Source::Bytes(body), digest, soon()).await.unwrap();
        let error = store.read(&key(seq), length as u64 - 1, soon()).await.unwrap_err();
        assert!(matches!(error, ReadError::TooLarge { .. }), "{error}");
    }
}

#[tokio::test]
async fn small_kinds_of_objects_are_never_split() {
    let (store, _) = memory();
    let (body, digest) = content(5000);
    let fence = vivarium_store::Key::Fence { session: vivarium_store::Name::new("s").unwrap() };
    let error = store.create(&fence, Source::Bytes(body), digest, soon()).await.unwrap_err();
    assert!(matches!(error, CreateError::Length { .. }), "{error}");
}

#[tokio::test]
async fn foreign_objects_are_in_no_list() {
    let (store, objects) = memory();
    let objects: &dyn ObjectStore = &*objects;
    objects.put(&Path::from("volumes/v/log/README"), "x".into()).await.unwrap();
    assert_eq!(store.list(&Prefix::All, None, soon()).await.unwrap(), []);
}

/// What every caller on a runtime of several threads needs.
#[tokio::test]
async fn everything_can_be_spawned() {
    let (store, _) = memory();
    let (body, digest) = content(5000);
    let done = tokio::spawn(async move {
        let path = std::path::PathBuf::from("/nowhere");
        store.prove(soon()).await.unwrap();
        store.create(&key(1), Source::Bytes(body), digest, soon()).await.unwrap();
        let missing = store.create(&key(2), Source::File(&path), digest, soon()).await;
        assert!(matches!(missing, Err(CreateError::Source { .. })), "{missing:?}");
        let mut out = Vec::new();
        store.read_to(&key(1), &mut out, soon()).await.unwrap();
        store.read(&key(1), 5000, soon()).await.unwrap();
        store.read_span(&key(1), vivarium_store::Span::Tail(1), soon()).await.unwrap();
        store.list(&Prefix::All, None, soon()).await.unwrap();
        let mirrored = store.clone().with_mirrors(vec![memory().0]);
        mirrored.mend(&vivarium_store::Name::random(), None, |_| None, soon()).await.unwrap();
        store.delete(&key(1), soon()).await.unwrap();
        out.len()
    });
    assert_eq!(done.await.unwrap(), 5000);
}
