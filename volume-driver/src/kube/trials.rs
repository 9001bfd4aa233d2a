//! What a process of this session found out about stores, for the next one: a store that was proven is in use at once again,
//! and tried beside that. So journals go on a second earlier after a restart of the driver, and also while their store does not
//! answer; which is needed to leave it.
//!
//! It counts for the very object and credentials that were tried, and ends with the session.

use std::io;
use std::path::{Path, PathBuf};

use kube::ResourceExt;
use serde::{Deserialize, Serialize};
use vivarium_api::v1alpha1::JournalStore;

use crate::files;

/// Version of [`Proof`] that this build writes and reads.
const VERSION: u32 = 1;

/// The directory of proofs.
#[derive(Clone, Debug)]
pub struct Trials {
    directory: PathBuf,
    session: String,
}

/// `<store>.json`.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Proof {
    version: u32,
    session: String,
    uid: Option<String>,
    generation: Option<i64>,
    /// Version of the Secret.
    secret: Option<String>,
}

impl Trials {
    /// Makes the directory below the run directory, for root alone.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(run_dir: &Path, session: &str) -> io::Result<Self> {
        let directory = run_dir.join("stores");
        files::private_directory(&directory)?;
        Ok(Self { directory, session: session.into() })
    }

    /// Whether a store was proven in this session, with these credentials.
    #[must_use]
    pub fn has(&self, store: &JournalStore, secret: Option<&str>) -> bool {
        // What cannot be read proves nothing.
        let noted: Option<Proof> = files::read_json(&self.path(store)).unwrap_or_default();
        noted.is_some_and(|noted| noted == self.proof(store, secret))
    }

    /// Notes that it was, or that it was not.
    ///
    /// # Errors
    /// The file cannot be written or removed.
    pub fn note(&self, store: &JournalStore, secret: Option<&str>, proven: bool) -> io::Result<()> {
        let path = self.path(store);
        if proven { files::write_json(&path, &self.proof(store, secret)) } else { files::remove(&path) }
    }

    fn proof(&self, store: &JournalStore, secret: Option<&str>) -> Proof {
        let (uid, generation) = (store.uid(), store.metadata.generation);
        Proof { version: VERSION, session: self.session.clone(), uid, generation, secret: secret.map(str::to_owned) }
    }

    fn path(&self, store: &JournalStore) -> PathBuf {
        self.directory.join(format!("{}.json", store.name_any()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_proof_counts_for_what_was_tried_and_in_its_session() {
        let directory = tempfile::tempdir().unwrap();
        let store = |uid: &str, generation: i64| -> JournalStore {
            serde_json::from_value(json!({"apiVersion": "vivarium.dev/v1alpha1", "kind": "JournalStore",
                "metadata": {"name": "a", "uid": uid, "generation": generation}, "spec": {}}))
            .unwrap()
        };
        let (tried, trials) = (store("u", 1), Trials::open(directory.path(), "s").unwrap());
        assert!(!trials.has(&tried, Some("5")));
        trials.note(&tried, Some("5"), true).unwrap();
        let next = Trials::open(directory.path(), "s").unwrap();
        assert!(next.has(&tried, Some("5")));
        for (other, secret) in [(store("v", 1), Some("5")), (store("u", 2), Some("5")), (store("u", 1), Some("6"))] {
            assert!(!next.has(&other, secret), "{other:?} {secret:?}");
        }
        assert!(!Trials::open(directory.path(), "t").unwrap().has(&tried, Some("5")));
        std::fs::write(directory.path().join("stores/a.json"), "{").unwrap();
        assert!(!next.has(&tried, Some("5")));
        next.note(&tried, Some("5"), true).unwrap();
        next.note(&tried, Some("5"), false).unwrap();
        assert!(!next.has(&tried, Some("5")));
    }
}
