//! A directory on a file system without room. Needs root: it mounts a small one.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::common::{content, key, soon};
use tokio::time::Instant;
use vivarium_store::{Backend, Cause, Config, CreateError, Created, Prefix, Source, Store};

/// Unmounts when the test ends, however it does.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    fn tmpfs(at: &'a Path, size: &str) -> Self {
        let mount = ["-t", "tmpfs", "-o", &format!("size={size}"), "store"];
        let done = Command::new("mount").args(mount).arg(at).status().unwrap();
        assert!(done.success(), "this test needs root: it mounts a small file system at {}", at.display());
        Self(at)
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

#[tokio::test]
async fn a_full_directory_is_told_keeps_what_it_has_and_goes_on_when_there_is_room() {
    let directory = tempfile::tempdir().unwrap();
    let _mounted = Mounted::tmpfs(directory.path(), "2m");
    let root = directory.path().join("store");
    let store =
        Store::open(&Config { name: "full".into(), backend: Backend::Local { directory: root }, mirrors: vec![] })
            .unwrap();
    let (first, first_digest) = content(1 << 20);
    store.create(&key(1), Source::Bytes(first.clone()), first_digest, soon()).await.unwrap();
    let (second, digest) = content(3 << 19);
    // Time for an attempt on a busy machine; after a failure that may pass it is tried again until then.
    let deadline = Instant::now() + Duration::from_secs(8);
    let error = store.create(&key(2), Source::Bytes(second.clone()), digest, deadline).await.unwrap_err();
    let CreateError::Unknown { failure, .. } = error else { panic!("{error}") };
    assert_eq!(failure.cause, Cause::Full, "{failure}");
    assert!(!store.exists(&key(2), soon()).await.unwrap());
    assert!(store.read(&key(1), 1 << 20, soon()).await.unwrap().unwrap().bytes == first);
    // Nothing of the attempt takes room, and the same content goes in once there is some.
    store.delete(&key(1), soon()).await.unwrap();
    let again = store.create(&key(2), Source::Bytes(second), digest, soon()).await.unwrap();
    assert_eq!(again, Created::New);
    assert_eq!(store.list(&Prefix::All, None, soon()).await.unwrap().len(), 1);
}
