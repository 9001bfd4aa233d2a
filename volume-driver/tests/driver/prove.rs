//! A volume is restored on trial by another node, and compared with what its own node has.

use std::fs;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use crate::support::cluster::Cluster;
use crate::support::id;
use crate::support::place::Place;
use futures::StreamExt;
use object_store::memory::InMemory;
use object_store::{ObjectStoreExt, path::Path};
use vivarium_api::v1alpha1::volume::DigestStatus;
use vivarium_node::directory::{VolumeDirectory, VolumeName};
use vivarium_node::journal::JournalError;
use vivarium_node::journal::begin::Opening;
use vivarium_node::journal::keep::Subject;
use vivarium_node::journal::keeper::Keeper;
use vivarium_node::journal::log::Log;
use vivarium_node::journal::prove::prove;
use vivarium_node::journal::tree;
use vivarium_store::{Key, Name, Sizes, Store};

/// What the volume's own node tells of its tree once that is after a transaction.
async fn told(cluster: &Cluster, sequence: u64) -> DigestStatus {
    let mut changes = cluster.watch(&VolumeName::parse("team-a/shop").unwrap());
    let found = async {
        while let Some(object) = changes.next().await {
            let digest = object.unwrap().and_then(|object| object.status?.digest);
            if let Some(digest) = digest.filter(|digest| digest.sequence >= sequence) {
                return digest;
            }
        }
        panic!("the watch ended");
    };
    tokio::time::timeout(Duration::from_secs(60), found).await.expect("no digest was told")
}

async fn restored(place: &Place, store: &Arc<Store>, sequence: u64) -> Result<String, JournalError> {
    let log = Log::new(&id("v1"), store.clone()).unwrap();
    let subject = Subject { volume: id("v1"), layers: vec![], size: 64 << 20, room: 0, known: 0, wanted: vec![] };
    let digest = prove(&place.volumes, &place.templates, &log, &subject, sequence).await?;
    let left = fs::read_dir(place.pool.path().join("volumes")).unwrap().count();
    assert_eq!(left, 0, "the copy is still there");
    Ok(digest.expect("it is not kept any more").to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_journal_is_proven_while_it_goes_on_and_a_damaged_one_is_not() {
    let (a, other) = (Place::new(), Place::new());
    let memory: Arc<InMemory> = Arc::new(InMemory::new());
    let store = Arc::new(Store::over("test", memory.clone(), Sizes::default()));
    let cluster = Cluster::new("v1", "image", vec![], "64Mi");
    let directory: Arc<dyn VolumeDirectory> = Arc::new(cluster.clone());
    let every = Duration::from_millis(1);
    let keeper = Arc::new(Keeper::new(a.volumes.clone(), a.templates.clone(), directory, every).0);
    let opening = Opening {
        id: id("v1"),
        size: 64 << 20,
        room: 0,
        epoch: 1,
        layers: vec![],
        known: 0,
        revert: None,
        source: None,
    };
    let name = VolumeName::parse("team-a/shop").unwrap();
    keeper.open(&name, Log::new(&opening.id, store.clone()).unwrap(), &opening, async || true).await.unwrap();
    let keeps = tokio::spawn(keeper.clone().run());
    fs::write(a.upper("first"), vec![1; 100_000]).unwrap();
    fs::hard_link(a.upper("first"), a.upper("same")).unwrap();
    // Of a subvolume inside there is nothing in a journal.
    let upper = fs::File::open(a.upper("")).unwrap();
    vivarium_sys::btrfs::create_subvolume(upper.as_fd(), c"inner").unwrap();
    fs::write(a.upper("inner/file"), b"x").unwrap();
    let first = told(&cluster, 2).await;
    fs::write(a.upper("second"), b"2").unwrap();
    let second = told(&cluster, first.sequence + 1).await;
    keeps.abort();
    assert_ne!(first.digest, second.digest);
    for told in [&first, &second] {
        assert_eq!(restored(&other, &store, told.sequence).await.unwrap(), told.digest, "{}", told.sequence);
    }

    // Something else would be found.
    fs::write(a.upper("second"), b"3").unwrap();
    let live = a.volumes.get(&id("v1")).unwrap();
    assert_ne!(tree::digest(live.directory.as_fd()).unwrap().to_string(), second.digest);
    let path = Path::from(Key::Transaction { volume: Name::new("v1").unwrap(), seq: first.sequence }.path());
    let mut bytes = memory.get(&path).await.unwrap().bytes().await.unwrap().to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    memory.put(&path, bytes.into()).await.unwrap();
    let error = restored(&other, &store, second.sequence).await.unwrap_err();
    assert!(error.is_final() && error.reason() == "JournalDamaged", "{error}");
}
