//! Which checks there are, in the order in which they run. Both sides hold this list, so a check that the machine never
//! came to is missed by name.

use serde::{Deserialize, Serialize};

/// How much is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Form {
    /// What breaks first, for every run of the tests.
    Short,
    /// Everything.
    Full,
}

/// One check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// The machine is what it is meant to be.
    PureCgroup2,
    /// The machine runs containers at all, shown with runc.
    ControlRuns,
    /// containerd learns from the shim that it can map users.
    RuntimeMapsUsers,
    /// Pods without a user namespace.
    RefusesHostUsers,
    /// Container without an operating system.
    PlainRuns,
    /// Every way into it.
    PlainExecIsMapped,
    /// Memory limit of a plain container.
    OomIsReported,
    /// A plain container goes.
    PlainLeavesNothing,
    /// The environment.
    Boots,
    /// Every way into it.
    ExecIsMapped,
    /// memory.max of the environment.
    MemoryLimit,
    /// pids.max of the environment.
    PidsLimit,
    /// cpu.max of the environment, changed while it runs.
    CpuLimit,
    /// cgroup controllers inside.
    Delegation,
    /// A limit that the environment sets itself.
    NestedLimit,
    /// `cgroup.subtree_control` of the environment's own group is not empty when a process joins.
    ExecWithNestedControllers,
    /// What the kubelet reads.
    Statistics,
    /// cgroup.freeze.
    Freeze,
    /// `reboot` inside.
    Reboot,
    /// SIGTERM from outside.
    OrderlyStop,
    /// The environment goes.
    LeavesNothing,
    /// The shim dies under a running environment.
    KilledShimLeavesNothing,
}

/// Every check with the name that it is reported by, and whether the short form has it.
const ALL: &[(Check, &str, bool)] = &[
    (Check::PureCgroup2, "the machine has cgroup v2 alone, with every controller that a kubelet wants", true),
    (Check::ControlRuns, "a user-namespaced container runs under runc on this machine", false),
    (Check::RuntimeMapsUsers, "containerd knows that the runtime maps users", true),
    (Check::RefusesHostUsers, "a pod without a user namespace is refused with the reason", false),
    (Check::PlainRuns, "a plain user-namespaced container runs", false),
    (Check::PlainExecIsMapped, "exec enters the user namespace of a plain container", false),
    (Check::OomIsReported, "a container over its memory limit ends with reason OOMKilled", false),
    (Check::PlainLeavesNothing, "deleting a plain pod leaves nothing", false),
    (Check::Boots, "an environment boots to running", true),
    (Check::ExecIsMapped, "exec enters the user namespace of an environment", true),
    (Check::MemoryLimit, "the memory limit holds", true),
    (Check::PidsLimit, "the limit of processes holds", false),
    (Check::CpuLimit, "the CPU limit can be lowered live and holds", false),
    (Check::Delegation, "the environment's systemd hands controllers on to its units", true),
    (Check::NestedLimit, "a memory limit set inside the environment holds", false),
    (Check::ExecWithNestedControllers, "exec works while the environment uses nested controllers", true),
    (Check::Statistics, "the runtime reports memory and CPU use", false),
    (Check::Freeze, "a paused environment stands still and goes on when resumed", false),
    (Check::Reboot, "reboot inside keeps the container, its address and its files", false),
    (Check::OrderlyStop, "SIGTERM from outside stops the environment in order", true),
    (Check::LeavesNothing, "deleting an environment leaves nothing", true),
    (Check::KilledShimLeavesNothing, "an environment whose shim is killed leaves nothing", false),
];

impl Check {
    /// What it shows, as a sentence.
    #[must_use]
    pub fn name(self) -> &'static str {
        ALL.iter().find(|(check, ..)| *check == self).map_or("", |(_, name, _)| name)
    }
}

/// The checks of a form in order.
#[must_use]
pub fn plan(form: Form) -> Vec<Check> {
    ALL.iter().filter(|(_, _, short)| *short || form == Form::Full).map(|(check, ..)| *check).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_has_a_name_of_its_own() {
        let mut names: Vec<_> = plan(Form::Full).iter().map(|check| check.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
        assert!(names.iter().all(|name| !name.is_empty() && !name.contains('#')));
    }

    #[test]
    fn the_short_form_has_what_breaks_first() {
        let short = plan(Form::Short);
        for check in [Check::Boots, Check::MemoryLimit, Check::ExecWithNestedControllers, Check::LeavesNothing] {
            assert!(short.contains(&check), "{check:?}");
        }
        assert!(short.len() < plan(Form::Full).len());
    }
}
