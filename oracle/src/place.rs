//! One node of a small cluster: a pool in a directory, the volume in it, and the store that all nodes share.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use object_store::local::LocalFileSystem;
use rustix::fs::{Mode, OFlags};
use tempfile::TempDir;
use vivarium_api::v1alpha1::volume::VolumeLog;
use vivarium_fail_point::passed;
use vivarium_journal::Kind;
use vivarium_journal::read::Transaction;
use vivarium_node::ids::{LayerDigest, VolumeId};
use vivarium_node::journal::JournalError;
use vivarium_node::journal::begin::{Opening, Origin};
use vivarium_node::journal::change::{self, Doubt, Settled};
use vivarium_node::journal::commit::Journal;
use vivarium_node::journal::keep::{Kept, Memory, Policy, Subject, keep};
use vivarium_node::journal::local::Local;
use vivarium_node::journal::log::Log;
use vivarium_node::journal::rejoin::Former;
use vivarium_node::journal::standby::{Follower, drop_standby};
use vivarium_node::journal::tree;
use vivarium_node::pool::{Pool, PoolSource};
use vivarium_node::template::TemplateCache;
use vivarium_node::template::unpack::Limits;
use vivarium_node::volume::{VolumeError, Volumes};
use vivarium_store::faults::{Faults, Faulty};
use vivarium_store::{Sizes, Store};

use crate::limbo::Limbo;
use crate::object::Object;
use crate::rng::Rng;
use crate::template;
use crate::workload::Layer;

/// Sparse; room for one volume and what is being deleted.
pub const POOL_SIZE: u64 = 1 << 30;
/// The volume may fill the pool.
const VOLUME_SIZE: u64 = 4 << 30;

/// What the pools and stores of tests that run at once need together, at most.
const ROOM: u64 = 6 << 30;
/// How long a slow answer of the store takes at most, and how long one is waited for where there are such.
const SLOW: Duration = Duration::from_millis(150);
const HASTE: Duration = Duration::from_millis(100);

/// What goes wrong while a place is made or looked at.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// Whether the store has a mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mirror {
    /// No.
    None,
    /// Yes.
    There,
    /// Its first store was given up, and the mirror is all there is.
    Alone,
}

/// What a volume is like, and what the store does to a node.
#[derive(Clone, Debug)]
pub struct Conditions {
    /// Handle of the volume.
    pub volume: String,
    /// Whether it lies on a template.
    pub layered: bool,
    /// Largest object of the store that is not split.
    pub part: usize,
    /// What the pool lies on.
    pub pool: PoolSource,
    /// Where faults come from.
    pub seed: u64,
    /// What the store does.
    pub faults: Faults,
    /// One creation in so many is held up and carried out later (0: none).
    pub held_up: u64,
    /// Whether the store has a mirror, which fails as it does.
    pub mirror: Mirror,
}

impl Conditions {
    /// A volume on no template, and a store without faults.
    #[must_use]
    pub fn plain(volume: &str) -> Self {
        let part = vivarium_store::PART_SIZE;
        let (layered, pool) = (false, PoolSource::File { size: POOL_SIZE });
        let mirror = Mirror::None;
        Self { volume: volume.into(), layered, part, pool, seed: 0, faults: Faults::NONE, held_up: 0, mirror }
    }

    /// The store in this directory.
    fn store(&self, directory: &Path) -> Result<Store, Error> {
        let one = |name: &str, number: u64| {
            let [objects, under_way] = ["objects", "under-way"].map(|below| directory.join(name).join(below));
            for directory in [&objects, &under_way] {
                std::fs::create_dir_all(directory)?;
            }
            let objects = Arc::new(LocalFileSystem::new_with_prefix(objects)?);
            let limbo = Limbo::new(objects, under_way, Rng::new(self.seed, 1 + number), self.held_up);
            let failing = Faulty::new(Arc::new(limbo), self.seed + number, self.faults).hasty(SLOW);
            let store = Store::over("oracle", Arc::new(failing), Sizes { part: self.part, ..Sizes::default() });
            let is_slow = self.faults.slow > 0.0 || self.faults.answer_late > 0.0;
            Ok::<_, Error>(if is_slow { store.hasty(HASTE) } else { store })
        };
        Ok(match self.mirror {
            Mirror::None => one("first", 0)?,
            Mirror::There => one("first", 0)?.with_mirrors(vec![one("mirror", 1)?]),
            Mirror::Alone => one("mirror", 1)?,
        })
    }
}

/// A node.
pub struct Place {
    /// Its pool.
    pub pool: Arc<Pool>,
    /// The volumes in it.
    pub volumes: Volumes,
    /// The layers of the volume's template.
    pub layers: Vec<Layer>,
    digests: Vec<LayerDigest>,
    templates: Arc<TemplateCache>,
    store: Arc<Store>,
    id: VolumeId,
    /// Where objects of the cluster are.
    objects: PathBuf,
}

/// A log that is to decide next.
pub struct Next {
    log: Log,
    /// The newest transaction in it.
    copied: u64,
}

impl Place {
    /// Makes or adopts the pool in `state`. Store and objects are in `directory`.
    ///
    /// # Errors
    /// Pool or store cannot be used.
    pub fn open(state: &Path, directory: &Path, conditions: &Conditions) -> Result<Self, Error> {
        let pool = Arc::new(Pool::open("oracle", &conditions.pool, state)?);
        let templates = Arc::new(TemplateCache::open(pool.clone(), Vec::new(), Limits { entries: 1, bytes: 1 })?);
        let (mut layers, mut digests) = (Vec::new(), Vec::new());
        for (digit, seed) in [("1", 1), ("2", 2)].into_iter().filter(|_| conditions.layered) {
            let digest = LayerDigest::parse(&format!("sha256:{}", digit.repeat(64)))?;
            layers.push(template::layer(pool.templates(), &digest.directory(), seed)?);
            digests.push(digest);
        }
        let store = conditions.store(directory)?;
        let id = VolumeId::parse(&conditions.volume)?;
        let (volumes, objects) = (Volumes::open(pool.clone())?, directory.to_owned());
        Ok(Self { volumes, pool, layers, digests, templates, store: Arc::new(store), id, objects })
    }

    /// The same node, with another volume.
    ///
    /// # Errors
    /// The name is none.
    pub fn with(&self, volume: &str) -> Result<Self, Error> {
        Ok(Self {
            pool: self.pool.clone(),
            volumes: self.volumes.clone(),
            layers: Vec::new(),
            digests: Vec::new(),
            templates: self.templates.clone(),
            store: self.store.clone(),
            id: VolumeId::parse(volume)?,
            objects: self.objects.clone(),
        })
    }

    fn object(&self) -> Result<Object, JournalError> {
        let path = self.objects.join(format!("{}.object", self.id));
        Object::read(&path, self.id.as_str()).map_err(self.failed("read the object"))
    }

    fn failed(&self, attempt: &'static str) -> impl FnOnce(io::Error) -> JournalError + use<> {
        let volume = self.id.clone();
        move |source| JournalError::Io { attempt, volume, source }
    }

    /// The log that decides.
    fn log(&self) -> Result<Log, JournalError> {
        self.named(&self.object()?.log)
    }

    fn named(&self, log: &str) -> Result<Log, JournalError> {
        Log::named(&self.id, log, self.store.clone())
    }

    /// Puts into another log what it can begin with. `None`: the store fails, or nothing was written yet.
    ///
    /// # Errors
    /// What should not be.
    pub async fn begin_change(&self, journal: &mut Journal) -> Result<Option<Next>, JournalError> {
        let mut object = self.object()?;
        object.logs += 1;
        object.next = format!("{}-{}", self.id, object.logs);
        object.write().map_err(self.failed("claim a log"))?;
        let log = self.named(&object.next)?;
        self.pool.sync().map_err(VolumeError::from)?;
        let Some(seed) = journal.seed().await? else { return Ok(None) };
        let seeded = seed.put(&log, self.pool.path()).await;
        journal.drop_seed().await?;
        match seeded {
            Ok(copied) => Ok(Some(Next { log, copied })),
            Err(JournalError::Store { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Puts the rest there too, and goes on in that log; or in the same one, if the store fails before that counts.
    ///
    /// # Errors
    /// What should not be.
    pub async fn end_change(&self, mut journal: Journal, next: Next) -> Result<Journal, JournalError> {
        let epoch = journal.epoch();
        let last = match journal.copy_rest(next.copied, &next.log).await {
            Ok(last) => last,
            // What was to be copied may have been collected: it was long ago that this was begun.
            Err(JournalError::Store { .. } | JournalError::Damaged { .. }) => return Ok(journal),
            Err(error) => return Err(error),
        };
        let to = VolumeLog { store: self.store.name().into(), name: next.log.name().to_string() };
        journal.doubt(Doubt::new(epoch, to, last)).await?;
        self.settle().await?;
        self.resume(epoch)
    }

    /// Ends a doubt which log decides, if there is one.
    async fn settle(&self) -> Result<(), JournalError> {
        let name = async |doubt: &Doubt| {
            let mut object = self.object()?;
            if object.epoch != doubt.epoch {
                return Ok(Settled::Over);
            }
            if object.log == doubt.to.name {
                return Ok(Settled::Switched);
            }
            if object.next != doubt.to.name {
                return Ok(Settled::Stays);
            }
            object.log = std::mem::take(&mut object.next);
            object.write().map_err(self.failed("switch the log"))?;
            passed("switch-written");
            Ok(Settled::Switched)
        };
        change::settle(&self.volumes, &self.id, name, async |_| Ok(())).await.map(drop)
    }

    fn opening(&self, epoch: u64) -> Opening {
        Opening {
            id: self.id.clone(),
            size: VOLUME_SIZE,
            room: 0,
            epoch,
            layers: self.digests.clone(),
            known: 0,
            revert: None,
            source: None,
        }
    }

    /// Opens an epoch.
    ///
    /// # Errors
    /// As [`Journal::begin`].
    pub async fn begin(&self, epoch: u64) -> Result<(Journal, Origin), JournalError> {
        self.settle().await?;
        let mut object = self.object()?;
        (object.epoch, object.node) = (epoch, self.node());
        object.write().map_err(self.failed("take the volume"))?;
        let opening = self.opening(epoch);
        Journal::begin(&self.volumes, &self.templates, self.log()?, &opening, async || true).await
    }

    /// What a node does that comes back while another one has the volume: it makes its standby copy of what it had, and
    /// follows the log. Nothing if no other node has the volume, or nothing is here.
    ///
    /// # Errors
    /// What should not be.
    pub async fn come_back(&self) -> Result<(), JournalError> {
        let object = self.object()?;
        if object.node == self.node() || self.volumes.get(&self.id).is_err() {
            return Ok(());
        }
        let (volumes, id, log) = (self.volumes.clone(), self.id.clone(), object.log.clone());
        Former { volumes, id, size: VOLUME_SIZE, log }.rejoin()?;
        let (log, layers) = (self.named(&object.log)?, self.digests.clone());
        let follower = Follower { volumes: self.volumes.clone(), id: self.id.clone(), size: VOLUME_SIZE, log, layers };
        match follower.step(&self.templates, 0, 0).await {
            // One that does not fit any more is made anew, or the volume is restored.
            Ok(_) | Err(JournalError::Store { .. } | JournalError::Damaged { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Name of this node.
    fn node(&self) -> String {
        self.pool.path().display().to_string()
    }

    /// Goes on with an epoch as a process that came back, or that does not know what happened meanwhile: in the log that this
    /// node knows of.
    ///
    /// # Errors
    /// As [`Journal::resume`].
    pub fn resume(&self, epoch: u64) -> Result<Journal, JournalError> {
        let local = Local::open(&self.volumes, &self.id)?;
        let log = self.named(local.log().unwrap_or(self.id.as_str()))?;
        Journal::resume(&self.volumes, &self.templates, log, &self.opening(epoch))
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
        let subject = Subject {
            volume: self.id.clone(),
            layers: self.digests.clone(),
            size: VOLUME_SIZE,
            room: 0,
            known: 0,
            wanted: vec![],
        };
        keep(&self.volumes, &self.templates, &self.log()?, &subject, &mut Memory::default(), &policy).await
    }

    /// Number of the newest transaction in the log.
    ///
    /// # Errors
    /// As [`Log::tail`].
    pub async fn tail(&self) -> Result<u64, JournalError> {
        Ok(self.log()?.tail(0).await?.sequence)
    }

    /// Path of what a tenant may write to.
    #[must_use]
    pub fn live(&self) -> PathBuf {
        self.volumes.live_path(&self.id)
    }

    /// A directory of the node that is not in the pool.
    #[must_use]
    pub fn aside(&self) -> PathBuf {
        self.pool.path().parent().unwrap_or(self.pool.path()).to_owned()
    }

    /// A directory of what a tenant may write to, opened.
    ///
    /// # Errors
    /// The volume is not here.
    pub fn directory(&self, below: &str) -> io::Result<OwnedFd> {
        directory(&self.live().join(below))
    }

    /// The tree that a tenant sees: all of the live subvolume but the directory in which overlayfs works.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn tree(&self) -> Result<Vec<String>, Error> {
        Ok(of_tenant(lines(directory(&self.live())?.as_fd())?))
    }

    /// Takes everything of the volume away, so that the place can be used for another.
    ///
    /// # Errors
    /// The pool fails.
    pub fn clear(&self) -> Result<(), Error> {
        self.volumes.delete(&self.id)?;
        drop_standby(&self.volumes, &self.id)?;
        Ok(self.volumes.expire_diverged(Duration::ZERO, std::time::SystemTime::now())?)
    }

    /// The tree as of transaction `sequence`, of which it is known that it is in the store, from the snapshots that are
    /// here. `None`: it was empty.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn tree_at(&self, sequence: u64) -> Result<Option<Vec<String>>, Error> {
        let path = self.volumes.directory_path(&self.id);
        let noted = Local::newest(&self.volumes, &self.id)?.map(|newest| newest.base);
        // One that reached the store although nobody lived to know.
        let attempted = match std::fs::File::open(path.join("attempt.vtx")) {
            Ok(attempt) => Some(Transaction::open(attempt)?.header().clone()),
            Err(_) => None,
        };
        let attempted = attempted.filter(|header| header.kind != Kind::Barrier).map(|header| header.sequence);
        let newest = [noted, attempted].into_iter().flatten().filter(|number| *number <= sequence).max();
        newest.map(|number| lines(directory(&path.join(format!("base.{number}")))?.as_fd())).transpose()
    }

    /// The tree of the newest commit that this node knows to be in the store, from its own snapshot: without what
    /// [`Self::tree`] leaves out. `None`: it was empty.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn committed(&self) -> Result<Option<Vec<String>>, Error> {
        let Some(newest) = Local::newest(&self.volumes, &self.id)? else { return Ok(None) };
        Ok(Some(of_tenant(lines(newest.root.as_fd())?)))
    }
}

/// Of a tree what a tenant sees: without the directory in which overlayfs works.
fn of_tenant(mut lines: Vec<String>) -> Vec<String> {
    lines.retain(|line| !line.starts_with("\"work"));
    lines
}

/// A directory for pools and stores of tests: in memory where there is enough of it, because nothing that is tested here
/// outlives the machine.
///
/// # Errors
/// It cannot be made.
pub fn scratch() -> io::Result<TempDir> {
    let memory = Path::new("/dev/shm");
    let is_large = rustix::fs::statvfs(memory).is_ok_and(|stat| stat.f_bavail * stat.f_frsize > ROOM);
    let mut builder = tempfile::Builder::new();
    builder.prefix("vivarium-oracle");
    if is_large { builder.tempdir_in(memory) } else { builder.tempdir() }
}

/// A tree, described line by line.
fn lines(root: BorrowedFd<'_>) -> Result<Vec<String>, Error> {
    let mut lines = Vec::new();
    tree::describe(root, &mut |line| lines.push(line.to_owned()))?;
    Ok(lines)
}

fn directory(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}
