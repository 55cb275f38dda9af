//! Id maps of user namespaces: of the container's, and of throwaway ones that translate mounts.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};

use rung_sys::idmap::{self, Range};
use rung_sys::namespace::Namespace;
use rung_sys::process::{CloneRequest, Forked, Pid, Target, clone, exit_now, wait};

use crate::error::{Doing as _, Error, Kind, Result};
use crate::log;
use crate::plan::ids::IdMaps;

/// Writes the maps of a process's new user namespace.
pub fn write(pid: Pid, maps: &IdMaps, rootless: bool) -> Result<()> {
    match idmap::write_uids(pid, &maps.uids) {
        Ok(()) => {}
        Err(error) if rootless && error.errno() == libc::EPERM => return with_programs(pid, maps),
        Err(error) => return Err(error).doing(|| "linux.uidMappings: write the user id map"),
    }
    let mut written = idmap::write_gids(pid, &maps.gids);
    if rootless && written.as_ref().is_err_and(|error| error.errno() == libc::EPERM) {
        if !is_own(&maps.gids) {
            return run("newgidmap", pid, &maps.gids);
        }
        // Who has no rights but to his own group has to give setgroups(2) up first.
        match idmap::deny_setgroups(pid) {
            Err(error) if error.errno() != libc::ENOENT => return Err(error).doing(|| "forbid setgroups"),
            _ => written = idmap::write_gids(pid, &maps.gids),
        }
    }
    written.doing(|| "linux.gidMappings: write the group id map")
}

/// Whether nothing but the caller's own group is mapped.
fn is_own(gids: &[Range]) -> bool {
    matches!(gids, [Range { outside, count: 1, .. }] if *outside == nix::unistd::getegid().as_raw())
}

/// The set-id programs grant what /etc/subuid and /etc/subgid allow.
fn with_programs(pid: Pid, maps: &IdMaps) -> Result<()> {
    run("newuidmap", pid, &maps.uids)?;
    run("newgidmap", pid, &maps.gids)
}

fn run(program: &str, pid: Pid, ranges: &[Range]) -> Result<()> {
    let mut command = Command::new(program);
    command.arg(pid.to_string());
    for range in ranges {
        command.args([range.inside, range.outside, range.count].map(|number| number.to_string()));
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let child = rung_sys::spawn::cleanly(&mut command).spawn();
    let child = match child {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let message = format!("{program} is needed to map more than the own id (install the uidmap package)");
            return Err(Error::new(Kind::Unsupported, message));
        }
        other => other.doing(|| format!("start {program}"))?,
    };
    let output = child.wait_with_output().doing(|| format!("wait for {program}"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::new(Kind::Permission, format!("{program}: {text} (see /etc/subuid and /etc/subgid)")))
}

/// Compares the maps that a configuration states with those of the user namespace that it joins. Somebody may have
/// changed the owners of files according to the stated ones; if those are wrong, the files would be another user's.
pub fn verify(stated: &IdMaps, joined: &[(Namespace, OwnedFd)]) -> Result<()> {
    let Some((_, namespace)) = joined.iter().find(|(kind, _)| *kind == Namespace::User) else { return Ok(()) };
    let found = maps_of(namespace.as_fd()).doing(|| "linux.uidMappings: read those of the joined user namespace")?;
    for (field, stated, found) in
        [("uidMappings", &stated.uids, &found.uids), ("gidMappings", &stated.gids, &found.gids)]
    {
        let sorted = |ranges: &[Range]| {
            let mut ranges: Vec<_> = ranges.iter().map(|range| (range.inside, range.outside, range.count)).collect();
            ranges.sort_unstable();
            ranges
        };
        if sorted(stated) != sorted(found) {
            let reason = "not those of the user namespace that is joined by path; state one or the other";
            return Err(Error::invalid(format!("linux.{field}: {reason}")));
        }
    }
    log::warning("linux.uidMappings: the user namespace is joined by path, and its mappings need not be stated");
    Ok(())
}

/// The maps of a user namespace. They can be read through a process in it only, so one goes in for a moment.
fn maps_of(namespace: BorrowedFd<'_>) -> Result<IdMaps> {
    let (reader, writer) = std::io::pipe()?;
    let (arrived, arrives) = std::io::pipe()?;
    match clone(&CloneRequest::default())? {
        Forked::Child => {
            drop((writer, arrived));
            // To root of the host, in a container or not, whoever is in there is his, with all that it has from us.
            if rung_sys::process::set_dumpable(false).is_err()
                || rung_sys::namespace::enter(namespace, Namespace::User.flag()).is_err()
            {
                exit_now(1);
            }
            drop(std::io::Write::write(&mut &arrives, &[1]));
            drop(std::io::Read::read(&mut &reader, &mut [0]));
            exit_now(0)
        }
        Forked::Parent { pid, .. } => {
            drop((reader, arrives));
            let inside = std::io::Read::read(&mut &arrived, &mut [0]).is_ok_and(|count| count == 1);
            let read = |kind: &str| {
                let path = format!("/proc/{pid}/{kind}");
                std::fs::read_to_string(&path).map(|text| parse(&text)).doing(|| format!("read {path}"))
            };
            let maps = if inside {
                read("uid_map").and_then(|uids| Ok(IdMaps { uids, gids: read("gid_map")? }))
            } else {
                Err(Error::new(Kind::Permission, "the namespace cannot be joined"))
            };
            drop(writer);
            wait(Target::Pid(pid), true)?;
            maps
        }
    }
}

fn parse(table: &str) -> Vec<Range> {
    let line = |line: &str| {
        let mut numbers = line.split_ascii_whitespace().map_while(|number| number.parse().ok());
        Some(Range { inside: numbers.next()?, outside: numbers.next()?, count: numbers.next()? })
    };
    table.lines().filter_map(line).collect()
}
