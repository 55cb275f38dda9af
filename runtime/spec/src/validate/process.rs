//! Rules of processes.

use crate::config::{LinuxSchedulerPolicy as Policy, Process, Scheduler};

use super::linux::is_number_list;
use super::{Found, Violation};

pub(super) fn check(process: &Process, at: &str, found: &mut Found) {
    program_is_named(process, at, found);
    directory_is_absolute(process, at, found);
    variables_are_named(process.env().as_deref().unwrap_or_default(), &format!("{at}.env"), found);
    limits_are_given_once(process, at, found);
    oom_score_is_in_range(process, at, found);
    mode_mask_is_a_mode(process, at, found);
    ids_are_ids(process, at, found);
    io_priority_is_in_range(process, at, found);
    affinity_is_a_list(process, at, found);
    if let Some(scheduler) = process.scheduler() {
        nice_is_in_range(scheduler, at, found);
        priority_fits_policy(scheduler, at, found);
        deadlines_fit_policy(scheduler, at, found);
    }
}

fn program_is_named(process: &Process, at: &str, found: &mut Found) {
    let args = process.args().as_deref().unwrap_or_default();
    if args.is_empty() {
        found.push(Violation::new(format!("{at}.args"), "args must not be empty"));
    }
    if let Some(index) = args.iter().position(|arg| arg.contains('\0')) {
        found.push(Violation::new(format!("{at}.args[{index}]"), "contains a zero byte"));
    }
}

fn directory_is_absolute(process: &Process, at: &str, found: &mut Found) {
    let cwd = process.cwd();
    if cwd.as_os_str().is_empty() {
        found.push(Violation::new(format!("{at}.cwd"), "Cwd property must not be empty"));
    } else if !cwd.is_absolute() {
        found.push(Violation::new(format!("{at}.cwd"), "Cwd must be an absolute path"));
    }
}

pub(super) fn variables_are_named(env: &[String], at: &str, found: &mut Found) {
    for (index, entry) in env.iter().enumerate() {
        if let Some(reason) = wrong_variable(entry) {
            found.push(Violation::new(format!("{at}[{index}]"), reason));
        }
    }
}

/// What is wrong with an entry of an environment, if anything is.
pub fn wrong_variable(entry: &str) -> Option<String> {
    let reason = match entry.split_once('=') {
        None => "missing '='",
        Some(("", _)) => "name cannot be empty",
        Some(_) if entry.contains('\0') => "contains nul byte (\\x00)",
        Some(_) => return None,
    };
    Some(format!("invalid environment variable: {reason}: {entry:?}"))
}

fn limits_are_given_once(process: &Process, at: &str, found: &mut Found) {
    let limits = process.rlimits().as_deref().unwrap_or_default();
    for (index, limit) in limits.iter().enumerate() {
        let path = format!("{at}.rlimits[{index}]");
        if limits[..index].iter().any(|before| before.typ() == limit.typ()) {
            found.push(Violation::new(format!("{path}.type"), format!("{} is given twice", limit.typ())));
        }
        if limit.soft() > limit.hard() {
            let reason = format!("{} is more than the hard limit {}", limit.soft(), limit.hard());
            found.push(Violation::new(format!("{path}.soft"), reason));
        }
    }
}

fn oom_score_is_in_range(process: &Process, at: &str, found: &mut Found) {
    if let Some(score) = process.oom_score_adj().filter(|score| !(-1000..=1000).contains(score)) {
        found.push(Violation::new(format!("{at}.oomScoreAdj"), format!("{score} is not between -1000 and 1000")));
    }
}

fn mode_mask_is_a_mode(process: &Process, at: &str, found: &mut Found) {
    if let Some(mask) = process.user().umask().filter(|&mask| mask > 0o777) {
        found.push(Violation::new(format!("{at}.user.umask"), format!("{mask} has bits beyond 0777")));
    }
}

/// All bits set is no id: to the calls that set ids it says to leave them as they are, which is the runtime's own.
fn ids_are_ids(process: &Process, at: &str, found: &mut Found) {
    let user = process.user();
    let more = user.additional_gids().iter().flatten().enumerate();
    let more = more.map(|(index, id)| (format!("additionalGids[{index}]"), *id));
    for (field, id) in [("uid".to_owned(), user.uid()), ("gid".to_owned(), user.gid())].into_iter().chain(more) {
        if id == u32::MAX {
            found.push(Violation::new(format!("{at}.user.{field}"), format!("{id} is the number of nobody")));
        }
    }
}

fn io_priority_is_in_range(process: &Process, at: &str, found: &mut Found) {
    if let Some(io) = process.io_priority().filter(|io| !(0..=7).contains(&io.priority())) {
        let reason = format!("invalid ioPriority.priority: {} is not between 0 and 7", io.priority());
        found.push(Violation::new(format!("{at}.ioPriority.priority"), reason));
    }
}

fn affinity_is_a_list(process: &Process, at: &str, found: &mut Found) {
    let Some(affinity) = process.exec_cpu_affinity() else { return };
    for (field, list) in [("initial", affinity.initial()), ("final", affinity.cpu_affinity_final())] {
        if let Some(list) = list.as_deref().filter(|list| !list.is_empty() && !is_number_list(list)) {
            let path = format!("{at}.execCPUAffinity.{field}");
            found.push(Violation::new(path, format!("{list:?} is no list of processors (0-3,7)")));
        }
    }
}

fn nice_is_in_range(scheduler: &Scheduler, at: &str, found: &mut Found) {
    if let Some(nice) = scheduler.nice().filter(|nice| !(-20..=19).contains(nice)) {
        let reason = format!("invalid scheduler.nice: {nice} is not between -20 and 19");
        found.push(Violation::new(format!("{at}.scheduler.nice"), reason));
    }
}

fn priority_fits_policy(scheduler: &Scheduler, at: &str, found: &mut Found) {
    let realtime = matches!(scheduler.policy(), Policy::SchedFifo | Policy::SchedRr);
    let Some(priority) = scheduler.priority().filter(|&n| n != 0) else { return };
    let path = format!("{at}.scheduler.priority");
    if !realtime {
        found.push(Violation::new(path, "can only be specified for SCHED_FIFO or SCHED_RR policy"));
    } else if !(1..=99).contains(&priority) {
        found.push(Violation::new(path, format!("{priority} is not between 1 and 99")));
    }
}

fn deadlines_fit_policy(scheduler: &Scheduler, at: &str, found: &mut Found) {
    if *scheduler.policy() == Policy::SchedDeadline {
        return;
    }
    let fields = [("runtime", scheduler.runtime()), ("deadline", scheduler.deadline()), ("period", scheduler.period())];
    for (name, value) in fields {
        if value.is_some_and(|n| n != 0) {
            let reason = "can only be specified for SCHED_DEADLINE policy";
            found.push(Violation::new(format!("{at}.scheduler.{name}"), reason));
        }
    }
}
