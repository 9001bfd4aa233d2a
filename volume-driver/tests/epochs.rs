//! Journals on a real pool with a store in memory: epochs, restarts, restores, and who loses.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::too_many_lines,
    reason = "helpers of tests say what must hold by unwrapping it, and tables are long"
)]

mod support;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use support::{TestNode, id};
use vivarium_node::journal::JournalError;
use vivarium_node::journal::begin::{Opening, Origin};
use vivarium_node::journal::commit::Journal;
use vivarium_node::journal::tree::describe;
use vivarium_node::pool::Pool;
use vivarium_node::template::TemplateCache;
use vivarium_node::volume::Volumes;
use vivarium_store::Store;

/// A node with its pool, and the one store of all nodes.
struct Place {
    _node: TestNode,
    pool: Arc<Pool>,
    volumes: Volumes,
    templates: Arc<TemplateCache>,
}

impl Place {
    fn new() -> Self {
        let node = TestNode::new();
        let pool = node.pool();
        let templates = node.templates(&pool, "127.0.0.1:1");
        Self { volumes: Volumes::open(pool.clone()).unwrap(), pool, templates, _node: node }
    }

    async fn begin(&self, store: &Arc<Store>, epoch: u64) -> Result<(Journal, Origin), JournalError> {
        let opening = Opening { id: id("v1"), size: 64 << 20, epoch, layers: vec![], known: 0 };
        Journal::begin(&self.volumes, &self.templates, store.clone(), &opening, async || true).await
    }

    fn upper(&self, name: &str) -> PathBuf {
        self.volumes.live_path(&id("v1")).join("upper").join(name)
    }

    fn tree(&self) -> Vec<String> {
        let live = self.volumes.get(&id("v1")).unwrap();
        let mut lines = Vec::new();
        describe(std::os::fd::AsFd::as_fd(&live.directory), &mut |line| lines.push(line.to_owned())).unwrap();
        lines
    }

    async fn commit(&self, journal: &mut Journal) -> u64 {
        self.pool.sync().unwrap();
        journal.commit().await.unwrap().bytes
    }
}

fn store() -> Arc<Store> {
    Arc::new(Store::memory("test"))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_committed_comes_back_elsewhere_and_the_former_owner_is_out() {
    let (a, b, store) = (Place::new(), Place::new(), store());
    let (mut first, origin) = a.begin(&store, 1).await.unwrap();
    assert_eq!(origin, Origin::New);
    fs::write(a.upper("one"), b"1").unwrap();
    assert!(a.commit(&mut first).await > 0);
    fs::write(a.upper("two"), b"2").unwrap();
    assert!(a.commit(&mut first).await > 0);
    let committed = a.tree();
    assert_eq!(a.commit(&mut first).await, 0, "a volume that did not change is committed");
    fs::write(a.upper("late"), b"after the last commit").unwrap();

    let (mut second, origin) = b.begin(&store, 2).await.unwrap();
    let Origin::Restored(restored) = origin else { panic!("{origin:?}") };
    assert_eq!(restored.transactions, 2);
    assert_eq!(b.tree(), committed);
    fs::write(b.upper("three"), b"3").unwrap();
    assert!(b.commit(&mut second).await > 0);

    a.pool.sync().unwrap();
    let error = first.commit().await.unwrap_err();
    assert!(matches!(error, JournalError::Superseded { epoch: 1, current: 2, .. }), "{error}");
    assert!(matches!(a.begin(&store, 1).await, Err(JournalError::Superseded { .. })));

    // Back on the first node its stale tree is replaced.
    let committed = b.tree();
    let (mut third, origin) = a.begin(&store, 3).await.unwrap();
    assert!(matches!(origin, Origin::Restored(_)), "{origin:?}");
    assert_eq!(a.tree(), committed);
    assert!(!a.upper("late").exists());
    fs::write(a.upper("four"), b"4").unwrap();
    assert!(a.commit(&mut third).await > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_on_the_same_node_keeps_what_was_not_committed() {
    let (a, b, store) = (Place::new(), Place::new(), store());
    let (mut journal, _) = a.begin(&store, 1).await.unwrap();
    fs::write(a.upper("one"), b"1").unwrap();
    a.commit(&mut journal).await;
    drop(journal);
    fs::write(a.upper("two"), b"2").unwrap();
    let (mut journal, origin) = a.begin(&store, 2).await.unwrap();
    assert_eq!(origin, Origin::Here);
    assert_eq!(fs::read(a.upper("two")).unwrap(), b"2");
    assert!(a.commit(&mut journal).await > 0, "what was written between the epochs is not committed");
    // The same epoch once more, as after a restart of the driver.
    drop(journal);
    let (_, origin) = a.begin(&store, 2).await.unwrap();
    assert_eq!(origin, Origin::Here);
    let tree = a.tree();
    b.begin(&store, 3).await.unwrap();
    assert_eq!(b.tree(), tree);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_volume_has_its_directories_everywhere() {
    let (a, b, store) = (Place::new(), Place::new(), store());
    a.begin(&store, 1).await.unwrap();
    let (_, origin) = b.begin(&store, 2).await.unwrap();
    assert_eq!(origin, Origin::New);
    assert!(b.upper("").is_dir());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_is_taken_away_while_it_is_opened_is_not_restored() {
    let (a, b, store) = (Place::new(), Place::new(), store());
    let (mut journal, _) = a.begin(&store, 1).await.unwrap();
    fs::write(a.upper("one"), b"1").unwrap();
    a.commit(&mut journal).await;
    let opening = Opening { id: id("v1"), size: 64 << 20, epoch: 2, layers: vec![], known: 0 };
    let lost = Journal::begin(&b.volumes, &b.templates, store, &opening, async || false).await;
    assert!(matches!(lost, Err(JournalError::Lost { .. })));
    assert!(b.volumes.get(&id("v1")).is_err(), "something was made");
}
