//! Who may have a volume, decided from the `EnvironmentVolume` alone.

use vivarium_api::names;
use vivarium_api::v1alpha1::volume::Holder;
use vivarium_api::v1alpha1::{EnvironmentVolume, condition};

use super::Refusal;
use crate::directory::{PUBLISHED, VolumeName};
use crate::ids::VolumeId;

/// This node and its session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Me {
    /// Name of the node.
    pub node: String,
    /// Session of this driver.
    pub session: String,
}

/// What an observation of the object means.
#[derive(Debug)]
pub enum Verdict {
    /// Go on.
    Yes,
    /// The operator may still make it so; if it does not, this is why.
    NotYet(Refusal),
    /// It will not become so.
    Never(Refusal),
}

/// Whether an object is the one that a handle stands for.
///
/// # Errors
/// [`Refusal::NoObject`].
pub fn identify<'a>(
    object: Option<&'a EnvironmentVolume>,
    name: &VolumeName,
    id: &VolumeId,
) -> Result<&'a EnvironmentVolume, Refusal> {
    object
        .filter(|object| object.metadata.uid.as_deref() == Some(id.as_str()))
        .ok_or_else(|| Refusal::NoObject { name: name.clone(), id: id.clone() })
}

/// Whether the data belongs on this node.
#[must_use]
pub fn placed(object: &EnvironmentVolume, name: &VolumeName, me: &Me, waited: u64) -> Verdict {
    let status = object.status.as_ref();
    match status.and_then(|s| s.node.as_deref()) {
        Some(node) if node == me.node => Verdict::Yes,
        Some(node) => Verdict::NotYet(Refusal::OtherNode { name: name.clone(), node: node.to_owned() }),
        None => Verdict::NotYet(Refusal::NotHolder {
            name: name.clone(),
            epoch: status.map_or(0, |s| s.epoch),
            seconds: waited,
            holder: holder(object),
        }),
    }
}

/// Epoch of a pod as an incarnation of the environment that uses the volume.
///
/// # Errors
/// [`Refusal::NotItsPod`].
pub fn epoch(object: &EnvironmentVolume, name: &VolumeName, namespace: &str, pod: &str) -> Result<u64, Refusal> {
    let environment = object.spec.environment.as_deref();
    environment
        .filter(|_| namespace == name.namespace)
        .and_then(|environment| names::epoch_of_pod(environment, pod))
        .ok_or_else(|| Refusal::NotItsPod {
            name: name.clone(),
            pod: format!("{namespace}/{pod}"),
            environment: environment.unwrap_or("none").to_owned(),
        })
}

/// A pod that a volume is to be published to.
#[derive(Clone, Copy, Debug)]
pub struct Incarnation<'a> {
    /// Epoch of its name.
    pub epoch: u64,
    /// Its UID.
    pub pod_uid: &'a str,
}

/// Whether this node holds the volume for an incarnation (rule 12 of the ownership protocol: node, session and epoch;
/// and the pod's UID, because a create that comes late can bring a pod back under a name that was used before).
#[must_use]
pub fn held(object: &EnvironmentVolume, name: &VolumeName, me: &Me, pod: Incarnation<'_>, waited: u64) -> Verdict {
    let epoch = pod.epoch;
    let status = object.status.clone().unwrap_or_default();
    // One that was released has had its volume: whoever waited for that may have it by now.
    if status.epoch > epoch || status.released_epoch >= epoch {
        return Verdict::Never(Refusal::Superseded { name: name.clone(), epoch, current: status.epoch });
    }
    let mine = status.holder.as_ref().is_some_and(|holder| holder.node == me.node && holder.session == me.session);
    let given = status.holder_pod.as_deref().is_none_or(|uid| uid == pod.pod_uid);
    if mine && given && status.epoch == epoch {
        return Verdict::Yes;
    }
    Verdict::NotYet(Refusal::NotHolder { name: name.clone(), epoch, seconds: waited, holder: holder(object) })
}

/// Whether somebody else has a volume, from which an incarnation of this node gets it by way of the store: another node,
/// or this one in a session that is over.
#[must_use]
pub fn is_of_another(object: &EnvironmentVolume, me: &Me, epoch: u64) -> bool {
    let Some(status) = object.status.as_ref().filter(|status| status.epoch < epoch) else { return false };
    let other = |holder: &Holder| holder.node != me.node || holder.session != me.session;
    object.log().is_some() && status.holder.as_ref().is_some_and(other)
}

/// Whether a node is to keep a copy of a volume that it does not have.
#[must_use]
pub fn keeps_copy(object: &EnvironmentVolume, node: &str) -> bool {
    let Some(status) = &object.status else { return false };
    object.metadata.deletion_timestamp.is_none()
        && object.log().is_some()
        && status.standby.as_ref().is_some_and(|standby| standby.node == node)
        && status.node.as_deref() != Some(node)
}

/// What a node is to do with data of a volume that it had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Former {
    /// Nothing: no other node has the volume.
    Stays,
    /// It is to keep a copy, and may make it of that.
    Copy,
    /// A copy is wanted, and the operator has not said yet where.
    Undecided,
    /// It is of no use any more.
    Goes,
}

/// Decides that for `node`.
#[must_use]
pub fn former(object: &EnvironmentVolume, node: &str) -> Former {
    let status = object.status.as_ref();
    let holder = status.and_then(|status| status.node.as_deref());
    if object.log().is_none() || holder.is_none_or(|holder| holder == node) {
        return Former::Stays;
    }
    if keeps_copy(object, node) {
        return Former::Copy;
    }
    let chosen = status.and_then(|status| status.standby.as_ref()).map(|standby| standby.node.as_str());
    let is_open = object.metadata.deletion_timestamp.is_none() && object.spec.standby > 0;
    // Right after a takeover the node with the copy is still the one that has the volume now.
    if is_open && (chosen.is_none() || chosen == holder) { Former::Undecided } else { Former::Goes }
}

/// Whether nobody may write the volume any more, so that its data may be destroyed.
///
/// # Errors
/// [`Refusal::Held`].
pub fn given_back(object: &EnvironmentVolume, name: &VolumeName) -> Result<(), Refusal> {
    match object.status.as_ref().and_then(|status| status.holder.as_ref()) {
        Some(_) => Err(Refusal::Held { name: name.clone(), holder: holder(object) }),
        None => Ok(()),
    }
}

/// Whether the condition `Published` of the object is True.
#[must_use]
pub fn says_published(object: &EnvironmentVolume) -> bool {
    object.status.as_ref().is_some_and(|status| condition::is_true(&status.conditions, PUBLISHED))
}

/// Who holds a volume, for people.
fn holder(object: &EnvironmentVolume) -> String {
    let status = object.status.as_ref();
    match status.and_then(|s| s.holder.as_ref()) {
        Some(holder) => {
            format!("node {} (session {}) at epoch {}", holder.node, holder.session, status.map_or(0, |s| s.epoch))
        }
        None => "nobody".into(),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
    use vivarium_api::v1alpha1::volume::{StandbyStatus, VolumeTemplate};
    use vivarium_api::v1alpha1::{EnvironmentVolumeSpec, EnvironmentVolumeStatus};

    use super::*;

    fn object(holder: Option<(&str, &str)>, epoch: u64, node: Option<&str>) -> EnvironmentVolume {
        let mut object = EnvironmentVolume::new(
            "shop",
            EnvironmentVolumeSpec {
                template: VolumeTemplate { name: "t".into(), image: "i".into(), layers: vec![] },
                size: Quantity("1Gi".into()),
                environment: Some("shop".into()),
                store: None,
                source: None,
                restore: None,
                standby: 0,
            },
        );
        object.metadata.uid = Some("u1".into());
        object.status = Some(EnvironmentVolumeStatus {
            holder: holder.map(|(node, session)| Holder { node: node.into(), session: session.into() }),
            epoch,
            node: node.map(Into::into),
            ..Default::default()
        });
        object
    }

    fn me() -> Me {
        Me { node: "n1".into(), session: "s1".into() }
    }

    fn name() -> VolumeName {
        VolumeName::parse("team-a/shop").unwrap()
    }

    #[test]
    fn only_node_session_and_epoch_together_hold_a_volume() {
        for (holder, epoch, expected) in [
            (Some(("n1", "s1")), 3, "yes"),
            (Some(("n1", "s0")), 3, "not yet"),
            (Some(("n2", "s1")), 3, "not yet"),
            (None, 3, "not yet"),
            (Some(("n1", "s1")), 2, "not yet"),
            (Some(("n1", "s1")), 4, "never"),
            (None, 4, "never"),
        ] {
            let pod = Incarnation { epoch: 3, pod_uid: "p1" };
            let verdict = match held(&object(holder, epoch, None), &name(), &me(), pod, 30) {
                Verdict::Yes => "yes",
                Verdict::NotYet(Refusal::NotHolder { .. }) => "not yet",
                Verdict::Never(Refusal::Superseded { current: 4, .. }) => "never",
                other => panic!("{other:?}"),
            };
            assert_eq!(verdict, expected, "{holder:?} {epoch}");
        }
        let mut released = object(Some(("n1", "s1")), 3, None);
        for (epoch, refused) in [(2, false), (3, true), (4, true)] {
            released.status.as_mut().unwrap().released_epoch = epoch;
            let pod = Incarnation { epoch: 3, pod_uid: "p1" };
            let verdict = held(&released, &name(), &me(), pod, 30);
            assert_eq!(matches!(verdict, Verdict::Never(_)), refused, "released {epoch}");
        }
    }

    #[test]
    fn a_namesake_of_the_pod_that_holds_the_volume_does_not_get_it() {
        let mut object = object(Some(("n1", "s1")), 3, None);
        for (holder_pod, expected) in [(None, true), (Some("p1"), true), (Some("p0"), false)] {
            object.status.as_mut().unwrap().holder_pod = holder_pod.map(Into::into);
            let verdict = held(&object, &name(), &me(), Incarnation { epoch: 3, pod_uid: "p1" }, 30);
            assert_eq!(matches!(verdict, Verdict::Yes), expected, "{holder_pod:?}");
        }
    }

    #[test]
    fn only_what_comes_by_way_of_the_store_from_somebody_else_is_waited_for_by_the_shim() {
        for (store, holder, epoch, expected) in [
            (true, Some(("n2", "s9")), 2, true),
            (true, Some(("n1", "s0")), 2, true),
            (true, Some(("n1", "s1")), 2, false),
            (true, None, 2, false),
            (true, Some(("n2", "s9")), 3, false),
            (true, Some(("n2", "s9")), 4, false),
            (false, Some(("n2", "s9")), 2, false),
        ] {
            let mut object = object(holder, epoch, None);
            object.spec.store = store.then(|| "default".into());
            assert_eq!(is_of_another(&object, &me(), 3), expected, "{store} {holder:?} {epoch}");
        }
    }

    #[test]
    fn data_of_a_volume_that_moved_stays_for_a_copy_and_while_it_is_open_who_keeps_that() {
        for (standby, node, chosen, expected) in [
            (1, Some("n2"), Some("n1"), Former::Copy),
            // For a move.
            (0, Some("n2"), Some("n1"), Former::Copy),
            (1, Some("n2"), None, Former::Undecided),
            (1, Some("n2"), Some("n2"), Former::Undecided),
            (1, Some("n2"), Some("n3"), Former::Goes),
            (0, Some("n2"), None, Former::Goes),
            (0, Some("n2"), Some("n2"), Former::Goes),
            (1, Some("n1"), None, Former::Stays),
            (1, None, Some("n1"), Former::Stays),
        ] {
            let mut object = object(None, 0, node);
            (object.spec.store, object.spec.standby) = (Some("default".into()), standby);
            let status = object.status.get_or_insert_default();
            status.standby = chosen.map(|node| StandbyStatus { node: node.into(), sequence: None });
            assert_eq!(former(&object, "n1"), expected, "{standby} {node:?} {chosen:?}");
            object.spec.store = None;
            assert_eq!(former(&object, "n1"), Former::Stays, "nobody else has its data");
        }
    }

    #[test]
    fn data_is_made_only_where_the_operator_placed_it() {
        for (node, expected) in [(Some("n1"), true), (Some("n2"), false), (None, false)] {
            let verdict = placed(&object(None, 0, node), &name(), &me(), 30);
            assert_eq!(matches!(verdict, Verdict::Yes), expected, "{node:?}");
        }
    }

    #[test]
    fn a_pod_of_another_name_or_namespace_has_no_epoch() {
        let object = object(None, 0, None);
        assert_eq!(epoch(&object, &name(), "team-a", "shop-7").unwrap(), 7);
        for (namespace, pod) in [("team-b", "shop-7"), ("team-a", "shop"), ("team-a", "other-7")] {
            assert!(matches!(epoch(&object, &name(), namespace, pod), Err(Refusal::NotItsPod { .. })));
        }
    }

    #[test]
    fn an_object_made_anew_under_the_same_name_is_another_volume() {
        let object = object(None, 0, None);
        assert!(identify(Some(&object), &name(), &VolumeId::parse("u1").unwrap()).is_ok());
        for (object, id) in [(Some(&object), "u2"), (None, "u1")] {
            let refusal = identify(object, &name(), &VolumeId::parse(id).unwrap()).unwrap_err();
            assert!(matches!(refusal, Refusal::NoObject { .. }));
        }
    }
}
