//! Volumes that begin with a state of another one.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::time::Duration;

use crate::support::id;
use crate::support::place::Place;
use vivarium_node::journal::JournalError;
use vivarium_node::journal::begin::{Opening, Origin, Source};
use vivarium_node::journal::commit::Journal;
use vivarium_node::journal::keep::{Memory, Policy, Subject, keep};
use vivarium_node::journal::log::Log;
use vivarium_node::journal::wanted::Wanted;
use vivarium_store::Store;

fn log(store: &Arc<Store>, volume: &str) -> Log {
    Log::new(&id(volume), store.clone()).unwrap()
}

/// Opens volume `v2`, which begins with a state of `v1`.
async fn branch(
    place: &Place,
    store: &Arc<Store>,
    epoch: u64,
    wanted: Wanted,
) -> Result<(Journal, Origin), JournalError> {
    let source = Some(Source { log: log(store, "v1"), wanted });
    let opening =
        Opening { id: id("v2"), size: 64 << 20, room: 0, epoch, layers: vec![], known: 0, revert: None, source };
    Journal::begin(
        &place.volumes,
        &place.templates,
        Log::new(&opening.id, store.clone()).unwrap(),
        &opening,
        async || true,
    )
    .await
}

fn branched(place: &Place, name: &str) -> std::path::PathBuf {
    place.volumes.live_path(&id("v2")).join("upper").join(name)
}

fn read(place: &Place, name: &str) -> String {
    fs::read_to_string(branched(place, name)).unwrap()
}

/// A source with an identity, and two states: `page` is 1 after the transaction that is returned, and 2 later.
async fn source(place: &Place, store: &Arc<Store>) -> u64 {
    let (mut journal, _) = place.begin(store, 1).await.unwrap();
    fs::create_dir_all(place.upper("etc/ssh")).unwrap();
    fs::write(place.upper("etc/machine-id"), b"0123456789abcdef0123456789abcdef\n").unwrap();
    fs::write(place.upper("etc/ssh/ssh_host_ed25519_key"), b"secret").unwrap();
    fs::write(place.upper("etc/ssh/sshd_config"), b"Port 22").unwrap();
    fs::write(place.upper("page"), b"1").unwrap();
    place.commit(&mut journal).await;
    let first = log(store, "v1").tail(0).await.unwrap().sequence;
    fs::write(place.upper("page"), b"2").unwrap();
    place.commit(&mut journal).await;
    first
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_has_the_state_and_an_identity_and_a_journal_of_its_own() {
    let (a, b, c, store) = (Place::new(), Place::new(), Place::new(), Arc::new(Store::memory("test")));
    let first = source(&a, &store).await;
    let (mut journal, origin) = branch(&b, &store, 1, Wanted::Sequence(first)).await.unwrap();
    assert_eq!(origin, Origin::Branched(first));
    assert_eq!(read(&b, "page"), "1");
    assert_eq!((read(&b, "etc/machine-id"), read(&b, "etc/ssh/sshd_config")), (String::new(), "Port 22".into()));
    assert!(!branched(&b, "etc/ssh/ssh_host_ed25519_key").exists(), "it shares the host key");
    fs::write(branched(&b, "own"), b"x").unwrap();
    b.commit(&mut journal).await;
    drop(journal);
    // It needs nothing of its source any more, also elsewhere.
    log(&store, "v1").purge().await.unwrap();
    let (_, origin) = branch(&c, &store, 2, Wanted::Sequence(first)).await.unwrap();
    assert_eq!(origin, Origin::Branched(0), "it began with the source once more");
    assert_eq!((read(&c, "page"), read(&c, "own")), ("1".into(), "x".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_at_a_time_has_the_last_state_before_it_and_what_is_not_kept_is_refused() {
    let (a, keeper, b, store) = (Place::new(), Place::new(), Place::new(), Arc::new(Store::memory("test")));
    let first = source(&a, &store).await;
    let time = log(&store, "v1").moment(first).await.unwrap().unwrap().time;
    let (_, origin) = branch(&b, &store, 1, Wanted::Time(time)).await.unwrap();
    assert_eq!((origin, read(&b, "page")), (Origin::Branched(first), "1".into()));
    let everything = Policy { bytes: 1, transactions: 1, retention: Duration::ZERO, ..Policy::default() };
    let keeps = async |wanted| {
        let subject = Subject { volume: id("v1"), layers: vec![], size: 64 << 20, room: 0, known: 0, wanted };
        let (volumes, templates, mut memory) = (&keeper.volumes, &keeper.templates, Memory::default());
        keep(volumes, templates, &log(&store, "v1"), &subject, &mut memory, &everything).await.unwrap().boundary
    };
    for wanted in [Wanted::Time(time), Wanted::Sequence(first)] {
        assert_eq!(keeps(vec![wanted]).await, 0, "somebody waits for {wanted:?}");
    }
    assert_eq!(keeps(vec![]).await, first + 1);
    // Another volume would begin with nothing, too.
    let refused = async |wanted| {
        let place = Place::new();
        log(&store, "v2").purge().await.unwrap();
        let Err(error) = branch(&place, &store, 1, wanted).await else { panic!("{wanted:?} was found") };
        (error.reason(), error.to_string())
    };
    for wanted in [Wanted::Time(time), Wanted::Sequence(first)] {
        let (reason, message) = refused(wanted).await;
        assert_eq!(reason, "TooOld", "{message}");
    }
    let (reason, message) = refused(Wanted::Sequence(first + 100)).await;
    assert!(reason == "NoSuchState" && message.contains("its newest one is"), "{message}");
    log(&store, "v1").purge().await.unwrap();
    let (reason, message) = refused(Wanted::Time(time)).await;
    assert!(reason == "SourceNotFound" && message.contains("deleted"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn links_of_a_tenant_lead_nobody_out_of_the_volume() {
    let (a, b, store) = (Place::new(), Place::new(), Arc::new(Store::memory("test")));
    let outside = tempfile::tempdir().unwrap();
    for name in ["machine-id", "ssh_host_key"] {
        fs::write(outside.path().join(name), b"of the node").unwrap();
    }
    let (mut journal, _) = a.begin(&store, 1).await.unwrap();
    fs::create_dir(a.upper("etc")).unwrap();
    symlink(outside.path(), a.upper("etc/ssh")).unwrap();
    symlink(outside.path().join("machine-id"), a.upper("etc/machine-id")).unwrap();
    // Names that are like those, and are no text.
    for name in [&b"machine-id.old"[..], b"machine-id\xff"] {
        fs::write(a.upper("etc").join(OsStr::from_bytes(name)), b"kept").unwrap();
    }
    a.commit(&mut journal).await;
    let tail = log(&store, "v1").tail(0).await.unwrap().sequence;
    branch(&b, &store, 1, Wanted::Sequence(tail)).await.unwrap();
    for name in ["machine-id", "ssh_host_key"] {
        assert_eq!(fs::read(outside.path().join(name)).unwrap(), b"of the node", "{name}");
    }
    let machine = fs::symlink_metadata(branched(&b, "etc/machine-id")).unwrap();
    assert!(machine.is_file() && machine.len() == 0);
    assert_eq!(read(&b, "etc/machine-id.old"), "kept");
}
