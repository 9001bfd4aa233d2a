//! Makes an object of a directory store survive a power cut, together with every directory on the way to it.
//!
//! The back end flushes what it makes itself: the file, its directory, and directories that it had to create. Two cases
//! are left. A writer that died after its object became visible and before it was flushed finds its own object when it
//! comes back; and of two writers that need the same new directory one finds it there although the other has not
//! flushed it yet. So everything is flushed again before anything is acknowledged; what is clean costs nothing.

use std::fs::File;
use std::io;
use std::path::Path;

/// Flushes `object` (a path below `root`, without `..`) and every directory from it up to `root`.
pub fn settle(root: &Path, object: &str) -> io::Result<()> {
    let mut path = root.join(object);
    File::open(&path)?.sync_all()?;
    while path != root && path.pop() {
        File::open(&path)?.sync_all()?;
    }
    Ok(())
}

/// Makes the directory of a store, readable for its owner alone, and makes that last.
pub fn make_root(root: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let missing: Vec<&Path> = root.ancestors().take_while(|path| !path.exists()).collect();
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(root)?;
    File::open(root)?.sync_all()?;
    for made in missing {
        if let Some(parent) = made.parent() {
            File::open(parent)?.sync_all()?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_up_to_the_root_is_flushed_and_a_missing_object_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("a/b");
        make_root(&root).unwrap();
        make_root(&root).unwrap();
        std::fs::create_dir_all(root.join("volumes/v")).unwrap();
        std::fs::write(root.join("volumes/v/x"), "x").unwrap();
        settle(&root, "volumes/v/x").unwrap();
        assert_eq!(settle(&root, "volumes/v/y").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
