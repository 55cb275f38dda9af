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

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompFilterFlag as Flag, LinuxSeccompOperator,
    LinuxSyscall,
};
use rung_sys::seccomp::{
    FLAG_LOG, FLAG_NEW_LISTENER, FLAG_SPEC_ALLOW, FLAG_TSYNC, FLAG_TSYNC_ESRCH, FLAG_WAIT_KILLABLE_RECV, LONGEST,
};

use super::arch::{Arch, Call};
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

/// What one entry of the profile says of its calls.
#[derive(Debug)]
struct Rule {
    /// Each a list of conditions that must all hold; none for a rule without conditions.
    alternatives: Vec<Vec<Condition>>,
    value: u32,
}

/// Compiles a profile.
///
/// # Errors
/// When a value is invalid, or the profile is larger than the kernel takes.
pub fn compile(profile: &LinuxSeccomp) -> Result<Filter> {
    let calls = profile.syscalls().as_deref().unwrap_or_default();
    let default = action(profile.default_action(), profile.default_errno_ret())
        .map_err(|reason| Error::new("linux.seccomp.defaultErrnoRet", reason))?;
    if profile.default_action() == Action::ScmpActNotify {
        return Err(Error::new("linux.seccomp.defaultAction", "SCMP_ACT_NOTIFY cannot be used as default action"));
    }
    let notifies = check_notify(profile, calls)?;
    let (flags, optional_flags) = flags(profile, notifies);
    // Nothing is refused: the same as no filter, except that a flag may still be wanted.
    if calls.is_empty() && default == RET_ALLOW && flags == 0 {
        return Ok(Filter { program: Vec::new(), flags: 0, optional_flags: 0, listener: false });
    }
    let archs = architectures(profile);
    let (rules, tables) = rules(calls, &archs)?;
    let sections = archs.iter().zip(&tables).map(|(arch, table)| section(*arch, table, &rules, default));
    let program = emit::program(&sections.collect::<Vec<_>>(), RET_KILL_THREAD);
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

/// The kernel's form of an action, or what is wrong with its number.
fn action(action: Action, errno: Option<u32>) -> std::result::Result<u32, String> {
    let takes_number = matches!(action, Action::ScmpActErrno | Action::ScmpActTrace);
    if let Some(errno) = errno.filter(|&errno| errno != 0) {
        if !takes_number {
            return Err(format!("{errno} is set, and {action} takes no number"));
        }
        if errno > MOST_DATA {
            return Err(format!("{errno} is more than {MOST_DATA}"));
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

/// Which rules there are for which calls of one architecture: the number of a call, and the place of a rule in the list
/// of all. Sorted, it has all rules of a call side by side, in the order of the profile.
type Table = Vec<(u32, u32)>;

/// The rules of a profile in its order, and a table for each architecture.
fn rules(calls: &[LinuxSyscall], archs: &[Arch]) -> Result<(Vec<Rule>, Vec<Table>)> {
    let mut rules = Vec::with_capacity(calls.len());
    let mut tables: Vec<Table> = archs.iter().map(|_| Vec::with_capacity(512)).collect();
    for (index, call) in calls.iter().enumerate() {
        let value = action(call.action(), call.errno_ret())
            .map_err(|reason| Error::new(format!("linux.seccomp.syscalls[{index}].errnoRet"), reason))?;
        let alternatives = alternatives(call, index)?;
        let general = alternatives.is_empty();
        let own = add(&mut rules, Rule { alternatives, value });
        for name in call.names() {
            let Some(call) = Call::find(name) else { continue };
            for (arch, table) in archs.iter().zip(&mut tables) {
                table.extend(call.number(*arch).map(|number| (number, own)));
                if general && let Some((number, rule)) = through_another(call, *arch, value) {
                    table.push((number, add(&mut rules, rule)));
                }
            }
        }
    }
    // As one number each, they are compared at once.
    let key = |&(number, rule): &(u32, u32)| u64::from(number) << 32 | u64::from(rule);
    tables.iter_mut().for_each(|table| table.sort_unstable_by_key(key));
    Ok((rules, tables))
}

/// The place of a rule in the list of all. A profile with 2^32 rules does not fit into memory.
fn add(rules: &mut Vec<Rule>, rule: Rule) -> u32 {
    rules.push(rule);
    u32::try_from(rules.len() - 1).unwrap_or(u32::MAX)
}

/// A 32-bit program may make a socket call through `socketcall`: it must meet the same rule there. What such a call's
/// arguments are cannot be seen by a filter, so rules with conditions stay with the direct call.
fn through_another(call: Call, arch: Arch, value: u32) -> Option<(u32, Rule)> {
    let (through, which) = if arch.multiplexes() { call.multiplexed()? } else { return None };
    let number = through.number(arch)?;
    Some((number, Rule { alternatives: vec![vec![Condition { argument: 0, test: Test::Equal(which) }]], value }))
}

fn alternatives(call: &LinuxSyscall, entry: usize) -> Result<Vec<Vec<Condition>>> {
    let arguments = call.args().as_deref().unwrap_or_default();
    let mut found = Vec::with_capacity(arguments.len());
    for (index, argument) in arguments.iter().enumerate() {
        let at = |reason| Error::new(format!("linux.seccomp.syscalls[{entry}].args[{index}].index"), reason);
        found.push(condition(argument).map_err(at)?);
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

fn condition(argument: &LinuxSeccompArg) -> std::result::Result<Condition, String> {
    let index = u32::try_from(argument.index()).ok().filter(|&index| index < 6);
    let index = index.ok_or_else(|| format!("{} is not an argument (0 to 5)", argument.index()))?;
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
fn section<'a>(arch: Arch, table: &[(u32, u32)], rules: &'a [Rule], default: u32) -> Section<'a> {
    let kept = matches!(default & 0xffff_0000, RET_ERRNO | RET_TRAP | RET_KILL_PROCESS) || default == RET_KILL_THREAD;
    let above = if kept && !table.is_empty() { RET_ENOSYS } else { default };
    let mut ranges: Vec<Range<'_>> = Vec::with_capacity(256);
    let mut push = |start: u32, leaf: Leaf<'a>| match ranges.last() {
        Some(Range { leaf: Leaf::Answer(before), .. }) if leaf == Leaf::Answer(*before) => {}
        _ => ranges.push(Range { start, leaf }),
    };
    let mut next = 0;
    for of_one in table.chunk_by(|one, other| one.0 == other.0) {
        let number = of_one[0].0;
        if number > next {
            push(next, Leaf::Answer(default));
        }
        push(number, leaf(of_one, rules, default));
        next = number + 1;
    }
    push(next, Leaf::Answer(above));
    Section { arch, ranges }
}

/// The answer to one call; conditions that change nothing are left out.
fn leaf<'a>(of_one: &[(u32, u32)], rules: &'a [Rule], default: u32) -> Leaf<'a> {
    let mut conditional: Vec<(&[Condition], u32)> = Vec::new();
    let mut general = None;
    for rule in of_one.iter().map(|(_, at)| &rules[*at as usize]) {
        if rule.alternatives.is_empty() {
            general.get_or_insert(rule.value);
        }
        conditional.extend(rule.alternatives.iter().map(|conditions| (conditions.as_slice(), rule.value)));
    }
    let otherwise = general.unwrap_or(default);
    while conditional.last().is_some_and(|(_, value)| *value == otherwise) {
        conditional.pop();
    }
    if conditional.is_empty() { Leaf::Answer(otherwise) } else { Leaf::Rules { rules: conditional, otherwise } }
}
