//! Loop devices: a block device whose content is a file. They are made to vanish with their last user, so nothing has to
//! remember to remove them.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

const LOOP_GET_STATUS64: libc::Ioctl = 0x4C05;
const LOOP_SET_CAPACITY: libc::Ioctl = 0x4C07;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// How often a free device may be snatched away by somebody else before we give up.
const ATTEMPTS: u32 = 64;

/// `struct loop_info64` of linux/loop.h.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of linux/loop.h.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// An attached loop device. The device is detached by the kernel when this is dropped and nothing else, such as a mount,
/// uses it any more.
#[derive(Debug)]
pub struct LoopDevice {
    /// Keeps the device attached.
    device: File,
    path: PathBuf,
}

impl LoopDevice {
    /// Attaches `file` to a free loop device, read-write, with direct IO where the file system below allows it (so that
    /// pages are not cached twice).
    ///
    /// # Errors
    /// No `/dev/loop-control`, no right to use it, or no free device.
    pub fn attach(file: &File) -> io::Result<Self> {
        let control = File::options().read(true).write(true).open("/dev/loop-control")?;
        let mut last = io::Error::from(io::ErrorKind::ResourceBusy);
        for _ in 0..ATTEMPTS {
            // SAFETY: the request takes no argument; the descriptor is open.
            let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
            if number < 0 {
                return Err(io::Error::last_os_error());
            }
            let path = PathBuf::from(format!("/dev/loop{number}"));
            make_node(&path, number as u32)?;
            let device = File::options().read(true).write(true).open(&path)?;
            // SAFETY: all-zero bytes are a valid value of this plain C structure.
            let mut config: LoopConfig = unsafe { std::mem::zeroed() };
            config.fd = file.as_raw_fd() as u32;
            config.info.flags = LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO;
            // SAFETY: the structure has the kernel's layout and lives across the call; the kernel only reads it.
            if unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) } == 0 {
                return Ok(Self { device, path });
            }
            last = io::Error::last_os_error();
            if last.raw_os_error() != Some(libc::EBUSY) {
                return Err(last);
            }
        }
        Err(last)
    }

    /// The loop device whose backing file is `file`, if there is one. Devices are told by the identity of the file, not
    /// by its path, which reads differently in every mount namespace.
    ///
    /// # Errors
    /// The list of devices or the file's identity cannot be read.
    pub fn find(file: &File) -> io::Result<Option<Self>> {
        let wanted = file.metadata()?;
        for entry in std::fs::read_dir("/sys/block")? {
            let name = entry?.file_name();
            let Some(number) = name.to_str().and_then(|n| n.strip_prefix("loop")).and_then(|n| n.parse::<u32>().ok())
            else {
                continue;
            };
            if !Path::new("/sys/block").join(&name).join("loop").exists() {
                continue;
            }
            let path = Path::new("/dev").join(&name);
            make_node(&path, number)?;
            let Ok(device) = File::options().read(true).write(true).open(&path) else { continue };
            // SAFETY: all-zero bytes are a valid value of this plain C structure.
            let mut info: LoopInfo = unsafe { std::mem::zeroed() };
            // SAFETY: the structure has the kernel's layout and lives across the call.
            if unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, &raw mut info) } != 0 {
                continue; // It was detached meanwhile.
            }
            if info.inode == wanted.ino() && decode_device(info.device) == decode_device(wanted.dev()) {
                return Ok(Some(Self { device, path }));
            }
        }
        Ok(None)
    }

    /// Path of the block device.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes over the present size of the backing file after it has grown.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn refresh_size(&self) -> io::Result<()> {
        // SAFETY: the request takes no argument; the descriptor is open.
        if unsafe { libc::ioctl(self.device.as_fd().as_raw_fd(), LOOP_SET_CAPACITY) } == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

/// Makes the device node if nobody has: in a container `/dev` may not be the node's devtmpfs.
fn make_node(path: &Path, number: u32) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_block_device() => Ok(()),
        Ok(_) => Err(io::Error::other(format!("{} is there but is no block device", path.display()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
            let node = rustix::fs::makedev(7, number);
            match rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::BlockDevice, mode, node) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
                Err(error) => Err(error.into()),
            }
        }
        Err(error) => Err(error),
    }
}

/// Major and minor number. The loop driver and stat(2) pack a device number differently (`huge_encode_dev` in both, but
/// older kernels report the short form), so compare the parts.
fn decode_device(device: u64) -> (u32, u32) {
    (libc::major(device), libc::minor(device))
}
