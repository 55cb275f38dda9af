//! A container in the shape of `docker inspect`, which people's scripts read.

use std::time::{SystemTime, UNIX_EPOCH};

use gantry_proto::gantry::engine::v1 as api;
use gantry_proto::time;
use oci_spec::runtime::{LinuxCpu, Spec};
use serde_json::{Value, json};

use super::list::Now;
use super::{Engine, Known, Record, wishes};
use crate::config::LogPolicy;
use crate::context::Context;
use crate::error::{Doing, Error, Result};
use crate::signals;

impl Engine {
    /// Everything known of a container, as JSON.
    ///
    /// # Errors
    /// `NotFound` without such a container.
    pub fn inspect(&self, context: &Context, reference: &str) -> Result<String> {
        let known = self.find(context, reference)?;
        let now = self.now(&context.namespace, &known);
        let spec = known.container.spec.as_ref().map(|spec| spec.value.as_slice()).unwrap_or_default();
        let spec: Spec = serde_json::from_slice(spec)
            .map_err(|error| Error::internal(error.to_string()))
            .doing(|| format!("specification of container {reference}"))?;
        let log = self.log_path(&context.namespace, &known.id);
        let mut document = general(&known, &now);
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
            "NetworkMode": if record.host_network { "host" } else { "none" },
            "RestartPolicy": { "Name": record.restart.name(), "MaximumRetryCount": record.restart.limit() },
            "AutoRemove": record.auto_remove,
            "Memory": record.limits.memory,
            "MemorySwap": record.limits.memory_swap,
            "NanoCpus": record.limits.nano_cpus,
            "PidsLimit": record.limits.pids,
            "Privileged": record.privileged,
            "ReadonlyRootfs": read_only,
            "Runtime": known.container.runtime.as_ref().map(|runtime| runtime.name.clone()),
            "CgroupParent": "/gantry",
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

fn general(known: &Known, now: &Now) -> Value {
    let Known { container, record, .. } = known;
    let (path, args) = record.command.split_first().map_or(("", &[][..]), |(path, args)| (path.as_str(), args));
    let ended = now.ended;
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
                api::State::Created | api::State::Unknown => "created",
            },
            "Running": matches!(now.state, api::State::Running | api::State::Paused),
            "Paused": now.state == api::State::Paused,
            "Restarting": false,
            "OOMKilled": ended.is_some_and(|ended| ended.oom_killed),
            "Dead": false,
            "Pid": now.pid,
            "ExitCode": ended.map_or(0, |ended| ended.code),
            "Error": record.error,
            "StartedAt": text(now.started_at),
            "FinishedAt": text(ended.map(|ended| ended.at)),
        },
        "Image": record.image_id,
        "Name": format!("/{}", record.name),
        "RestartCount": record.restarts,
        "Driver": container.snapshotter,
        "Platform": "linux",
        "SnapshotKey": container.snapshot_key,
    })
}

fn config(known: &Known, spec: &Spec) -> Value {
    let Known { container, record, .. } = known;
    let process = spec.process().as_ref();
    let (entrypoint, command) = record.command_parts();
    let mut config = json!({
        "Hostname": spec.hostname(),
        "User": record.user,
        "Tty": record.terminal,
        "OpenStdin": record.open_stdin,
        "Env": process.and_then(|process| process.env().clone()),
        "Entrypoint": Some(entrypoint).filter(|words| !words.is_empty()),
        "Cmd": Some(command).filter(|words| !words.is_empty()),
        "Image": record.image,
        "WorkingDir": process.map(|process| process.cwd().to_string_lossy().into_owned()),
        "Labels": container.labels,
        "StopSignal": signals::name(record.stop_signal),
        "StopTimeout": record.stop_timeout,
    });
    if let Some(check) = &record.health {
        config["Healthcheck"] = check.shown();
    }
    config
}

/// Its network, in which it has no address of its own.
fn network(known: &Known) -> Value {
    let none = json!({ "IPAddress": "", "Gateway": "", "MacAddress": "" });
    let name = if known.record.host_network { "host" } else { "none" };
    json!({ "IPAddress": "", "Gateway": "", "MacAddress": "", "Ports": {}, "Networks": { name: none } })
}

/// The binds among the mounts that were wished.
fn mounts(known: &Known, spec: &Spec) -> Value {
    let binds = spec.mounts().iter().flatten().filter(|mount| mount.typ().as_deref() == Some("bind"));
    let binds = binds.filter(|mount| !known.record.etc.has(mount.destination()));
    let described = binds.map(|mount| {
        let options: Vec<&str> = mount.options().iter().flatten().map(String::as_str).collect();
        json!({
            "Type": "bind",
            "Source": mount.source(),
            "Destination": mount.destination(),
            "Mode": options.join(","),
            "RW": !options.contains(&"ro"),
            "Propagation": options.iter().find(|option| option.ends_with("private") || option.ends_with("shared")
                || option.ends_with("slave")),
        })
    });
    Value::Array(described.collect())
}

/// A time as docker writes it; its zero time where it is not known.
pub(super) fn text(at: Option<SystemTime>) -> String {
    let known = at.filter(|at| *at > UNIX_EPOCH).and_then(|at| jiff::Timestamp::try_from(at).ok());
    known.map_or_else(|| "0001-01-01T00:00:00Z".to_owned(), |at| at.to_string())
}
