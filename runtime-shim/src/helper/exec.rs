//! One more process in a running container. libcontainer's own way (`as_tenant`) leaves the user namespace out, so that
//! the process would be root of the node inside the container's mounts; this one enters all namespaces at once or none.
//!
//! The helper itself never joins the container's control groups: a guest that froze its group would freeze the helper
//! with it. It opens the group files beforehand, while it still can, and moves the finished child.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::process::{Pid, PidfdFlags};
use rustix::pty::OpenptFlags;
use vivarium_sys::process::{Fork, NAMESPACES, SingleThreaded, enter_namespaces, exit_now, fork};

use super::credentials::{Capabilities, drop_privileges, execute};
use super::limits;
use super::protocol::{ExecRequest, Reply};
use super::{Outcome, Steps};
use crate::cgroup::Layout;
use crate::error::{Attempt, Error, Result};

/// `cgroup.procs` of one of init's groups, open for the move, and where it is.
type GroupFile = (File, PathBuf);

pub(super) fn run(
    request: &ExecRequest,
    control: &Arc<UnixStream>,
    proof: SingleThreaded,
    steps: &mut Steps,
) -> Result<Outcome> {
    let init = Pid::from_raw(request.init).ok_or_else(|| Error::NotFound("the container has no init".into()))?;
    let gone = || format!("enter the container of process {}", request.init);
    let pidfd = rustix::process::pidfd_open(init, PidfdFlags::empty()).attempt(gone)?;
    let groups = open_groups(request.init)?;
    let fallback = request.fallback_group.as_ref().map(|dir| open_fallback(dir)).transpose()?;
    // Children of a shim inherit its protection from the OOM killer; what runs in a container must not have it.
    let score = fs::read_to_string(format!("/proc/{}/oom_score_adj", request.init)).attempt(gone)?;
    fs::write("/proc/self/oom_score_adj", score.trim()).attempt(|| "take over init's oom_score_adj")?;
    let flags = differing_namespaces(request.init).attempt(gone)?;
    if flags & NAMESPACES[0].1 == 0 {
        return Err(Error::Failed("The container's init is in the node's own user namespace.".into()));
    }
    limits::raise(request.process.rlimits().as_deref().unwrap_or_default())?;
    // Nobody inside may trace this process or open its descriptors while it is half in.
    not_dumpable()?;
    enter_namespaces(proof, pidfd.as_fd(), flags).attempt(|| "enter the container's namespaces")?;
    become_root()?;
    not_dumpable()?;
    steps.done("entered");

    let terminal = if request.terminal { Some(open_terminal()?) } else { None };
    match fork(proof).attempt(|| "fork the new process")? {
        Fork::Child => {
            drop(groups);
            let slave = terminal.map(|(_, slave)| slave);
            let error = become_program(request, control, slave);
            (&**control).write_all(error.to_string().as_bytes()).ok();
            exit_now(126)
        }
        Fork::Parent(pid) => {
            let child = Pid::from_raw(pid).ok_or_else(|| Error::Failed("fork gave no pid".into()))?;
            // The child cannot be reaped before this process ends, so the number is certainly its own.
            let pidfd = rustix::process::pidfd_open(child, PidfdFlags::empty()).attempt(|| "open the new process")?;
            if let Err(error) = place(pid, groups, fallback) {
                rustix::process::kill_process(child, rustix::process::Signal::KILL).ok();
                return Err(error);
            }
            steps.done("placed");
            let mut descriptors = vec![pidfd];
            descriptors.extend(terminal.map(|(master, _)| master));
            Ok(Outcome { reply: Reply { pid, ..Reply::default() }, descriptors })
        }
    }
}

fn not_dumpable() -> Result<()> {
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .attempt(|| "hide the helper from the container")
}

/// Opens `cgroup.procs` of each group that init is in and this process is not.
fn open_groups(init: i32) -> Result<Vec<GroupFile>> {
    let layout = Layout::detect()?;
    let own = fs::read_to_string("/proc/self/cgroup").attempt(|| "read the own control groups")?;
    let theirs = fs::read_to_string(format!("/proc/{init}/cgroup")).attempt(|| "read init's control groups")?;
    let mut files = Vec::new();
    for line in theirs.lines().filter(|line| !own.lines().any(|own| own == *line)) {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let Some(hierarchy) = layout.v1.iter().chain(layout.unified.as_ref()).find(|h| h.matches(controllers)) else {
            continue;
        };
        let dir = hierarchy.mount.join(path.trim_start_matches('/'));
        let file = OpenOptions::new()
            .write(true)
            .open(dir.join("cgroup.procs"))
            .attempt(|| format!("open the control group {}", dir.display()))?;
        files.push((file, dir));
    }
    Ok(files)
}

fn open_fallback(dir: &Path) -> Result<GroupFile> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
    .attempt(|| format!("create the control group {}", dir.display()))?;
    let file = OpenOptions::new().write(true).open(dir.join("cgroup.procs"));
    Ok((file.attempt(|| format!("open the control group {}", dir.display()))?, dir.into()))
}

/// Moves the child. The kernel checks the right to do so against who opened the file, which was the node's root.
fn place(pid: i32, groups: Vec<GroupFile>, mut fallback: Option<GroupFile>) -> Result<()> {
    let write = |file: &mut File| file.write_all(pid.to_string().as_bytes());
    for (mut file, dir) in groups {
        let moved = match &mut fallback {
            Some((beside, path)) if is_left(&dir, path) => write(beside),
            Some((beside, _)) => match write(&mut file) {
                // cgroup v2: a group with controllers for its children takes no processes.
                Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => write(beside),
                other => other,
            },
            None => write(&mut file),
        };
        moved.attempt(|| format!("move the new process to a control group of the container, {}", dir.display()))?;
    }
    Ok(())
}

/// Whether init has left the container's own group (the parent of the fallback) for one that it made, as systemd does.
/// That one is init's business: were the new process there, its end by the OOM killer would be one of init's own
/// group, which systemd answers by ending all that is in it.
fn is_left(init: &Path, fallback: &Path) -> bool {
    fallback.parent() != Some(init)
}

fn differing_namespaces(init: i32) -> std::io::Result<i32> {
    let mut flags = 0;
    for (name, flag) in NAMESPACES {
        let own = fs::metadata(format!("/proc/self/ns/{name}"))?;
        let theirs = fs::metadata(format!("/proc/{init}/ns/{name}"))?;
        if own.ino() != theirs.ino() {
            flags |= flag;
        }
    }
    Ok(flags)
}

fn become_root() -> Result<()> {
    use rustix::process::{Gid, Uid};
    rustix::thread::set_thread_groups(&[]).attempt(|| "drop the supplementary groups")?;
    let (uid, gid) = (Some(Uid::ROOT), Some(Gid::ROOT));
    rustix::thread::set_thread_res_gid(gid, gid, gid).attempt(|| "become the container's root group")?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).attempt(|| "become the container's root user")
}

/// Opens a terminal of the container's own devpts and checks that it is one: the tenant may have mounted anything there.
fn open_terminal() -> Result<(OwnedFd, OwnedFd)> {
    const DEVPTS_SUPER_MAGIC: i64 = 0x1cd1;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let master = rustix::fs::openat(CWD, "/dev/pts/ptmx", flags, Mode::empty())
        .attempt(|| "open /dev/pts/ptmx of the container")?;
    let stat = rustix::fs::fstat(&master).attempt(|| "look at /dev/pts/ptmx")?;
    let kind = rustix::fs::fstatfs(&master).attempt(|| "look at /dev/pts/ptmx")?;
    if stat.st_rdev != rustix::fs::makedev(5, 2) || kind.f_type != DEVPTS_SUPER_MAGIC {
        return Err(Error::Refused("/dev/pts/ptmx of the container is not a terminal multiplexer".into()));
    }
    rustix::pty::unlockpt(&master).attempt(|| "unlock the terminal")?;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
        .attempt(|| "open the terminal's slave")?;
    Ok((master, slave))
}

/// The child's part: waits until the shim has verified it, then becomes the program. Returns the reason if it cannot.
fn become_program(request: &ExecRequest, control: &UnixStream, slave: Option<OwnedFd>) -> Error {
    let mut go = [0];
    // A shim that died or refused closes the socket.
    if (&*control).read_exact(&mut go).is_err() {
        exit_now(126);
    }
    match prepare(request, slave) {
        Ok(()) => execute(&request.process),
        Err(error) => error,
    }
}

fn prepare(request: &ExecRequest, slave: Option<OwnedFd>) -> Result<()> {
    use rustix::process::{Gid, Uid};
    let process = &request.process;
    rustix::process::setsid().attempt(|| "start a session")?;
    let user = process.user();
    if let Some(slave) = slave {
        rustix::process::ioctl_tiocsctty(&slave).attempt(|| "take the terminal")?;
        rustix::fs::fchown(&slave, Some(Uid::from_raw(user.uid())), None).attempt(|| "own the terminal")?;
        rustix::stdio::dup2_stdin(&slave).attempt(|| "use the terminal")?;
        rustix::stdio::dup2_stdout(&slave).attempt(|| "use the terminal")?;
        rustix::stdio::dup2_stderr(&slave).attempt(|| "use the terminal")?;
        if let Some(size) = process.console_size() {
            let size = rustix::termios::Winsize {
                ws_row: size.height() as u16,
                ws_col: size.width() as u16,
                ws_xpixel: 0,
                ws_ypixel: 0,
            };
            rustix::termios::tcsetwinsize(&slave, size).attempt(|| "size the terminal")?;
        }
    }
    for limit in process.rlimits().iter().flatten() {
        limits::set(limit)?;
    }
    if let Some(mask) = user.umask() {
        rustix::process::umask(Mode::from_raw_mode(mask));
    }
    let groups: Vec<Gid> = user.additional_gids().iter().flatten().map(|gid| Gid::from_raw(*gid)).collect();
    rustix::thread::set_thread_groups(&groups).attempt(|| "set the supplementary groups")?;
    rustix::thread::set_keep_capabilities(true).attempt(|| "keep capabilities over a change of user")?;
    let (uid, gid) = (Some(Uid::from_raw(user.uid())), Some(Gid::from_raw(user.gid())));
    rustix::thread::set_thread_res_gid(gid, gid, gid).attempt(|| format!("become group {}", user.gid()))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).attempt(|| format!("become user {}", user.uid()))?;
    rustix::process::chdir(process.cwd())
        .map_err(|e| Error::Refused(format!("chdir to cwd {} of the process: {e}", process.cwd().display())))?;
    // After the change of user the effective set is empty; installing a filter and shrinking sets needs it once more.
    let mut sets = rustix::thread::capabilities(None).attempt(|| "read the capabilities")?;
    sets.effective = sets.permitted;
    rustix::thread::set_capabilities(None, sets).attempt(|| "raise the capabilities")?;
    vivarium_sys::process::close_on_exec_from(3).attempt(|| "mark descriptors to be closed")?;
    let capabilities = Capabilities::of(process.capabilities().as_ref());
    drop_privileges(&capabilities, &request.filters, process.no_new_privileges().unwrap_or(false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_of_inits_own_making_is_told_from_the_containers() {
        let fallback = Path::new("/sys/fs/cgroup/pod/c/vivarium-exec");
        assert!(!is_left(Path::new("/sys/fs/cgroup/pod/c"), fallback));
        assert!(is_left(Path::new("/sys/fs/cgroup/pod/c/init.scope"), fallback));
    }
}
