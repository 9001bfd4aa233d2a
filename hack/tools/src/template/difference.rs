//! What an upper layer must hold to turn one tree into another.

use std::path::{Path, PathBuf};

use super::tree::{Kind, Tree};

/// One entry of a layer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// The entry of the new tree at that path.
    Put(PathBuf),
    /// Hides what the lower tree has at that path.
    Remove(PathBuf),
}

impl Change {
    /// The path that it is about.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Put(path) | Self::Remove(path) => path,
        }
    }
}

/// The changes from `lower` to `upper`, parents first. A directory that holds a change is among them even when it is
/// itself the same, so that its owner, mode and time stand in the layer that creates it.
#[must_use]
pub fn difference(lower: &Tree, upper: &Tree) -> Vec<Change> {
    let mut changes = Vec::new();
    for (path, entry) in upper {
        if lower.get(path).is_none_or(|old| !old.same(entry)) {
            changes.push(Change::Put(path.clone()));
        }
    }
    for path in lower.keys() {
        let parent_stays = |parent: &Path| upper.get(parent).is_some_and(|entry| entry.kind == Kind::Directory);
        // What lies below something that goes, or that is no directory any more, goes with it.
        let below_directory = path.parent().is_none_or(|parent| parent.as_os_str().is_empty() || parent_stays(parent));
        if !upper.contains_key(path) && below_directory {
            changes.push(Change::Remove(path.clone()));
        }
    }
    let parents: Vec<Change> = changes
        .iter()
        .flat_map(|change| change.path().ancestors().skip(1))
        .filter(|parent| !parent.as_os_str().is_empty())
        .map(|parent| Change::Put(parent.into()))
        .collect();
    changes.extend(parents);
    changes.sort_by(|a, b| (a.path(), a).cmp(&(b.path(), b)));
    changes.dedup();
    changes
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::template::tree::Entry;

    fn entry(kind: Kind, modified: u64) -> Entry {
        Entry { kind, mode: 0o755, owner: (0, 0), modified, xattrs: BTreeMap::new(), inode: (1, modified) }
    }

    fn directory() -> Entry {
        entry(Kind::Directory, 1)
    }

    fn file(content: u8) -> Entry {
        entry(Kind::File { size: 1, digest: [content; 32] }, 1)
    }

    fn tree(entries: &[(&str, Entry)]) -> Tree {
        entries.iter().map(|(path, entry)| (PathBuf::from(path), entry.clone())).collect()
    }

    fn put(path: &str) -> Change {
        Change::Put(path.into())
    }

    fn remove(path: &str) -> Change {
        Change::Remove(path.into())
    }

    #[test]
    fn equal_trees_differ_in_nothing() {
        let one = tree(&[("etc", directory()), ("etc/passwd", file(1))]);
        assert_eq!(difference(&one, &one), []);
    }

    #[test]
    fn a_file_with_another_time_and_the_same_content_is_the_same() {
        let lower = tree(&[("f", file(1))]);
        let upper = tree(&[("f", Entry { modified: 9, ..file(1) })]);
        assert_eq!(difference(&lower, &upper), []);
    }

    #[test]
    fn a_new_file_comes_with_its_directories() {
        let lower = tree(&[("a", directory())]);
        let upper = tree(&[("a", directory()), ("a/b", directory()), ("a/b/f", file(1))]);
        assert_eq!(difference(&lower, &upper), [put("a"), put("a/b"), put("a/b/f")]);
    }

    #[test]
    fn a_removed_directory_is_one_whiteout() {
        let lower = tree(&[("a", directory()), ("a/b", directory()), ("a/b/f", file(1))]);
        let upper = tree(&[("a", directory())]);
        assert_eq!(difference(&lower, &upper), [put("a"), remove("a/b")]);
    }

    #[test]
    fn a_directory_that_became_a_file_replaces_what_was_below_it() {
        let lower = tree(&[("a", directory()), ("a/f", file(1))]);
        let upper = tree(&[("a", file(2))]);
        assert_eq!(difference(&lower, &upper), [put("a")]);
    }

    #[test]
    fn mode_owner_and_attributes_count() {
        let capability = BTreeMap::from([("security.capability".to_owned(), vec![1])]);
        for changed in [
            Entry { mode: 0o4755, ..file(1) },
            Entry { owner: (1, 0), ..file(1) },
            Entry { xattrs: capability, ..file(1) },
        ] {
            assert_eq!(difference(&tree(&[("f", file(1))]), &tree(&[("f", changed)])), [put("f")]);
        }
    }
}
