//! Containers without an operating system: what any pod with a user namespace may expect of the runtime.

use std::time::Duration;

use vivarium_api::names::RUNTIME_CLASS;
use vivarium_machine_tests::{
    config::{CONTROL_HANDLER, Container, IdRange, Pod},
    options::PAYLOAD,
};

use super::{Context, wait_for};
use crate::{
    cri,
    failure::{Failure, ensure},
    groups,
    leftovers::Baseline,
};

/// Memory limit of the container that goes over it.
const SMALL: u64 = 32 << 20;
/// containerd learns of a container's end by an event and of the kill by another.
const SOON: Duration = Duration::from_secs(30);

/// A pod with one plain container.
pub struct Plain {
    pod: Pod,
    sandbox: String,
    container: String,
    baseline: Baseline,
}

impl Plain {
    fn start(handler: &str, number: u32) -> Result<Self, Failure> {
        let users = IdRange { host: 65_536 * (50 + number), length: 65_536 };
        let pod = pod(number, Some(users));
        let baseline = Baseline::take()?;
        groups::make_pod(&pod)?;
        let sandbox = cri::run_pod(handler, &pod)?;
        let container = cri::launch(&sandbox, &payload("plain", &["pause"]), &pod)?;
        Ok(Self { pod, sandbox, container, baseline })
    }

    fn mapping(&self) -> String {
        self.pod.users.map(|users| format!("0 {} {}", users.host, users.length)).unwrap_or_default()
    }

    fn remove(&self) -> Result<(), Failure> {
        cri::crictl(&["stopp", &self.sandbox])?;
        cri::crictl(&["rmp", &self.sandbox])?;
        // What containerd answered before may still be on its way out of the kernel.
        let mut remains = Vec::new();
        let gone = wait_for("its end", SOON, || {
            remains = self.baseline.remains(&self.pod, &[&self.sandbox, &self.container])?;
            Ok(remains.is_empty().then_some(()))
        });
        gone.map_err(|_| Failure(format!("this is left: {}", remains.join(", "))))?;
        groups::remove_pod(&self.pod)
    }
}

fn pod(number: u32, users: Option<IdRange>) -> Pod {
    let uid = format!("00000000-0000-4000-8000-0003{number:08}");
    Pod { namespace: "team-b", name: format!("plain{number}"), uid, users }
}

fn payload(name: &'static str, words: &[&str]) -> Container {
    let words = [&[PAYLOAD], words].concat();
    Container { name, command: words.into_iter().map(str::to_owned).collect(), ..Container::default() }
}

/// Shows that what follows is about the runtime under test and not about this machine.
pub fn control() -> Result<(), Failure> {
    let plain = Plain::start(CONTROL_HANDLER, 0)?;
    exec_is_mapped(&plain)?;
    plain.remove()
}

/// Starts the pod that the next checks use.
pub fn runs(context: &mut Context) -> Result<(), Failure> {
    let plain = context.plain.insert(Plain::start(RUNTIME_CLASS, 1)?);
    let status = cri::inspect(&plain.container)?;
    ensure(status["status"]["state"] == "CONTAINER_RUNNING", || format!("its status is {}", status["status"]))
}

/// By the synchronous call and by the streaming server.
pub fn exec_is_mapped(plain: &Plain) -> Result<(), Failure> {
    let words = [PAYLOAD, "identity"];
    for finished in [cri::exec(&plain.container, &words)?, cri::exec_streaming(&plain.container, &words)?] {
        let said: Vec<&str> = finished.stdout.split_whitespace().collect();
        let wanted = format!("{} Uid: 0 0 0 0", plain.mapping());
        ensure(said.join(" ") == wanted, || format!("a process said {finished:?} and not {wanted}"))?;
    }
    Ok(())
}

/// The reason comes from a `TaskOOM` event, or from the runtime's statistics.
pub fn oom_is_reported(plain: &Plain) -> Result<(), Failure> {
    let hungry = Container { memory: Some(SMALL), ..payload("hungry", &["eat", "134217728"]) };
    let container = cri::launch(&plain.sandbox, &hungry, &plain.pod)?;
    let status = wait_for("the end of the container", SOON, || {
        let status = cri::inspect(&container)?["status"].clone();
        Ok((status["state"] == "CONTAINER_EXITED").then_some(status))
    })?;
    let (reason, code) = (&status["reason"], &status["exitCode"]);
    ensure(reason == "OOMKilled" && code == 137, || format!("it ended with reason {reason}, exit code {code}"))?;
    cri::crictl(&["rm", &container]).map(drop)
}

/// Removes the pod of the checks before.
pub fn leaves_nothing(context: &mut Context) -> Result<(), Failure> {
    context.plain()?;
    context.plain.take().map_or(Ok(()), |plain| plain.remove())
}

/// The message must tell a person what to change.
pub fn refuses_host_users() -> Result<(), Failure> {
    let pod = pod(2, None);
    let baseline = Baseline::take()?;
    groups::make_pod(&pod)?;
    let refusal = match cri::run_pod(RUNTIME_CLASS, &pod) {
        Ok(sandbox) => {
            cri::crictl(&["rmp", "--force", &sandbox])?;
            return Err(Failure("it was started".into()));
        }
        Err(Failure(message)) => message,
    };
    ensure(refusal.contains("hostUsers: false"), || format!("the refusal does not say what to do: {refusal}"))?;
    let mut remains = Vec::new();
    let gone = wait_for("its end", SOON, || {
        remains = baseline.remains(&pod, &[])?;
        Ok(remains.is_empty().then_some(()))
    });
    gone.map_err(|_| Failure(format!("this is left: {}", remains.join(", "))))?;
    groups::remove_pod(&pod)
}
