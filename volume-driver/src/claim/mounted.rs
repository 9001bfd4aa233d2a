//! Whether a volume of a pod is mounted, by the kernel's own table: it outlives the driver, and nobody has to keep a record.

use std::path::{Path, PathBuf};

use crate::ids::VolumeId;
use crate::publish::Refusal;

const TABLE: &str = "/proc/self/mountinfo";

/// A place where a volume of the pool that is mounted at `pool`, or a part of the volume, is mounted.
///
/// # Errors
/// The table cannot be read.
pub(super) fn anywhere(pool: &Path, id: &VolumeId) -> Result<Option<PathBuf>, Refusal> {
    let failed = |source| Refusal::Mount { attempt: "read", path: TABLE.into(), source };
    Ok(find(&std::fs::read_to_string(TABLE).map_err(failed)?, pool, id))
}

/// See `proc_pid_mountinfo(5)`: the third field and those after it are the file system, the root of the mount within it, and
/// where it is.
fn find(table: &str, pool: &Path, id: &VolumeId) -> Option<PathBuf> {
    let live = format!("/claims/{id}/live");
    let mounts = table.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(2);
        Some((fields.next()?, fields.next()?, fields.next()?))
    });
    let ours = mounts.clone().filter(|(.., at)| Path::new(at) == pool).map(|(system, ..)| system).next_back();
    mounts.filter(|(system, ..)| ours.is_none_or(|ours| ours == *system)).find_map(|(_, root, at)| {
        let (_, below) = root.split_once(&live)?;
        (below.is_empty() || below.starts_with('/')).then(|| at.into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_found_by_the_root_of_its_mounts() {
        let id = VolumeId::parse("pvc-1").unwrap();
        let line =
            |system: &str, root: &str, at: &str| format!("36 35 {system} {root} {at} rw - btrfs /dev/loop0 rw\n");
        for (system, root, found) in [
            ("0:52", "/claims/pvc-1/live", true),
            ("0:52", "/@pool/claims/pvc-1/live", true),
            ("0:52", "/claims/pvc-1/live/sub/path", true),
            ("0:52", "/claims/pvc-11/live", false),
            ("0:52", "/claims/pvc-1/live2", false),
            ("0:52", "/volumes/pvc-1/live", false),
            ("0:52", "/", false),
            ("0:53", "/claims/pvc-1/live", false),
        ] {
            let table = line("0:52", "/", "/pool") + &line(system, root, "/var/lib/kubelet/pods/1/mount");
            assert_eq!(find(&table, Path::new("/pool"), &id).is_some(), found, "{system} {root}");
            let unknown = find(&table, Path::new("/elsewhere"), &id).is_some();
            assert_eq!(unknown, found || system == "0:53", "better one time too often: {root}");
        }
    }
}
