//! Who may write a volume: the compare-and-swap of holder, session and epoch in `EnvironmentVolume.status`.
//!
//! The volume is given to an incarnation once its pod is bound to a node, and taken back when the pod is gone. An epoch
//! is given once: a pod whose epoch is not newer than the volume's, and which does not hold it, is stale for ever.

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

/// Decides for the pod of `epoch` on `node`, whose driver acts as `session`. `started`: whether its container ever ran.
#[must_use]
pub fn claim(volume: &EnvironmentVolume, epoch: u64, node: &str, session: Option<&str>, started: bool) -> Claim {
    let status = volume.status.clone().unwrap_or_default();
    // The data is on one node until journals can restore it elsewhere.
    if epoch == 0 || status.node.as_deref().is_some_and(|data| data != node) || epoch < status.epoch {
        return Claim::Stale;
    }
    let take = |session: &str| {
        let mut volume = volume.clone();
        let status = volume.status.get_or_insert_default();
        status.holder = Some(Holder { node: node.into(), session: session.into() });
        status.epoch = epoch;
        status.node = Some(node.into());
        Claim::Take(Box::new(volume))
    };
    if epoch > status.epoch {
        return session.map_or(Claim::NoSession, take);
    }
    match (&status.holder, session) {
        (Some(holder), _) if holder.node != node => Claim::Stale,
        // The driver began a new session, before which it ended all that ran: what never ran may go on under the new one.
        (Some(holder), Some(session)) if holder.session != session && !started => take(session),
        (Some(_), _) => Claim::Holds,
        (None, _) => Claim::Stale,
    }
}

/// Whether the volume is in the hands of that incarnation.
#[must_use]
pub fn holds(volume: &EnvironmentVolume, epoch: u64) -> bool {
    volume.status.as_ref().is_some_and(|s| s.epoch == epoch && s.holder.is_some())
}

/// The volume in nobody's hands; `None` if it already is.
#[must_use]
pub fn released(volume: &EnvironmentVolume) -> Option<EnvironmentVolume> {
    volume.status.as_ref()?.holder.as_ref()?;
    let mut volume = volume.clone();
    volume.status.get_or_insert_default().holder = None;
    Some(volume)
}
