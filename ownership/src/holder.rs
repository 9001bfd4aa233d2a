//! Who may write a volume (rules 9 to 12): what the volume's object says, what an incarnation that wants it may get, and
//! whether a node holds it. Whatever is decided is written by compare-and-swap of the whole.
//!
//! The volume is given to an incarnation once its pod is bound to a node. An epoch is given once, and to one pod by UID: a
//! create that comes late can bring a pod back under a name that was used before, which must not find the volume still
//! given to its namesake.

use crate::book::{Deaths, is_superseded};

/// What a volume's object says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Volume {
    /// Node and session that may write it.
    pub holder: Option<(String, String)>,
    /// UID of the pod that it was given to.
    pub pod: Option<String>,
    /// Epoch of the newest incarnation that it was given to.
    pub epoch: u64,
    /// Epoch up to which everything is committed and nothing will be started again.
    pub released: u64,
    /// The node that had it last.
    pub node: Option<String>,
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

/// What follows for such a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It has the volume.
    Holds,
    /// It gets the volume: this is what the volume becomes.
    Take(Volume),
    /// It can never have the volume.
    Stale,
    /// The driver of its node has not said yet under which session it acts.
    NoSession,
}

/// Decides for a pod that is bound to a node, whose driver acts as `session`. `movable`: any node can bring the data back.
#[must_use]
pub fn claim(volume: &Volume, pod: Bidder<'_>, session: Option<&str>, movable: bool) -> Claim {
    let Bidder { uid, epoch, node, started } = pod;
    let elsewhere = volume.node.as_deref().is_some_and(|data| data != node);
    if epoch == 0 || (elsewhere && !movable) || epoch < volume.epoch {
        return Claim::Stale;
    }
    let take = |session: &str| {
        Claim::Take(Volume {
            holder: Some((node.into(), session.into())),
            pod: Some(uid.into()),
            epoch,
            node: Some(node.into()),
            released: volume.released,
        })
    };
    if epoch > volume.epoch {
        return session.map_or(Claim::NoSession, take);
    }
    match (&volume.holder, session) {
        (Some((on, _)), _) if on != node || volume.pod.as_deref() != Some(uid) => Claim::Stale,
        // The driver began a new session, before which it ended all that ran: what never ran may go on under the new one.
        (Some((_, under)), Some(session)) if under != session && !started => take(session),
        (Some(_), _) => Claim::Holds,
        (None, _) => Claim::Stale,
    }
}

/// The volume in nobody's hands; `None` if it already is.
#[must_use]
pub fn released(volume: &Volume) -> Option<Volume> {
    volume.holder.as_ref()?;
    Some(Volume { holder: None, pod: None, ..volume.clone() })
}

/// Whether a node may mount a volume for an incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It may.
    Holds,
    /// It may not, but may later.
    NotYet,
    /// It never will: a later epoch has the volume, or this one was released.
    Never,
}

/// Whether `node` holds the volume under its present `session` for the pod of an epoch. A volume without a pod is not bound
/// to one.
#[must_use]
pub fn standing(volume: &Volume, node: &str, session: &str, epoch: u64, pod: &str) -> Standing {
    if volume.epoch > epoch || volume.released >= epoch {
        return Standing::Never;
    }
    let mine = volume.holder.as_ref().is_some_and(|(on, under)| on == node && under == session);
    let given = volume.pod.as_deref().is_none_or(|uid| uid == pod);
    if mine && given && volume.epoch == epoch { Standing::Holds } else { Standing::NotYet }
}

/// Whether whoever held a volume last can still run on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tenure {
    /// For all that is known.
    Lives,
    /// Its end cannot be stopped any more, but has not come yet.
    Ends,
    /// Not any more, and for ever.
    Over,
}

/// Whether whoever held a volume last can still run on it, whose journal is in `store`. `now`: session of the driver on the
/// holder's node. One that nobody holds but that was perhaps not committed to the end is its last node's.
#[must_use]
pub fn tenure<W>(volume: &Volume, now: Option<&str>, deaths: &Deaths<W>, store: &str) -> Tenure {
    let death = match &volume.holder {
        Some((_, session)) if now.is_some_and(|now| is_superseded(session, now)) => return Tenure::Over,
        Some((_, session)) => deaths.get(session),
        None => deaths.values().find(|death| !death.is_back && Some(&death.node) == volume.node.as_ref()),
    };
    match death {
        None => Tenure::Lives,
        Some(death) if death.over.get(store).is_some_and(Option::is_some) => Tenure::Over,
        Some(_) => Tenure::Ends,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume() -> Volume {
        Volume {
            holder: Some(("n1".into(), "s1".into())),
            pod: Some("p3".into()),
            epoch: 3,
            released: 2,
            node: Some("n1".into()),
        }
    }

    #[test]
    fn only_node_session_epoch_and_pod_together_hold_a_volume_that_is_not_released() {
        for (node, session, epoch, pod, released, expected) in [
            ("n1", "s1", 3, "p3", 2, Standing::Holds),
            ("n1", "s0", 3, "p3", 2, Standing::NotYet),
            ("n2", "s1", 3, "p3", 2, Standing::NotYet),
            ("n1", "s1", 4, "p4", 2, Standing::NotYet),
            ("n1", "s1", 3, "p0", 2, Standing::NotYet),
            ("n1", "s1", 2, "p2", 1, Standing::Never),
            ("n1", "s1", 3, "p3", 3, Standing::Never),
        ] {
            let volume = Volume { released, ..volume() };
            assert_eq!(standing(&volume, node, session, epoch, pod), expected, "{node} {session} {epoch} {pod}");
        }
    }

    #[test]
    fn an_epoch_is_given_once_and_to_one_pod() {
        let bid = |epoch, uid, node, started, session: &str, movable| match claim(
            &volume(),
            Bidder { uid, epoch, node, started },
            Some(session),
            movable,
        ) {
            Claim::Take(taken) => format!("{} {}", taken.epoch, taken.holder.unwrap().1),
            other => format!("{other:?}"),
        };
        assert_eq!(bid(4, "p4", "n2", false, "s2", true), "4 s2");
        assert_eq!(bid(4, "p4", "n2", false, "s2", false), "Stale", "its data is elsewhere");
        assert_eq!(bid(3, "p3", "n1", true, "s1", false), "Holds");
        assert_eq!(bid(3, "p3", "n1", false, "t1", false), "3 t1", "it never ran");
        assert_eq!(bid(3, "p3", "n1", true, "t1", false), "Holds", "it ran under the old session, and is over");
        assert_eq!(bid(3, "q3", "n1", false, "s1", true), "Stale", "a namesake");
        assert_eq!(bid(2, "p2", "n1", false, "s1", true), "Stale");
        let nobody = released(&volume()).unwrap();
        assert_eq!(released(&nobody), None);
        assert_eq!(
            claim(&nobody, Bidder { uid: "p3", epoch: 3, node: "n1", started: false }, Some("s1"), true),
            Claim::Stale
        );
        let next = Bidder { uid: "p4", epoch: 4, node: "n1", started: false };
        assert_eq!(claim(&nobody, next, None, true), Claim::NoSession);
    }
}
