//! One file of registries.conf(5), with every value checked. A key that is not known is named in the log: podman may know it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rung_spec::reference::Reference;
use toml::Value;

use crate::error::{Error, Result};

/// Most tables, aliases or registries that a file may have of each.
const MAX_ENTRIES: usize = 4096;
/// What podman reads and nothing here needs: accounts are in `registry.auth_file`.
const OTHERS: [&str; 2] = ["credential-helpers", "additional-layer-store-auth-helper"];

/// What a file says.
#[derive(Debug, Default, PartialEq)]
pub(super) struct File {
    pub(super) search: Option<Vec<String>>,
    pub(super) mode: Option<Mode>,
    /// An empty value takes away what an earlier file had.
    pub(super) aliases: BTreeMap<String, String>,
    pub(super) entries: Vec<Entry>,
}

/// What is done about a short name that several registries may have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Mode {
    /// It is refused: nobody can be asked which is meant. It is CRI-O's default.
    #[default]
    Enforcing,
    /// The first one that has it is meant: `permissive`, and `disabled`, which differ only for who can be asked.
    Permissive,
}

/// A `[[registry]]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Entry {
    /// What names begin with that it is about; with `*.` before it, every host below a domain.
    pub(super) prefix: String,
    /// What stands in the prefix's place where it is fetched; empty: the same.
    pub(super) location: String,
    pub(super) insecure: bool,
    pub(super) blocked: bool,
    pub(super) mirrors: Vec<Mirror>,
}

/// A `[[registry.mirror]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mirror {
    pub(super) location: String,
    pub(super) insecure: bool,
    pub(super) takes: Takes,
}

/// For which names a mirror is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Takes {
    All,
    Digests,
    Tags,
}

impl File {
    /// Reads a file's text; `path` is for the log.
    pub(super) fn parse(text: &str, path: &Path) -> Result<Self> {
        let table = text.parse().map_err(|error: toml::de::Error| {
            Error::invalid(error.to_string().split_whitespace().collect::<Vec<_>>().join(" "))
        })?;
        let mut keys = Keys { at: String::new(), table };
        if keys.table.contains_key("registries") {
            return Err(
                keys.wrong("registries", "is of version 1 of the format, which is not read: write [[registry]]")
            );
        }
        OTHERS.iter().for_each(|key| drop(keys.table.remove(*key)));
        let search = keys.texts("unqualified-search-registries")?;
        for (number, registry) in search.iter().flatten().enumerate() {
            let key = format!("unqualified-search-registries[{number}]");
            check_location(registry).map_err(|problem| keys.wrong(&key, problem))?;
        }
        let mode = match keys.text("short-name-mode")?.as_deref() {
            None | Some("") => None,
            Some("enforcing") => Some(Mode::Enforcing),
            Some("permissive" | "disabled") => Some(Mode::Permissive),
            Some(_) => return Err(keys.wrong("short-name-mode", "must be enforcing, permissive or disabled")),
        };
        let aliases = aliases(&mut keys)?;
        let entries = keys.tables("registry")?.into_iter().map(|keys| Entry::of(keys, path));
        let entries = entries.collect::<Result<Vec<_>>>()?;
        let mut seen = BTreeSet::new();
        if let Some(twice) = entries.iter().find(|entry| !seen.insert(&entry.prefix)) {
            return Err(keys.wrong("registry", &format!("{:?} is there twice", twice.prefix)));
        }
        keys.end(path);
        Ok(Self { search, mode, aliases, entries })
    }
}

/// Short names, and the repositories they stand for.
fn aliases(keys: &mut Keys) -> Result<BTreeMap<String, String>> {
    let table = match keys.table.remove("aliases") {
        None => return Ok(BTreeMap::new()),
        Some(Value::Table(table)) if table.len() <= MAX_ENTRIES => table,
        Some(Value::Table(_)) => return Err(keys.wrong("aliases", &format!("more than {MAX_ENTRIES}"))),
        Some(_) => return Err(keys.wrong("aliases", "must be a table")),
    };
    let is_bare = |text: &str| !text.contains('@') && !text.rsplit('/').next().unwrap_or_default().contains(':');
    let mut all = BTreeMap::new();
    for (short, full) in table {
        let key = format!("aliases.{short:?}");
        if !Reference::is_short(&short) || Reference::parse(&short).is_err() || !is_bare(&short) {
            return Err(keys.wrong(&key, "must be the name of a repository without a registry, a tag and a digest"));
        }
        let Value::String(full) = full else { return Err(keys.wrong(&key, "must be a text")) };
        let is_full = !Reference::is_short(&full) && Reference::parse(&full).is_ok() && is_bare(&full);
        if !full.is_empty() && !is_full {
            return Err(keys.wrong(&key, &format!("{full:?}: must be a repository with its registry, without a tag")));
        }
        all.insert(short, full);
    }
    Ok(all)
}

impl Entry {
    fn of(mut keys: Keys, path: &Path) -> Result<Self> {
        let trimmed = |text: Option<String>| text.unwrap_or_default().trim_end_matches('/').to_owned();
        let (prefix, location) = (trimmed(keys.text("prefix")?), trimmed(keys.text("location")?));
        match (prefix.strip_prefix("*."), prefix.is_empty(), location.is_empty()) {
            (_, true, true) => return Err(keys.wrong("location", "is needed, or else a prefix")),
            (Some(domain), ..) if domain.contains(['/', '@', '*']) || !is_host(domain) => {
                return Err(keys.wrong("prefix", &format!("{prefix:?}: after \"*.\" there must be a domain alone")));
            }
            (None, false, _) => check_prefix(&prefix).map_err(|problem| keys.wrong("prefix", problem))?,
            _ => {}
        }
        if !location.is_empty() {
            check_location(&location).map_err(|problem| keys.wrong("location", problem))?;
        }
        if keys.table.contains_key("pull-from-mirror") {
            return Err(keys.wrong("pull-from-mirror", "is a setting of a mirror"));
        }
        let by_digest_only = keys.flag("mirror-by-digest-only")?;
        let mirrors = keys.tables("mirror")?.into_iter().map(|keys| Mirror::of(keys, by_digest_only, path));
        let mirrors = mirrors.collect::<Result<Vec<_>>>()?;
        let (insecure, blocked) = (keys.flag("insecure")?, keys.flag("blocked")?);
        keys.end(path);
        let prefix = if prefix.is_empty() { location.clone() } else { prefix };
        Ok(Self { prefix, location, insecure, blocked, mirrors })
    }
}

impl Mirror {
    fn of(mut keys: Keys, by_digest_only: bool, path: &Path) -> Result<Self> {
        let location = keys.text("location")?.unwrap_or_default().trim_end_matches('/').to_owned();
        check_location(&location).map_err(|problem| keys.wrong("location", problem))?;
        let insecure = keys.flag("insecure")?;
        let takes = match keys.text("pull-from-mirror")?.as_deref() {
            None | Some("") if by_digest_only => Takes::Digests,
            None | Some("" | "all") if !by_digest_only => Takes::All,
            Some("digest-only") if !by_digest_only => Takes::Digests,
            Some("tag-only") if !by_digest_only => Takes::Tags,
            Some("all" | "digest-only" | "tag-only") => {
                return Err(
                    keys.wrong("pull-from-mirror", "says what mirror-by-digest-only of its registry says already")
                );
            }
            _ => return Err(keys.wrong("pull-from-mirror", "must be all, digest-only or tag-only")),
        };
        keys.end(path);
        Ok(Self { location, insecure, takes })
    }
}

/// Whether a text is a host, with its port or without.
fn is_host(text: &str) -> bool {
    Reference::parse(&format!("{text}/x")).is_ok_and(|name| name.host == text || text == "index.docker.io")
}

/// A host, which may have a path.
fn check_location(text: &str) -> Result<(), &'static str> {
    let (host, path) = text.split_once('/').unwrap_or((text, "x"));
    match text {
        "" => Err("must not be empty"),
        _ if text.contains("://") => Err("must be without a scheme"),
        _ if text.contains('*') => Err("must be without a star"),
        _ if !is_host(host) => Err("must begin with a host that has a dot or a port, or is localhost"),
        _ if path.contains([':', '@']) => Err("must be without a tag and a digest"),
        _ if Reference::parse(text).is_err() && text != host => Err("is no repository"),
        _ => Ok(()),
    }
}

/// The same, which may end with a tag or a digest.
fn check_prefix(text: &str) -> Result<(), &'static str> {
    match text.split_once('/') {
        Some((host, _)) if is_host(host) && Reference::parse(text).is_ok() => Ok(()),
        _ => check_location(text),
    }
}

/// A table whose keys are taken out one by one.
struct Keys {
    /// Where it is, with a dot behind it.
    at: String,
    table: toml::Table,
}

impl Keys {
    fn text(&mut self, key: &str) -> Result<Option<String>> {
        match self.table.remove(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(key, "must be a text")),
        }
    }

    fn flag(&mut self, key: &str) -> Result<bool> {
        match self.table.remove(key) {
            None => Ok(false),
            Some(Value::Boolean(flag)) => Ok(flag),
            Some(_) => Err(self.wrong(key, "must be true or false")),
        }
    }

    fn texts(&mut self, key: &str) -> Result<Option<Vec<String>>> {
        let list = match self.table.remove(key) {
            None => return Ok(None),
            Some(Value::Array(list)) if list.len() <= MAX_ENTRIES => list,
            Some(Value::Array(_)) => return Err(self.wrong(key, &format!("more than {MAX_ENTRIES}"))),
            Some(_) => return Err(self.wrong(key, "must be a list of texts")),
        };
        let text = |value| match value {
            Value::String(text) => Ok(text),
            _ => Err(self.wrong(key, "must be a list of texts")),
        };
        list.into_iter().map(text).collect::<Result<Vec<_>>>().map(Some)
    }

    /// Tables, each with its place: `registry[0].`.
    fn tables(&mut self, key: &str) -> Result<Vec<Self>> {
        let list = match self.table.remove(key) {
            None => return Ok(Vec::new()),
            Some(Value::Array(list)) if list.len() <= MAX_ENTRIES => list,
            Some(Value::Array(_)) => return Err(self.wrong(key, &format!("more than {MAX_ENTRIES}"))),
            Some(_) => return Err(self.wrong(key, "must be tables: write it in two pairs of brackets")),
        };
        let place = |number: usize| format!("{}{key}[{number}].", self.at);
        let table = |(number, value)| match value {
            Value::Table(table) => Ok(Self { at: place(number), table }),
            _ => Err(self.wrong(&format!("{key}[{number}]"), "must be a table")),
        };
        list.into_iter().enumerate().map(table).collect()
    }

    fn wrong(&self, key: &str, problem: &str) -> Error {
        Error::invalid(format!("{}{key}: {problem}", self.at))
    }

    /// Names what is left in the log.
    fn end(self, path: &Path) {
        for key in self.table.keys() {
            tracing::warn!(key = format!("{}{key}", self.at), file = %path.display(), "key is not known, and is ignored");
        }
    }
}
