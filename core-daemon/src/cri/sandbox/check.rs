//! What a pod's configuration may say. Nothing is done before all of it is known to make sense.

use gantry_proto::runtime::v1;
use rung_spec::config::LinuxNamespaceType;
use rung_spec::validate::Parameter;
use rung_sys::idmap::Range;

use crate::cri::{selinux, spec};
use crate::error::{Error, Result};

/// Longest name of a machine that the kernel takes.
const MAX_HOSTNAME: usize = 64;
/// Longest part of a pod's or container's name.
const MAX_PART: usize = 253;

/// What the namespaces of a pod are to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cri) struct Namespaces {
    /// It has the host's network.
    pub(in crate::cri) host_network: bool,
    /// Its containers share one view of processes, their own, the host's, or another container's.
    pub(in crate::cri) pid: v1::NamespaceMode,
    /// It has the host's message queues and shared memory.
    pub(in crate::cri) host_ipc: bool,
    /// Its users are not the host's: maps of users and groups.
    pub(in crate::cri) user: Option<(Vec<Range>, Vec<Range>)>,
}

/// The pod's metadata, with everything that a name is made of.
///
/// # Errors
/// `InvalidArgument` naming the field.
pub(in crate::cri) fn metadata(config: &v1::PodSandboxConfig) -> Result<&v1::PodSandboxMetadata> {
    let metadata = config.metadata.as_ref().ok_or_else(|| Error::invalid("config.metadata: is required"))?;
    for (field, text, required) in
        [("name", &metadata.name, true), ("namespace", &metadata.namespace, false), ("uid", &metadata.uid, false)]
    {
        part(&format!("config.metadata.{field}"), text, required)?;
    }
    Ok(metadata)
}

/// One part of a name: what becomes a line of a file or an argument must not be more than that.
pub(in crate::cri) fn part(field: &str, text: &str, required: bool) -> Result<()> {
    if text.is_empty() && required {
        return Err(Error::invalid(format!("{field}: is required")));
    }
    if text.len() > MAX_PART {
        return Err(Error::invalid(format!("{field}: is longer than {MAX_PART} bytes")));
    }
    match text.chars().find(|letter| letter.is_control() || *letter == ';') {
        Some(letter) => Err(Error::invalid(format!("{field}: {text:?} has {letter:?} in it"))),
        None => Ok(()),
    }
}

/// A text that becomes part of a line in a file.
pub(in crate::cri) fn line(field: &str, text: &str) -> Result<()> {
    match text.chars().any(char::is_control) {
        true => Err(Error::invalid(format!("{field}: {text:?} has a control character in it"))),
        false => Ok(()),
    }
}

/// All of a pod's configuration that needs no look at the machine.
pub(super) fn config(config: &v1::PodSandboxConfig) -> Result<Namespaces> {
    metadata(config)?;
    hostname(&config.hostname)?;
    path("config.log_directory", &config.log_directory)?;
    for (field, texts) in config
        .dns_config
        .iter()
        .flat_map(|dns| [("servers", &dns.servers), ("searches", &dns.searches), ("options", &dns.options)])
    {
        for text in texts {
            line(&format!("config.dns_config.{field}"), text)?;
            if text.is_empty() || text.contains(' ') {
                return Err(Error::invalid(format!("config.dns_config.{field}: {text:?} is not one word")));
            }
        }
    }
    for port in &config.port_mappings {
        ports(port)?;
    }
    let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let options = context.and_then(|context| context.namespace_options.as_ref());
    let namespaces = namespaces(options)?;
    if namespaces.host_network && !config.hostname.is_empty() {
        return Err(Error::invalid("config.hostname: is possible only with a network of its own"));
    }
    if let Some(context) = context {
        spec::check_security(context)?;
        selinux::check("config.linux.security_context.selinux_options", context.selinux_options.as_ref())?;
    }
    for (field, resources) in
        config.linux.iter().flat_map(|linux| [("overhead", &linux.overhead), ("resources", &linux.resources)])
    {
        if let Some(resources) = resources {
            spec::check_resources(&format!("config.linux.{field}"), resources)?;
        }
    }
    let parent = config.linux.as_ref().map_or("", |linux| linux.cgroup_parent.as_str());
    if parent.split('/').any(|part| part == "..") {
        return Err(Error::invalid(format!("config.linux.cgroup_parent: {parent:?} has '..' in it")));
    }
    for (name, value) in config.linux.iter().flat_map(|linux| &linux.sysctls) {
        sysctl(name, value, &namespaces)?;
    }
    Ok(namespaces)
}

fn hostname(name: &str) -> Result<()> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    if name.len() > MAX_HOSTNAME || !name.bytes().all(fits) {
        return Err(Error::invalid(format!("config.hostname: {name:?} is not a name of at most {MAX_HOSTNAME} bytes")));
    }
    Ok(())
}

/// An absolute path without detours, or none.
pub(in crate::cri) fn path(field: &str, text: &str) -> Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    if !text.starts_with('/') || text.contains('\0') || text.split('/').any(|part| part == "..") {
        return Err(Error::invalid(format!("{field}: {text:?} is not an absolute path without '..'")));
    }
    Ok(())
}

fn ports(port: &v1::PortMapping) -> Result<()> {
    let invalid = |field: &str, what: String| Err(Error::invalid(format!("config.port_mappings.{field}: {what}")));
    if v1::Protocol::try_from(port.protocol).is_err() {
        return invalid("protocol", format!("{} is unknown", port.protocol));
    }
    if !(0..=65535).contains(&port.container_port) {
        return invalid("container_port", format!("{} is not a port", port.container_port));
    }
    if port.host_port > 65535 {
        return invalid("host_port", format!("{} is not a port", port.host_port));
    }
    if !port.host_ip.is_empty() && port.host_ip.parse::<std::net::IpAddr>().is_err() {
        return invalid("host_ip", format!("{:?} is not an address", port.host_ip));
    }
    Ok(())
}

/// What the namespaces are to be, where the options make sense.
///
/// # Errors
/// `InvalidArgument` naming the field.
pub(in crate::cri) fn namespaces(options: Option<&v1::NamespaceOption>) -> Result<Namespaces> {
    use v1::NamespaceMode::{Container, Node, Pod, Target};
    let none = v1::NamespaceOption::default();
    let options = options.unwrap_or(&none);
    let mode = |field: &str, number: i32| {
        v1::NamespaceMode::try_from(number)
            .map_err(|_| Error::invalid(format!("namespace_options.{field}: {number} is unknown")))
    };
    let unfit = |field: &str, mode: v1::NamespaceMode| {
        Err(Error::invalid(format!("namespace_options.{field}: {} is not possible", mode.as_str_name())))
    };
    let host_network = match mode("network", options.network)? {
        Node => true,
        Pod => false,
        other => return unfit("network", other),
    };
    let host_ipc = match mode("ipc", options.ipc)? {
        Node => true,
        Pod => false,
        other => return unfit("ipc", other),
    };
    let pid = mode("pid", options.pid)?;
    if pid == Target && options.target_id.is_empty() {
        return Err(Error::invalid("namespace_options.target_id: is required with TARGET"));
    }
    let user = match &options.userns_options {
        None => None,
        Some(user) => match mode("userns_options.mode", user.mode)? {
            Node if user.uids.is_empty() && user.gids.is_empty() => None,
            Node => return Err(Error::invalid("namespace_options.userns_options: mappings without a user namespace")),
            Pod => Some((mapping("uids", &user.uids)?, mapping("gids", &user.gids)?)),
            Container => return unfit("userns_options.mode", Container),
            Target => return unfit("userns_options.mode", Target),
        },
    };
    if user.as_ref().is_some_and(|(users, groups)| users != groups) {
        return Err(Error::invalid("namespace_options.userns_options: uids and gids must be mapped alike"));
    }
    Ok(Namespaces { host_network, pid, host_ipc, user })
}

/// Exactly one range, which begins with root.
fn mapping(field: &str, ranges: &[v1::IdMapping]) -> Result<Vec<Range>> {
    let invalid = |what: &str| Err(Error::invalid(format!("namespace_options.userns_options.{field}: {what}")));
    match ranges {
        [range] if range.container_id != 0 => invalid("container id 0 must be mapped"),
        [range] if range.length == 0 => invalid("length must not be 0"),
        [range] if range.host_id.checked_add(range.length).is_none() => invalid("ids out of range"),
        [range] => Ok(vec![Range { inside: 0, outside: range.host_id, count: range.length }]),
        [] => invalid("a mapping is required"),
        _ => invalid("exactly one mapping is possible"),
    }
}

/// Whether a setting is of a network namespace.
pub(super) fn is_of_network(name: &str) -> bool {
    Parameter::named(name).is_ok_and(|it| it.namespace == LinuxNamespaceType::Network)
}

/// Settings of the kernel that a pod has for itself.
fn sysctl(name: &str, value: &str, namespaces: &Namespaces) -> Result<()> {
    let invalid = |what: &str| Err(Error::invalid(format!("config.linux.sysctls: {name}: {what}")));
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'/');
    if !name.bytes().all(plain) {
        return invalid("is not a setting's name");
    }
    if value.contains('\0') {
        return invalid("value contains a NUL byte");
    }
    match Parameter::named(name).map(|it| it.namespace) {
        // The domain's name goes with the network, as the host's name does.
        Ok(LinuxNamespaceType::Network | LinuxNamespaceType::Uts) if namespaces.host_network => {
            invalid("cannot be set with the host's network")
        }
        Ok(LinuxNamespaceType::Ipc) if namespaces.host_ipc => invalid("cannot be set with the host's IPC"),
        Ok(LinuxNamespaceType::Network | LinuxNamespaceType::Uts | LinuxNamespaceType::Ipc) => Ok(()),
        Ok(_) => invalid("is not a setting that a pod has for itself"),
        Err(reason) => invalid(reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn userns(mode: v1::NamespaceMode, ranges: &[(u32, u32, u32)]) -> Result<Namespaces> {
        let ranges: Vec<v1::IdMapping> = ranges
            .iter()
            .map(|(container_id, host_id, length)| v1::IdMapping {
                container_id: *container_id,
                host_id: *host_id,
                length: *length,
            })
            .collect();
        let user = v1::UserNamespace { mode: mode.into(), uids: ranges.clone(), gids: ranges };
        namespaces(Some(&v1::NamespaceOption { userns_options: Some(user), ..Default::default() }))
    }

    #[test]
    fn user_namespaces_have_one_range_from_root() {
        use v1::NamespaceMode::{Container, Node, Pod, Target};
        assert!(userns(Pod, &[(0, 100_000, 65536)]).expect("pod").user.is_some());
        assert!(userns(Node, &[]).expect("node").user.is_none());
        for (mode, ranges) in [
            (Pod, &[(0, 100_000, 1), (1, 200_000, 1)][..]),
            (Pod, &[(1, 100_000, 65536)]),
            (Pod, &[(0, 100_000, 0)]),
            (Pod, &[(0, u32::MAX, 2)]),
            (Pod, &[]),
            (Container, &[(0, 100_000, 65536)]),
            (Target, &[(0, 100_000, 65536)]),
            (Node, &[(0, 100_000, 65536)]),
        ] {
            assert!(userns(mode, ranges).is_err(), "{mode:?} {ranges:?}");
        }
    }

    #[test]
    fn names_settings_and_ports() {
        let own = namespaces(None).expect("defaults");
        assert!(
            sysctl("net.ipv4.tcp_syncookies", "0", &own).is_ok() && sysctl("kernel.shm_rmid_forced", "1", &own).is_ok()
        );
        assert!(sysctl("kernel.domainname", "example", &own).is_ok());
        for name in ["kernel.panic", "kernel.hostname", "vm.swappiness", "net..x", "", "../x", "net/../../x"] {
            assert!(sysctl(name, "1", &own).is_err(), "{name}");
        }
        let host = Namespaces { host_network: true, host_ipc: true, ..own };
        assert!(sysctl("kernel.domainname", "example", &host).is_err());
        assert!(sysctl("net.ipv4.tcp_syncookies", "0", &host).is_err() && sysctl("kernel.shmmax", "1", &host).is_err());
        assert!(part("f", "a\nb", true).is_err() && part("f", "a;b", true).is_err() && part("f", "", true).is_err());
        assert!(part("f", "", false).is_ok() && hostname("a b").is_err() && hostname("web-1").is_ok());
        assert!(path("f", "/a/../b").is_err() && path("f", "a").is_err() && path("f", "").is_ok());
        let port = v1::PortMapping { container_port: 80, host_port: 70_000, ..Default::default() };
        assert!(ports(&port).is_err());
    }
}
