//! A node without a cluster, for tests of journals.

use std::path::PathBuf;
use std::sync::Arc;

use vivarium_node::journal::JournalError;
use vivarium_node::journal::begin::{Opening, Origin};
use vivarium_node::journal::commit::Journal;
use vivarium_node::journal::log::Log;
use vivarium_node::journal::tree::describe;
use vivarium_node::pool::Pool;
use vivarium_node::template::TemplateCache;
use vivarium_node::volume::Volumes;
use vivarium_store::Store;

use super::{TestNode, id};

/// A node with its pool, and the one store of all nodes.
pub struct Place {
    pub node: TestNode,
    pub pool: Arc<Pool>,
    pub volumes: Volumes,
    pub templates: Arc<TemplateCache>,
}

impl Place {
    pub fn new() -> Self {
        let node = TestNode::new();
        let pool = node.pool();
        let templates = node.templates(&pool, "127.0.0.1:1");
        Self { volumes: Volumes::open(pool.clone()).unwrap(), pool, templates, node }
    }

    pub fn opening(epoch: u64) -> Opening {
        Opening { id: id("v1"), size: 64 << 20, room: 0, epoch, layers: vec![], known: 0, revert: None, source: None }
    }

    pub async fn begin(&self, store: &Arc<Store>, epoch: u64) -> Result<(Journal, Origin), JournalError> {
        let opening = Self::opening(epoch);
        Journal::begin(
            &self.volumes,
            &self.templates,
            Log::new(&opening.id, store.clone()).unwrap(),
            &opening,
            async || true,
        )
        .await
    }

    pub fn upper(&self, name: &str) -> PathBuf {
        self.volumes.live_path(&id("v1")).join("upper").join(name)
    }

    pub fn tree(&self) -> Vec<String> {
        let live = self.volumes.get(&id("v1")).unwrap();
        let mut lines = Vec::new();
        describe(std::os::fd::AsFd::as_fd(&live.directory), &mut |line| lines.push(line.to_owned())).unwrap();
        lines
    }

    pub async fn commit(&self, journal: &mut Journal) -> u64 {
        self.pool.sync().unwrap();
        journal.commit().await.unwrap().bytes
    }
}
