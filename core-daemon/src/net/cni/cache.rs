//! What plugins answered, kept for the removal: by then the configuration may have changed and the namespace be gone.
//!
//! `<cache_dir>/results/<network>-<container>-<interface>`, in the form that other programs keep them in.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rung_sys::atomic_file;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Attachment;
use super::network::Network;
use crate::error::{Doing, Error, Result};

const KIND: &str = "cniCacheV1";

/// One network of one container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Entry {
    kind: String,
    pub(super) container_id: String,
    /// The network's configuration, in base64.
    config: String,
    pub(super) if_name: String,
    pub(super) network_name: String,
    #[serde(default)]
    netns: String,
    #[serde(default)]
    cni_args: Vec<[String; 2]>,
    #[serde(default)]
    pub(super) capability_args: Map<String, Value>,
    #[serde(default)]
    pub(super) result: Value,
}

/// The directory of answers.
#[derive(Debug, Clone)]
pub(super) struct Cache {
    dir: PathBuf,
}

impl Cache {
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.join("results") }
    }

    fn path(&self, network: &str, container: &str, interface: &str) -> PathBuf {
        self.dir.join(format!("{network}-{container}-{interface}"))
    }

    /// Keeps an answer. One that is not there yet is [`Value::Null`]: what is begun must be found, too.
    pub(super) fn put(
        &self,
        network: &Network,
        attachment: &Attachment,
        interface: &str,
        result: &Value,
    ) -> Result<()> {
        let pairs = attachment.args.split(';').filter_map(|pair| pair.split_once('='));
        let entry = Entry {
            kind: KIND.to_owned(),
            container_id: attachment.container.clone(),
            config: STANDARD.encode(&network.text),
            if_name: interface.to_owned(),
            network_name: network.name.clone(),
            netns: attachment.netns.display().to_string(),
            cni_args: pairs.map(|(key, value)| [key.to_owned(), value.to_owned()]).collect(),
            capability_args: attachment.capabilities.clone(),
            result: result.clone(),
        };
        let path = self.path(&network.name, &attachment.container, interface);
        let bytes = serde_json::to_vec(&entry).map_err(|error| Error::internal(format!("encode: {error}")))?;
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir);
        made.doing(|| format!("make {}", self.dir.display()))?;
        let written = atomic_file::write(&path, &bytes, 0o600).map_err(std::io::Error::from);
        written.doing(|| format!("write {}", path.display()))
    }

    pub(super) fn remove(&self, entry: &Entry) -> Result<()> {
        let path = self.path(&entry.network_name, &entry.container_id, &entry.if_name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).doing(|| format!("remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// What is kept, and the names of what cannot be read.
    pub(super) fn all(&self) -> Result<(Vec<Entry>, Vec<String>)> {
        self.entries(|_| true)
    }

    fn entries(&self, wanted: impl Fn(&str) -> bool) -> Result<(Vec<Entry>, Vec<String>)> {
        let entries = match std::fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok((Vec::new(), Vec::new())),
            Err(error) => return Err(error).doing(|| format!("read {}", self.dir.display())),
        };
        let (mut all, mut lost) = (Vec::new(), Vec::new());
        for entry in entries {
            let path = entry.doing(|| format!("read {}", self.dir.display()))?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let Some(name) = name.filter(|name| wanted(name)) else { continue };
            let read = std::fs::read(&path).map_err(Error::from).and_then(|bytes| {
                serde_json::from_slice::<Entry>(&bytes).map_err(|error| Error::invalid(error.to_string()))
            });
            match read {
                Ok(entry) if entry.kind == KIND => all.push(entry),
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "network result cannot be read");
                    lost.push(name.to_owned());
                }
            }
        }
        Ok((all, lost))
    }

    /// What is kept of a container, in the order of its interfaces.
    pub(super) fn of(&self, container: &str) -> Result<Vec<Entry>> {
        let (mut entries, lost) = self.entries(|name| name.contains(container))?;
        entries.extend(lost.iter().filter_map(|name| Entry::named(name, container)));
        entries.retain(|entry| entry.container_id == container);
        entries.sort_by(|a, b| a.if_name.cmp(&b.if_name));
        Ok(entries)
    }
}

impl Entry {
    /// What the name of an entry says that cannot be read.
    fn named(name: &str, container: &str) -> Option<Self> {
        let (network, interface) = name.split_once(&format!("-{container}-"))?;
        Some(Self {
            kind: KIND.to_owned(),
            container_id: container.to_owned(),
            config: String::new(),
            if_name: interface.to_owned(),
            network_name: network.to_owned(),
            netns: String::new(),
            cni_args: Vec::new(),
            capability_args: Map::new(),
            result: Value::Null,
        })
    }

    /// Whether no more is known than the name says.
    pub(super) fn is_lost(&self) -> bool {
        self.config.is_empty()
    }

    /// The network as it was when the container was connected.
    pub(super) fn network(&self) -> Result<Network> {
        let doing = || format!("network {} as it was", self.network_name);
        let text = STANDARD.decode(&self.config).map_err(|error| Error::invalid(error.to_string())).doing(doing)?;
        let text = String::from_utf8(text).map_err(|error| Error::invalid(error.to_string())).doing(doing)?;
        super::network::parse(&text).doing(doing)
    }

    /// The arguments as plugins take them.
    pub(super) fn args(&self) -> String {
        let pairs: Vec<String> = self.cni_args.iter().map(|[key, value]| format!("{key}={value}")).collect();
        pairs.join(";")
    }

    pub(super) fn netns(&self) -> &Path {
        Path::new(&self.netns)
    }
}
