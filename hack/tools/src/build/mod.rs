//! The programs that the lab consists of, built once from Go modules into the cache
//! (`bin/<module>-<version>-<key>/<program>`). The key is a digest of everything that a build depends on; a build is put
//! in place by a rename, so that what is there is whole, and an interrupted one goes on with the programs it lacks.

mod debian;
mod modules;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

pub use debian::{Package, ensure, ensure_measured, ensure_packages, ensure_tested, unpacked};
use modules::{MODULES, Module, SIDECARS, TESTS};
use sha2::{Digest, Sha256};

use crate::{cache, command, progress::Progress, workspace};

/// The module that holds the types of Kubernetes' snapshots.
const SNAPSHOT_API: &str = "github.com/kubernetes-csi/external-snapshotter/client/v8";

/// Why a program is not there.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("Go is not on the PATH. Install Go {minimum} or newer (go.dev/dl) and try again.", minimum = modules::GO)]
    NoGo { source: command::Error },
    #[error("{program} of Go module {module} could not be built")]
    Build { program: &'static str, module: &'static str, source: command::Error },
    #[error("Go does not say where module {SNAPSHOT_API} is")]
    NoDefinitions,
    #[error("Debian packages are missing and could not be installed: {packages}")]
    Packages { packages: String, source: command::Error },
    #[error("cannot {attempt} {path}", path = path.display())]
    File { attempt: &'static str, path: PathBuf, source: io::Error },
    #[error(transparent)]
    Workspace(#[from] workspace::Error),
}

fn file(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::File { attempt, path, source }
}

/// Where each program is.
#[derive(Debug)]
pub struct Programs(BTreeMap<&'static str, PathBuf>);

impl Programs {
    /// Name and path of each.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        self.0.iter().map(|(name, path)| (*name, path.as_path()))
    }

    /// Path of one; the names are those of the module table.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.get(name).cloned().unwrap_or_else(|| name.into())
    }
}

/// Builds what the lab consists of and is not in the cache yet, with the packages that this takes.
pub fn ensure_programs() -> Result<Programs, Error> {
    ensure_of(MODULES, "building the programs of the lab: about 20 minutes on two cores when nothing is cached")
}

/// The same for what only tests need.
pub fn ensure_test_programs() -> Result<Programs, Error> {
    ensure_of(TESTS, "building the programs of tests: a minute when nothing is cached")
}

/// The same for what goes into the image of the sidecars.
pub fn ensure_sidecars() -> Result<Programs, Error> {
    ensure_of(SIDECARS, "building the sidecars of the CSI driver: about 10 minutes on two cores when nothing is cached")
}

/// All of these.
pub fn ensure_all() -> Result<(), Error> {
    ensure_test_programs()?;
    ensure_programs()?;
    ensure_sidecars().map(drop)
}

/// The folder that holds the custom resources of Kubernetes' snapshots, as they belong to the sidecars.
pub fn snapshot_definitions() -> Result<PathBuf, Error> {
    let mut go = command::command("go", ["mod", "download", "-json", SNAPSHOT_API]);
    go.current_dir(workspace::root()?.join("hack/modules/csi-snapshotter")).env("GOTOOLCHAIN", "local");
    let printed = command::run(&mut go).map_err(|source| Error::NoGo { source })?;
    let folder = serde_json::from_str(&printed)
        .ok()
        .and_then(|module: serde_json::Value| Some(PathBuf::from(module["Dir"].as_str()?).join("config/crd")));
    folder.ok_or(Error::NoDefinitions)
}

/// Whether all that the lab consists of is in the cache.
pub fn has_programs() -> Result<bool, Error> {
    Ok(places(MODULES)?.iter().all(|(_, place)| place.is_dir()))
}

fn ensure_of(modules: &'static [Module], announcement: &str) -> Result<Programs, Error> {
    let folder = workspace::root()?.join("hack/modules");
    let mut programs = BTreeMap::new();
    let mut missing = Vec::new();
    for (module, place) in places(modules)? {
        programs.extend(module.programs.iter().map(|program| (program.name, place.join(program.name))));
        if !place.is_dir() {
            missing.push((module, place));
        }
    }
    if missing.is_empty() {
        return Ok(Programs(programs));
    }
    ensure_packages()?;
    let lock = cache::root();
    let _lock = cache::lock("build").map_err(file("lock", &lock))?;
    eprintln!("{announcement}");
    let mut progress = Progress::new(missing.iter().map(|(module, _)| module.programs.len()).sum());
    for (module, place) in missing {
        build(module, &folder.join(module.name), &place, &mut progress)?;
    }
    Ok(Programs(programs))
}

/// Where the build of each belongs.
fn places(modules: &'static [Module]) -> Result<Vec<(&'static Module, PathBuf)>, Error> {
    let folder = workspace::root()?.join("hack/modules");
    let go = command::run(&mut command::command("go", ["version"])).map_err(|source| Error::NoGo { source })?;
    modules.iter().map(|module| Ok((module, place(module, &folder.join(module.name), go.trim())?))).collect()
}

/// Where the build of this module belongs.
fn place(module: &Module, folder: &Path, go: &str) -> Result<PathBuf, Error> {
    let read = |name: &str| {
        let path = folder.join(name);
        fs::read(&path).map_err(file("read", &path))
    };
    let key = key(&[&read("go.mod")?, &read("go.sum")?, module.recipe().as_bytes(), go.as_bytes()]);
    Ok(cache::root().join("bin").join(format!("{}-{}-{key}", module.name, module.version)))
}

/// Digest of parts whose borders count.
fn key(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let mut hex = format!("{:x}", hash.finalize());
    hex.truncate(12);
    hex
}

fn build(module: &'static Module, folder: &Path, place: &Path, progress: &mut Progress) -> Result<(), Error> {
    // Appended: after the last dot of a place there is a part of the version, and the key.
    let unfinished = PathBuf::from(format!("{}.unfinished", place.display()));
    fs::create_dir_all(&unfinished).map_err(file("create", &unfinished))?;
    for program in module.programs {
        let target = unfinished.join(program.name);
        let _step = progress.step(format!("{} {}", program.name, module.version));
        if target.exists() || place.is_dir() {
            continue;
        }
        // Of this process alone: a compiler whose caller was ended may go on for a while.
        let half = unfinished.join(format!("{}.{}.half", program.name, std::process::id()));
        let mut go = command::mortal("TERM", "go");
        go.current_dir(folder).args(["build", "-trimpath", "-mod=readonly", "-buildvcs=false"]);
        if !module.tags.is_empty() {
            go.args(["-tags", module.tags]);
        }
        go.args(["-ldflags", &module.linker_flags()]).arg("-o").arg(&half).arg(program.package);
        go.env("CGO_ENABLED", if module.cgo { "1" } else { "0" });
        // Neither the caller's settings nor another tool chain may change what is built.
        go.env("GOTOOLCHAIN", "local").env("GOWORK", "off").env_remove("GOFLAGS");
        command::run(&mut go).map_err(|source| Error::Build { program: program.name, module: module.name, source })?;
        fs::rename(&half, &target).map_err(file("rename", &half))?;
    }
    if place.is_dir() {
        return Ok(());
    }
    for left in fs::read_dir(&unfinished).map_err(file("read", &unfinished))?.flatten().map(|entry| entry.path()) {
        if left.extension().is_some_and(|extension| extension == "half") {
            fs::remove_file(&left).map_err(file("remove", &left))?;
        }
    }
    fs::rename(&unfinished, place).map_err(file("rename", &unfinished))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_changes_with_each_part_and_with_their_borders() {
        let base = key(&[b"a", b"bc"]);
        assert_eq!(base.len(), 12);
        assert_eq!(base, key(&[b"a", b"bc"]));
        for other in [key(&[b"ab", b"c"]), key(&[b"a", b"bd"]), key(&[b"x", b"bc"]), key(&[b"a", b"bc", b""])] {
            assert_ne!(base, other);
        }
    }
}
