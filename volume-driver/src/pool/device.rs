//! Getting the pool's file system onto its mount point: a block device, or a sparse file behind a loop device.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{AtFlags, StatxAttributes, StatxFlags};
use rustix::mount::MountFlags;
use vivarium_sys::btrfs;
use vivarium_sys::loopdev::LoopDevice;

use super::{MIN_SIZE, PoolError, open_directory, open_private};

/// Where the superblock's magic number lies, and what it is.
const MAGIC: (u64, &[u8; 8]) = (64 * 1024 + 64, b"_BHRfS_M");
/// Freed room goes back to the device or, as holes, out of the file.
const OPTIONS: &std::ffi::CStr = c"discard=async";

/// What the pool lies on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PoolSource {
    /// A sparse file `pool.img` in the state directory. A larger size than it has makes it grow, a smaller one is ignored.
    File {
        /// Bytes.
        size: u64,
    },
    /// A block device of the node.
    Device(PathBuf),
}

/// Mounts the pool at `target` unless it is mounted already; lets it grow to the size of what it lies on.
pub(super) fn mount(source: &PoolSource, state_dir: &Path, target: &Path) -> Result<(), PoolError> {
    let mounted = is_mount_point(target).map_err(PoolError::io("inspect", target))?;
    match source {
        PoolSource::Device(device) => {
            if !mounted {
                if !holds_btrfs(device).map_err(PoolError::io("read", device))? {
                    format(device)?;
                }
                mount_device(device, target)?;
            }
        }
        PoolSource::File { size } => {
            if *size < MIN_SIZE {
                return Err(PoolError::TooSmall { size: *size });
            }
            let image = state_dir.join("pool.img");
            if !image.exists() {
                if mounted {
                    return Ok(()); // Mounted from something else by the administrator: theirs.
                }
                make_image(&image, *size)?;
            }
            let file = open_private(&image).map_err(PoolError::io("open", &image))?;
            let grown = file.metadata().map_err(PoolError::io("inspect", &image))?.len() < *size;
            if grown {
                file.set_len(*size).map_err(PoolError::io("enlarge", &image))?;
            }
            let attach = |file: &File| match LoopDevice::find(file)? {
                Some(device) => Ok(device),
                None => LoopDevice::attach(file),
            };
            // The device stays as long as it is mounted; this handle may go.
            let device = attach(&file).map_err(PoolError::io("attach a loop device to", &image))?;
            if grown {
                device.refresh_size().map_err(PoolError::io("enlarge", device.path()))?;
            }
            if !mounted {
                mount_device(device.path(), target)?;
            }
        }
    }
    // Only ever grows; to its own size it is no change.
    let root = open_directory(target).map_err(PoolError::io("open", target))?;
    btrfs::grow_to_device(root.as_fd()).map_err(PoolError::io("enlarge the file system at", target))
}

fn mount_device(device: &Path, target: &Path) -> Result<(), PoolError> {
    // Tenants' trees lie in it: on the node nothing of them is a device or raises privileges.
    let flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOATIME;
    match rustix::mount::mount(device, target, c"btrfs", flags, OPTIONS) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::NODEV) => Err(PoolError::NoBtrfs),
        Err(error) => Err(PoolError::io("mount the pool at", target)(error.into())),
    }
}

/// Formats under another name, so that a file called `pool.img` is always a whole file system.
fn make_image(image: &Path, size: u64) -> Result<(), PoolError> {
    let fresh = image.with_extension("img.new");
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(PoolError::io("remove the half-made", &fresh)(error));
        }
        _ => {}
    }
    let file = open_private(&fresh).map_err(PoolError::io("create", &fresh))?;
    file.set_len(size).map_err(PoolError::io("enlarge", &fresh))?;
    format(&fresh)?;
    file.sync_all().map_err(PoolError::io("write out", &fresh))?;
    std::fs::rename(&fresh, image).map_err(PoolError::io("name", image))
}

/// mkfs.btrfs without `--force`: it refuses what holds another file system.
fn format(path: &Path) -> Result<(), PoolError> {
    tracing::info!(path = %path.display(), "formatting the pool");
    let output = Command::new("mkfs.btrfs")
        .args(["--quiet", "--label", "vivarium"])
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .map_err(PoolError::io("run mkfs.btrfs (package btrfs-progs) on", path))?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(PoolError::Format { path: path.to_owned(), message })
}

fn holds_btrfs(device: &Path) -> io::Result<bool> {
    let mut file = File::open(device)?;
    file.seek(SeekFrom::Start(MAGIC.0))?;
    let mut found = [0; 8];
    match file.read_exact(&mut found) {
        Ok(()) => Ok(&found == MAGIC.1),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether something is mounted exactly at a path.
pub(crate) fn is_mount_point(path: &Path) -> io::Result<bool> {
    let stat =
        rustix::fs::statx(rustix::fs::CWD, path, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, StatxFlags::TYPE)?;
    Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}
