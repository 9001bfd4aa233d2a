//! Which names a transaction touches, under the names that they have at its end.
//!
//! The kernel renames directories around while it sends, so the names in its stream are those of a moment. This follows
//! them in a tree of the touched names alone: a rename moves a branch.

use std::collections::{BTreeMap, btree_map};
use std::iter::Peekable;

use crate::op::{Op, Range};
use crate::path::{MAX_PATH, TreePath};

/// What happened to a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct What(u8);

impl What {
    /// It was made, or what has it now was put there (new file, link, rename).
    pub const MADE: Self = Self(1);
    /// It is gone, or something else has it now.
    pub const REMOVED: Self = Self(2);
    /// Data, size or layout changed.
    pub const CONTENT: Self = Self(4);
    /// Owner, mode, times or attributes changed.
    pub const METADATA: Self = Self(8);
    /// All of them.
    const ALL: u8 = 15;

    /// As a number; 0 is nothing.
    #[must_use]
    pub fn bits(self) -> u8 {
        self.0
    }

    /// From a number; `None` if it is none.
    #[must_use]
    pub fn from_bits(bits: u8) -> Option<Self> {
        (bits != 0 && bits & !Self::ALL == 0).then_some(Self(bits))
    }

    /// Whether all of `other` happened.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    fn add(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// One touched name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change<'a> {
    /// Its path.
    pub path: &'a [u8],
    /// What happened to it.
    pub what: What,
    /// Parts that were sent as zeros, or shared with such: holes or data, which the stream does not tell apart. In order,
    /// none overlaps another.
    pub zeros: &'a [Range],
    /// Parts that were shared with others: where those hold no data, what is there is not said. In order as `zeros`.
    pub cloned: &'a [Range],
}

/// Touched names, sorted by path.
#[derive(Clone, Copy, Debug)]
pub struct Changes<'a>(&'a Node);

impl Changes<'_> {
    /// Gives each to `visit`, in order, until that fails. There can be millions, so none is copied.
    pub fn each<E>(&self, mut visit: impl FnMut(Change<'_>) -> Result<(), E>) -> Result<(), E> {
        let mut path = Vec::new();
        tell(self.0, &path, &mut visit)?;
        below(self.0, &mut path, &mut visit)
    }
}

/// Small: a tenant can touch millions of names, and most have neither parts nor names below.
#[derive(Debug, Default)]
struct Node {
    what: What,
    parts: Option<Box<Parts>>,
    #[allow(clippy::box_collection, reason = "an empty one would still have three words in each of millions")]
    children: Option<Box<BTreeMap<Box<[u8]>, Node>>>,
}

#[derive(Debug, Default)]
struct Parts {
    zeros: Vec<Range>,
    cloned: Vec<Range>,
}

impl Node {
    fn parts(&mut self) -> &mut Parts {
        self.parts.get_or_insert_default()
    }
}

/// One node after the other: a tenant moves long branches below each other as often as he likes, and the stack is short.
impl Drop for Node {
    fn drop(&mut self) {
        let mut pending = vec![self.children.take()];
        while let Some(children) = pending.pop() {
            pending.extend(children.into_iter().flat_map(|c| c.into_values()).map(|mut child| child.children.take()));
        }
    }
}

/// The tree of touched names.
#[derive(Debug, Default)]
pub struct Touched {
    root: Node,
}

impl Touched {
    /// What an operation does.
    pub fn note(&mut self, op: &Op<'_>) {
        match *op {
            Op::MakeFile(path)
            | Op::MakeDirectory(path)
            | Op::MakeFifo(path)
            | Op::MakeSocket(path)
            | Op::MakeSymlink { path, .. }
            | Op::MakeDevice { path, .. }
            | Op::Link { path, .. } => self.touch(path, What::MADE),
            Op::Rename { from, to } => self.rename(from, to),
            Op::Unlink(path) | Op::RemoveDirectory(path) => self.remove(path),
            Op::Hole { path, range } => self.zeroed(path, range),
            Op::CloneOwn { path, offset, from, range } => self.cloned_own(path, offset, from, range),
            Op::CloneTemplate { path, offset, range, .. } => {
                self.cloned(path, Range { offset, length: range.length });
            }
            Op::Write { path, .. } | Op::Preallocate { path, .. } | Op::Truncate { path, .. } => {
                self.touch(path, What::CONTENT);
            }
            Op::SetXattr { path, .. }
            | Op::RemoveXattr { path, .. }
            | Op::Owner { path, .. }
            | Op::Mode { path, .. }
            | Op::Times { path, .. } => self.touch(path, What::METADATA),
        }
    }

    /// Something happened to what has this name now.
    pub fn touch(&mut self, path: TreePath<'_>, what: What) {
        self.node(path).what.add(what);
    }

    /// A part of the file of this name was sent as zeros.
    pub fn zeroed(&mut self, path: TreePath<'_>, range: Range) {
        let node = self.node(path);
        node.what.add(What::CONTENT);
        insert(&mut node.parts().zeros, range);
    }

    /// A part of the file of this name now shares its data with something outside.
    pub fn cloned(&mut self, path: TreePath<'_>, range: Range) {
        let node = self.node(path);
        node.what.add(What::CONTENT);
        insert(&mut node.parts().cloned, range);
    }

    /// A part of the file of this name, at `offset`, now shares its data with a part of another, or the same, file.
    pub fn cloned_own(&mut self, path: TreePath<'_>, offset: u64, from: TreePath<'_>, range: Range) {
        let end = range.offset.saturating_add(range.length);
        let zeros = &self.node(from).parts().zeros;
        let first = zeros.partition_point(|zeros| zeros.offset + zeros.length <= range.offset);
        let inherited: Vec<Range> = zeros[first..]
            .iter()
            .take_while(|zeros| zeros.offset < end)
            .map(|zeros| {
                let start = zeros.offset.max(range.offset);
                let length = (zeros.offset + zeros.length).min(end) - start;
                Range { offset: offset + (start - range.offset), length }
            })
            .collect();
        self.cloned(path, Range { offset, length: range.length });
        let node = self.node(path);
        for range in inherited {
            insert(&mut node.parts().zeros, range);
        }
    }

    /// The name is gone, and with it what was below.
    pub fn remove(&mut self, path: TreePath<'_>) {
        let node = self.node(path);
        // What was made in the same transaction and is gone again has left no trace.
        let trace = !node.what.contains(What::MADE) || node.what.contains(What::REMOVED);
        *node = Node::default();
        node.what = if trace { What::REMOVED } else { What::default() };
    }

    /// What had the one name has the other now; what had the other is gone.
    pub fn rename(&mut self, from: TreePath<'_>, to: TreePath<'_>) {
        let node = self.node(from);
        let made = node.what.contains(What::MADE);
        let gone = node.what.contains(What::REMOVED) || !made;
        let mut moved = std::mem::take(node);
        node.what = if gone { What::REMOVED } else { What::default() };
        let target = self.node(to);
        let replaced = target.what;
        moved.what.0 &= !What::REMOVED.0;
        moved.what.add(What::MADE);
        if replaced.contains(What::REMOVED) || (replaced.bits() != 0 && !replaced.contains(What::MADE)) {
            moved.what.add(What::REMOVED);
        }
        *target = moved;
    }

    /// The touched names in order, those left out that only lead to others, and those with paths that are too long to
    /// be said ([`MAX_PATH`]).
    #[must_use]
    pub fn changes(&self) -> Changes<'_> {
        Changes(&self.root)
    }

    fn node(&mut self, path: TreePath<'_>) -> &mut Node {
        let mut node = &mut self.root;
        for name in path.components() {
            node = node.children.get_or_insert_default().entry(name.into()).or_default();
        }
        node
    }
}

/// Adds a range to others that are in order and do not overlap, so that this stays so. Most come in order.
fn insert(ranges: &mut Vec<Range>, new: Range) {
    let end = new.offset.saturating_add(new.length);
    let first = match ranges.last() {
        Some(last) if last.offset + last.length < new.offset => ranges.len(),
        None => 0,
        _ => ranges.partition_point(|range| range.offset + range.length < new.offset),
    };
    let behind = first + ranges[first..].partition_point(|range| range.offset <= end);
    let merged = ranges[first..behind]
        .iter()
        .fold((new.offset, end), |(start, end), range| (start.min(range.offset), end.max(range.offset + range.length)));
    ranges.splice(first..behind, [Range { offset: merged.0, length: merged.1 - merged.0 }]);
}

fn tell<E>(node: &Node, path: &[u8], visit: &mut impl FnMut(Change<'_>) -> Result<(), E>) -> Result<(), E> {
    if node.what.bits() == 0 {
        return Ok(());
    }
    let (zeros, cloned) = node.parts.as_ref().map_or((&[][..], &[][..]), |parts| (&parts.zeros, &parts.cloned));
    visit(Change { path, what: node.what, zeros, cloned })
}

/// What is below a name, sorted by the bytes of whole paths: between `a` and `a/b` there is `a-c`. With a list of its own
/// instead of the stack, which is short, and a tenant makes directories as deep as a path allows.
fn below<E>(node: &Node, path: &mut Vec<u8>, visit: &mut impl FnMut(Change<'_>) -> Result<(), E>) -> Result<(), E> {
    let mut levels = Vec::from_iter(Level::below(node, path.len()));
    while let Some(level) = levels.last_mut() {
        path.truncate(level.length);
        let next = level.children.peek();
        if let Some(&(before, node)) = level.open.last()
            && next.and_then(|(name, _)| name.strip_prefix(before)).is_none_or(|rest| rest > &b"/"[..])
        {
            level.open.pop();
            join(path, before);
            levels.extend(Level::below(node, path.len()));
        } else if let Some((name, child)) = level.children.next() {
            join(path, name);
            if path.len() <= MAX_PATH {
                tell(child, path, visit)?;
                level.open.push((name, child));
            }
        } else {
            levels.pop();
        }
    }
    Ok(())
}

/// The names in one directory that are being told.
struct Level<'a> {
    /// Those to come.
    children: Peekable<btree_map::Iter<'a, Box<[u8]>, Node>>,
    /// Those that were told, and what is below them was not: each begins with the one before it.
    open: Vec<(&'a [u8], &'a Node)>,
    /// Of the path of the directory.
    length: usize,
}

impl<'a> Level<'a> {
    /// `None` if nothing is below.
    fn below(node: &'a Node, length: usize) -> Option<Self> {
        let children = node.children.as_ref()?.iter().peekable();
        Some(Self { children, open: Vec::new(), length })
    }
}

fn join(path: &mut Vec<u8>, name: &[u8]) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> TreePath<'_> {
        TreePath::parse(text.as_bytes()).unwrap()
    }

    fn told(touched: &Touched) -> Vec<(String, u8)> {
        let mut all = Vec::new();
        let visit = |change: Change<'_>| {
            all.push((String::from_utf8(change.path.to_vec()).unwrap(), change.what.bits()));
            Ok::<(), ()>(())
        };
        touched.changes().each(visit).unwrap();
        all
    }

    #[test]
    fn what_is_touched_below_a_renamed_directory_has_its_last_name() {
        let mut touched = Touched::default();
        touched.touch(path("o257-1-0"), What::MADE);
        touched.touch(path("o257-1-0/f"), What::MADE);
        touched.touch(path("o257-1-0/f"), What::CONTENT);
        touched.rename(path("o257-1-0"), path("etc/new"));
        assert_eq!(told(&touched), [("etc/new".into(), 1), ("etc/new/f".into(), 5)]);
        touched.rename(path("etc"), path("old"));
        assert_eq!(
            told(&touched),
            [("etc".into(), 2), ("old".into(), 1), ("old/new".into(), 1), ("old/new/f".into(), 5)]
        );
    }

    #[test]
    fn what_was_made_and_removed_leaves_no_trace() {
        let mut touched = Touched::default();
        touched.touch(path("a"), What::MADE);
        touched.remove(path("a"));
        assert_eq!(told(&touched), []);
        touched.touch(path("b"), What::CONTENT);
        touched.remove(path("b"));
        assert_eq!(told(&touched), [("b".into(), 2)]);
        touched.touch(path("b"), What::MADE);
        assert_eq!(told(&touched), [("b".into(), 3)]);
        touched.remove(path("b"));
        assert_eq!(told(&touched), [("b".into(), 2)]);
    }

    #[test]
    fn zeros_follow_a_clone_and_do_not_overlap() {
        let range = |offset, length| Range { offset, length };
        let mut touched = Touched::default();
        for (offset, length) in [(100, 10), (0, 10), (200, 50), (5, 20), (110, 90)] {
            touched.zeroed(path("a"), range(offset, length));
        }
        touched.cloned_own(path("b"), 1000, path("a"), range(20, 100));
        touched.cloned_own(path("b"), 1020, path("b"), range(1000, 5));
        let mut all = Vec::new();
        let visit = |change: Change<'_>| {
            all.push((change.zeros.to_vec(), change.cloned.to_vec()));
            Ok::<(), ()>(())
        };
        touched.changes().each(visit).unwrap();
        assert_eq!(all[0], (vec![range(0, 25), range(100, 150)], vec![]));
        assert_eq!(all[1], (vec![range(1000, 5), range(1020, 5), range(1080, 20)], vec![range(1000, 100)]));
    }

    #[test]
    fn branches_that_are_moved_below_each_other_again_and_again_end_nothing() {
        let long = "d/".repeat(2000) + "d";
        let mut touched = Touched::default();
        touched.touch(path("last"), What::CONTENT);
        for _ in 0..60 {
            touched.touch(path("next"), What::METADATA);
            touched.rename(path("last"), path(&format!("next/{long}")));
            touched.rename(path("next"), path("last"));
        }
        touched.changes().each(|change| TreePath::parse(change.path).map(drop)).unwrap();
        touched.remove(path("last"));
    }

    #[test]
    fn names_come_in_the_order_of_their_bytes() {
        let mut touched = Touched::default();
        let names =
            ["a/b", "a", "a-", "a-/z", "a-/", "a!/q", "a.b/c", "a0", "a0/1", "b/a", "b-/c/d", "b-", "a/b/c", "\u{fe}"];
        for name in names.iter().filter(|name| !name.ends_with('/')) {
            touched.touch(path(name), What::CONTENT);
        }
        let told: Vec<String> = told(&touched).into_iter().map(|(name, _)| name).collect();
        let mut sorted: Vec<String> = names.iter().filter(|n| !n.ends_with('/')).map(|&name| name.into()).collect();
        sorted.sort();
        assert_eq!(told, sorted);
    }
}
