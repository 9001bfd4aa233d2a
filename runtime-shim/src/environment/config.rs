//! Reads what a guest is told from the source of the mount at `/.vivarium/config`: a projected volume that the kubelet
//! keeps current. Its content is as hostile as the tenant, its links are the kubelet's; lookups stay below it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use vivarium_api::names;
use vivarium_api::node::boot::{BootConfig, VERSION};

use crate::error::{Attempt, Error, Result};
use crate::helper::stage::open_directory;

/// Largest file that is read. A config map or secret holds at most 1 MiB.
const FILE_MAX: u64 = 1 << 20;
/// Most key files that are read.
const KEY_FILES_MAX: u32 = 64;

/// Reads and checks the boot configuration.
pub fn boot(dir: &Path) -> Result<BootConfig> {
    let what = || format!("read {} of the environment's configuration", names::BOOT_CONFIG_FILE);
    let bytes = read(dir, names::BOOT_CONFIG_FILE).attempt(what)?;
    let boot: BootConfig = serde_json::from_slice(&bytes)
        .map_err(|e| Error::Refused(format!("{} of the environment is damaged: {e}", names::BOOT_CONFIG_FILE)))?;
    if boot.version != VERSION {
        return Err(Error::Refused(format!(
            "{} of the environment is of version {}, this runtime reads version {VERSION}; upgrade the older of the \
             operator and the node's runtime",
            names::BOOT_CONFIG_FILE,
            boot.version
        )));
    }
    check(&boot)?;
    Ok(boot)
}

fn check(boot: &BootConfig) -> Result<()> {
    let label =
        |text: &str| (1..=63).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if !label(&boot.hostname) {
        return Err(Error::Refused(format!("the host name {:?} is not a DNS label", boot.hostname)));
    }
    if !boot.machine_uuid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-') {
        return Err(Error::Refused(format!("the machine UUID {:?} is not a UUID", boot.machine_uuid)));
    }
    Ok(())
}

/// Public keys for root, one file for each reference, in their order; `None` for one whose secret does not exist.
pub fn authorized_keys(dir: &Path, count: u32) -> Result<Vec<Option<Vec<u8>>>> {
    let file = |index| {
        let name = format!("{}/{index}", names::AUTHORIZED_KEYS_DIR);
        match read(dir, &name) {
            Ok(keys) => Ok(Some(keys)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).attempt(|| format!("read {name} of the environment's configuration")),
        }
    };
    (0..count.min(KEY_FILES_MAX)).map(file).collect()
}

fn read(dir: &Path, name: &str) -> io::Result<Vec<u8>> {
    let dir = open_directory(dir).map_err(io::Error::other)?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat2(dir.as_fd(), name, flags, Mode::empty(), resolve)?;
    let mut bytes = Vec::new();
    File::from(file).take(FILE_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(io::Error::other(format!("it is longer than {FILE_MAX} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn keys_of_all_references_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let keys = dir.path().join("..data/authorized-keys");
        fs::create_dir_all(&keys).unwrap();
        symlink("..data/authorized-keys", dir.path().join("authorized-keys")).unwrap();
        fs::write(keys.join("0"), "ssh-ed25519 A").unwrap();
        fs::write(keys.join("2"), "ssh-ed25519 B\n").unwrap();
        let keys = authorized_keys(dir.path(), 3).unwrap();
        assert_eq!(keys, [Some(b"ssh-ed25519 A".to_vec()), None, Some(b"ssh-ed25519 B\n".to_vec())]);
    }

    #[test]
    fn a_link_out_of_the_volume_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        symlink("/etc/passwd", dir.path().join("boot.json")).unwrap();
        assert!(boot(dir.path()).unwrap_err().to_string().contains("boot.json"));
    }

    #[test]
    fn a_version_of_tomorrow_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("boot.json"), r#"{"version": 2, "machineUuid": "", "hostname": "a"}"#).unwrap();
        assert!(boot(dir.path()).unwrap_err().to_string().contains("version 2"));
    }
}
