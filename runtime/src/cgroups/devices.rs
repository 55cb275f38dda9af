//! Which devices a container may use: the rules of a configuration, in order, the last that matches wins.
//!
//! v1 takes a list of exceptions to allow-all or deny-all, v2 a BPF program. Both are made here, from the same rules.
//! A rule speaks about each of read, write and mknod for itself, so an access is allowed when each of its parts is.

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};
use rung_sys::bpf::device::{Access, Kind, Rule};

use super::dbus::Value;
use super::error::{Error, Result};

/// The rules of a configuration, followed by those every container gets: without them no program that opens
/// `/dev/null` or a terminal works. Making nodes is harmless, using them is what the rules are about.
pub(super) fn rules(configured: Option<&[LinuxDeviceCgroup]>) -> Result<Vec<Rule>> {
    let mut rules = Vec::with_capacity(configured.map_or(0, <[_]>::len) + 11);
    for (index, device) in configured.into_iter().flatten().enumerate() {
        rules.push(rule(device, index)?);
    }
    let allow = |kind, major, minor, access| Rule { allow: true, kind, major, minor, access };
    for kind in [Kind::Char, Kind::Block] {
        rules.push(allow(kind, None, None, Access::MKNOD));
    }
    // null, zero, full, random, urandom; tty, ptmx; tun, which VPNs in containers count on; the slaves of devpts. A
    // container's console is one of the latter: 5:1 is the host's.
    for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (10, 200)] {
        rules.push(allow(Kind::Char, Some(major), Some(minor), Access::ALL));
    }
    rules.push(allow(Kind::Char, Some(136), None, Access::ALL));
    Ok(rules)
}

fn rule(device: &LinuxDeviceCgroup, index: usize) -> Result<Rule> {
    let path = |field: &str| format!("linux.resources.devices[{index}].{field}");
    let kind = match device.typ().unwrap_or(LinuxDeviceType::A) {
        LinuxDeviceType::A => Kind::All,
        LinuxDeviceType::B => Kind::Block,
        LinuxDeviceType::C | LinuxDeviceType::U => Kind::Char,
        LinuxDeviceType::P => return Err(Error::invalid(path("type"), "a fifo is no device")),
    };
    let number = |value: Option<i64>, field: &str| match value {
        None | Some(-1) => Ok(None),
        Some(n) => {
            u32::try_from(n).map(Some).map_err(|_| Error::invalid(path(field), format!("no device number: {n}")))
        }
    };
    let (major, minor) = (number(device.major(), "major")?, number(device.minor(), "minor")?);
    let access = match device.access().as_deref() {
        // Podman and the specification's example leave it out of "deny everything".
        None if kind == Kind::All => Access::ALL,
        None => return Err(Error::invalid(path("access"), "is missing")),
        Some(text) => {
            access(text).ok_or_else(|| Error::invalid(path("access"), format!("{text:?} is not of r, w, m")))?
        }
    };
    // The kernel's v1 files take "a" for everything and only for everything; so do the runtimes.
    if kind == Kind::All {
        return Ok(Rule { allow: device.allow(), kind, major: None, minor: None, access: Access::ALL });
    }
    Ok(Rule { allow: device.allow(), kind, major, minor, access })
}

fn access(text: &str) -> Option<Access> {
    let mut access = Access::NONE;
    for letter in text.chars() {
        access = access.with(match letter {
            'r' => Access::READ,
            'w' => Access::WRITE,
            'm' => Access::MKNOD,
            'a' => Access::NONE,
            _ => return None,
        });
    }
    (access != Access::NONE).then_some(access)
}

/// The writes that make a new v1 cgroup, which starts with all devices allowed, follow the rules.
///
/// v1 keeps one default and exceptions from it, so a rule in the middle that concerns everything makes all before it
/// void, and an exception from an exception by a wildcard cannot be kept: that is refused rather than not enforced.
pub(super) fn legacy_writes(rules: &[Rule]) -> Result<Vec<(&'static str, String)>> {
    let (allowed, exceptions) = exceptions(rules)?;
    let mut writes = Vec::with_capacity(exceptions.len() + 1);
    if !allowed {
        writes.push(("devices.deny", "a".to_owned()));
    }
    let file = if allowed { "devices.deny" } else { "devices.allow" };
    writes.extend(exceptions.iter().map(|rule| (file, rule.to_string())));
    Ok(writes)
}

/// The rules as a default and the exceptions from it.
fn exceptions(rules: &[Rule]) -> Result<(bool, Vec<Rule>)> {
    let start = rules.iter().rposition(|rule| rule.kind == Kind::All);
    let (allowed, rest) = match start {
        Some(at) => (rules[at].allow, &rules[at + 1..]),
        None => (false, rules),
    };
    let mut exceptions: Vec<Rule> = Vec::new();
    for rule in rest {
        let same = |other: &Rule| (other.kind, other.major, other.minor) == (rule.kind, rule.major, rule.minor);
        if rule.allow != allowed {
            match exceptions.iter_mut().find(|other| same(other)) {
                Some(found) => found.access = found.access.with(rule.access),
                None => exceptions.push(Rule { ..*rule }),
            }
            continue;
        }
        for found in &mut exceptions {
            if same(found) || rule.covers(found) {
                found.access = found.access.without(rule.access);
            } else if found.covers(rule) && found.access.meets(rule.access) {
                return Err(Error::invalid(
                    "linux.resources.devices",
                    format!("cgroup v1 cannot make {rule} an exception of {found}"),
                ));
            }
        }
        exceptions.retain(|found| found.access != Access::NONE);
    }
    Ok((allowed, exceptions))
}

/// The same rules for systemd, where it can say them: else a `daemon-reload` would undo what is written here. Where it
/// cannot, it is told to leave devices alone.
pub(super) fn properties(rules: &[Rule]) -> Vec<(String, Value)> {
    let policy = |name: &str| ("DevicePolicy".to_owned(), Value::text(name));
    let entries: Option<Vec<Value>> = match exceptions(rules) {
        Ok((false, exceptions)) => exceptions.iter().map(entry).collect(),
        Ok((true, _)) | Err(_) => None,
    };
    let Some(entries) = entries else { return vec![policy("auto")] };
    vec![policy("strict"), ("DeviceAllow".to_owned(), Value::Array("(ss)".to_owned(), entries))]
}

/// One entry of `DeviceAllow`: a path or a group of devices, and the access.
fn entry(rule: &Rule) -> Option<Value> {
    let (kind, directory) = match rule.kind {
        Kind::Char => ("char", "/dev/char"),
        Kind::Block => ("block", "/dev/block"),
        Kind::All => return None,
    };
    let device = match (rule.major, rule.minor) {
        (None, None) => format!("{kind}-*"),
        (Some(major), Some(minor)) => format!("{directory}/{major}:{minor}"),
        (Some(major), None) => format!("{kind}-{}", group(rule.kind, major)?),
        (None, Some(_)) => return None,
    };
    let access = rule.to_string().rsplit(' ').next().unwrap_or_default().to_owned();
    Some(Value::Tuple(vec![Value::text(device), Value::text(access)]))
}

/// The kernel's name for all devices of a major number.
fn group(kind: Kind, major: u32) -> Option<String> {
    let table = std::fs::read_to_string("/proc/devices").ok()?;
    let (characters, blocks) = table.split_once("Block devices:")?;
    let part = if kind == Kind::Block { blocks } else { characters };
    part.lines().find_map(|line| {
        let (number, name) = line.trim().split_once(' ')?;
        (number.parse() == Ok(major)).then(|| name.trim().to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Vec<LinuxDeviceCgroup> {
        serde_json::from_str(json).unwrap()
    }

    fn writes(json: &str) -> Vec<String> {
        let configured = parse(json);
        let own = rules(Some(&configured)).unwrap();
        legacy_writes(&own).unwrap().into_iter().map(|(file, value)| format!("{file} {value}")).collect()
    }

    #[test]
    fn deny_all_leaves_the_defaults() {
        let list = writes(r#"[{"allow":false,"access":"rwma"}]"#);
        assert_eq!(list[0], "devices.deny a");
        assert_eq!(list[1], "devices.allow c *:* m");
        assert!(list.contains(&"devices.allow c 136:* rwm".to_owned()));
        assert_eq!(list.len(), 12);
    }

    #[test]
    fn allow_all_needs_no_write() {
        assert!(writes(r#"[{"allow":false,"access":"rwm"},{"allow":true,"access":"rwm"}]"#).is_empty());
    }

    #[test]
    fn allow_all_but_one() {
        let list =
            writes(r#"[{"allow":true,"access":"rwm"},{"allow":false,"type":"b","major":8,"minor":0,"access":"w"}]"#);
        assert_eq!(list, ["devices.deny b 8:0 w"]);
    }

    #[test]
    fn what_v1_cannot_keep_is_refused() {
        let configured = parse(
            r#"[{"allow":true,"type":"c","major":10,"access":"rwm"},
                {"allow":false,"type":"c","major":10,"minor":200,"access":"rw"}]"#,
        );
        let refused = legacy_writes(&rules(Some(&configured)).unwrap()).unwrap_err();
        assert!(refused.to_string().contains("c 10:200 rw an exception of c 10:* rwm"), "{refused}");
    }

    #[test]
    fn bad_values() {
        for (json, path) in [
            (r#"[{"allow":true,"type":"c","access":""}]"#, "linux.resources.devices[0].access"),
            (r#"[{"allow":true,"type":"c","access":"x"}]"#, "linux.resources.devices[0].access"),
            (r#"[{"allow":true,"type":"p","access":"r"}]"#, "linux.resources.devices[0].type"),
            (r#"[{"allow":true,"type":"c","major":-7,"access":"r"}]"#, "linux.resources.devices[0].major"),
        ] {
            let refused = rules(Some(&parse(json))).unwrap_err().to_string();
            assert!(refused.starts_with(path), "{refused}");
        }
    }
}
