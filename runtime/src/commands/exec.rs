//! `exec`.

use std::os::fd::AsFd as _;

use oci_spec::runtime::{Capabilities, LinuxCapabilities, Process, Spec};
use rung_spec::{config, validate};

use crate::cli::ExecArgs;
use crate::container::create::{check_console, write_pid_file};
use crate::container::exec::{self, Options};
use crate::container::foreground::Foreground;
use crate::container::id::ContainerId;
use crate::container::{Container, Settings, sockets};
use crate::error::{Doing as _, Error, Result};
use crate::exe;
use crate::launch::NOT_STARTED;
use crate::log;
use crate::plan::Wishes;

/// What a failure before the program runs ends with: programs themselves rarely do.
const FAILED: u8 = 255;

pub(super) fn run(settings: &Settings, args: ExecArgs) -> Result<u8> {
    run_inner(settings, args).doing(|| "exec failed").map_err(|error| error.with_exit_code(FAILED))
}

fn run_inner(settings: &Settings, args: ExecArgs) -> Result<u8> {
    exe::protect()?;
    let container = Container::load(&settings.store, &ContainerId::parse(&args.id)?)?;
    for number in 3..args.preserve_fds.saturating_add(3) {
        super::create::require_open(number)?;
    }
    let spec = container.record.spec()?;
    let process = process(&container, &spec, &args)?;
    let terminal = process.terminal().unwrap_or(false);
    check_console(args.detach, terminal, args.console_socket.as_deref())?;
    let foreground = if args.detach { None } else { Some(Foreground::prepare(false)?) };
    let options = Options {
        wishes: Wishes { preserve_fds: args.preserve_fds, ..Wishes::default() },
        ignore_paused: args.ignore_paused,
        cgroups: args.cgroup.clone(),
    };
    let cause = |error| exec::cause(&container, error);
    let mut started = exec::start(&container, &spec, process, &options).map_err(cause)?;
    let mut finish = || -> Result<()> {
        if let (Some(socket), Some(console)) = (&args.console_socket, &started.console) {
            sockets::send_console(socket, console)?;
        } else if let Some(console) = &started.console {
            // Before the program writes its first line.
            rung_sys::tty::clear_newline_translation(console.as_fd()).doing(|| "set the terminal up")?;
        }
        if let Some(socket) = &args.pidfd_socket {
            sockets::send_pidfd(socket, &started.pidfd, "setns")?;
        }
        if let Some(path) = &args.pid_file {
            write_pid_file(path, started.pid.as_raw())?;
        }
        started.go()?;
        started.executed().doing(|| NOT_STARTED)?.map_or(Ok(()), Err)
    };
    if let Err(error) = finish() {
        started.abort();
        return Err(cause(error));
    }
    match foreground {
        None => Ok(0),
        Some(foreground) => Ok(foreground.stay(&mut started, None)?.shell_code()),
    }
}

/// The process of `--process`, where what is left out is as for the container's own, or the bundle's with what the
/// flags say.
fn process(container: &Container, spec: &Spec, args: &ExecArgs) -> Result<Process> {
    if let Some(file) = &args.process {
        let text = std::fs::read_to_string(file).doing(|| format!("read {}", file.display()))?;
        let parsed = config::parse_process(&text).map_err(|error| Error::invalid(error.to_string()));
        let mut process = parsed.doing(|| format!("read {}", file.display()))?.value;
        if let Some(own) = spec.process() {
            complete(&mut process, own);
        }
        validate::check_process(&process).map_err(|violations| {
            let all: Vec<String> = violations.iter().map(ToString::to_string).collect();
            Error::invalid(format!("check {}: {}", file.display(), all.join("; ")))
        })?;
        return Ok(process);
    }
    if args.command.is_empty() {
        return Err(Error::invalid("exec args cannot be empty"));
    }
    let mut process = exec::base_process(container, spec)?;
    process.set_args(Some(args.command.clone()));
    process.set_terminal(Some(args.tty));
    // What is empty is not given, above all not as a wish to be less confined.
    if let Some(cwd) = args.cwd.as_ref().filter(|cwd| !cwd.as_os_str().is_empty()) {
        process.set_cwd(cwd.clone());
    }
    if let Some(profile) = args.apparmor.as_ref().filter(|profile| !profile.is_empty()) {
        process.set_apparmor_profile(Some(profile.clone()));
    }
    if let Some(label) = args.process_label.as_ref().filter(|label| !label.is_empty()) {
        process.set_selinux_label(Some(label.clone()));
    }
    if let Some(value) = args.no_new_privs {
        process.set_no_new_privileges(Some(value));
    }
    let mut env = process.env().clone().unwrap_or_default();
    env.extend(args.env.iter().cloned());
    process.set_env(Some(env));
    if let Some(user) = args.user.as_deref().filter(|user| !user.is_empty()) {
        let (uid, gid) = parse_user(user)?;
        process.user_mut().set_uid(uid);
        if let Some(gid) = gid {
            process.user_mut().set_gid(gid);
        }
    }
    if !args.additional_gids.is_empty() {
        let mut gids = process.user().additional_gids().clone().unwrap_or_default();
        gids.extend(&args.additional_gids);
        process.user_mut().set_additional_gids(Some(gids));
    }
    if !args.cap.is_empty() {
        let sets = process.capabilities().clone();
        process.set_capabilities(Some(add_capabilities(sets, &args.cap)?));
    }
    Ok(process)
}

/// A process that leaves out what confines it is as confined as the container's own. The umask is always the container's.
fn complete(process: &mut Process, own: &Process) {
    if process.capabilities().is_none() {
        process.set_capabilities(own.capabilities().clone());
    }
    if process.no_new_privileges().is_none() {
        process.set_no_new_privileges(own.no_new_privileges());
    }
    if process.apparmor_profile().as_deref().is_none_or(str::is_empty) {
        process.set_apparmor_profile(own.apparmor_profile().clone());
    }
    if process.selinux_label().as_deref().is_none_or(str::is_empty) {
        process.set_selinux_label(own.selinux_label().clone());
    }
    if process.rlimits().as_deref().is_none_or(<[_]>::is_empty) {
        process.set_rlimits(own.rlimits().clone());
    }
    if process.io_priority().is_none() {
        process.set_io_priority(*own.io_priority());
    }
    if process.scheduler().is_none() {
        process.set_scheduler(own.scheduler().clone());
    }
    if process.exec_cpu_affinity().is_none() {
        process.set_exec_cpu_affinity(own.exec_cpu_affinity().clone());
    }
    process.user_mut().set_umask(own.user().umask());
}

/// Numbers only, all digits, in range: a name or an overflow must never become another user.
fn parse_user(text: &str) -> Result<(u32, Option<u32>)> {
    let number = |part: &str, what: &str| {
        let digits = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        let parsed = part.parse::<u32>().ok().filter(|id| digits && *id != u32::MAX);
        parsed.ok_or_else(|| {
            Error::invalid(format!("parsing {part:?} as int for {what} failed: not a number from 0 to 4294967294"))
        })
    };
    match text.split_once(':') {
        Some((uid, gid)) => Ok((number(uid, "uid")?, Some(number(gid, "gid")?))),
        None => Ok((number(text, "uid")?, None)),
    }
}

/// Added to what a process can use at once; ambient only where the configuration lets something be inherited.
fn add_capabilities(sets: Option<LinuxCapabilities>, names: &[String]) -> Result<LinuxCapabilities> {
    let mut added = Capabilities::new();
    for name in names {
        match serde_json::from_value(serde_json::Value::from(name.as_str())) {
            Ok(capability) => drop(added.insert(capability)),
            // As in a configuration.
            Err(_) => log::warning(&format!("--cap: unknown capability {name} is ignored")),
        }
    }
    let sets = match sets {
        Some(sets) => sets,
        None => serde_json::from_str("{}").map_err(|error| Error::invalid(error.to_string()))?,
    };
    let with = |set: &Option<Capabilities>| {
        let mut set = set.clone().unwrap_or_default();
        set.extend(added.iter().copied());
        Some(set)
    };
    let mut result = sets.clone();
    result.set_bounding(with(sets.bounding()));
    result.set_effective(with(sets.effective()));
    result.set_permitted(with(sets.permitted()));
    if sets.inheritable().as_ref().is_some_and(|set| !set.is_empty()) {
        result.set_ambient(with(sets.ambient()));
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_numbers_in_range() {
        assert_eq!(parse_user("1").expect("valid"), (1, None));
        assert_eq!(parse_user("01:2147483648").expect("valid"), (1, Some(2_147_483_648)));
        for bad in ["", "root", "+0", "0x0", "4294967295", "4294967296", "1:", ":1", "1:web", "-1"] {
            assert!(parse_user(bad).is_err(), "{bad}");
        }
    }
}
