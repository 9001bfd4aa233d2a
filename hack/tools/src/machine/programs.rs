//! The second disk: containerd and its company, the shim under test, the program that tests it, the image that this
//! program is in, and the options of the run. Made anew for every run, in a second or two.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use vivarium_machine_tests::options::{FILE, IMAGE, IMAGE_FILE, Options, PAYLOAD, PROGRAMS};

use super::{Error, base, file};
use crate::{
    build,
    image::binaries,
    oci::{Entry, ImageBuilder},
};

/// Package of the program that runs inside.
const TESTS: &str = "vivarium-machine-tests";
/// Its executable.
const TESTER: &str = "machine-tests";
/// Programs that were built from Go modules.
const COMPANY: &[&str] =
    &["containerd", "containerd-shim-runc-v2", "crictl", "ctr", "runc", "bridge", "host-local", "loopback"];
/// More than all of it; the image is sparse.
const SIZE: &str = "512M";

/// Makes the disk below `work`; gives its image.
pub fn build(work: &Path, shim: Option<&Path>, options: &Options) -> Result<PathBuf, Error> {
    let company = build::ensure_programs()?;
    let shim = match shim {
        Some(shim) => shim.to_path_buf(),
        None => binaries::build()?.shim,
    };
    let tester = binaries::build_one(TESTS, TESTER)?;
    let root = work.join("programs");
    let bin = root.join("bin");
    fs::create_dir_all(&bin).map_err(file("create", &bin))?;
    for name in COMPANY {
        copy(&company.path(name), &bin.join(name))?;
    }
    copy(&shim, &bin.join(vivarium_api::names::SHIM_BINARY))?;
    copy(&tester, &bin.join(TESTER))?;
    let start = root.join("start");
    fs::write(&start, format!("#!/bin/sh\nexec {PROGRAMS}/bin/{TESTER} run\n")).map_err(file("write", &start))?;
    fs::set_permissions(&start, Permissions::from_mode(0o755)).map_err(file("change the mode of", &start))?;
    let told = root.join(FILE);
    let text = serde_json::to_vec(options).map_err(|error| file("write", &told)(error.into()))?;
    fs::write(&told, text).map_err(file("write", &told))?;
    let image = ImageBuilder::new(IMAGE)?.layer_from_files([Entry::file(PAYLOAD, &tester, 0o755)])?;
    image.entrypoint([PAYLOAD]).command(["pause"]).write_archive(&root.join(IMAGE_FILE))?;
    let disk = work.join("programs.ext4");
    base::ext4(&root, &disk, SIZE)?;
    Ok(disk)
}

fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    fs::copy(from, to).map(drop).map_err(file("copy", from))
}
