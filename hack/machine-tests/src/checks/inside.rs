//! What the operating system in the environment sees of users and control groups.

use std::thread;

use super::Running;
use crate::{
    cri,
    environment::PAYLOAD,
    failure::{Failure, ensure},
    groups,
};

/// A limit that a unit inside gets, in bytes.
const UNIT_LIMIT: u64 = 48 << 20;
/// Execs at the same moment.
const PARALLEL: usize = 6;

/// By the synchronous call and by the streaming server: root inside, nobody outside.
pub fn exec_is_mapped(running: &Running) -> Result<(), Failure> {
    let users = running.environment.pod.users.map(|users| format!("0 {} {}", users.host, users.length));
    let wanted = users.unwrap_or_default();
    let words = ["cat", "/proc/self/uid_map"];
    for finished in [cri::exec(&running.container, &words)?, cri::exec_streaming(&running.container, &words)?] {
        let said: Vec<&str> = finished.stdout.split_whitespace().collect();
        ensure(said.join(" ") == wanted, || format!("a process said {finished:?} and not {wanted}"))?;
    }
    Ok(())
}

/// The group is the environment's own, and its systemd has handed controllers on.
pub fn delegation(running: &Running) -> Result<(), Failure> {
    // systemd hands on what units ask for; limits of the CPU are asked for by the next check.
    let handed_on = ["memory", "pids"];
    for (file, wanted) in
        [("cgroup.controllers", &["cpu", "memory", "pids"][..]), ("cgroup.subtree_control", &handed_on)]
    {
        let text = cri::exec_output(&running.container, &["cat", &format!("/sys/fs/cgroup/{file}")])?;
        let missing: Vec<_> = wanted.iter().filter(|name| !text.split(' ').any(|one| one == **name)).collect();
        ensure(missing.is_empty(), || format!("{file} inside is {text:?}, which lacks {missing:?}"))?;
    }
    let root = cri::exec_output(&running.container, &["cat", "/proc/1/cgroup"])?;
    ensure(root == "0::/init.scope", || {
        format!("PID 1 sees itself in {root}, so the hierarchy inside is not its own")
    })?;
    // What is not delegated stays the machine's: the environment may not lift its own limit.
    let lifted = cri::exec(&running.container, &["sh", "-c", "echo max > /sys/fs/cgroup/memory.max"])?;
    ensure(lifted.code != Some(0), || "root inside could lift the environment's own memory limit".into())
}

/// A limit of a unit is written to its group, and the kernel ends the unit that goes over it.
pub fn nested_limit(running: &Running) -> Result<(), Failure> {
    let property = format!("MemoryMax={UNIT_LIMIT}");
    let unit = |name: &str, words: &[&str]| {
        let start =
            ["systemd-run", "--wait", "--pipe", "--quiet", "--unit", name, "-p", &property, "-p", "MemorySwapMax=0"];
        cri::exec(&running.container, &[&start, words].concat())
    };
    let shown = unit("shown", &["cat", "/sys/fs/cgroup/system.slice/shown.service/memory.max"])?;
    ensure(shown.stdout.trim() == UNIT_LIMIT.to_string(), || {
        format!("the unit's group says {shown:?}, not {UNIT_LIMIT}")
    })?;
    let fed = unit("fed", &[PAYLOAD, "eat", &(UNIT_LIMIT / 4).to_string()])?;
    ensure(fed.code == Some(0), || format!("a unit below its limit failed: {fed:?}"))?;
    let hungry = unit("hungry", &[PAYLOAD, "eat", &(UNIT_LIMIT * 2).to_string()])?;
    ensure(hungry.code != Some(0), || format!("a unit used twice its limit: {hungry:?}"))?;
    let result =
        cri::exec_output(&running.container, &["systemctl", "show", "-p", "Result", "--value", "hungry.service"])?;
    cri::exec_output(&running.container, &["systemctl", "reset-failed"])?;
    ensure(result == "oom-kill", || format!("systemd inside says that the unit ended by {result}"))
}

/// A group whose controllers are handed on takes no process of its own (cgroups(7), "no internal processes"), so joining
/// the group that the container was given would answer EBUSY.
pub fn exec_with_nested_controllers(running: &Running) -> Result<(), Failure> {
    let group = groups::of_container(&running.environment.pod, &running.container)?;
    let handed_on = crate::failure::read(group.join("cgroup.subtree_control"))?;
    ensure(handed_on.contains("memory"), || {
        format!("the trap is not set: {} hands on {handed_on:?}", group.display())
    })?;
    let container = &running.container;
    let results: Vec<_> = thread::scope(|scope| {
        let execs: Vec<_> =
            (0..PARALLEL).map(|_| scope.spawn(|| cri::exec_output(container, &["cat", "/proc/self/cgroup"]))).collect();
        execs.into_iter().map(thread::ScopedJoinHandle::join).collect()
    });
    for result in results {
        let place = result.map_err(|_| Failure("an exec could not be waited for".into()))??;
        let within = place.starts_with("0::/") && !place.contains("..") && place != "0::/";
        ensure(within, || {
            format!("a process that joined is in {place}, which is no leaf of the environment's groups")
        })?;
    }
    Ok(())
}
