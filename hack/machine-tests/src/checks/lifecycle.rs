//! An environment from its start to the last trace of it.

use std::{fs, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use vivarium_api::{
    names::{RUNTIME_CLASS, SHIM_BINARY},
    node::guest::GuestState,
};

use super::{Context, Running, wait_for};
use crate::{
    cri,
    environment::{Environment, PAYLOAD},
    failure::{Failure, ensure, read},
    groups,
    leftovers::Baseline,
    processes,
};

/// A boot under emulation on a busy machine; without emulation it takes a second.
const BOOT: Duration = Duration::from_secs(150);
/// What takes the runtime and containerd moments.
const SOON: Duration = Duration::from_secs(40);
/// Grace of a stop, in seconds; a stop in order needs a fraction of it.
const GRACE: &str = "90";

/// Starts the environment that the next checks use.
pub fn boots(context: &mut Context) -> Result<(), Failure> {
    let running = start(context)?;
    let (sandbox, container) = (running.sandbox.clone(), running.container.clone());
    context.environment = Some(running);
    wait_for_state(&sandbox, &container, GuestState::Running, 1)?;
    let state = cri::exec(&container, &["systemctl", "is-system-running", "--wait"])?;
    if state.stdout.trim() != "running" {
        let failed = cri::exec(&container, &["systemctl", "--failed", "--no-legend", "--plain"])?;
        let log = cri::exec(&container, &["journalctl", "-b", "-p", "warning", "-n", "30", "--no-pager", "-o", "cat"])?;
        return Err(Failure(format!(
            "systemd says {}; failed: {}; log:\n{}",
            state.stdout.trim(),
            failed.stdout,
            log.stdout
        )));
    }
    let init = cri::exec_output(&container, &["cat", "/proc/1/comm"])?;
    ensure(init == "systemd", || format!("PID 1 is {init}"))?;
    context.environment.iter_mut().for_each(|running| running.booted = true);
    Ok(())
}

fn start(context: &mut Context) -> Result<Running, Failure> {
    context.environments += 1;
    let baseline = Baseline::take()?;
    let environment = Environment::publish(context.environments, &context.options)?;
    let sandbox = cri::run_pod(RUNTIME_CLASS, &environment.pod)?;
    let container = cri::launch(&sandbox, &environment.container(), &environment.pod)?;
    Ok(Running { environment, sandbox, container, baseline, booted: false })
}

fn wait_for_state(sandbox: &str, container: &str, state: GuestState, boots: u32) -> Result<(), Failure> {
    let mut last = None;
    wait_for("the guest's report", BOOT, || {
        last = Environment::report(sandbox);
        Ok(last.as_ref().is_some_and(|report| report.state == state && report.boots == boots).then_some(()))
    })
    .map_err(|failure| {
        let status = cri::inspect(container).map(|status| status["status"].to_string()).unwrap_or_default();
        Failure(format!(
            "{failure}: wanted {state:?} at boot {boots}; the last report was {last:?}; the container is {status}"
        ))
    })
}

/// While it is paused no process of it moves; afterwards all do.
pub fn freeze(running: &Running) -> Result<(), Failure> {
    let group = groups::of_container(&running.environment.pod, &running.container)?;
    let start = ["systemd-run", "--quiet", "--unit", "ticker", PAYLOAD, "tick", "/var/tmp/ticks"];
    cri::exec_output(&running.container, &start)?;
    let ticks = || running.environment.written("/var/tmp/ticks").ok().and_then(|text| text.parse::<u64>().ok());
    wait_for("the first tick", SOON, || Ok(ticks()))?;
    cri::ctr(&["tasks", "pause", &running.container])?;
    let frozen = groups::counter(&group, "cgroup.events", "frozen ")?;
    let before = ticks();
    std::thread::sleep(Duration::from_secs(2));
    let after = ticks();
    cri::ctr(&["tasks", "resume", &running.container])?;
    ensure(frozen == 1, || format!("cgroup.events says frozen {frozen} in a paused environment"))?;
    ensure(before.is_some() && before == after, || format!("a paused process counted from {before:?} to {after:?}"))?;
    wait_for("a tick after the resume", SOON, || Ok((ticks() > after).then_some(())))?;
    cri::exec_output(&running.container, &["systemctl", "stop", "ticker"]).map(drop)
}

/// The container, the pod's address and the files stay; PID 1 is another.
pub fn reboot(running: &Running) -> Result<(), Failure> {
    let container = &running.container;
    let address = || {
        cri::crictl(&["inspectp", &running.sandbox]).and_then(|text| {
            let pod: serde_json::Value = serde_json::from_str(&text)?;
            Ok(pod["status"]["network"]["ip"].clone())
        })
    };
    let init = || init_of(running);
    let (address_before, init_before) = (address()?, init()?);
    let limit_before = read(groups::of_container(&running.environment.pod, container)?.join("memory.max"))?;
    cri::exec_output(container, &["sh", "-c", "echo kept > /etc/kept"])?;
    // The answer may be lost with the environment that gives it.
    let _ = cri::exec(container, &["systemctl", "reboot"])?;
    wait_for_state(&running.sandbox, container, GuestState::Running, 2)?;
    let state = cri::exec(container, &["systemctl", "is-system-running", "--wait"])?;
    ensure(state.stdout.trim() == "running", || format!("after the reboot systemd says {state:?}"))?;
    let status = cri::inspect(container)?["status"].clone();
    ensure(status["state"] == "CONTAINER_RUNNING", || format!("the container is {status}"))?;
    let address_after = address()?;
    ensure(address_after == address_before, || format!("the address was {address_before} and is {address_after}"))?;
    ensure(cri::exec_output(container, &["cat", "/etc/kept"])? == "kept", || "a file is not there any more".into())?;
    ensure(init()? != init_before, || "PID 1 is still the same process".into())?;
    let limit = read(groups::of_container(&running.environment.pod, container)?.join("memory.max"))?;
    ensure(limit == limit_before, || format!("memory.max was {limit_before} and is {limit}"))
}

/// The environment's PID 1 as the machine sees it: the process that has been in the container's groups for longest.
fn init_of(running: &Running) -> Result<(u64, u32), Failure> {
    let group = groups::of_container(&running.environment.pod, &running.container)?;
    let group = group.to_string_lossy().trim_start_matches(groups::ROOT).to_owned();
    let inside = processes::all().into_iter().filter(|process| process.group.starts_with(&group));
    let oldest = inside.filter_map(|process| Some((processes::start_time(process.pid)?, process.pid))).min();
    oldest.ok_or_else(|| Failure(format!("no process is in {group}")))
}

/// A unit's last command runs to its end, and the container's end is an ordinary one.
pub fn orderly_stop(running: &Running) -> Result<(), Failure> {
    let witness = "ExecStop=/bin/sh -c 'sleep 1; echo in-order > /var/witness'";
    let start = ["systemd-run", "--quiet", "--unit", "witness", "-p", "RemainAfterExit=yes", "-p", witness, "true"];
    cri::exec_output(&running.container, &start)?;
    cri::crictl(&["stop", "--timeout", GRACE, &running.container])?;
    let status = wait_for("the end of the container", SOON, || {
        let status = cri::inspect(&running.container)?["status"].clone();
        Ok((status["state"] == "CONTAINER_EXITED").then_some(status))
    })?;
    let said = running.environment.written("/var/witness").unwrap_or_default();
    ensure(said == "in-order", || format!("a unit's ExecStop did not run to its end; the container: {status}"))?;
    ensure(status["exitCode"] == 0, || format!("the container's end: {status}"))
}

/// Removes the environment of the checks before.
pub fn leaves_nothing(context: &mut Context) -> Result<(), Failure> {
    let running = context.environment.take();
    remove(&running.ok_or_else(|| Failure("there is no environment: it was not created".into()))?)
}

fn remove(running: &Running) -> Result<(), Failure> {
    let Running { environment, sandbox, container, baseline, .. } = running;
    cri::crictl(&["stopp", sandbox])?;
    cri::crictl(&["rm", "--force", container])?;
    cri::crictl(&["rmp", sandbox])?;
    // The volume and the configuration are the kubelet's to unmount, not the runtime's.
    let theirs = |line: &String| line.contains(&environment.pod.directory());
    let mut remains = Vec::new();
    let gone = wait_for("its end", SOON, || {
        remains = baseline.remains(&environment.pod, &[sandbox, container])?;
        remains.retain(|line| !theirs(line));
        Ok(remains.is_empty().then_some(()))
    });
    gone.map_err(|_| Failure(format!("this is left: {}", remains.join(", "))))?;
    environment.unpublish()
}

/// containerd then runs the shim's `delete`, which has only the journal to go by.
pub fn killed_shim(context: &mut Context) -> Result<(), Failure> {
    let running = start(context)?;
    wait_for_state(&running.sandbox, &running.container, GuestState::Running, 1)?;
    let serves = |pid: u32| {
        let words = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.split('\0').any(|word| word == running.sandbox)
    };
    let shims: Vec<u32> = processes::all()
        .into_iter()
        .filter(|process| process.program.ends_with(SHIM_BINARY) && serves(process.pid))
        .map(|process| process.pid)
        .collect();
    ensure(!shims.is_empty(), || format!("no shim serves {}", running.sandbox))?;
    for pid in shims.into_iter().filter_map(|pid| Pid::from_raw(pid as i32)) {
        kill_process(pid, Signal::KILL)?;
    }
    wait_for("the end of the container", SOON, || {
        Ok((cri::inspect(&running.container)?["status"]["state"] == "CONTAINER_EXITED").then_some(()))
    })?;
    remove(&running)
}
