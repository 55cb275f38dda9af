//! Network configurations: lists of plugins in files, as the specification of the container network interface has them.
//!
//! The directory is read whenever the networks are needed, so a file that is put there counts at once.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::error::{Doing, Error, Result};

/// Versions of the specification that are spoken, oldest first.
const VERSIONS: &[&str] = &["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// Version of a configuration that names none.
const UNNAMED: &str = "0.1.0";
/// Largest configuration file.
const MAX_FILE: u64 = 1 << 20;

/// A network: plugins that are run one after the other.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Network {
    /// Its name.
    pub(super) name: String,
    /// Version of the specification that its plugins are spoken to in.
    pub(super) version: String,
    /// The plugins' configurations, in the order of `ADD`.
    pub(super) plugins: Vec<Map<String, Value>>,
    /// Nothing is collected.
    pub(super) disable_gc: bool,
    /// Nothing is checked.
    pub(super) disable_check: bool,
    /// The file's text, for the cache.
    pub(super) text: String,
}

/// The first `max` networks that the directory describes, by file name; all of them for 0. A file that cannot be used is
/// logged and passed over.
///
/// # Errors
/// When the directory cannot be read; one that is not there has none.
pub(super) fn load(dir: &Path, max: usize) -> Result<Vec<Network>> {
    let mut networks = Vec::new();
    for path in files(dir, &["conflist", "conf", "json"])? {
        match read(&path).and_then(|text| parse(&text)).and_then(|network| with_folder(network, dir)) {
            Ok(network) => networks.push(network),
            Err(error) => tracing::warn!(path = %path.display(), %error, "network configuration cannot be used"),
        }
        if max != 0 && networks.len() == max {
            break;
        }
    }
    Ok(networks)
}

fn files(dir: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).doing(|| format!("read {}", dir.display())),
    };
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().and_then(OsStr::to_str).is_some_and(|found| extensions.contains(&found)))
        .filter(|path| path.is_file())
        .collect();
    paths.sort();
    Ok(paths)
}

fn read(path: &Path) -> Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_FILE).read_to_string(&mut text)?;
    Ok(text)
}

/// A network from the text of a list, or of a single plugin's configuration.
///
/// # Errors
/// `InvalidArgument` naming what is wrong.
pub(super) fn parse(text: &str) -> Result<Network> {
    let value: Value = serde_json::from_str(text).map_err(|error| Error::invalid(format!("not JSON: {error}")))?;
    let Value::Object(list) = value else { return Err(Error::invalid("not an object")) };
    let name = list.get("name").and_then(Value::as_str).unwrap_or_default();
    if !is_name(name) {
        return Err(Error::invalid(format!("name: {name:?} is not a network's name")));
    }
    let flag = |key: &str| list.get(key).is_some_and(|value| *value == Value::Bool(true) || *value == "true");
    let plugins = match list.get("plugins") {
        Some(Value::Array(plugins)) => plugins.iter().map(plugin).collect::<Result<Vec<_>>>()?,
        Some(_) => return Err(Error::invalid("plugins: not a list")),
        None if list.contains_key("type") => vec![plugin(&Value::Object(list.clone()))?],
        None => Vec::new(),
    };
    Ok(Network {
        name: name.to_owned(),
        version: version(&list)?,
        plugins,
        disable_gc: flag("disableGC"),
        disable_check: flag("disableCheck"),
        text: text.to_owned(),
    })
}

/// Adds the plugins in the folder that has the network's name, unless the list forbids that.
fn with_folder(mut network: Network, dir: &Path) -> Result<Network> {
    let inlined: Value = serde_json::from_str(&network.text).unwrap_or_default();
    if inlined.get("loadOnlyInlinedPlugins") != Some(&Value::Bool(true)) && inlined.get("type").is_none() {
        for path in files(&dir.join(&network.name), &["conf"])? {
            let text = read(&path).doing(|| format!("read {}", path.display()))?;
            let value: Value =
                serde_json::from_str(&text).map_err(|error| Error::invalid(format!("{}: {error}", path.display())))?;
            network.plugins.push(plugin(&value).doing(|| path.display().to_string())?);
        }
        // What is kept for the removal must be whole.
        let Network { name, version, plugins, disable_gc, disable_check, .. } = &network;
        network.text = json!({
            "name": name, "cniVersion": version, "plugins": plugins, "disableGC": disable_gc,
            "disableCheck": disable_check, "loadOnlyInlinedPlugins": true,
        })
        .to_string();
    }
    if network.plugins.is_empty() {
        return Err(Error::invalid(format!("network {}: has no plugins", network.name)));
    }
    Ok(network)
}

fn plugin(value: &Value) -> Result<Map<String, Value>> {
    let Value::Object(plugin) = value else { return Err(Error::invalid("plugins: not an object")) };
    match plugin.get("type").and_then(Value::as_str) {
        Some(kind) if is_name(kind) => Ok(plugin.clone()),
        kind => Err(Error::invalid(format!("type: {:?} is not a plugin's name", kind.unwrap_or_default()))),
    }
}

/// The newest version that both sides know.
fn version(list: &Map<String, Value>) -> Result<String> {
    let known = |text: &str| VERSIONS.iter().position(|version| *version == text);
    let offered = list.get("cniVersions").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    let single = list.get("cniVersion").and_then(Value::as_str).filter(|text| !text.is_empty());
    let best = offered.chain(single).filter_map(known).max();
    match (best, single) {
        (Some(best), _) => Ok(VERSIONS[best].to_owned()),
        (None, None) => Ok(UNNAMED.to_owned()),
        (None, Some(unknown)) => Err(Error::invalid(format!("cniVersion: {unknown:?} is not known"))),
    }
}

/// Whether a version is `than` or newer.
pub(super) fn at_least(version: &str, than: &str) -> bool {
    let place = |text: &str| VERSIONS.iter().position(|version| *version == text);
    place(version) >= place(than)
}

/// Whether a text is fit to be part of a file's name: the name of a plugin or network must not lead elsewhere.
fn is_name(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    text.bytes().all(fits) && text.starts_with(|first: char| first.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_single_plugins() {
        let list = r#"{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"bridge"},{"type":"portmap"}]}"#;
        let network = parse(list).expect("list");
        assert_eq!((network.name.as_str(), network.version.as_str(), network.plugins.len()), ("net", "1.0.0", 2));
        let single = parse(r#"{"name":"lo","type":"loopback"}"#).expect("single");
        assert_eq!((single.version.as_str(), single.plugins.len()), ("0.1.0", 1));
        let many = r#"{"name":"n","cniVersions":["0.4.0","1.1.0","9.0.0"],"plugins":[{"type":"a"}]}"#;
        assert_eq!(parse(many).expect("versions").version, "1.1.0");
    }

    #[test]
    fn names_do_not_lead_elsewhere() {
        for kind in ["../../tmp/x", "", "..", ".", "a/b", "a b"] {
            let text = format!(r#"{{"name":"n","plugins":[{{"type":"{kind}"}}]}}"#);
            assert!(parse(&text).is_err(), "{kind}");
            assert!(parse(&format!(r#"{{"name":"{kind}","plugins":[]}}"#)).is_err(), "{kind}");
        }
        assert!(parse("[]").is_err() && parse("{").is_err());
        assert!(parse(r#"{"name":"n","cniVersion":"7.0.0","plugins":[]}"#).is_err());
    }

    #[test]
    fn files_in_order_and_the_broken_passed_over() {
        let dir = tempfile::tempdir().expect("directory");
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("write");
        write("10-broken.conflist", "{");
        write("20-first.conflist", r#"{"name":"first","plugins":[{"type":"a"}]}"#);
        write("30-second.conf", r#"{"name":"second","type":"b"}"#);
        write("05-other.txt", "x");
        std::fs::create_dir(dir.path().join("first")).expect("folder");
        write("first/10-more.conf", r#"{"type":"more"}"#);
        let one = load(dir.path(), 1).expect("load");
        assert_eq!((one.len(), one[0].name.as_str(), one[0].plugins.len()), (1, "first", 2));
        assert_eq!(load(dir.path(), 0).expect("load").len(), 2);
        assert!(load(&dir.path().join("none"), 1).expect("absent").is_empty());
    }

    #[test]
    fn versions_compare() {
        assert!(at_least("1.1.0", "1.1.0") && at_least("1.0.0", "0.4.0") && !at_least("1.0.0", "1.1.0"));
    }
}
