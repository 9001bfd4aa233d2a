//! System call filters: the profile of a plain container's spec, and the deny list of an environment, both compiled to
//! BPF. libcontainer without the C library ignores profiles silently, so they are installed by ourselves in the process
//! that becomes the container's (or the exec's) program.
//!
//! A compiled filter knows one action for its rules and one for all else. A profile with more actions becomes several
//! filters: the kernel runs all of them and takes the most restrictive answer, and of equally restrictive ones that of
//! the filter installed last (`seccomp(2)`).

use std::collections::BTreeMap;
use std::str::FromStr;

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};
use serde::{Deserialize, Serialize};
use syscalls::Sysno;
use vivarium_sys::seccomp::Instruction;

use crate::error::{Attempt, Error, Result};

/// A compiled filter, in the order of the fields of `struct sock_filter`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter(Vec<(u16, u8, u8, u32)>);

impl Filter {
    fn from_program(program: BpfProgram) -> Self {
        Self(program.into_iter().map(|i| (i.code, i.jt, i.jf, i.k)).collect())
    }

    /// Adds the filter to the calling thread.
    pub fn install(&self) -> Result<()> {
        let program: Vec<Instruction> = self
            .0
            .iter()
            .map(|&(code, jump_true, jump_false, operand)| Instruction { code, jump_true, jump_false, operand })
            .collect();
        vivarium_sys::seccomp::install(&program).attempt(|| "install the system call filter")
    }
}

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
const EAFNOSUPPORT: u32 = 97;
/// Bit of the x32 ABI in a system call number: the same calls under other numbers, which would slip past a deny list.
const X32_BIT: u32 = 0x4000_0000;

/// System calls that an environment is denied. Its root has them in no container of another platform either; each opens
/// kernel code that no operating system in a container needs and that past escapes went through. `keyctl` and its kin
/// stay allowed: systemd gives each service a session keyring, and keyrings are per user namespace.
const DENIED: &[&str] = &[
    "bpf",
    "delete_module",
    "finit_module",
    "init_module",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "kexec_file_load",
    "kexec_load",
    "open_by_handle_at",
    "perf_event_open",
    "userfaultfd",
];

/// Socket families that an environment is denied, with their numbers (`bits/socket.h`): kernel crypto, VM sockets, the
/// `RxRPC` and `IPsec` key interfaces, and others that reach old and rarely tested code.
const DENIED_FAMILIES: &[(&str, u64)] = &[
    ("AF_AX25", 3),
    ("AF_IPX", 4),
    ("AF_APPLETALK", 5),
    ("AF_NETROM", 6),
    ("AF_X25", 9),
    ("AF_ROSE", 11),
    ("AF_DECnet", 12),
    ("AF_KEY", 15),
    ("AF_RDS", 21),
    ("AF_LLC", 26),
    ("AF_CAN", 29),
    ("AF_TIPC", 30),
    ("AF_BLUETOOTH", 31),
    ("AF_RXRPC", 33),
    ("AF_IEEE802154", 36),
    ("AF_CAIF", 37),
    ("AF_ALG", 38),
    ("AF_NFC", 39),
    ("AF_VSOCK", 40),
    ("AF_KCM", 41),
    ("AF_QIPCRTR", 42),
    ("AF_SMC", 43),
    ("AF_XDP", 44),
];

fn number(name: &str) -> Option<i64> {
    Sysno::from_str(name).ok().map(|number| i64::from(number.id()))
}

fn architecture() -> Result<TargetArch> {
    TargetArch::try_from(std::env::consts::ARCH)
        .map_err(|_| Error::Failed(format!("There are no system call filters for {}.", std::env::consts::ARCH)))
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn compile(rules: Rules, matched: SeccompAction, otherwise: SeccompAction) -> Result<Filter> {
    let failed = |e: &dyn std::fmt::Display| Error::Failed(format!("The system call filter cannot be compiled: {e}."));
    let filter = SeccompFilter::new(rules, otherwise, matched, architecture()?).map_err(|e| failed(&e))?;
    Ok(Filter::from_program(BpfProgram::try_from(filter).map_err(|e| failed(&e))?))
}

/// Filter that denies the x32 ABI.
fn without_x32() -> Filter {
    const LOAD_WORD: u16 = 0x20;
    const JUMP_GREATER_EQUAL: u16 = 0x35;
    const RETURN: u16 = 0x06;
    const ERRNO: u32 = 0x0005_0000;
    const ALLOW: u32 = 0x7fff_0000;
    Filter(vec![
        (LOAD_WORD, 0, 0, 0),
        (JUMP_GREATER_EQUAL, 0, 1, X32_BIT),
        (RETURN, 0, 0, ERRNO | ENOSYS),
        (RETURN, 0, 0, ALLOW),
    ])
}

/// Filters of an environment.
pub fn environment() -> Result<Vec<Filter>> {
    let denied: Rules = DENIED.iter().filter_map(|name| number(name)).map(|number| (number, Vec::new())).collect();
    let family = |value: u64| {
        SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
            .and_then(|condition| SeccompRule::new(vec![condition]))
            .map_err(|e| Error::Failed(format!("The rule for socket family {value} is wrong: {e}.")))
    };
    let mut sockets = Rules::new();
    for name in ["socket", "socketpair"] {
        let rules: Result<Vec<_>> = DENIED_FAMILIES.iter().map(|(_, value)| family(*value)).collect();
        if let Some(number) = number(name) {
            sockets.insert(number, rules?);
        }
    }
    let mut filters = vec![
        compile(denied, SeccompAction::Errno(EPERM), SeccompAction::Allow)?,
        // The answer of a kernel built without the family, which programs know how to live with.
        compile(sockets, SeccompAction::Errno(EAFNOSUPPORT), SeccompAction::Allow)?,
    ];
    if cfg!(target_arch = "x86_64") {
        filters.push(without_x32());
    }
    Ok(filters)
}

/// Filters that together do what a spec's profile says.
///
/// # Errors
/// A profile that asks for what is not enforced here (notification, tracing) is refused rather than ignored.
pub fn profile(profile: &LinuxSeccomp) -> Result<Vec<Filter>> {
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut by_action: Vec<(SeccompAction, Rules)> = Vec::new();
    for entry in profile.syscalls().iter().flatten() {
        let action = action(entry.action(), entry.errno_ret())?;
        if action == default {
            continue;
        }
        let index = by_action.iter().position(|(known, _)| *known == action).unwrap_or_else(|| {
            by_action.push((action, Rules::new()));
            by_action.len() - 1
        });
        let rules = &mut by_action[index].1;
        // Names that this kernel interface has not (other architectures', newer kernels') are skipped, as runc does.
        for number in entry.names().iter().filter_map(|name| number(name)) {
            add_rule(rules, number, entry.args().as_deref().unwrap_or_default())?;
        }
    }
    let mut filters = Vec::new();
    if default != SeccompAction::Allow {
        // Everything that any rule speaks of passes here; the filters below narrow it down.
        let mut spoken = Rules::new();
        for (number, rules) in by_action.iter().flat_map(|(_, rules)| rules) {
            merge(&mut spoken, *number, rules.clone());
        }
        filters.push(compile(spoken, SeccompAction::Allow, default)?);
    }
    for (action, rules) in by_action {
        if action != SeccompAction::Allow && !rules.is_empty() {
            filters.push(compile(rules, action, SeccompAction::Allow)?);
        }
    }
    Ok(filters)
}

/// Adds rules for a call: an empty list means that the call matches whatever its arguments are.
fn merge(rules: &mut Rules, number: i64, more: Vec<SeccompRule>) {
    match rules.get_mut(&number) {
        None => {
            rules.insert(number, more);
        }
        Some(present) if present.is_empty() || more.is_empty() => present.clear(),
        Some(present) => present.extend(more),
    }
}

fn add_rule(rules: &mut Rules, number: i64, arguments: &[LinuxSeccompArg]) -> Result<()> {
    if arguments.is_empty() {
        merge(rules, number, Vec::new());
        return Ok(());
    }
    let conditions: Result<Vec<_>> = arguments.iter().map(condition).collect();
    let rule = SeccompRule::new(conditions?)
        .map_err(|e| Error::Refused(format!("the seccomp profile has a rule that cannot be compiled: {e}")))?;
    merge(rules, number, vec![rule]);
    Ok(())
}

fn condition(argument: &LinuxSeccompArg) -> Result<SeccompCondition> {
    use LinuxSeccompOperator as Op;
    let (operator, value) = match argument.op() {
        Op::ScmpCmpNe => (SeccompCmpOp::Ne, argument.value()),
        Op::ScmpCmpLt => (SeccompCmpOp::Lt, argument.value()),
        Op::ScmpCmpLe => (SeccompCmpOp::Le, argument.value()),
        Op::ScmpCmpEq => (SeccompCmpOp::Eq, argument.value()),
        Op::ScmpCmpGe => (SeccompCmpOp::Ge, argument.value()),
        Op::ScmpCmpGt => (SeccompCmpOp::Gt, argument.value()),
        // OCI: `value` is the mask, `valueTwo` what the masked argument must equal.
        Op::ScmpCmpMaskedEq => (SeccompCmpOp::MaskedEq(argument.value()), argument.value_two().unwrap_or(0)),
    };
    let index = u8::try_from(argument.index()).unwrap_or(u8::MAX);
    SeccompCondition::new(index, SeccompCmpArgLen::Qword, operator, value)
        .map_err(|e| Error::Refused(format!("the seccomp profile compares an argument that cannot be: {e}")))
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<SeccompAction> {
    use LinuxSeccompAction as A;
    Ok(match action {
        A::ScmpActAllow => SeccompAction::Allow,
        A::ScmpActErrno => SeccompAction::Errno(errno.unwrap_or(EPERM)),
        A::ScmpActKill | A::ScmpActKillThread => SeccompAction::KillThread,
        A::ScmpActKillProcess => SeccompAction::KillProcess,
        A::ScmpActTrap => SeccompAction::Trap,
        A::ScmpActLog => SeccompAction::Log,
        A::ScmpActNotify | A::ScmpActTrace => {
            return Err(Error::Refused(format!(
                "the seccomp profile uses {action}, which this runtime does not offer; use a profile without it"
            )));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: serde_json::Value) -> LinuxSeccomp {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn every_denied_call_is_known() {
        for name in DENIED {
            assert!(number(name).is_some(), "{name}");
        }
        environment().unwrap();
    }

    #[test]
    fn a_profile_with_two_error_numbers_becomes_two_filters() {
        let profile_of = parse(serde_json::json!({
            "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
            "syscalls": [
                {"names": ["read", "no_such_call"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
                {"names": ["personality"], "action": "SCMP_ACT_ALLOW",
                 "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]},
            ]
        }));
        assert_eq!(profile(&profile_of).unwrap().len(), 2);
    }

    #[test]
    fn an_unconditional_rule_swallows_conditional_ones() {
        let mut rules = Rules::new();
        let one = SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 1).unwrap();
        merge(&mut rules, 5, vec![SeccompRule::new(vec![one]).unwrap()]);
        merge(&mut rules, 5, Vec::new());
        assert!(rules[&5].is_empty());
    }

    #[test]
    fn what_cannot_be_enforced_is_refused() {
        let notify = parse(serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_NOTIFY"}]}));
        assert!(matches!(profile(&notify), Err(Error::Refused(_))));
    }
}
