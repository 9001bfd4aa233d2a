//! Makes a container: mounts in a private namespace, control groups, then libcontainer, which leaves an init that waits
//! for the start signal.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, PosixRlimit, Spec};
use rustix::process::{Pid, PidfdFlags};
use vivarium_api::node::stage::StageRecord;
use vivarium_sys::process::SingleThreaded;

use super::access::as_guest_root;
use super::credentials;
use super::entry::Entry;
use super::limits;
use super::names;
use super::protocol::{CreateRequest, EnvironmentRequest, Reply};
use super::stage::{Stage, move_to, new_filesystem};
use super::{Outcome, Steps};
use crate::cgroup::{Group, Layout};
use crate::environment::profile::{self, Prepared, SHARED_DEVICES};
use crate::environment::{self, identify, runtree, tree::Tree};
use crate::error::{Attempt, Error, Result};
use crate::{rootfs, seccomp, volumes};

/// The user namespace of a container.
struct UserNamespace {
    file: File,
    /// Ids of its root user on the node.
    base: (u32, u32),
}

pub(super) fn run(
    request: &CreateRequest,
    control: &Arc<UnixStream>,
    proof: SingleThreaded,
    steps: &mut Steps,
) -> Result<Outcome> {
    let mut log = capture_log(&request.state_dir)?;
    let user = user_namespace(&request.spec)?;
    let group = group(&request.spec)?;
    let mut stage = Stage::enter(proof)?;
    steps.done("namespace");
    let (spec, volume) = match &request.environment {
        Some(environment) => {
            let (spec, record) = environment_spec(request, environment, &user, &mut stage)?;
            (spec, Some(record))
        }
        None => (plain_spec(request, &user, &group, &mut stage)?, None),
    };
    steps.done("mounts");
    group.create_and_join()?;
    if request.environment.is_some() {
        group.delegate(user.base.0, user.base.1)?;
    }
    protect_nothing(&spec)?;
    steps.done("groups");
    let pid = build(request, spec, control).map_err(|error| explain(error, &mut log))?;
    steps.done("libcontainer");
    let init = Pid::from_raw(pid).ok_or_else(|| Error::Failed("libcontainer gave no pid.".into()))?;
    // init is a child of this process and not reaped before it ends: the number is certainly its own.
    let pidfd = rustix::process::pidfd_open(init, PidfdFlags::empty()).attempt(|| "open the container's init")?;
    Ok(Outcome { reply: Reply { pid, volume, ..Reply::default() }, descriptors: vec![pidfd] })
}

/// libcontainer tells why it failed only in its log, part of which comes from forked processes.
fn capture_log(state_dir: &Path) -> Result<File> {
    let path = state_dir.join(names::LOG);
    let open = || OpenOptions::new().create(true).append(true).read(true).open(&path);
    let (reader, writer) = (open().attempt(|| "open the log")?, open().attempt(|| "open the log")?);
    tracing_subscriber::fmt()
        .with_ansi(false)
        .without_time()
        .with_target(false)
        .with_max_level(tracing::Level::ERROR)
        .with_writer(Arc::new(writer))
        .try_init()
        .ok();
    Ok(reader)
}

fn explain(error: Error, log: &mut File) -> Error {
    let mut text = String::new();
    if log.rewind().is_err() || log.take(4096).read_to_string(&mut text).is_err() || text.is_empty() {
        return error;
    }
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    Error::Failed(format!("{error} ({})", lines.join("; ")))
}

/// Finds and checks the user namespace. Containers without one are refused: root in them would be root of the node.
fn user_namespace(spec: &Spec) -> Result<UserNamespace> {
    let linux = spec.linux().as_ref().ok_or_else(|| Error::Refused("the spec has no linux section".into()))?;
    let entry = linux.namespaces().iter().flatten().find(|n| n.typ() == LinuxNamespaceType::User);
    let Some(path) = entry.and_then(|n| n.path().as_ref()) else {
        return Err(Error::Refused(
            "this runtime runs containers only in a user namespace of their pod; set hostUsers: false in the pod spec"
                .into(),
        ));
    };
    let file = File::open(path).attempt(|| format!("open the user namespace {}", path.display()))?;
    let theirs = file.metadata().attempt(|| "look at the user namespace")?;
    let own = fs::metadata("/proc/self/ns/user").attempt(|| "look at the own user namespace")?;
    if (theirs.dev(), theirs.ino()) == (own.dev(), own.ino()) {
        return Err(Error::Refused(
            "the container's user namespace is the node's own; set hostUsers: false in the pod spec".into(),
        ));
    }
    let base = |mappings: &Option<Vec<LinuxIdMapping>>| {
        mappings.iter().flatten().find(|m| m.container_id() == 0 && m.size() > 0).map(LinuxIdMapping::host_id)
    };
    let (Some(uid), Some(gid)) = (base(linux.uid_mappings()), base(linux.gid_mappings())) else {
        return Err(Error::Refused("the spec does not say which users of the node the pod's root maps to".into()));
    };
    if uid == 0 || gid == 0 {
        return Err(Error::Refused("the pod's root maps to root of the node".into()));
    }
    Ok(UserNamespace { file, base: (uid, gid) })
}

fn group(spec: &Spec) -> Result<Group> {
    let path = spec.linux().as_ref().and_then(|l| l.cgroups_path().as_ref());
    Group::new(Layout::detect()?, path.ok_or_else(|| Error::Refused("the spec has no cgroupsPath".into()))?)
}

fn plain_spec(request: &CreateRequest, user: &UserNamespace, group: &Group, stage: &mut Stage) -> Result<Spec> {
    let mut spec = request.spec.clone();
    let root = rootfs::plain(&request.rootfs, user.file.as_fd(), stage)?;
    let mut entry = spec.root().clone().unwrap_or_default();
    entry.set_path(stage.attach(root.as_fd(), true)?);
    spec.set_root(Some(entry));
    let mut mounts = Vec::new();
    for mount in spec.mounts().iter().flatten() {
        mounts.push(if volumes::is_bind(mount) {
            volumes::stage(mount, stage, user.file.as_fd())?
        } else if mount.typ().as_deref() == Some("cgroup") && !group.layout().is_unified() {
            let mut mount = mount.clone();
            mount.set_source(Some(stage_v1_groups(group, stage)?));
            mount.set_typ(Some("bind".into()));
            mount.set_options(Some(vec!["rbind".into(), "rro".into()]));
            mount
        } else {
            mount.clone()
        });
    }
    spec.set_mounts(Some(mounts));
    Ok(spec)
}

/// A read-only view of the container's own v1 groups. libcontainer's would be writable and come up twice.
fn stage_v1_groups(group: &Group, stage: &mut Stage) -> Result<PathBuf> {
    use vivarium_sys::mount::{Attributes, NODEV, NOEXEC, NOSUID, RDONLY, set_attributes};
    let options = [("mode", "0755"), ("size", "64k")];
    let tmpfs = new_filesystem("tmpfs", &options, NOSUID | NODEV | NOEXEC)?;
    let place = stage.attach(tmpfs.as_fd(), true)?;
    for hierarchy in &group.layout().v1 {
        let dir = group.dir(hierarchy);
        fs::create_dir_all(&dir).attempt(|| format!("create the control group {}", dir.display()))?;
        let tree = super::stage::clone_path(&dir, false)?;
        let attributes = Attributes { set: RDONLY | NOSUID | NODEV | NOEXEC, ..Attributes::default() };
        set_attributes(tree.as_fd(), &attributes, false).attempt(|| "make a control group read-only")?;
        let target = place.join(hierarchy.mount.file_name().unwrap_or_default());
        fs::create_dir(&target).attempt(|| format!("create {}", target.display()))?;
        move_to(tree.as_fd(), &target)?;
    }
    Ok(place)
}

fn environment_spec(
    request: &CreateRequest,
    environment: &EnvironmentRequest,
    user: &UserNamespace,
    stage: &mut Stage,
) -> Result<(Spec, StageRecord)> {
    let mount = environment::root_mount(&request.spec)
        .and_then(|mount| mount.source().as_deref())
        .ok_or_else(|| Error::Refused("the mount of the environment's root has no source".into()))?;
    let (directory, record) = identify::volume(mount, &environment.pod_uid)?;
    let volume = rootfs::Volume::open(directory.as_fd(), mount, user.file.as_fd(), stage)?;
    let root = rootfs::environment(&record.layers, &volume, user.file.as_fd(), user.base, stage)?;
    let init = as_guest_root(user.base, || {
        let tree = Tree::new(root.as_fd());
        let init = tree.find_init()?;
        tree.prepare(&environment.boot)?;
        Ok(init)
    })?;
    let data = record.binds.iter().map(|bind| {
        let source = volume.directory(&Path::new("data").join(&bind.name))?;
        // A part of a detached mount cannot be attached by itself, but its clone can; the idmap comes along.
        let clone = super::stage::clone_fd(source.as_fd(), &bind.target)?;
        Ok((stage.attach(clone.as_fd(), true)?, bind.target.clone()))
    });
    let data = data.collect::<Result<Vec<_>>>()?;
    let posix = environment::limits::posix(&environment.boot.limits)?;
    let prepared = Prepared {
        init,
        root: stage.attach(root.as_fd(), true)?,
        run: stage_run(&posix, user.base, stage)?,
        host: stage_host(&request.state_dir, user.file.as_fd(), stage)?,
        data,
        devices: SHARED_DEVICES.iter().copied().filter(|(path, ..)| is_char_device(path)).collect(),
    };
    let mut spec = request.spec.clone();
    let mut mounts = Vec::new();
    for mount in spec.mounts().iter().flatten().filter(|m| !profile::is_dropped(m)) {
        let bind = volumes::is_bind(mount);
        mounts.push(if bind { volumes::stage(mount, stage, user.file.as_fd())? } else { mount.clone() });
    }
    spec.set_mounts(Some(mounts));
    // The guest's init inherits them, and sets soft and lower ones itself.
    limits::raise(&posix)?;
    Ok((profile::rewrite(spec, &environment.boot, &prepared)?, record))
}

fn is_char_device(path: &str) -> bool {
    fs::metadata(path).is_ok_and(|m| m.file_type().is_char_device())
}

fn stage_run(limits: &[PosixRlimit], base: (u32, u32), stage: &mut Stage) -> Result<PathBuf> {
    use vivarium_sys::mount::{NODEV, NOSUID};
    let (uid, gid) = (base.0.to_string(), base.1.to_string());
    let options =
        [("mode", "0755"), ("uid", uid.as_str()), ("gid", gid.as_str()), ("size", "20%"), ("nr_inodes", "800k")];
    let tmpfs = new_filesystem("tmpfs", &options, NOSUID | NODEV)?;
    let place = stage.attach(tmpfs.as_fd(), true)?;
    as_guest_root(base, || runtree::fill(&place, limits))?;
    Ok(place)
}

/// Read-only already here, before the container's mount namespace is made: the kernel then locks it, and no root of the
/// guest can make it writable.
fn stage_host(state_dir: &Path, user_namespace: BorrowedFd<'_>, stage: &mut Stage) -> Result<PathBuf> {
    use vivarium_sys::mount::{Attributes, NODEV, NOEXEC, NOSUID, RDONLY, set_attributes};
    let source = state_dir.join(names::HOST);
    let tree: OwnedFd = super::stage::clone_path(&source, false)?;
    super::stage::idmap(tree.as_fd(), user_namespace, false, &source)?;
    let attributes = Attributes { set: RDONLY | NOSUID | NODEV | NOEXEC, ..Attributes::default() };
    set_attributes(tree.as_fd(), &attributes, false).attempt(|| "make the guest's /run/host read-only")?;
    stage.attach(tree.as_fd(), true)
}

/// Children of a shim inherit its protection from the OOM killer. libcontainer sets the value of a spec that has one.
fn protect_nothing(spec: &Spec) -> Result<()> {
    if spec.process().as_ref().and_then(oci_spec::runtime::Process::oom_score_adj).is_none() {
        fs::write("/proc/self/oom_score_adj", "0").attempt(|| "reset oom_score_adj")?;
    }
    Ok(())
}

fn build(request: &CreateRequest, mut spec: Spec, control: &Arc<UnixStream>) -> Result<i32> {
    let process = spec.process().clone().ok_or_else(|| Error::Refused("the spec has no process".into()))?;
    let filters = match (&request.environment, spec.linux().as_ref().and_then(|l| l.seccomp().as_ref())) {
        (Some(_), _) => seccomp::environment()?,
        (None, Some(profile)) => seccomp::profile(profile)?,
        (None, None) => Vec::new(),
    };
    refuse_unenforced(&process)?;
    let mut kept = process.clone();
    // All capabilities until the entry drops them: installing a filter needs CAP_SYS_ADMIN.
    kept.set_capabilities(Some(credentials::full()));
    spec.set_process(Some(kept));
    if let Some(linux) = spec.linux_mut() {
        linux.set_seccomp(None);
    }
    let bundle = request.state_dir.join(names::BUNDLE);
    fs::create_dir_all(&bundle).attempt(|| format!("create {}", bundle.display()))?;
    spec.save(bundle.join("config.json")).map_err(|e| Error::Failed(format!("The spec cannot be saved: {e}.")))?;
    let root = request.state_dir.join(names::LIBCONTAINER);
    fs::create_dir_all(&root).attempt(|| format!("create {}", root.display()))?;

    let entry = Entry { process: Arc::new(process), filters: Arc::new(filters), control: control.clone() };
    let failed = |error: libcontainer::error::LibcontainerError| {
        use std::error::Error as _;
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(inner) = source {
            let inner_text = inner.to_string();
            if !text.contains(&inner_text) {
                text = format!("{text}: {inner_text}");
            }
            source = inner.source();
        }
        Error::Failed(format!("cannot create the container: {text}"))
    };
    let mut builder = ContainerBuilder::new(names::NAME.into(), SyscallType::default())
        .with_root_path(&root)
        .map_err(failed)?
        .with_executor(entry);
    if request.terminal {
        builder = builder.with_console_socket(Some(request.state_dir.join(names::CONSOLE)));
    }
    let container = builder.as_init(&bundle).with_systemd(false).with_detach(true).build().map_err(failed)?;
    match container.pid() {
        Some(pid) => Ok(pid.as_raw()),
        None => Err(Error::Failed("libcontainer made no init.".into())),
    }
}

/// What is silently dropped by libcontainer must not look enforced.
fn refuse_unenforced(process: &oci_spec::runtime::Process) -> Result<()> {
    if process.selinux_label().as_ref().is_some_and(|label| !label.is_empty()) {
        return Err(Error::Refused("this runtime does not enforce SELinux labels; remove seLinuxOptions".into()));
    }
    Ok(())
}
