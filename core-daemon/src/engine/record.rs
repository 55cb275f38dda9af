//! What the engine keeps of a container, as JSON in an extension of the container's record.

use std::time::SystemTime;

use gantry_proto::containerd::services::containers::v1::Container;
use prost_types::Any;
use serde::{Deserialize, Serialize};

use super::restart::Policy;
use crate::error::{Error, Kind, Result};

/// Name of the extension.
pub(super) const EXTENSION: &str = "gantry.engine";
const TYPE: &str = "gantry.engine.v1/Record";

/// The engine's part of a container record.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) name: String,
    /// The image as the person wrote it.
    pub(super) image: String,
    /// Digest of the image's configuration.
    pub(super) image_id: String,
    pub(super) command: Vec<String>,
    /// How many words of the command are its entry point.
    #[serde(default)]
    pub(super) entrypoint: usize,
    /// Who runs it, as it was written in the request or the image.
    #[serde(default)]
    pub(super) user: String,
    pub(super) terminal: bool,
    pub(super) open_stdin: bool,
    pub(super) auto_remove: bool,
    /// Number of the signal that stops it.
    pub(super) stop_signal: u32,
    pub(super) host_network: bool,
    pub(super) privileged: bool,
    #[serde(default)]
    pub(super) binds: Vec<String>,
    #[serde(default)]
    pub(super) limits: Limits,
    /// When it is started again.
    #[serde(default)]
    pub(super) restart: Policy,
    /// Seconds it has to stop by itself; none: the usual number.
    #[serde(default)]
    pub(super) stop_timeout: Option<u32>,
    /// What else was wished of it, for whoever inspects it.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub(super) wishes: serde_json::Map<String, serde_json::Value>,
    /// How it is seen whether it is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) health: Option<super::health::Check>,
    /// The files of `/etc` that it is given.
    #[serde(default)]
    pub(super) etc: super::etc::Etc,
    /// How its log is kept, where it was said.
    #[serde(default)]
    pub(super) log: Log,
    /// How often it was started again since somebody started it.
    #[serde(default)]
    pub(super) restarts: u32,
    /// How many of these came one after another since the last good run.
    #[serde(default)]
    pub(super) restarts_in_a_row: u32,
    /// Somebody stopped it.
    #[serde(default)]
    pub(super) stopped: bool,
    /// How the last run ended; none before the first.
    pub(super) ended: Option<Ended>,
    /// Why the last start failed; empty if it did not.
    #[serde(default)]
    pub(super) error: String,
    /// The exit code that is shown beside `error`, as docker's: 126 or 127 where the program is at fault, else 128.
    #[serde(default)]
    pub(super) error_code: u8,
}

/// How a log is kept; what is not said is as the daemon is configured.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Log {
    pub(super) drop: Option<bool>,
    pub(super) max_size: Option<u64>,
    pub(super) max_files: Option<u32>,
    pub(super) compress: Option<bool>,
}

/// Limits as they were asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Limits {
    pub(super) memory: i64,
    pub(super) memory_swap: i64,
    pub(super) nano_cpus: i64,
    pub(super) pids: i64,
    #[serde(default)]
    pub(super) cpu_quota: i64,
    #[serde(default)]
    pub(super) cpu_period: i64,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// When the process had been started.
    pub started_at: SystemTime,
    /// When it ended.
    pub at: SystemTime,
    /// Its code, or 128 plus the signal that ended it.
    pub code: u32,
    /// Whether the kernel killed it for want of memory.
    pub oom_killed: bool,
}

impl Record {
    /// The command's entry point, and what is handed to that.
    pub(super) fn command_parts(&self) -> (&[String], &[String]) {
        self.command.split_at_checked(self.entrypoint).unwrap_or((&[], &self.command))
    }

    /// The engine's part of `container`; none where another client made it.
    pub(super) fn of(container: &Container) -> Result<Option<Self>> {
        let Some(any) = container.extensions.get(EXTENSION) else { return Ok(None) };
        serde_json::from_slice(&any.value).map(Some).map_err(|error| {
            Error::new(Kind::DataLoss, format!("container {}: extension {EXTENSION}: {error}", container.id))
        })
    }

    /// Puts it into `container`.
    pub(super) fn put(&self, container: &mut Container) -> Result<()> {
        let value = serde_json::to_vec(self)
            .map_err(|error| Error::internal(format!("container {}: {error}", container.id)))?;
        container.extensions.insert(EXTENSION.to_owned(), Any { type_url: TYPE.to_owned(), value });
        Ok(())
    }
}

impl super::Engine {
    /// Changes the engine's part of a container's record. Blocks on the disk.
    pub(super) fn edit_record(
        &self,
        namespace: &gantry_proto::namespace::Namespace,
        id: &crate::id::ContainerId,
        edit: impl FnOnce(&mut Record),
    ) -> Result<()> {
        let edited = self.parts().containers.edit(namespace, id, |container| {
            let mut record = Record::of(container)?.unwrap_or_default();
            edit(&mut record);
            record.put(container)
        });
        edited.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_the_container_record() {
        let ended = Ended { started_at: SystemTime::UNIX_EPOCH, at: SystemTime::now(), code: 137, oom_killed: true };
        let record = Record { name: "web".into(), ended: Some(ended), ..Record::default() };
        let mut container = Container::default();
        assert_eq!(Record::of(&container).expect("none"), None);
        record.put(&mut container).expect("put");
        assert_eq!(Record::of(&container).expect("read"), Some(record));
    }
}
