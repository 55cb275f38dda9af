//! What must be true of processes that came back, before they run.
//!
//! Images say who a process is and what it sees. Whoever made them could have asked for any capability, another
//! namespace, or a `/proc` without its masks. So the result is held against the bundle while criu still holds it.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, stat};
use oci_spec::runtime::Spec;
use rung_sys::capabilities::CapabilitySet;
use rung_sys::mount::attribute;
use rung_sys::mountinfo::Mounted;
use rung_sys::namespace::Namespace;
use rung_sys::process::Pid;

use super::external::{External, mounted_at, table_of};
use crate::error::{Doing as _, Error, Kind, Result};
use crate::plan::InitPlan;
use crate::plan::extensions::is_filtered;
use crate::plan::ids::IdMaps;

/// `CAP_SYS_ADMIN`: a container that has it may mount what it likes.
const SYS_ADMIN: u8 = 21;

/// File systems that show nothing but what their owner has put into them.
const HARMLESS: [&str; 4] = ["tmpfs", "mqueue", "devpts", "ramfs"];

/// Holds all processes of a restored container, the first one first, against its configuration.
pub fn check(plan: &InitPlan, spec: &Spec, external: &[External], init: Pid, all: &[Pid]) -> Result<()> {
    let refuse =
        |error: Error| error.while_doing("the checkpoint does not match the bundle").with_kind(Kind::Permission);
    namespaces(plan, init).map_err(refuse)?;
    if let Some(maps) = &plan.ids {
        id_maps(maps, init).map_err(refuse)?;
    }
    for pid in all {
        process(plan, spec, init, *pid).map_err(refuse)?;
    }
    if plan.namespaces.makes(Namespace::Mount) {
        mounts(plan, external, init).map_err(refuse)?;
    }
    Ok(())
}

fn mismatch(what: impl Into<String>) -> Error {
    Error::new(Kind::Permission, what)
}

/// The inode of a namespace, which is its identity.
fn identity(pid: &str, kind: Namespace) -> Result<u64> {
    let path = format!("/proc/{pid}/ns/{}", kind.proc_name());
    Ok(stat(path.as_str()).doing(|| format!("look at {path}"))?.st_ino)
}

fn namespaces(plan: &InitPlan, init: Pid) -> Result<()> {
    let pid = init.to_string();
    for kind in Namespace::ALL {
        let (own, found) = (identity("self", kind)?, identity(&pid, kind)?);
        let joined = plan.namespaces.join.iter().find(|(joined, _)| *joined == kind);
        let right = match joined {
            Some((_, path)) => stat(path).doing(|| format!("look at {}", path.display()))?.st_ino == found,
            None if plan.namespaces.makes(kind) => own != found,
            // criu puts what it restores into time namespaces, to keep the clocks going.
            None => own == found || kind == Namespace::Time,
        };
        if !right {
            return Err(mismatch(format!("process {pid} is in another {} namespace", kind.proc_name())));
        }
    }
    Ok(())
}

fn id_maps(maps: &IdMaps, init: Pid) -> Result<()> {
    for (file, ranges) in [("uid_map", &maps.uids), ("gid_map", &maps.gids)] {
        let path = format!("/proc/{init}/{file}");
        let text = std::fs::read_to_string(&path).doing(|| format!("read {path}"))?;
        let numbers: Vec<u32> = text.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect();
        let mut found: Vec<&[u32]> = numbers.chunks(3).collect();
        let wanted: Vec<[u32; 3]> = ranges.iter().map(|range| [range.inside, range.outside, range.count]).collect();
        let mut wanted: Vec<&[u32]> = wanted.iter().map(<[u32; 3]>::as_slice).collect();
        found.sort_unstable();
        wanted.sort_unstable();
        if found != wanted {
            return Err(mismatch(format!("{path} is not as configured")));
        }
    }
    Ok(())
}

/// What one process may do. Namespaces and rights are those of a thread.
fn process(plan: &InitPlan, spec: &Spec, init: Pid, pid: Pid) -> Result<()> {
    for thread in threads(pid)? {
        let number = format!("{pid}/task/{thread}");
        let path = format!("/proc/{number}/status");
        let status = std::fs::read(&path).doing(|| format!("read {path}"))?;
        // The name of a thread is any bytes.
        let status = String::from_utf8_lossy(&status);
        let status = Status(&status);
        if status.is_dead() {
            continue;
        }
        // The first one is where it is to be; what it joined by a path may be the host's.
        for kind in [Namespace::Pid, Namespace::Mount, Namespace::User, Namespace::Network, Namespace::Ipc] {
            let of_the_host = identity("self", kind)?;
            if of_the_host == identity(&number, kind)? && of_the_host != identity(&init.to_string(), kind)? {
                return Err(mismatch(format!("process {pid} is in the {} namespace of the host", kind.proc_name())));
            }
        }
        // In a user namespace that it made itself, a process has all rights, and none of them counts outside.
        let own_user = identity(&number, Namespace::User)? == identity(&init.to_string(), Namespace::User)?;
        rights(plan, spec, pid, &status, own_user)?;
    }
    Ok(())
}

fn rights(plan: &InitPlan, spec: &Spec, pid: Pid, status: &Status<'_>, own_user: bool) -> Result<()> {
    let allowed = bounding(plan);
    for field in ["CapBnd", "CapPrm", "CapEff", "CapInh", "CapAmb"] {
        if own_user && !status.capabilities(field).without(allowed).is_empty() {
            return Err(mismatch(format!(
                "process {pid} has capabilities that the configuration does not give ({field})"
            )));
        }
    }
    if no_new_privileges(plan) && status.number("NoNewPrivs") != Some(1) {
        return Err(mismatch(format!("process {pid} may gain privileges")));
    }
    let filtered = is_filtered(spec);
    if filtered && crate::container::create::filter(spec)?.0.is_some() && status.number("Seccomp") != Some(2) {
        return Err(mismatch(format!("process {pid} has no seccomp filter")));
    }
    Ok(())
}

/// Whether processes of this plan give up gaining privileges.
pub fn no_new_privileges(plan: &InitPlan) -> bool {
    plan.process.spec.no_new_privileges() == Some(true)
}

/// A process and all that descend from it, itself first.
pub fn family(first: Pid) -> Result<Vec<Pid>> {
    let mut all = vec![first];
    let mut next = 0;
    while let Some(pid) = all.get(next).copied() {
        next += 1;
        let Ok(threads) = threads(pid) else { continue };
        for thread in threads {
            let path = format!("/proc/{pid}/task/{thread}");
            let children = match std::fs::read_to_string(format!("{path}/children")) {
                // Who has ended has no children.
                Err(_) if !Path::new(&path).exists() => continue,
                other => other.doing(|| format!("read {path}/children"))?,
            };
            all.extend(children.split_ascii_whitespace().filter_map(|word| word.parse().ok()).map(Pid::from_raw));
        }
    }
    Ok(all)
}

fn threads(pid: Pid) -> Result<Vec<i32>> {
    let path = format!("/proc/{pid}/task");
    let doing = || format!("read {path}");
    let entries = std::fs::read_dir(&path).doing(doing)?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_str().and_then(|name| name.parse().ok())));
    let names: std::io::Result<Option<Vec<i32>>> = names.collect();
    names.doing(doing)?.ok_or_else(|| Error::new(Kind::Internal, format!("{path}: not only numbers")))
}

fn bounding(plan: &InitPlan) -> CapabilitySet {
    let names = plan.process.spec.capabilities().as_ref().and_then(|sets| sets.bounding().as_ref());
    let numbers = names.into_iter().flatten().filter_map(|name| rung_sys::capabilities::number(&name.to_string()));
    numbers.fold(CapabilitySet::EMPTY, CapabilitySet::with)
}

/// `/proc/<pid>/status`.
struct Status<'a>(&'a str);

impl Status<'_> {
    fn field(&self, name: &str) -> Option<&str> {
        self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    }

    /// Whether this thread has ended and is only waited for: it does nothing more, and has no namespaces.
    fn is_dead(&self) -> bool {
        self.field("State").is_some_and(|state| state.starts_with(['Z', 'X']))
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.field(name)?.parse().ok()
    }

    /// What is missing or cannot be read counts as everything.
    fn capabilities(&self, name: &str) -> CapabilitySet {
        let bits = self.field(name).and_then(|text| u64::from_str_radix(text, 16).ok()).unwrap_or(u64::MAX);
        (0..64).filter(|number| bits >> number & 1 == 1).fold(CapabilitySet::EMPTY, CapabilitySet::with)
    }
}

/// What the first process sees: nothing that the configuration does not have, and all that it hides hidden.
fn mounts(plan: &InitPlan, external: &[External], init: Pid) -> Result<()> {
    let path = format!("/proc/{init}/root");
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = open(path.as_str(), flags, Mode::empty()).doing(|| format!("open {path}"))?;
    let table = table_of(init)?;
    let seen = Seen { root, table: &table };
    if plan.root.read_only && !seen.top("/").is_some_and(is_read_only) {
        return Err(mismatch("the root file system is writable"));
    }
    for step in plan.mounts.iter().filter(|step| step.options.set & attribute::RDONLY != 0) {
        if seen.at(&step.destination)?.is_some_and(|mount| !is_read_only(mount)) {
            return Err(mismatch(format!("{} is writable", step.destination.display())));
        }
    }
    for path in &plan.read_only {
        if seen.exists(path) && !seen.at(path)?.is_some_and(is_read_only) {
            return Err(mismatch(format!("{} is not read-only", path.display())));
        }
    }
    for path in &plan.masked {
        if seen.exists(path) && !seen.at(path)?.is_some_and(is_mask) {
            return Err(mismatch(format!("{} is not masked", path.display())));
        }
    }
    if bounding(plan).has(SYS_ADMIN) { Ok(()) } else { unexpected(plan, external, &seen) }
}

/// A second `/proc` would be one without masks, and a file system of the host one without limits.
fn unexpected(plan: &InitPlan, external: &[External], seen: &Seen<'_>) -> Result<()> {
    let configured = plan.mounts.iter().map(|step| step.destination.as_path());
    let external = external.iter().map(|external| external.destination.as_path());
    let read_only = plan.read_only.iter().map(PathBuf::as_path);
    let mut known = vec![PathBuf::from("/")];
    for path in configured.chain(external).chain(read_only).chain([Path::new("/dev/console")]) {
        known.extend(seen.at(path)?.map(|mount| mount.point.clone()));
    }
    // What was bound with all that is mounted below it comes with that.
    let mut trees = Vec::new();
    for step in plan.mounts.iter().filter(|step| step.options.recursive_bind) {
        trees.extend(seen.at(&step.destination)?.map(|mount| mount.point.clone()));
    }
    let stranger = seen.table.iter().find(|mount| {
        let explained = known.contains(&mount.point) || trees.iter().any(|tree| mount.point.starts_with(tree));
        !explained && !HARMLESS.contains(&mount.kind.as_str())
    });
    match stranger {
        None => Ok(()),
        Some(mount) => Err(mismatch(format!("a {} is mounted at {}", mount.kind, mount.point.display()))),
    }
}

/// A process's view of its mounts.
struct Seen<'a> {
    root: OwnedFd,
    table: &'a [Mounted],
}

impl<'a> Seen<'a> {
    fn top(&self, point: &str) -> Option<&'a Mounted> {
        self.table.iter().rev().find(|mount| mount.point == Path::new(point))
    }

    fn at(&self, path: &Path) -> Result<Option<&'a Mounted>> {
        let id = mounted_at(self.root.as_fd(), path)?;
        Ok(id.and_then(|id| self.table.iter().find(|mount| mount.id == id)))
    }

    fn exists(&self, path: &Path) -> bool {
        crate::init::target::find(self.root.as_fd(), path, true).is_ok()
    }
}

fn is_read_only(mount: &Mounted) -> bool {
    mount.options.iter().any(|option| option == "ro")
}

/// An empty file system, or a null device.
fn is_mask(mount: &Mounted) -> bool {
    let null = mount.root == Path::new("/null") && matches!(mount.kind.as_str(), "devtmpfs" | "tmpfs");
    null || (HARMLESS.contains(&mount.kind.as_str()) && is_read_only(mount))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_found() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let found = family(Pid::this()).unwrap();
        assert_eq!(found[0], Pid::this());
        assert!(found.contains(&Pid::from_raw(i32::try_from(child.id()).unwrap())));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn what_cannot_be_read_is_everything() {
        let status = Status("Name:\tx\nCapBnd:\t0000000000200000\nNoNewPrivs:\t1\n");
        assert!(status.capabilities("CapBnd").has(SYS_ADMIN));
        assert!(!status.capabilities("CapBnd").has(0));
        assert!(status.capabilities("CapPrm").has(0));
        assert_eq!(status.number("NoNewPrivs"), Some(1));
        assert_eq!(status.number("Seccomp"), None);
        assert!(!status.is_dead());
    }

    #[test]
    fn who_is_only_waited_for_is_dead() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let path = format!("/proc/{}/status", child.id());
        assert!(!Status(&std::fs::read_to_string(&path).unwrap()).is_dead());
        child.kill().unwrap();
        while !Status(&std::fs::read_to_string(&path).unwrap()).is_dead() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        child.wait().unwrap();
    }
}
