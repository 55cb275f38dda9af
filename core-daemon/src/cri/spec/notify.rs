//! Filters whose forbidden calls somebody hears of.

use std::path::Path;

use nix::libc;
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction as Action};

/// The one call that cannot be watched: through it a runtime tells of the filter.
const WRITE: &str = "write";

/// What refuses a call that is forbidden. Other numbers tell that something is not there, as in a kernel without it, and are
/// for programs to read, which take another way then.
const FORBIDDEN: [libc::c_int; 2] = [libc::EPERM, libc::EACCES];

/// Lets a listener hear of the calls that a filter forbids by name. What it forbids because it does not name it is refused as
/// before: the kernel cannot tell those from calls that nobody knows.
pub(super) fn watch(filter: &mut LinuxSeccomp, listener: &Path) {
    // A profile with a listener of its own keeps it.
    if filter.listener_path().as_ref().is_some_and(|path| !path.as_os_str().is_empty()) {
        return;
    }
    let mut rules = Vec::new();
    let mut is_watched = false;
    for mut rule in filter.syscalls().clone().unwrap_or_default() {
        let forbids = match rule.action() {
            // EPERM where it says none.
            Action::ScmpActErrno => {
                rule.errno_ret().is_none_or(|errno| FORBIDDEN.iter().any(|known| known.unsigned_abs() == errno))
            }
            Action::ScmpActKill | Action::ScmpActKillProcess | Action::ScmpActKillThread => true,
            _ => false,
        };
        if forbids {
            if rule.names().iter().any(|name| name == WRITE) {
                let mut alone = rule.clone();
                alone.set_names(vec![WRITE.to_owned()]);
                rules.push(alone);
            }
            let names: Vec<_> = rule.names().iter().filter(|name| *name != WRITE).cloned().collect();
            rule.set_names(names).set_action(Action::ScmpActNotify).set_errno_ret(None);
            is_watched |= !rule.names().is_empty();
        }
        if !rule.names().is_empty() {
            rules.push(rule);
        }
    }
    if is_watched {
        filter.set_syscalls(Some(rules)).set_listener_path(Some(listener.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use rung_spec::defaults;

    use super::*;

    #[test]
    fn only_what_is_forbidden_by_name_is_watched() {
        let profile = serde_json::json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
            {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["mount", "write"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
            {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 97},
            {"names": ["keyctl"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13},
            {"names": ["bpf"], "action": "SCMP_ACT_ERRNO"},
            {"names": ["reboot"], "action": "SCMP_ACT_KILL_PROCESS"},
        ]});
        let mut filter: LinuxSeccomp = serde_json::from_value(profile).expect("profile");
        watch(&mut filter, Path::new("/s"));
        let seen: Vec<_> =
            filter.syscalls().iter().flatten().map(|rule| (rule.names().clone(), rule.action())).collect();
        let rule = |name: &str, action| (vec![name.to_owned()], action);
        let wanted = [
            rule("read", Action::ScmpActAllow),
            rule("write", Action::ScmpActErrno),
            rule("mount", Action::ScmpActNotify),
            rule("clone3", Action::ScmpActErrno),
            rule("socket", Action::ScmpActErrno),
            rule("keyctl", Action::ScmpActNotify),
            rule("bpf", Action::ScmpActNotify),
            rule("reboot", Action::ScmpActNotify),
        ];
        assert_eq!(seen, wanted);
        assert_eq!(filter.listener_path().as_deref(), Some(Path::new("/s")));
        watch(&mut filter, Path::new("/other"));
        assert_eq!(filter.listener_path().as_deref(), Some(Path::new("/s")));
        let mut none: LinuxSeccomp =
            serde_json::from_value(serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW"})).expect("profile");
        watch(&mut none, Path::new("/s"));
        assert!(none.listener_path().is_none());
    }

    /// Programs of all kinds try whether the kernel has its crypto interface or a hypervisor, and go on without.
    #[test]
    fn of_the_default_filter_only_what_nobody_tries_is_watched() {
        let mut filter = defaults::seccomp::default(&defaults::capabilities::DEFAULT.iter().copied().collect());
        watch(&mut filter, Path::new("/s"));
        let rules = filter.syscalls().clone().unwrap_or_default();
        let watched = |name: &str| {
            rules.iter().any(|rule| {
                rule.action() == Action::ScmpActNotify && rule.names().iter().any(|watched| watched == name)
            })
        };
        for name in ["mount", "bpf", "keyctl", "unshare", "clone"] {
            assert!(watched(name), "{name}");
        }
        for name in ["socket", "clone3", "personality", "openat"] {
            assert!(!watched(name), "{name}");
        }
    }
}
