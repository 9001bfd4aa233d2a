//! The checks. Each is a function from what runs at that moment to a failure or nothing; those that belong together
//! share one pod, which the first of them starts and the last removes.

use std::{
    thread,
    time::{Duration, Instant},
};

use vivarium_machine_tests::{options::Options, plan::Check};

use crate::{cri, environment::Environment, failure::Failure, leftovers::Baseline};

mod inside;
mod lifecycle;
mod limits;
mod machine;
mod plain;

/// What the checks share.
pub struct Context {
    pub options: Options,
    plain: Option<plain::Plain>,
    environment: Option<Running>,
    environments: u32,
}

/// An environment that was started.
pub struct Running {
    environment: Environment,
    sandbox: String,
    container: String,
    baseline: Baseline,
    /// What the other checks look at is only there then.
    booted: bool,
}

impl Context {
    /// Nothing runs yet.
    pub fn new(options: Options) -> Self {
        Self { options, plain: None, environment: None, environments: 0 }
    }

    /// What the environment's own journal says last, if one runs.
    pub fn inner_log(&self) -> String {
        let Some(running) = &self.environment else { return String::new() };
        let words = ["journalctl", "-b", "-n", "30", "--no-pager", "-o", "short-monotonic"];
        let text = cri::exec(&running.container, &words).map_or_else(|failure| failure.0, |done| done.stdout);
        format!("--- journal of the environment\n{text}")
    }

    fn running(&self) -> Result<&Running, Failure> {
        let booted = self.environment.as_ref().filter(|running| running.booted);
        booted.ok_or_else(|| Failure("there is no environment: it did not boot".into()))
    }

    fn plain(&self) -> Result<&plain::Plain, Failure> {
        self.plain.as_ref().ok_or_else(|| Failure("there is no plain container: it did not start".into()))
    }
}

/// Does one check.
pub fn run(check: Check, context: &mut Context) -> Result<(), Failure> {
    match check {
        Check::PureCgroup2 => machine::pure_cgroup2(),
        Check::ControlRuns => plain::control(),
        Check::RuntimeMapsUsers => machine::runtime_maps_users(),
        Check::RefusesHostUsers => plain::refuses_host_users(),
        Check::PlainRuns => plain::runs(context),
        Check::PlainExecIsMapped => plain::exec_is_mapped(context.plain()?),
        Check::OomIsReported => plain::oom_is_reported(context.plain()?),
        Check::PlainLeavesNothing => plain::leaves_nothing(context),
        Check::Boots => lifecycle::boots(context),
        Check::ExecIsMapped => inside::exec_is_mapped(context.running()?),
        Check::MemoryLimit => limits::memory(context.running()?, context.options.expect_wrongly),
        Check::PidsLimit => limits::pids(context.running()?),
        Check::CpuLimit => limits::cpu(context.running()?),
        Check::Delegation => inside::delegation(context.running()?),
        Check::NestedLimit => inside::nested_limit(context.running()?),
        Check::ExecWithNestedControllers => inside::exec_with_nested_controllers(context.running()?),
        Check::Statistics => limits::statistics(context.running()?),
        Check::Freeze => lifecycle::freeze(context.running()?),
        Check::Reboot => lifecycle::reboot(context.running()?),
        Check::OrderlyStop => lifecycle::orderly_stop(context.running()?),
        Check::LeavesNothing => lifecycle::leaves_nothing(context),
        Check::KilledShimLeavesNothing => lifecycle::killed_shim(context),
    }
}

/// Asks again and again until there is an answer. For states of other programs that announce no event.
fn wait_for<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Result<Option<T>, Failure>) -> Result<T, Failure> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if Instant::now() > deadline {
            return Err(Failure(format!("{what} did not happen within {} s", limit.as_secs())));
        }
        thread::sleep(Duration::from_millis(250));
    }
}
