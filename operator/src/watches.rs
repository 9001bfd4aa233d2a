//! All watches: one per kind, each filling a cache and waking the environments that an object concerns.
//!
//! A replica that does not lead watches as well and does nothing: when it leads, its caches are full, and it looks at everything
//! once.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt, Stream, StreamExt, TryStreamExt, future};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod, Service};
use kube::core::DeserializeGuard;
use kube::runtime::controller::{Action as Requeue, Config, Controller};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::utils::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use kube::runtime::{Predicate, PredicateConfig, predicates, reflector};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::sync::watch::Receiver;
use tokio_stream::wrappers::{UnboundedReceiverStream, WatchStream};
use vivarium_api::names;
use vivarium_api::v1alpha1::{
    EnvironmentRestore, EnvironmentTemplate, EnvironmentVolume, JournalStore, VirtualEnvironment,
};

use crate::cache::{Caches, PodNames, environment_of, prune, prune_node, room};
use crate::environment::controller::{self, Context};
use crate::environment::incarnation;
use crate::environment::lifecycle::Settings;
use crate::environment::world::volume_name;
use crate::events::Events;
use crate::metrics::Metrics;
use crate::nodes::Known;
use crate::{restore, volume};

/// Environments that are worked on at the same time.
const CONCURRENCY: u16 = 64;

type Guarded = DeserializeGuard<VirtualEnvironment>;
type GuardedVolume = DeserializeGuard<EnvironmentVolume>;
type GuardedTemplate = DeserializeGuard<EnvironmentTemplate>;
type GuardedRestore = DeserializeGuard<EnvironmentRestore>;
type GuardedStore = DeserializeGuard<JournalStore>;

/// One of the replicas.
pub struct Role {
    /// Its name.
    pub identity: String,
    /// Whether it leads.
    pub leads: Receiver<bool>,
}

/// Environments, volumes and pods as they were seen last.
type Seen = (Store<Guarded>, Store<GuardedVolume>, Store<Pod>);

/// Runs all controllers until `stop` becomes true.
pub async fn run(
    client: Client,
    install_namespace: &str,
    role: Role,
    settings: Settings,
    metrics: Arc<Metrics>,
    known: Receiver<Known>,
    stop: Receiver<bool>,
) {
    let labelled = watcher::Config::default().labels(names::LABEL_ENVIRONMENT);
    let (environments, environment_writer) = reflector::store();
    let (volumes, volume_writer) = reflector::store();
    let (restores, restore_writer) = reflector::store();
    let (templates, template_writer) = reflector::store();
    let (stores, store_writer) = reflector::store();
    let (pods, pod_writer) = reflector::store();
    let (claims, claim_writer) = reflector::store();
    let (persistent_volumes, persistent_volume_writer) = reflector::store();
    let (services, service_writer) = reflector::store();
    let (nodes, node_writer) = reflector::store();
    let (leases, lease_writer) = reflector::store();

    let every = watcher::Config::default;
    let environment_stream = touched::<Guarded>(Api::all(client.clone()), every(), environment_writer, prune)
        .predicate_filter(wishes, PredicateConfig::default());
    let (doomed, doomed_volumes) = mpsc::unbounded_channel();
    let (woken, woken_restores) = mpsc::unbounded_channel();
    let of_restores: Store<GuardedRestore> = restores.clone();
    let volume_stream = touched::<GuardedVolume>(Api::all(client.clone()), every(), volume_writer, prune).inspect_ok(
        move |volume: &GuardedVolume| {
            // The receivers live as long as this stream.
            if volume.0.as_ref().is_ok_and(|volume| volume::duty(volume).is_some()) {
                let _ = doomed.send(volume.clone());
            }
            for restore in restores_of(&of_restores, volume) {
                let _ = woken.send(restore);
            }
        },
    );
    let restore_stream = touched::<GuardedRestore>(Api::all(client.clone()), every(), restore_writer, prune)
        .predicate_filter(predicates::generation, PredicateConfig::default());
    let template_stream = touched::<GuardedTemplate>(Api::all(client.clone()), every(), template_writer, prune);
    let store_stream = touched::<GuardedStore>(Api::all(client.clone()), every(), store_writer, prune);
    let claim_stream =
        touched::<PersistentVolumeClaim>(Api::all(client.clone()), labelled.clone(), claim_writer, prune);
    let persistent_volume_stream =
        touched::<PersistentVolume>(Api::all(client.clone()), labelled.clone(), persistent_volume_writer, prune);
    let service_stream = touched::<Service>(Api::all(client.clone()), labelled.clone(), service_writer, prune);
    let node_stream = touched::<Node>(Api::all(client.clone()), every(), node_writer, prune_node)
        .predicate_filter(|node: &Node| Some(room(node)), PredicateConfig::default());
    let lease_stream =
        touched::<Lease>(Api::namespaced(client.clone(), install_namespace), every(), lease_writer, prune)
            .predicate_filter(predicates::annotations, PredicateConfig::default());
    let pod_stream = touched::<Pod>(Api::all(client.clone()), labelled, pod_writer, prune);

    let context = Arc::new(Context {
        caches: Caches {
            environments: environments.clone(),
            templates,
            stores,
            volumes: volumes.clone(),
            pods: pods.clone(),
            pod_names: PodNames::default(),
            claims,
            persistent_volumes,
            services,
            nodes,
            leases,
        },
        settings,
        install_namespace: install_namespace.to_owned(),
        events: Events::new(client.clone(), &role.identity),
        metrics,
        known: known.clone(),
        leads: role.leads.clone(),
        client,
    });
    let (noting, of_volume, of_template) = (Arc::clone(&context), environments.clone(), environments.clone());
    let pod_stream = pod_stream.inspect_ok(move |pod: &Pod| noting.caches.pod_names.saw(pod));
    let of_node = (environments.clone(), volumes.clone(), pods.clone());
    let (of_store, of_lease, news) = (of_node.clone(), pods.clone(), news(known, of_node.clone()));
    let environment_controller = Controller::for_stream(environment_stream, environments)
        .with_config(Config::default().concurrency(CONCURRENCY))
        .watches_stream(volume_stream, move |volume| users_of_volume(&of_volume, &volume))
        .watches_stream(template_stream, move |template| users_of_template(&of_template, &template))
        .watches_stream(store_stream, move |store| users_of_store(&of_store.0, &of_store.1, &store))
        .watches_stream(pod_stream, |pod| labelled_environment(&pod))
        .watches_stream(claim_stream, |claim| labelled_environment(&claim))
        .watches_stream(service_stream, |service| labelled_environment(&service))
        .watches_stream(persistent_volume_stream, |volume| claimed_environment(&volume))
        .watches_stream(lease_stream, move |lease| environments_on(&of_lease, &lease))
        .watches_stream(node_stream, move |node: Node| waiting_for(&of_node, &node.name_any()))
        .reconcile_on(news)
        .reconcile_all_on(begins(role.leads.clone()))
        .graceful_shutdown_on(told(stop.clone()))
        .run(leading(controller::reconcile), controller::on_error, Arc::clone(&context))
        .for_each(|_| future::ready(()));
    let doomed_volumes = UnboundedReceiverStream::new(doomed_volumes).map(Ok);
    let volume_controller = Controller::for_stream(doomed_volumes, volumes)
        .reconcile_all_on(begins(role.leads.clone()))
        .graceful_shutdown_on(told(stop.clone()))
        .run(leading(volume::reconcile), volume::on_error, Arc::clone(&context))
        .for_each(|_| future::ready(()));
    let restore_controller = Controller::for_stream(restore_stream, restores)
        .reconcile_on(UnboundedReceiverStream::new(woken_restores))
        .reconcile_all_on(begins(role.leads))
        .graceful_shutdown_on(told(stop))
        .run(leading(restore::controller::reconcile), restore::controller::on_error, context)
        .for_each(|_| future::ready(()));
    future::join3(environment_controller, volume_controller, restore_controller).await;
}

/// A reconciler that does nothing while this replica does not lead. When it begins to, everything is looked at.
fn leading<K, E, R>(
    reconcile: impl Fn(Arc<K>, Arc<Context>) -> R,
) -> impl Fn(Arc<K>, Arc<Context>) -> BoxFuture<'static, Result<Requeue, E>>
where
    E: Send + 'static,
    R: Future<Output = Result<Requeue, E>> + Send + 'static,
{
    move |object, context| {
        let leads = *context.leads.borrow();
        if leads { reconcile(object, context).boxed() } else { future::ready(Ok(Requeue::await_change())).boxed() }
    }
}

/// When this replica begins to lead.
fn begins(leads: Receiver<bool>) -> impl Stream<Item = ()> {
    WatchStream::new(leads).filter(|leads| future::ready(*leads)).map(drop)
}

/// Environments that news of dead nodes concern: whoever waits for a node to die looks again at every one. Those of a lower
/// priority come a little later.
fn news(known: Receiver<Known>, seen: Seen) -> impl Stream<Item = ObjectRef<Guarded>> {
    WatchStream::from_changes(known).flat_map(move |known| {
        let concerned = concerned_by(&seen, &known);
        let groups = futures::stream::iter(concerned.into_iter().enumerate()).then(async |(number, group)| {
            tokio::time::sleep(NEXT_PRIORITY * u32::from(number > 0)).await;
            futures::stream::iter(group)
        });
        groups.flatten()
    })
}

/// What has to change about an environment for it to be looked at. Its status is written by whoever looks.
fn wishes(environment: &Guarded) -> Option<u64> {
    predicates::generation.combine(predicates::finalizers).combine(predicates::annotations).hash_property(environment)
}

/// Waits until it is time to stop.
async fn told(mut stop: Receiver<bool>) {
    drop(stop.wait_for(|stop| *stop).await);
}

/// A watch that fills a cache with pruned objects and passes on each that changed, deleted ones included.
fn touched<K>(
    api: Api<K>,
    config: watcher::Config,
    writer: reflector::store::Writer<K>,
    prune: impl FnMut(&mut K) + Send + 'static,
) -> impl Stream<Item = Result<K, watcher::Error>> + Send + 'static
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + Sync + 'static,
{
    watcher(api, config).default_backoff().modify(prune).reflect(writer).touched_objects()
}

/// The environments that a node concerns which has changed: those that wait for one, for themselves or for the copy of
/// their volume, since one that is back may take them, and those whose copy it keeps.
fn waiting_for((environments, volumes, pods): &Seen, node: &str) -> Vec<ObjectRef<Guarded>> {
    let pods = pods.state();
    let unplaced = pods.iter().filter(|pod| incarnation::node(pod).is_none());
    let unplaced = unplaced.filter_map(|pod| labelled_environment(pod.as_ref()));
    let keeps = |volume: &EnvironmentVolume| copied_to(volume) == Some(node);
    let volumes = volumes.state();
    let concerned =
        volumes.iter().filter(|volume| volume.0.as_ref().is_ok_and(|volume| lacks_copy(volume) || keeps(volume)));
    let of_copies = concerned.flat_map(|volume| users_of_volume(environments, volume));
    unplaced.chain(of_copies).collect::<HashSet<_>>().into_iter().collect()
}

/// The node that is to keep the copy of a volume.
fn copied_to(volume: &EnvironmentVolume) -> Option<&str> {
    Some(volume.status.as_ref()?.standby.as_ref()?.node.as_str())
}

/// Whether a volume wants a copy and no other node keeps one. Nothing else may ever happen to an environment that is
/// idle.
fn lacks_copy(volume: &EnvironmentVolume) -> bool {
    let node = volume.status.as_ref().and_then(|status| status.node.as_deref());
    volume.spec.standby > 0 && node.is_some() && copied_to(volume).is_none_or(|copied| Some(copied) == node)
}

/// How much later environments of the next lower priority are started when nodes have died.
const NEXT_PRIORITY: Duration = Duration::from_millis(250);

/// What is of a higher priority first, and then what is of the next lower one.
fn by_priority<T>(all: impl IntoIterator<Item = T>, priority: impl Fn(&T) -> i32) -> Vec<Vec<T>> {
    let mut groups: BTreeMap<i32, Vec<T>> = BTreeMap::new();
    for one in all {
        groups.entry(priority(&one)).or_default().push(one);
    }
    groups.into_values().rev().collect()
}

/// The highest priority of the pods of each environment, as the API server has found it by the name of their class.
fn priorities(pods: &[Arc<Pod>]) -> HashMap<ObjectRef<Guarded>, i32> {
    let mut all = HashMap::new();
    for pod in pods {
        let priority = pod.spec.as_ref().and_then(|spec| spec.priority);
        if let (Some(environment), Some(priority)) = (labelled_environment(pod.as_ref()), priority) {
            let highest = all.entry(environment).or_insert(priority);
            *highest = priority.max(*highest);
        }
    }
    all
}

/// The environments whose volume is held by a session that is over or being ended, or was last on such a node, those
/// whose volume lacks a copy, which a node that is back may keep, and those that have a pod on a node that is silent,
/// or on none: first those of the highest priority.
fn concerned_by((environments, volumes, pods): &Seen, known: &Known) -> Vec<Vec<ObjectRef<Guarded>>> {
    let concerned = |volume: &EnvironmentVolume| {
        let status = volume.status.as_ref();
        let holder = status.and_then(|status| status.holder.as_ref());
        let node = status.and_then(|status| status.node.as_deref());
        let of_death = known.deaths.iter().any(|(session, death)| {
            holder.is_some_and(|holder| holder.session == *session)
                || node == Some(death.node.as_str())
                || copied_to(volume) == Some(death.node.as_str())
        });
        of_death || lacks_copy(volume)
    };
    let volumes = volumes.state();
    let affected = volumes.iter().filter(|volume| volume.0.as_ref().is_ok_and(&concerned));
    let users = affected.flat_map(|volume| users_of_volume(environments, volume));
    let pods = pods.state();
    let without = pods.iter().filter(|pod| incarnation::node(pod).is_none_or(|node| known.silent.contains(node)));
    let concerned: HashSet<_> = users.chain(without.filter_map(|pod| labelled_environment(pod.as_ref()))).collect();
    let priorities = priorities(&pods);
    by_priority(concerned, |environment| priorities.get(environment).copied().unwrap_or_default())
}

fn labelled_environment<K: ResourceExt>(object: &K) -> Option<ObjectRef<Guarded>> {
    let (namespace, name) = environment_of(object)?;
    Some(ObjectRef::new(&name).within(&namespace))
}

fn claimed_environment(volume: &PersistentVolume) -> Option<ObjectRef<Guarded>> {
    let namespace = volume.spec.as_ref()?.claim_ref.as_ref()?.namespace.clone()?;
    Some(ObjectRef::new(volume.labels().get(names::LABEL_ENVIRONMENT)?).within(&namespace))
}

/// The environment that uses a volume; for one that is free or goes away, also those that wait for its name.
fn users_of_volume(environments: &Store<Guarded>, volume: &GuardedVolume) -> Vec<ObjectRef<Guarded>> {
    let namespace = volume.namespace().unwrap_or_default();
    let user = volume.0.as_ref().ok().and_then(|v| v.spec.environment.clone());
    match user {
        Some(user) if volume.meta().deletion_timestamp.is_none() => vec![ObjectRef::new(&user).within(&namespace)],
        _ => select(environments, |environment| {
            environment.namespace().as_ref() == Some(&namespace) && volume_name(environment) == volume.name_any()
        }),
    }
}

/// The restores of the environment that uses a volume, but for those that are over.
fn restores_of(restores: &Store<GuardedRestore>, volume: &GuardedVolume) -> Vec<ObjectRef<GuardedRestore>> {
    let namespace = volume.namespace();
    let user = volume.0.as_ref().ok().and_then(|volume| volume.spec.environment.as_deref());
    let concerns = |restore: &EnvironmentRestore| {
        restore.namespace() == namespace
            && Some(restore.spec.environment.as_str()) == user
            && !restore::decide::is_over(restore)
    };
    let all = restores.state();
    let concerned = all.iter().filter(|restore| restore.0.as_ref().is_ok_and(concerns));
    concerned.map(|restore| ObjectRef::from_obj(restore.as_ref())).collect()
}

fn users_of_template(environments: &Store<Guarded>, template: &GuardedTemplate) -> Vec<ObjectRef<Guarded>> {
    let name = template.name_any();
    // Only a volume that is still to be made needs the template.
    let waits = |e: &VirtualEnvironment| e.status.as_ref().is_none_or(|s| s.template_digest.is_none());
    select(environments, |environment| environment.spec.template.name == name && waits(environment))
}

/// The environments whose journal is in a store, and those whose volume is still to be made: the store is chosen then.
fn users_of_store(
    environments: &Store<Guarded>,
    volumes: &Store<GuardedVolume>,
    store: &GuardedStore,
) -> Vec<ObjectRef<Guarded>> {
    let name = store.name_any();
    let mut users =
        select(environments, |environment| environment.status.as_ref().is_none_or(|s| s.template_digest.is_none()));
    for volume in volumes.state() {
        let is_in = |volume: &EnvironmentVolume| {
            volume.spec.store.as_ref() == Some(&name) || volume.log().is_some_and(|log| log.store == name)
        };
        if volume.0.as_ref().is_ok_and(is_in) {
            users.extend(users_of_volume(environments, &volume));
        }
    }
    users
}

fn select(environments: &Store<Guarded>, concerns: impl Fn(&VirtualEnvironment) -> bool) -> Vec<ObjectRef<Guarded>> {
    let all = environments.state();
    let concerned = all.iter().filter(|e| e.0.as_ref().is_ok_and(&concerns));
    concerned.map(|e| ObjectRef::from_obj(e.as_ref())).collect()
}

/// The environments whose pods are on the node of a lease: its driver has begun a new session.
fn environments_on(pods: &Store<Pod>, lease: &Lease) -> Vec<ObjectRef<Guarded>> {
    let on_node = |pod: &Pod| {
        let node = pod.spec.as_ref().and_then(|s| s.node_name.as_deref());
        node.is_some_and(|node| names::node_lease(node) == lease.name_any())
    };
    pods.state().iter().filter(|pod| on_node(pod)).filter_map(|pod| labelled_environment(pod.as_ref())).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Objects as a cache has them.
    fn cached<K>(objects: impl IntoIterator<Item = serde_json::Value>) -> Store<K>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + 'static,
    {
        let (store, mut writer) = reflector::store();
        for object in objects {
            writer.apply_watcher_event(&watcher::Event::Apply(serde_json::from_value(object).unwrap()));
        }
        store
    }

    /// An environment of this name that nothing happens to, with its volume.
    fn idle(name: &str, standby: u32, copy: Option<&str>) -> [serde_json::Value; 2] {
        let copy = copy.map(|node| json!({"node": node, "sequence": 7}));
        let environment = json!({"apiVersion": "vivarium.dev/v1alpha1", "kind": "VirtualEnvironment",
            "metadata": {"name": name, "namespace": "a"}, "spec": {"template": {"name": "t"}}});
        let volume = json!({"apiVersion": "vivarium.dev/v1alpha1", "kind": "EnvironmentVolume",
            "metadata": {"name": name, "namespace": "a"},
            "spec": {"template": {"name": "t", "image": "i", "layers": ["l"]}, "size": "1Gi", "store": "s",
                "environment": name, "standby": standby},
            "status": {"node": "n2", "standby": copy}});
        [environment, volume]
    }

    #[test]
    fn an_idle_environment_without_its_copy_is_looked_at_when_a_node_is_back() {
        let all = [
            idle("lacking", 1, None),
            idle("taken-over", 1, Some("n2")),
            idle("copied-there", 1, Some("n1")),
            idle("copied", 1, Some("n3")),
            idle("alone", 0, None),
        ];
        let (environments, volumes): (Vec<_>, Vec<_>) =
            all.map(|[environment, volume]| (environment, volume)).into_iter().unzip();
        let seen = (cached(environments), cached(volumes), cached([]));
        let names = |all: Vec<ObjectRef<Guarded>>| {
            let mut names: Vec<_> = all.into_iter().map(|environment| environment.name).collect();
            names.sort();
            names
        };
        let changed = names(waiting_for(&seen, "n1"));
        assert_eq!(changed, ["copied-there", "lacking", "taken-over"]);
        // Its former session is not known any more: there is no death that names it.
        let news = concerned_by(&seen, &Known::default()).concat();
        assert_eq!(names(news), ["lacking", "taken-over"]);
    }

    #[test]
    fn what_matters_most_is_started_first() {
        let all = [("a", 0), ("b", 1000), ("c", -5), ("d", 1000)];
        let groups = by_priority(all, |(_, priority)| *priority);
        assert_eq!(groups, [vec![("b", 1000), ("d", 1000)], vec![("a", 0)], vec![("c", -5)]]);
    }

    #[test]
    fn the_priority_of_an_environment_is_that_of_its_pods() {
        let pod = |environment: &str, priority: Option<i32>| {
            let mut pod = Pod::default();
            pod.metadata.namespace = Some("a".into());
            pod.metadata.labels = Some([(names::LABEL_ENVIRONMENT.to_owned(), environment.to_owned())].into());
            pod.spec.get_or_insert_default().priority = priority;
            Arc::new(pod)
        };
        let pods = [pod("shop", Some(5)), pod("shop", Some(-1)), pod("other", Some(9)), pod("new", None)];
        let expected = [("shop", 5), ("other", 9)].map(|(name, priority)| (ObjectRef::new(name).within("a"), priority));
        assert_eq!(priorities(&pods), HashMap::from(expected));
    }
}
