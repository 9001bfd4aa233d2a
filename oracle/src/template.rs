//! A template of two layers whose files have many sizes and layouts, the same wherever it is made.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, Mode, OFlags};
use vivarium_sys::btrfs;

use crate::rng::Rng;
use crate::workload::Layer;

/// Sizes of the files of a layer.
const FILES: [usize; 8] = [100, 3000, 4096, 10_000, 65_536, 131_072, 300_001, 1 << 20];

/// Opens the layer `name` in `parent`, a directory of btrfs, or makes it first. What is in it follows from `seed`.
///
/// # Errors
/// The file system fails.
pub fn layer(parent: BorrowedFd<'_>, name: &str, seed: u64) -> io::Result<Layer> {
    let mut files: Vec<Vec<u8>> = FILES.iter().map(|size| format!("usr/lib/lib{size}").into_bytes()).collect();
    files.push(b"sparse".to_vec());
    let c_name = CString::new(name)?;
    if let Ok(root) = open(parent, name) {
        if btrfs::subvolume_info(root.as_fd())?.read_only {
            return Ok(Layer { root, files });
        }
        // Whoever made it did not live to finish it.
        btrfs::destroy_subvolume(parent, &c_name)?;
    }
    btrfs::create_subvolume(parent, &c_name)?;
    let root = open(parent, name)?;
    let mut rng = Rng::new(seed, 0);
    let below = |path: &str| -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&root, path, flags, Mode::from_raw_mode(0o644))?.into())
    };
    for directory in ["usr", "usr/lib"] {
        rustix::fs::mkdirat(&root, directory, Mode::from_raw_mode(0o755))?;
    }
    for size in FILES {
        below(&format!("usr/lib/lib{size}"))?.write_all_at(&rng.noise(size), 0)?;
    }
    let sparse = below("sparse")?;
    sparse.write_all_at(&rng.noise(20_000), 1 << 20)?;
    sparse.write_all_at(&[0; 12_000], 1 << 18)?;
    rustix::fs::fallocate(&sparse, FallocateFlags::KEEP_SIZE, 1 << 19, 1 << 18)?;
    // Read-only means whole, also after a power cut.
    rustix::fs::syncfs(&root)?;
    btrfs::set_read_only(root.as_fd(), true)?;
    Ok(Layer { root, files })
}

fn open(parent: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?)
}

/// An overlay that is mounted nowhere: gone when its root is closed, however that comes about. As the shim mounts it.
///
/// # Errors
/// The kernel refuses.
pub fn overlay(layers: &[Layer], live: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
    use std::os::fd::AsRawFd;

    let magic = |fd: BorrowedFd<'_>| format!("/proc/self/fd/{}", fd.as_raw_fd());
    let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let set = |key: &str, value: &str| rustix::mount::fsconfig_set_string(context.as_fd(), key, value);
    // The uppermost comes first.
    let lower: Vec<String> = layers.iter().rev().map(|layer| magic(layer.root.as_fd())).collect();
    set("lowerdir", &lower.join(":"))?;
    set("upperdir", &format!("{}/upper", magic(live)))?;
    set("workdir", &format!("{}/work", magic(live)))?;
    for (key, value) in [("redirect_dir", "on"), ("index", "off"), ("metacopy", "off"), ("nfs_export", "off")] {
        set(key, value)?;
    }
    rustix::mount::fsconfig_create(context.as_fd())?;
    let mount = rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    // Not the mount's own descriptor, which is good for no reading.
    Ok(rustix::fs::openat(&mount, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}
