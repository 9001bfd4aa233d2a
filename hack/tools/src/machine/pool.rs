//! A pool as a node driver would make it: a btrfs image with each layer of the template in a read-only subvolume,
//! whiteouts already in the form that overlayfs reads. In the cache under the digest of the template.

use std::{
    fs::{self, File},
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::{
    fs::{CWD, FileType, Mode, XattrFlags, lsetxattr, makedev, mknodat},
    mount::{UnmountFlags, unmount},
};
use serde_json::Value;

use super::{Error, file, step};
use crate::{cache, command, oci::Archive, workspace};

/// Room for the template and what environments write. The image is sparse.
const SIZE: u64 = 4 << 30;
/// Where the pool keeps layers.
const TEMPLATES: &str = "templates";

/// A pool in the cache.
#[derive(Debug)]
pub struct Pool {
    /// Disk image.
    pub image: PathBuf,
    /// Directories below `templates/`, top layer first.
    pub layers: Vec<String>,
}

/// Makes the pool with this template unless the cache has it.
pub fn build(template: &Path) -> Result<Pool, Error> {
    let archive = Archive::open(template)?;
    let digest = archive.digest().trim_start_matches("sha256:").get(..12).unwrap_or_default();
    let folder = cache::root().join(format!("machine-pool-{digest}"));
    let image = folder.join("pool.btrfs");
    let pool = Pool { image: image.clone(), layers: names(layers(template)?.len()) };
    let _lock = cache::lock("machine").map_err(file("lock", &folder))?;
    if image.exists() {
        return Ok(pool);
    }
    let _step = step("making a pool with the template");
    fs::create_dir_all(&folder).map_err(file("create", &folder))?;
    let unfinished = folder.join("pool.unfinished");
    File::create(&unfinished).and_then(|file| file.set_len(SIZE)).map_err(file("create", &unfinished))?;
    run(command::command("mkfs.btrfs", ["-q", "-f"]).arg(&unfinished))?;
    // In a mount namespace of its own, so that mount and loop device go with the process whatever happens to it.
    let mut fill = command::command("unshare", ["--mount", "--propagation", "private", "--"]);
    fill.arg(workspace::program()).args(["machine", "--fill-pool"]).arg(&unfinished).arg(template);
    run(&mut fill)?;
    fs::rename(&unfinished, &image).map_err(file("rename", &unfinished))?;
    Ok(pool)
}

/// Mounts the image and unpacks the layers.
pub fn fill(image: &Path, template: &Path) -> Result<(), Error> {
    let folder = image.parent().unwrap_or(Path::new("/"));
    let work =
        tempfile::Builder::new().prefix("work-").tempdir_in(folder).map_err(file("create a directory in", folder))?;
    let [pool, blobs] = ["pool", "blobs"].map(|name| work.path().join(name));
    for path in [&pool, &blobs] {
        fs::create_dir(path).map_err(file("create", path))?;
    }
    run(command::command("tar", ["--extract", "--file"]).arg(template).arg("--directory").arg(&blobs))?;
    run(command::command("mount", ["-o", "loop,noatime"]).arg(image).arg(&pool))?;
    let filled = unpack(template, &blobs, &pool);
    unmount(&pool, UnmountFlags::empty()).map_err(|error| file("unmount", &pool)(error.into()))?;
    filled
}

fn unpack(template: &Path, blobs: &Path, pool: &Path) -> Result<(), Error> {
    let templates = pool.join(TEMPLATES);
    fs::create_dir(&templates).map_err(file("create", &templates))?;
    let layers = layers(template)?;
    // The manifest has the lowest layer first.
    for (digest, name) in layers.iter().rev().zip(names(layers.len())) {
        let layer = templates.join(name);
        run(command::command("btrfs", ["-q", "subvolume", "create"]).arg(&layer))?;
        let mut tar = command::command("tar", ["--extract", "--gzip", "--preserve-permissions", "--numeric-owner"]);
        tar.args(["--xattrs", "--xattrs-include=*", "--file"]).arg(blobs.join("blobs/sha256").join(digest));
        run(tar.arg("--directory").arg(&layer))?;
        hide(&layer)?;
        run(command::command("btrfs", ["property", "set", "-ts"]).arg(&layer).args(["ro", "true"]))?;
    }
    Ok(())
}

/// Turns whiteouts of the image (image-spec, `layer.md`) into those of overlayfs.
fn hide(directory: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(directory).map_err(file("read", directory))? {
        let entry = entry.map_err(file("read", directory))?;
        let path = entry.path();
        let kind = entry.file_type().map_err(file("read", &path))?;
        let name = entry.file_name();
        let hidden = name.to_str().and_then(|name| name.strip_prefix(".wh."));
        if kind.is_dir() {
            hide(&path)?;
        } else if let Some(hidden) = hidden
            && !kind.is_block_device()
        {
            fs::remove_file(&path).map_err(file("remove", &path))?;
            if hidden == ".wh..opq" {
                lsetxattr(directory, "trusted.overlay.opaque", b"y", XattrFlags::empty())
            } else {
                mknodat(CWD, directory.join(hidden), FileType::CharacterDevice, Mode::empty(), makedev(0, 0))
            }
            .map_err(|error| file("hide what is below", &path)(error.into()))?;
        }
    }
    Ok(())
}

/// Digests of the layers, lowest first.
fn layers(template: &Path) -> Result<Vec<String>, Error> {
    let manifest: Value = serde_json::from_slice(Archive::open(template)?.manifest()).unwrap_or_default();
    let digests = manifest["layers"].as_array().into_iter().flatten();
    let digests: Option<Vec<_>> =
        digests.map(|layer| layer["digest"].as_str()?.strip_prefix("sha256:").map(str::to_owned)).collect();
    digests
        .filter(|digests| !digests.is_empty())
        .ok_or_else(|| Error::Template { path: template.into(), what: "its manifest names no layers" })
}

/// Names of so many layers, top layer first.
fn names(count: usize) -> Vec<String> {
    (0..count).rev().map(|number| format!("layer-{number}")).collect()
}

fn run(command: &mut Command) -> Result<(), Error> {
    command::run(command).map(drop).map_err(Error::Disk)
}
