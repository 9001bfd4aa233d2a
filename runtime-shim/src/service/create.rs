//! Create and Start of a container.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use containerd_shim_protos::api::CreateTaskRequest;
use containerd_shim_protos::events::task::{TaskCreate, TaskIO, TaskOOM};
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim::oci::Options;
use oci_spec::runtime::Spec;
use tokio::io::Interest;
use tokio::net::UnixListener;
use vivarium_api::names::PENDING_RECORDS;
use vivarium_api::node::guest::PodReference;

use super::container::{Container, Inner, Member};
use super::freezer::Freezer;
use super::guest::Guest;
use super::{Pod, Sandbox, lease, lock};
use crate::cgroup::{Group, Layout, oom};
use crate::environment::egress::Egress;
use crate::environment::notify::Listener;
use crate::environment::profile::config_source;
use crate::environment::report::{self, Reporter};
use crate::environment::{config, find_mount, hostdir, limits, pending, root_mount};
use crate::error::{Attempt, Error, Result};
use crate::helper::names;
use crate::helper::protocol::{CreateRequest, EnvironmentRequest, Request, RootfsMount, receive_descriptors};
use crate::io::{self, Names, ProcessIo};
use crate::journal::{self, Journal, StateDir};
use crate::launch::{self, LIMIT, Launched};
use crate::seccomp;
use crate::supervisor::{Event, Lifecycle, Who};

/// Carries out Create; returns the pid of the init.
pub(super) async fn create(pod: &Arc<Pod>, request: CreateTaskRequest) -> Result<i32> {
    let begin = Instant::now();
    if lock(&pod.containers).contains_key(&request.id) {
        return Err(Error::AlreadyExists(format!("container {:?} exists already", request.id)));
    }
    let dir = StateDir::of(&pod.namespace, &request.id)?;
    let config = Path::new(&request.bundle).join("config.json");
    let mut spec =
        Spec::load(&config).map_err(|e| Error::Failed(format!("The spec {} is damaged: {e}.", config.display())))?;
    note_sandbox(pod, &spec, &request.id);
    name_program(pod, &request)?;
    translate_namespaces(pod, &mut spec)?;
    let environment = root_mount(&spec).map(|_| environment_request(pod, &spec)).transpose()?;
    if let Some(environment) = &environment {
        // Before anything is made, so that a shim that ends meanwhile leaves nothing.
        pending::over(Path::new(PENDING_RECORDS), &environment.pod_uid, Path::new(&request.bundle)).await?;
    }
    let group = group(&spec)?;
    let report = environment.as_ref().and_then(|_| lock(&pod.sandbox).as_ref().map(|s| report::path_of(&s.id)));

    dir.create()?;
    let made = match Journal::new(group.dirs(), report).write(&dir) {
        Ok(()) => make(pod, &request, dir.clone(), spec, environment, group).await,
        Err(error) => Err(error),
    };
    let (container, launched) = match made {
        Ok(made) => made,
        Err(error) => {
            log::error!("container {} is not created: {error}", request.id);
            undo(&dir).await.unwrap_or_else(|error| log::error!("{error}"));
            return Err(error);
        }
    };
    let pid = launched.reply.pid;
    log::info!("created {} as process {pid} in {:?}: {:?}", request.id, begin.elapsed(), launched.reply.steps);
    publish_created(pod, &request, pid);
    lock(&pod.incarnations).insert(pid, request.id.clone());
    lock(&pod.containers).insert(request.id, container.clone());
    super::life::follow_init(pod.clone(), &container, launched.end);
    follow_oom(pod.clone(), &container);
    Ok(pid)
}

/// Removes what is left of a container that could not be made, or has ended.
pub(super) async fn undo(dir: &StateDir) -> Result<()> {
    let dir = dir.clone();
    tokio::task::spawn_blocking(move || journal::undo(&dir))
        .await
        .map_err(|e| Error::Failed(format!("The container cannot be undone: {e}.")))?
}

fn group(spec: &Spec) -> Result<Group> {
    let path = spec.linux().as_ref().and_then(|l| l.cgroups_path().as_ref());
    Group::new(Layout::detect()?, path.ok_or_else(|| Error::Refused("the spec has no cgroupsPath".into()))?)
}

fn annotation<'a>(spec: &'a Spec, name: &str) -> Option<&'a str> {
    spec.annotations().as_ref()?.get(&format!("io.kubernetes.cri.{name}")).map(String::as_str)
}

/// Remembers what pod this is: only the sandbox container's annotations count, which no container of the pod can touch.
fn note_sandbox(pod: &Pod, spec: &Spec, id: &str) {
    if annotation(spec, "container-type") != Some("sandbox") {
        return;
    }
    let field = |name| annotation(spec, name).unwrap_or_default().to_owned();
    let reference =
        PodReference { namespace: field("sandbox-namespace"), name: field("sandbox-name"), uid: field("sandbox-uid") };
    lock(&pod.sandbox).get_or_insert(Sandbox { id: id.into(), pod: reference });
}

/// File of a bundle in which containerd keeps the path of the shim that it started for it.
const PROGRAM_FILE: &str = "shim-binary-path";

/// Says in the bundle which program serves it, as containerd does itself in the sandbox's, for which it started this
/// program. It leaves the file out for the other containers of the pod; after a restart it then looks the runtime's name
/// up on its `PATH`, does not find a shim that lies elsewhere, and takes the container for lost.
fn name_program(pod: &Pod, request: &CreateTaskRequest) -> Result<()> {
    let bundle = Path::new(&request.bundle);
    let file = bundle.join(PROGRAM_FILE);
    let sandbox = lock(&pod.sandbox).as_ref().map(|sandbox| sandbox.id.clone());
    let (Some(sandbox), Some(bundles), false) = (sandbox, bundle.parent(), file.exists()) else { return Ok(()) };
    match std::fs::read(bundles.join(sandbox).join(PROGRAM_FILE)) {
        Ok(program) => std::fs::write(&file, program).attempt(|| format!("write {}", file.display())),
        // containerd found the shim by the runtime's name, and will again.
        Err(_) => Ok(()),
    }
}

fn environment_request(pod: &Pod, spec: &Spec) -> Result<EnvironmentRequest> {
    let pod_uid = lock(&pod.sandbox).as_ref().map(|sandbox| sandbox.pod.uid.clone()).filter(|uid| !uid.is_empty());
    let pod_uid = pod_uid.ok_or_else(|| {
        Error::Refused("an environment runs only in a pod of Kubernetes; this container has no sandbox".into())
    })?;
    let source = config_source(spec).ok_or_else(|| {
        Error::Refused(format!(
            "the pod mounts an environment's volume but no configuration at {}; let the operator make the pod",
            vivarium_api::names::MOUNT_CONFIG
        ))
    })?;
    Ok(EnvironmentRequest { pod_uid, boot: config::boot(&source)? })
}

/// Replaces paths to the namespaces of an init that has since booted again by those of its successor.
fn translate_namespaces(pod: &Pod, spec: &mut Spec) -> Result<()> {
    let Some(linux) = spec.linux_mut() else { return Ok(()) };
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    for namespace in &mut namespaces {
        let Some((pid, name)) = namespace.path().as_deref().and_then(process_namespace) else { continue };
        let Some(id) = lock(&pod.incarnations).get(&pid).cloned() else { continue };
        let (current, runs) = pod.container(&id)?.init_pid();
        if current != pid {
            if !runs {
                return Err(Error::WrongState(format!(
                    "the container {id} whose namespaces are to be joined has ended"
                )));
            }
            namespace.set_path(Some(PathBuf::from(format!("/proc/{current}/ns/{name}"))));
        }
    }
    linux.set_namespaces(Some(namespaces));
    Ok(())
}

/// The pid and namespace of a path such as `/proc/7/ns/net`.
fn process_namespace(path: &Path) -> Option<(i32, String)> {
    let (pid, name) = path.to_str()?.strip_prefix("/proc/")?.split_once("/ns/")?;
    Some((pid.parse().ok()?, name.to_owned()))
}

async fn make(
    pod: &Arc<Pod>,
    request: &CreateTaskRequest,
    dir: StateDir,
    spec: Spec,
    environment: Option<EnvironmentRequest>,
    group: Group,
) -> Result<(Arc<Container>, Launched)> {
    let filters = match (&environment, spec.linux().as_ref().and_then(|l| l.seccomp().as_ref())) {
        (Some(_), _) => seccomp::environment()?,
        (None, Some(profile)) => seccomp::profile(profile)?,
        (None, None) => Vec::new(),
    };
    let mut watchers = Vec::new();
    let guest = match &environment {
        Some(environment) => Some(prepare_guest(&dir, &spec, environment, &mut watchers)?),
        None => None,
    };
    let names = Names {
        stdin: request.stdin.clone(),
        stdout: request.stdout.clone(),
        stderr: request.stderr.clone(),
        terminal: request.terminal,
    };
    let owner = stream_owner(request, &spec)?;
    let create = CreateRequest {
        state_dir: dir.path().into(),
        spec,
        rootfs: request.rootfs.iter().map(rootfs_mount).collect(),
        terminal: request.terminal,
        environment,
    };
    let mut init = Member::new(names.clone());
    let mut launched = if request.terminal {
        let (launched, master) = launch_with_console(pod, &dir, &create).await?;
        init.io = Some(ProcessIo::terminal(&names, master, guest.is_some())?);
        launched
    } else {
        let (stdio, io) = io::pipes(&names, owner)?;
        init.io = Some(io);
        launch::run(&pod.reaper, &Request::Create(Box::new(create.clone())), stdio).await?
    };
    let pid = launched.reply.pid;
    let freezer = Arc::new(Freezer::new(group.clone()));
    if let (Some(guest), Some(volume), Some(sandbox)) = (&guest, &launched.reply.volume, lock(&pod.sandbox).clone()) {
        guest.set_init(pid);
        guest.begin(Reporter::new(&sandbox.id, sandbox.pod, volume, pid)?);
        if let Some(lease) = lease::of(volume)? {
            let egress = Egress::of(pid)?;
            let following = lease::follow(lease, guest.clone(), freezer.clone(), group.clone(), egress);
            watchers.push(tokio::spawn(following));
        }
    }
    init.pidfd = Some(launched.pidfd.clone());
    init.gate = launched.gate.take();
    let container = Container {
        id: request.id.clone(),
        bundle: request.bundle.clone(),
        dir,
        group,
        freezer,
        owner,
        request: create,
        filters,
        guest,
        inner: Mutex::new(Inner {
            life: Lifecycle::new(pid),
            init,
            execs: std::collections::HashMap::new(),
            paused: false,
            rebooting: false,
            stop: None,
            leaving: false,
        }),
        watchers: Mutex::new(watchers),
    };
    Ok((Arc::new(container), launched))
}

fn prepare_guest(
    dir: &StateDir,
    spec: &Spec,
    environment: &EnvironmentRequest,
    watchers: &mut Vec<tokio::task::JoinHandle<()>>,
) -> Result<Arc<Guest>> {
    let source = config_source(spec).unwrap_or_default();
    let guest = Arc::new(Guest::new(
        source.clone(),
        environment.boot.authorized_keys,
        limits::posix(&environment.boot.limits)?,
    ));
    let resolv_conf = find_mount(spec, "/etc/resolv.conf").and_then(|mount| mount.source().clone());
    let host = dir.path().join(names::HOST);
    let socket = hostdir::create(&host, resolv_conf.as_deref(), &guest.config, guest.key_files)?;
    watchers.push(tokio::spawn(guest.clone().listen(Listener::new(socket)?)));
    if guest.key_files > 0 {
        watchers.push(tokio::spawn(hostdir::follow_keys(host, source, guest.key_files)));
    }
    Ok(guest)
}

fn rootfs_mount(mount: &containerd_shim_protos::types::mount::Mount) -> RootfsMount {
    RootfsMount { kind: mount.type_.clone(), source: mount.source.clone().into(), options: mount.options.clone() }
}

/// Who owns the streams: whom containerd names in its options, or else root of the user namespace.
fn stream_owner(request: &CreateTaskRequest, spec: &Spec) -> Result<(u32, u32)> {
    if let Some(any) = request.options.as_ref().filter(|any| any.type_url.ends_with("containerd.runc.v1.Options")) {
        let options = Options::parse_from_bytes(&any.value)
            .map_err(|e| Error::Refused(format!("the runtime options cannot be decoded: {e}")))?;
        if options.io_uid != 0 || options.io_gid != 0 {
            return Ok((options.io_uid, options.io_gid));
        }
    }
    let linux = spec.linux().as_ref();
    let base = |mappings: Option<&Vec<oci_spec::runtime::LinuxIdMapping>>| {
        mappings.and_then(|m| m.first()).map_or(0, oci_spec::runtime::LinuxIdMapping::host_id)
    };
    Ok((base(linux.and_then(|l| l.uid_mappings().as_ref())), base(linux.and_then(|l| l.gid_mappings().as_ref()))))
}

/// Runs the create helper for a container with a terminal, whose master libcontainer sends to a socket.
pub(super) async fn launch_with_console(
    pod: &Pod,
    dir: &StateDir,
    create: &CreateRequest,
) -> Result<(Launched, std::os::fd::OwnedFd)> {
    let path = dir.path().join(names::CONSOLE);
    std::fs::remove_file(&path).ok();
    let listener = UnixListener::bind(&path).attempt(|| format!("listen on {}", path.display()))?;
    let launched = launch::run(&pod.reaper, &Request::Create(Box::new(create.clone())), io::nothing()?).await?;
    let receive = async {
        let (stream, _) = listener.accept().await?;
        stream.async_io(Interest::READABLE, || receive_descriptors(stream.as_fd())).await
    };
    let descriptors = tokio::time::timeout(LIMIT, receive)
        .await
        .map_err(|_| Error::Deadline { attempt: "receiving the container's terminal".into(), limit: LIMIT })?
        .attempt(|| "receive the container's terminal")?;
    let master = descriptors.into_iter().next();
    let master = master.ok_or_else(|| Error::Failed("libcontainer sent no terminal.".into()))?;
    Ok((launched, master))
}

fn publish_created(pod: &Pod, request: &CreateTaskRequest, pid: i32) {
    let io = TaskIO {
        stdin: request.stdin.clone(),
        stdout: request.stdout.clone(),
        stderr: request.stderr.clone(),
        terminal: request.terminal,
        ..TaskIO::default()
    };
    let event = TaskCreate {
        container_id: request.id.clone(),
        bundle: request.bundle.clone(),
        rootfs: request.rootfs.clone(),
        io: MessageField::some(io),
        pid: pid as u32,
        ..TaskCreate::default()
    };
    pod.publisher.publish("/tasks/create", &event).unwrap_or_else(|error| log::error!("{error}"));
}

fn follow_oom(pod: Arc<Pod>, container: &Arc<Container>) {
    let mut watch = match oom::Watch::new(&container.group) {
        Ok(Some(watch)) => watch,
        Ok(None) => return,
        Err(error) => return log::warn!("OOM kills in {} will not be told: {error}", container.id),
    };
    let id = container.id.clone();
    // An operating system goes on when one of its processes is killed, and its init says so of the unit. containerd would
    // take the event for the reason of an end that comes later and is in order. Its end tells ([`super::life`]).
    let is_environment = container.guest.is_some();
    let task = tokio::spawn(async move {
        while watch.next().await.is_ok() {
            log::info!("the OOM killer has killed in {id}");
            if !is_environment {
                publish_oom(&pod, &id);
            }
        }
    });
    lock(&container.watchers).push(task);
}

/// Says that a container was killed for lack of memory.
pub(super) fn publish_oom(pod: &Pod, id: &str) {
    let event = TaskOOM { container_id: id.to_owned(), ..TaskOOM::default() };
    pod.publisher.publish("/tasks/oom", &event).unwrap_or_else(|error| log::error!("{error}"));
}

/// Carries out Start of a container; returns the pid of the init.
pub(super) async fn start(pod: &Arc<Pod>, container: &Arc<Container>) -> Result<i32> {
    let gate = {
        let mut inner = container.lock();
        let notices = inner.life.handle(Event::Starting(Who::Init))?;
        debug_assert!(notices.is_empty());
        inner.init.gate.take()
    };
    let gate = gate.ok_or_else(|| Error::WrongState("the container was started already".into()))?;
    let started = match launch::signal_start(&container.libcontainer_dir()) {
        Ok(()) => gate.wait_executed().await,
        Err(error) => Err(error),
    };
    if let Err(error) = started {
        container.handle(pod, Event::StartFailed(Who::Init))?;
        return Err(error);
    }
    let (pid, _) = container.init_pid();
    container.handle(pod, Event::Started(Who::Init, pid))?;
    Ok(pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespace_paths_of_processes_are_told_from_others() {
        assert_eq!(process_namespace(Path::new("/proc/12/ns/net")), Some((12, "net".into())));
        for path in ["/run/netns/a", "/proc/self/ns/net", "/proc/x/ns/net", "/proc/1"] {
            assert_eq!(process_namespace(Path::new(path)), None, "{path}");
        }
    }
}
