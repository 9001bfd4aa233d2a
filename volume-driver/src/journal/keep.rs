//! Keeping a journal short: transactions become merged ones ([`super::pieces`]), a checkpoint is made now and then, and what
//! only shows states that nobody wants any more goes. What is wanted is decided by [`Inventory`].
//!
//! What can be restored: states since the newest checkpoint that is older than the retention time, the coarser the older
//! they are. So a store holds of a volume what was written in that time, at most three times as much again in merged
//! transactions, as much again in checkpoints, and one checkpoint more.
//!
//! It is done away from the node that runs the environment, where there is another ([`chosen`]). That saves work and
//! nothing else: two who keep the same journal at once do no harm, because an object is created once and deletions are
//! of objects that neither needs.
//!
//! Order of a collection (ownership protocol, rule 15): a checkpoint is there, read back and found whole; the boundary is
//! raised to it; only then something is deleted. A merged transaction is there and was read back before what lies in it is
//! deleted. A crash at any point leaves objects that nobody needs, which the next collection deletes. Barriers are never
//! deleted, nor the transaction at the boundary: it may be the newest there is, and whoever looks for the end of the log
//! begins there. Behind it, he finds the end by the milestones ([`super::pieces::MILESTONE`]), which stay too.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, SystemTime};

use futures::{StreamExt, TryStreamExt};
use tokio::time::Instant;
use vivarium_fail_point::passed;
use vivarium_journal::Kind;
use vivarium_store::{Key, Listed, Used};
use vivarium_sys::btrfs::{self, SubvolumeInfo};

use super::JournalError;
use super::capture::{Difference, capture};
pub use super::inventory::Policy;
use super::inventory::{Doomed, Inventory, Object, may_be_split};
use super::log::{Appended, Boundary, Log, Position, Unnamed};
use super::merge::{is_sound, merge_some};
use super::pieces::Piece;
use super::restore::{layer_roots, replay};
use super::wanted::Wanted;
use crate::ids::{LayerDigest, VolumeId};
use crate::template::TemplateCache;
use crate::volume::Volumes;

/// How often everything is listed. In between what was added to the log is enough: only whoever keeps a journal adds
/// anything else.
const LIST_AGAIN: Duration = Duration::from_hours(1);
/// Questions to the store at the same time.
const AT_ONCE: usize = 16;

/// Whether a node is the one that looks after something, for example the journal of a volume: of the nodes that can, but not
/// the one that runs the environment, always the same, and another one for something else.
#[must_use]
pub fn chosen(me: &str, what: impl std::fmt::Display, nodes: &[String], holder: Option<&str>) -> bool {
    let weight = |node: &str| *blake3::hash(format!("{what}/{node}").as_bytes()).as_bytes();
    let others = nodes.iter().filter(|node| Some(node.as_str()) != holder);
    // The only node there is has to do it itself.
    others.map(String::as_str).max_by_key(|node| weight(node)).or(holder) == Some(me)
}

/// A volume whose journal is kept.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The volume.
    pub volume: VolumeId,
    /// Layers of its template, lowest first.
    pub layers: Vec<LayerDigest>,
    /// Its size in bytes.
    pub size: u64,
    /// Bytes in use, as far as is known; so many must be free in the pool for a checkpoint.
    pub room: u64,
    /// A transaction that was in the log for certain; 0: none.
    pub known: u64,
    /// States that somebody waits for: they stay, whatever their age. One that cannot be had any more is of no account.
    pub wanted: Vec<Wanted>,
}

/// What is remembered of a journal from one time to the next. It spares requests; nothing is lost with it.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// What lies in the store, and when it was listed as a whole. Gone after an error.
    inventory: Option<(Inventory, Instant)>,
    /// The boundary at that time, or what it was raised to since.
    pub(super) boundary: Boundary,
    /// Checkpoints that were read back and are whole.
    sound: BTreeSet<u64>,
    /// Those that are not: they count as absent.
    damaged: BTreeSet<u64>,
    /// The newest checkpoint, and how many bytes it holds.
    held: Option<(u64, u64)>,
    /// Merged transactions that were made here or read back.
    pub(super) sound_merged: BTreeSet<Piece>,
    /// Those that cannot be made, or are damaged: they count as absent.
    pub(super) unfit: BTreeSet<Piece>,
    /// Barriers, which stay.
    pub(super) barriers: BTreeSet<u64>,
    /// Transactions that are none.
    pub(super) deltas: BTreeSet<u64>,
    /// Parts of split objects that were listed and not looked at yet.
    parts: Vec<Listed>,
    /// Parts that something is made of.
    used: Used,
}

/// What was done about a journal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// The newest checkpoint; 0: none.
    pub checkpoint: u64,
    /// The oldest state that can be restored is that after this transaction; 0: everything.
    pub boundary: u64,
    /// Bytes of all objects of the volume.
    pub bytes: u64,
    /// Objects that were deleted.
    pub deleted: usize,
}

/// Keeps one journal: merges transactions, makes a checkpoint if one is due, then collects what is old enough.
///
/// # Errors
/// [`JournalError`]; it can be called again, and nothing that anybody needs is lost.
pub async fn keep(
    volumes: &Volumes,
    templates: &TemplateCache,
    log: &Log,
    subject: &Subject,
    memory: &mut Memory,
    policy: &Policy,
) -> Result<Kept, JournalError> {
    let directory = volumes.pool().path();
    let mut stays = states(log, subject).await?;
    let (mut inventory, listed) = take_stock(log, memory).await?;
    // For those before it nobody needs to wait any more.
    stays.retain(|state| *state >= memory.boundary.sequence);
    merge_some(log, &mut inventory, memory, policy, directory).await?;
    let mut boundary = sound_boundary(log, &mut inventory, memory, policy, &stays, directory).await?;
    if inventory.plan(policy, &stays, held(log, &inventory, memory).await?, SystemTime::now()).checkpoint {
        let tail = log.tail(subject.known.max(inventory.head())).await?;
        if make_checkpoint(volumes, templates, log, subject, tail).await? {
            inventory = Inventory::of(&log.list_all().await?);
            boundary = sound_boundary(log, &mut inventory, memory, policy, &stays, directory).await?;
        }
    }
    if let Some(boundary) = boundary {
        // Whoever was faster raised it to something that is as good.
        log.raise_boundary(memory.boundary, boundary).await?;
        passed("boundary-raised");
        memory.boundary = log.boundary().await?;
    }
    let swept = sweep(log, &mut inventory, memory, policy).await?;
    let deleted = swept + collect(log, &mut inventory, memory, policy, &stays, directory).await?;
    let kept = Kept {
        checkpoint: inventory.newest_checkpoint(),
        boundary: memory.boundary.sequence,
        bytes: inventory.bytes(),
        deleted,
    };
    memory.inventory = Some((inventory, listed));
    Ok(kept)
}

/// The states that somebody waits for, as far as they can be had, by the transactions that they are after.
async fn states(log: &Log, subject: &Subject) -> Result<BTreeSet<u64>, JournalError> {
    let mut states = BTreeSet::new();
    for wanted in &subject.wanted {
        match wanted {
            Wanted::Sequence(sequence) => states.extend(Some(*sequence)),
            // The answer stays the same as the log grows, and while that state stays, as it is merged.
            Wanted::Time(_) => states.extend(wanted.find(log, subject.known).await?.ok().map(|m| m.position.sequence)),
        }
    }
    Ok(states)
}

/// What lies in the store: what is remembered and what was added to the log since; now and then, all that is listed.
async fn take_stock(log: &Log, memory: &mut Memory) -> Result<(Inventory, Instant), JournalError> {
    if let Some((mut inventory, listed)) = memory.inventory.take().filter(|(_, listed)| listed.elapsed() < LIST_AGAIN) {
        let news = log.list_after(inventory.head()).await?;
        // Of a transaction in parts it has to be known how much they hold.
        if !news.iter().any(|entry| may_be_split(entry.size)) {
            for entry in &news {
                inventory.add(entry);
            }
            return Ok((inventory, listed));
        }
    }
    // Somebody else who kept it may have died between a store and its mirror.
    log.mend(0).await?;
    memory.boundary = log.boundary().await?;
    let mut listed = log.list_all().await?;
    let mut inventory = Inventory::of(&listed);
    listed.retain(|entry| matches!(entry.key, Key::Part { .. }));
    memory.parts = listed;
    inventory.merged.retain(|piece, _| !memory.unfit.contains(piece));
    Ok((inventory, Instant::now()))
}

/// How many bytes the newest checkpoint holds, which its size does not say if it is split.
async fn held(log: &Log, inventory: &Inventory, memory: &mut Memory) -> Result<Option<u64>, JournalError> {
    let newest = inventory.newest_checkpoint();
    let Some(entry) = inventory.checkpoints.get(&newest).filter(|entry| may_be_split(entry.size)) else {
        return Ok(None);
    };
    if let Some((_, length)) = memory.held.filter(|(number, _)| *number == newest) {
        return Ok(Some(length));
    }
    let length = log.length(&Object::Checkpoint(newest).key(log.name())).await?.unwrap_or(entry.size);
    memory.held = Some((newest, length));
    Ok(Some(length))
}

/// The boundary that is planned, if that is a new one: its checkpoint was read back, and all is there that leads on from it,
/// since everything before it is about to go. Checkpoints that are of no use are taken out of the inventory.
async fn sound_boundary(
    log: &Log,
    inventory: &mut Inventory,
    memory: &mut Memory,
    policy: &Policy,
    stays: &BTreeSet<u64>,
    directory: &Path,
) -> Result<Option<u64>, JournalError> {
    loop {
        inventory.checkpoints.retain(|number, _| !memory.damaged.contains(number));
        let planned = inventory.plan(policy, stays, None, SystemTime::now()).boundary;
        let Some(wanted) = planned.filter(|wanted| *wanted > memory.boundary.sequence) else { return Ok(None) };
        if !inventory.leads(wanted, inventory.head()) {
            tracing::warn!(volume = %log.volume(), checkpoint = wanted, "not all is listed that leads on from a checkpoint: what is before it stays");
            inventory.checkpoints.remove(&wanted);
            continue;
        }
        if memory.sound.contains(&wanted) {
            return Ok(Some(wanted));
        }
        match log.fetch_checkpoint(wanted, directory).await {
            Ok(_) => drop(memory.sound.insert(wanted)),
            Err(error @ JournalError::Store { .. }) => return Err(error),
            Err(error) => {
                tracing::error!(%error, "a checkpoint is damaged: what is before it stays");
                memory.damaged.insert(wanted);
            }
        }
    }
}

/// Deletes parts of split objects to which nothing refers; tells how many. Each time that everything was listed.
///
/// An object before the boundary that is not there may still come, if somebody has sent it long ago, and lack the parts that go
/// here. Nobody reads it but whoever deletes it again ([`find_barriers`]).
async fn sweep(
    log: &Log,
    inventory: &mut Inventory,
    memory: &mut Memory,
    policy: &Policy,
) -> Result<usize, JournalError> {
    let boundary = memory.boundary.sequence;
    let is_past = |object: &Key| match object {
        Key::Transaction { seq, .. } | Key::Checkpoint { seq, .. } => *seq < boundary,
        _ => false,
    };
    let parts = std::mem::take(&mut memory.parts);
    let swept = log.sweep_parts(&parts, is_past, &mut memory.used, policy.deletions).await?;
    for part in &swept {
        inventory.remove_part(part);
    }
    if !swept.is_empty() {
        tracing::info!(volume = %log.volume(), parts = swept.len(), "deleted parts of objects that never were, or are gone");
    }
    Ok(swept.len())
}

/// Deletes what nobody needs any more; tells how much that was.
async fn collect(
    log: &Log,
    inventory: &mut Inventory,
    memory: &mut Memory,
    policy: &Policy,
    stays: &BTreeSet<u64>,
    directory: &Path,
) -> Result<usize, JournalError> {
    let mut doomed = Vec::new();
    for object in inventory.superfluous(policy, stays, memory.boundary.sequence, SystemTime::now()) {
        if doomed.len() >= policy.deletions {
            break;
        }
        match object {
            Doomed::Old(object) => doomed.push(object),
            // What takes its place was read back before, or is now.
            Doomed::Merged(_, whole) if memory.unfit.contains(&whole) => {}
            Doomed::Merged(object, whole) => {
                if memory.sound_merged.contains(&whole) || is_sound(log, whole, directory).await? {
                    memory.sound_merged.insert(whole);
                    doomed.push(object);
                } else {
                    memory.unfit.insert(whole);
                    inventory.merged.remove(&whole);
                }
            }
        }
    }
    find_barriers(log, inventory, &doomed, memory).await?;
    doomed.retain(|object| !matches!(object, Object::Transaction(number) if memory.barriers.contains(number)));
    let mut whole = Vec::new();
    for object in &doomed {
        let key = object.key(log.name());
        if inventory.entry(*object).is_some_and(|entry| may_be_split(entry.size)) {
            memory.used.forget(&key);
            log.delete(&key).await?;
        } else {
            whole.push(key);
        }
    }
    log.delete_whole(&whole).await?;
    passed("objects-deleted");
    for object in &doomed {
        inventory.remove(*object);
        if let Object::Transaction(number) = object {
            memory.deltas.remove(number);
        }
    }
    Ok(doomed.len())
}

/// Finds out which of these transactions are barriers. One that is split is none, whether its parts are there or not.
async fn find_barriers(
    log: &Log,
    inventory: &Inventory,
    doomed: &[Object],
    memory: &mut Memory,
) -> Result<(), JournalError> {
    let unknown = doomed.iter().filter_map(|object| match object {
        Object::Transaction(number) if !memory.barriers.contains(number) && !memory.deltas.contains(number) => {
            Some(*number)
        }
        _ => None,
    });
    let kind = async |number| {
        let object = Object::Transaction(number);
        if inventory.entry(object).is_some_and(|entry| may_be_split(entry.size))
            && log.is_split(&object.key(log.name())).await?
        {
            return Ok((number, Some(Kind::Delta)));
        }
        Ok::<_, JournalError>((number, log.kind(number).await?))
    };
    let asked: Vec<_> = unknown.map(kind).collect();
    let kinds: Vec<_> = futures::stream::iter(asked).buffer_unordered(AT_ONCE).try_collect::<Vec<_>>().await?;
    memory.barriers.extend(kinds.iter().filter(|(_, kind)| *kind == Some(Kind::Barrier)).map(|(number, _)| *number));
    Ok(())
}

/// Makes a checkpoint of the state after `tail`. `false`: there is no tree yet, or one of it is there already.
async fn make_checkpoint(
    volumes: &Volumes,
    templates: &TemplateCache,
    log: &Log,
    subject: &Subject,
    tail: Position,
) -> Result<bool, JournalError> {
    let Subject { volume, layers, size, room, .. } = subject;
    let roots = layer_roots(templates, volume, layers)?;
    let infos = roots.iter().map(|root| btrfs::subvolume_info(root.as_fd())).collect::<Result<Vec<_>, _>>();
    let infos =
        infos.map_err(|source| JournalError::Io { attempt: "identify a layer", volume: volume.clone(), source })?;
    let named: Vec<(LayerDigest, SubvolumeInfo)> = layers.iter().cloned().zip(infos.iter().copied()).collect();
    let header = super::commit::checkpoint_header(volume, tail, &named);
    let io = |attempt| {
        let volume = volume.clone();
        move |source| JournalError::Io { attempt, volume, source }
    };
    let file = Unnamed::new(volumes.pool().path()).map_err(io("make a checkpoint"))?;
    let to = file.file.try_clone().map_err(io("make a checkpoint"))?;
    let (made, id, size, room) = (volumes.clone(), volume.clone(), *size, *room);
    let (sender, receiver) = std::sync::mpsc::channel();
    let replayed = replay(volumes, volume, log, tail, roots, move |fill| {
        made.scratch(&id, size, room, |live| {
            fill(live)?;
            let io = |attempt| {
                let volume = id.clone();
                move |source| JournalError::Io { attempt, volume, source }
            };
            btrfs::set_read_only(live.as_fd(), true).map_err(io("close the copy"))?;
            let info = btrfs::subvolume_info(live.as_fd()).map_err(io("identify the copy"))?;
            let difference = Difference { snapshot: live.as_fd(), info, base: None, layers: &infos };
            let captured = capture(&difference, &header, &to);
            let captured = captured.map_err(|source| JournalError::Capture { volume: id.clone(), source })?;
            // The receiver waits for this closure.
            let _ = sender.send(captured);
            Ok(())
        })
    });
    let replayed = replayed.await?;
    passed("checkpoint-written");
    let Some(summary) = receiver.try_recv().ok().flatten().filter(|_| !replayed.empty) else { return Ok(false) };
    let added = log.add_checkpoint(tail.sequence, &file.path(), summary.length, summary.content).await?;
    passed("checkpoint-in-store");
    tracing::info!(%volume, sequence = tail.sequence, bytes = summary.length, ?added, "made a checkpoint");
    Ok(added == Appended::Yes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_node_keeps_a_journal_and_not_the_one_that_runs_the_environment() {
        let volume = |number: u32| VolumeId::parse(&format!("v{number}")).unwrap();
        let nodes = ["n1", "n2", "n3"].map(str::to_owned);
        let mut work = std::collections::BTreeMap::<&str, u32>::new();
        for number in 0..300 {
            let who: Vec<_> = nodes.iter().filter(|node| chosen(node, volume(number), &nodes, Some("n2"))).collect();
            assert_eq!(who.len(), 1);
            assert_ne!(who[0], "n2");
            *work.entry(who[0]).or_default() += 1;
        }
        assert!(work.values().all(|count| *count > 100), "{work:?}");
        assert!(chosen("n1", volume(1), &["n1".to_owned()], Some("n1")), "there is no other");
    }
}
