//! Loop devices whose file lies on a node's disk. losetup(8) shows paths as the node saw them, so a file is recognised by
//! device and inode.

use std::{collections::BTreeMap, fs, os::unix::fs::MetadataExt, path::Path};

use serde::Deserialize;

use super::error::{Error, io};
use crate::command;

#[derive(Debug, Deserialize)]
struct Listing {
    loopdevices: Vec<Device>,
}

#[derive(Debug, Deserialize)]
struct Device {
    name: String,
    #[serde(rename = "back-ino")]
    inode: u64,
    /// Padded with spaces.
    #[serde(rename = "back-maj:min")]
    filesystem: String,
}

fn parse(json: &str) -> Result<Vec<Device>, serde_json::Error> {
    // losetup prints nothing at all when there is no device.
    if json.trim().is_empty() { Ok(Vec::new()) } else { Ok(serde_json::from_str::<Listing>(json)?.loopdevices) }
}

/// Loop devices of files below a folder.
pub fn below(folder: &Path) -> Result<Vec<String>, Error> {
    let json = command::words("losetup --list --json --output NAME,BACK-INO,BACK-MAJ:MIN")?;
    let devices = parse(&json).map_err(|source| Error::Record { path: "the output of losetup".to_owned(), source })?;
    if devices.is_empty() || !folder.exists() { Ok(Vec::new()) } else { matching(devices, folder) }
}

fn matching(devices: Vec<Device>, folder: &Path) -> Result<Vec<String>, Error> {
    let mut wanted: BTreeMap<(String, u64), String> =
        devices.into_iter().map(|device| ((device.filesystem.trim().to_owned(), device.inode), device.name)).collect();
    let mut found = Vec::new();
    walk(folder, &mut wanted, &mut found)?;
    Ok(found)
}

fn walk(folder: &Path, wanted: &mut BTreeMap<(String, u64), String>, found: &mut Vec<String>) -> Result<(), Error> {
    let entries = fs::read_dir(folder).map_err(io("read", folder.display()))?;
    for entry in entries {
        if wanted.is_empty() {
            return Ok(());
        }
        let entry = entry.map_err(io("read", folder.display()))?;
        let Ok(data) = entry.metadata() else { continue };
        if data.is_dir() {
            walk(&entry.path(), wanted, found)?;
        } else if data.is_file() {
            let device = format!("{}:{}", rustix::fs::major(data.dev()), rustix::fs::minor(data.dev()));
            found.extend(wanted.remove(&(device, data.ino())));
        }
    }
    Ok(())
}

/// Detaches them.
pub fn detach_below(folder: &Path) -> Result<(), Error> {
    for device in below(folder)? {
        command::run(&mut command::command("losetup", ["--detach", &device]))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_is_read() {
        let json = r#"{"loopdevices":[{"name":"/dev/loop3","back-ino":42,"back-maj:min":"     254:0  "}]}"#;
        let device = &parse(json).unwrap()[0];
        assert_eq!((device.name.as_str(), device.inode, device.filesystem.trim()), ("/dev/loop3", 42, "254:0"));
        assert!(parse("\n").unwrap().is_empty());
    }

    #[test]
    fn a_file_is_recognised_by_filesystem_and_inode() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("deep/pool.img");
        fs::create_dir_all(folder.path().join("deep")).unwrap();
        fs::write(&file, "").unwrap();
        let data = file.metadata().unwrap();
        let filesystem = format!("{}:{}", rustix::fs::major(data.dev()), rustix::fs::minor(data.dev()));
        let device =
            |inode| Device { name: format!("/dev/loop{inode}"), inode, filesystem: format!("  {filesystem} ") };
        let found = matching(vec![device(data.ino()), device(data.ino() + 1)], folder.path()).unwrap();
        assert_eq!(found, [format!("/dev/loop{}", data.ino())]);
    }
}
