//! Files and directories of a former state in place of what is there now: as `cp -a` would bring them, but for what is there
//! now, which goes. What the environment sees counts, not what is in the volume: what was as in the template is so again
//! because the volume's own copy or whiteout goes.
//!
//! Everything is found and refused ([`step`]) before anything is changed. Then all that comes is made beside the tree, and only
//! when that is complete it takes its place by renames ([`put`]). Nobody has the volume open; what lies in it was chosen
//! by a tenant all the same, so nothing is reached through a link.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode};
use rustix::io::Errno;
use vivarium_api::node::stage::default_binds;

use super::JournalError;
use super::copy::{self, At, Copier};
use super::overlay::{Directory, Entry, Leaf, Lower, Tree, look};
use super::shown::{self, Displaced, can_be_uncovered, displaced, set_opaque};
use crate::ids::VolumeId;
use crate::pool::open_beneath;
use crate::volume::Volumes;

/// Beside `upper`, `work` and `data`: what is about to take its place. A path in it is no longer than that which it is for
/// (`new/31` against `upper/x`), since the tenant may have made his as long as the kernel takes them.
const NEW: &str = "new";
/// Likewise, what had its place.
const OLD: &str = "old";

/// Bytes of a name, `NAME_MAX` of linux/limits.h.
const LONGEST_NAME: usize = 255;
/// Bytes of a path in an environment: `PATH_MAX` without the end, and `upper` before it.
const LONGEST_PATH: usize = 4090;

/// One of the trees that a volume consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    /// The upper directory of the overlay.
    Upper,
    /// What is mounted over it.
    Data,
}

impl Part {
    fn directory(self) -> &'static Path {
        Path::new(match self {
            Self::Upper => "upper",
            Self::Data => "data",
        })
    }

    /// It in the tree of a volume, and what it lies on.
    fn tree<'a>(self, root: Option<BorrowedFd<'a>>, layers: &'a [OwnedFd]) -> Tree<'a> {
        let layers = if self == Self::Upper { layers } else { &[] };
        Tree { upper: root, layers }
    }

    /// The part that a path of the environment is in, and the names that lead to it there.
    fn of(path: &Path) -> (Self, Vec<OsString>) {
        let names = |path: &Path| path.iter().filter(|name| *name != "/").map(OsStr::to_owned).collect::<Vec<_>>();
        for bind in default_binds() {
            if let Ok(below) = path.strip_prefix(&bind.target) {
                let mut all = vec![bind.name.into()];
                all.extend(names(below));
                return (Self::Data, all);
            }
        }
        (Self::Upper, names(path))
    }
}

/// One path of the order.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Step {
    part: Part,
    names: Vec<OsString>,
    /// How many of the names lead to what is put in place: more than one is missing if it is not all of them.
    depth: usize,
    /// The directories that led there.
    parents: Vec<Directory>,
    /// As they are, as far as they are there.
    present: Vec<Directory>,
    /// What was there.
    entry: Entry,
    /// It lies over the same as it did.
    same: bool,
}

/// Why a path cannot be restored: one word of the runbook, and a sentence.
fn refused(volume: &VolumeId, reason: &'static str, message: String) -> JournalError {
    JournalError::Refused { volume: volume.clone(), reason, message }
}

/// Whether the former state with the root `former` has all these paths.
///
/// # Errors
/// [`JournalError::Refused`] says which it has not; or it cannot be read.
pub(super) fn check(
    volume: &VolumeId,
    former: BorrowedFd<'_>,
    layers: &[OwnedFd],
    paths: &[PathBuf],
    at: &str,
) -> Result<(), JournalError> {
    for path in paths {
        then(volume, former, layers, path, at)?;
    }
    Ok(())
}

/// What a path was in a former state: the directories that led to it, and it.
fn then(
    volume: &VolumeId,
    former: BorrowedFd<'_>,
    layers: &[OwnedFd],
    path: &Path,
    at: &str,
) -> Result<(Vec<Directory>, Entry), JournalError> {
    let failed = io_error(volume, "look into the former state");
    let (part, names) = Part::of(path);
    let nothing = || {
        let message = format!(
            "there was no `{}` in {at}: `kubectl ve ls` shows what there was. To be rid of what came later, remove it",
            path.display()
        );
        refused(volume, "NoSuchPath", message)
    };
    if !can_be_there(path, &names) {
        return Err(nothing());
    }
    let root = directory(former, part.directory()).map_err(&failed)?;
    let tree = part.tree(root.as_ref().map(OwnedFd::as_fd), layers);
    let mut parents = vec![tree.root()];
    for (depth, name) in names.iter().enumerate() {
        let entry = parents.last().map(|parent| tree.entry(parent, name)).transpose().map_err(&failed)?.flatten();
        let last = depth + 1 == names.len();
        match entry {
            Some(entry) if last => return Ok((parents, entry)),
            Some(Entry::Directory(directory)) => parents.push(directory),
            Some(Entry::Leaf(leaf)) if leaf.kind == FileType::Symlink => {
                let link = without(path, names.len() - depth - 1);
                let message = format!(
                    "`{link}` was a symbolic link in {at}: give the path of `{}` without links",
                    path.display()
                );
                return Err(refused(volume, "NoSuchPath", message));
            }
            _ => return Err(nothing()),
        }
    }
    Err(refused(volume, "NoSuchPath", "the root is restored by an order without paths".into()))
}

/// Whether the kernel would let anything have this path, which it only looked for otherwise.
fn can_be_there(path: &Path, names: &[OsString]) -> bool {
    path.as_os_str().len() <= LONGEST_PATH && names.iter().all(|name| name != ".." && name.len() <= LONGEST_NAME)
}

/// A path without its last names.
fn without(path: &Path, names: usize) -> String {
    path.ancestors().nth(names).unwrap_or(path).display().to_string()
}

fn io_error(volume: &VolumeId, attempt: &'static str) -> impl Fn(io::Error) -> JournalError + use<> {
    let volume = volume.clone();
    move |source| JournalError::Io { attempt, volume: volume.clone(), source }
}

/// A directory that may be missing.
fn directory(root: BorrowedFd<'_>, path: &Path) -> io::Result<Option<OwnedFd>> {
    match open_beneath(root, path) {
        Ok(directory) => Ok(Some(directory)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Finds out what has to be done about a path.
fn step(
    volume: &VolumeId,
    (former, live): (BorrowedFd<'_>, BorrowedFd<'_>),
    layers: &[OwnedFd],
    path: &Path,
    at: &str,
) -> Result<Step, JournalError> {
    let (parents, entry) = then(volume, former, layers, path, at)?;
    let failed = io_error(volume, "look into the live tree");
    let (part, names) = Part::of(path);
    let root = directory(live, part.directory()).map_err(&failed)?;
    let tree = part.tree(root.as_ref().map(OwnedFd::as_fd), layers);
    let mut present = vec![tree.root()];
    for (depth, name) in names.iter().enumerate().take(names.len() - 1) {
        match present.last().map(|parent| tree.entry(parent, name)).transpose().map_err(&failed)?.flatten() {
            Some(Entry::Directory(directory)) => present.push(directory),
            None => break,
            Some(Entry::Leaf(_)) => {
                let message = format!(
                    "`{}` is no directory any more, so that nothing can be brought back in it: restore it instead",
                    without(path, names.len() - depth - 1)
                );
                return Err(refused(volume, "NoSuchPath", message));
            }
        }
    }
    let depth = present.len();
    let lowers = |all: &[Directory]| all.last().map(|parent| parent.lowers.clone()).unwrap_or_default();
    let same = depth == names.len() && lowers(&parents) == lowers(&present);
    Ok(Step { part, names, depth, parents, present, entry, same })
}

/// Puts what the former state with the root `former` has at these paths in the place of what is there in the live tree of a volume
/// of `size` bytes. `at` says which state it is.
///
/// # Errors
/// [`JournalError::Refused`]: nothing was changed, and never will be. Others: some of it may be done.
pub(super) fn put(
    volumes: &Volumes,
    volume: &VolumeId,
    size: u64,
    former: BorrowedFd<'_>,
    layers: &[OwnedFd],
    paths: &[PathBuf],
    at: &str,
) -> Result<(), JournalError> {
    let live = volumes.get(volume)?.directory;
    let live = live.as_fd();
    let steps = paths.iter().map(|path| step(volume, (former, live), layers, path, at));
    let steps = steps.collect::<Result<Vec<_>, _>>()?;
    let swaps = stage(volume, (former, live), layers, &steps).map_err(|error| match error {
        JournalError::Io { source, .. } if is_full(&source) => refused(volume, "VolumeFull", full(size)),
        JournalError::Io { source, .. } if !may_pass(&source) => refused(volume, "NodeError", cannot_be_made(&source)),
        error => error,
    });
    // To remove something from a volume that is full takes room for a moment.
    volumes.with_room(volume, size, || {
        for swap in swaps.iter().flatten() {
            swap.carry_out(live, layers).map_err(io_error(volume, "put what was restored in its place"))?;
        }
        clear(volumes, volume)
    })?;
    swaps.map(drop)
}

fn is_full(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::DQUOT | Errno::NOSPC))
}

/// Whether it may be otherwise the next time. What else the kernel refuses it refuses because of what the tenant made, and for
/// good: the environment must not wait for it.
fn may_pass(error: &io::Error) -> bool {
    use Errno as E;
    let passing = [E::IO, E::NOMEM, E::NFILE, E::MFILE, E::AGAIN, E::INTR, E::BUSY, E::ROFS];
    Errno::from_io_error(error).is_none_or(|error| passing.contains(&error))
}

fn cannot_be_made(error: &io::Error) -> String {
    format!(
        "something of what is to be restored cannot be made again file by file ({error}): restore other paths, or all of the \
         environment"
    )
}

fn full(size: u64) -> String {
    format!(
        "what is to be restored does not fit beside what is there into the {size} bytes of the volume: free room in the \
         environment, or raise its disk, and restore again"
    )
}

/// Removes what had its place, and what was made and is not put in place.
fn clear(volumes: &Volumes, volume: &VolumeId) -> Result<(), JournalError> {
    let live = volumes.get(volume)?.directory;
    for name in [NEW, OLD] {
        copy::remove(volumes.pool().root(), At { root: live.as_fd(), path: Path::new(name) })
            .map_err(io_error(volume, "remove what is not needed any more"))?;
    }
    Ok(())
}

/// Something that takes a place.
struct Swap {
    part: Part,
    names: Vec<OsString>,
    /// The directories that lead there.
    present: Vec<Directory>,
    /// What is put there, if it is there.
    new: PathBuf,
    /// Where that goes which is there.
    old: PathBuf,
}

/// Makes everything that is to be put in place.
fn stage(
    volume: &VolumeId,
    (former, live): (BorrowedFd<'_>, BorrowedFd<'_>),
    layers: &[OwnedFd],
    steps: &[Step],
) -> Result<Vec<Swap>, JournalError> {
    let failed = io_error(volume, "make what is to be restored");
    for name in [NEW, OLD] {
        rustix::fs::mkdirat(live, name, Mode::RWXU).map_err(|error| failed(error.into()))?;
    }
    let part = Part::Upper;
    let root = directory(live, part.directory()).map_err(&failed)?;
    let goes = steps.iter().filter(|step| step.part == part).map(|step| step.names.iter().collect());
    let goes: Vec<PathBuf> = goes.collect();
    let elsewhere = displaced(part.tree(root.as_ref().map(OwnedFd::as_fd), layers), &goes).map_err(&failed)?;
    let mut swaps = BTreeMap::<(Part, &[OsString]), Swap>::new();
    for step in steps {
        let place = step.names.get(..step.depth).unwrap_or_default();
        let number = swaps.len();
        // Several can come back into one directory that is gone.
        let swap = swaps.entry((step.part, place)).or_insert_with(|| Swap {
            part: step.part,
            names: place.to_vec(),
            present: step.present.clone(),
            new: Path::new(NEW).join(number.to_string()),
            old: Path::new(OLD).join(number.to_string()),
        });
        step.make((former, live), layers, &elsewhere, &swap.new).map_err(&failed)?;
    }
    Ok(swaps.into_values().collect())
}

impl Step {
    /// Makes it at `new`, with directories around it that are not there any more. Nothing is made of what is only uncovered.
    fn make(
        &self,
        (former, live): (BorrowedFd<'_>, BorrowedFd<'_>),
        layers: &[OwnedFd],
        elsewhere: &Displaced,
        new: &Path,
    ) -> io::Result<()> {
        let root = directory(former, self.part.directory())?;
        let tree = self.part.tree(root.as_ref().map(OwnedFd::as_fd), layers);
        let overlaid = self.part == Part::Upper;
        let mut target = new.to_owned();
        let missing = self.names.get(self.depth..).unwrap_or_default();
        for (name, like) in missing.iter().zip(self.parents.iter().skip(self.depth)) {
            let from = tree.attributes_of(like).ok_or(io::ErrorKind::NotFound)?;
            match copy::directory_like(from, At { root: live, path: &target }) {
                // Another path has it around it too.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Ok(()) if overlaid => set_opaque(live, &target)?,
                made => made?,
            }
            target.push(name);
        }
        let mut copier = Copier::new(live, layers);
        if !(self.same && can_be_uncovered(tree, &self.entry, elsewhere)?) {
            return shown::make(&mut copier, tree, &self.entry, &target, overlaid);
        }
        let parent = self.parents.last().map(|parent| parent.lowers.as_slice()).unwrap_or_default();
        match &self.entry {
            Entry::Directory(Directory { upper: Some(path), lowers }) => {
                copier.tree(At { root: tree.upper.ok_or(io::ErrorKind::NotFound)?, path }, &target, lowers)
            }
            Entry::Leaf(Leaf { upper: Some(path), .. }) => {
                let below =
                    |Lower { layer, path }: &Lower| Some(Lower { layer: *layer, path: path.join(self.names.last()?) });
                let below: Vec<_> = parent.iter().filter_map(below).collect();
                copier.leaf(None, At { root: tree.upper.ok_or(io::ErrorKind::NotFound)?, path }, &target, &below)
            }
            Entry::Directory(_) | Entry::Leaf(_) => Ok(()),
        }
    }
}

impl Swap {
    /// What is there goes aside, what was made takes its place.
    fn carry_out(&self, live: BorrowedFd<'_>, layers: &[OwnedFd]) -> io::Result<()> {
        let mut at = self.part.directory().to_owned();
        let root = directory(live, &at)?;
        let tree = self.part.tree(root.as_ref().map(OwnedFd::as_fd), layers);
        let comes = look(live, &self.new)?.is_some();
        // The directories that lead there are in the volume, as overlayfs itself would do it before a change.
        for (name, like) in self.names.iter().zip(self.present.iter().skip(1)) {
            at.push(name);
            if like.upper.is_none() && comes {
                let from = tree.attributes_of(like).ok_or(io::ErrorKind::NotFound)?;
                match copy::directory_like(from, At { root: live, path: &at }) {
                    // It was needed before.
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    made => made?,
                }
            }
        }
        at.extend(self.names.last());
        if look(live, &at)?.is_some() {
            rename(live, &at, &self.old)?;
        }
        if comes { rename(live, &self.new, &at) } else { Ok(()) }
    }
}

fn rename(root: BorrowedFd<'_>, from: &Path, to: &Path) -> io::Result<()> {
    let (from_directory, from_name) = copy::parent(root, from)?;
    let (to_directory, to_name) = copy::parent(root, to)?;
    Ok(rustix::fs::renameat(&from_directory, from_name, &to_directory, to_name)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_in_the_overlay_or_in_what_is_mounted_over_it() {
        for (path, part, names) in [
            ("/etc/ssh", Part::Upper, &["etc", "ssh"][..]),
            ("/var/lib", Part::Upper, &["var", "lib"]),
            ("/var/lib/docker", Part::Data, &["docker"]),
            ("/var/lib/docker/volumes/a", Part::Data, &["docker", "volumes", "a"]),
            ("/var/lib/containerd/x", Part::Data, &["containerd", "x"]),
            ("/var/lib/dockers", Part::Upper, &["var", "lib", "dockers"]),
        ] {
            let names = names.iter().map(OsString::from).collect();
            assert_eq!(Part::of(Path::new(path)), (part, names), "{path}");
        }
    }
}
