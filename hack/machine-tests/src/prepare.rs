//! Prepares the machine: the pool that a node driver would mount, and containerd with both runtimes.

use std::{path::Path, time::Duration};

use rustix::mount::{MountFlags, mount};
use vivarium_api::names::POOL_DIR;
use vivarium_machine_tests::{
    config,
    options::{IMAGE_FILE, POOL_DISK, PROGRAMS},
};

use crate::{
    command::{output, words},
    cri,
    failure::{Failure, directory, write},
};

/// Long enough for containerd's start under emulation on a busy machine.
const LIMIT: Duration = Duration::from_secs(180);

/// Everything that must be there before the first check; `tell` is called with each step as it begins.
pub fn machine(mut tell: impl FnMut(&str)) -> Result<(), Failure> {
    tell("mounting the pool");
    directory(POOL_DIR)?;
    mount(POOL_DISK, POOL_DIR, "btrfs", MountFlags::NOATIME, None)
        .map_err(|error| Failure(format!("cannot mount the pool {POOL_DISK} at {POOL_DIR}: {error}")))?;
    for place in ["/etc/containerd", "/etc/cni/net.d", "/run/machine-tests", "/run/systemd/system"] {
        directory(place)?;
    }
    write("/etc/containerd/config.toml", config::containerd())?;
    write("/etc/cni/net.d/10-pods.conflist", config::network().to_string())?;
    write(cri::CONFIGURATION, config::crictl(Path::new(cri::SOCKET)))?;
    write("/run/systemd/system/containerd.service", config::containerd_unit())?;
    tell("starting containerd");
    output(&mut words(&["systemctl", "daemon-reload"]), LIMIT)?;
    output(&mut words(&["systemctl", "start", "containerd.service"]), LIMIT)?;
    tell("importing the image");
    cri::ctr(&["images", "import", &format!("{PROGRAMS}/{IMAGE_FILE}")])?;
    Ok(())
}
