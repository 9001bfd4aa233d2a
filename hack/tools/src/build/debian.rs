//! Debian packages that the lab and the builds need. What is there is left alone; what is missing is installed, or only
//! unpacked into the cache.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{Error, file, key};
use crate::{cache, command, progress::Step};

/// Name, and files any of which says that the package is not needed any more (another one may bring it).
pub type Package = (&'static str, &'static [&'static str]);

/// What the lab and every build need.
const PACKAGES: &[Package] = &[
    ("btrfs-progs", &["/usr/bin/btrfs", "/bin/btrfs", "/sbin/btrfs"]),
    // Debian's `busybox` puts the same file in the same place, but linked dynamically.
    ("busybox-static", &["/usr/share/doc/busybox-static"]),
    ("ca-certificates", &["/etc/ssl/certs/ca-certificates.crt"]),
    ("conntrack", &["/usr/sbin/conntrack"]),
    ("curl", &["/usr/bin/curl"]),
    ("gcc", &["/usr/bin/gcc"]),
    ("iproute2", &["/usr/sbin/ip", "/sbin/ip"]),
    ("libc6-dev", &["/usr/include/stdio.h"]),
    ("libseccomp-dev", &["/usr/include/seccomp.h"]),
    ("mmdebstrap", &["/usr/bin/mmdebstrap"]),
    ("mount", &["/usr/bin/mount", "/bin/mount"]),
    ("nftables", &["/usr/sbin/nft"]),
    ("openssh-client", &["/usr/bin/ssh"]),
    ("pkg-config", &["/usr/bin/pkg-config"]),
    ("util-linux", &["/usr/bin/nsenter"]),
];

/// What tests of pure parts, and of those that meet the kernel, need beside that: programs whose files journals bring back.
const TESTED: &[Package] = &[
    ("dpkg", &["/usr/bin/dpkg-deb"]),
    ("git", &["/usr/bin/git"]),
    ("postgresql", &["/usr/lib/postgresql"]),
    ("sqlite3", &["/usr/bin/sqlite3"]),
];
/// What `hack/bench journal` measures with, and beside.
const MEASURED: &[Package] = &[
    ("fio", &["/usr/bin/fio"]),
    ("restic", &["/usr/bin/restic"]),
    ("rsync", &["/usr/bin/rsync"]),
    ("zstd", &["/usr/bin/zstd"]),
];
/// Where it is said whether Debian's `PostgreSQL` makes a database and starts a server when it is installed: no test needs that.
const CLUSTER: &str = "/etc/postgresql-common";

/// Packages of the table none of whose files are there.
fn missing(table: &[Package], exists: impl Fn(&str) -> bool) -> Vec<&'static str> {
    table.iter().filter(|(_, files)| !files.iter().any(|file| exists(file))).map(|(package, _)| *package).collect()
}

/// Installs what the lab and every build need and lack.
pub fn ensure_packages() -> Result<(), Error> {
    ensure(PACKAGES)
}

/// Installs what tests need and lack.
pub fn ensure_tested() -> Result<(), Error> {
    ensure_packages()?;
    let lacks_postgres = missing(TESTED, |file| Path::new(file).exists()).contains(&"postgresql");
    let (folder, choice) = (Path::new(CLUSTER), Path::new(CLUSTER).join("createcluster.conf"));
    if lacks_postgres && !choice.exists() {
        fs::create_dir_all(folder).map_err(file("make", folder))?;
        fs::write(&choice, "create_main_cluster = false\n").map_err(file("write", &choice))?;
    }
    ensure(TESTED)
}

/// Installs what benchmarks need and lack.
pub fn ensure_measured() -> Result<(), Error> {
    ensure_tested()?;
    ensure(MEASURED)
}

/// Installs what is missing with apt-get and says what.
pub fn ensure(table: &[Package]) -> Result<(), Error> {
    let packages = missing(table, |file| Path::new(file).exists());
    if packages.is_empty() {
        return Ok(());
    }
    let names = packages.join(" ");
    let _step = Step::begin(format!("installing Debian packages: {names}"));
    let apt = |arguments: &[&str]| {
        let mut apt = Command::new("apt-get");
        apt.args(["-q", "-y", "-o", "DPkg::Lock::Timeout=120"]).args(arguments);
        apt.env("DEBIAN_FRONTEND", "noninteractive");
        command::run(&mut apt)
    };
    let install = || {
        let mut arguments = vec!["install", "--no-install-recommends"];
        arguments.extend(&packages);
        apt(&arguments)
    };
    // A machine without package lists, or with old ones, is the usual reason of a failure.
    install()
        .or_else(|_| apt(&["update"]).and_then(|_| install()))
        .map(drop)
        .map_err(|source| Error::Packages { packages: names, source })
}

/// Unpacks packages into a folder of the cache (`<name>-<key of the list>`), as they are and without running anything
/// of them: nothing of this machine is changed.
pub fn unpacked(name: &str, packages: &[&str]) -> Result<PathBuf, Error> {
    let place = cache::root().join(format!("{name}-{}", key(&[packages.join(" ").as_bytes()])));
    if place.is_dir() {
        return Ok(place);
    }
    let lock = cache::root();
    let _lock = cache::lock("build").map_err(file("lock", &lock))?;
    if place.is_dir() {
        return Ok(place);
    }
    let _step = Step::begin(format!("fetching {name} ({} Debian packages)", packages.len()));
    let unfinished = place.with_extension("unfinished");
    let archives = unfinished.join("archives");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).map_err(file("remove", &unfinished))?;
    }
    fs::create_dir_all(&archives).map_err(file("create", &archives))?;
    let failed = |source| Error::Packages { packages: packages.join(" "), source };
    let download = || {
        let mut apt = command::command("apt-get", ["-q", "-o", "APT::Sandbox::User=root", "download"]);
        command::run(apt.args(packages).current_dir(&archives))
    };
    download()
        .or_else(|_| command::run(&mut command::command("apt-get", ["-q", "update"])).and_then(|_| download()))
        .map_err(failed)?;
    for entry in fs::read_dir(&archives).map_err(file("read", &archives))? {
        let archive = entry.map_err(file("read", &archives))?.path();
        let mut unpack = command::command("dpkg-deb", ["--extract"]);
        command::run(unpack.arg(&archive).arg(&unfinished)).map_err(failed)?;
    }
    fs::remove_dir_all(&archives).map_err(file("remove", &archives))?;
    fs::rename(&unfinished, &place).map_err(file("rename", &unfinished))?;
    Ok(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_is_missing_when_none_of_its_files_is_there() {
        assert!(missing(PACKAGES, |_| true).is_empty());
        assert_eq!(missing(PACKAGES, |_| false).len(), PACKAGES.len());
        assert_eq!(missing(PACKAGES, |file| file != "/usr/sbin/nft"), ["nftables"]);
        assert!(!missing(PACKAGES, |file| file == "/sbin/ip").contains(&"iproute2"), "the old place counts too");
    }
}
