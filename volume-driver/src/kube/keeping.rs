//! Keeps journals short ([`crate::journal::keep`]): those of environments that run elsewhere, as far as this node is the one
//! to do it, one after the other.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::json;
use tokio::time::Instant;
use vivarium_api::v1alpha1::EnvironmentVolume;
use vivarium_api::v1alpha1::condition;
use vivarium_api::v1alpha1::volume::{DivergedStatus, KeptStatus, LeftLog, RestoreProgress, VolumeLog};

use super::directory::{apply, condition_part};
use super::journals::{self, Journals, TendError, Tended};
use super::volumes::name;
use super::{ApiError, failed, is_gone};
use crate::ids::VolumeId;
use crate::journal::keep::{Kept, Memory, Policy, keep};
use crate::journal::log::Log;
use crate::journal::wanted::Wanted;
use crate::publish::Publisher;
use crate::template::TemplateError;
use crate::volume::diverged::Diverged;

/// From the start of a driver to its first round, for which it has to have opened its stores. A node that dies once a minute
/// keeps its journals short all the same.
const FIRST: Duration = Duration::from_secs(5);
/// From the end of one round to the next: about as long as it takes a busy journal to get what is merged into one.
const PACE: Duration = Duration::from_secs(15);
/// A journal to which nothing was added for so long is looked at as often as this, for what becomes old enough to go.
const AT_REST: Duration = Duration::from_mins(1);

/// Type of the condition that says whether any node can bring the volume back with the store alone.
const RESTORABLE: &str = "Restorable";

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
        let mut pause = FIRST;
        loop {
            tokio::time::sleep(pause).await;
            pause = PACE;
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

    async fn round(&self, memories: &mut HashMap<VolumeLog, Remembered>) -> Result<(), ApiError> {
        let journals = Journals::read(&self.client, &self.namespace).await?;
        self.tell_diverged(&journals.volumes).await;
        let mut remembered = HashMap::new();
        for (volume, id) in journals.of(&self.publisher.me.node) {
            // What another node keeps from now on is forgotten here.
            let Some(log) = volume.log() else { continue };
            let memory = memories.remove(&log).unwrap_or_default();
            let memory = remembered.entry(log).or_insert(memory);
            if !memory.turn.is_due(volume.known(), Instant::now()) {
                continue;
            }
            let wanted = waited_for(volume, &journals.volumes);
            if let Err(error) = self.keep_one(volume, id, wanted, memory).await {
                tracing::warn!(%error, volume = %name(volume), "its journal is kept short later");
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

    /// Deletes logs that a volume has left and of which no state is to be restored any more.
    async fn forget_left(&self, volume: &EnvironmentVolume, id: &VolumeId) -> Result<(), TendError> {
        let status = volume.status.as_ref();
        let forgotten = |left: &&LeftLog| self.is_over(left, Timestamp::now());
        for left in status.map(|status| status.left.as_slice()).unwrap_or_default().iter().filter(forgotten) {
            let Some(store) = self.publisher.stores.get(&left.store) else { continue };
            Log::named(id, &left.name, store)?.purge().await?;
            let mut volume = volume.clone();
            volume.status.get_or_insert_default().left.retain(|other| other.name != left.name);
            // As it was read, or in the next round; one after the other.
            self.publisher.directory.swap_status(&volume).await?;
            return Ok(());
        }
        Ok(())
    }

    /// Whether nobody restores a state of a log that was left. One that never decided has none.
    fn is_over(&self, left: &LeftLog, now: Timestamp) -> bool {
        left.last.is_none() || now.duration_since(left.time.0).unsigned_abs() > self.policy.retention
    }

    async fn keep_one(
        &self,
        volume: &EnvironmentVolume,
        id: VolumeId,
        wanted: Vec<Wanted>,
        remembered: &mut Remembered,
    ) -> Result<(), TendError> {
        // Only a checkpoint needs the layers, and most rounds make none; they are mostly here already.
        self.forget_left(volume, &id).await?;
        let tended = journals::open(&self.publisher, volume, id, wanted).await?;
        let Some(tended) = tended else { return Ok(()) };
        let Tended { store, log, subject, .. } = &tended;
        let (volumes, templates) = (&self.publisher.volumes, &self.publisher.templates);
        if store.is_shared() {
            let kept = templates.keep_in(store, &volume.spec.template.image, &subject.layers).await;
            self.tell_restorable(volume, kept).await;
        }
        let kept = keep(volumes, templates, log, subject, &mut remembered.memory, &self.policy).await?;
        let is_news = remembered.told.is_none_or(|(at, told)| {
            at.elapsed() >= AT_REST || (told.checkpoint, told.boundary) != (kept.checkpoint, kept.boundary)
        });
        if is_news {
            self.tell(volume, kept, log).await?;
            remembered.told = Some((Instant::now(), kept));
        }
        Ok(())
    }

    /// Tells whether the store has all that a node needs to bring the volume back.
    async fn tell_restorable(&self, volume: &EnvironmentVolume, kept: Result<(), TemplateError>) {
        let (holds, reason, message) = match kept {
            Ok(()) => (true, "TemplateKept", "the store has the layers of the template as well".to_owned()),
            Err(error) => (false, "TemplateNotKept", error.to_string()),
        };
        let new = condition_part(volume, RESTORABLE, holds, reason, &message, Timestamp::now());
        let before = volume.status.as_ref().and_then(|status| condition::find(&status.conditions, RESTORABLE));
        if before == new.first() {
            return;
        }
        let name = name(volume);
        let api = Api::namespaced(self.client.clone(), &name.namespace);
        let new = json!({"conditions": new});
        if let Err(error) = apply(&api, &name, volume, "template", new).await {
            tracing::info!(%error, volume = %name, "whether it can be restored is told later");
        }
    }

    /// Tells how much there is. A volume that was deleted meanwhile leaves nothing behind.
    async fn tell(&self, volume: &EnvironmentVolume, kept: Kept, log: &Log) -> Result<(), TendError> {
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
                // Whoever purged it may have been faster than the last checkpoint. That the object is gone is no proof: the
                // cluster may have been set back to an earlier state.
                match api.get_opt(&name).await {
                    Ok(found) if found.as_ref().and_then(ResourceExt::uid) == volume.uid() => Ok(()),
                    Ok(_) => Ok(log.finish_purge().await.map(drop)?),
                    Err(error) if is_gone(&error) => Ok(log.finish_purge().await.map(drop)?),
                    Err(error) => Err(failed("read", &name)(error).into()),
                }
            }
            Err(error) => Err(failed("write the status of", &name)(error).into()),
        }
    }
}

/// What is remembered of a journal from one round to the next.
#[derive(Default)]
struct Remembered {
    memory: Memory,
    turn: Turn,
    /// What its object was told, and when.
    told: Option<(Instant, Kept)>,
}

/// Whose turn it is.
#[derive(Clone, Copy, Default)]
struct Turn {
    /// The newest transaction that was heard of.
    known: u64,
    /// When that was another one.
    moved: Option<Instant>,
    /// When the journal was looked at.
    looked: Option<Instant>,
}

impl Turn {
    /// Whether the journal is looked at now: in each round while something is added to it. `known`: its newest transaction, as
    /// far as its node has told, which it does twice in the time after which a journal is at rest.
    fn is_due(&mut self, known: u64, now: Instant) -> bool {
        let lately = |then: Option<Instant>| then.is_some_and(|then| now.duration_since(then) < AT_REST);
        if self.moved.is_none() || known != self.known {
            (self.known, self.moved) = (known, Some(now));
        }
        let is_due = lately(self.moved) || !lately(self.looked);
        if is_due {
            self.looked = Some(now);
        }
        is_due
    }
}

/// The states of a volume that somebody waits for: a restore of it, a trial that its node told of, and branches that do not
/// have theirs yet.
fn waited_for(volume: &EnvironmentVolume, all: &[EnvironmentVolume]) -> Vec<Wanted> {
    let restore = volume.spec.restore.as_ref().and_then(|order| match volume.restore() {
        Some(progress) if progress.is_settled() => None,
        Some(RestoreProgress { sequence: Some(sequence), .. }) => Some(Wanted::Sequence(*sequence)),
        _ => Wanted::parse(&order.at),
    });
    let status = volume.status.as_ref();
    let tried = status.and_then(|status| status.tried.as_ref()).map(|tried| tried.sequence);
    let told = status.and_then(|status| status.digest.as_ref()).map(|digest| digest.sequence);
    let trial = told.filter(|_| tried != told).map(Wanted::Sequence);
    let branches = all.iter().filter_map(|branch| {
        let source = branch.spec.source.as_ref()?;
        let has_it = branch.status.as_ref().is_some_and(|status| status.source.is_some());
        (Some(&source.volume) == volume.metadata.uid.as_ref() && !has_it).then(|| Wanted::parse(&source.at))?
    });
    restore.into_iter().chain(trial).chain(branches).collect()
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

#[cfg(test)]
mod tests {
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
    fn a_journal_is_looked_at_often_while_something_is_added_to_it() {
        let begin = Instant::now();
        let mut turn = Turn::default();
        // Told every half minute of what is added; nothing after the first minute.
        let due: Vec<u64> = (0..16)
            .map(|round| round * 15)
            .filter(|second| turn.is_due((second / 30).min(2), begin + Duration::from_secs(*second)))
            .collect();
        assert_eq!(due, [0, 15, 30, 45, 60, 75, 90, 105, 165, 225]);
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
        let time = "2026-01-01T12:00:00Z";
        let told = json!({"digest": {"sequence": 3, "digest": "d", "time": time}});
        let mut tried = told.clone();
        tried["tried"] = json!({"sequence": 3, "time": time});
        let then = Wanted::Time("2026-01-01T12:00:00Z".parse().unwrap());
        for (spec, status, other_spec, other_status, expected) in [
            (&none, &none, &none, &none, &[][..]),
            (&order, &none, &none, &none, &[then]),
            (&order, &found, &none, &none, &[Wanted::Sequence(7)]),
            (&order, &done, &none, &none, &[]),
            (&none, &none, &branch, &none, &[Wanted::Sequence(5)]),
            (&order, &found, &branch, &none, &[Wanted::Sequence(7), Wanted::Sequence(5)]),
            (&none, &none, &branch, &has_it, &[]),
            (&none, &told, &none, &none, &[Wanted::Sequence(3)]),
            (&none, &tried, &none, &none, &[]),
            (&none, &none, &of_another, &none, &[]),
        ] {
            let own = volume("a", spec.clone(), status.clone());
            let all = [own.clone(), volume("b", other_spec.clone(), other_status.clone())];
            assert_eq!(waited_for(&own, &all), expected, "{spec} {status} {other_spec} {other_status}");
        }
    }
}
