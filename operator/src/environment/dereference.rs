//! Gathers the [`World`] of one environment: from the caches, which is free and may be old, or from the API server,
//! which costs some requests and is the truth at that moment in all that an incarnation depends on.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::future::try_join_all;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod, Secret, Service};
use kube::api::ListParams;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Api, Client, ResourceExt};
use serde::de::DeserializeOwned;
use vivarium_api::names;
use vivarium_api::v1alpha1::environment::Source;
use vivarium_api::v1alpha1::{EnvironmentTemplate, EnvironmentVolume, JournalStore, VirtualEnvironment};

use super::incarnation;
use super::placement::Candidate;
use super::standby::Host;
use super::world::{self, Met, NodeState, Nodes, Secrets, World, volume_name};
use crate::cache::Caches;
use crate::error::brief;
use crate::nodes::Known;

/// The world cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {what} of environment {environment}: {}", brief(.source))]
pub struct Error {
    what: &'static str,
    environment: String,
    source: kube::Error,
}

/// The world as the caches have it. Secrets are not cached.
#[must_use]
pub fn from_caches(
    caches: &Caches,
    environment: Arc<VirtualEnvironment>,
    install_namespace: &str,
    known: Known,
) -> World {
    let namespace = environment.namespace().unwrap_or_default();
    let name = environment.name_any();
    let volume_name = volume_name(&environment).to_owned();
    let valid = |volume: Arc<kube::core::DeserializeGuard<EnvironmentVolume>>| volume.0.clone().ok().map(Arc::new);
    let volume = caches.volumes.get(&ObjectRef::new(&volume_name).within(&namespace)).and_then(valid);
    let source = source_of(&environment, volume.is_some()).and_then(|source| {
        let other = caches.environments.get(&ObjectRef::new(&source.environment).within(&namespace))?;
        let name = world::volume_name(other.0.as_ref().ok()?).to_owned();
        let found = caches.volumes.get(&ObjectRef::new(&name).within(&namespace)).and_then(valid)?;
        (found.spec.environment.as_ref() == Some(&source.environment)).then_some(found)
    });
    let Applied { template, persistent_volume, claim, service } =
        Applied::seen(caches, &environment, volume.as_deref());
    let mut world = World {
        template,
        persistent_volume,
        claim,
        service,
        pods: seen_pods(caches, &namespace, &name),
        secrets: None,
        stores: stores(caches),
        nodes: Nodes::default(),
        deaths: Arc::new(known.deaths),
        silent: known.silent,
        met: Met::default(),
        volume,
        source,
        environment,
    };
    place_as_seen(&mut world, caches, install_namespace);
    world
}

fn seen_pods(caches: &Caches, namespace: &str, environment: &str) -> Vec<Arc<Pod>> {
    let pod = |name: &str| caches.pods.get(&ObjectRef::new(name).within(namespace));
    let names = caches.pod_names.of(namespace, environment, |name| pod(name).is_some());
    names.iter().filter_map(|name| pod(name)).collect()
}

/// What follows from the pods, as far as the caches know.
fn place_as_seen(world: &mut World, caches: &Caches, install_namespace: &str) {
    world.pods = own_pods(world);
    let session_on = |node: Option<&str>| {
        let lease = ObjectRef::new(&names::node_lease(node?)).within(install_namespace);
        session(caches.leases.get(&lease).as_deref())
    };
    world.nodes.session = session_on(bound_node(world));
    world.nodes.of_holder = session_on(holder_node(world));
    explain_nodes(world, caches);
}

/// What an environment whose volume is still to be made begins with.
fn source_of(environment: &VirtualEnvironment, has_volume: bool) -> Option<Source> {
    environment.spec.source.clone().filter(|_| !has_volume)
}

/// The world as the API server has it now, but for its pods ([`with_pods`]); `None` if the environment is gone. Nodes are
/// taken from the cache: they only explain why a pod is not placed. So is, unless the environment goes, what was applied
/// before: applying it once more harms nothing.
pub async fn from_server(
    client: &Client,
    caches: &Caches,
    namespace: &str,
    name: &str,
    install_namespace: &str,
    known: Known,
) -> Result<Option<World>, Error> {
    let error = |what: &'static str| move |source| Error { what, environment: format!("{namespace}/{name}"), source };
    let environments: Api<VirtualEnvironment> = Api::namespaced(client.clone(), namespace);
    let Some(environment) = environments.get_opt(name).await.map_err(error("the object"))? else { return Ok(None) };
    let volume_name = volume_name(&environment).to_owned();
    let volume: Option<Arc<EnvironmentVolume>> =
        get(client, namespace, &volume_name).await.map_err(error("the volume"))?;
    let source = match source_of(&environment, volume.is_some()) {
        Some(source) => match environments.get_opt(&source.environment).await.map_err(error("the source"))? {
            Some(other) => {
                let found: Option<Arc<EnvironmentVolume>> =
                    get(client, namespace, world::volume_name(&other)).await.map_err(error("the source's volume"))?;
                found.filter(|found| found.spec.environment.as_ref() == Some(&source.environment))
            }
            None => None,
        },
        None => None,
    };
    let (applied, secrets) = futures::try_join!(
        async {
            Applied::now(client, caches, &environment, volume.as_deref()).await.map_err(error("what was applied"))
        },
        async { secrets(client, &environment).await.map_err(error("the Secrets")) },
    )?;
    let Applied { template, persistent_volume, claim, service } = applied;
    let mut world = World {
        environment: Arc::new(environment),
        template,
        volume,
        source,
        persistent_volume,
        claim,
        service,
        pods: seen_pods(caches, namespace, name),
        secrets: Some(secrets),
        stores: stores(caches),
        nodes: Nodes::default(),
        deaths: Arc::new(known.deaths),
        silent: known.silent,
        met: Met::default(),
    };
    place_as_seen(&mut world, caches, install_namespace);
    Ok(Some(world))
}

/// The same world with its pods as the API server has them now. An API server that lists from a cache of its own waits up
/// to a tenth of a second until that is of now.
pub async fn with_pods(
    client: &Client,
    caches: &Caches,
    mut world: World,
    install_namespace: &str,
) -> Result<World, Error> {
    let (namespace, name) = (world.environment.namespace().unwrap_or_default(), world.name().to_owned());
    let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let labelled = ListParams::default().labels(&format!("{}={name}", names::LABEL_ENVIRONMENT));
    let error = |what: &'static str| move |source| Error { what, environment: format!("{namespace}/{name}"), source };
    // The volume was read before. So a pod that got the volume earlier is among these, and for one that gets it later, the
    // compare-and-swap of what was read fails.
    let pods = pods.list(&labelled).await.map_err(error.clone()("the pods"))?;
    world.pods = pods.items.into_iter().map(Arc::new).collect();
    world.pods = own_pods(&world);
    let session_on = async |node: Option<&str>| {
        let Some(node) = node else { return Ok(None) };
        let lease = get::<Lease>(client, install_namespace, &names::node_lease(node)).await;
        Ok::<_, Error>(session(lease.map_err(error.clone()("the lease of the node"))?.as_deref()))
    };
    let (bound, holder) = (bound_node(&world).map(str::to_owned), holder_node(&world).map(str::to_owned));
    world.nodes.session = session_on(bound.as_deref()).await?;
    world.nodes.of_holder =
        if holder == bound { world.nodes.session.clone() } else { session_on(holder.as_deref()).await? };
    explain_nodes(&mut world, caches);
    Ok(world)
}

/// What is only compared with what it should be, and applied again if it is not so.
struct Applied {
    template: Option<Arc<EnvironmentTemplate>>,
    persistent_volume: Option<Arc<PersistentVolume>>,
    claim: Option<Arc<PersistentVolumeClaim>>,
    service: Option<Arc<Service>>,
}

impl Applied {
    /// As the caches have it.
    fn seen(caches: &Caches, environment: &VirtualEnvironment, volume: Option<&EnvironmentVolume>) -> Self {
        let namespace = environment.namespace().unwrap_or_default();
        let name = environment.name_any();
        let template = caches.templates.get(&ObjectRef::new(&environment.spec.template.name));
        let persistent = volume.and_then(ResourceExt::uid).map(|uid| names::persistent_volume(&uid));
        let claim = names::claim(volume_name(environment));
        Self {
            template: template.and_then(|t| t.0.clone().ok()).map(Arc::new),
            persistent_volume: persistent.and_then(|name| caches.persistent_volumes.get(&ObjectRef::new(&name))),
            claim: caches.claims.get(&ObjectRef::new(&claim).within(&namespace)),
            service: caches.services.get(&ObjectRef::new(&name).within(&namespace)),
        }
    }

    /// As the caches have it, and what they have not as the API server has it; all from there if the environment goes, which
    /// it must not do before all else is gone.
    async fn now(
        client: &Client,
        caches: &Caches,
        environment: &VirtualEnvironment,
        volume: Option<&EnvironmentVolume>,
    ) -> Result<Self, kube::Error> {
        let namespace = environment.namespace().unwrap_or_default();
        let name = environment.name_any();
        let goes = environment.metadata.deletion_timestamp.is_some();
        let seen = if goes { Self::none() } else { Self::seen(caches, environment, volume) };
        let (templates, persistent_volumes) = (Api::all(client.clone()), Api::all(client.clone()));
        let claims = Api::namespaced(client.clone(), &namespace);
        let services = Api::namespaced(client.clone(), &namespace);
        let persistent_volume = volume.and_then(ResourceExt::uid).map(|uid| names::persistent_volume(&uid));
        // One that is not ours is of interest only where ours would be.
        let service = (goes || !environment.spec.services.is_empty()).then(|| name.clone());
        let (template, persistent_volume, claim, service) = futures::try_join!(
            seen_or(&templates, seen.template, Some(environment.spec.template.name.clone())),
            seen_or(&persistent_volumes, seen.persistent_volume, persistent_volume),
            seen_or(&claims, seen.claim, Some(names::claim(volume_name(environment)))),
            seen_or(&services, seen.service, service),
        )?;
        Ok(Self { template, persistent_volume, claim, service })
    }

    const fn none() -> Self {
        Self { template: None, persistent_volume: None, claim: None, service: None }
    }
}

/// What a cache has, or else what the API server has under a name.
async fn seen_or<K>(api: &Api<K>, seen: Option<Arc<K>>, name: Option<String>) -> Result<Option<Arc<K>>, kube::Error>
where
    K: Clone + std::fmt::Debug + DeserializeOwned,
{
    match (seen, name) {
        (None, Some(name)) => Ok(api.get_opt(&name).await?.map(Arc::new)),
        (seen, _) => Ok(seen),
    }
}

async fn get<K>(client: &Client, namespace: &str, name: &str) -> Result<Option<Arc<K>>, kube::Error>
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned,
{
    Ok(Api::<K>::namespaced(client.clone(), namespace).get_opt(name).await?.map(Arc::new))
}

/// Which keys the Secrets have that an environment names.
pub async fn secrets_of(client: &Client, environment: &VirtualEnvironment) -> Result<Secrets, Error> {
    let name = format!("{}/{}", environment.namespace().unwrap_or_default(), environment.name_any());
    let found = secrets(client, environment).await;
    found.map_err(|source| Error { what: "the Secrets", environment: name, source })
}

/// Which keys the named Secrets have. Their values are dropped at once.
async fn secrets(client: &Client, environment: &VirtualEnvironment) -> Result<Secrets, kube::Error> {
    let sources = environment.spec.root.iter().flat_map(|root| &root.authorized_keys_from);
    let wanted: BTreeSet<&str> = sources.map(|source| source.secret_ref.name.as_str()).collect();
    let api: Api<Secret> = Api::namespaced(client.clone(), &environment.namespace().unwrap_or_default());
    let found = wanted.into_iter().map(|name| {
        let api = api.clone();
        async move {
            let secret = api.get_opt(name).await?;
            let keys = secret.map(|s| s.data.unwrap_or_default().into_keys().collect());
            Ok::<_, kube::Error>((name.to_owned(), keys))
        }
    });
    Ok(try_join_all(found).await?.into_iter().collect())
}

/// Pods that carry the label are anybody's; those that the environment owns are its own.
fn own_pods(world: &World) -> Vec<Arc<Pod>> {
    world.pods.iter().filter(|pod| world.owns(pod.as_ref())).cloned().collect()
}

/// Stores that can be read, by name. They change rarely, and a decision on an older state of them harms nothing.
fn stores(caches: &Caches) -> Vec<Arc<JournalStore>> {
    let mut all: Vec<_> = caches.stores.state().iter().filter_map(|store| store.0.clone().ok()).map(Arc::new).collect();
    all.sort_by_key(|store: &Arc<JournalStore>| store.name_any());
    all
}

fn bound_node(world: &World) -> Option<&str> {
    world.newest_pod().and_then(|pod| incarnation::node(pod))
}

fn session(lease: Option<&Lease>) -> Option<String> {
    lease?.annotations().get(names::ANNOTATION_SESSION).cloned().filter(|session| !session.is_empty())
}

fn holder_node(world: &World) -> Option<&str> {
    Some(world.volume.as_ref()?.status.as_ref()?.holder.as_ref()?.node.as_str())
}

/// What explains that a pod is not placed.
fn explain_nodes(world: &mut World, caches: &Caches) {
    let nodes = &caches.nodes;
    // Of a volume that any node can bring back no node matters.
    let pinned = world.volume.as_ref().filter(|volume| !world.is_movable(volume));
    let of_volume = pinned.and_then(|v| v.status.as_ref()?.node.clone());
    world.nodes.of_volume = of_volume.map(|name| node_state(nodes.get(&ObjectRef::new(&name)).as_deref()));
    world.nodes.hosts = hosts(world, nodes);
    // Only a pod without a node needs an explanation.
    let unplaced = world.newest_pod().is_some_and(|pod| incarnation::node(pod).is_none());
    if !unplaced {
        return;
    }
    let pods = caches.pods.state();
    let with_pool = nodes.state().into_iter().filter(|node| has_pool(node));
    let candidate = |node: Arc<Node>| Candidate::new(&node, pods.iter().map(AsRef::as_ref));
    world.nodes.candidates = with_pool.map(candidate).collect();
    world.nodes.candidates.sort_by(|a, b| a.name.cmp(&b.name));
    world.nodes.any_pool = !world.nodes.candidates.is_empty();
}

/// Nodes that an environment could be moved to, or its copy be made on, if there is to be such a thing, or that an
/// incarnation which is ending may leave.
fn hosts(world: &World, nodes: &Store<Node>) -> Vec<Host> {
    let moves = world.environment.annotations().contains_key(names::ANNOTATION_MOVE_TO);
    let ends = world.newest_pod().is_some_and(|pod| pod.metadata.deletion_timestamp.is_some());
    if !moves && !ends && world.own_volume().is_none_or(|volume| volume.spec.standby == 0) {
        return Vec::new();
    }
    let with_pool = nodes.state().into_iter().filter(|node| has_pool(node));
    with_pool.map(|node| Host::of(&node, world)).collect()
}

/// Whether a node has a pool.
#[must_use]
pub fn has_pool(node: &Node) -> bool {
    node.labels().get(names::TOPOLOGY_POOL).is_some_and(|v| v == "true")
}

/// Whether a node can run pods, from its object.
#[must_use]
pub fn node_state(node: Option<&Node>) -> NodeState {
    let Some(node) = node else { return NodeState::Gone };
    let conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
    match conditions.into_iter().find(|c| c.type_ == "Ready") {
        Some(ready) if ready.status == "True" => NodeState::Ready,
        _ => NodeState::NotReady,
    }
}
