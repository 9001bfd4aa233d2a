//! `EnvironmentTemplate`s: brings each to this node and says so in its status.
//!
//! The first node that has resolved, fetched and checked an image writes what it found by compare-and-swap; from then on
//! every node fetches by that digest. Until then nothing is fixed, so a wrong image can be corrected in the spec. The same
//! node puts the layers into the stores of journals.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use kube::api::{Api, ListParams, PartialObjectMeta, Patch, PatchParams, PostParams};
use kube::core::DeserializeGuard;
use kube::runtime::controller::{Action, Config, Controller};
use kube::runtime::watcher::{self, Event, watcher};
use kube::runtime::{PredicateConfig, WatchStreamExt, predicates};
use kube::{Client, ResourceExt};
use serde_json::json;
use tokio::sync::Notify;
use vivarium_api::v1alpha1::condition::{self, Condition, ConditionStatus};
use vivarium_api::v1alpha1::template::{CacheState, NodeCache};
use vivarium_api::v1alpha1::{EnvironmentTemplate, EnvironmentVolume};

use super::stores::Stores;
use super::{ApiError, FIELD_MANAGER, failed, is_conflict, is_gone, watch_readable};
use crate::ids::LayerDigest;
use crate::template::{TemplateCache, TemplateError};

/// Templates that are worked on at a time.
const CONCURRENCY: u16 = 4;
/// How long until a failed template is tried again by itself: what may pass, and what somebody has to change.
const RETRY_SOON: Duration = Duration::from_secs(15);
const RETRY_LATE: Duration = Duration::from_mins(1);
/// How often layers that nobody needs are looked for, beside when something was deleted.
const COLLECT_EVERY: Duration = Duration::from_mins(10);
/// Between two layers that are destroyed: freeing much at once stalls the file system.
const COLLECT_PAUSE: Duration = Duration::from_secs(1);
const READY: &str = "Ready";
const STALLED: &str = "Stalled";

/// What works on templates.
pub struct Templates {
    /// The cluster.
    pub client: Client,
    /// Name of this node.
    pub node: String,
    /// The layers of this node.
    pub cache: Arc<TemplateCache>,
    /// The stores that layers are put into, and may come from.
    pub stores: Stores,
    /// Told when layers may have lost their last user.
    pub collect: Arc<Notify>,
}

impl Templates {
    fn api(&self) -> Api<EnvironmentTemplate> {
        Api::all(self.client.clone())
    }

    /// Works on every template until the process ends.
    pub async fn run(self: Arc<Self>) {
        // Statuses of many nodes change all the time; what matters here is the spec, and the digest that the first
        // node writes, which every node learns when it writes its own.
        let (reader, writer) = kube::runtime::reflector::store();
        let stream = watch_readable(Api::<DeserializeGuard<EnvironmentTemplate>>::all(self.client.clone()))
            .reflect(writer)
            .applied_objects()
            .predicate_filter(predicates::generation, PredicateConfig::default());
        Controller::for_stream(stream, reader)
            .with_config(Config::default().concurrency(CONCURRENCY))
            .run(
                |template, this| async move { this.reconcile(&template).await },
                |_, error: &ApiError, _| {
                    tracing::warn!(%error, "a template is tried again");
                    Action::requeue(RETRY_SOON)
                },
                self,
            )
            .for_each(|_| async {})
            .await;
    }

    async fn reconcile(&self, template: &EnvironmentTemplate) -> Result<Action, ApiError> {
        let name = template.name_any();
        // The cache may be behind; what follows must not be decided on an old status.
        let Some(template) = self.api().get_opt(&name).await.map_err(failed("read template", &name))? else {
            return Ok(Action::await_change());
        };
        if template.metadata.deletion_timestamp.is_some() {
            return Ok(Action::await_change());
        }
        match self.bring(&template).await? {
            Ok(()) => {
                self.say(&template, CacheState::Cached, None).await?;
                Ok(Action::await_change())
            }
            Err(error) => {
                tracing::warn!(template = name, reason = error.reason(), "{error}");
                self.say(&template, CacheState::Failed, Some(error.to_string())).await?;
                self.complain(&name, &error).await?;
                Ok(Action::requeue(if error.is_stalled() { RETRY_LATE } else { RETRY_SOON }))
            }
        }
    }

    /// Brings the layers here; resolves the image if no node has yet.
    async fn bring(&self, template: &EnvironmentTemplate) -> Result<Result<(), TemplateError>, ApiError> {
        let image = &template.spec.image;
        if let Some((digest, layers)) = resolution(template) {
            let image = by_digest(image, &digest);
            if !layers.iter().all(|layer| self.cache.has(layer)) {
                self.say(template, CacheState::Pulling, None).await?;
            }
            return Ok(self.cache.ensure(&image, &layers, &self.stores.shared()).await);
        }
        self.say(template, CacheState::Pulling, None).await?;
        let found = match self.cache.resolve(image).await {
            Ok(found) => found,
            Err(error) => return Ok(Err(error)),
        };
        // No object names these layers yet: they must not be collected meanwhile.
        let _pin = self.cache.pin(&found.layers());
        if let Err(error) = self.cache.pull(image, &found).await {
            return Ok(Err(error));
        }
        let system = match self.cache.check(image, found.layers()).await {
            Ok(system) => system,
            Err(error) => return Ok(Err(error)),
        };
        self.say(template, CacheState::Cached, None).await?;
        let first = AtomicBool::new(false);
        self.change(&template.name_any(), |latest| {
            first.store(false, Ordering::Relaxed);
            if latest.spec.image != *image || resolution(latest).is_some() {
                return false; // Corrected meanwhile, or another node was first.
            }
            let status = latest.status.get_or_insert_default();
            status.digest = Some(found.digest.clone());
            status.resolved_image = Some(image.clone());
            status.layers = found.layers().iter().map(ToString::to_string).collect();
            status.operating_system.clone_from(&system.name);
            status.observed_generation = latest.metadata.generation.unwrap_or_default();
            status.conditions.retain(|condition| condition.type_ != STALLED);
            let message = format!("resolved to {} and cached on node {}", found.digest, self.node);
            condition::set(
                &mut status.conditions,
                condition(READY, true, latest.metadata.generation, "Cached", message),
            );
            first.store(true, Ordering::Relaxed);
            true
        })
        .await?;
        if first.into_inner() {
            self.keep_layers(&by_digest(image, &found.digest), &found.layers()).await;
        }
        // Of two nodes that resolved a tag at once, one was late, and the tag may have moved in between.
        let latest =
            self.api().get_opt(&template.name_any()).await.map_err(failed("read template", template.name_any()))?;
        match latest.as_ref().and_then(|latest| Some((resolution(latest)?, &latest.spec.image))) {
            Some(((digest, layers), image)) if digest != found.digest => {
                Ok(self.cache.ensure(&by_digest(image, &digest), &layers, &self.stores.shared()).await)
            }
            _ => Ok(Ok(())),
        }
    }

    /// Puts the layers into every store that other nodes reach. What fails is made up for when a volume needs it.
    async fn keep_layers(&self, image: &str, layers: &[LayerDigest]) {
        for store in self.stores.shared() {
            if let Err(error) = self.cache.keep_in(&store, image, layers).await {
                tracing::warn!(%error, image, %store, "the layers of a template are put into the store later");
            }
        }
    }

    /// Writes why a template is not ready; one that is ready for other nodes stays so.
    async fn complain(&self, name: &str, error: &TemplateError) -> Result<(), ApiError> {
        self.change(name, |latest| {
            if resolution(latest).is_some() {
                return false;
            }
            let generation = latest.metadata.generation;
            let status = latest.status.get_or_insert_default();
            let before = status.clone();
            status.observed_generation = generation.unwrap_or_default();
            let text = error.to_string();
            condition::set(&mut status.conditions, condition(READY, false, generation, error.reason(), text.clone()));
            status.conditions.retain(|condition| condition.type_ != STALLED);
            if error.is_stalled() {
                let old = condition::find(&before.conditions, STALLED).cloned();
                let mut stalled = condition(STALLED, true, generation, error.reason(), text);
                if let Some(old) = old {
                    stalled.last_transition_time = old.last_transition_time;
                }
                status.conditions.push(stalled);
            }
            *status != before
        })
        .await
    }

    /// Changes the status by compare-and-swap, unless `change` says that there is nothing to change.
    async fn change(&self, name: &str, change: impl Fn(&mut EnvironmentTemplate) -> bool) -> Result<(), ApiError> {
        loop {
            let Some(mut latest) = self.api().get_opt(name).await.map_err(failed("read template", name))? else {
                return Ok(());
            };
            if !change(&mut latest) {
                return Ok(());
            }
            match self.api().replace_status(name, &PostParams::default(), &latest).await {
                Ok(_) => return Ok(()),
                Err(error) if is_conflict(&error) => {}
                Err(error) if is_gone(&error) => return Ok(()),
                Err(error) => return Err(failed("write the status of template", name)(error)),
            }
        }
    }

    /// Writes this node's entry, if it is not so already.
    async fn say(
        &self,
        template: &EnvironmentTemplate,
        state: CacheState,
        message: Option<String>,
    ) -> Result<(), ApiError> {
        let name = template.name_any();
        let entry = NodeCache { name: self.node.clone(), state, message };
        let latest = self.api().get_opt(&name).await.map_err(failed("read template", &name))?;
        let nodes = latest.and_then(|latest| latest.status).map(|status| status.nodes).unwrap_or_default();
        if nodes.contains(&entry) {
            return Ok(());
        }
        let patch = json!({
            "apiVersion": "vivarium.dev/v1alpha1",
            "kind": "EnvironmentTemplate",
            "metadata": {"name": name, "uid": template.metadata.uid},
            "status": {"nodes": [entry]},
        });
        let params = PatchParams::apply(&field_manager(&self.node)).force();
        match self.api().patch_status(&name, &params, &Patch::Apply(&patch)).await {
            Ok(_) => Ok(()),
            Err(error) if is_gone(&error) => Ok(()),
            Err(error) => Err(failed("write the status of template", &name)(error)),
        }
    }

    /// Destroys layers that no template and no volume of this node needs, now and then and when something was deleted.
    pub async fn collect(self: Arc<Self>) {
        let deletions = {
            let api: Api<PartialObjectMeta<EnvironmentTemplate>> = Api::all(self.client.clone());
            watcher(api, watcher::Config::default()).default_backoff()
        };
        tokio::pin!(deletions);
        let mut now_and_then = tokio::time::interval(COLLECT_EVERY);
        loop {
            tokio::select! {
                _ = now_and_then.tick() => {}
                () = self.collect.notified() => {}
                event = deletions.next() => match event {
                    Some(Ok(Event::Delete(_))) => {}
                    Some(_) => continue,
                    None => return,
                },
            }
            if let Err(error) = self.collect_once().await {
                tracing::warn!(error, "unused template layers stay for now");
            }
        }
    }

    async fn collect_once(&self) -> Result<(), String> {
        let mut pause = tokio::time::interval(COLLECT_PAUSE);
        loop {
            pause.tick().await;
            // Read anew before each: what was free a moment ago may be in use.
            let keep = self.needed().await.map_err(|error| error.to_string())?;
            let cache = self.cache.clone();
            let collected = tokio::task::spawn_blocking(move || cache.collect(&keep)).await;
            match collected.map_err(|error| error.to_string())?.map_err(|error| error.to_string())? {
                Some(layer) => tracing::info!(%layer, "destroyed a template layer that nothing needs any more"),
                None => return Ok(()),
            }
        }
    }

    /// Layers of every template, and of every volume that is on this node, may come to be, or has its standby copy here.
    async fn needed(&self) -> Result<HashSet<LayerDigest>, ApiError> {
        let templates = self.api().list(&ListParams::default()).await.map_err(failed("list", "templates"))?;
        let volumes: Api<EnvironmentVolume> = Api::all(self.client.clone());
        let volumes = volumes.list(&ListParams::default()).await.map_err(failed("list", "volumes"))?;
        let of_templates = templates.items.into_iter().flat_map(|t| t.status.unwrap_or_default().layers);
        let of_volumes = volumes.items.into_iter().filter_map(|volume| {
            let (node, standby) = volume.status.map(|status| (status.node, status.standby)).unwrap_or_default();
            let follows = standby.is_some_and(|standby| standby.node == self.node);
            (follows || node.is_none_or(|node| node == self.node)).then_some(volume.spec.template.layers)
        });
        Ok(of_templates.chain(of_volumes.flatten()).filter_map(|layer| LayerDigest::parse(&layer).ok()).collect())
    }
}

/// Field manager of a node's entry. Nodes must not share one, and its name can have 128 bytes.
fn field_manager(node: &str) -> String {
    let name = format!("{FIELD_MANAGER}-{node}");
    if name.len() <= 128 { name } else { format!("{FIELD_MANAGER}-{}", crate::template::digest_of(node.as_bytes())) }
}

/// Digest and layers, if the image of the present spec was resolved.
fn resolution(template: &EnvironmentTemplate) -> Option<(String, Vec<LayerDigest>)> {
    let status = template.status.as_ref()?;
    if status.resolved_image.as_deref() != Some(template.spec.image.as_str()) || status.layers.is_empty() {
        return None;
    }
    let layers = status.layers.iter().map(|layer| LayerDigest::parse(layer)).collect::<Result<_, _>>().ok()?;
    Some((status.digest.clone()?, layers))
}

/// Image reference by digest, and layers, if the image of the present spec was resolved.
pub(crate) fn resolved(template: &EnvironmentTemplate) -> Option<(String, Vec<LayerDigest>)> {
    let (digest, layers) = resolution(template)?;
    Some((by_digest(&template.spec.image, &digest), layers))
}

/// A reference with the digest in place of one that it may have.
fn by_digest(image: &str, digest: &str) -> String {
    format!("{}@{digest}", image.split('@').next().unwrap_or(image))
}

fn condition(type_: &str, holds: bool, generation: Option<i64>, reason: &str, message: String) -> Condition {
    Condition {
        type_: type_.into(),
        status: if holds { ConditionStatus::True } else { ConditionStatus::False },
        observed_generation: generation,
        last_transition_time: Timestamp::now(),
        reason: reason.into(),
        message,
    }
}

#[cfg(test)]
mod tests {
    use vivarium_api::v1alpha1::{EnvironmentTemplateSpec, EnvironmentTemplateStatus};

    use super::*;

    #[test]
    fn a_digest_takes_the_place_of_another() {
        for image in ["r.example/os:13", "r.example/os:13@sha256:00"] {
            assert_eq!(by_digest(image, "sha256:11"), "r.example/os:13@sha256:11");
        }
        assert_eq!(by_digest("10.0.0.1:5000/os", "sha256:11"), "10.0.0.1:5000/os@sha256:11");
    }

    #[test]
    fn a_corrected_image_is_not_resolved() {
        let mut template = EnvironmentTemplate::new("t", EnvironmentTemplateSpec { image: "a:1".into() });
        assert_eq!(resolution(&template), None);
        template.status = Some(EnvironmentTemplateStatus {
            digest: Some("sha256:1".into()),
            resolved_image: Some("a:1".into()),
            layers: vec![format!("sha256:{}", "0".repeat(64))],
            ..Default::default()
        });
        assert!(resolution(&template).is_some());
        template.spec.image = "a:2".into();
        assert_eq!(resolution(&template), None);
    }
}
