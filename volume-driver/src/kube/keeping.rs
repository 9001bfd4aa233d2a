//! Keeps journals short ([`crate::journal::keep`]): those of environments that run elsewhere, as far as this node is the one
//! to do it, one after the other.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::json;
use vivarium_api::names;
use vivarium_api::v1alpha1::condition::{self, Condition, ConditionStatus};
use vivarium_api::v1alpha1::volume::{DivergedStatus, EnvironmentVolumeStatus, KeptStatus, RestoreProgress};
use vivarium_api::v1alpha1::{EnvironmentVolume, JournalStore};

use super::directory::apply;
use super::{ApiError, failed, is_gone};
use crate::directory::VolumeName;
use crate::ids::{IdError, LayerDigest, VolumeId};
use crate::journal::JournalError;
use crate::journal::keep::{Kept, Memory, Policy, Subject, chosen, keep};
use crate::journal::log::Log;
use crate::journal::wanted::Wanted;
use crate::publish::Publisher;
use crate::settings::parse_size;
use crate::template::TemplateError;
use crate::volume::diverged::Diverged;

/// From the end of one round to the next.
const PACE: Duration = Duration::from_mins(1);
/// A node whose lease is older than this keeps nothing. Clocks of nodes need not agree better.
const GONE_AFTER: Duration = Duration::from_mins(5);

/// Type of the condition that says whether any node can bring the volume back with the store alone.
const RESTORABLE: &str = "Restorable";

/// Why a journal was not kept; it is tried again in the next round.
#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error(transparent)]
    Id(#[from] IdError),
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error("its size cannot be understood: {0}")]
    Size(String),
}

/// What keeps journals.
pub struct Keeping {
    /// The cluster.
    pub client: Client,
    /// Namespace that Vivarium is installed in.
    pub namespace: String,
    /// Volumes, templates and stores of this node.
    pub publisher: Arc<Publisher>,
    /// When and how much.
    pub policy: Policy,
}

impl Keeping {
    /// Keeps for ever.
    pub async fn run(self) {
        let mut memories = HashMap::new();
        loop {
            tokio::time::sleep(PACE).await;
            if let Err(error) = self.round(&mut memories).await {
                tracing::warn!(%error, "journals are kept short later");
            }
            let (volumes, retention) = (self.publisher.volumes.clone(), self.policy.retention);
            let expired =
                tokio::task::spawn_blocking(move || volumes.expire_diverged(retention, SystemTime::now())).await;
            match expired {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, "what was set aside stays longer"),
                Err(error) => tracing::warn!(%error, "what was set aside stays longer"),
            }
        }
    }

    async fn round(&self, memories: &mut HashMap<VolumeId, Memory>) -> Result<(), ApiError> {
        let all = ListParams::default();
        let volumes = Api::<EnvironmentVolume>::all(self.client.clone());
        let stores = Api::<JournalStore>::all(self.client.clone());
        let leases = Api::<Lease>::namespaced(self.client.clone(), &self.namespace);
        let volumes = volumes.list(&all).await.map_err(failed("list", "volumes"))?;
        let stores = stores.list(&all).await.map_err(failed("list", "stores"))?;
        let leases = leases.list(&all).await.map_err(failed("list", "leases"))?;
        let alive = alive(&leases.items, Timestamp::now());
        self.tell_diverged(&volumes.items).await;
        let mut remembered = HashMap::new();
        for volume in &volumes {
            let store = volume.spec.store.as_deref();
            let Some(store) = stores.iter().find(|object| Some(object.name_any().as_str()) == store) else { continue };
            if !self.is_mine(volume, store, &alive) {
                continue;
            }
            let Some(id) = volume.uid().and_then(|uid| VolumeId::parse(&uid).ok()) else { continue };
            // What another node keeps from now on is forgotten here.
            let memory = remembered.entry(id.clone()).or_insert(memories.remove(&id).unwrap_or_default());
            let wanted = waited_for(volume, &volumes.items);
            if let Err(error) = self.keep_one(volume, wanted, &store.name_any(), id, memory).await {
                let name = format!("{}/{}", volume.namespace().unwrap_or_default(), volume.name_any());
                tracing::warn!(%error, volume = name, "its journal is kept short later");
            }
        }
        *memories = remembered;
        Ok(())
    }

    /// Says of each volume what is set aside of it here.
    async fn tell_diverged(&self, volumes: &[EnvironmentVolume]) {
        let local = match self.publisher.volumes.diverged() {
            Ok(local) => local,
            Err(error) => return tracing::warn!(%error, "what is set aside cannot be listed"),
        };
        for volume in volumes {
            let told = volume.status.as_ref().map(|status| status.diverged.as_slice()).unwrap_or_default();
            let Some(wanted) = diverged(&self.publisher.me.node, volume.uid().as_deref(), &local, told) else {
                continue;
            };
            let mut volume = volume.clone();
            volume.status.get_or_insert_default().diverged = wanted;
            let (namespace, name) = (volume.namespace().unwrap_or_default(), volume.name_any());
            let api: Api<EnvironmentVolume> = Api::namespaced(self.client.clone(), &namespace);
            // As it was read, or in the next round.
            if let Err(error) = api.replace_status(&name, &PostParams::default(), &volume).await {
                tracing::info!(%error, volume = name, "what is set aside of it is told later");
            }
        }
    }

    fn is_mine(&self, volume: &EnvironmentVolume, store: &JournalStore, alive: &[String]) -> bool {
        let me = &self.publisher.me.node;
        let Some(id) = volume.uid().and_then(|uid| VolumeId::parse(&uid).ok()) else { return false };
        if volume.metadata.deletion_timestamp.is_some() {
            return false;
        }
        let status = volume.status.as_ref();
        if store.spec.local.is_some() {
            // What is in the directory of another node cannot be seen here.
            return status.and_then(|status| status.node.as_ref()) == Some(me);
        }
        let proven = store.status.iter().flat_map(|status| &status.nodes).filter(|node| node.proven);
        let nodes: Vec<String> = proven.map(|node| node.name.clone()).filter(|node| alive.contains(node)).collect();
        let holder = status.and_then(|status| status.holder.as_ref()).map(|holder| holder.node.as_str());
        chosen(me, &id, &nodes, holder)
    }

    async fn keep_one(
        &self,
        volume: &EnvironmentVolume,
        wanted: Vec<Wanted>,
        store: &str,
        id: VolumeId,
        memory: &mut Memory,
    ) -> Result<(), KeepError> {
        let Some(opened) = self.publisher.stores.get(store) else { return Ok(()) };
        let template = &volume.spec.template;
        let layers = template.layers.iter().map(|layer| LayerDigest::parse(layer)).collect::<Result<Vec<_>, _>>()?;
        let status = volume.status.as_ref();
        let journal = status.and_then(|status| status.journal.as_ref());
        let subject = Subject {
            volume: id.clone(),
            layers,
            size: parse_size(&volume.spec.size.0).map_err(KeepError::Size)?,
            room: status.map_or(0, EnvironmentVolumeStatus::in_use),
            known: journal.map_or(0, |journal| journal.sequence),
            wanted,
        };
        let log = Log::new(&id, opened.clone())?;
        let (volumes, templates) = (&self.publisher.volumes, &self.publisher.templates);
        // Only a checkpoint needs them, and most rounds make none; they are mostly here already.
        templates.ensure(&template.image, &subject.layers, std::slice::from_ref(&opened)).await?;
        if opened.is_shared() {
            let kept = templates.keep_in(&opened, &template.image, &subject.layers).await;
            self.tell_restorable(volume, kept).await;
        }
        let kept = keep(volumes, templates, &log, &subject, memory, &self.policy).await?;
        self.tell(volume, kept, &log).await
    }

    /// Tells whether the store has all that a node needs to bring the volume back.
    async fn tell_restorable(&self, volume: &EnvironmentVolume, kept: Result<(), TemplateError>) {
        let (holds, reason, message) = match kept {
            Ok(()) => (true, "TemplateKept", "the store has the layers of the template as well".to_owned()),
            Err(error) => (false, "TemplateNotKept", error.to_string()),
        };
        let condition = Condition {
            type_: RESTORABLE.into(),
            status: if holds { ConditionStatus::True } else { ConditionStatus::False },
            observed_generation: volume.metadata.generation,
            last_transition_time: Timestamp::now(),
            reason: reason.into(),
            message,
        };
        let before = volume.status.as_ref().map(|status| status.conditions.clone()).unwrap_or_default();
        let mut after = before.clone();
        condition::set(&mut after, condition);
        if after == before {
            return;
        }
        let name = VolumeName { namespace: volume.namespace().unwrap_or_default(), name: volume.name_any() };
        let api = Api::namespaced(self.client.clone(), &name.namespace);
        let new = json!({"conditions": condition::find(&after, RESTORABLE).into_iter().collect::<Vec<_>>()});
        if let Err(error) = apply(&api, &name, volume, "template", new).await {
            tracing::info!(%error, volume = %name, "whether it can be restored is told later");
        }
    }

    /// Tells how much there is. A volume that was deleted meanwhile leaves nothing behind.
    async fn tell(&self, volume: &EnvironmentVolume, kept: Kept, log: &Log) -> Result<(), KeepError> {
        let (namespace, name) = (volume.namespace().unwrap_or_default(), volume.name_any());
        let api: Api<EnvironmentVolume> = Api::namespaced(self.client.clone(), &namespace);
        let status = KeptStatus {
            checkpoint: kept.checkpoint,
            since: kept.boundary,
            bytes: i64::try_from(kept.bytes).unwrap_or(i64::MAX),
            time: Time(Timestamp::now()),
        };
        let before = volume.status.as_ref().and_then(|status| status.kept.as_ref());
        if before.is_some_and(|before| KeptStatus { time: status.time.clone(), ..before.clone() } == status) {
            return Ok(());
        }
        let patch = json!({"metadata": {"uid": volume.uid()}, "status": {"kept": status}});
        match api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {
                // Whoever purged it may have been faster than the last checkpoint.
                match api.get_opt(&name).await {
                    Ok(found) if found.as_ref().and_then(ResourceExt::uid) == volume.uid() => Ok(()),
                    Ok(_) => Ok(log.purge().await?),
                    Err(error) if is_gone(&error) => Ok(log.purge().await?),
                    Err(error) => Err(failed("read", &name)(error).into()),
                }
            }
            Err(error) => Err(failed("write the status of", &name)(error).into()),
        }
    }
}

/// The states of a volume that somebody waits for: a restore of it, and branches that do not have theirs yet.
fn waited_for(volume: &EnvironmentVolume, all: &[EnvironmentVolume]) -> Vec<Wanted> {
    let restore = volume.spec.restore.as_ref().and_then(|order| match volume.restore() {
        Some(progress) if progress.is_settled() => None,
        Some(RestoreProgress { sequence: Some(sequence), .. }) => Some(Wanted::Sequence(*sequence)),
        _ => Wanted::parse(&order.at),
    });
    let branches = all.iter().filter_map(|branch| {
        let source = branch.spec.source.as_ref()?;
        let has_it = branch.status.as_ref().is_some_and(|status| status.source.is_some());
        (Some(&source.volume) == volume.metadata.uid.as_ref() && !has_it).then(|| Wanted::parse(&source.at))?
    });
    restore.into_iter().chain(branches).collect()
}

/// What a volume's status should say of trees that were set aside, if it does not.
fn diverged(me: &str, uid: Option<&str>, local: &[Diverged], told: &[DivergedStatus]) -> Option<Vec<DivergedStatus>> {
    let others = told.iter().filter(|told| told.node != me).cloned();
    let mine = local.iter().filter(|diverged| Some(diverged.volume.as_str()) == uid).map(|diverged| DivergedStatus {
        node: me.into(),
        epoch: diverged.epoch,
        time: Time(Timestamp::from_second(i64::try_from(diverged.since).unwrap_or_default()).unwrap_or_default()),
    });
    let mut wanted: Vec<_> = others.chain(mine).collect();
    wanted.sort_by(|a, b| (&a.node, a.epoch).cmp(&(&b.node, b.epoch)));
    (wanted != told).then_some(wanted)
}

/// Nodes whose drivers have been heard of lately.
fn alive(leases: &[Lease], now: Timestamp) -> Vec<String> {
    let fresh = |lease: &&Lease| {
        let renewed = lease.spec.as_ref().and_then(|spec| spec.renew_time.as_ref());
        renewed.is_some_and(|renewed| now.duration_since(renewed.0).unsigned_abs() < GONE_AFTER)
    };
    let node = |lease: &Lease| names::node_of_lease(lease.metadata.name.as_deref()?).map(str::to_owned);
    leases.iter().filter(fresh).filter_map(node).collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

    use super::*;

    #[test]
    fn a_node_tells_of_its_own_trees_and_leaves_those_of_others() {
        let told = |node: &str, epoch, second| DivergedStatus {
            node: node.into(),
            epoch,
            time: Time(Timestamp::from_second(second).unwrap()),
        };
        let local = |volume: &str| Diverged { since: 7, volume: VolumeId::parse(volume).unwrap(), epoch: 2 };
        let all = [local("v"), local("w")];
        let others = [told("n2", 1, 5)];
        assert_eq!(diverged("n1", Some("v"), &all, &others), Some(vec![told("n1", 2, 7), told("n2", 1, 5)]));
        assert_eq!(diverged("n1", Some("v"), &all, &[told("n1", 2, 7)]), None);
        assert_eq!(diverged("n1", Some("v"), &[], &[told("n1", 2, 7), told("n2", 1, 5)]), Some(others.to_vec()));
        assert_eq!(diverged("n1", Some("x"), &all, &[]), None);
    }

    #[test]
    fn a_state_is_kept_while_somebody_waits_for_it() {
        let volume = |uid: &str, spec: serde_json::Value, status: serde_json::Value| -> EnvironmentVolume {
            let mut object = json!({"apiVersion": "vivarium.dev/v1alpha1", "kind": "EnvironmentVolume",
                "metadata": {"name": uid, "uid": uid},
                "spec": {"template": {"name": "t", "image": "i", "layers": ["l"]}, "size": "1Gi"},
                "status": {"observedGeneration": 1}});
            for (part, values) in [("spec", spec), ("status", status)] {
                for (key, value) in values.as_object().unwrap() {
                    object[part][key] = value.clone();
                }
            }
            serde_json::from_value(object).unwrap()
        };
        let order = json!({"restore": {"name": "r", "uid": "r1", "at": "2026-01-01T12:00:00Z"}});
        let progress = |done: serde_json::Value| {
            let mut progress = json!({"restore": {"uid": "r1", "epoch": 1, "sequence": 7}});
            progress["restore"]["done"] = done;
            progress
        };
        let found = progress(serde_json::Value::Null);
        let done = progress(json!({"epoch": 2, "before": 8, "sequence": 9}));
        let branch = json!({"source": {"volume": "a", "store": "s", "at": "5"}});
        let of_another = json!({"source": {"volume": "c", "store": "s", "at": "5"}});
        let (none, has_it) = (json!({}), json!({"source": {"sequence": 5}}));
        let then = Wanted::Time("2026-01-01T12:00:00Z".parse().unwrap());
        for (spec, status, other_spec, other_status, expected) in [
            (&none, &none, &none, &none, &[][..]),
            (&order, &none, &none, &none, &[then]),
            (&order, &found, &none, &none, &[Wanted::Sequence(7)]),
            (&order, &done, &none, &none, &[]),
            (&none, &none, &branch, &none, &[Wanted::Sequence(5)]),
            (&order, &found, &branch, &none, &[Wanted::Sequence(7), Wanted::Sequence(5)]),
            (&none, &none, &branch, &has_it, &[]),
            (&none, &none, &of_another, &none, &[]),
        ] {
            let own = volume("a", spec.clone(), status.clone());
            let all = [own.clone(), volume("b", other_spec.clone(), other_status.clone())];
            assert_eq!(waited_for(&own, &all), expected, "{spec} {status} {other_spec} {other_status}");
        }
    }

    #[test]
    fn a_node_that_was_not_heard_of_for_long_keeps_nothing() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let lease = |name: &str, renewed| {
            let mut lease = Lease::default();
            lease.metadata.name = Some(name.into());
            lease.spec.get_or_insert_default().renew_time = Some(MicroTime(at(renewed)));
            lease
        };
        let leases = [lease("vivarium-node-n1", 900), lease("vivarium-node-n2", 100), lease("vivarium-operator", 900)];
        assert_eq!(alive(&leases, at(1000)), ["n1"]);
        // A clock that is a little ahead.
        assert_eq!(alive(&leases, at(850)), ["n1"]);
    }
}
