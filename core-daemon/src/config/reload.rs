//! What a running daemon can take over of a configuration that has been changed.

use serde_json::Value;

use super::Config;
use crate::error::{Error, Result};

/// Settings, and parts of the configuration, that take effect while the daemon runs.
const LIVE: [&str; 2] = ["log.level", "cri"];
/// Parts of those that do not: sockets that are open, plugins that are connected, and what pods that are there depend on.
const FIXED: [&str; 6] =
    ["cri.cgroup_driver", "cri.selinux", "cri.selinux_category_range", "cri.cni", "cri.streaming", "cri.nri"];

/// What comes of reading the configuration again.
#[derive(Debug)]
pub struct Reloaded {
    /// What is in force from now on.
    pub config: Config,
    /// The settings that have changed and are in it, by their names.
    pub changed: Vec<String>,
    /// Those that have changed and are as before until the daemon is started anew.
    pub waiting: Vec<String>,
}

impl Config {
    /// This configuration with what can be taken over from `new` while the daemon runs.
    ///
    /// # Errors
    /// `InvalidArgument` where the two together make no sense.
    pub fn reloaded(&self, new: &Self) -> Result<Reloaded> {
        let encode = |config: &Self| {
            serde_json::to_value(config).map_err(|error| Error::internal(format!("configuration: {error}")))
        };
        let (old, new) = (encode(self)?, encode(new)?);
        let mut names = Vec::new();
        differences(&old, &new, String::new(), &mut names);
        names.sort_unstable();
        let (changed, waiting) = names.into_iter().partition(|name| is_live(name));
        let mut all = old.clone();
        LIVE.iter().for_each(|name| replace(&mut all, name, &new));
        FIXED.iter().for_each(|name| replace(&mut all, name, &old));
        let mut config: Self = serde_json::from_value(all).map_err(|error| Error::invalid(error.to_string()))?;
        config.notes.clone_from(&self.notes);
        config.check()?;
        Ok(Reloaded { config, changed, waiting })
    }
}

fn is_live(name: &str) -> bool {
    let is_of = |part: &&str| name.strip_prefix(*part).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    LIVE.iter().any(is_of) && !FIXED.iter().any(is_of)
}

/// The names of what is not the same; of what is only in one of the two, the outermost name.
fn differences(old: &Value, new: &Value, name: String, names: &mut Vec<String>) {
    let (Value::Object(before), Value::Object(now)) = (old, new) else {
        if old != new {
            names.push(name);
        }
        return;
    };
    let added = now.keys().filter(|key| !before.contains_key(*key));
    for key in before.keys().chain(added) {
        let inner = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
        differences(before.get(key).unwrap_or(&Value::Null), now.get(key).unwrap_or(&Value::Null), inner, names);
    }
}

/// Puts what `from` has under a name in place of what `all` has.
fn replace(all: &mut Value, name: &str, from: &Value) {
    let path = format!("/{}", name.replace('.', "/"));
    if let (Some(place), Some(value)) = (all.pointer_mut(&path), from.pointer(&path)) {
        *place = value.clone();
    }
}

#[cfg(test)]
mod tests {
    use super::super::Overrides;
    use super::*;

    fn config(text: &str) -> Config {
        let mut config = Config::parse(text).expect("configuration");
        config.put_over(&Overrides::default());
        config
    }

    /// A name with a mistake would have no effect, and nobody would notice.
    #[test]
    fn every_part_is_there() {
        let all = serde_json::to_value(Config::default()).expect("encode");
        for name in LIVE.iter().chain(&FIXED) {
            assert!(all.pointer(&format!("/{}", name.replace('.', "/"))).is_some(), "{name}");
        }
    }

    #[test]
    fn some_settings_are_taken_over_and_the_others_are_named() {
        let old = Config { notes: vec!["x".into()], ..config("[cri.runtimes.rung]\n[cri.runtimes.old]\n") };
        let new = config(
            "[log]\nlevel = \"debug\"\nformat = \"json\"\n[registry]\ntimeout = 7\n[cri]\nexec_drain = 1\n\
             cgroup_driver = \"systemd\"\n[cri.runtimes.rung]\nbinary = \"/x\"\n[cri.runtimes.\"a.b\"]\n\
             [cri.cni]\nconf_dir = \"/x\"\n",
        );
        let reloaded = old.reloaded(&new).expect("reloaded");
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let changed =
            ["cri.exec_drain", "cri.runtimes.a.b", "cri.runtimes.old", "cri.runtimes.rung.binary", "log.level"];
        assert_eq!(reloaded.changed, names(&changed));
        let waiting = ["cri.cgroup_driver", "cri.cni.conf_dir", "log.format", "registry.timeout"];
        assert_eq!(reloaded.waiting, names(&waiting));
        let mut expected = old.clone();
        expected.log.level = "debug".into();
        expected.cri.exec_drain = 1;
        expected.cri.runtimes = new.cri.runtimes.clone();
        assert_eq!(reloaded.config, expected);
        // What waits goes on waiting: it is said each time.
        let again = reloaded.config.reloaded(&new).expect("again");
        assert!(again.changed.is_empty() && again.waiting.len() == waiting.len());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let mut new = config("");
        new.cri.default_runtime = "gone".into();
        assert!(config("").reloaded(&new).expect_err("no such handler").to_string().contains("default_runtime"));
    }
}
