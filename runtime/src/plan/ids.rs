//! The id maps of a new user namespace.

use oci_spec::runtime::{Linux, LinuxIdMapping};
use rung_sys::idmap::{MAX_RANGES, Range};
use rung_sys::namespace::Namespace;

use super::namespaces::NamespacePlan;
use crate::error::{Error, Result};
use crate::log;

/// Which ids inside are which outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdMaps {
    /// User ids.
    pub uids: Vec<Range>,
    /// Group ids.
    pub gids: Vec<Range>,
}

impl IdMaps {
    /// The maps of the container's own user namespace, when it has one.
    pub fn new(linux: Option<&Linux>, namespaces: &NamespacePlan) -> Result<Option<Self>> {
        let uids = linux.and_then(|linux| linux.uid_mappings().as_ref());
        let gids = linux.and_then(|linux| linux.gid_mappings().as_ref());
        if !namespaces.makes(Namespace::User) {
            let given = uids.is_some_and(|list| !list.is_empty()) || gids.is_some_and(|list| !list.is_empty());
            if given && !namespaces.joins(Namespace::User) {
                let reason = "linux.uidMappings: user namespace mappings specified, but user namespace isn't enabled in the config";
                // To an ordinary user they would have been the way in. Root's containers have started with them, without
                // effect, under every runc.
                if !nix::unistd::geteuid().is_root() {
                    return Err(Error::invalid(reason));
                }
                log::warning(reason);
            }
            return Ok(None);
        }
        let uids = ranges("linux.uidMappings", uids)?;
        let gids = ranges("linux.gidMappings", gids)?;
        Ok(Some(Self { uids, gids }))
    }

    /// The maps that a configuration with a path of a user namespace states, which must be those that it has.
    pub fn stated(linux: Option<&Linux>, namespaces: &NamespacePlan) -> Result<Option<Self>> {
        let uids = linux.and_then(|linux| linux.uid_mappings().as_ref()).filter(|list| !list.is_empty());
        let gids = linux.and_then(|linux| linux.gid_mappings().as_ref()).filter(|list| !list.is_empty());
        if !namespaces.joins(Namespace::User) || (uids.is_none() && gids.is_none()) {
            return Ok(None);
        }
        Ok(Some(Self { uids: ranges("linux.uidMappings", uids)?, gids: ranges("linux.gidMappings", gids)? }))
    }

    /// The user id outside of `inside`, when it is mapped.
    pub fn host_uid(&self, inside: u32) -> Option<u32> {
        lookup(&self.uids, inside)
    }

    /// The group id outside of `inside`, when it is mapped.
    pub fn host_gid(&self, inside: u32) -> Option<u32> {
        lookup(&self.gids, inside)
    }
}

/// Checks a list of ranges and takes it over.
pub fn ranges(name: &str, list: Option<&Vec<LinuxIdMapping>>) -> Result<Vec<Range>> {
    let list = list.map(Vec::as_slice).unwrap_or_default();
    if list.is_empty() {
        return Err(Error::invalid(format!("{name}: a user namespace needs at least one range")));
    }
    if list.len() > MAX_RANGES {
        return Err(Error::invalid(format!("{name}: {} ranges, the kernel takes {MAX_RANGES}", list.len())));
    }
    list.iter()
        .enumerate()
        .map(|(index, range)| {
            let range = Range { inside: range.container_id(), outside: range.host_id(), count: range.size() };
            let fits = |first: u32| first.checked_add(range.count.saturating_sub(1)).is_some();
            if range.count == 0 || !fits(range.inside) || !fits(range.outside) {
                return Err(Error::invalid(format!("{name}[{index}]: size {} is empty or too large", range.count)));
            }
            Ok(range)
        })
        .collect()
}

/// What an id inside is outside.
pub(super) fn lookup(ranges: &[Range], inside: u32) -> Option<u32> {
    let range = ranges.iter().find(|range| inside.checked_sub(range.inside).is_some_and(|at| at < range.count))?;
    range.outside.checked_add(inside - range.inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_looked_up_through_all_ranges() {
        let maps = IdMaps {
            uids: vec![
                Range { inside: 0, outside: 1000, count: 1 },
                Range { inside: 1, outside: 100_000, count: 65_535 },
            ],
            gids: Vec::new(),
        };
        assert_eq!(maps.host_uid(0), Some(1000));
        assert_eq!(maps.host_uid(5), Some(100_004));
        assert_eq!(maps.host_uid(70_000), None);
        assert_eq!(maps.host_gid(0), None);
    }
}
