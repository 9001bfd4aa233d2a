//! Limits that the container was created with, or got while it runs: each is met, not only read.

use std::{path::Path, time::Instant};

use serde_json::Value;

use super::Running;
use crate::{
    cri,
    environment::{MEMORY, PAYLOAD, PIDS},
    failure::{Failure, ensure, read},
    groups::{self, counter},
};

/// CPU after it was lowered, in microseconds of each 100 ms.
const LOWERED: u64 = 30_000;
const PERIOD: u64 = 100_000;
/// How long the processors are kept busy.
const BURN: &str = "4";

fn group(running: &Running) -> Result<std::path::PathBuf, Failure> {
    groups::of_container(&running.environment.pod, &running.container)
}

fn value(group: &Path, file: &str) -> Result<u64, Failure> {
    let text = read(group.join(file))?;
    text.parse().map_err(|_| Failure(format!("{}/{file} is {text:?} and no number", group.display())))
}

/// Also what init does about a killed process shows here: it would end others that share its group.
fn still_running(running: &Running) -> Result<(), Failure> {
    let waited = cri::exec(&running.container, &["sleep", "3"])?;
    ensure(waited.code == Some(0), || format!("a process that was started next did not live on: {waited:?}"))?;
    cri::exec_output(&running.container, &["systemctl", "is-system-running"]).map(drop)
}

/// `wrongly` expects another limit than the one that was set, so that the report can be seen to fail.
pub fn memory(running: &Running, wrongly: bool) -> Result<(), Failure> {
    let group = group(running)?;
    let wanted = if wrongly { MEMORY / 2 } else { MEMORY };
    let limit = value(&group, "memory.max")?;
    ensure(limit == wanted, || format!("memory.max is {limit}, not {wanted}"))?;
    let before = counter(&group, "memory.events", "oom_kill ")?;
    let eaten = cri::exec(&running.container, &[PAYLOAD, "eat", &(MEMORY * 2).to_string()])?;
    ensure(eaten.code != Some(0), || format!("a process used twice the limit: {eaten:?}"))?;
    let after = counter(&group, "memory.events", "oom_kill ")?;
    ensure(after > before, || format!("it ended by something else than its limit: {eaten:?}"))?;
    let peak = value(&group, "memory.peak")?;
    ensure(peak <= MEMORY, || format!("the environment once used {peak} bytes of {MEMORY}"))?;
    still_running(running)
}

/// The limit counts every process of the environment.
pub fn pids(running: &Running) -> Result<(), Failure> {
    let group = group(running)?;
    let limit = value(&group, "pids.max")?;
    ensure(limit == PIDS, || format!("pids.max is {limit}, not {PIDS}"))?;
    // In a unit without a limit of its own; systemd gives every group that it makes a share of what there is.
    let unit = ["systemd-run", "--wait", "--pipe", "--quiet", "-p", "TasksMax=infinity"];
    let fork = [PAYLOAD, "fork", &(PIDS * 2).to_string()];
    let said = cri::exec_output(&running.container, &[&unit[..], &fork].concat())?;
    let forked: u64 = said.strip_prefix("forked ").and_then(|count| count.parse().ok()).unwrap_or_default();
    ensure(forked > PIDS / 2 && forked < PIDS, || format!("with a limit of {PIDS}, {said}"))?;
    let refused = counter(&group, "pids.events", "max ")?;
    ensure(refused > 0, || "the kernel never refused a process".into())?;
    still_running(running)
}

/// As an in-place resize of a pod does it.
pub fn cpu(running: &Running) -> Result<(), Failure> {
    let group = group(running)?;
    cri::crictl(&[
        "update",
        "--cpu-quota",
        &LOWERED.to_string(),
        "--cpu-period",
        &PERIOD.to_string(),
        &running.container,
    ])?;
    let limit = read(group.join("cpu.max"))?;
    ensure(limit == format!("{LOWERED} {PERIOD}"), || format!("cpu.max is {limit}, not {LOWERED} {PERIOD}"))?;
    let (used, throttled) =
        (counter(&group, "cpu.stat", "usage_usec ")?, counter(&group, "cpu.stat", "nr_throttled ")?);
    let begun = Instant::now();
    cri::exec_output(&running.container, &[PAYLOAD, "burn", BURN])?;
    let wall = begun.elapsed().as_micros() as u64;
    let used = counter(&group, "cpu.stat", "usage_usec ")? - used;
    let throttled = counter(&group, "cpu.stat", "nr_throttled ")? - throttled;
    let free = crate::environment::CPU.to_string();
    cri::crictl(&["update", "--cpu-quota", &free, "--cpu-period", &PERIOD.to_string(), &running.container])?;
    // A tenth over it, for the slice that each processor may finish at the end of a period.
    let allowed = wall * LOWERED / PERIOD * 11 / 10 + LOWERED;
    ensure(used <= allowed, || format!("{used} us of CPU were used in {wall} us, where {allowed} us are allowed"))?;
    ensure(throttled > 0 && used > allowed / 3, || {
        format!("nothing pressed against the limit: {used} us, {throttled} times")
    })
}

/// What the kubelet takes for the pod's metrics.
pub fn statistics(running: &Running) -> Result<(), Failure> {
    let stats: Value = serde_json::from_str(&cri::crictl(&["stats", "--output", "json", "--id", &running.container])?)?;
    let one = &stats["stats"][0];
    let number = |path: &str| -> u64 {
        let value = one.pointer(path).unwrap_or(&Value::Null);
        value.as_u64().or_else(|| value.as_str()?.parse().ok()).unwrap_or_default()
    };
    let memory = number("/memory/workingSetBytes/value");
    let cpu = number("/cpu/usageCoreNanoSeconds/value");
    ensure((1 << 20..=MEMORY).contains(&memory), || format!("working set of {memory} bytes in {one}"))?;
    let truth = counter(&group(running)?, "cpu.stat", "usage_usec ")? * 1000;
    ensure(cpu > 0 && cpu <= truth, || format!("{cpu} ns of CPU where the kernel counts {truth}, in {one}"))
}
