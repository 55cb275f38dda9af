//! Becoming the user the program runs as: filter, ids, groups, capabilities, working directory.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{chdir, fchdir, getcwd};
use oci_spec::runtime::Capabilities;
use rung_sys::capabilities::{self, CapabilitySet};
use rung_sys::credentials;
use rung_sys::procfs::Procfs;
use rung_sys::{lsm, process as system};

use super::binds;
use super::exec::Program;
use super::target::{self, Make};
use crate::error::{Doing as _, Error, Kind, Result};
use crate::launch::sync::ChildEnd;
use crate::plan::process::{ProcessPlan, replace};
use crate::seccomp::Filter;

/// Makes the working directory below the root, while that can be written to: images name directories that no layer has.
/// Whatever else is wrong with it is told when it is entered.
pub(super) fn make_directory(root: BorrowedFd<'_>, path: &Path) -> Result<()> {
    match target::find(root, path, true) {
        Err(Errno::ENOENT) => {
            target::make_missing(root, path, Make::Directory).map(drop).map_err(|error| no_directory(path, error))
        }
        _ => Ok(()),
    }
}

/// Gives up what the program is not to have, and finds the program as the user that will execute it.
pub(super) fn become_user(process: &ProcessPlan, filter: Option<&Filter>, sync: &ChildEnd) -> Result<Program> {
    let spec = &process.spec;
    let mut env = process.env.clone();
    add_home(process, &mut env);
    set_labels(process)?;
    let directory = find_directory(spec.cwd())?;
    let no_new_privileges = spec.no_new_privileges().unwrap_or(false);
    if no_new_privileges {
        rung_sys::process::set_no_new_privileges()?;
    } else {
        load(filter, sync)?;
    }
    let wanted = Wanted::of(process);
    capabilities::limit_bounding(wanted.bounding).doing(|| "limit capabilities")?;
    capabilities::keep_over_setuid(true)?;
    let entered = directory.is_some_and(|directory| fchdir(directory).is_ok());
    set_ids(process)?;
    if !entered {
        chdir(spec.cwd()).map_err(|errno| no_directory(spec.cwd(), errno))?;
    }
    check_directory(entered)?;
    wanted.apply(sync)?;
    umask(Mode::from_bits_truncate(spec.user().umask().unwrap_or(0o022)));
    let program = Program::find(&process.args, &env)?;
    if process.visible {
        system::set_dumpable(true)?;
    }
    if no_new_privileges {
        load(filter, sync)?;
    }
    Ok(program)
}

fn load(filter: Option<&Filter>, sync: &ChildEnd) -> Result<()> {
    let Some(filter) = filter else { return Ok(()) };
    let listener = filter.install().doing(|| "load the seccomp filter")?;
    match listener {
        Some(listener) => sync.listener(listener.as_raw_fd()),
        None => Ok(()),
    }
}

fn set_labels(process: &ProcessPlan) -> Result<()> {
    let given = |label: &Option<String>| label.clone().filter(|label| !label.is_empty());
    let (apparmor, selinux) = (given(process.spec.apparmor_profile()), given(process.spec.selinux_label()));
    if apparmor.is_none() && selinux.is_none() {
        return Ok(());
    }
    // One of our own: the container may have none, or another container's work in its place.
    let proc = Procfs::private().or_else(|_| Procfs::open()).doing(|| "open /proc to set labels")?;
    if let Some(profile) = apparmor {
        lsm::set_apparmor(&proc, &profile).doing(|| format!("unable to apply apparmor profile {profile:?}"))?;
    }
    if let Some(label) = selinux {
        lsm::set_selinux(&proc, &label).doing(|| format!("set process label {label:?}"))?;
    }
    Ok(())
}

struct Wanted {
    bounding: CapabilitySet,
    effective: CapabilitySet,
    permitted: CapabilitySet,
    inheritable: CapabilitySet,
    ambient: CapabilitySet,
}

impl Wanted {
    /// Without a `capabilities` object a process has none, root or not.
    fn of(process: &ProcessPlan) -> Self {
        let sets = process.spec.capabilities().as_ref();
        let set = |list: Option<&Capabilities>| {
            // Every kernel with the mount calls that a container needs knows all of them.
            list.into_iter().flatten().fold(CapabilitySet::EMPTY, |set, capability| {
                capabilities::number(&capability.to_string()).map_or(set, |number| set.with(number))
            })
        };
        Self {
            bounding: set(sets.and_then(|sets| sets.bounding().as_ref())),
            effective: set(sets.and_then(|sets| sets.effective().as_ref())),
            permitted: set(sets.and_then(|sets| sets.permitted().as_ref())),
            inheritable: set(sets.and_then(|sets| sets.inheritable().as_ref())),
            ambient: set(sets.and_then(|sets| sets.ambient().as_ref())),
        }
    }

    fn apply(&self, sync: &ChildEnd) -> Result<()> {
        let attempt = capabilities::set(self.effective, self.permitted, self.inheritable);
        if attempt.as_ref().is_err_and(|error| error.errno() == libc::EPERM) {
            // The caller has less than the configuration asks for: what can be granted is, the rest is only a warning.
            let own = capabilities::current()?.permitted;
            let missing = self.permitted.without(own);
            sync.warning(&format!("capabilities {missing:?} cannot be granted"));
            let (effective, permitted) = (self.effective.and(own), self.permitted.and(own));
            capabilities::set(effective, permitted, self.inheritable.and(own)).doing(|| "set capabilities")?;
        } else {
            attempt.doing(|| "set capabilities")?;
        }
        capabilities::keep_over_setuid(false)?;
        let refused = capabilities::set_ambient(self.ambient).doing(|| "set ambient capabilities")?;
        // In one message: the runtime wakes up for each.
        let names = refused.numbers().filter_map(|number| capabilities::NAMES.get(usize::from(number)));
        let told: Vec<_> =
            names.map(|name| format!("can't raise ambient capability {name}: operation not permitted")).collect();
        if !told.is_empty() {
            sync.warning(&told.join("\n"));
        }
        Ok(())
    }
}

fn set_ids(process: &ProcessPlan) -> Result<()> {
    let user = process.spec.user();
    let groups = if process.keep_groups { Ok(()) } else { credentials::set_groups(&process.groups) };
    match groups {
        Ok(()) => {}
        // A user namespace may forbid setgroups(2); with nothing to set that is no loss.
        Err(error) if error.is(&[libc::EPERM]) && process.groups.is_empty() => {}
        Err(error) => return Err(error).doing(|| "set supplementary groups"),
    }
    credentials::set_gid(user.gid()).doing(|| "setup user")?;
    credentials::set_uid(user.uid()).doing(|| "setup user")?;
    // A change of ids makes the process dumpable again.
    Ok(system::set_dumpable(false)?)
}

/// Opens the working directory, before the filter is in force, which may forbid the calls that find it. `None` where the
/// current user may not enter it; then the program's user tries.
fn find_directory(path: &Path) -> Result<Option<OwnedFd>> {
    let root = binds::current_root()?;
    match target::find(root.as_fd(), path, true) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::EACCES) => Ok(None),
        Err(Errno::ELOOP) => {
            Err(Error::invalid(format!("process.cwd: {} is a link that leads out of the root", path.display())))
        }
        Err(errno) => Err(no_directory(path, errno)),
    }
}

/// The error of a working directory that cannot be used. It counts as the program's failure, not the runtime's.
fn no_directory(path: &Path, cause: impl Into<Error>) -> Error {
    let what = format!("chdir to cwd ({:?}) set in config.json failed", path.display().to_string());
    cause.into().while_doing(what).with_kind(Kind::CannotExecute)
}

/// A working directory outside the root would be a way out of the container. One that was `entered` through a descriptor
/// found inside the root cannot be outside, so it does not matter then if a filter forbids getcwd(2).
fn check_directory(entered: bool) -> Result<()> {
    match getcwd() {
        Ok(path) if path.is_absolute() => Ok(()),
        Ok(_) | Err(Errno::ENOENT) => Err(Error::new(
            Kind::Permission,
            "current working directory is outside of container mount namespace root -- possible container breakout detected",
        )),
        Err(_) if entered => Ok(()),
        Err(errno) => Err(errno).doing(|| "verify the working directory"),
    }
}

/// The home directory of the user, as the container's own list of users has it. One that no variable can hold is none.
fn add_home(process: &ProcessPlan, env: &mut Vec<String>) {
    if process.variable("HOME").is_some_and(|home| !home.is_empty()) {
        return;
    }
    let uid = process.spec.user().uid();
    let home = read_passwd().and_then(|text| home_of(&text, uid)).unwrap_or_else(|| "/".to_owned());
    replace(env, "HOME", &home);
}

/// At most a mebibyte: the file is the image's.
fn read_passwd() -> Option<String> {
    use std::io::Read as _;
    let root = binds::current_root().ok()?;
    let flags = nix::fcntl::OFlag::O_RDONLY | nix::fcntl::OFlag::O_NONBLOCK;
    let file = target::open(root.as_fd(), Path::new("/etc/passwd"), flags).ok()?;
    if target::kind_of(file.as_fd()).ok()? != nix::sys::stat::SFlag::S_IFREG {
        return None;
    }
    let mut text = Vec::new();
    std::fs::File::from(file).take(1 << 20).read_to_end(&mut text).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

fn home_of(passwd: &str, uid: u32) -> Option<String> {
    let mut entries = passwd.lines().map(|line| line.split(':'));
    entries.find_map(|mut fields| {
        let id = fields.nth(2)?.parse::<u32>().ok()?;
        let home = fields.nth(2)?;
        (id == uid && !home.is_empty() && !home.contains('\0')).then(|| home.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes_are_found_by_number() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:33::/var/www:/bin/false\n";
        assert_eq!(home_of(passwd, 33).as_deref(), Some("/var/www"));
        assert_eq!(home_of(passwd, 7), None);
        assert_eq!(home_of("web:x:33:33::/var\0www:/bin/false\n", 33), None);
    }
}
