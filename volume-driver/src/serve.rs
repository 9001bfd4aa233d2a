//! `vivarium-node serve`: puts the parts together and runs them until the process is told to end. What is mounted stays
//! mounted; the next process takes it over.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tonic::transport::Server;
use vivarium_ownership::{BadTiming, Timing};

use crate::authority::kill::{self, KillError};
use crate::authority::published::Leases;
use crate::authority::{Promises, witness};
use crate::claim::Claims;
use crate::csi::node::Node;
use crate::csi::server::{ListenError, listen, services};
use crate::garbage;
use crate::health::{self, Health, Stage};
use crate::journal::keep::Policy;
use crate::journal::keeper::{Keeper, Superseded};
use crate::kube::departures::Departures;
use crate::kube::directory::ClusterDirectory;
use crate::kube::garbage::Collecting;
use crate::kube::guests::Guests;
use crate::kube::keeping::Keeping;
use crate::kube::lease::{self, IsWell};
use crate::kube::proving::Proving;
use crate::kube::standby::Standbys;
use crate::kube::stores::{StoreObjects, Stores};
use crate::kube::templates::Templates;
use crate::kube::trials::Trials;
use crate::kube::volumes::VolumeObjects;
use crate::pool::probe::Probe;
use crate::pool::{Pool, PoolError, PoolSource};
use crate::proto::registration::registration_server::RegistrationServer;
use crate::publish::guard::Operations;
use crate::publish::pending::Pending;
use crate::publish::{Me, Publisher, Refusal, WAIT};
use crate::registration::Registration;
use crate::runtime_install;
use crate::session::{Session, SessionError};
use crate::settings::ServeArgs;
use crate::template::unpack::Limits;
use crate::template::{TemplateCache, TemplateError};
use crate::view::Views;
use crate::volume::Volumes;
use crate::volume::record::{RecordError, Records};

/// How often a driver that waits for the one before it looks whether that has ended.
const LOCK_AGAIN: Duration = Duration::from_millis(50);
/// How long until an incarnation is killed again of which it is not certain that it has ended.
const END_AGAIN: Duration = Duration::from_secs(1);
/// How often it is looked whether an environment has lost its shim: one that has must end within the margin that is waited
/// beyond its lease.
const ORPHANS: Duration = Duration::from_millis(250);
/// How long a driver that is told to end tries to announce that the next one takes over.
const ANNOUNCE: Duration = Duration::from_secs(3);

/// Why the driver ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The times.
    #[error(transparent)]
    Timing(#[from] BadTiming),
    /// The pool.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The session.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// Records.
    #[error(transparent)]
    Records(#[from] RecordError),
    /// The template cache.
    #[error(transparent)]
    Templates(#[from] TemplateError),
    /// The leases of environments.
    #[error("the leases of environments cannot be read: {0}")]
    Leases(std::io::Error),
    /// What is known of stores.
    #[error("what is known of stores cannot be kept: {0}")]
    Trials(std::io::Error),
    /// What is shown to those who read.
    #[error("the records of what is shown to pods cannot be read: {0}")]
    Views(std::io::Error),
    /// Environments that leave.
    #[error("stops of environments cannot be held back: {0}")]
    Departures(std::io::Error),
    /// What ran under a former session.
    #[error(transparent)]
    Kill(#[from] KillError),
    /// What runs here cannot be bound by the stores that its journals are in.
    #[error("which stores bind what runs here cannot be found out: {0}")]
    Bound(#[from] Refusal),
    /// Another node has the volumes.
    #[error(
        "this node was fenced: its environments run elsewhere by now or will soon ({killed} were killed here). The next process begins a new session"
    )]
    Fenced {
        /// Environments that had to be killed.
        killed: usize,
    },
    /// A socket.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The cluster.
    #[error("cannot find the API server: {0}. In a pod this is a missing service account token")]
    Cluster(#[from] ::kube::Error),
    /// The kubelet refused.
    #[error("the kubelet did not register the driver: {0}")]
    NotRegistered(String),
    /// A server or task ended that never should.
    #[error("the {0} ended: {1}")]
    Ended(&'static str, String),
}

/// Runs the driver until SIGTERM or SIGINT.
///
/// # Errors
/// [`ServeError`]; the process should end then and be started again.
pub async fn serve(args: ServeArgs) -> Result<(), ServeError> {
    let mut tasks: JoinSet<ServeError> = JoinSet::new();
    let timing = Timing::with(Duration::from_secs(args.lease_seconds), Timing::default().silence)?;
    let (stage, stages) = watch::channel(Stage::Waits);
    let address = args.health_address;
    tasks.spawn(async move {
        let end = health::serve(address, stages).await;
        ServeError::Ended("health server", end.map_or_else(|error| error.to_string(), |()| String::new()))
    });
    let session = first_in_line(&args.run_dir).await?;
    stage.send_replace(Stage::Starts);
    let records = Records::open(&args.run_dir)?;
    if session.resumed {
        tracing::info!(session = session.id, "resumed the session of this boot");
    } else {
        let killed = kill::end_session(&args.run_dir, &records).await?;
        session.keep()?;
        tracing::info!(session = session.id, killed, "began a session");
    }
    let leases = Leases::open(&args.run_dir, &session.id, &session.boot_id).map_err(ServeError::Leases)?;
    let promises = Promises::open(timing, &session.id, leases).map_err(ServeError::Leases)?;
    let promises = Arc::new(promises);
    let (pool, volumes, templates) = open_pool(args.clone()).await?;
    let client = ::kube::Client::try_default().await?;
    let directory = Arc::new(ClusterDirectory { client: client.clone() });
    let (keeper, superseded) = Keeper::new(volumes.clone(), templates.clone(), directory.clone(), args.prove_every());
    let publisher = Arc::new(Publisher {
        me: Me { node: args.node_name.clone(), session: session.id.clone() },
        keeper: Arc::new(keeper),
        directory: directory.clone(),
        volumes,
        templates: templates.clone(),
        records,
        pending: Arc::new(Pending::open(&args.run_dir)?),
        stores: Stores::default(),
        operations: Operations::default(),
        changing: Operations::default(),
        promises: promises.clone(),
        changed: Arc::new(Notify::new()),
        wait: WAIT,
    });

    let patience = Some(Duration::from_secs(args.pool_patience)).filter(|patience| !patience.is_zero());
    let probe = Probe::start(&pool, patience)?;
    let is_well: IsWell = Arc::new(move || !probe.hangs());
    publisher.bind_again().await?;
    start_witnesses(&mut tasks, &args, &client, &session, &publisher, is_well);
    let trials = Trials::open(&args.run_dir, &session.id).map_err(ServeError::Trials)?;
    start_cluster_tasks(&mut tasks, &args, &client, &publisher, templates, trials);
    start_guests(&mut tasks, &args, &client, &publisher)?;
    publisher.resume_journals()?;
    publisher.resume_pending()?;
    let keeper = publisher.keeper.clone();
    tasks.spawn(async move {
        keeper.run().await;
        ServeError::Ended("keeper of journals", String::new())
    });
    let views = Arc::new(Views::open(publisher.clone(), &args.run_dir).map_err(ServeError::Views)?);
    let sweeping = views.clone().run();
    tasks.spawn(async move {
        sweeping.await;
        ServeError::Ended("sweeping of copies", String::new())
    });
    tasks.spawn(end_incarnations(args.run_dir.clone(), publisher.records.clone(), superseded));
    tasks.spawn(end_orphans(args.run_dir.clone()));
    let stop = Arc::new(Notify::new());
    let claims = open_claims(&publisher, directory).await?;
    let node = Node { publisher: publisher.clone(), views, claims, name: args.node_name.clone() };
    let servers = start_servers(&mut tasks, &args, &pool, node, &stop)?;
    stage.send_replace(Stage::Serves(Health { pool, csi_socket: args.csi_socket() }));

    let failed = |error| ServeError::Ended("signal handler", std::io::Error::to_string(&error));
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let result = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        () = promises.over() => {
            // As soon as possible: another node waits until nothing can run here any more, and then starts what ran here.
            let killed = kill::end_session(&args.run_dir, &publisher.records).await?;
            session.forget()?;
            return Err(ServeError::Fenced { killed });
        }
        Some(ended) = tasks.join_next() => {
            Err(ended.unwrap_or_else(|error| ServeError::Ended("task", error.to_string())))
        }
    };
    if result.is_ok() && tokio::time::timeout(ANNOUNCE, promises.announce_restart()).await.is_err() {
        tracing::warn!("environments stand still until the next driver is there: its start could not be announced");
    }
    // Calls that are under way are finished; the kubelet repeats those that come later.
    stop.notify_waiters();
    servers.await;
    tracing::info!("ended; what is mounted stays");
    result
}

/// The pool, its volumes and its template layers.
async fn open_pool(args: ServeArgs) -> Result<(Arc<Pool>, Volumes, Arc<TemplateCache>), ServeError> {
    let open = move || -> Result<_, ServeError> {
        let source = match args.pool_device {
            Some(device) => PoolSource::Device(device),
            None => PoolSource::File { size: args.pool_size },
        };
        let pool = Arc::new(Pool::open(&args.node_name, &source, &args.state_dir)?);
        let limits = Limits { entries: args.max_layer_entries, bytes: args.max_layer_size };
        let volumes = Volumes::open(pool.clone())?;
        let templates = TemplateCache::open(pool.clone(), args.plain_http_registries, limits)?;
        Ok((pool, volumes, Arc::new(templates)))
    };
    let opened = tokio::task::spawn_blocking(open).await;
    opened.map_err(|error| ServeError::Ended("opening of the pool", error.to_string()))?
}

/// The volumes of ordinary pods.
async fn open_claims(publisher: &Arc<Publisher>, directory: Arc<ClusterDirectory>) -> Result<Arc<Claims>, ServeError> {
    let publisher = publisher.clone();
    let opened = tokio::task::spawn_blocking(move || Claims::open(&publisher, directory)).await;
    Ok(Arc::new(opened.map_err(|error| ServeError::Ended("opening of the pool", error.to_string()))??))
}

/// The session, once no other driver runs on this node. During an upgrade the next one is started before the last one is
/// told to end, so that nobody waits for its image.
async fn first_in_line(run_dir: &Path) -> Result<Session, SessionError> {
    let mut told = false;
    loop {
        match Session::open(run_dir) {
            Err(error @ SessionError::Locked { .. }) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::info!("{error}");
                }
                tokio::time::sleep(LOCK_AGAIN).await;
            }
            other => return other,
        }
    }
}

/// Ends what has lost its volume to a later incarnation, as long as there are journals.
async fn end_incarnations(
    run_dir: PathBuf,
    records: Records,
    mut superseded: mpsc::UnboundedReceiver<Superseded>,
) -> ServeError {
    while let Some(Superseded { volume, epoch }) = superseded.recv().await {
        let (run_dir, records) = (run_dir.clone(), records.clone());
        // One that does not die must not keep others alive.
        tokio::spawn(async move {
            while let Err(error) = kill::end_incarnation(&run_dir, &records, &volume, epoch).await {
                tracing::error!(%error, %volume, epoch, "it is not certain that an incarnation has ended");
                tokio::time::sleep(END_AGAIN).await;
            }
        });
    }
    ServeError::Ended("keeper of journals", String::new())
}

/// Ends what has lost its shim. It has to be over before the promise that it ran under has passed; nobody else would end it
/// when containerd is dead too and this node hears of no fence.
async fn end_orphans(run_dir: PathBuf) -> ServeError {
    let mut tick = tokio::time::interval(ORPHANS);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        match kill::end_orphans(&run_dir).await {
            Ok(0) => {}
            Ok(killed) => tracing::error!(killed, "environments without a shim were ended"),
            Err(error) => tracing::error!(%error, "it is not certain that every environment has a shim"),
        }
    }
}

/// What keeps the node alive, in the eyes of others.
fn start_witnesses(
    tasks: &mut JoinSet<ServeError>,
    args: &ServeArgs,
    client: &::kube::Client,
    session: &Session,
    publisher: &Arc<Publisher>,
    is_well: IsWell,
) {
    let identity =
        lease::Identity { namespace: args.namespace.clone(), node: args.node_name.clone(), resumed: session.resumed };
    let runtime = args.runtime.clone();
    let uninstall = move |wanted| {
        let runtime = runtime.clone();
        async move {
            let done = match wanted {
                lease::Uninstall::Check => runtime_install::can_uninstall(&runtime).await,
                lease::Uninstall::Remove => runtime_install::uninstall(&runtime).await,
            };
            done.map_err(|error| error.to_string())
        }
    };
    let lease = lease::keep(client.clone(), identity, publisher.promises.clone(), is_well.clone(), uninstall);
    // Large, because it holds a removal of the runtime.
    let lease = Box::pin(lease);
    tasks.spawn(async move {
        lease.await;
        ServeError::Ended("lease", "its watch ended".into())
    });
    let witnesses = witness::ask(publisher.promises.clone(), publisher.stores.clone(), is_well);
    tasks.spawn(async move {
        witnesses.await;
        ServeError::Ended("questions to stores", String::new())
    });
}

/// What watches and writes objects.
fn start_cluster_tasks(
    tasks: &mut JoinSet<ServeError>,
    args: &ServeArgs,
    client: &::kube::Client,
    publisher: &Arc<Publisher>,
    templates: Arc<TemplateCache>,
    trials: Trials,
) {
    let collect = Arc::new(Notify::new());
    let templates = Arc::new(Templates {
        client: client.clone(),
        node: args.node_name.clone(),
        cache: templates,
        stores: publisher.stores.clone(),
        collect: collect.clone(),
    });
    tasks.spawn({
        let templates = templates.clone();
        async move {
            templates.run().await;
            ServeError::Ended("template watch", "its stream ended".into())
        }
    });
    tasks.spawn(async move {
        templates.collect().await;
        ServeError::Ended("collection of layers", "its watch ended".into())
    });

    // Whoever commits or restores takes the stores from here.
    let stores = StoreObjects {
        client: client.clone(),
        node: args.node_name.clone(),
        namespace: args.namespace.clone(),
        stores: publisher.stores.clone(),
        trials,
    };
    tasks.spawn(async move {
        stores.run().await;
        ServeError::Ended("watch of stores", "its stream ended".into())
    });

    let keeping = Keeping {
        client: client.clone(),
        namespace: args.namespace.clone(),
        publisher: publisher.clone(),
        policy: Policy { retention: Duration::from_hours(args.retention_hours), ..Policy::default() },
    };
    let collecting = Collecting {
        client: client.clone(),
        namespace: args.namespace.clone(),
        publisher: publisher.clone(),
        policy: garbage::Policy { grace: Duration::from_hours(args.retention_hours), ..garbage::Policy::default() },
    };
    tasks.spawn(async move {
        collecting.run().await;
        ServeError::Ended("collection of garbage", String::new())
    });

    tasks.spawn(async move {
        keeping.run().await;
        ServeError::Ended("keeping of journals", String::new())
    });

    let proving = Proving {
        client: client.clone(),
        namespace: args.namespace.clone(),
        publisher: publisher.clone(),
        every: args.prove_every(),
    };
    tasks.spawn(async move {
        proving.run().await;
        ServeError::Ended("restores on trial", String::new())
    });

    let standbys = Standbys { client: client.clone(), publisher: publisher.clone() };
    tasks.spawn(async move {
        standbys.run().await;
        ServeError::Ended("standby copies", "their watch ended".into())
    });

    let (of_volumes, undecided) = (publisher.clone(), Mutex::default());
    let volumes = Arc::new(VolumeObjects { client: client.clone(), publisher: of_volumes, collect, undecided });
    tasks.spawn(async move {
        volumes.run().await;
        ServeError::Ended("volume watch", "its stream ended".into())
    });
}

/// What looks after guests.
fn start_guests(
    tasks: &mut JoinSet<ServeError>,
    args: &ServeArgs,
    client: &::kube::Client,
    publisher: &Arc<Publisher>,
) -> Result<(), ServeError> {
    let departures = Departures::open(client.clone(), publisher.clone(), &args.run_dir);
    let departures = Arc::new(departures.map_err(ServeError::Departures)?);
    let watching = departures.clone().run();
    tasks.spawn(async move {
        watching.await;
        ServeError::Ended("watch of the node", String::new())
    });
    let guests = Guests {
        client: client.clone(),
        node: args.node_name.clone(),
        directory: args.run_dir.join("guests"),
        publisher: publisher.clone(),
        departures,
    };
    tasks.spawn(async move {
        let end = guests.run().await.map_or_else(|error| error.to_string(), |()| "its watch ended".into());
        ServeError::Ended("watch of guests", end)
    });
    Ok(())
}

/// What answers on sockets. The future ends when `stop` was told and every call is finished.
fn start_servers(
    tasks: &mut JoinSet<ServeError>,
    args: &ServeArgs,
    pool: &Arc<Pool>,
    node: Node,
    stop: &Arc<Notify>,
) -> Result<impl Future<Output = ()> + use<>, ServeError> {
    let csi_socket = args.csi_socket();
    let stopped = |stop: &Arc<Notify>| {
        let stop = stop.clone();
        async move { stop.notified().await }
    };
    let csi = services(pool.clone(), node).serve_with_incoming_shutdown(listen(&csi_socket)?, stopped(stop));
    let csi = tokio::spawn(csi);

    let (refused, mut refusals) = mpsc::channel(1);
    let registration = Registration { csi_socket: csi_socket.clone(), refused };
    // Last of the sockets: the kubelet calls as soon as it sees it.
    let registration_socket = args.registration_socket();
    let registration = Server::builder()
        .add_service(RegistrationServer::new(registration))
        .serve_with_incoming_shutdown(listen(&registration_socket)?, stopped(stop));
    let registration = tokio::spawn(registration);
    tasks.spawn(async move {
        let error = refusals.recv().await.unwrap_or_default();
        ServeError::NotRegistered(error)
    });

    Ok(async move {
        for server in [csi, registration] {
            match server.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "a server ended with an error"),
                Err(error) => tracing::error!(%error, "a server ended with an error"),
            }
        }
        // The kubelet forgets a driver whose socket is gone.
        if let Err(error) = crate::files::remove(&registration_socket) {
            tracing::warn!(%error, "the registration socket stays behind");
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_next_driver_takes_over_when_the_last_one_ends() {
        let dir = tempfile::tempdir().unwrap();
        let last = Session::open(dir.path()).unwrap();
        last.keep().unwrap();
        let id = last.id.clone();
        let waiting = first_in_line(dir.path());
        tokio::pin!(waiting);
        let early = tokio::time::timeout(Duration::from_millis(200), &mut waiting).await;
        assert!(early.is_err(), "two drivers run");
        drop(last);
        let next = tokio::time::timeout(Duration::from_secs(5), waiting).await.unwrap().unwrap();
        assert_eq!((next.id, next.resumed), (id, true));
    }
}
