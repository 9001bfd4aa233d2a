//! The operating system of the machine: a small Debian 13 with systemd and the kernel for virtual machines, as a disk
//! image beside its kernel in the cache (`machine-<key>/`). It needs no initial RAM disk: disk driver (`NVMe`) and file
//! system are in the kernel itself. The device manager does not run: devtmpfs has the device nodes, and modules are
//! loaded on demand or by name.
//!
//! It does one thing: mount the first further disk and run the program `start` on it. When that ends the machine goes off.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};
use vivarium_machine_tests::options::{PROGRAMS, PROGRAMS_DISK, SYSTEM_DISK};

use super::{Error, file, step};
use crate::{build::Package, cache, command};

/// What the host needs.
pub const PACKAGES: &[Package] = &[
    ("btrfs-progs", &["/usr/sbin/mkfs.btrfs", "/sbin/mkfs.btrfs", "/usr/bin/mkfs.btrfs"]),
    ("ca-certificates", &[super::power::CERTIFICATES]),
    ("e2fsprogs", &["/usr/sbin/mkfs.ext4", "/sbin/mkfs.ext4"]),
    ("mmdebstrap", &["/usr/bin/mmdebstrap"]),
    ("qemu-system-common", &[super::outside::DAEMON]),
    ("qemu-system-x86", &["/usr/bin/qemu-system-x86_64"]),
    ("tar", &["/usr/bin/tar", "/bin/tar"]),
    ("util-linux", &["/usr/bin/setpriv"]),
];

/// File of the kernel in the folder.
pub const KERNEL: &str = "vmlinuz";
/// File of the disk image.
pub const SYSTEM: &str = "system.ext4";

/// What the kernel and systemd are told. The serial line carries reports: of the kernel only what is critical comes in
/// between. Mitigations protect nobody here and cost emulated instructions. On a busy host the interrupts of the emulated
/// timer come too late for the kernel's test of it.
pub fn kernel_arguments() -> String {
    format!(
        "root={SYSTEM_DISK} rw console=ttyS0 quiet loglevel=3 panic=-1 mitigations=off nowatchdog no_timer_check fsck.mode=skip \
         systemd.show_status=no systemd.unit=machine.service"
    )
}

/// Debian release.
const SUITE: &str = "trixie";
/// Packages beside the essential ones.
const INCLUDED: &str = "systemd,systemd-sysv,kmod,btrfs-progs,linux-image-cloud-amd64";
/// What nobody reads in there.
const EXCLUDED: &[&str] =
    &["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*", "/usr/share/i18n/*"];
/// Disk with room for containerd's state. The image is sparse.
const SIZE: &str = "4G";

/// Changed when [`finish`] does something else.
const FORMAT: &str = "2";

/// Units that serve nothing here and cost time at every start. Without the device manager nothing loads drivers for
/// everything that the emulator has.
const MASKED: &[&str] = &[
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty.target",
    "kmod-static-nodes.service",
    "modprobe@.service",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-hwdb-update.service",
    "systemd-journal-catalog-update.service",
    "systemd-journal-flush.service",
    "systemd-modules-load.service",
    "systemd-pcrmachine.service",
    "systemd-random-seed.service",
    "systemd-sysctl.service",
    "systemd-tpm2-setup.service",
    "systemd-tpm2-setup-early.service",
    "systemd-udev-trigger.service",
    "systemd-udevd-control.socket",
    "systemd-udevd-kernel.socket",
    "systemd-udevd.service",
    "systemd-update-utmp.service",
    "systemd-user-sessions.service",
];

/// Gives the folder with kernel and disk image.
pub fn build() -> Result<PathBuf, Error> {
    let folder = cache::root().join(format!("machine-{}", key()));
    let _lock = cache::lock("machine").map_err(file("lock", &folder))?;
    if folder.join(SYSTEM).exists() {
        return Ok(folder);
    }
    let _step = step("making its operating system");
    fs::create_dir_all(&folder).map_err(file("create", &folder))?;
    let work =
        tempfile::Builder::new().prefix("work-").tempdir_in(&folder).map_err(file("create a directory in", &folder))?;
    let root = work.path().join("root");
    bootstrap(&root)?;
    finish(&root)?;
    let kernel = kernel(&root.join("boot"))?;
    fs::copy(&kernel, folder.join(KERNEL)).map_err(file("copy", &kernel))?;
    let image = work.path().join(SYSTEM);
    ext4(&root, &image, SIZE)?;
    fs::rename(&image, folder.join(SYSTEM)).map_err(file("rename", &image))?;
    Ok(folder)
}

/// Makes an ext4 image that holds a directory.
pub fn ext4(directory: &Path, image: &Path, size: &str) -> Result<(), Error> {
    let mut mkfs = command::command("mkfs.ext4", ["-q", "-F", "-E", "root_owner=0:0", "-d"]);
    mkfs.arg(directory).arg(image).arg(size);
    command::run(&mut mkfs).map(drop).map_err(Error::Disk)
}

/// Another recipe makes another machine.
fn key() -> String {
    let mut hash = Sha256::new();
    for part in [SUITE, INCLUDED, SIZE, FORMAT, &unit()].iter().chain(EXCLUDED).chain(MASKED) {
        hash.update([part, "\0"].concat());
    }
    let mut hex = format!("{:x}", hash.finalize());
    hex.truncate(12);
    hex
}

/// In a mount namespace of its own, so that no mount of an interrupted one stays.
fn bootstrap(root: &Path) -> Result<(), Error> {
    let mut bootstrap = command::command("unshare", ["--mount", "--propagation", "private", "--", "mmdebstrap"]);
    bootstrap.args(["--mode=root", "--variant=minbase", "--format=directory", "--quiet"]);
    bootstrap.args(EXCLUDED.iter().map(|path| format!("--dpkgopt=path-exclude={path}")));
    bootstrap.arg(format!("--include={INCLUDED}")).arg(SUITE).arg(root);
    // Debian's kernel package then makes no initial RAM disk.
    bootstrap.env("INITRD", "No").env("LC_ALL", "C.UTF-8");
    command::run(&mut bootstrap).map(drop).map_err(Error::Bootstrap)
}

fn finish(root: &Path) -> Result<(), Error> {
    let units = root.join("etc/systemd/system");
    for name in MASKED {
        let link = units.join(name);
        symlink("/dev/null", &link).map_err(file("create", &link))?;
    }
    for (path, content) in [
        ("etc/systemd/system/machine.service", unit().as_str()),
        ("etc/hostname", "machine\n"),
        // containerd starts each pod's own files from these two.
        ("etc/hosts", "127.0.0.1 localhost machine\n"),
        ("etc/resolv.conf", "nameserver 192.0.2.53\n"),
        // A machine that knows its id does not take this for its first boot, at which systemd would set up all units.
        ("etc/machine-id", "6d616368696e65206f66207465737473\n"),
    ] {
        let path = root.join(path);
        fs::write(&path, content).map_err(file("write", &path))?;
    }
    let mount_point = root.join(PROGRAMS.trim_start_matches('/'));
    fs::create_dir_all(&mount_point).map_err(file("create", &mount_point))
}

/// The one unit that the machine is for.
fn unit() -> String {
    format!(
        "[Unit]\nDescription=What this machine is for\nSuccessAction=poweroff-immediate\n\
         FailureAction=poweroff-immediate\n[Service]\nType=oneshot\n\
         StandardError=journal+console\nExecStart=/bin/sh -ec 'modprobe virtio_blk; mount -t ext4 -o ro {PROGRAMS_DISK} {PROGRAMS}; exec {PROGRAMS}/start'\n"
    )
}

fn kernel(boot: &Path) -> Result<PathBuf, Error> {
    let entries = fs::read_dir(boot).map_err(file("read", boot))?;
    let is_kernel = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz"));
    entries.flatten().map(|entry| entry.path()).find(is_kernel).ok_or_else(|| Error::NoKernel(boot.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_takes_its_program_from_the_first_further_disk() {
        assert!(unit().contains("mount -t ext4 -o ro /dev/vda /opt/machine; exec /opt/machine/start"), "{}", unit());
    }
}
