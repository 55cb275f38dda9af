//! Which devices a container may use. The runtime makes the usual nodes in `/dev`; these rules let them be opened.

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

/// A rule that allows: type, major, minor (`None`: any), access.
type Row = (LinuxDeviceType, Option<i64>, Option<i64>, &'static str);

const ALLOWED: &[Row] = &[
    // Making any node is harmless, opening it is not.
    (LinuxDeviceType::C, None, None, "m"),
    (LinuxDeviceType::B, None, None, "m"),
    // null, zero, full, random, urandom
    (LinuxDeviceType::C, Some(1), Some(3), "rwm"),
    (LinuxDeviceType::C, Some(1), Some(5), "rwm"),
    (LinuxDeviceType::C, Some(1), Some(7), "rwm"),
    (LinuxDeviceType::C, Some(1), Some(8), "rwm"),
    (LinuxDeviceType::C, Some(1), Some(9), "rwm"),
    // tty, ptmx, and the pseudo-terminals, one of which is a container's console: 5:1 is the host's
    (LinuxDeviceType::C, Some(5), Some(0), "rwm"),
    (LinuxDeviceType::C, Some(5), Some(2), "rwm"),
    (LinuxDeviceType::C, Some(136), None, "rwm"),
];

/// Nothing but the usual devices.
pub fn default() -> Vec<LinuxDeviceCgroup> {
    let allow = ALLOWED.iter().map(|(kind, major, minor, access)| rule(true, Some(*kind), *major, *minor, access));
    std::iter::once(rule(false, None, None, None, "rwm")).chain(allow).collect()
}

/// Every device.
pub fn everything() -> Vec<LinuxDeviceCgroup> {
    vec![rule(true, None, None, None, "rwm")]
}

/// One rule of the device cgroup.
pub fn rule(
    allow: bool,
    kind: Option<LinuxDeviceType>,
    major: Option<i64>,
    minor: Option<i64>,
    access: &str,
) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(allow).set_typ(kind).set_major(major).set_minor(minor).set_access(Some(access.to_owned()));
    rule
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_console_is_not_among_them() {
        let rules = default();
        let numbers = |minor| rules.iter().any(|rule| (rule.major(), rule.minor()) == (Some(5), Some(minor)));
        assert!(numbers(0) && !numbers(1) && numbers(2));
    }
}
