//! `info`: what this build and this host are, for reports of faults, as youki has it.

use std::fmt::Write as _;
use std::path::Path;

use rung_sys::lsm;
use rung_sys::namespace::Namespace;

use super::version::{COMMIT, VERSION};
use crate::cgroups;
use crate::error::Result;

pub(super) fn run() -> Result<()> {
    let mut text = String::new();
    for (name, value) in lines() {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name:<18}{value}");
    }
    super::print(&text)
}

fn lines() -> Vec<(&'static str, String)> {
    let read = |path: &str| rung_sys::file::read_to_string(path).unwrap_or_default();
    let here = |yes: bool| if yes { "enabled" } else { "disabled" }.to_owned();
    let field = |text: &str, key: &str| -> String {
        let value = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or("unknown");
        value.trim_matches(['"', ' ', '\t']).to_owned()
    };
    let unified = cgroups::is_unified();
    let controllers = match unified {
        true => read("/sys/fs/cgroup/cgroup.controllers").trim().to_owned(),
        false => read("/proc/cgroups")
            .lines()
            .skip(1)
            .filter_map(|line| line.split('\t').next())
            .collect::<Vec<_>>()
            .join(" "),
    };
    let hybrid = !unified && Path::new("/sys/fs/cgroup/unified").is_dir();
    let setup = match (unified, hybrid) {
        (true, _) => "unified",
        (_, true) => "hybrid",
        _ => "legacy",
    };
    let namespaces = Namespace::ALL.iter().map(|kind| kind.proc_name());
    let namespaces = namespaces.filter(|name| Path::new("/proc/self/ns").join(name).exists()).collect::<Vec<_>>();
    let processors = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    vec![
        ("Version", VERSION.to_owned()),
        ("Commit", COMMIT.to_owned()),
        ("Specification", super::features::SPEC_VERSION.to_owned()),
        (
            "Kernel",
            format!("{} {}", read("/proc/sys/kernel/osrelease").trim(), read("/proc/sys/kernel/version").trim()),
        ),
        ("Architecture", std::env::consts::ARCH.to_owned()),
        ("Operating system", field(&read("/etc/os-release"), "PRETTY_NAME=")),
        ("Processors", processors.to_string()),
        ("Memory", field(&read("/proc/meminfo"), "MemTotal:")),
        ("Cgroups", setup.to_owned()),
        ("Controllers", controllers),
        ("Namespaces", namespaces.join(" ")),
        ("Seccomp", here(!read("/proc/sys/kernel/seccomp/actions_avail").is_empty())),
        ("AppArmor", here(lsm::apparmor_enabled())),
        ("SELinux", here(lsm::selinux_enabled())),
        ("Resource control", here(Path::new("/sys/fs/resctrl/schemata").exists())),
        ("systemd", here(Path::new("/run/systemd/system").is_dir())),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_empty_that_every_host_has() {
        for name in ["Kernel", "Memory", "Cgroups", "Namespaces", "Processors"] {
            let value = lines().into_iter().find(|(line, _)| *line == name).map(|(_, value)| value);
            assert!(value.is_some_and(|value| !matches!(value.as_str(), "" | " " | "0" | "unknown")), "{name}");
        }
    }
}
