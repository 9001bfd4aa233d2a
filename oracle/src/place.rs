//! One node of a small cluster: a pool in a directory, the volume in it, and the store that all nodes share.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use object_store::local::LocalFileSystem;
use rustix::fs::{Mode, OFlags};
use vivarium_journal::read::Transaction;
use vivarium_node::ids::VolumeId;
use vivarium_node::journal::JournalError;
use vivarium_node::journal::begin::{Opening, Origin};
use vivarium_node::journal::commit::Journal;
use vivarium_node::journal::keep::{Kept, Memory, Policy, Subject, keep};
use vivarium_node::journal::log::Log;
use vivarium_node::journal::tree;
use vivarium_node::pool::{Pool, PoolSource};
use vivarium_node::template::TemplateCache;
use vivarium_node::template::unpack::Limits;
use vivarium_node::volume::Volumes;
use vivarium_store::Store;
use vivarium_store::faults::{Faults, Faulty};

/// Sparse; room for one volume and what is being deleted.
const POOL_SIZE: u64 = 1 << 30;
/// The volume may fill the pool.
const VOLUME_SIZE: u64 = 4 << 30;

/// What goes wrong while a place is made or looked at.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// A node.
pub struct Place {
    /// Its pool.
    pub pool: Arc<Pool>,
    /// The volumes in it.
    pub volumes: Volumes,
    templates: TemplateCache,
    store: Arc<Store>,
    id: VolumeId,
}

impl Place {
    /// Makes or adopts the pool in `state`. The store is the directory `store`, with the faults of a seed.
    ///
    /// # Errors
    /// Pool or store cannot be used.
    pub fn open(state: &Path, store: &Path, seed: u64, faults: Faults) -> Result<Self, Error> {
        // The client of image registries wants one, although none is asked here. It is there already if it fails.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let pool = Arc::new(Pool::open("oracle", &PoolSource::File { size: POOL_SIZE }, state)?);
        let templates = TemplateCache::open(pool.clone(), Vec::new(), Limits { entries: 1, bytes: 1 })?;
        std::fs::create_dir_all(store)?;
        let objects = Faulty::new(Arc::new(LocalFileSystem::new_with_prefix(store)?), seed, faults);
        let store = Arc::new(Store::over("oracle", Arc::new(objects), vivarium_store::Sizes::default()));
        let id = VolumeId::parse("volume")?;
        Ok(Self { volumes: Volumes::open(pool.clone())?, pool, templates, store, id })
    }

    /// Opens an epoch.
    ///
    /// # Errors
    /// As [`Journal::begin`].
    pub async fn begin(&self, epoch: u64) -> Result<(Journal, Origin), JournalError> {
        let opening = Opening {
            id: self.id.clone(),
            size: VOLUME_SIZE,
            room: 0,
            epoch,
            layers: Vec::new(),
            known: 0,
            revert: None,
        };
        Journal::begin(&self.volumes, &self.templates, self.store.clone(), &opening, async || true).await
    }

    /// Keeps the journal as short as it can be: a checkpoint of every few transactions, and nothing before it.
    ///
    /// # Errors
    /// As [`keep`].
    pub async fn keep(&self) -> Result<Kept, JournalError> {
        let policy = Policy {
            bytes: 1 << 20,
            transactions: 3,
            retention: Duration::ZERO,
            fine: Duration::ZERO,
            coarse: 0,
            deletions: usize::MAX,
            merges: usize::MAX,
        };
        let log = Log::new(&self.id, self.store.clone())?;
        let subject = Subject { volume: self.id.clone(), layers: Vec::new(), size: VOLUME_SIZE, room: 0, known: 0 };
        keep(&self.volumes, &self.templates, &log, &subject, &mut Memory::default(), &policy).await
    }

    /// Root of what a tenant may write to.
    ///
    /// # Errors
    /// The volume is not here.
    pub fn upper(&self) -> io::Result<OwnedFd> {
        directory(&self.volumes.live_path(&self.id).join("upper"))
    }

    /// The tree as of transaction `sequence`, of which it is known that it is in the store, from the snapshots that are
    /// here. `None`: it was empty.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn tree_at(&self, sequence: u64) -> Result<Option<Vec<String>>, Error> {
        let path = self.volumes.directory_path(&self.id);
        let mut newest = None;
        for entry in std::fs::read_dir(&path)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix("base.")?.parse::<u64>().ok());
            newest = newest.max(number.filter(|number| *number <= sequence));
        }
        let mut snapshot = newest.map(|number| format!("base.{number}"));
        // A transaction that reached the store although nobody lived to know.
        if newest != Some(sequence)
            && let Ok(attempt) = std::fs::File::open(path.join("attempt.vtx"))
        {
            let transaction = Transaction::open(attempt)?;
            if transaction.header().sequence == sequence && transaction.header().kind != vivarium_journal::Kind::Barrier
            {
                snapshot = Some("next".into());
            }
        }
        snapshot.map(|name| lines(&path.join(name))).transpose()
    }
}

/// A tree, described line by line.
fn lines(path: &Path) -> Result<Vec<String>, Error> {
    let mut lines = Vec::new();
    tree::describe(directory(path)?.as_fd(), &mut |line| lines.push(line.to_owned()))?;
    Ok(lines)
}

fn directory(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}
