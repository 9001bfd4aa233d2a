//! Sweeps stores ([`crate::garbage`]) as far as this node is the one to do it, and tells how much is in them.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::{Client, ResourceExt};
use serde_json::json;
use vivarium_api::v1alpha1::store::{StoreUsage, UnnamedLayer};
use vivarium_api::v1alpha1::{EnvironmentTemplate, EnvironmentVolume, JournalStore};

use super::journals::Journals;
use super::{ApiError, failed, is_conflict, is_gone};
use crate::garbage::{Cluster, Found, GarbageError, Named, Policy, Unnamed, sweep};
use crate::ids::{LayerDigest, VolumeId};
use crate::publish::Publisher;

/// From the start of the driver to the first time.
const FIRST: Duration = Duration::from_mins(2);
/// From the end of one round to the next.
const PACE: Duration = Duration::from_hours(1);
/// Most layers that are remembered.
const MOST_NOTED: usize = 256;

/// What sweeps stores.
pub struct Collecting {
    /// The cluster.
    pub client: Client,
    /// Namespace that Vivarium is installed in.
    pub namespace: String,
    /// Stores of this node.
    pub publisher: Arc<Publisher>,
    /// When and how much.
    pub policy: Policy,
}

impl Collecting {
    /// Sweeps for ever.
    pub async fn run(self) {
        tokio::time::sleep(FIRST).await;
        loop {
            if let Err(error) = self.round().await {
                tracing::warn!(%error, "stores are swept later");
            }
            tokio::time::sleep(PACE).await;
        }
    }

    async fn round(&self) -> Result<(), ApiError> {
        let me = &self.publisher.me.node;
        let journals = Journals::read(&self.client, &self.namespace).await?;
        for object in journals.swept_by(me) {
            let Some(store) = self.publisher.stores.get(&object.name_any()) else { continue };
            let now = Timestamp::now();
            match sweep(&store, self, &noted(object), &self.policy, now).await {
                Ok(found) => self.tell(object, &usage(found, journals.bytes(object, me), me, now)).await?,
                Err(error) => tracing::warn!(%error, %store, "the store is swept later"),
            }
        }
        Ok(())
    }

    async fn tell(&self, object: &JournalStore, usage: &StoreUsage) -> Result<(), ApiError> {
        let (api, name) = (Api::<JournalStore>::all(self.client.clone()), object.name_any());
        let patch = json!({"metadata": {"uid": object.uid()}, "status": {"usage": usage}});
        match api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(_) => Ok(()),
            // Another one of that name.
            Err(error) if is_gone(&error) || is_conflict(&error) => Ok(()),
            Err(error) => Err(failed("write the status of store", &name)(error)),
        }
    }
}

impl Cluster for Collecting {
    async fn named(&self) -> Result<Named, GarbageError> {
        let templates = Api::<EnvironmentTemplate>::all(self.client.clone());
        let volumes = Api::<EnvironmentVolume>::all(self.client.clone());
        let all = ListParams::default();
        let told = futures::try_join!(templates.list(&all), volumes.list(&all));
        let (templates, volumes) = told.map_err(|error| GarbageError::Named(error.to_string()))?;
        Ok(names(&templates.items, &volumes.items))
    }
}

fn names(templates: &[EnvironmentTemplate], volumes: &[EnvironmentVolume]) -> Named {
    let of_templates =
        templates.iter().filter_map(|template| template.status.as_ref()).flat_map(|status| &status.layers);
    let of_volumes = volumes.iter().flat_map(|volume| &volume.spec.template.layers);
    Named {
        volumes: volumes.iter().flat_map(logs).collect(),
        layers: of_templates.chain(of_volumes).filter_map(|layer| LayerDigest::parse(layer).ok()).collect(),
    }
}

/// Names of everything in which something of a volume may be, and of what it may be in next.
fn logs(volume: &EnvironmentVolume) -> impl Iterator<Item = VolumeId> {
    let names = volume.uid().into_iter().chain(volume.logs().into_iter().map(|log| log.name));
    names.filter_map(|name| VolumeId::parse(&name).ok())
}

/// What the last time found.
fn noted(object: &JournalStore) -> Vec<Unnamed> {
    let usage = object.status.as_ref().and_then(|status| status.usage.as_ref());
    let noted = usage.map(|usage| usage.unnamed_layers.as_slice()).unwrap_or_default();
    let noted = noted.iter().filter_map(|noted| Some((LayerDigest::parse(&noted.digest).ok()?, noted.since.0)));
    noted.map(|(layer, since)| Unnamed { layer, since }).collect()
}

fn usage(found: Found, journals: u64, node: &str, now: Timestamp) -> StoreUsage {
    let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    let Found { unknown, layers, others, mut unnamed } = found;
    // Those that are to go first.
    unnamed.sort_by_key(|noted| noted.since);
    unnamed.truncate(MOST_NOTED);
    let noted = unnamed.into_iter().map(|Unnamed { layer, since }| (layer.to_string(), Time(since)));
    StoreUsage {
        bytes: bytes(journals + unknown + layers + others),
        journals: bytes(journals),
        unknown_journals: bytes(unknown),
        layers: bytes(layers),
        others: bytes(others),
        unnamed_layers: noted.map(|(digest, since)| UnnamedLayer { digest, since }).collect(),
        node: node.into(),
        time: Time(now),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(number: u32) -> LayerDigest {
        LayerDigest::parse(&format!("sha256:{number:064x}")).unwrap()
    }

    #[test]
    fn what_is_noted_is_read_back_the_next_time() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let unnamed: Vec<_> = (0..300).map(|n| Unnamed { layer: layer(n), since: at(1000 - i64::from(n)) }).collect();
        let found = Found { unknown: 1, layers: 2, others: 3, unnamed };
        let usage = usage(found, 4, "n1", at(2000));
        assert_eq!((usage.bytes, usage.unnamed_layers.len()), (10, MOST_NOTED));
        let object = json!({"apiVersion": "vivarium.dev/v1alpha1", "kind": "JournalStore", "metadata": {"name": "s"},
            "spec": {}, "status": {"usage": usage}});
        let noted = noted(&serde_json::from_value(object).unwrap());
        assert_eq!(noted.len(), MOST_NOTED);
        assert_eq!(noted[0], Unnamed { layer: layer(299), since: at(701) }, "the oldest are remembered");
    }

    #[test]
    fn volumes_and_templates_name_layers() {
        let volume = json!({"apiVersion": "vivarium.dev/v1alpha1", "kind": "EnvironmentVolume",
            "metadata": {"name": "v", "uid": "u1"},
            "spec": {"template": {"name": "t", "image": "i", "layers": [layer(1).to_string()]}, "size": "1Gi"}});
        let template = json!({"apiVersion": "vivarium.dev/v1alpha1", "kind": "EnvironmentTemplate",
            "metadata": {"name": "t"}, "spec": {"image": "i"}, "status": {"layers": [layer(2).to_string()]}});
        let named = names(&[serde_json::from_value(template).unwrap()], &[serde_json::from_value(volume).unwrap()]);
        assert_eq!(named.layers, [layer(1), layer(2)].into());
        assert_eq!(named.volumes, [VolumeId::parse("u1").unwrap()].into());
    }
}
