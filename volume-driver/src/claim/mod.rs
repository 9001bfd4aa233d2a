//! Volumes for ordinary pods: what a `StorageClass` of this driver gives to a `PersistentVolumeClaim`.
//!
//! Such a volume is a subvolume with a size in the pool of **one node**, and stays there: `claims/<handle>/live`, with a
//! record beside it that tells what it is ([`record`]). The pool is the only truth; there is no object of ours in the
//! cluster, and the driver of each node makes, lists and destroys its own alone. Handles follow from the names that are asked
//! for ([`request`]), so every call can be repeated. Snapshots are read-only subvolumes `snapshots/<handle>/live` of the
//! same node and cost what changes afterwards; volumes that begin with a tree are copies ([`copy`]).
//!
//! Guarantees: a volume or snapshot is there whole or not at all; a volume holds no more than its size and what its
//! snapshots keep; nothing that a pod has mounted is destroyed. Leaves to others: where a volume is made (the scheduler,
//! by topology), when (the provisioner), and copies on other nodes: there are none, see
//! `docs/src/adr/0008-volumes-of-pods.md`.

mod copy;
pub mod error;
pub mod health;
mod mounted;
pub mod record;
pub mod request;

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use vivarium_api::v1alpha1::EnvironmentTemplate;

use crate::ids::{LayerDigest, VolumeId};
use crate::kube::stores::Stores;
use crate::kube::templates::resolved;
use crate::pool::{PoolError, Space, open_directory};
use crate::publish::guard::{Operation, Operations};
use crate::publish::mounts::{self, At};
use crate::publish::{Publisher, Refusal, blocking};
use crate::template::TemplateCache;
use crate::view::mount::overlay;
use crate::volume::{Place, Usage, VolumeError, Volumes};
pub use error::ClaimError;
use health::Trouble;
use record::{Claim, ClaimRecord, Origin, Snapshot, SnapshotRecord, VERSION};
use request::{NewClaim, Range, is_claim, is_of, is_snapshot};

/// Where templates are looked up.
#[async_trait]
pub trait TemplateDirectory: Send + Sync + 'static {
    /// The object, if there is one.
    async fn template(&self, name: &str) -> Result<Option<EnvironmentTemplate>, String>;
}

/// The volumes of pods on this node.
#[derive(Clone)]
pub struct Claims {
    node: String,
    volumes: Volumes,
    snapshots: Volumes,
    templates: Arc<TemplateCache>,
    stores: Stores,
    directory: Arc<dyn TemplateDirectory>,
    operations: Operations,
}

/// The tree that a volume begins with.
enum Tree {
    /// Nothing.
    Nothing,
    /// What a snapshot holds, which nobody destroys meanwhile.
    Snapshot { directory: OwnedFd, held: u64, _kept: Operation },
    /// What another volume holds at present.
    Claim(VolumeId),
    /// Layers of a template, the topmost first.
    Layers(Vec<PathBuf>),
}

impl Claims {
    /// Finishes what a crash left half done.
    ///
    /// # Errors
    /// The pool fails.
    pub fn open(publisher: &Publisher, directory: Arc<dyn TemplateDirectory>) -> Result<Self, PoolError> {
        let pool = publisher.volumes.pool();
        Ok(Self {
            node: publisher.me.node.clone(),
            volumes: Volumes::open_at(pool.clone(), Place::Claims)?,
            snapshots: Volumes::open_at(pool.clone(), Place::Snapshots)?,
            templates: publisher.templates.clone(),
            stores: publisher.stores.clone(),
            directory,
            operations: publisher.operations.clone(),
        })
    }

    /// Name of the node.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Makes a volume, unless it is there.
    ///
    /// # Errors
    /// Any [`ClaimError`], the pool is full or fails, [`Refusal::Busy`].
    pub async fn create(&self, new: NewClaim) -> Result<Claim, Refusal> {
        let _operation = self.begin(&new.id)?;
        let (this, id) = (self.clone(), new.id.clone());
        match blocking(move || this.find(&id)).await {
            Ok(found) => {
                new.matches(&found)?;
                return Ok(found);
            }
            Err(Refusal::Volume(VolumeError::NotFound(_))) => {}
            Err(error) => return Err(error),
        }
        // From here on no layer of the template goes.
        let layers = match &new.origin {
            Origin::Template(name) => self.layers(name).await?,
            _ => Vec::new(),
        };
        let _pin = self.templates.pin(&layers);
        let this = self.clone();
        blocking(move || this.make(new, &layers)).await
    }

    /// Brings a template here and tells its layers, lowest first.
    async fn layers(&self, name: &str) -> Result<Vec<LayerDigest>, Refusal> {
        let unreachable = |message| ClaimError::Template { name: name.to_owned(), message };
        let template = self.directory.template(name).await.map_err(unreachable)?;
        let template = template.ok_or_else(|| ClaimError::NoTemplate { name: name.to_owned() })?;
        let (image, layers) =
            resolved(&template).ok_or_else(|| ClaimError::TemplateNotReady { name: name.to_owned() })?;
        let stores = self.stores.shared();
        self.templates.ensure(&image, &layers, &stores).await.map_err(|error| unreachable(error.to_string()))?;
        Ok(layers)
    }

    fn make(&self, new: NewClaim, layers: &[LayerDigest]) -> Result<Claim, Refusal> {
        let (tree, least) = self.tree(&new.origin, layers)?;
        let size = new.range.size(least)?;
        self.volumes.pool().require(size)?;
        let NewClaim { id, name, origin, .. } = new;
        let record = ClaimRecord { version: VERSION, name, size, origin, created: Timestamp::now() };
        self.volumes.create_described(&id, size, 0, &record, |live| self.fill(live, &id, size, &tree))?;
        // In the journal of the file system before anybody is told.
        self.volumes.pool().sync()?;
        tracing::info!(volume = %id, name = record.name, size, origin = ?record.origin, "made a volume of a pod");
        Ok(Claim { id, record })
    }

    /// What a volume begins with, and the size of the volume that it comes from.
    fn tree(&self, origin: &Origin, layers: &[LayerDigest]) -> Result<(Tree, u64), Refusal> {
        Ok(match origin {
            Origin::Empty => (Tree::Nothing, 0),
            Origin::Template(_) => {
                (Tree::Layers(layers.iter().rev().map(|layer| self.templates.path(layer)).collect()), 0)
            }
            Origin::Snapshot(id) => {
                let no_snapshot = || ClaimError::NoSnapshot(id.clone());
                let id = VolumeId::parse(id).ok().filter(is_snapshot).ok_or_else(no_snapshot)?;
                self.source_is_here(&id)?;
                let kept = self.begin(&id)?;
                let SnapshotRecord { size, held, .. } = self.find_snapshot(&id)?.record;
                (Tree::Snapshot { directory: self.snapshots.get(&id)?.directory, held, _kept: kept }, size)
            }
            Origin::Claim(id) => {
                let id = VolumeId::parse(id)?;
                if is_claim(&id) {
                    self.source_is_here(&id)?;
                }
                let size = self.find(&id)?.record.size;
                (Tree::Claim(id), size)
            }
        })
    }

    fn fill(&self, live: &OwnedFd, id: &VolumeId, size: u64, tree: &Tree) -> Result<(), Refusal> {
        let copy = |from: &OwnedFd| -> Result<(), Refusal> { Ok(copy::tree(from, live, size)?) };
        match tree {
            Tree::Nothing => return Ok(()),
            Tree::Snapshot { directory, held, .. } => {
                self.volumes.pool().require(*held)?;
                copy(directory)?;
            }
            Tree::Claim(source) => {
                self.volumes.pool().require(self.volumes.usage(source)?.map_or(0, |usage| usage.used))?;
                let source = self.volumes.get(source)?;
                // One instant of it, while its pods go on writing.
                self.snapshots.with_snapshot(id, source.directory.as_fd(), copy)?;
            }
            Tree::Layers(layers) => {
                let failed = |error: std::io::Error| ClaimError::Copy(error.to_string());
                let layers = layers.iter().map(|layer| open_directory(layer)).collect::<Result<Vec<_>, _>>();
                let layers = layers.map_err(failed)?;
                match layers.as_slice() {
                    // An overlay has two layers at least.
                    [only] => copy(only)?,
                    layers => copy(&overlay(layers).map_err(failed)?)?,
                }
            }
        }
        self.volumes.check_fits(live, id, size).map_err(|error| match error {
            VolumeError::TooSmall { size, .. } => ClaimError::DoesNotFit { size }.into(),
            error => error.into(),
        })
    }

    /// Destroys a volume. What is none of ours, or not there, is destroyed already. Its snapshots stay.
    ///
    /// # Errors
    /// [`ClaimError::InUse`], [`Refusal::Busy`], or the pool fails.
    pub async fn delete(&self, id: VolumeId) -> Result<(), Refusal> {
        if !is_claim(&id) {
            return Ok(());
        }
        self.is_ours(&id)?;
        let _operation = self.begin(&id)?;
        let this = self.clone();
        blocking(move || {
            if let Some(target) = mounted::anywhere(this.volumes.pool().path(), &id)? {
                return Err(ClaimError::InUse { id, target }.into());
            }
            this.volumes.delete(&id)?;
            tracing::info!(volume = %id, "destroyed a volume of a pod");
            Ok(())
        })
        .await
    }

    /// Lets a volume hold more, also while pods use it; it never shrinks. Gives its size.
    ///
    /// # Errors
    /// It is not there, the pool has no room, or it is larger than it may be.
    pub async fn expand(&self, id: VolumeId, range: Range) -> Result<u64, Refusal> {
        let _operation = self.begin(&id)?;
        let this = self.clone();
        blocking(move || {
            let mut claim = this.find(&id)?;
            let old = claim.record.size;
            let new = range.required.max(old);
            if range.limit != 0 && new > range.limit {
                let message = format!("it has {old} bytes already, and {} at most are asked for", range.limit);
                return Err(ClaimError::OutOfRange(message).into());
            }
            if new > old {
                this.volumes.pool().require(new - old)?;
                claim.record.size = new;
                this.volumes.describe(&id, &claim.record)?;
                tracing::info!(volume = %id, old, new, "a volume of a pod grows");
            }
            this.apply_size(&claim)?;
            Ok(new)
        })
        .await
    }

    /// Has the kernel enforce the size of a volume. Blocks that only snapshots still hold count as well, so they come on top.
    fn apply_size(&self, claim: &Claim) -> Result<(), Refusal> {
        let snapshots = self.snapshots_of(&claim.id)?;
        let held = snapshots.iter().fold(0, |sum: u64, snapshot| sum.saturating_add(snapshot.record.held));
        match self.volumes.set_size(&claim.id, claim.record.size.saturating_add(held)) {
            // A snapshot went, and its blocks are not freed yet, or the volume has grown into their room: it keeps its
            // limit until the next time.
            Err(VolumeError::TooSmall { used, size, .. }) => {
                tracing::info!(volume = %claim.id, used, size, "the volume keeps the room of a snapshot that is gone");
                Ok(())
            }
            other => Ok(other?),
        }
    }

    /// Takes a snapshot of a volume, unless it is there.
    ///
    /// # Errors
    /// The volume is not there, the name stands for a snapshot of another one, [`Refusal::Busy`], or the pool is full or fails.
    pub async fn snapshot(&self, name: String, source: VolumeId) -> Result<Snapshot, Refusal> {
        if is_claim(&source) {
            self.is_ours(&source)?;
        }
        let id = request::snapshot_id(&name, &self.node);
        let operations = (self.begin(&id)?, self.begin(&source)?);
        let this = self.clone();
        blocking(move || {
            let _operations = operations;
            match this.find_snapshot(&id) {
                Ok(found) if found.record.source == source.as_str() => return Ok(found),
                Ok(found) => {
                    let differs = format!("it is one of volume {}", found.record.source);
                    return Err(ClaimError::Different { name, differs }.into());
                }
                Err(Refusal::Claim(ClaimError::NoSnapshot(_))) => {}
                Err(error) => return Err(error),
            }
            let claim = this.find(&source)?;
            this.volumes.pool().require(0)?;
            let live = this.volumes.get(&source)?;
            let created = Timestamp::now();
            let record = this.snapshots.snapshot_described(&id, live.directory.as_fd(), || {
                // Known exactly: a snapshot writes everything out first.
                let held = this.volumes.usage(&source)?.map_or(0, |usage| usage.used);
                let (source, size) = (source.to_string(), claim.record.size);
                Ok(SnapshotRecord { version: VERSION, name, source, size, held, created })
            })?;
            this.apply_size(&claim)?;
            tracing::info!(snapshot = %id, volume = %source, held = record.held, "took a snapshot");
            Ok(Snapshot { id, record })
        })
        .await
    }

    /// Destroys a snapshot. What is none of ours, or not there, is destroyed already.
    ///
    /// # Errors
    /// [`Refusal::Busy`], as while a volume is made from it, or the pool fails.
    pub async fn delete_snapshot(&self, id: VolumeId) -> Result<(), Refusal> {
        if !is_snapshot(&id) {
            return Ok(());
        }
        self.is_ours(&id)?;
        let _operation = self.begin(&id)?;
        let this = self.clone();
        blocking(move || {
            let source = this.find_snapshot(&id).ok().and_then(|found| VolumeId::parse(&found.record.source).ok());
            this.snapshots.delete(&id)?;
            tracing::info!(snapshot = %id, "destroyed a snapshot");
            // At the latest when a pod gets the volume again.
            if let Some(source) = source
                && let Some(_operation) = this.operations.begin(&source)
                && let Ok(claim) = this.find(&source)
            {
                this.apply_size(&claim)?;
            }
            Ok(())
        })
        .await
    }

    /// Every volume, by handle.
    ///
    /// # Errors
    /// The pool fails.
    pub async fn list(&self) -> Result<Vec<Claim>, Refusal> {
        let this = self.clone();
        blocking(move || Ok(sorted(&this.volumes, |id| this.find(id).ok())?)).await
    }

    /// Every snapshot, by handle.
    ///
    /// # Errors
    /// The pool fails.
    pub async fn list_snapshots(&self) -> Result<Vec<Snapshot>, Refusal> {
        let this = self.clone();
        blocking(move || Ok(sorted(&this.snapshots, |id| this.find_snapshot(id).ok())?)).await
    }

    fn snapshots_of(&self, source: &VolumeId) -> Result<Vec<Snapshot>, Refusal> {
        let all = sorted(&self.snapshots, |id| self.find_snapshot(id).ok())?;
        Ok(all.into_iter().filter(|snapshot| snapshot.record.source == source.as_str()).collect())
    }

    /// A volume.
    ///
    /// # Errors
    /// It is not there, or its record cannot be read.
    pub async fn get(&self, id: VolumeId) -> Result<Claim, Refusal> {
        let this = self.clone();
        blocking(move || this.find(&id)).await
    }

    fn find(&self, id: &VolumeId) -> Result<Claim, Refusal> {
        if !is_claim(id) {
            return Err(VolumeError::NotFound(id.clone()).into());
        }
        Ok(Claim { id: id.clone(), record: self.volumes.description(id)? })
    }

    fn find_snapshot(&self, id: &VolumeId) -> Result<Snapshot, Refusal> {
        match self.snapshots.description(id) {
            Ok(record) => Ok(Snapshot { id: id.clone(), record }),
            Err(VolumeError::NotFound(id)) => Err(ClaimError::NoSnapshot(id.to_string()).into()),
            Err(error) => Err(error.into()),
        }
    }

    /// Room for further volumes, in bytes. It is not set aside for anybody: sizes are limits.
    ///
    /// # Errors
    /// The pool does not answer.
    pub fn room(&self) -> Result<u64, Refusal> {
        Ok(self.volumes.pool().space().map(Space::usable)?)
    }

    /// What is wrong with a volume.
    ///
    /// # Errors
    /// It is not there.
    pub async fn health(&self, id: VolumeId) -> Result<Vec<Trouble>, Refusal> {
        let this = self.clone();
        blocking(move || {
            this.find(&id)?;
            let pool = this.volumes.pool();
            let space = pool.check().and_then(|()| pool.space()).map_err(|error| error.to_string());
            Ok(health::judge(space, this.volumes.usage(&id)?))
        })
        .await
    }

    /// Makes a volume ready on this node: it is there, or nowhere.
    ///
    /// # Errors
    /// It is not there.
    pub async fn stage(&self, id: VolumeId) -> Result<(), Refusal> {
        let _operation = self.begin(&id)?;
        let this = self.clone();
        blocking(move || this.apply_size(&this.find(&id)?)).await
    }

    /// Mounts a volume for a pod, of which there can be several.
    ///
    /// # Errors
    /// It is not there, or cannot be mounted.
    pub async fn publish(&self, id: VolumeId, target: PathBuf, read_only: bool) -> Result<(), Refusal> {
        let _operation = self.begin(&id)?;
        let this = self.clone();
        blocking(move || {
            this.find(&id)?;
            let live = this.volumes.get(&id)?;
            let failed = |source| Refusal::Mount { attempt: "mount the volume at", path: target.clone(), source };
            match mounts::at(&target).map_err(failed)? {
                At::Subvolume(uuid) if uuid == live.info.uuid => Ok(()),
                At::Nothing => mounts::bind(live.directory.as_fd(), &target, read_only).map_err(failed),
                At::Subvolume(_) | At::Other => Err(failed(std::io::Error::other("something else is mounted there"))),
            }
        })
        .await
    }

    /// Takes a volume back from a target.
    ///
    /// # Errors
    /// Something uses the mount.
    pub async fn unpublish(&self, id: VolumeId, target: PathBuf) -> Result<(), Refusal> {
        let _operation = self.begin(&id)?;
        blocking(move || {
            mounts::unbind(&target).map_err(|source| Refusal::Mount { attempt: "unmount", path: target, source })
        })
        .await
    }

    /// How full a volume is that is mounted at a path; `None` where the kernel does not count.
    ///
    /// # Errors
    /// It is not there, or not mounted at the path.
    pub async fn stats(&self, id: VolumeId, path: PathBuf) -> Result<Option<Usage>, Refusal> {
        let this = self.clone();
        blocking(move || {
            let live = this.volumes.get(&id)?;
            match mounts::at(&path) {
                Ok(At::Subvolume(uuid)) if uuid == live.info.uuid => Ok(this.volumes.usage(&id)?),
                _ => Err(Refusal::NotThere { id, path }),
            }
        })
        .await
    }

    /// What was made elsewhere is neither gone nor unknown because it is not here.
    fn is_ours(&self, id: &VolumeId) -> Result<(), ClaimError> {
        if is_of(id, &self.node) {
            Ok(())
        } else {
            Err(ClaimError::OtherNode { id: id.clone(), node: self.node.clone() })
        }
    }

    /// The scheduler does not know where snapshots are: it is told to look for another node.
    fn source_is_here(&self, id: &VolumeId) -> Result<(), ClaimError> {
        self.is_ours(id).map_err(|_| ClaimError::SourceElsewhere { id: id.clone(), node: self.node.clone() })
    }

    fn begin(&self, id: &VolumeId) -> Result<Operation, Refusal> {
        self.operations.begin(id).ok_or_else(|| Refusal::Busy(id.clone()))
    }
}

/// Everything that is in one place and can be read; the rest is told to the log.
fn sorted<T>(volumes: &Volumes, find: impl Fn(&VolumeId) -> Option<T>) -> Result<Vec<T>, PoolError> {
    let mut ids = volumes.list()?;
    ids.sort();
    let read = |id: &VolumeId| {
        let found = find(id);
        if found.is_none() {
            tracing::warn!(volume = %id, "what it is cannot be read, or it is being destroyed");
        }
        found
    };
    Ok(ids.iter().filter_map(read).collect())
}
