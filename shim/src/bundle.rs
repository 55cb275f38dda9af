//! The bundle directory: what the shim reads of its configuration, and the small files it leaves there.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Deserializer};

use crate::{Doing, Error, Result};

/// What the shim needs to know of `config.json`; the rest is the runtime's business.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Annotations; two of them group containers.
    #[serde(deserialize_with = "or_default")]
    pub annotations: std::collections::BTreeMap<String, String>,
    #[serde(deserialize_with = "or_default")]
    linux: Linux,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Linux {
    #[serde(deserialize_with = "or_default")]
    namespaces: Vec<Namespace>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Namespace {
    #[serde(rename = "type")]
    kind: String,
    path: Option<String>,
}

/// A null is what is absent, as the runtime reads it.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

impl Config {
    /// Reads the configuration of `bundle`.
    ///
    /// # Errors
    /// Where it is missing or not JSON.
    pub fn read(bundle: &Path) -> Result<Self> {
        let path = bundle.join("config.json");
        let text = fs::read(&path).doing(|| format!("read {}", path.display()))?;
        serde_json::from_slice(&text).map_err(|error| Error::invalid(format!("read {}: {error}", path.display())))
    }

    /// True where the container has a process namespace of its own, so that the kernel ends every process with the first.
    pub fn has_private_pids(&self) -> bool {
        self.linux
            .namespaces
            .iter()
            .any(|namespace| namespace.kind == "pid" && namespace.path.as_deref().unwrap_or_default().is_empty())
    }

    /// The name that containers of one shim share, where they share one.
    pub fn group(&self) -> Option<&str> {
        ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"]
            .into_iter()
            .find_map(|key| self.annotations.get(key))
            .map(String::as_str)
            .filter(|group| !group.is_empty())
    }
}

/// Writes a small file whole: readers see the old text or the new, never half. The bundle lives on a memory file system
/// and means nothing after a power loss, so that nothing is flushed.
///
/// # Errors
/// Those of writing and renaming.
pub fn write(path: &Path, text: &[u8]) -> Result<()> {
    Ok(rung_sys::atomic_file::write_volatile(path, text, 0o644)?)
}

/// The process number in a pid file.
///
/// # Errors
/// Where the file is missing or holds no number.
pub fn read_pid(path: &Path) -> Result<i32> {
    let text = fs::read_to_string(path).doing(|| format!("read {}", path.display()))?;
    let pid = text.trim().parse::<i32>().ok().filter(|pid| *pid > 0);
    pid.ok_or_else(|| Error::internal(format!("read {}: {text:?} is no process number", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        serde_json::from_str(text).expect("valid")
    }

    #[test]
    fn process_namespaces() {
        assert!(config(r#"{"linux":{"namespaces":[{"type":"pid"}]}}"#).has_private_pids());
        assert!(!config(r#"{"linux":{"namespaces":[{"type":"pid","path":"/proc/1/ns/pid"}]}}"#).has_private_pids());
        for nothing in ["{}", r#"{"annotations":null,"linux":null}"#, r#"{"linux":{"namespaces":null}}"#] {
            assert!(!config(nothing).has_private_pids());
        }
    }

    #[test]
    fn groups() {
        assert_eq!(config(r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod"}}"#).group(), Some("pod"));
        assert_eq!(config(r#"{"annotations":{"other":"pod"}}"#).group(), None);
    }
}
