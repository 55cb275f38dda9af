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
    let rules = Rules::read(calls, archs.iter().any(|arch| arch.multiplexes()))?;
    let sections = archs.iter().map(|arch| section(*arch, &rules, default));
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

/// The rules of a profile in its order, and which of them are for which call.
#[derive(Debug)]
struct Rules {
    all: Vec<Rule>,
    entries: Vec<Entry>,
    /// By the place of a call: its first and its last entry.
    chains: Vec<Option<(u32, u32)>>,
}

/// A rule for one call.
#[derive(Debug)]
struct Entry {
    rule: u32,
    /// It is for those architectures only on which other calls can be made through this one.
    multiplexed: bool,
    /// The next one for the same call.
    next: Option<u32>,
}

impl Rules {
    fn read(calls: &[LinuxSyscall], multiplexes: bool) -> Result<Self> {
        let count = calls.iter().map(|call| call.names().len()).sum();
        let mut rules = Self {
            all: Vec::with_capacity(calls.len()),
            entries: Vec::with_capacity(count),
            chains: vec![None; Call::COUNT],
        };
        for (index, call) in calls.iter().enumerate() {
            let value = action(call.action(), call.errno_ret())
                .map_err(|reason| Error::new(format!("linux.seccomp.syscalls[{index}].errnoRet"), reason))?;
            let alternatives = alternatives(call, index)?;
            let general = alternatives.is_empty();
            let own = rules.add(Rule { alternatives, value });
            for call in call.names().iter().filter_map(|name| Call::find(name)) {
                rules.append(call, own, false);
                // A 32-bit program may make a socket call through `socketcall`: it must meet the same rule there. What such
                // a call's arguments are cannot be seen by a filter, so rules with conditions stay with the direct call.
                if general
                    && multiplexes
                    && let Some((through, which)) = call.multiplexed()
                {
                    let condition = Condition { argument: 0, test: Test::Equal(which) };
                    let rule = rules.add(Rule { alternatives: vec![vec![condition]], value });
                    rules.append(through, rule, true);
                }
            }
        }
        Ok(rules)
    }

    /// The place of a rule in the list of all.
    fn add(&mut self, rule: Rule) -> u32 {
        self.all.push(rule);
        place(self.all.len())
    }

    fn append(&mut self, call: Call, rule: u32, multiplexed: bool) {
        self.entries.push(Entry { rule, multiplexed, next: None });
        let own = place(self.entries.len());
        let chain = &mut self.chains[call.place()];
        if let Some((_, last)) = *chain {
            self.entries[last as usize].next = Some(own);
        }
        *chain = Some((chain.map_or(own, |(first, _)| first), own));
    }

    /// The answer to one call, which may have a second name; `None` where the profile does not speak of it. It is asked for
    /// a thousand calls, and most have one rule and no conditions.
    fn leaf(&self, call: Call, other_name: Option<Call>, arch: Arch, default: u32) -> Option<Leaf<'_>> {
        if other_name.is_none() {
            let (first, last) = self.chains[call.place()]?;
            let entry = &self.entries[first as usize];
            let rule = &self.all[entry.rule as usize];
            if first == last && !entry.multiplexed && rule.alternatives.is_empty() {
                return Some(Leaf::Answer(rule.value));
            }
        }
        let names = [Some(call), other_name].into_iter().flatten();
        let mut found: Vec<u32> = names.flat_map(|call| self.of(call, arch)).collect();
        found.sort_unstable();
        if found.is_empty() { None } else { Some(leaf(&found, &self.all, default)) }
    }

    /// The rules for a call on an architecture, in the order of the profile.
    fn of(&self, call: Call, arch: Arch) -> impl Iterator<Item = u32> {
        let entry = |at: u32| &self.entries[at as usize];
        let first = self.chains[call.place()].map(|(first, _)| entry(first));
        let all = std::iter::successors(first, move |this| this.next.map(entry));
        all.filter(move |entry| !entry.multiplexed || arch.multiplexes()).map(|entry| entry.rule)
    }
}

/// The place of the last of so many. A profile with 2^32 rules does not fit into memory.
fn place(count: usize) -> u32 {
    u32::try_from(count - 1).unwrap_or(u32::MAX)
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
fn section<'a>(arch: Arch, rules: &'a Rules, default: u32) -> Section<'a> {
    let kept = matches!(default & 0xffff_0000, RET_ERRNO | RET_TRAP | RET_KILL_PROCESS) || default == RET_KILL_THREAD;
    let mut ranges: Vec<Range<'_>> = Vec::with_capacity(256);
    let mut last = None;
    let mut push = |start: u32, leaf: Leaf<'a>| {
        let answer = if let Leaf::Answer(value) = leaf { Some(value) } else { None };
        if answer.is_none() || answer != last {
            ranges.push(Range { start, leaf });
            last = answer;
        }
    };
    let mut next = 0;
    let mut calls = Call::in_order(arch).peekable();
    while let Some((call, number)) = calls.next() {
        let other_name = calls.next_if(|(_, following)| *following == number).map(|(call, _)| call);
        let Some(leaf) = rules.leaf(call, other_name, arch, default) else { continue };
        if number > next {
            push(next, Leaf::Answer(default));
        }
        push(number, leaf);
        next = number + 1;
    }
    let above = if kept && next > 0 { RET_ENOSYS } else { default };
    push(next, Leaf::Answer(above));
    Section { arch, ranges }
}

/// The answer to one call; conditions that change nothing are left out.
fn leaf<'a>(of_one: &[u32], rules: &'a [Rule], default: u32) -> Leaf<'a> {
    let mut conditional: Vec<(&[Condition], u32)> = Vec::new();
    let mut general = None;
    for rule in of_one.iter().map(|at| &rules[*at as usize]) {
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
