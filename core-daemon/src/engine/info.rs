//! What `gantry info` and `gantry version` say of the daemon and its machine.

use gantry_proto::gantry::engine::v1 as api;
use rung_spec::platform::Platform;

use super::Engine;
use crate::context::Context;
use crate::error::Result;
use crate::filter::Filter;

impl Engine {
    /// The daemon and its machine.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub fn info(&self, context: &Context) -> Result<api::InfoResponse> {
        let (config, containers) = (&self.parts().config, self.list(context, true)?);
        let running = containers
            .iter()
            .filter(|it| matches!(it.state(), api::State::Running | api::State::Paused | api::State::Restarting));
        let images = self.parts().images.records.list(context, &Filter::everything())?;
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let kernel = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
        Ok(api::InfoResponse {
            version: crate::VERSION.to_owned(),
            root: config.root.to_string_lossy().into_owned(),
            state: config.state.to_string_lossy().into_owned(),
            socket: config.grpc.address.to_string_lossy().into_owned(),
            snapshotter: config.runtime.snapshotter.clone(),
            runtime: config.runtime.default.clone(),
            containers_running: count(running.count()),
            containers: count(containers.len()),
            images: count(images.len()),
            kernel: kernel.unwrap_or_default(),
            operating_system: operating_system(),
            architecture: Platform::host().architecture,
            cpus: std::thread::available_parallelism().map_or(1, |cpus| u32::try_from(cpus.get()).unwrap_or(u32::MAX)),
            memory: memory(),
            cgroup: cgroup().to_owned(),
            security: security(),
        })
    }

    /// The daemon's version.
    pub fn version(&self) -> api::VersionResponse {
        let commit = option_env!("GANTRY_COMMIT").unwrap_or_default();
        api::VersionResponse { version: crate::VERSION.to_owned(), commit: commit.to_owned() }
    }
}

fn operating_system() -> String {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.unwrap_or("Linux").trim_matches('"').to_owned()
}

/// Bytes of the machine's memory.
fn memory() -> u64 {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = info.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    total.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Which cgroup hierarchies are mounted.
fn cgroup() -> &'static str {
    let mounts = rung_sys::mountinfo::read("self").unwrap_or_default();
    let of_type = |kind: &str| mounts.iter().any(|mount| mount.kind == kind);
    match (of_type("cgroup2"), of_type("cgroup")) {
        (true, true) => "hybrid",
        (true, false) => "v2",
        _ => "v1",
    }
}

fn security() -> Vec<String> {
    let present = |path: &str| std::path::Path::new(path).exists();
    let known = [
        ("seccomp", present("/proc/sys/kernel/seccomp/actions_avail")),
        (
            "apparmor",
            std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|it| it.starts_with('Y')),
        ),
        ("selinux", present("/sys/fs/selinux/enforce")),
    ];
    known.into_iter().filter(|(_, there)| *there).map(|(name, _)| name.to_owned()).collect()
}
