//! Makes an object of a directory store survive a power cut, together with every directory on the way to it.
//!
//! The back end flushes what it makes itself: the file, its directory, and directories that it had to create. Two cases
//! are left. A writer that died after its object became visible and before it was flushed finds its own object when it
//! comes back; and of two writers that need the same new directory one finds it there although the other has not
//! flushed it yet. So everything is flushed again before anything is acknowledged; what is clean costs nothing.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

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

/// Whoever still writes a file of this age does not.
const ABANDONED: Duration = Duration::from_hours(1);

/// Removes what writers that died in the middle left: files beside the objects, called `<object>#<number>`, which the back
/// end lists for nobody and never looks at again. Returns how many.
pub fn sweep(root: &Path) -> io::Result<usize> {
    let abandoned = SystemTime::now() - ABANDONED;
    let (mut folders, mut removed) = (vec![root.to_owned()], 0);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            // What is deleted meanwhile is no concern of a sweep.
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                folders.push(entry.path());
            } else if is_staged(&entry.file_name().to_string_lossy()) && metadata.modified()? < abandoned {
                match std::fs::remove_file(entry.path()) {
                    Ok(()) => removed += 1,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }
    Ok(removed)
}

/// No name of an object has a '#'.
fn is_staged(name: &str) -> bool {
    let number = name.rsplit_once('#').map(|(_, number)| number);
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
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

    #[test]
    fn only_what_a_dead_writer_left_is_swept() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("volumes/v/log");
        std::fs::create_dir_all(&folder).unwrap();
        let old = SystemTime::now() - 2 * ABANDONED;
        for (name, age) in
            [("1", Some(old)), ("2#1", Some(old)), ("3#17", Some(old)), ("4#1", None), ("5#x", Some(old))]
        {
            let file = File::create(folder.join(name)).unwrap();
            if let Some(age) = age {
                file.set_modified(age).unwrap();
            }
        }
        assert_eq!(sweep(root.path()).unwrap(), 2);
        let mut left: Vec<_> = std::fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["1", "4#1", "5#x"]);
    }
}
