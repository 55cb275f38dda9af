//! Capabilities: the default set, all of them, and what `--cap-add` and `--cap-drop` make of it.

use std::str::FromStr;

use oci_spec::runtime::{Capabilities, Capability};

/// What root in a container may do by default.
pub const DEFAULT: &[Capability] = &[
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// Everything the kernel knows, in the kernel's order: the place is the capability's number.
pub const ALL: &[Capability] = &[
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

/// A word that names no capability.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown capability {0:?}; names are as in capabilities(7), with or without CAP_, or ALL")]
pub struct UnknownCapability(String);

/// What the words of `--cap-add` and `--cap-drop` stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    All,
    One(Capability),
}

/// Parses `NET_ADMIN`, `cap_net_admin` and the like.
///
/// # Errors
/// Names the unknown word.
pub fn parse(name: &str) -> Result<Capability, UnknownCapability> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    Capability::from_str(bare).map_err(|_| UnknownCapability(name.chars().take(60).collect()))
}

fn word(name: &str) -> Result<Word, UnknownCapability> {
    if matches!(name.to_ascii_uppercase().as_str(), "ALL" | "CAP_ALL") {
        Ok(Word::All)
    } else {
        parse(name).map(Word::One)
    }
}

/// The default set without what is dropped, with what is added. What is named on its own outweighs `ALL`; added and
/// dropped by name, it is added, as by docker; only from all of them what is named is dropped. `available` is what the
/// machine can give: `ALL` means no more than that.
///
/// # Errors
/// Names the first unknown word.
pub fn adjust(add: &[String], drop: &[String], available: &Capabilities) -> Result<Capabilities, UnknownCapability> {
    let add: Vec<Word> = add.iter().map(|name| word(name)).collect::<Result<_, _>>()?;
    let drop: Vec<Word> = drop.iter().map(|name| word(name)).collect::<Result<_, _>>()?;
    let dropped = |capability: &Capability| drop.contains(&Word::One(*capability));
    let mut set: Capabilities = match (add.contains(&Word::All), drop.contains(&Word::All)) {
        (true, _) => return Ok(available.iter().copied().filter(|capability| !dropped(capability)).collect()),
        (false, true) => Capabilities::new(),
        (false, false) => DEFAULT.iter().copied().filter(|one| available.contains(one) && !dropped(one)).collect(),
    };
    set.extend(add.iter().filter_map(|word| if let Word::One(capability) = word { Some(*capability) } else { None }));
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn adjusted(add: &[&str], drop: &[&str]) -> Capabilities {
        adjust(&names(add), &names(drop), &ALL.iter().copied().collect()).unwrap()
    }

    #[test]
    fn the_lists_are_whole() {
        assert_eq!(DEFAULT.len(), 14);
        assert_eq!(ALL.len(), 41);
        assert_eq!(ALL.iter().collect::<std::collections::HashSet<_>>().len(), 41);
        assert_eq!(parse("cap_net_admin"), Ok(Capability::NetAdmin));
        assert!(parse("CAP_CAP_KILL").is_err());
        assert!(parse("").is_err());
    }

    #[test]
    fn add_and_drop() {
        assert_eq!(adjusted(&[], &[]).len(), 14);
        assert!(adjusted(&["SYS_ADMIN"], &[]).contains(&Capability::SysAdmin));
        assert!(adjusted(&[], &["ALL"]).is_empty());
        assert_eq!(adjusted(&["NET_RAW"], &["all"]).len(), 1);
        let most = adjusted(&["ALL"], &["SYS_ADMIN"]);
        assert_eq!((most.len(), most.contains(&Capability::SysAdmin)), (40, false));
        assert!(!adjusted(&[], &["KILL"]).contains(&Capability::Kill));
        assert!(adjusted(&["KILL"], &["KILL"]).contains(&Capability::Kill));
        assert_eq!(adjusted(&["ALL"], &["ALL"]).len(), 41);
        assert!(adjust(&names(&["NOPE"]), &[], &Capabilities::new()).is_err());
    }

    #[test]
    fn the_machine_bounds_what_is_implied_but_not_what_is_asked() {
        let machine: Capabilities = [Capability::Kill].into_iter().collect();
        assert_eq!(adjust(&[], &[], &machine).unwrap(), machine);
        assert_eq!(adjust(&names(&["ALL"]), &[], &machine).unwrap(), machine);
        assert_eq!(adjust(&names(&["SYS_TIME"]), &[], &machine).unwrap().len(), 2);
    }
}
