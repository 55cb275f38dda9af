//! Hooks that an administrator has for containers of a kind: the files that oci-hooks(5) describes, of either version, as
//! CRI-O and podman read them.
//!
//! They are read for each container, so a file counts from the moment in which it is there. One that cannot be understood
//! keeps containers from being made: its hook may be what confines them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Hook, Hooks, Spec};
use regex::Regex;
use serde::Deserialize;

use super::Making;
use crate::error::{Doing as _, Error, Result};

/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// A file of version 1.0.0.
#[derive(Debug, Deserialize)]
struct Current {
    hook: Wanted,
    when: When,
    stages: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    path: PathBuf,
    args: Option<Vec<String>>,
    env: Option<Vec<String>>,
    /// In seconds.
    timeout: Option<i64>,
}

/// All conditions of these that there are have to hold.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct When {
    always: Option<bool>,
    annotations: BTreeMap<String, String>,
    commands: Vec<String>,
    has_bind_mounts: Option<bool>,
}

/// A file of version 0.1.0, which names none. Any of its conditions is enough.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Older {
    hook: PathBuf,
    #[serde(default)]
    arguments: Vec<String>,
    #[serde(alias = "stage")]
    stages: Vec<String>,
    #[serde(default, alias = "cmd")]
    cmds: Vec<String>,
    #[serde(default, alias = "annotation")]
    annotations: Vec<String>,
    #[serde(default)]
    hasbindmounts: bool,
}

/// What conditions are about.
struct Facts<'a> {
    /// The container's annotations, and its pod's.
    annotations: BTreeMap<&'a str, &'a str>,
    /// The first word of its process.
    command: &'a str,
    /// The kubelet mounts something of the host.
    has_bind_mounts: bool,
}

/// Adds the hooks of `cri.hooks_dirs` that are for this container.
///
/// # Errors
/// `FailedPrecondition` naming the file that cannot be understood.
pub(super) fn apply(making: &Making<'_>, spec: &mut Spec) -> Result<()> {
    let files = files(&making.settings.hooks_dirs)?;
    if files.is_empty() {
        return Ok(());
    }
    let process = spec.process().clone().unwrap_or_default();
    let of_pod = making.pod.annotations.iter();
    let facts = Facts {
        annotations: of_pod.chain(&making.config.annotations).map(|(key, value)| (&**key, &**value)).collect(),
        command: process.args().iter().flatten().next().map_or("", String::as_str),
        has_bind_mounts: making.config.mounts.iter().any(|mount| mount.image.is_none()),
    };
    for path in files.values() {
        add_file(path, &facts, spec).doing(|| format!("cri.hooks_dirs: {}", path.display()))?;
    }
    Ok(())
}

/// The files by what orders them: a name of a later directory hides that of an earlier one.
fn files(dirs: &[PathBuf]) -> Result<BTreeMap<(String, String), PathBuf>> {
    let mut found = BTreeMap::new();
    for dir in dirs {
        let entries = match std::fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::from(error)).doing(|| format!("cri.hooks_dirs: {}", dir.display())),
        };
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                found.insert((name.to_lowercase(), name), path);
            }
        }
    }
    Ok(found)
}

fn add_file(path: &Path, facts: &Facts<'_>, spec: &mut Spec) -> Result<()> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_FILE).read_to_string(&mut text)?;
    let (hook, stages, wanted) = parse(&text, facts)?;
    for stage in &stages {
        // Also where it is not for this container, so that an error is seen before the first for which it is.
        let target = if wanted { &mut *spec } else { &mut Spec::default() };
        add(stage, &hook, target).ok_or_else(|| Error::precondition(format!("stages: {stage:?} is unknown")))?;
    }
    Ok(())
}

/// The hook of a file, its stages, and whether it is for what the facts are about.
fn parse(text: &str, facts: &Facts<'_>) -> Result<(Hook, Vec<String>, bool)> {
    #[derive(Deserialize)]
    struct Version {
        version: Option<String>,
    }
    let (mut hook, path, stages, wanted);
    match json::<Version>(text)?.version.as_deref() {
        Some("1.0.0") => {
            let file: Current = json(text)?;
            wanted = file.when.holds(facts)?;
            hook = Hook::default();
            hook.set_args(file.hook.args).set_env(file.hook.env).set_timeout(file.hook.timeout);
            (path, stages) = (file.hook.path, file.stages);
        }
        None | Some("0.1.0") => {
            let file: Older = json(text)?;
            wanted = file.holds(facts)?;
            let name = file.hook.to_string_lossy().into_owned();
            hook = Hook::default();
            hook.set_args(Some([name].into_iter().chain(file.arguments).collect()));
            (path, stages) = (file.hook, file.stages);
        }
        Some(other) => return Err(Error::precondition(format!("version: {other:?} is neither 1.0.0 nor 0.1.0"))),
    }
    if !path.is_absolute() {
        return Err(Error::precondition(format!("hook: {}: path must be absolute", path.display())));
    }
    if stages.is_empty() {
        return Err(Error::precondition("stages: names none"));
    }
    hook.set_path(path);
    Ok((hook, stages, wanted))
}

fn json<'text, T: Deserialize<'text>>(text: &'text str) -> Result<T> {
    serde_json::from_str(text).map_err(|error| Error::precondition(error.to_string()))
}

impl When {
    fn holds(&self, facts: &Facts<'_>) -> Result<bool> {
        let mut holds = Vec::new();
        holds.extend(self.always);
        if !self.annotations.is_empty() {
            let mut all = true;
            for (key, value) in &self.annotations {
                let (key, value) = (expression("when.annotations", key)?, expression("when.annotations", value)?);
                all &= facts.annotations.iter().any(|(name, text)| key.is_match(name) && value.is_match(text));
            }
            holds.push(all);
        }
        if !self.commands.is_empty() {
            holds.push(any("when.commands", &self.commands, [facts.command])?);
        }
        // That there are none is no condition.
        holds.extend(self.has_bind_mounts.map(|wanted| !wanted || facts.has_bind_mounts));
        if holds.is_empty() {
            return Err(Error::precondition("when: names no condition"));
        }
        Ok(holds.into_iter().all(|holds| holds))
    }
}

impl Older {
    fn holds(&self, facts: &Facts<'_>) -> Result<bool> {
        let of_command = any("cmds", &self.cmds, [facts.command])?;
        let of_annotations = any("annotations", &self.annotations, facts.annotations.values().copied())?;
        Ok(of_command || of_annotations || (self.hasbindmounts && facts.has_bind_mounts))
    }
}

/// Whether one of the expressions is in one of the texts; all are read, so that a wrong one is always found.
fn any<'a>(field: &str, expressions: &[String], texts: impl IntoIterator<Item = &'a str> + Clone) -> Result<bool> {
    let mut found = false;
    for text in expressions {
        let expression = expression(field, text)?;
        found |= texts.clone().into_iter().any(|text| expression.is_match(text));
    }
    Ok(found)
}

fn expression(field: &str, text: &str) -> Result<Regex> {
    Regex::new(text).map_err(|error| Error::precondition(format!("{field}: {text:?}: {error}")))
}

/// Adds a hook at a stage of the runtime specification; none where there is no such stage.
#[allow(deprecated, reason = "prestart may still be named")]
pub(super) fn add(stage: &str, hook: &Hook, spec: &mut Spec) -> Option<()> {
    let mut hooks: Hooks = spec.hooks().clone().unwrap_or_default();
    let list = match stage {
        "prestart" => hooks.prestart_mut(),
        "createRuntime" => hooks.create_runtime_mut(),
        "createContainer" => hooks.create_container_mut(),
        "startContainer" => hooks.start_container_mut(),
        "poststart" => hooks.poststart_mut(),
        "poststop" => hooks.poststop_mut(),
        _ => return None,
    };
    list.get_or_insert_default().push(hook.clone());
    spec.set_hooks(Some(hooks));
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts<'a>(annotations: &[(&'a str, &'a str)], command: &'a str, has_bind_mounts: bool) -> Facts<'a> {
        Facts { annotations: annotations.iter().copied().collect(), command, has_bind_mounts }
    }

    fn current(when: &str) -> String {
        format!(r#"{{"version": "1.0.0", "hook": {{"path": "/h"}}, "when": {when}, "stages": ["poststop"]}}"#)
    }

    fn wanted(text: &str, facts: &Facts<'_>) -> bool {
        parse(text, facts).expect(text).2
    }

    #[test]
    fn all_conditions_of_a_current_file_have_to_hold() {
        let bound = facts(&[("com.example.kind", "deep sea")], "/sbin/init", true);
        let other = facts(&[("com.example.kind", "shallow")], "sh", false);
        for (when, of_bound, of_other) in [
            (r#"{"always": true}"#, true, true),
            (r#"{"always": false}"#, false, false),
            (r#"{"annotations": {"^com\\.example\\.": "sea$"}}"#, true, false),
            (r#"{"annotations": {"kind": ".", "missing": "."}}"#, false, false),
            (r#"{"commands": ["/systemd$", "/init$"]}"#, true, false),
            (r#"{"hasBindMounts": true}"#, true, false),
            (r#"{"hasBindMounts": false}"#, true, true),
            (r#"{"always": true, "commands": ["^sh$"]}"#, false, true),
            (r#"{"hasBindMounts": true, "commands": ["^sh$"]}"#, false, false),
        ] {
            assert_eq!(wanted(&current(when), &bound), of_bound, "{when}");
            assert_eq!(wanted(&current(when), &other), of_other, "{when}");
        }
    }

    #[test]
    fn one_condition_of_an_older_file_is_enough() {
        let text =
            r#"{"hook": "/h", "arguments": ["x"], "stage": ["prestart"], "cmd": ["init$"], "annotations": ["sea"]}"#;
        assert!(wanted(text, &facts(&[], "/sbin/init", false)));
        assert!(wanted(text, &facts(&[("any", "deep sea")], "sh", false)));
        assert!(!wanted(text, &facts(&[("sea", "none")], "sh", true)));
        let (hook, stages, _) = parse(text, &facts(&[], "", false)).expect("file");
        assert_eq!((hook.args().clone(), stages), (Some(vec!["/h".into(), "x".into()]), vec!["prestart".to_owned()]));
        assert!(wanted(r#"{"hook": "/h", "stages": ["prestart"], "hasbindmounts": true}"#, &facts(&[], "", true)));
    }

    #[test]
    fn what_cannot_be_understood_is_named() {
        let nobody = facts(&[], "", false);
        for (text, word) in [
            ("{", "EOF"),
            (r#"{"version": "2.0.0"}"#, "2.0.0"),
            (&*current("{}"), "when"),
            (&*current(r#"{"comands": ["x"]}"#), "comands"),
            (&*current(r#"{"commands": ["("]}"#), "when.commands"),
            (r#"{"hook": "h", "stages": ["prestart"], "cmds": ["x"]}"#, "absolute"),
            (r#"{"hook": "/h", "stages": [], "cmds": ["x"]}"#, "stages"),
        ] {
            let error = parse(text, &nobody).expect_err(text);
            assert!(error.to_string().contains(word), "{text}: {error}");
        }
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("x.json");
        std::fs::write(&path, current(r#"{"always": false}"#).replace("poststop", "precreate")).expect("write");
        let error = add_file(&path, &nobody, &mut Spec::default()).expect_err("no such stage");
        assert!(error.to_string().contains("precreate"), "{error}");
    }

    #[test]
    fn names_order_files_and_later_directories_count_more() {
        let (low, high) = (tempfile::tempdir().expect("directory"), tempfile::tempdir().expect("directory"));
        for (dir, name) in [(&low, "02-b.json"), (&low, "01-Z.json"), (&high, "02-b.json"), (&high, "01-a.json")] {
            std::fs::write(dir.path().join(name), "").expect("write");
        }
        std::fs::write(low.path().join("README"), "").expect("write");
        let dirs = [low.path().to_owned(), "/does/not/exist".into(), high.path().to_owned()];
        let found: Vec<_> = files(&dirs).expect("files").into_values().collect();
        assert_eq!(found, [high.path().join("01-a.json"), low.path().join("01-Z.json"), high.path().join("02-b.json")]);
    }
}
