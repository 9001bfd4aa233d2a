//! Bind mounts of a container. Each is cloned, idmapped and given its options here, on the host's side, and handed to
//! libcontainer as a plain bind of the staged place, because libcontainer refuses idmapped mounts, would look the source
//! up as the container's root user (who cannot traverse the kubelet's directories), and forgets propagation.

use std::os::fd::{AsFd, BorrowedFd};

use oci_spec::runtime::{LinuxIdMapping, Mount};
use vivarium_sys::mount::{Attributes, NODEV, NOEXEC, NOSUID, Propagation, RDONLY, set_attributes};

use crate::error::{Attempt, Error, Result};
use crate::helper::stage::{Stage, clone_path, idmap, is_directory};

/// Whether a mount of the spec is a bind mount.
#[must_use]
pub fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind") || has_option(mount, "bind") || has_option(mount, "rbind")
}

fn has_option(mount: &Mount, name: &str) -> bool {
    mount.options().iter().flatten().any(|option| option == name)
}

/// What the options of a bind mount mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plan {
    /// Mounts below the source come along.
    recursive: bool,
    /// Owners are translated.
    mapped: bool,
    /// Attributes of the topmost mount.
    set: u64,
    /// Attributes of all mounts.
    set_all: u64,
    propagation: Propagation,
}

fn plan(mount: &Mount) -> Result<Plan> {
    let named = |list: &Option<Vec<LinuxIdMapping>>| list.as_ref().is_some_and(|l| !l.is_empty());
    let mut plan = Plan {
        recursive: false,
        mapped: named(mount.uid_mappings()) || named(mount.gid_mappings()),
        set: 0,
        set_all: 0,
        propagation: Propagation::Private,
    };
    for option in mount.options().iter().flatten() {
        match option.as_str() {
            "rbind" => plan.recursive = true,
            "idmap" | "ridmap" => plan.mapped = true,
            "ro" => plan.set |= RDONLY,
            "nosuid" => plan.set |= NOSUID,
            "nodev" => plan.set |= NODEV,
            "noexec" => plan.set |= NOEXEC,
            "rro" => plan.set_all |= RDONLY,
            "rnosuid" => plan.set_all |= NOSUID,
            "rnodev" => plan.set_all |= NODEV,
            "rnoexec" => plan.set_all |= NOEXEC,
            "slave" | "rslave" => plan.propagation = Propagation::Slave,
            "shared" | "rshared" => {
                return Err(Error::Refused(format!(
                    "the mount at {} asks for propagation to the node, which a container in a user namespace cannot \
                     have; remove mountPropagation: Bidirectional",
                    mount.destination().display()
                )));
            }
            _ => {}
        }
    }
    Ok(plan)
}

/// Stages a bind mount and returns the mount that libcontainer is to make of it. Its options stay, so that libcontainer
/// applies those that this function knows nothing of (it refuses what it does not know).
pub fn stage(mount: &Mount, stage: &mut Stage, user_namespace: BorrowedFd<'_>) -> Result<Mount> {
    let plan = plan(mount)?;
    let Some(source) = mount.source() else {
        return Err(Error::Refused(format!("the bind mount at {} has no source", mount.destination().display())));
    };
    let tree = clone_path(source, plan.recursive)?;
    if plan.mapped {
        idmap(tree.as_fd(), user_namespace, plan.recursive, source)?;
    }
    let apply = |attributes: &Attributes<'_>, recursive| {
        set_attributes(tree.as_fd(), attributes, recursive)
            .attempt(|| format!("set the mount options of {}", source.display()))
    };
    apply(&Attributes { set: plan.set_all, propagation: plan.propagation, ..Attributes::default() }, true)?;
    apply(&Attributes { set: plan.set, ..Attributes::default() }, false)?;
    let place = stage.attach(tree.as_fd(), is_directory(tree.as_fd())?)?;

    let mut staged = mount.clone();
    staged.set_source(Some(place));
    staged.set_typ(Some("bind".into()));
    staged.set_uid_mappings(None);
    staged.set_gid_mappings(None);
    let kept = mount.options().iter().flatten().filter(|o| !matches!(o.as_str(), "idmap" | "ridmap")).cloned();
    staged.set_options(Some(kept.collect()));
    Ok(staged)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(options: &[&str]) -> Mount {
        let mut mount = Mount::default();
        mount.set_typ(Some("bind".into()));
        mount.set_options(Some(options.iter().map(ToString::to_string).collect()));
        mount
    }

    #[test]
    fn options_become_attributes() {
        let rro = plan(&bind(&["rbind", "rro", "nosuid", "rslave"])).unwrap();
        assert_eq!((rro.recursive, rro.mapped, rro.set, rro.set_all), (true, false, NOSUID, RDONLY));
        assert_eq!(rro.propagation, Propagation::Slave);
        let plain = plan(&bind(&["bind", "rprivate", "rw", "ridmap"])).unwrap();
        assert_eq!((plain.recursive, plain.mapped, plain.set), (false, true, 0));
        assert_eq!(plain.propagation, Propagation::Private);
    }

    #[test]
    fn propagation_to_the_node_is_refused() {
        assert!(matches!(plan(&bind(&["rbind", "rshared"])), Err(Error::Refused(_))));
    }
}
