//! Read anywhere: any pod of an environment's namespace, on any node, mounts its tree read-only, as of the last commit or of an
//! instant of the past, with an ephemeral volume `{environment, at}`.
//!
//! The reference is a name in the namespace of the pod, which the kubelet tells and no tenant can choose: there is no way to
//! write down an environment of another namespace. The tree comes from the journal, so it can be shown while the environment
//! runs, when it is stopped, and when its node is dead; on the node that runs it, from the last committed snapshot. A copy
//! ([`crate::volume::view`]) is shared by all who look at the same state, and destroyed some time after the last one.
//! Nobody can write to a copy, and nothing that is done here changes a volume, its journal or who holds it.

mod history;
pub(crate) mod mount;
mod record;
mod request;

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, Semaphore};
use vivarium_api::v1alpha1::EnvironmentVolume;
use vivarium_api::v1alpha1::volume::VolumeLog;
use vivarium_api::view::HISTORY_FILE;

pub use request::{Request, What};

use crate::directory::VolumeName;
use crate::ids::{LayerDigest, VolumeId};
use crate::journal::JournalError;
use crate::journal::local::Local;
use crate::journal::log::{Log, Position};
use crate::journal::restore::{layer_roots, replay};
use crate::journal::wanted::Wanted;
use crate::pool::{PoolError, is_mount_point, open_directory};
use crate::publish::{Publisher, Refusal, blocking, layers};
use crate::template::Pin;
use crate::volume::Volumes;
use crate::volume::view::{State, View};
use record::{Shown, ShownRecords};

/// How long a copy stays that nobody looks at.
pub const IDLE: Duration = Duration::from_mins(1);
/// How often it is looked for such copies.
const SWEEP_EVERY: Duration = Duration::from_secs(20);
/// Most copies of one volume on a node: each can be as large as the volume.
const COPIES: usize = 8;
/// Copies that are made at the same time.
const MAKERS: usize = 2;
/// Room that a copy of unknown size is taken to need.
const ROOM: u64 = 1 << 20;

/// Show something to a pod.
#[derive(Clone, Debug)]
pub struct ShowCall {
    /// What the kubelet calls the volume.
    pub handle: VolumeId,
    /// Where.
    pub target: PathBuf,
    /// Namespace of the pod.
    pub namespace: String,
    /// What.
    pub request: Request,
}

/// What shows trees.
pub struct Views {
    publisher: Arc<Publisher>,
    records: ShownRecords,
    /// Of several who want the same copy one makes it.
    turns: Mutex<HashMap<View, Weak<AsyncMutex<()>>>>,
    /// Layers below what is shown.
    pins: Mutex<HashMap<VolumeId, Pin>>,
    makers: Semaphore,
}

impl Views {
    /// Takes over what a former process of the same boot showed.
    ///
    /// # Errors
    /// The records cannot be read.
    pub fn open(publisher: Arc<Publisher>, run_dir: &Path) -> io::Result<Self> {
        let records = ShownRecords::open(run_dir)?;
        let views = Self {
            publisher,
            records,
            turns: Mutex::default(),
            pins: Mutex::default(),
            makers: Semaphore::new(MAKERS),
        };
        for (handle, shown) in views.records.list()? {
            let layers: Vec<_> = shown.layers.iter().filter_map(|layer| LayerDigest::parse(layer).ok()).collect();
            views.pin(&handle, &layers);
        }
        Ok(views)
    }

    /// Whether a volume of the kubelet is one of these. It names ephemeral volumes `csi-` and a SHA-256.
    #[must_use]
    pub fn is_view(handle: &VolumeId) -> bool {
        let digest = handle.as_str().strip_prefix("csi-");
        digest.is_some_and(|digest| digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit()))
    }

    /// Mounts what a pod asks for.
    ///
    /// # Errors
    /// Any [`Refusal`].
    pub async fn publish(&self, call: ShowCall) -> Result<(), Refusal> {
        let operations = &self.publisher.operations;
        let _operation = operations.begin(&call.handle).ok_or_else(|| Refusal::Busy(call.handle.clone()))?;
        if let Some(shown) = self.records.get(&call.handle).map_err(records)? {
            if shown.target == call.target && is_mount_point(&call.target).unwrap_or(false) {
                return Ok(());
            }
            self.take_away(&call.handle, &shown.target)?;
        }
        let (namespace, environment) = (&call.namespace, &call.request.environment);
        let object = self.publisher.directory.find(namespace, environment).await?;
        let object = object
            .ok_or_else(|| Refusal::NoEnvironment { namespace: namespace.clone(), environment: environment.clone() })?;
        let volume = Volume::of(object, namespace)?;
        match &call.request.what {
            What::History => self.show_history(&call, &volume).await,
            What::Tree(at) => {
                let (view, source) = self.find(&volume, *at).await?;
                self.show_tree(&call, &volume, view, source).await
            }
            What::Diverged { node, epoch } => {
                let (view, path) = self.set_aside(&volume, node, *epoch)?;
                self.show_tree(&call, &volume, view, Source::Subvolume(path)).await
            }
        }
    }

    /// Takes back what a pod was shown.
    ///
    /// # Errors
    /// [`Refusal::Busy`], or something cannot be unmounted.
    pub fn unpublish(&self, handle: &VolumeId, target: &Path) -> Result<(), Refusal> {
        let operations = &self.publisher.operations;
        let _operation = operations.begin(handle).ok_or_else(|| Refusal::Busy(handle.clone()))?;
        self.take_away(handle, target)
    }

    fn take_away(&self, handle: &VolumeId, target: &Path) -> Result<(), Refusal> {
        mount::unmount(target).map_err(mount_error("unmount", target))?;
        let shown = self.records.get(handle).map_err(records)?;
        self.records.remove(handle).map_err(records)?;
        lock(&self.pins).remove(handle);
        if let Some(view) = shown.and_then(|shown| View::parse(&shown.copy?)) {
            self.publisher.volumes.touch_view(&view)?;
        }
        Ok(())
    }

    /// The state that is meant, and where it comes from.
    async fn find(&self, volume: &Volume, at: Option<Wanted>) -> Result<(View, Source), Refusal> {
        let of = |sequence| View { volume: volume.id.clone(), state: State::Transaction(sequence) };
        // Whoever runs it has the newest state at hand, whether the store answers or not.
        if at.is_none()
            && self.publisher.keeper.has(&volume.id)
            && let Some(newest) = Local::newest(&self.publisher.volumes, &volume.id)?
        {
            return Ok((of(newest.base), Source::Newest));
        }
        let (log, known) = self.log(volume, at).await?;
        let tail = log.tail(known).await?;
        if tail.sequence == 0 {
            return Err(Refusal::NothingYet { name: volume.name.clone() });
        }
        let position = match at {
            None => tail,
            Some(Wanted::Sequence(number)) => {
                let oldest = log.boundary().await?.sequence.max(1);
                if number < oldest {
                    return Err(self.too_old(volume, &log, oldest).await?);
                }
                if number > tail.sequence {
                    return Err(Refusal::NotYet { name: volume.name.clone(), number, newest: tail.sequence });
                }
                let Some(moment) = log.moment(number).await? else {
                    let next = log.states().await?.range(number..).next().copied().unwrap_or(tail.sequence);
                    return Err(Refusal::Merged { name: volume.name.clone(), number, next });
                };
                moment.position
            }
            Some(Wanted::Time(time)) => {
                let moment = log.at(time, tail.sequence).await?;
                if moment.too_old {
                    return Err(self.too_old(volume, &log, moment.position.sequence).await?);
                }
                moment.position
            }
        };
        Ok((of(position.sequence), Source::Journal(log, position)))
    }

    async fn too_old(&self, volume: &Volume, log: &Log, oldest: u64) -> Result<Refusal, JournalError> {
        Ok(Refusal::TooOld { name: volume.name.clone(), time: log.written(oldest).await?, number: oldest })
    }

    /// What was set aside here of an incarnation, the newest of several.
    fn set_aside(&self, volume: &Volume, node: &str, epoch: u64) -> Result<(View, PathBuf), Refusal> {
        if node != self.publisher.me.node {
            let what = format!("what was set aside of epoch {epoch}");
            return Err(Refusal::OnlyThere { name: volume.name.clone(), what, node: node.to_owned() });
        }
        let volumes = &self.publisher.volumes;
        let mut all = volumes.diverged()?.into_iter().rev();
        let found = all.find(|diverged| diverged.volume == volume.id && diverged.epoch == epoch);
        let found =
            found.ok_or_else(|| Refusal::NotSetAside { name: volume.name.clone(), node: node.to_owned(), epoch })?;
        let state = State::Diverged { epoch, since: found.since };
        Ok((View { volume: volume.id.clone(), state }, volumes.diverged_path(&found).join(crate::volume::LIVE)))
    }

    /// The log that has a state, and a transaction that is in it for certain.
    async fn log(&self, volume: &Volume, wanted: Option<Wanted>) -> Result<(Log, u64), Refusal> {
        let Volume { id, name, logs, known, .. } = volume;
        let log = self.publisher.log_with(name, id, logs, *known, wanted).await?;
        let node = volume.node.as_deref().unwrap_or_default();
        if !log.0.is_shared() && node != self.publisher.me.node {
            let what = format!("the journal, which is in a directory (JournalStore `{}`),", log.0.store());
            return Err(Refusal::OnlyThere { name: name.clone(), what, node: node.to_owned() });
        }
        Ok(log)
    }

    async fn show_history(&self, call: &ShowCall, volume: &Volume) -> Result<(), Refusal> {
        let (log, known) = self.log(volume, None).await?;
        let mut history = history::history(&log, &volume.id, known).await?;
        // As far back as one log ends where the next one begins.
        for former in volume.logs.iter().skip(1) {
            let log = Log::named(&volume.id, &former.name, self.publisher.store_of(&volume.name, former).await?)?;
            history.precede(history::history(&log, &volume.id, 0).await?);
        }
        let content = serde_json::to_vec(&history).map_err(|error| Refusal::CutOff(error.to_string()))?;
        let shown = Shown::new(call.target.clone(), None, Vec::new());
        self.show(call, &shown, || mount::file(HISTORY_FILE, &content, &call.target))
    }

    async fn show_tree(&self, call: &ShowCall, volume: &Volume, view: View, source: Source) -> Result<(), Refusal> {
        let publisher = &self.publisher;
        // From here on the layers are not collected, and after this call as long as it is shown.
        self.pin(&call.handle, &volume.layers);
        let shown = async {
            let stores: Vec<_> = volume.logs.iter().filter_map(|log| publisher.stores.get(&log.store)).collect();
            publisher
                .templates
                .ensure(&volume.image, &volume.layers, &stores)
                .await
                .map_err(|error| Refusal::Template { name: volume.name.clone(), source: error.into() })?;
            // Held until the record says that the copy is in use.
            let _turn = self.turn(&view).lock_owned().await;
            if !publisher.volumes.has_view(&view) {
                self.make(volume, &view, source).await?;
                tracing::info!(volume = %volume.name, copy = %view, "made a copy to be read");
            }
            publisher.volumes.touch_view(&view)?;
            let live = publisher.volumes.view_path(&view);
            let roots: Vec<PathBuf> = volume.layers.iter().rev().map(|layer| publisher.templates.path(layer)).collect();
            let layers = volume.layers.iter().map(ToString::to_string).collect();
            let shown = Shown::new(call.target.clone(), Some(view.to_string()), layers);
            self.show(call, &shown, || mount::tree(&live, &roots, &call.target))
        }
        .await;
        if shown.is_err() {
            lock(&self.pins).remove(&call.handle);
        }
        shown
    }

    /// Record, then mount; after a failure neither is left.
    fn show(&self, call: &ShowCall, shown: &Shown, mount: impl FnOnce() -> io::Result<()>) -> Result<(), Refusal> {
        self.records.put(&call.handle, shown).map_err(records)?;
        if let Err(error) = mount() {
            self.take_away(&call.handle, &call.target)?;
            return Err(mount_error("show a tree at", &call.target)(error));
        }
        Ok(())
    }

    async fn make(&self, volume: &Volume, view: &View, source: Source) -> Result<(), Refusal> {
        self.make_room(volume).await?;
        match source {
            Source::Subvolume(path) => {
                let (volumes, view) = (self.publisher.volumes.clone(), view.clone());
                blocking(move || {
                    let subvolume = open_directory(&path).map_err(mount_error("open", &path))?;
                    Ok(volumes.snapshot_view(&view, subvolume.as_fd())?)
                })
                .await
            }
            Source::Newest => {
                let (volumes, view) = (self.publisher.volumes.clone(), view.clone());
                blocking(move || snapshot_newest(&volumes, &view)).await
            }
            Source::Journal(log, position) => self.replay(volume, view, &log, position).await,
        }
    }

    async fn replay(&self, volume: &Volume, view: &View, log: &Log, position: Position) -> Result<(), Refusal> {
        let Publisher { volumes, templates, .. } = &*self.publisher;
        // Never closed.
        let _permit = self.makers.acquire().await.ok();
        let roots = layer_roots(templates, &volume.id, &volume.layers)?;
        let (made, name, room) = (volumes.clone(), view.clone(), volume.room);
        let replayed = replay(volumes, &volume.id, log, position, roots, move |fill| made.make_view(&name, room, fill));
        if replayed.await?.empty {
            volumes.drop_view(view)?;
            return Err(Refusal::NothingYet { name: volume.name.clone() });
        }
        Ok(())
    }

    /// Makes room for a copy of a volume, if need be by destroying copies that nobody looks at.
    async fn make_room(&self, volume: &Volume) -> Result<(), Refusal> {
        let Publisher { volumes, .. } = &*self.publisher;
        let of_it = || -> Result<usize, PoolError> {
            Ok(volumes.views()?.iter().filter(|view| view.volume == volume.id).count())
        };
        if of_it()? < COPIES && volumes.pool().require(volume.room).is_ok() {
            return Ok(());
        }
        self.sweep(Duration::ZERO, SystemTime::now()).await?;
        volumes.pool().require(volume.room)?;
        if of_it()? < COPIES { Ok(()) } else { Err(Refusal::TooManyViews { name: volume.name.clone(), most: COPIES }) }
    }

    /// Destroys copies that nobody looks at and nobody has looked at for some time.
    ///
    /// # Errors
    /// The pool fails, or records cannot be read.
    pub async fn sweep(&self, idle: Duration, now: SystemTime) -> Result<(), Refusal> {
        let volumes = &self.publisher.volumes;
        for view in volumes.views()? {
            // One whose turn somebody has is about to be used.
            let Some(_turn) = self.try_turn(&view) else { continue };
            let name = view.to_string();
            let used =
                self.records.list().map_err(records)?.iter().any(|(_, shown)| shown.copy.as_ref() == Some(&name));
            if used || volumes.view_idle(&view, now) < idle {
                continue;
            }
            let volumes = volumes.clone();
            blocking(move || Ok(volumes.drop_view(&view)?)).await?;
            tracing::info!(copy = name, "destroyed a copy that nobody reads any more");
        }
        Ok(())
    }

    /// Sweeps for ever.
    pub async fn run(self: Arc<Self>) {
        loop {
            tokio::time::sleep(SWEEP_EVERY).await;
            if let Err(error) = self.sweep(IDLE, SystemTime::now()).await {
                tracing::warn!(%error, "copies that nobody reads stay longer");
            }
        }
    }

    fn pin(&self, handle: &VolumeId, layers: &[LayerDigest]) {
        lock(&self.pins).insert(handle.clone(), self.publisher.templates.pin(layers));
    }

    fn turn(&self, view: &View) -> Arc<AsyncMutex<()>> {
        let mut turns = lock(&self.turns);
        turns.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = turns.get(view).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::new(AsyncMutex::new(()));
        turns.insert(view.clone(), Arc::downgrade(&turn));
        turn
    }

    fn try_turn(&self, view: &View) -> Option<OwnedMutexGuard<()>> {
        self.turn(view).try_lock_owned().ok()
    }
}

/// Where a copy comes from.
enum Source {
    /// The last committed snapshot on this node.
    Newest,
    /// The state after a transaction of a log.
    Journal(Log, Position),
    /// A subvolume.
    Subvolume(PathBuf),
}

/// The volume of an environment, as far as it matters here.
struct Volume {
    id: VolumeId,
    name: VolumeName,
    /// Where its journal is: the log that decides, and those that were left, the newest first.
    logs: Vec<VolumeLog>,
    image: String,
    layers: Vec<LayerDigest>,
    node: Option<String>,
    /// A transaction that was in the log for certain.
    known: u64,
    /// Bytes that a copy is taken to need.
    room: u64,
}

impl Volume {
    fn of(object: EnvironmentVolume, namespace: &str) -> Result<Self, Refusal> {
        let layers = layers(&object)?;
        let (logs, known) = (object.past(), object.known());
        let status = object.status.unwrap_or_default();
        let name =
            VolumeName { namespace: namespace.to_owned(), name: object.metadata.name.clone().unwrap_or_default() };
        if logs.is_empty() {
            return Err(Refusal::NotJournaled { name });
        }
        Ok(Self {
            id: VolumeId::parse(&object.metadata.uid.unwrap_or_default())?,
            name,
            logs,
            image: object.spec.template.image,
            layers,
            node: status.node,
            known,
            room: status.used_bytes.and_then(|used| u64::try_from(used).ok()).unwrap_or_default().max(ROOM),
        })
    }
}

/// The last committed snapshot of a volume that is here. The commit that comes next takes it away.
fn snapshot_newest(volumes: &Volumes, view: &View) -> Result<(), Refusal> {
    match Local::newest(volumes, &view.volume)? {
        Some(newest) if State::Transaction(newest.base) == view.state => {
            Ok(volumes.snapshot_view(view, newest.root.as_fd())?)
        }
        // The kubelet comes again, and finds the next one.
        _ => Err(Refusal::Busy(view.volume.clone())),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn records(source: io::Error) -> Refusal {
    Refusal::ShownRecords(source)
}

fn mount_error(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Refusal + use<> {
    let path = path.to_owned();
    move |source| Refusal::Mount { attempt, path, source }
}
