//! What lies in a store and belongs to no journal that is kept: journals whose deletion was cut off, layers that nothing
//! names any more, what trials and sessions have left. One node does it for each store ([`crate::kube::garbage`]), now and
//! then.
//!
//! What the cluster does not name is not garbage for that: a cluster may have been made anew over its store, or been set back
//! to an earlier state. So a journal goes only if it was marked as deleted while its object was still there, and no layer goes
//! while there is a journal that nobody knows, whose layers nobody knows either.
//!
//! A layer that is named again while it is deleted may be gone. Whoever keeps the journal of a volume asks every minute
//! whether the layers are there, puts them there again, and says that the volume cannot be restored from the store alone until
//! they are (condition `Restorable`).

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use tokio::time::Instant;
use vivarium_store::{Key, Listed, MaintainError, Name, Prefix, ReadError, Store, Used};

use crate::ids::{LayerDigest, VolumeId};
use crate::journal::JournalError;
use crate::journal::log::Log;

/// How long a request to the store may take with all its repetitions.
const PATIENCE: Duration = Duration::from_secs(90);

/// When and how much.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// How long nothing must have named a layer, and how long it is remembered that a journal was deleted.
    pub grace: Duration,
    /// Trials and signs of life that are older belong to nobody who still acts.
    pub abandoned: Duration,
    /// Layers that are deleted at a time, so that the store is not taken from others.
    pub layers: usize,
    /// Other objects that are deleted at a time.
    pub deletions: usize,
}

impl Default for Policy {
    fn default() -> Self {
        Self { grace: Duration::from_hours(7 * 24), abandoned: Duration::from_hours(24), layers: 16, deletions: 2000 }
    }
}

/// What the cluster names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// Volumes, whatever store they are in.
    pub volumes: HashSet<VolumeId>,
    /// Layers of these and of all templates.
    pub layers: HashSet<LayerDigest>,
}

/// Who tells what the cluster names.
pub trait Cluster: Sync {
    /// What it names at the time.
    fn named(&self) -> impl Future<Output = Result<Named, GarbageError>> + Send;
}

impl Cluster for Named {
    async fn named(&self) -> Result<Named, GarbageError> {
        Ok(self.clone())
    }
}

/// A layer that nothing names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unnamed {
    /// The layer.
    pub layer: LayerDigest,
    /// Since when, as far as was seen.
    pub since: Timestamp,
}

/// What a store holds, in bytes, beside the journals of volumes that the cluster knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Journals of volumes that it does not know, and that are not marked as deleted.
    pub unknown: u64,
    /// Layers of templates.
    pub layers: u64,
    /// Fences, signs of life, and what trials left.
    pub others: u64,
    /// Layers that nothing names, to be remembered until the next time.
    pub unnamed: Vec<Unnamed>,
}

/// Why a store is not swept; it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum GarbageError {
    /// The store.
    #[error(transparent)]
    Maintain(#[from] MaintainError),
    /// The store.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// What is left of a journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The cluster.
    #[error("it cannot be seen what the cluster names: {0}")]
    Named(String),
}

/// Sweeps a store. `noted` is what the last time found.
///
/// # Errors
/// [`GarbageError`]; nothing that anybody needs is lost.
pub async fn sweep(
    store: &Arc<Store>,
    cluster: &impl Cluster,
    noted: &[Unnamed],
    policy: &Policy,
    now: Timestamp,
) -> Result<Found, GarbageError> {
    let mut found = Found::default();
    // What is listed has an object already, if it ever gets one. So the cluster is asked afterwards.
    let volumes = store.volumes(soon()).await?;
    let layers = store.list(&Prefix::Layers, None, soon()).await?;
    let known = cluster.named().await?;
    let mut all_known = true;
    for volume in volumes {
        let unknown = journal(store, &volume, &known, policy).await?;
        all_known &= unknown.is_none();
        found.unknown += unknown.unwrap_or_default();
    }
    if all_known {
        found.unnamed = note(&layers, &known, noted, now);
    }
    let gone = delete_layers(store, &layers, cluster, &mut found.unnamed, policy, now).await?;
    let left = layers.iter().filter(|entry| !gone.contains(&entry.key));
    found.layers = left.map(|entry| entry.size).sum();
    for store in store.members() {
        found.others += sweep_others(&store, policy).await?;
    }
    Ok(found)
}

fn soon() -> Instant {
    Instant::now() + PATIENCE
}

/// Brings the deletion of a journal to its end if it was marked as deleted. Returns the bytes, as far as they are listed, of one
/// that stays although the cluster does not know it.
async fn journal(
    store: &Arc<Store>,
    volume: &Name,
    known: &Named,
    policy: &Policy,
) -> Result<Option<u64>, GarbageError> {
    let id = VolumeId::parse(volume.as_str()).ok();
    if id.as_ref().is_some_and(|id| known.volumes.contains(id)) {
        return Ok(None);
    }
    if let Some(id) = id {
        let log = Log::new(&id, store.clone())?;
        if let Some(since) = log.finish_purge().await? {
            if is_older(since, store_clock(store).await?, policy.grace) {
                log.forget().await?;
            }
            return Ok(None);
        }
    }
    let all = store.list(&Prefix::Volume(volume.clone()), None, soon()).await?;
    let bytes = all.iter().map(|entry| entry.size).sum();
    tracing::info!(%store, %volume, bytes, "the journal of a volume that the cluster does not know stays");
    Ok(Some(bytes))
}

/// The time by the store's clock, to compare ages of its objects with.
async fn store_clock(store: &Store) -> Result<SystemTime, GarbageError> {
    let key = Key::Probe { proof: Name::random(), number: 0 };
    let content = key.path().into_bytes();
    let digest = *blake3::hash(&content).as_bytes();
    let created = store.create(&key, vivarium_store::Source::Bytes(content.into()), digest, soon()).await;
    let modified = store.modified(&key, soon()).await?;
    store.delete(&key, soon()).await?;
    // What was not created has no time; then nothing counts as old.
    Ok(created.ok().and(modified).unwrap_or(SystemTime::UNIX_EPOCH))
}

fn is_older(time: SystemTime, now: SystemTime, age: Duration) -> bool {
    now.duration_since(time).is_ok_and(|found| found >= age)
}

fn layer_of(key: &Key) -> Option<LayerDigest> {
    match key {
        Key::Layer { digest } | Key::LayerPart { digest, .. } => LayerDigest::from_directory(digest.as_str()),
        _ => None,
    }
}

/// Which of the listed layers nothing names, and since when.
fn note(listed: &[Listed], known: &Named, noted: &[Unnamed], now: Timestamp) -> Vec<Unnamed> {
    let mut unnamed = BTreeMap::new();
    for layer in listed.iter().filter_map(|entry| layer_of(&entry.key)) {
        if !known.layers.contains(&layer) {
            let since = noted.iter().find(|noted| noted.layer == layer).map_or(now, |noted| noted.since.min(now));
            unnamed.insert(layer, since);
        }
    }
    unnamed.into_iter().map(|(layer, since)| Unnamed { layer, since }).collect()
}

/// Deletes layers that nothing has named for long enough, and parts that no layer is made of. Returns what is gone; layers that
/// are gone are taken out of `unnamed`.
async fn delete_layers(
    store: &Arc<Store>,
    listed: &[Listed],
    cluster: &impl Cluster,
    unnamed: &mut Vec<Unnamed>,
    policy: &Policy,
    now: Timestamp,
) -> Result<HashSet<Key>, GarbageError> {
    let is_due = |noted: &&Unnamed| now.duration_since(noted.since).unsigned_abs() >= policy.grace;
    let mut due: HashSet<LayerDigest> =
        unnamed.iter().filter(is_due).take(policy.layers).map(|noted| noted.layer.clone()).collect();
    if !due.is_empty() {
        // What nothing named a moment ago may be in use.
        let known = cluster.named().await?;
        due.retain(|layer| !known.layers.contains(layer));
    }
    let is_due = |key: &Key| layer_of(key).is_some_and(|layer| due.contains(&layer));
    for key in listed.iter().map(|entry| &entry.key).filter(|key| matches!(key, Key::Layer { .. }) && is_due(key)) {
        store.delete(key, soon()).await?;
        tracing::info!(%store, %key, "deleted a template layer that nothing names any more");
    }
    let parts: Vec<Listed> =
        listed.iter().filter(|entry| matches!(entry.key, Key::LayerPart { .. })).cloned().collect();
    let is_past = |layer: &Key, _: &[&Listed]| is_due(layer);
    let swept = store.sweep_parts(&parts, is_past, &mut Used::default(), policy.deletions, soon()).await?;
    unnamed.retain(|noted| !due.contains(&noted.layer));
    Ok(listed.iter().map(|entry| entry.key.clone()).filter(|key| is_due(key)).chain(swept).collect())
}

/// Deletes what trials of one store have left and signs of life that are no longer any. Fences stay. Returns the bytes of what is left.
async fn sweep_others(store: &Store, policy: &Policy) -> Result<u64, GarbageError> {
    let mut all = Vec::new();
    for prefix in [Prefix::Probes, Prefix::AllBeats, Prefix::Fences] {
        all.extend(store.list(&prefix, None, soon()).await?);
    }
    let is_passing = |entry: &&Listed| matches!(entry.key, Key::Probe { .. } | Key::Beat { .. });
    let mut doomed = HashSet::new();
    if all.iter().any(|entry| is_passing(&entry)) {
        let now = store_clock(store).await?;
        let old = all.iter().filter(|entry| is_passing(entry) && is_older(entry.modified, now, policy.abandoned));
        doomed.extend(old.take(policy.deletions).map(|entry| entry.key.clone()));
        store.delete_whole(&doomed.iter().cloned().collect::<Vec<_>>(), soon()).await?;
    }
    Ok(all.iter().filter(|entry| !doomed.contains(&entry.key)).map(|entry| entry.size).sum())
}
