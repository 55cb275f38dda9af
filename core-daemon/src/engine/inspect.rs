//! A container in the shape of `docker inspect`, which people's scripts read.

use std::time::{SystemTime, UNIX_EPOCH};

use gantry_proto::gantry::engine::v1 as api;
use gantry_proto::time;
use oci_spec::runtime::{LinuxCpu, Spec};
use serde_json::{Value, json};

use super::list::{Now, network_name};
use super::{Engine, Known, Record, binds, wishes};
use crate::config::LogPolicy;
use crate::context::Context;
use crate::error::Result;
use crate::signals;

impl Engine {
    /// Everything known of a container, as JSON.
    ///
    /// # Errors
    /// `NotFound` without such a container.
    pub fn inspect(&self, context: &Context, reference: &str) -> Result<String> {
        let known = self.find(context, reference)?;
        let now = self.now(&context.namespace, &known);
        let spec = binds::spec_of(&known)?;
        let log = self.log_path(&context.namespace, &known.id);
        let directory = self.directory(&context.namespace, &known.id);
        let mut document = general(&known, &now, &spec);
        let live = self.live().get(&(context.namespace.clone(), known.id.clone())).cloned();
        if let Some(health) = live.as_ref().and_then(|live| live.health.as_ref()) {
            document["State"]["Health"] = health.shown();
        }
        if let Value::Object(document) = &mut document {
            document.insert("LogPath".to_owned(), json!(log.to_string_lossy()));
            document.insert("HostConfig".to_owned(), self.host_config(&known, &spec));
            document.insert("Config".to_owned(), config(&known, &spec));
            document.insert("Mounts".to_owned(), mounts(&known, &spec));
            document.insert("NetworkSettings".to_owned(), network(&known));
            document.extend(known.record.etc.files(&directory));
        }
        Ok(document.to_string())
    }

    fn host_config(&self, known: &Known, spec: &Spec) -> Value {
        let record = &known.record;
        let read_only = spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or_default();
        let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
        let cpu = resources.and_then(|resources| resources.cpu().as_ref());
        let memory = resources.and_then(|resources| resources.memory().as_ref());
        let mut config = wishes::whole(&record.wishes);
        let more = json!({
            "Binds": record.binds,
            "LogConfig": { "Type": "json-file", "Config": self.log_options(record) },
            "MemoryReservation": memory.and_then(|memory| memory.reservation()).unwrap_or(0),
            "CpuShares": cpu.and_then(LinuxCpu::shares).unwrap_or(0),
            "CpusetCpus": cpu.and_then(|cpu| cpu.cpus().as_deref()).unwrap_or_default(),
            "CpusetMems": cpu.and_then(|cpu| cpu.mems().as_deref()).unwrap_or_default(),
            "NetworkMode": network_name(record.host_network),
            "RestartPolicy": { "Name": record.restart.name(), "MaximumRetryCount": record.restart.limit() },
            "AutoRemove": record.auto_remove,
            "Memory": record.limits.memory,
            "MemorySwap": record.limits.memory_swap,
            "NanoCpus": record.limits.nano_cpus,
            "CpuQuota": record.limits.cpu_quota,
            "CpuPeriod": record.limits.cpu_period,
            "BlkioWeight": resources.and_then(|it| it.block_io().as_ref()?.weight()).unwrap_or(0),
            "PidsLimit": record.limits.pids,
            "Privileged": record.privileged,
            "ReadonlyRootfs": read_only,
            "Runtime": known.container.runtime.as_ref().map(|runtime| runtime.name.clone()),
            "CgroupParent": cgroup_parent(spec),
            "PortBindings": {},
            "PublishAllPorts": false,
            "Links": null,
            "UsernsMode": "",
            "Isolation": "",
            "MaskedPaths": spec.linux().as_ref().and_then(|linux| linux.masked_paths().clone()),
            "ReadonlyPaths": spec.linux().as_ref().and_then(|linux| linux.readonly_paths().clone()),
        });
        config.extend(more.as_object().cloned().unwrap_or_default());
        Value::Object(config)
    }

    /// How its log is kept, in the words of `--log-opt`.
    fn log_options(&self, record: &Record) -> Value {
        let (usual, own) = (&self.parts().config.container_log, &record.log);
        let drops = own.drop.unwrap_or(usual.policy == LogPolicy::Drop);
        json!({
            "max-size": own.max_size.unwrap_or(usual.max_size).to_string(),
            "max-file": own.max_files.unwrap_or(usual.max_files).to_string(),
            "compress": own.compress.unwrap_or(usual.compress).to_string(),
            "mode": if drops { "non-blocking" } else { "blocking" },
        })
    }
}

fn general(known: &Known, now: &Now, spec: &Spec) -> Value {
    let Known { container, record, .. } = known;
    let (path, args) = record.command.split_first().map_or(("", &[][..]), |(path, args)| (path.as_str(), args));
    let ended = now.ended;
    // A start that failed before is past once it runs.
    let error = if now.is_up() { "" } else { record.error.as_str() };
    let profile = spec.process().as_ref().and_then(|process| process.apparmor_profile().clone());
    json!({
        "Id": container.id,
        "Created": text(container.created_at.as_ref().map(time::system_time)),
        "Path": path,
        "Args": args,
        "State": {
            "Status": match now.state {
                api::State::Running => "running",
                api::State::Paused => "paused",
                api::State::Exited => "exited",
                api::State::Restarting => "restarting",
                api::State::Created | api::State::Unknown => "created",
            },
            "Running": now.is_up(),
            "Paused": now.state == api::State::Paused,
            "Restarting": now.state == api::State::Restarting,
            "OOMKilled": ended.is_some_and(|ended| ended.oom_killed),
            "Dead": false,
            "Pid": now.pid,
            "ExitCode": now.exit_code(record),
            "Error": error,
            "StartedAt": text(now.started_at),
            "FinishedAt": text(ended.map(|ended| ended.at)),
        },
        "Image": record.image_id,
        "Name": format!("/{}", record.name),
        "RestartCount": record.restarts,
        "Driver": container.snapshotter,
        "GraphDriver": { "Name": container.snapshotter, "Data": null },
        "Platform": "linux",
        "AppArmorProfile": profile.unwrap_or_default(),
        "MountLabel": "",
        "ProcessLabel": "",
        "ExecIDs": null,
        "SnapshotKey": container.snapshot_key,
    })
}

fn config(known: &Known, spec: &Spec) -> Value {
    let Known { container, record, .. } = known;
    let process = spec.process().as_ref();
    let (entrypoint, command) = record.command_parts();
    let mut config = json!({
        "Hostname": spec.hostname(),
        "Domainname": "",
        "AttachStdin": record.open_stdin,
        "AttachStdout": true,
        "AttachStderr": true,
        "StdinOnce": record.open_stdin,
        "User": record.user,
        "Tty": record.terminal,
        "OpenStdin": record.open_stdin,
        "Env": process.and_then(|process| process.env().clone()),
        "Entrypoint": Some(entrypoint).filter(|words| !words.is_empty()),
        "Cmd": Some(command).filter(|words| !words.is_empty()),
        "Image": record.image,
        "WorkingDir": process.map(|process| process.cwd().to_string_lossy().into_owned()),
        "Labels": container.labels,
        "Volumes": null,
        "OnBuild": null,
        "StopSignal": signals::name(record.stop_signal),
        // The command line's -1, for any number of seconds.
        "StopTimeout": record.stop_timeout.map(|seconds| if seconds == u32::MAX { -1 } else { i64::from(seconds) }),
    });
    if let Some(check) = &record.health {
        config["Healthcheck"] = check.shown();
    }
    config
}

/// Its network, in which it has no address of its own.
fn network(known: &Known) -> Value {
    let none = json!({ "IPAddress": "", "Gateway": "", "MacAddress": "" });
    let name = network_name(known.record.host_network);
    json!({ "IPAddress": "", "Gateway": "", "MacAddress": "", "Ports": {}, "Networks": { name: none } })
}

/// The binds among the mounts that were wished.
fn mounts(known: &Known, spec: &Spec) -> Value {
    let described = binds::of(known, spec).map(|mount| {
        let options: Vec<&str> = mount.options().iter().flatten().map(String::as_str).collect();
        json!({
            "Type": "bind",
            "Source": mount.source(),
            "Destination": mount.destination(),
            "Mode": options.join(","),
            "RW": !options.iter().any(|option| binds::is_read_only(option)),
            "Propagation": options.iter().find(|option| binds::is_propagation(option)),
        })
    });
    Value::Array(described.collect())
}

/// Whose cgroup its own is below.
fn cgroup_parent(spec: &Spec) -> Option<String> {
    let path = spec.linux().as_ref()?.cgroups_path().as_ref()?;
    path.parent().map(|parent| parent.to_string_lossy().into_owned())
}

/// A time as docker writes it; its zero time where it is not known.
pub(super) fn text(at: Option<SystemTime>) -> String {
    let known = at.filter(|at| *at > UNIX_EPOCH).and_then(|at| jiff::Timestamp::try_from(at).ok());
    known.map_or_else(|| "0001-01-01T00:00:00Z".to_owned(), |at| at.to_string())
}
