//! Making the process: flags, namespaces that only hold for children, and the way back.

use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rung_sys::namespace::{self, Namespace};
use rung_sys::pidfd;
use rung_sys::process::{CloneRequest, Exit, Forked, Pid, Target, clone, exit_now, wait};

use super::sync::{self, ChildEnd, SILENCE};
use crate::error::{Doing as _, Error, Kind, Result};
use crate::plan::namespaces::NamespacePlan;

/// Opens the namespaces that are joined by path and checks their kinds.
pub fn open_joined(plan: &NamespacePlan) -> Result<Vec<(Namespace, OwnedFd)>> {
    let mut opened = Vec::with_capacity(plan.join.len());
    for (kind, path) in &plan.join {
        opened.push((*kind, open_one(*kind, path)?));
    }
    sort(&mut opened);
    Ok(opened)
}

/// Puts the user namespace last: with the rights of root on the host all others can be joined, whoever owns them, and
/// those rights end in the user namespace. A runtime without them goes through [`in_two_steps`], where it comes first.
pub fn sort(list: &mut [(Namespace, OwnedFd)]) {
    list.sort_by_key(|(kind, _)| match kind {
        Namespace::User => 2,
        Namespace::Mount => 1,
        _ => 0,
    });
}

fn open_one(kind: Namespace, path: &Path) -> Result<OwnedFd> {
    let name = kind.proc_name();
    let wrong = || format!("linux.namespaces: {} is no {name} namespace", path.display());
    let file = File::open(path).doing(|| format!("linux.namespaces: open {name} namespace {}", path.display()))?;
    match namespace_kind(file.as_fd()) {
        Some(found) if found == kind => Ok(file.into()),
        _ => Err(Error::invalid(wrong())),
    }
}

fn namespace_kind(fd: BorrowedFd<'_>) -> Option<Namespace> {
    Namespace::of(fd).ok().flatten()
}

/// Where the new process starts: its namespaces and its cgroup.
#[derive(Debug, Clone, Copy)]
pub struct Placement<'a> {
    /// `CLONE_NEW…` flags of the namespaces that are made with it.
    pub flags: u64,
    /// Namespaces to join. PID and time namespaces hold only for children, so this process enters them before it clones.
    pub joined: &'a [(Namespace, OwnedFd)],
    /// Offsets of a new time namespace, which must be written before anybody is in it. With a new user namespace the
    /// process makes its time namespace itself, with the rights that it has in there.
    pub time_offsets: Option<&'a str>,
    /// The cgroup that it is cloned into, unless it is made in two steps.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// A process in between makes it: the joined user namespace must be entered before the others can be made or joined,
    /// or there is no way back from the process numbers, which root of a user namespace may enter but not return from.
    pub by_another: bool,
}

/// Makes the process. It runs `child`, which is told which namespaces are joined already, and ends with the code that
/// this returns.
pub fn make_process(
    placement: &Placement<'_>,
    sync: &ChildEnd,
    child: impl FnOnce(&[Namespace]) -> u8,
) -> Result<Newborn> {
    if placement.by_another {
        return in_two_steps(placement, None, sync, || Ok(()), child);
    }
    let entered = enter_for_children(placement)?;
    let request = CloneRequest { flags: placement.flags, into_cgroup: placement.cgroup };
    let into = if placement.cgroup.is_some() { " into its cgroup" } else { "" };
    let forked = clone(&request).doing(|| format!("clone the container's process{into}"));
    if matches!(forked, Ok(Forked::Child)) {
        exit_now(child(&[Namespace::Pid]));
    }
    for kind in entered {
        // Opened only now: the new process must not have a descriptor of a namespace of the host.
        let path = format!("/proc/self/ns/{}", kind.proc_name());
        let own = File::open(&path).doing(|| format!("open {path}"))?;
        namespace::enter(own.as_fd(), kind.flag())
            .doing(|| format!("return from the {} namespace", kind.proc_name()))?;
    }
    match forked? {
        Forked::Parent { pid, pidfd } => Ok(Newborn::Direct(pid, pidfd)),
        Forked::Child => exit_now(1),
    }
}

/// A process that was made.
#[derive(Debug)]
pub enum Newborn {
    /// It is a child of this process.
    Direct(Pid, OwnedFd),
    /// A process in between has announced it and ended.
    Announced,
}

/// Enters the namespaces that hold only for children, and returns their kinds: this process goes back to its own
/// afterwards.
fn enter_for_children(placement: &Placement<'_>) -> Result<Vec<Namespace>> {
    let mut entered = Vec::new();
    if let Some((_, pid_namespace)) = placement.joined.iter().find(|(kind, _)| *kind == Namespace::Pid) {
        namespace::enter(pid_namespace.as_fd(), Namespace::Pid.flag()).doing(|| "join the pid namespace")?;
        entered.push(Namespace::Pid);
    }
    if let Some(offsets) = placement.time_offsets {
        make_time_namespace(offsets)?;
        entered.push(Namespace::Time);
    }
    Ok(entered)
}

/// Makes a time namespace for children of this process.
pub fn make_time_namespace(offsets: &str) -> Result<()> {
    namespace::leave(Namespace::Time.flag()).doing(|| "make a time namespace")?;
    let path = "/proc/self/timens_offsets";
    let written = std::fs::OpenOptions::new().write(true).open(path);
    written
        .and_then(|mut file| std::io::Write::write_all(&mut file, offsets.as_bytes()))
        .doing(|| format!("linux.timeOffsets: write {offsets:?} to {path}"))
}

/// A process in between joins the namespaces, does what `prepare` does while the container cannot look at it, makes the
/// container's process as its sibling, and ends. It is born in `birthplace`, a v2 cgroup. An error says that there is no
/// process; there may be one without a birthplace, where the cgroup lets in who enters but is too full for two.
pub fn in_two_steps(
    placement: &Placement<'_>,
    birthplace: Option<OwnedFd>,
    sync: &ChildEnd,
    prepare: impl FnOnce() -> Result<()>,
    child: impl FnOnce(&[Namespace]) -> u8,
) -> Result<Newborn> {
    /// `CLONE_PARENT`: the new process is a child of our parent, not of ours.
    const SIBLING: u64 = 0x8000;
    /// The code of a process in between that could not make the other.
    const NOT_CLONED: u8 = 2;
    let born = birthplace.is_some();
    let request = CloneRequest { flags: 0, into_cgroup: birthplace.as_ref().map(OwnedFd::as_fd) };
    match clone(&request).doing(|| "clone a process in between")? {
        Forked::Parent { pid, pidfd } => match end_of(pid, &pidfd)? {
            Some(Exit::Code(code)) if code == i32::from(NOT_CLONED) => {
                Err(Error::new(Kind::Internal, "the cgroup has no room for another process"))
            }
            _ => Ok(Newborn::Announced),
        },
        Forked::Child => {
            drop(birthplace);
            let request = CloneRequest { flags: placement.flags | SIBLING, into_cgroup: None };
            let step = || -> Result<(Result<Forked>, Vec<Namespace>)> {
                let joined = join_in_between(placement)?;
                prepare()?;
                Ok((clone(&request).doing(|| "clone the container's process"), joined))
            };
            match step() {
                Ok((Ok(Forked::Child), joined)) => exit_now(child(&joined)),
                Ok((Ok(Forked::Parent { pid, .. }), _)) => exit_now(u8::from(sync.forked(pid.as_raw()).is_err())),
                Ok((Err(_), _)) if born => exit_now(NOT_CLONED),
                Err(error) | Ok((Err(error), _)) => {
                    sync.failed(&error);
                    exit_now(1)
                }
            }
        }
    }
}

/// How the process in between ended. It waits for nobody, but it may be frozen with the cgroup that it is in.
fn end_of(pid: Pid, pidfd: &OwnedFd) -> Result<Option<Exit>> {
    if !pidfd::wait_exit(pidfd.as_fd(), SILENCE)? {
        pidfd::send_signal(pidfd.as_fd(), libc::SIGKILL)?;
        return Err(sync::silent());
    }
    Ok(wait(Target::Pid(pid), true)?.map(|(_, exit)| exit))
}

/// Joins what the rights on the host allow, then the user namespace, then, with the rights inside, the PID namespace.
/// The rest is left to the container's process, which has those rights too.
fn join_in_between(placement: &Placement<'_>) -> Result<Vec<Namespace>> {
    let mut joined = Vec::new();
    for (kind, fd) in placement.joined {
        match namespace::enter(fd.as_fd(), kind.flag()) {
            Ok(()) => joined.push(*kind),
            Err(error) if error.errno() == libc::EPERM && *kind != Namespace::User => {}
            Err(error) => return Err(error).doing(|| format!("join the {} namespace", kind.proc_name())),
        }
    }
    if !joined.contains(&Namespace::Pid) {
        enter_for_children(placement)?;
        joined.push(Namespace::Pid);
    } else if placement.time_offsets.is_some() {
        enter_for_children(&Placement { joined: &[], ..*placement })?;
    }
    Ok(joined)
}

/// The number and the descriptor of what [`make_process`] made.
pub fn claim(newborn: Newborn, announced: impl FnOnce() -> Result<i32>) -> Result<(Pid, OwnedFd)> {
    match newborn {
        Newborn::Direct(pid, pidfd) => Ok((pid, pidfd)),
        Newborn::Announced => {
            let pid = Pid::from_raw(announced()?);
            let pidfd =
                pidfd::open(pid).map_err(|_| Error::new(Kind::Internal, "the container's process ended at once"))?;
            Ok((pid, pidfd))
        }
    }
}
