//! What makes a container an environment: an operating system with its own init on a volume of its own.
//!
//! | module | does |
//! |---|---|
//! | [`identify`] | tells a Vivarium volume from anything else that is mounted at `/.vivarium/root` |
//! | [`departure`] | holds a stop back until the next incarnation is prepared elsewhere |
//! | [`pending`] | waits for a volume that is still to come |
//! | [`profile`] | rewrites the container's spec into that of an operating system (pure) |
//! | [`runtree`] | fills the `/run` that the guest boots with |
//! | [`tree`] | puts what the spec asks for into the guest's `/etc`, never following a symlink out |
//! | [`config`] | reads what the guest is told, from the projected volume |
//! | [`hostdir`] | the guest's `/run/host`: keys, resolver, notify socket |
//! | [`lease`] | says how long it may run |
//! | [`notify`] | hears what the guest's init says |
//! | [`report`] | tells the node driver how the guest is |

pub mod config;
pub mod departure;
pub mod egress;
pub mod hostdir;
pub mod identify;
pub mod lease;
pub mod limits;
pub mod notify;
pub mod pending;
pub mod profile;
pub mod report;
pub mod runtree;
pub mod tree;

use oci_spec::runtime::{Mount, Spec};
use vivarium_api::names;

/// The mount that makes a container an environment, if it has one.
#[must_use]
pub fn root_mount(spec: &Spec) -> Option<&Mount> {
    find_mount(spec, names::MOUNT_ROOT)
}

/// The mount of a spec with this destination.
#[must_use]
pub fn find_mount<'a>(spec: &'a Spec, destination: &str) -> Option<&'a Mount> {
    spec.mounts().iter().flatten().find(|m| m.destination().to_str() == Some(destination))
}
