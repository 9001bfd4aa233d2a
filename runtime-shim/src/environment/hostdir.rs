//! The guest's `/run/host` (systemd's container interface), made and kept current by the shim on the node and mounted
//! read-only into the guest:
//!
//! ```text
//! container-manager             who runs the container
//! notify                        socket for sd_notify(3) of init
//! credentials/                  systemd credentials
//! vivarium/resolv.conf          the resolver that the kubelet chose
//! vivarium/authorized_keys/root public keys, followed live
//! ```

use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::Interest;

use super::config;
use crate::error::{Attempt, Result};
use crate::journal::replace_file;

/// Makes the directory and the socket.
pub fn create(dir: &Path, resolv_conf: Option<&Path>, config_dir: &Path, key_files: u32) -> Result<UnixDatagram> {
    for sub in ["", "credentials", "vivarium", "vivarium/authorized_keys"] {
        let path = dir.join(sub);
        fs::DirBuilder::new().mode(0o755).create(&path).attempt(|| format!("create {}", path.display()))?;
    }
    replace_file(&dir.join("container-manager"), b"vivarium\n", 0o644)?;
    let resolver = match resolv_conf {
        Some(path) => fs::read(path).attempt(|| format!("read {}", path.display()))?,
        None => Vec::new(),
    };
    replace_file(&dir.join("vivarium/resolv.conf"), &resolver, 0o644)?;
    Keys::default().refresh(dir, config_dir, key_files)?;
    let socket = dir.join("notify");
    let listener = UnixDatagram::bind(&socket).attempt(|| format!("listen on {}", socket.display()))?;
    // Whoever may send is found out from the sender's credentials.
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666))
        .attempt(|| format!("set the mode of {}", socket.display()))?;
    Ok(listener)
}

/// The keys of each reference as they were last seen. Who deletes a Secret by mistake must not lock everybody out of an
/// environment that runs: keys are taken back by emptying it, or with the next start.
#[derive(Default)]
struct Keys(Vec<Option<Vec<u8>>>);

impl Keys {
    /// Reads the keys anew and writes them for the guest.
    fn refresh(&mut self, dir: &Path, config_dir: &Path, key_files: u32) -> Result<()> {
        self.learn(config::authorized_keys(config_dir, key_files)?);
        replace_file(&dir.join("vivarium/authorized_keys/root"), &self.joined(), 0o644)
    }

    fn learn(&mut self, found: Vec<Option<Vec<u8>>>) {
        self.0.resize(found.len(), None);
        for (index, (known, found)) in self.0.iter_mut().zip(found).enumerate() {
            if found.is_some() {
                *known = found;
            } else if known.is_some() {
                log::warn!("the Secret of authorized keys number {index} is gone; its last keys stay");
            }
        }
    }

    fn joined(&self) -> Vec<u8> {
        let mut all = Vec::new();
        for keys in self.0.iter().flatten() {
            all.extend_from_slice(keys);
            if all.last().is_some_and(|byte| *byte != b'\n') {
                all.push(b'\n');
            }
        }
        all
    }
}

/// Follows the keys for as long as it is polled: the kubelet replaces the link `..data` when a secret changes.
pub async fn follow_keys(dir: PathBuf, config_dir: PathBuf, key_files: u32) {
    if let Err(error) = follow(&dir, &config_dir, key_files).await {
        log::error!("the environment's authorized keys are not followed any more: {error}");
    }
}

async fn follow(dir: &Path, config_dir: &Path, key_files: u32) -> Result<()> {
    let what = || format!("watch {}", config_dir.display());
    let watch: OwnedFd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).attempt(what)?;
    inotify::add_watch(&watch, config_dir, WatchFlags::MOVED_TO | WatchFlags::CREATE | WatchFlags::ONLYDIR)
        .attempt(what)?;
    let watch = vivarium_sys::watch::watch(watch, Interest::READABLE).attempt(what)?;
    let mut keys = Keys::default();
    loop {
        // A change between the first reading and the watch is caught here.
        keys.refresh(dir, config_dir, key_files).unwrap_or_else(|error| log::error!("{error}"));
        let mut ready = watch.readable().await.attempt(what)?;
        let mut buffer = [MaybeUninit::uninit(); 4096];
        // Which event it was does not matter: everything is read anew.
        while rustix::io::read(watch.get_ref(), &mut buffer).is_ok() {}
        ready.clear_ready();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::time::Duration;

    #[test]
    fn keys_of_a_secret_that_is_gone_stay_and_emptied_ones_go() {
        let some = |keys: &str| Some(keys.as_bytes().to_vec());
        let mut keys = Keys::default();
        for (found, expected) in [
            (vec![None, None], ""),
            (vec![some("A"), some("B\n")], "A\nB\n"),
            (vec![None, some("C")], "A\nC\n"),
            (vec![some("D"), None], "D\nC\n"),
            (vec![some(""), None], "C\n"),
            (vec![None, some("")], ""),
        ] {
            keys.learn(found.clone());
            assert_eq!(keys.joined(), expected.as_bytes(), "{found:?}");
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn keys_follow_the_projected_volume() {
        let temporary = tempfile::tempdir().unwrap();
        let (dir, conf) = (temporary.path().join("host"), temporary.path().join("config"));
        for (version, key) in [("..1", "A"), ("..2", "B")] {
            fs::create_dir_all(conf.join(version).join("authorized-keys")).unwrap();
            fs::write(conf.join(version).join("authorized-keys/0"), key).unwrap();
        }
        symlink("..1", conf.join("..data")).unwrap();
        symlink("..data/authorized-keys", conf.join("authorized-keys")).unwrap();
        let _socket = create(&dir, None, &conf, 1).unwrap();
        let keys = dir.join("vivarium/authorized_keys/root");
        assert_eq!(fs::read(&keys).unwrap(), b"A\n");

        let task = tokio::spawn(follow_keys(dir, conf.clone(), 1));
        tokio::task::yield_now().await;
        // As the kubelet does it.
        symlink("..2", conf.join("..data_tmp")).unwrap();
        fs::rename(conf.join("..data_tmp"), conf.join("..data")).unwrap();
        let followed = async {
            while fs::read(&keys).unwrap() != b"B\n" {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), followed).await.unwrap();
        task.abort();
    }
}
