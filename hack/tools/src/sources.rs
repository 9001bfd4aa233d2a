//! A note of the sources that were built last, so that another checkout of the same files has nothing to build.
//! `hack/run` reads it when it finds what another checkout built.

use std::{collections::HashSet, io, path::Path, process::Command, time::SystemTime};

use crate::{cache, command};

/// Why there is no note.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot ask git for the files of the checkout")]
    Git(#[from] command::Error),
    #[error("cannot note what was built")]
    Write(#[from] io::Error),
}

/// The files that git tracks and that are as they were added.
#[derive(PartialEq, Eq)]
pub struct Sources {
    /// Mode, digest and name of each, sorted.
    list: String,
    /// When the last of them was written: one that was changed and changed back is not what it was.
    newest: Option<SystemTime>,
    /// When the last of those was written from which something is built.
    code: Option<SystemTime>,
}

impl Sources {
    /// Those of the checkout at this moment.
    pub fn now(root: &Path) -> Result<Self, Error> {
        let git = |arguments: &[&str]| command::run(Command::new("git").args(arguments).current_dir(root));
        // It fails if files differ; those are told below.
        let _ = git(&["update-index", "-q", "--refresh"]);
        let changed = git(&["diff-files", "--name-only"])?;
        let changed: HashSet<&str> = changed.lines().collect();
        let files = git(&["ls-files", "--stage"])?;
        let mut files: Vec<&str> = files
            .lines()
            .filter(|line| line.split_once('\t').is_some_and(|(_, name)| !changed.contains(name)))
            .collect();
        files.sort_unstable();
        let written = |line: &&str| {
            let (_, name) = line.split_once('\t')?;
            root.join(name).symlink_metadata().ok()?.modified().ok()
        };
        let newest = files.iter().filter_map(written).max();
        let is_code = |line: &&&str| Path::new(line).extension().is_none_or(|ending| ending != "md");
        let code = files.iter().filter(is_code).filter_map(written).max();
        Ok(Self { list: files.iter().flat_map(|line| [line, "\n"]).collect(), newest, code })
    }

    /// Notes that what was built after the last of these was written is of these, unless they have changed in between. What is
    /// older may be of others: Cargo builds a crate in several ways, and not each of them with every step.
    pub fn built(&self, root: &Path) -> Result<(), Error> {
        if Self::now(root)? == *self {
            let noted = cache::target().join(".sources");
            std::fs::write(&noted, &self.list)?;
            let newest = std::fs::File::create(noted.with_extension("newest"))?;
            newest.set_modified(self.code.unwrap_or(SystemTime::UNIX_EPOCH))?;
        }
        Ok(())
    }
}
