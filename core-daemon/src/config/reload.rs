//! What a running daemon can take over of a configuration that has been changed.

use serde_json::Value;

use super::Config;
use crate::error::{Doing as _, Error, Result};

/// Settings, and parts of the configuration, that take effect while the daemon runs.
const LIVE: [&str; 2] = ["log.level", "cri"];
/// Parts of those that do not: sockets that are open, plugins that are connected, and what pods that are there depend on, such
/// as the handler of those that name none.
const FIXED: [&str; 8] = [
    "cri.default_runtime",
    "cri.cgroup_driver",
    "cri.kubelet_dir",
    "cri.selinux",
    "cri.selinux_category_range",
    "cri.cni",
    "cri.streaming",
    "cri.nri",
];

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
    /// `InvalidArgument` where the two together make no sense, `FailedPrecondition` where there is no file any more: that nobody
    /// says anything is not that everybody may do as by default.
    pub fn reloaded(&self, new: &Self) -> Result<Reloaded> {
        if let (Some(file), None) = (&self.file, &new.file) {
            return Err(Error::precondition(format!("read configuration {}: is not there any more", file.display())));
        }
        let encode = |config: &Self| {
            serde_json::to_value(config).map_err(|error| Error::internal(format!("configuration: {error}")))
        };
        let file = new.file.clone();
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
        config.file = file;
        config.check().doing(|| "with those settings as they were that need a restart of gantryd")?;
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
        // Pods that name no handler have this one.
        let new = config("[cri]\ndefault_runtime = \"other\"\n[cri.runtimes.other]\n");
        let error = config("").reloaded(&new).expect_err("the handler is gone").to_string();
        assert!(error.contains("need a restart") && error.contains("cri.default_runtime"), "{error}");
        let both = config("[cri]\ndefault_runtime = \"other\"\n[cri.runtimes.rung]\n[cri.runtimes.other]\n");
        let reloaded = config("").reloaded(&both).expect("both are there");
        assert_eq!(
            (reloaded.waiting, reloaded.config.cri.default_runtime),
            (vec!["cri.default_runtime".into()], "rung".into())
        );
    }

    #[test]
    fn a_file_that_is_gone_changes_nothing() {
        let none = config("");
        let there = Config { file: Some("/x".into()), ..config("") };
        assert!(there.reloaded(&none).expect_err("gone").to_string().contains("/x"));
        assert_eq!(none.reloaded(&there).expect("it has come").config.file, there.file);
        assert!(none.reloaded(&none).is_ok() && there.reloaded(&there).is_ok());
    }
}
