//! The kinds of changes, and how often each comes up.
//!
//! Each case uses a part of the kinds only, chosen by its seed, with weights of its own: rare combinations come up far more
//! often than if every case did a little of everything (swarm testing, Groce et al. 2012).

use crate::rng::Rng;

/// A kind of change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A new file with content.
    Create,
    /// Many small files in a new directory.
    CreateMany,
    /// As editors and package managers do: a new file, written, synced, renamed over the old.
    Replace,
    /// A file without a name, written, then linked.
    LinkUnnamed,
    /// Bytes at the end.
    Append,
    /// Bytes anywhere.
    Overwrite,
    /// Another size.
    Truncate,
    /// `FALLOC_FL_PUNCH_HOLE`.
    Punch,
    /// `FALLOC_FL_COLLAPSE_RANGE`, which btrfs may refuse.
    Collapse,
    /// `FALLOC_FL_ZERO_RANGE`, keeping the size or not.
    ZeroRange,
    /// Room for a part, the size follows.
    Allocate,
    /// Room for a part, the size stays.
    AllocateKeepingSize,
    /// fsync(2), which decides where extents end.
    Sync,
    /// Share data of a file of the tree, or of the same file.
    CloneOwn,
    /// Share data of the template.
    CloneTemplate,
    /// A whole file of the template, then changed: what overlayfs does at the first write.
    CopyUp,
    /// A directory.
    MakeDirectory,
    /// Directories in each other, up to the longest path.
    MakeDeep,
    /// Another name, where nothing was or something else.
    Rename,
    /// Two names change places.
    Exchange,
    /// Rename that leaves a whiteout, as overlayfs does.
    RenameWhiteout,
    /// Three renames that make two names change places.
    Rotate,
    /// One more name.
    Link,
    /// A name less.
    Unlink,
    /// A directory with all that is in it.
    RemoveTree,
    /// Something gone, something of another kind in its place.
    ReplaceKind,
    /// A symbolic link.
    Symlink,
    /// A fifo, socket or device node.
    Special,
    /// A whiteout of overlayfs.
    Whiteout,
    /// An attribute of overlayfs (opaque, redirect, origin).
    OverlayAttribute,
    /// Set an attribute.
    SetAttribute,
    /// Remove an attribute.
    RemoveAttribute,
    /// Set or remove access control lists.
    AccessList,
    /// Set or remove file capabilities.
    Capability,
    /// Have btrfs compress.
    Compress,
    /// Owner.
    Owner,
    /// Mode.
    Mode,
    /// Times.
    Times,
    /// Mode, owner and times of all names, as `chmod -R` does.
    Everything,
    /// Open a file and remove its last name; it lives on.
    OpenUnlinked,
    /// Write to such a file.
    WriteUnlinked,
}

/// Each kind with its usual weight.
const KINDS: [(Change, u64); 41] = [
    (Change::Create, 10),
    (Change::CreateMany, 1),
    (Change::Replace, 4),
    (Change::LinkUnnamed, 1),
    (Change::Append, 6),
    (Change::Overwrite, 8),
    (Change::Truncate, 5),
    (Change::Punch, 5),
    (Change::Collapse, 1),
    (Change::ZeroRange, 3),
    (Change::Allocate, 3),
    (Change::AllocateKeepingSize, 3),
    (Change::Sync, 3),
    (Change::CloneOwn, 5),
    (Change::CloneTemplate, 4),
    (Change::CopyUp, 2),
    (Change::MakeDirectory, 5),
    (Change::MakeDeep, 1),
    (Change::Rename, 8),
    (Change::Exchange, 4),
    (Change::RenameWhiteout, 2),
    (Change::Rotate, 2),
    (Change::Link, 4),
    (Change::Unlink, 4),
    (Change::RemoveTree, 1),
    (Change::ReplaceKind, 3),
    (Change::Symlink, 2),
    (Change::Special, 2),
    (Change::Whiteout, 2),
    (Change::OverlayAttribute, 2),
    (Change::SetAttribute, 3),
    (Change::RemoveAttribute, 2),
    (Change::AccessList, 2),
    (Change::Capability, 2),
    (Change::Compress, 1),
    (Change::Owner, 3),
    (Change::Mode, 3),
    (Change::Times, 3),
    (Change::Everything, 1),
    (Change::OpenUnlinked, 1),
    (Change::WriteUnlinked, 2),
];

/// The kinds that a case uses.
#[derive(Clone, Debug)]
pub struct Mixture {
    weights: Vec<(Change, u64)>,
    total: u64,
    /// Whether names are chosen to be hard to handle.
    pub hostile_names: bool,
}

impl Mixture {
    /// Of a seed.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let mut rng = Rng::new(seed, u64::MAX);
        // One case in four uses everything.
        let share = *rng.pick(&[100, 70, 50, 30]).unwrap_or(&100);
        let mut weights = Vec::new();
        for (kind, usual) in KINDS {
            let always = matches!(kind, Change::Create | Change::MakeDirectory);
            if always || rng.below(100) < share {
                let boost = if rng.once_in(6) { 4 } else { 1 };
                weights.push((kind, usual * boost));
            }
        }
        let total = weights.iter().map(|(_, weight)| weight).sum();
        Self { weights, total, hostile_names: rng.once_in(2) }
    }

    /// One of them.
    pub fn choose(&self, rng: &mut Rng) -> Change {
        let mut at = rng.below(self.total);
        for (kind, weight) in &self.weights {
            match at.checked_sub(*weight) {
                None => return *kind,
                Some(rest) => at = rest,
            }
        }
        Change::Create
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_comes_up_in_some_case() {
        let mut seen = Vec::new();
        for seed in 0..50 {
            let (mixture, mut rng) = (Mixture::of(seed), Rng::new(seed, 1));
            seen.extend((0..200).map(|_| mixture.choose(&mut rng)));
        }
        for (kind, _) in KINDS {
            assert!(seen.contains(&kind), "{kind:?}");
        }
    }
}
