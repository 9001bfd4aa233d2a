//! Where things that were built once are kept: outside the checkout, keyed by what made them, so that another checkout
//! of the same versions finds them. `$VIVARIUM_CACHE`, else `/var/cache/vivarium`.

use std::{
    fs::{self, File},
    io,
    os::fd::AsFd,
    path::PathBuf,
};

use rustix::fs::{FlockOperation, flock};

/// Root of the cache.
pub fn root() -> PathBuf {
    std::env::var_os("VIVARIUM_CACHE").map_or_else(|| "/var/cache/vivarium".into(), PathBuf::from)
}

/// Where cargo builds.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Held while something must be done by one process alone; released when dropped or when the process ends.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "the open file is the lock")] File);

/// Waits until nobody else holds the lock of that name. Says that it waits.
pub fn lock(name: &str) -> io::Result<Lock> {
    let path = root().join(format!("{name}.lock"));
    fs::create_dir_all(root())?;
    let file = File::create(&path)?;
    if flock(file.as_fd(), FlockOperation::NonBlockingLockExclusive).is_err() {
        eprintln!("another process does the same at this moment; waiting for {}", path.display());
        flock(file.as_fd(), FlockOperation::LockExclusive)?;
    }
    Ok(Lock(file))
}
