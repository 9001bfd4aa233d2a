//! What a cluster knows of a volume: which incarnation has it, and which log decides. A file that is replaced whole beside the
//! store; of several processes one at a time changes it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The object of one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    path: PathBuf,
    /// The newest incarnation.
    pub epoch: u64,
    /// How many names were given to logs.
    pub logs: u64,
    /// The log that decides.
    pub log: String,
    /// The one that is to be next; empty: none.
    pub next: String,
    /// The node that has the volume; empty: none.
    pub node: String,
}

impl Object {
    /// The object as it is now; of a volume that nobody has had yet, as it is then.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(path: &Path, volume: &str) -> io::Result<Self> {
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => format!("0\n0\n{volume}\n\n\n"),
            text => text?,
        };
        let invalid = || io::Error::new(io::ErrorKind::InvalidData, format!("{}: {text:?}", path.display()));
        let [epoch, logs, log, next, node] = text.lines().collect::<Vec<_>>()[..] else { return Err(invalid()) };
        let number = |text: &str| text.parse().map_err(|_| invalid());
        let (epoch, logs) = (number(epoch)?, number(logs)?);
        Ok(Self { path: path.into(), epoch, logs, log: log.into(), next: next.into(), node: node.into() })
    }

    /// Writes it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self) -> io::Result<()> {
        let Self { path, epoch, logs, log, next, node } = self;
        let fresh = path.with_extension("new");
        fs::write(&fresh, format!("{epoch}\n{logs}\n{log}\n{next}\n{node}\n"))?;
        fs::rename(fresh, path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_read_as_it_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("v.object");
        let mut object = Object::read(&path, "v").unwrap();
        assert_eq!((object.epoch, object.log.as_str(), object.next.as_str()), (0, "v", ""));
        (object.epoch, object.logs, object.next, object.node) = (7, 2, "v-2".into(), "n1".into());
        object.write().unwrap();
        assert_eq!(Object::read(&path, "v").unwrap(), object);
        fs::write(&path, "7\n").unwrap();
        assert!(Object::read(&path, "v").is_err());
    }
}
