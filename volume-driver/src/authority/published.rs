//! The leases that the shims read.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use vivarium_api::node::lease::{self, PublishedLease};
use vivarium_ownership::Instant;

use crate::files;

/// The leases of one session, one file per store.
#[derive(Clone, Debug)]
pub struct Leases {
    directory: PathBuf,
    session: String,
    boot_id: String,
}

fn directory(run_dir: &Path) -> PathBuf {
    run_dir.join("leases")
}

impl Leases {
    /// The leases of `session`, below the run directory.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn open(run_dir: &Path, session: &str, boot_id: &str) -> io::Result<Self> {
        let directory = directory(run_dir);
        files::private_directory(&directory)?;
        Ok(Self { directory, session: session.into(), boot_id: boot_id.into() })
    }

    /// Lets environments whose volumes are in `store` run until an instant: nanoseconds of `CLOCK_BOOTTIME`.
    ///
    /// # Errors
    /// The file cannot be written; the former promise holds.
    pub fn publish(&self, store: &str, act_until: u64) -> io::Result<()> {
        let lease = PublishedLease {
            version: lease::VERSION,
            boot_id: self.boot_id.clone(),
            session: self.session.clone(),
            act_until,
        };
        files::write_json(&self.directory.join(lease::file_name(&self.session, store)), &lease)
    }

    /// What was promised last, by store, also by a former process of this session.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn promised(&self) -> io::Result<BTreeMap<String, Instant>> {
        let mut promised = BTreeMap::new();
        for entry in std::fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            let store = name
                .to_str()
                .and_then(|name| name.strip_prefix(&self.session)?.strip_prefix('.')?.strip_suffix(".json"));
            let Some(store) = store else { continue };
            if let Some(lease) = files::read_json::<PublishedLease>(&self.directory.join(&name))? {
                promised.insert(store.to_owned(), Instant(lease.act_until));
            }
        }
        Ok(promised)
    }
}

/// Removes the leases of every session.
///
/// # Errors
/// One cannot be removed.
pub fn end_all(run_dir: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(directory(run_dir)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        files::remove(&entry?.path())?;
    }
    Ok(())
}
