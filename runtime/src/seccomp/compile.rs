//! From a profile to a filter. Pure.
//!
//! The rules, where the specification is silent or runtimes differ:
//!
//! - For one call, rules with conditions are tried first, in the order of the profile, then the first without. So the
//!   order of a general and a special rule does not matter.
//! - A condition that names an argument a second time makes every condition of its rule a rule of its own (that is how
//!   libseccomp's users write "or", and profiles rely on it).
//! - Names that no kernel has are passed over: profiles are written for newer and older kernels.
//! - A call with a number above all that the profile names for an architecture did not exist when the profile was
//!   written. Where the default refuses, it is answered with ENOSYS, so that the C library takes its older way.
//! - A program of an architecture that the profile does not list is killed, as with libseccomp.

use std::collections::BTreeMap;

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompFilterFlag as Flag, LinuxSeccompOperator,
    LinuxSyscall,
};
use rung_sys::seccomp::{
    FLAG_LOG, FLAG_NEW_LISTENER, FLAG_SPEC_ALLOW, FLAG_TSYNC, FLAG_TSYNC_ESRCH, FLAG_WAIT_KILLABLE_RECV, LONGEST,
};

use super::arch::{Arch, multiplexed, number, numbers};
use super::emit::{self, Leaf, Range, Section};
use super::{Error, Filter, Result};

pub(super) const RET_KILL_PROCESS: u32 = 0x8000_0000;
pub(super) const RET_KILL_THREAD: u32 = 0;
pub(super) const RET_TRAP: u32 = 0x0003_0000;
pub(super) const RET_ERRNO: u32 = 0x0005_0000;
pub(super) const RET_NOTIFY: u32 = 0x7fc0_0000;
pub(super) const RET_TRACE: u32 = 0x7ff0_0000;
pub(super) const RET_LOG: u32 = 0x7ffc_0000;
pub(super) const RET_ALLOW: u32 = 0x7fff_0000;
pub(super) const RET_ENOSYS: u32 = RET_ERRNO | 38;

/// The largest number that fits beside an action.
const MOST_DATA: u32 = 0xffff;

/// One condition on one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) argument: u32,
    pub(super) test: Test,
}

/// What has to hold for an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Test {
    Equal(u64),
    NotEqual(u64),
    Greater(u64),
    GreaterEqual(u64),
    Less(u64),
    LessEqual(u64),
    Masked { mask: u64, value: u64 },
}

/// The rules of one call.
#[derive(Debug, Clone, Default)]
struct Call {
    conditional: Vec<(Vec<Condition>, u32)>,
    otherwise: Option<u32>,
}

/// Compiles a profile.
///
/// # Errors
/// When a value is invalid, or the profile is larger than the kernel takes.
pub fn compile(profile: &LinuxSeccomp) -> Result<Filter> {
    let calls = profile.syscalls().as_deref().unwrap_or_default();
    let default = action(profile.default_action(), profile.default_errno_ret(), "linux.seccomp.defaultErrnoRet")?;
    if profile.default_action() == Action::ScmpActNotify {
        return Err(Error::new("linux.seccomp.defaultAction", "SCMP_ACT_NOTIFY cannot be used as default action"));
    }
    let notifies = check_notify(profile, calls)?;
    let (flags, optional_flags) = flags(profile, notifies);
    // Nothing is refused: the same as no filter, except that a flag may still be wanted.
    if calls.is_empty() && default == RET_ALLOW && flags == 0 {
        return Ok(Filter { program: Vec::new(), flags: 0, optional_flags: 0, listener: false });
    }
    let sections = sections(profile, calls, default)?;
    let program = emit::program(&sections, RET_KILL_THREAD);
    if program.len() > LONGEST {
        let reason = format!("makes a filter of {} instructions, and the kernel takes {LONGEST}", program.len());
        return Err(Error::new("linux.seccomp", reason));
    }
    Ok(Filter { program, flags, optional_flags, listener: notifies })
}

fn check_notify(profile: &LinuxSeccomp, calls: &[LinuxSyscall]) -> Result<bool> {
    let mut notifies = false;
    for (index, call) in calls.iter().enumerate().filter(|(_, call)| call.action() == Action::ScmpActNotify) {
        notifies = true;
        // The listener's descriptor is announced through a write, which would then wait for its own listener.
        if call.names().iter().any(|name| name == "write") {
            let path = format!("linux.seccomp.syscalls[{index}]");
            return Err(Error::new(path, "SCMP_ACT_NOTIFY cannot be used for the write syscall"));
        }
    }
    let given = |text: bool| if text { "is set" } else { "is missing" };
    let path = profile.listener_path().as_ref().is_some_and(|path| !path.as_os_str().is_empty());
    if notifies && !path {
        return Err(Error::new("linux.seccomp.listenerPath", format!("{} while a rule notifies", given(path))));
    }
    if !path && profile.listener_metadata().as_ref().is_some_and(|text| !text.is_empty()) {
        return Err(Error::new("linux.seccomp.listenerMetadata", "is set without a listenerPath"));
    }
    Ok(notifies)
}

/// What the profile asks for, and what is good to have.
fn flags(profile: &LinuxSeccomp, notifies: bool) -> (u32, u32) {
    let mut wanted = 0;
    for flag in profile.flags().iter().flatten() {
        wanted |= match flag {
            Flag::SeccompFilterFlagLog => FLAG_LOG,
            Flag::SeccompFilterFlagTsync => FLAG_TSYNC,
            Flag::SeccompFilterFlagSpecAllow => FLAG_SPEC_ALLOW,
            // Means something only to a listener.
            Flag::SeccompFilterFlagWaitKillableRecv if !notifies => 0,
            Flag::SeccompFilterFlagWaitKillableRecv => FLAG_WAIT_KILLABLE_RECV,
        };
    }
    if notifies {
        wanted |= FLAG_NEW_LISTENER;
        if wanted & FLAG_TSYNC != 0 {
            wanted |= FLAG_TSYNC_ESRCH;
        }
    }
    // An empty list means none; only where the field is absent, filters do not slow down the program.
    let optional = if profile.flags().is_none() { FLAG_SPEC_ALLOW } else { 0 };
    (wanted, optional)
}

/// The kernel's form of an action.
fn action(action: Action, errno: Option<u32>, path: &str) -> Result<u32> {
    let takes_number = matches!(action, Action::ScmpActErrno | Action::ScmpActTrace);
    if let Some(errno) = errno.filter(|&errno| errno != 0) {
        if !takes_number {
            return Err(Error::new(path, format!("{errno} is set, and {action} takes no number")));
        }
        if errno > MOST_DATA {
            return Err(Error::new(path, format!("{errno} is more than {MOST_DATA}")));
        }
    }
    let number = errno.unwrap_or(1);
    Ok(match action {
        Action::ScmpActKill | Action::ScmpActKillThread => RET_KILL_THREAD,
        Action::ScmpActKillProcess => RET_KILL_PROCESS,
        Action::ScmpActTrap => RET_TRAP,
        Action::ScmpActErrno => RET_ERRNO | number,
        Action::ScmpActTrace => RET_TRACE | number,
        Action::ScmpActNotify => RET_NOTIFY,
        Action::ScmpActLog => RET_LOG,
        Action::ScmpActAllow => RET_ALLOW,
    })
}

/// The architectures of a profile that a filter can meet, the native one first and always.
fn architectures(profile: &LinuxSeccomp) -> Vec<Arch> {
    let mut found: Vec<Arch> = Arch::NATIVE.into_iter().collect();
    for arch in profile.architectures().iter().flatten().filter_map(|named| Arch::of(*named)) {
        if !found.contains(&arch) {
            found.push(arch);
        }
    }
    found
}

fn sections(profile: &LinuxSeccomp, calls: &[LinuxSyscall], default: u32) -> Result<Vec<Section>> {
    let archs = architectures(profile);
    let mut tables: Vec<BTreeMap<u32, Call>> = archs.iter().map(|_| BTreeMap::new()).collect();
    for (index, call) in calls.iter().enumerate() {
        let path = format!("linux.seccomp.syscalls[{index}]");
        let value = action(call.action(), call.errno_ret(), &format!("{path}.errnoRet"))?;
        let rules = conditions(call, &path)?;
        for name in call.names() {
            let Some(row) = numbers(name) else { continue };
            for (arch, table) in archs.iter().zip(&mut tables) {
                if let Some(number) = number(row, *arch) {
                    add(table.entry(number).or_default(), &rules, value);
                }
                if arch.multiplexes() && rules.is_empty() {
                    add_multiplexed(table, *arch, name, value);
                }
            }
        }
    }
    Ok(archs.into_iter().zip(tables).map(|(arch, table)| section(arch, table, default)).collect())
}

fn add(call: &mut Call, rules: &[Vec<Condition>], value: u32) {
    if rules.is_empty() {
        call.otherwise.get_or_insert(value);
    }
    call.conditional.extend(rules.iter().map(|rule| (rule.clone(), value)));
}

/// A 32-bit program may make a socket call through `socketcall`: it must meet the same rule there. What such a call's
/// arguments are cannot be seen by a filter, so rules with conditions stay with the direct call.
fn add_multiplexed(table: &mut BTreeMap<u32, Call>, arch: Arch, name: &str, value: u32) {
    let Some((through, which)) = multiplexed(name) else { return };
    if let Some(number) = numbers(through).and_then(|row| number(row, arch)) {
        let condition = Condition { argument: 0, test: Test::Equal(which) };
        table.entry(number).or_default().conditional.push((vec![condition], value));
    }
}

/// The alternatives of a rule, each a list of conditions that must all hold; none for a rule without conditions.
fn conditions(call: &LinuxSyscall, path: &str) -> Result<Vec<Vec<Condition>>> {
    let arguments = call.args().as_deref().unwrap_or_default();
    let mut found = Vec::with_capacity(arguments.len());
    for (index, argument) in arguments.iter().enumerate() {
        found.push(condition(argument, &format!("{path}.args[{index}]"))?);
    }
    let twice =
        found.iter().enumerate().any(|(at, one)| found[..at].iter().any(|other| other.argument == one.argument));
    Ok(if found.is_empty() {
        Vec::new()
    } else if twice {
        found.into_iter().map(|condition| vec![condition]).collect()
    } else {
        vec![found]
    })
}

fn condition(argument: &LinuxSeccompArg, path: &str) -> Result<Condition> {
    let index = u32::try_from(argument.index()).ok().filter(|&index| index < 6);
    let Some(index) = index else {
        return Err(Error::new(format!("{path}.index"), format!("{} is not an argument (0 to 5)", argument.index())));
    };
    let value = argument.value();
    let test = match argument.op() {
        LinuxSeccompOperator::ScmpCmpEq => Test::Equal(value),
        LinuxSeccompOperator::ScmpCmpNe => Test::NotEqual(value),
        LinuxSeccompOperator::ScmpCmpGt => Test::Greater(value),
        LinuxSeccompOperator::ScmpCmpGe => Test::GreaterEqual(value),
        LinuxSeccompOperator::ScmpCmpLt => Test::Less(value),
        LinuxSeccompOperator::ScmpCmpLe => Test::LessEqual(value),
        LinuxSeccompOperator::ScmpCmpMaskedEq => Test::Masked { mask: value, value: argument.value_two().unwrap_or(0) },
    };
    Ok(Condition { argument: index, test })
}

/// The rules of one architecture as ranges of numbers with the same answer.
fn section(arch: Arch, table: BTreeMap<u32, Call>, default: u32) -> Section {
    let kept = matches!(default & 0xffff_0000, RET_ERRNO | RET_TRAP | RET_KILL_PROCESS) || default == RET_KILL_THREAD;
    let last = table.keys().next_back().copied();
    let above = if kept && last.is_some() { RET_ENOSYS } else { default };
    let mut ranges: Vec<Range> = Vec::new();
    let mut push = |start: u32, leaf: Leaf| match ranges.last() {
        Some(Range { leaf: Leaf::Answer(before), .. }) if leaf == Leaf::Answer(*before) => {}
        _ => ranges.push(Range { start, leaf }),
    };
    push(0, Leaf::Answer(default));
    let mut next = 0;
    for (number, call) in table {
        if number > next {
            push(next, Leaf::Answer(default));
        }
        push(number, leaf(call, default));
        next = number + 1;
    }
    push(next, Leaf::Answer(above));
    // The first range starts at zero whether or not a call has that number.
    if ranges.get(1).is_some_and(|second| second.start == 0) {
        ranges.remove(0);
    }
    Section { arch, ranges }
}

/// The answer to one call; conditions that change nothing are left out.
fn leaf(call: Call, default: u32) -> Leaf {
    let otherwise = call.otherwise.unwrap_or(default);
    let mut rules = call.conditional;
    while rules.last().is_some_and(|(_, value)| *value == otherwise) {
        rules.pop();
    }
    if rules.is_empty() { Leaf::Answer(otherwise) } else { Leaf::Rules { rules, otherwise } }
}
