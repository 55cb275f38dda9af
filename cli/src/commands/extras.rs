//! The options of `run` and `create` that few containers need.

use std::path::{Path, PathBuf};

use gantry_proto::gantry::engine::v1 as api;

use crate::client::reason;
use crate::error::{Failure, Result};
use crate::parse::{container, size};

/// What can be said of a container beyond the usual.
#[derive(Debug, Default, clap::Args)]
pub struct Extras {
    /// How willingly the kernel ends it for want of memory, -1000 to 1000
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    oom_score_adj: Option<i32>,
    /// How willingly its memory is swapped out, 0 to 100; -1 as usual
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    memory_swappiness: Option<i64>,
    /// Run it below a cgroup
    #[arg(long, value_name = "PATH")]
    cgroup_parent: Option<String>,
    /// Have a first process that collects what others leave, and hands signals on
    #[arg(long)]
    init: bool,
    /// Let it use a device of this machine
    #[arg(long, value_name = "HOST_PATH[:PATH][:ACCESS]", value_parser = container::device)]
    device: Vec<api::Device>,
    /// Let it use devices of which it has no node, such as 'c 1:3 rwm'
    #[arg(long, value_name = "RULE")]
    device_cgroup_rule: Vec<String>,
    /// Show it the files and directories of this machine that another container has
    #[arg(long, value_name = "CONTAINER[:ro]")]
    volumes_from: Vec<String>,
    /// Limit of a process, such as nofile=1024:4096
    #[arg(long, value_name = "NAME=SOFT[:HARD]", value_parser = container::ulimit)]
    ulimit: Vec<api::Ulimit>,
    /// Setting of the container's own part of the kernel
    #[arg(long, value_name = "KEY=VALUE", value_parser = container::pair)]
    sysctl: Vec<(String, String)>,
    /// no-new-privileges, seccomp=FILE, apparmor=NAME, systempaths=unconfined
    #[arg(long, value_name = "OPTION")]
    security_opt: Vec<String>,
    /// Size of /dev/shm, such as 256m
    #[arg(long, value_name = "BYTES", value_parser = size::bytes)]
    shm_size: Option<i64>,
    /// Further group of the process, by name or number
    #[arg(long, value_name = "GROUP")]
    group_add: Vec<String>,
    /// Whose processes it sees: its own, or the host's
    #[arg(long, value_name = "MODE", value_parser = ["", "private", "host"])]
    pid: Option<String>,
    /// Whose shared memory and messages it has: its own, or the host's
    #[arg(long, value_name = "MODE", value_parser = ["", "private", "shareable", "host"])]
    ipc: Option<String>,
    /// Whose name it has: its own, or the host's
    #[arg(long, value_name = "MODE", value_parser = ["", "private", "host"])]
    uts: Option<String>,
    /// Whose cgroups it sees: its own, or the host's
    #[arg(long, value_name = "MODE", value_parser = ["", "private", "host"])]
    cgroupns: Option<String>,
    /// Whose users it has: there are only the host's
    #[arg(long, value_name = "MODE", value_parser = ["", "host"])]
    userns: Option<String>,
    /// Have a file system in memory at a path
    #[arg(long, value_name = "PATH[:OPTIONS]", value_parser = container::tmpfs)]
    tmpfs: Vec<api::Tmpfs>,
    /// Seconds it has to stop by itself, or -1 for any number
    #[arg(long, value_name = "SECONDS", value_parser = super::stop::grace, allow_hyphen_values = true)]
    stop_timeout: Option<u32>,
    /// Line for /etc/hosts
    #[arg(long, value_name = "NAME:ADDRESS", value_parser = container::host)]
    add_host: Vec<String>,
    /// Address of a server for names
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<String>,
    /// Domain that names are looked for in; "." for none
    #[arg(long, value_name = "DOMAIN")]
    dns_search: Vec<String>,
    /// Option of /etc/resolv.conf
    #[arg(long, value_name = "OPTION", visible_alias = "dns-opt")]
    dns_option: Vec<String>,
    /// Note what a file says of the container, one KEY=VALUE a line
    #[arg(long, value_name = "FILE")]
    label_file: Vec<PathBuf>,
    /// Note for the runtime and its hooks
    #[arg(long, value_name = "KEY=VALUE", value_parser = container::pair)]
    annotation: Vec<(String, String)>,
    /// How output is kept: there is only json-file
    #[arg(long, value_name = "NAME", value_parser = ["json-file"])]
    log_driver: Option<String>,
    /// mode=blocking or non-blocking, max-size=BYTES, max-file=NUMBER, compress=true or false
    #[arg(long, value_name = "KEY=VALUE")]
    log_opt: Vec<String>,
}

impl Extras {
    /// Adds what is said to a request.
    ///
    /// # Errors
    /// Names the option that cannot be.
    pub(super) fn fill(&self, request: &mut api::CreateRequest) -> Result<()> {
        request.oom_score_adj = self.oom_score_adj;
        if let Some(swappiness) = self.memory_swappiness.filter(|swappiness| *swappiness != -1) {
            let swappiness = u32::try_from(swappiness).map_err(|_| {
                Failure::new(format!("--memory-swappiness {swappiness}: must be between 0 and 100, or -1"))
            })?;
            request.memory_swappiness = Some(swappiness);
        }
        request.cgroup_parent = self.cgroup_parent.clone().unwrap_or_default();
        request.init = self.init;
        request.devices.clone_from(&self.device);
        request.device_cgroup_rules.clone_from(&self.device_cgroup_rule);
        request.volumes_from.clone_from(&self.volumes_from);
        request.dns = Some(api::Dns {
            servers: self.dns.clone(),
            search: self.dns_search.clone(),
            options: self.dns_option.clone(),
        });
        request.ulimits.clone_from(&self.ulimit);
        request.sysctls = self.sysctl.iter().cloned().collect();
        request.shm_size = self.shm_size.unwrap_or(0);
        request.group_add.clone_from(&self.group_add);
        request.tmpfs.extend_from_slice(&self.tmpfs);
        request.stop_timeout = self.stop_timeout;
        request.extra_hosts.clone_from(&self.add_host);
        request.annotations = self.annotation.iter().cloned().collect();
        let modes = [("pid", &self.pid), ("ipc", &self.ipc), ("uts", &self.uts), ("cgroup", &self.cgroupns)];
        let shared = modes.into_iter().filter(|(_, mode)| mode.as_deref() == Some("host"));
        request.host_namespaces = shared.map(|(name, _)| name.to_owned()).collect();
        if !self.security_opt.is_empty() {
            let security = container::security(&self.security_opt, |path| {
                std::fs::read_to_string(path).map_err(|error| format!("seccomp profile {path}: {}", reason(&error)))
            });
            request.security = Some(security.map_err(|error| Failure::new(format!("--security-opt {error}")))?);
        }
        if !self.log_opt.is_empty() {
            let log = container::log(&self.log_opt);
            request.log = Some(log.map_err(|error| Failure::new(format!("--log-opt {error}")))?);
        }
        for path in &self.label_file {
            // What is said on the command line stands over a file.
            for (key, value) in labels(path)? {
                request.labels.entry(key).or_insert(value);
            }
        }
        Ok(())
    }
}

fn labels(path: &Path) -> Result<std::collections::BTreeMap<String, String>> {
    let failed = |cause: String| Failure::new(format!("--label-file {}: {cause}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| failed(reason(&error)))?;
    container::label_file(&text).map_err(failed)
}
