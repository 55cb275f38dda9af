//! `oci-hook`: runs a program for an OCI hook, with what the runtime says of the container put into its arguments and its
//! environment, so that a plain program can be a hook.
//!
//! ```text
//! {{id}} {{pid}} {{status}} {{bundle}} {{rootfs}} {{annotation "name"}}
//! ```

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use crate::error::{Doing, Error, Result};

/// Bytes of a state or configuration that are read at most.
const MAX: u64 = 16 << 20;

/// What a runtime tells its hooks.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct State {
    id: String,
    status: String,
    pid: i64,
    bundle: PathBuf,
    annotations: BTreeMap<String, String>,
}

/// What is of interest in the bundle's configuration.
#[derive(Debug, Default, Deserialize)]
struct Config {
    #[serde(default)]
    root: Root,
}

#[derive(Debug, Default, Deserialize)]
struct Root {
    #[serde(default)]
    path: PathBuf,
}

/// Becomes the program in `words`, of which the first is its name.
///
/// # Errors
/// Where the state cannot be read, a word asks for what is not there, or the program cannot be executed.
pub fn run(words: &[String]) -> Result<()> {
    let mut state = Vec::new();
    std::io::stdin().take(MAX).read_to_end(&mut state).doing(|| "read the container's state")?;
    let state: State =
        serde_json::from_slice(&state).map_err(|error| Error::invalid(format!("container's state: {error}")))?;
    let rootfs = rootfs(&state.bundle)?;
    let fill = |text: &str| fill(text, &state, &rootfs);
    let words = words.iter().map(|word| fill(word)).collect::<Result<Vec<_>>>()?;
    let (program, arguments) = words.split_first().ok_or_else(|| Error::invalid("oci-hook: names no program"))?;
    let mut command = Command::new(program);
    command.args(arguments);
    for (name, value) in std::env::vars_os() {
        // What is no text holds no placeholder.
        if let Some(value) = value.to_str().filter(|value| value.contains(OPEN)) {
            command.env(&name, fill(value)?);
        }
    }
    Err(Error::from(command.exec())).doing(|| format!("execute {program}"))
}

/// The container's root file system.
fn rootfs(bundle: &Path) -> Result<PathBuf> {
    let path = bundle.join("config.json");
    let doing = || format!("read {}", path.display());
    let mut text = Vec::new();
    std::fs::File::open(&path).doing(doing)?.take(MAX).read_to_end(&mut text).doing(doing)?;
    let config: Config =
        serde_json::from_slice(&text).map_err(|error| Error::invalid(error.to_string())).doing(doing)?;
    Ok(bundle.join(config.root.path))
}

const OPEN: &str = "{{";
const CLOSE: &str = "}}";

fn fill(text: &str, state: &State, rootfs: &Path) -> Result<String> {
    let mut filled = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(OPEN) {
        let Some((name, behind)) = after.split_once(CLOSE) else {
            return Err(Error::invalid(format!("{text:?}: {OPEN} without {CLOSE}")));
        };
        filled.push_str(before);
        filled.push_str(&value(name.trim(), state, rootfs).doing(|| format!("{text:?}"))?);
        rest = behind;
    }
    filled.push_str(rest);
    Ok(filled)
}

fn value(name: &str, state: &State, rootfs: &Path) -> Result<String> {
    Ok(match name {
        "id" => state.id.clone(),
        "pid" => state.pid.to_string(),
        "status" => state.status.clone(),
        "bundle" => state.bundle.to_string_lossy().into_owned(),
        "rootfs" => rootfs.to_string_lossy().into_owned(),
        _ => match name.strip_prefix("annotation").map(str::trim_start).and_then(quoted) {
            Some(annotation) => state.annotations.get(annotation).cloned().unwrap_or_default(),
            None => return Err(Error::invalid(format!("{name:?} is nothing that is known of a container"))),
        },
    })
}

/// What is between double quotes or backquotes.
fn quoted(text: &str) -> Option<&str> {
    ['"', '`'].into_iter().find_map(|quote| text.strip_prefix(quote)?.strip_suffix(quote))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_filled_in() {
        let text = r#"{"id":"c1","status":"created","pid":42,"bundle":"/b","annotations":{"a.b/c":"x y"}}"#;
        let state: State = serde_json::from_str(text).expect("state");
        let filled = |text: &str| fill(text, &state, Path::new("/b/rootfs")).ok();
        assert_eq!(filled("ps").as_deref(), Some("ps"));
        assert_eq!(filled("{{pid}}").as_deref(), Some("42"));
        assert_eq!(filled("-n={{ id }}:{{status}}").as_deref(), Some("-n=c1:created"));
        assert_eq!(filled("{{bundle}} {{rootfs}}").as_deref(), Some("/b /b/rootfs"));
        assert_eq!(filled(r#"<{{annotation "a.b/c"}}{{annotation `none`}}>"#).as_deref(), Some("<x y>"));
        assert_eq!(filled("{{env}}"), None);
        assert_eq!(filled("{{pid"), None);
    }
}
