//! What the host tells the machine, a file on the disk with the programs.

use serde::{Deserialize, Serialize};

use crate::plan::Form;

/// Where the disk with the programs is mounted in the machine.
pub const PROGRAMS: &str = "/opt/machine";
/// Disk with the operating system, read and written. The only one whose driver is in the kernel itself, and alone there:
/// since Linux 6.12 the disks of that driver are found side by side and numbered in any order.
pub const SYSTEM_DISK: &str = "/dev/nvme0n1";
/// Disk with the programs, an ext4 file system.
pub const PROGRAMS_DISK: &str = "/dev/vda";
/// Disk with the pool, a btrfs file system holding the layers of a template.
pub const POOL_DISK: &str = "/dev/vdb";
/// Name of the options' file below [`PROGRAMS`].
pub const FILE: &str = "options.json";
/// Name that the image with this program has.
pub const IMAGE: &str = "vivarium.test/payload:1";
/// Archive of that image below [`PROGRAMS`].
pub const IMAGE_FILE: &str = "payload.tar";
/// Where the image has this program.
pub const PAYLOAD: &str = "/payload";

/// What is wanted of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// How much is checked.
    pub form: Form,
    /// Directories of the pool's `templates/` that make up the template, top layer first.
    pub layers: Vec<String>,
    /// Expect of each limit what it does not do, to see the tests fail.
    pub expect_wrongly: bool,
}
