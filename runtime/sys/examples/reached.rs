//! Writes down which functions of a program run, for `scripts/hot-functions.sh`.
//!
//! Each function gets a breakpoint where it begins, which is taken away when it is reached. Children that the program
//! makes are followed until they execute another one.
//!
//! ```text
//! reached ADDRESSES PROGRAM [ARG...]     hexadecimal addresses, one a line; those that were reached go to stdout
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::ffi::{c_long, c_void};
use std::io::Write as _;
use std::process::{Command, Stdio};

use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// What stands at each address when there is no breakpoint.
type Code = BTreeMap<u64, u8>;

const BREAKPOINT: u8 = 0xcc;

fn main() -> Outcome<()> {
    let mut args = std::env::args().skip(1);
    let list = args.next().ok_or("usage: reached ADDRESSES PROGRAM [ARG...]")?;
    let addresses = std::fs::read_to_string(list)?;
    let addresses = addresses.lines().map(|line| u64::from_str_radix(line, 16)).collect::<Result<Vec<_>, _>>()?;
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "kill -STOP $$; exec \"$@\"", "sh"]).args(args);
    let stopped = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let traced = Pid::from_raw(i32::try_from(stopped.id())?);
    waitpid(traced, Some(WaitPidFlag::WUNTRACED))?;
    let children = Options::PTRACE_O_TRACEFORK | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_TRACEVFORK;
    ptrace::seize(traced, children | Options::PTRACE_O_TRACEEXEC | Options::PTRACE_O_EXITKILL)?;
    kill(traced, Signal::SIGCONT)?;
    let mut stdout = std::io::stdout().lock();
    for address in follow(traced, &addresses)? {
        writeln!(stdout, "{address:x}")?;
    }
    Ok(())
}

fn follow(traced: Pid, addresses: &[u64]) -> Outcome<BTreeSet<u64>> {
    let (mut code, mut reached) = (Code::new(), BTreeSet::new());
    loop {
        let (pid, signal) = match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::__WALL))? {
            WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _) if pid == traced => return Ok(reached),
            WaitStatus::PtraceEvent(pid, _, libc::PTRACE_EVENT_EXEC) if pid == traced => {
                // The program, or another copy of it from which it goes on.
                code = addresses.iter().map(|at| Ok((*at, replace(pid, *at, BREAKPOINT)?))).collect::<Outcome<_>>()?;
                (pid, None)
            }
            WaitStatus::PtraceEvent(pid, _, libc::PTRACE_EVENT_EXEC) => {
                ptrace::detach(pid, None)?;
                continue;
            }
            WaitStatus::PtraceEvent(pid, _, _) => (pid, None),
            WaitStatus::Stopped(pid, Signal::SIGTRAP) => {
                reached.extend(reach(pid, &code)?);
                (pid, None)
            }
            WaitStatus::Stopped(pid, signal) => (pid, Some(signal)),
            _ => continue,
        };
        ptrace::cont(pid, signal)?;
    }
}

/// Puts back what stood where a process has stopped, and lets it begin there again.
#[cfg(target_arch = "x86_64")]
fn reach(pid: Pid, code: &Code) -> Outcome<Option<u64>> {
    let mut registers = ptrace::getregs(pid)?;
    let Some((address, byte)) = code.get_key_value(&(registers.rip - 1)) else { return Ok(None) };
    replace(pid, *address, *byte)?;
    registers.rip = *address;
    ptrace::setregs(pid, registers)?;
    Ok(Some(*address))
}

#[cfg(not(target_arch = "x86_64"))]
fn reach(_: Pid, _: &Code) -> Outcome<Option<u64>> {
    Err("breakpoints are known on x86-64 only".into())
}

/// Replaces a byte of a process's memory and gives the one that was there.
fn replace(pid: Pid, address: u64, byte: u8) -> Outcome<u8> {
    let place = std::ptr::without_provenance_mut::<c_void>(usize::try_from(address & !7)?);
    let mut word = ptrace::read(pid, place)?.to_ne_bytes();
    let before = std::mem::replace(&mut word[usize::try_from(address & 7)?], byte);
    ptrace::write(pid, place, c_long::from_ne_bytes(word))?;
    Ok(before)
}
