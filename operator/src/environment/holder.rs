//! Who may write a volume: the compare-and-swap of holder, session and epoch in `EnvironmentVolume.status`.
//!
//! The volume is given to an incarnation once its pod is bound to a node, and taken back when the pod is gone. An epoch
//! is given once, and to one pod by UID: a create that comes late can bring a pod back under a name that was used before,
//! which must not find the volume still given to its namesake. A pod whose epoch is not newer than the volume's, and
//! which does not hold it, is stale for ever.

use vivarium_api::v1alpha1::EnvironmentVolume;
use vivarium_api::v1alpha1::volume::Holder;

/// What follows for a pod that is bound to a node.
#[derive(Clone, Debug, PartialEq)]
pub enum Claim {
    /// It has the volume.
    Holds,
    /// It gets the volume: this is what the volume becomes.
    Take(Box<EnvironmentVolume>),
    /// It can never have the volume.
    Stale,
    /// The driver of its node has not said yet under which session it acts.
    NoSession,
}

/// A pod that wants the volume.
#[derive(Clone, Copy, Debug)]
pub struct Bidder<'a> {
    /// UID.
    pub uid: &'a str,
    /// Epoch of its name.
    pub epoch: u64,
    /// Node that it is bound to.
    pub node: &'a str,
    /// Whether its container ever ran.
    pub started: bool,
}

/// Decides for a pod that is bound to a node, whose driver acts as `session`. `movable`: any node can bring the data
/// back ([`super::world::World::is_movable`]).
#[must_use]
pub fn claim(volume: &EnvironmentVolume, pod: Bidder<'_>, session: Option<&str>, movable: bool) -> Claim {
    let Bidder { uid, epoch, node, started } = pod;
    let status = volume.status.clone().unwrap_or_default();
    let elsewhere = status.node.as_deref().is_some_and(|data| data != node);
    if epoch == 0 || (elsewhere && !movable) || epoch < status.epoch {
        return Claim::Stale;
    }
    let take = |session: &str| {
        let mut volume = volume.clone();
        let status = volume.status.get_or_insert_default();
        status.holder = Some(Holder { node: node.into(), session: session.into() });
        status.holder_pod = Some(uid.into());
        status.epoch = epoch;
        status.node = Some(node.into());
        Claim::Take(Box::new(volume))
    };
    if epoch > status.epoch {
        return session.map_or(Claim::NoSession, take);
    }
    match (&status.holder, session) {
        (Some(holder), _) if holder.node != node || status.holder_pod.as_deref() != Some(uid) => Claim::Stale,
        // The driver began a new session, before which it ended all that ran: what never ran may go on under the new one.
        (Some(holder), Some(session)) if holder.session != session && !started => take(session),
        (Some(_), _) => Claim::Holds,
        (None, _) => Claim::Stale,
    }
}

/// Whether the volume is in the hands of that pod.
#[must_use]
pub fn holds(volume: &EnvironmentVolume, uid: Option<&str>) -> bool {
    uid.is_some() && volume.status.as_ref().is_some_and(|s| s.holder.is_some() && s.holder_pod.as_deref() == uid)
}

/// The volume in nobody's hands; `None` if it already is.
#[must_use]
pub fn released(volume: &EnvironmentVolume) -> Option<EnvironmentVolume> {
    volume.status.as_ref()?.holder.as_ref()?;
    let mut volume = volume.clone();
    let status = volume.status.get_or_insert_default();
    (status.holder, status.holder_pod) = (None, None);
    Some(volume)
}
