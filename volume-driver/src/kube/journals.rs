//! Which journals this node looks after: of environments that run elsewhere, as far as it is the one to do it.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt};
use vivarium_api::names;
use vivarium_api::v1alpha1::volume::EnvironmentVolumeStatus;
use vivarium_api::v1alpha1::{EnvironmentVolume, JournalStore};
use vivarium_store::Store;

use super::{ApiError, failed};
use crate::directory::DirectoryError;
use crate::ids::{IdError, LayerDigest, VolumeId};
use crate::journal::JournalError;
use crate::journal::keep::{Subject, chosen};
use crate::journal::log::Log;
use crate::journal::wanted::Wanted;
use crate::publish::Publisher;
use crate::settings::parse_size;
use crate::template::{Pin, TemplateError};

/// A node whose lease is older than this looks after nothing. Where clocks of nodes agree less, two look after the same.
const GONE_AFTER: Duration = Duration::from_mins(1);

/// Why a journal was not looked after; it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum TendError {
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error(transparent)]
    Id(#[from] IdError),
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error("its size cannot be understood: {0}")]
    Size(String),
}

/// What decides who looks after which journal.
pub(super) struct Journals {
    /// Every volume.
    pub volumes: Vec<EnvironmentVolume>,
    stores: Vec<JournalStore>,
    alive: Vec<String>,
}

impl Journals {
    /// As the cluster has it now.
    pub async fn read(client: &Client, namespace: &str) -> Result<Self, ApiError> {
        let all = ListParams::default();
        let volumes = Api::<EnvironmentVolume>::all(client.clone());
        let stores = Api::<JournalStore>::all(client.clone());
        let leases = Api::<Lease>::namespaced(client.clone(), namespace);
        let volumes = volumes.list(&all).await.map_err(failed("list", "volumes"))?.items;
        let stores = stores.list(&all).await.map_err(failed("list", "stores"))?.items;
        let leases = leases.list(&all).await.map_err(failed("list", "leases"))?;
        Ok(Self { volumes, stores, alive: alive(&leases.items, Timestamp::now()) })
    }

    /// Volumes whose journals node `me` looks after, with their handles.
    pub fn of(&self, me: &str) -> impl Iterator<Item = (&EnvironmentVolume, VolumeId)> {
        self.volumes.iter().filter_map(move |volume| {
            let log = volume.log()?;
            let store = self.stores.iter().find(|object| object.name_any() == log.store)?;
            let id = VolumeId::parse(&volume.uid()?).ok()?;
            self.is_mine(me, volume, &id, store).then_some((volume, id))
        })
    }

    /// Stores that node `me` sweeps: of each shared one there is one node that does, and each sweeps a directory of its own.
    pub fn swept_by(&self, me: &str) -> impl Iterator<Item = &JournalStore> {
        self.stores.iter().filter(move |store| {
            let nodes = self.users(store);
            if store.spec.local.is_some() {
                return nodes.iter().any(|node| node == me);
            }
            chosen(me, store.name_any(), &nodes, None)
        })
    }

    /// Bytes of the journals in a store, as far as whoever keeps them has told; of those of node `me` if it is a directory of
    /// each node.
    pub fn bytes(&self, store: &JournalStore, me: &str) -> u64 {
        let is_there = |volume: &&EnvironmentVolume| {
            let node = volume.status.as_ref().and_then(|status| status.node.as_deref());
            volume.log().map(|log| log.store) == store.metadata.name && (store.spec.local.is_none() || node == Some(me))
        };
        let kept = |volume: &EnvironmentVolume| volume.status.as_ref()?.kept.as_ref().map(|kept| kept.bytes);
        self.volumes.iter().filter(is_there).filter_map(kept).filter_map(|bytes| u64::try_from(bytes).ok()).sum()
    }

    /// Nodes that live and can use a store.
    fn users(&self, store: &JournalStore) -> Vec<String> {
        let proven = store.status.iter().flat_map(|status| &status.nodes).filter(|node| node.proven);
        proven.map(|node| node.name.clone()).filter(|node| self.alive.contains(node)).collect()
    }

    fn is_mine(&self, me: &str, volume: &EnvironmentVolume, id: &VolumeId, store: &JournalStore) -> bool {
        if volume.metadata.deletion_timestamp.is_some() {
            return false;
        }
        let status = volume.status.as_ref();
        if store.spec.local.is_some() {
            // What is in the directory of another node cannot be seen here.
            return status.and_then(|status| status.node.as_deref()) == Some(me);
        }
        let nodes = self.users(store);
        let holder = status.and_then(|status| status.holder.as_ref()).map(|holder| holder.node.as_str());
        chosen(me, id, &nodes, holder)
    }
}

/// A journal that this node looks after, with the layers of its template on this node.
pub(super) struct Tended {
    pub store: Arc<Store>,
    pub log: Log,
    pub subject: Subject,
    /// As long as this is there, so are the layers.
    _layers: Pin,
}

/// Opens the journal of a volume. `None`: its store was not opened on this node yet.
pub(super) async fn open(
    publisher: &Publisher,
    volume: &EnvironmentVolume,
    id: VolumeId,
    wanted: Vec<Wanted>,
) -> Result<Option<Tended>, TendError> {
    let Some(named) = volume.log() else { return Ok(None) };
    let Some(store) = publisher.stores.get(&named.store) else { return Ok(None) };
    let template = &volume.spec.template;
    let layers = template.layers.iter().map(|layer| LayerDigest::parse(layer)).collect::<Result<Vec<_>, _>>()?;
    let status = volume.status.as_ref();
    let log = Log::named(&id, &named.name, store.clone())?;
    let subject = Subject {
        volume: id,
        layers,
        size: parse_size(&volume.spec.size.0).map_err(TendError::Size)?,
        room: status.map_or(0, EnvironmentVolumeStatus::in_use),
        known: volume.known(),
        wanted,
    };
    let pin = publisher.templates.pin(&subject.layers);
    publisher.templates.ensure(&template.image, &subject.layers, std::slice::from_ref(&store)).await?;
    Ok(Some(Tended { store, log, subject, _layers: pin }))
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
    fn a_node_that_was_not_heard_of_for_long_keeps_nothing() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let lease = |name: &str, renewed| {
            let mut lease = Lease::default();
            lease.metadata.name = Some(name.into());
            lease.spec.get_or_insert_default().renew_time = Some(MicroTime(at(renewed)));
            lease
        };
        let leases = [lease("vivarium-node-n1", 950), lease("vivarium-node-n2", 900), lease("vivarium-operator", 950)];
        assert_eq!(alive(&leases, at(1000)), ["n1"]);
        // A clock that is a little ahead.
        assert_eq!(alive(&leases, at(899)), ["n1", "n2"]);
    }
}
