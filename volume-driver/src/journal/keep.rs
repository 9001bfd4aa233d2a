//! Keeping a journal short: a checkpoint now and then, and the end of what only shows states that nobody wants any more.
//!
//! What can be restored: every instant since the newest checkpoint that is older than the retention time. So a store holds
//! of a volume what was written in that time, at most as much again for checkpoints, and one checkpoint more.
//!
//! It is done away from the node that runs the environment, where there is another ([`chosen`]). That saves work and
//! nothing else: two who keep the same journal at once do no harm, because an object is created once and deletions are
//! of objects that neither needs.
//!
//! Order of a collection (ownership protocol, rule 15): a checkpoint is there; the boundary is raised to it; only then
//! something is deleted. A crash at any point leaves objects that nobody needs, which the next collection deletes. Barriers
//! are never deleted, nor is anything from the boundary on: the transaction at the boundary may be the newest there is, and
//! whoever looks for the end of the log begins there.

use std::os::fd::AsFd;
use std::time::{Duration, SystemTime};

use vivarium_fail_point::passed;
use vivarium_journal::Kind;
use vivarium_store::{Key, Listed};
use vivarium_sys::btrfs::{self, SubvolumeInfo};

use super::JournalError;
use super::capture::{Difference, capture};
use super::log::{Log, Position};
use super::restore::{layer_roots, replay};
use crate::ids::{LayerDigest, VolumeId};
use crate::template::TemplateCache;
use crate::volume::Volumes;

/// When a journal is shortened, and by how much.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// A checkpoint is made when so much was added since the last one: whichever of this and half the last checkpoint is
    /// more, so that checkpoints are at most twice what is written.
    pub bytes: u64,
    /// Or when so many transactions were added: each costs a restore some milliseconds.
    pub transactions: u64,
    /// Instants that are younger than this can be restored.
    pub retention: Duration,
    /// Most objects that one collection deletes, so that it does not take the store from others.
    pub deletions: usize,
}

impl Default for Policy {
    fn default() -> Self {
        Self { bytes: 64 << 20, transactions: 1000, retention: Duration::from_hours(7 * 24), deletions: 2000 }
    }
}

/// What lies in the store of a journal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Number and size of each transaction, oldest first.
    transactions: Vec<(u64, u64)>,
    /// Number, size and time of each checkpoint, oldest first.
    checkpoints: Vec<(u64, u64, Option<SystemTime>)>,
    /// Bytes of all objects.
    pub bytes: u64,
    /// Sizes of split objects are those of their lists of parts; these are the parts.
    parts: u64,
}

/// What is to be done about a journal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// A checkpoint is due.
    pub checkpoint: bool,
    /// Transactions and checkpoints before this one are not needed any more.
    pub boundary: Option<u64>,
}

impl Inventory {
    /// Takes stock of what was listed.
    #[must_use]
    pub fn of(listed: &[Listed]) -> Self {
        let mut all = Self::default();
        for entry in listed {
            all.bytes += entry.size;
            match entry.key {
                Key::Transaction { seq, .. } => all.transactions.push((seq, entry.size)),
                Key::Checkpoint { seq, .. } => all.checkpoints.push((seq, entry.size, Some(entry.modified))),
                Key::Part { .. } => all.parts += entry.size,
                _ => {}
            }
        }
        all.transactions.sort_unstable();
        all.checkpoints.sort_unstable_by_key(|(number, ..)| *number);
        all
    }

    /// The newest checkpoint; 0: there is none.
    #[must_use]
    pub fn newest_checkpoint(&self) -> u64 {
        self.checkpoints.last().map_or(0, |(number, ..)| *number)
    }

    /// Decides.
    #[must_use]
    pub fn plan(&self, policy: &Policy, now: SystemTime) -> Plan {
        let newest = self.newest_checkpoint();
        let since = self.transactions.iter().filter(|(number, _)| *number > newest);
        let (count, bytes) = since.fold((0, 0), |(count, bytes), (_, size)| (count + 1, bytes + size));
        // Parts are of large transactions or of a large checkpoint, and cannot be told apart here.
        let half = self.checkpoints.last().map_or(0, |(_, size, _)| size.max(&self.parts) / 2);
        let is_old = |time: &Option<SystemTime>| {
            time.is_some_and(|time| now.duration_since(time).is_ok_and(|age| age >= policy.retention))
        };
        let old = self.checkpoints.iter().rev().find(|(.., time)| is_old(time));
        Plan {
            checkpoint: count >= policy.transactions || bytes >= policy.bytes.max(half),
            boundary: old.map(|(number, ..)| *number),
        }
    }

    /// Keys of what a boundary makes superfluous, oldest first. Barriers are among them.
    fn below(listed: &[Listed], boundary: u64) -> Vec<&Key> {
        let is_below = |key: &Key| match key {
            Key::Transaction { seq, .. } | Key::Checkpoint { seq, .. } => *seq < boundary,
            _ => false,
        };
        listed.iter().map(|entry| &entry.key).filter(|key| is_below(key)).collect()
    }
}

/// Whether a node is the one that keeps a journal: of the nodes that can, but not the one that runs the environment, always
/// the same, and another one for another volume.
#[must_use]
pub fn chosen(me: &str, volume: &VolumeId, nodes: &[String], holder: Option<&str>) -> bool {
    let weight = |node: &str| *blake3::hash(format!("{volume}/{node}").as_bytes()).as_bytes();
    let others = nodes.iter().filter(|node| Some(node.as_str()) != holder);
    // The only node there is has to do it itself.
    others.map(String::as_str).max_by_key(|node| weight(node)).or(holder) == Some(me)
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

/// Keeps one journal: a checkpoint if one is due, then a collection if something is old enough. `known` is a transaction
/// that was in the log for certain.
///
/// # Errors
/// [`JournalError`]; it can be called again, and nothing that anybody needs is lost.
pub async fn keep(
    volumes: &Volumes,
    templates: &TemplateCache,
    log: &Log,
    volume: &VolumeId,
    layers: &[LayerDigest],
    known: u64,
    policy: &Policy,
) -> Result<Kept, JournalError> {
    let mut listed = log.list_all().await?;
    if Inventory::of(&listed).plan(policy, SystemTime::now()).checkpoint {
        let tail = log.tail(known).await?;
        if make_checkpoint(volumes, templates, log, volume, layers, tail).await? {
            listed = log.list_all().await?;
        }
    }
    let inventory = Inventory::of(&listed);
    let mut kept = Kept { checkpoint: inventory.newest_checkpoint(), bytes: inventory.bytes, ..Kept::default() };
    let mut found = log.boundary().await?;
    if let Some(wanted) = inventory.plan(policy, SystemTime::now()).boundary.filter(|wanted| *wanted > found.sequence) {
        // Whoever was faster raised it to something that is as good.
        log.raise_boundary(found, wanted).await?;
        passed("boundary-raised");
        found = log.boundary().await?;
    }
    kept.boundary = found.sequence;
    for key in Inventory::below(&listed, found.sequence) {
        if kept.deleted >= policy.deletions {
            break;
        }
        if let Key::Transaction { seq, .. } = key
            && log.kind(*seq).await? == Some(Kind::Barrier)
        {
            continue;
        }
        log.delete(key).await?;
        passed("object-deleted");
        kept.deleted += 1;
    }
    Ok(kept)
}

/// Makes a checkpoint of the state after `tail`. `false`: there is no tree yet.
async fn make_checkpoint(
    volumes: &Volumes,
    templates: &TemplateCache,
    log: &Log,
    volume: &VolumeId,
    layers: &[LayerDigest],
    tail: Position,
) -> Result<bool, JournalError> {
    let roots = layer_roots(templates, volume, layers)?;
    let infos = roots.iter().map(|root| btrfs::subvolume_info(root.as_fd())).collect::<Result<Vec<_>, _>>();
    let infos =
        infos.map_err(|source| JournalError::Io { attempt: "identify a layer", volume: volume.clone(), source })?;
    let named: Vec<(LayerDigest, SubvolumeInfo)> = layers.iter().cloned().zip(infos.iter().copied()).collect();
    let mut header = super::commit::header(volume, Kind::Checkpoint, tail.epoch, tail, &named);
    (header.first, header.sequence) = (0, tail.sequence);
    let io = |attempt| {
        let volume = volume.clone();
        move |source| JournalError::Io { attempt, volume, source }
    };
    let file = tempfile::NamedTempFile::new_in(volumes.pool().path()).map_err(io("make a checkpoint"))?;
    let to = file.reopen().map_err(io("make a checkpoint"))?;
    let (made, id) = (volumes.clone(), volume.clone());
    let (sender, receiver) = std::sync::mpsc::channel();
    let replayed = replay(volumes, volume, log, tail, roots, move |fill| {
        made.scratch(&id, |live| {
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
    log.add_checkpoint(tail.sequence, file.path(), summary.length, summary.content).await?;
    passed("checkpoint-in-store");
    tracing::info!(%volume, sequence = tail.sequence, bytes = summary.length, "made a checkpoint");
    Ok(true)
}

#[cfg(test)]
mod tests {
    use vivarium_store::Name;

    use super::*;

    const DAY: Duration = Duration::from_hours(24);

    fn listed(now: SystemTime, transactions: &[(u64, u64)], checkpoints: &[(u64, u64, u32)]) -> Vec<Listed> {
        let volume = Name::new("v").unwrap();
        let mut all: Vec<_> = transactions
            .iter()
            .map(|(seq, size)| Listed {
                key: Key::Transaction { volume: volume.clone(), seq: *seq },
                size: *size,
                modified: now,
            })
            .collect();
        all.extend(checkpoints.iter().map(|(seq, size, days)| Listed {
            key: Key::Checkpoint { volume: volume.clone(), seq: *seq },
            size: *size,
            modified: now - DAY * *days,
        }));
        all
    }

    #[test]
    fn a_checkpoint_is_due_by_count_or_by_what_was_written() {
        let policy = Policy { bytes: 100, transactions: 5, ..Policy::default() };
        let now = SystemTime::now();
        for (transactions, checkpoints, due) in [
            (&[(1, 10)][..], &[][..], false),
            (&[(1, 99)], &[], false),
            (&[(1, 60), (2, 40)], &[], true),
            (&[(1, 1), (2, 1), (3, 1), (4, 1), (5, 1)], &[], true),
            (&[(1, 60), (2, 40)], &[(1, 10, 0)], false),
            (&[(1, 60), (2, 140)], &[(1, 10, 0)], true),
            (&[(1, 60), (2, 140)], &[(1, 300, 0)], false),
            (&[(1, 60), (2, 150)], &[(1, 300, 0)], true),
        ] {
            let plan = Inventory::of(&listed(now, transactions, checkpoints)).plan(&policy, now);
            assert_eq!(plan.checkpoint, due, "{transactions:?} {checkpoints:?}");
        }
    }

    #[test]
    fn what_is_younger_than_the_retention_stays() {
        let (policy, now) = (Policy::default(), SystemTime::now());
        for (checkpoints, boundary) in [
            (&[][..], None),
            (&[(5, 1, 6)][..], None),
            (&[(5, 1, 7)], Some(5)),
            (&[(5, 1, 9), (8, 1, 7), (11, 1, 6)], Some(8)),
        ] {
            let all = listed(now, &[(4, 1), (5, 1), (8, 1), (9, 1)], checkpoints);
            let plan = Inventory::of(&all).plan(&policy, now);
            assert_eq!(plan.boundary, boundary, "{checkpoints:?}");
        }
        let all = listed(now, &[(4, 1), (8, 1), (9, 1)], &[(5, 1, 9), (8, 1, 7), (11, 1, 6)]);
        let below: Vec<String> = Inventory::below(&all, 8).into_iter().map(Key::path).collect();
        let name = |kind: &str, number: u64| format!("volumes/v/{kind}/{number:020}");
        assert_eq!(below, [name("log", 4), name("checkpoint", 5)]);
    }

    #[test]
    fn one_node_keeps_a_journal_and_not_the_one_that_runs_the_environment() {
        let volume = |number: u32| VolumeId::parse(&format!("v{number}")).unwrap();
        let nodes = ["n1", "n2", "n3"].map(str::to_owned);
        let mut work = std::collections::BTreeMap::<&str, u32>::new();
        for number in 0..300 {
            let who: Vec<_> = nodes.iter().filter(|node| chosen(node, &volume(number), &nodes, Some("n2"))).collect();
            assert_eq!(who.len(), 1);
            assert_ne!(who[0], "n2");
            *work.entry(who[0]).or_default() += 1;
        }
        assert!(work.values().all(|count| *count > 100), "{work:?}");
        assert!(chosen("n1", &volume(1), &["n1".to_owned()], Some("n1")), "there is no other");
    }
}
