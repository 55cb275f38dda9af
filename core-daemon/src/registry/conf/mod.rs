//! registries.conf(5), the file that podman and CRI-O have: what a name without a registry stands for, and where names lead.
//!
//! ```toml
//! unqualified-search-registries = ["registry.example"]
//! short-name-mode = "enforcing"
//!
//! [aliases]
//! "tools" = "quay.io/team/tools"
//!
//! [[registry]]
//! prefix = "docker.io/library"
//! location = "mirror.example/library"
//! ```
//!
//! It is read again for each image, with the files in the directory of its name with `.d` behind it, in their order: what
//! a later file says of a prefix or an alias, and of each other setting, stands in place of what an earlier one said.

mod file;
mod names;
mod route;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use rung_spec::reference::Reference;

use self::file::{Entry, Mode};
#[cfg(test)]
pub(super) use self::route::Place;
pub(super) use self::route::Route;
use crate::error::{Doing, Error, Kind, Result};

/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;
/// Most files in the directory.
const MAX_FILES: usize = 256;

/// Where the files are; without one, names are docker's.
#[derive(Debug, Clone, Default)]
pub(super) struct RegistriesConf(Option<PathBuf>);

/// What all files together say.
#[derive(Debug, Default, PartialEq)]
struct Conf {
    /// Registries of names that have none and are no alias, in order.
    search: Vec<String>,
    mode: Mode,
    /// Full repositories by short names.
    aliases: BTreeMap<String, String>,
    /// By prefix, as it is written.
    entries: BTreeMap<String, Entry>,
}

impl RegistriesConf {
    /// The file at `path`, if there is to be one.
    pub(super) fn new(path: Option<PathBuf>) -> Self {
        Self(path)
    }

    /// Whether what is typed may have another meaning than docker's.
    pub(super) fn is_configured(&self) -> bool {
        self.0.is_some()
    }

    /// What to pull for a name as people type it: the first of these that there is.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no name, or for a short one of which it is not known what it stands for;
    /// `FailedPrecondition` where a file cannot be read or has an error.
    pub(super) fn to_pull(&self, text: &str) -> Result<Vec<Reference>> {
        let plain = Reference::parse(text).map_err(|error| Error::invalid(error.to_string()))?;
        match &self.0 {
            Some(path) if Reference::is_short(text) => Conf::read(path)?.to_pull(text, plain, path),
            _ => Ok(vec![plain]),
        }
    }

    /// What an image that is here already may be called, of which `text` is typed; nothing for what is no name.
    ///
    /// # Errors
    /// As of [`to_pull`](Self::to_pull), where it is the files that are wrong.
    pub(super) fn here(&self, text: &str) -> Result<Vec<Reference>> {
        let Ok(plain) = Reference::parse(text) else { return Ok(Vec::new()) };
        match &self.0 {
            Some(path) if Reference::is_short(text) => Ok(Conf::read(path)?.here(text, plain)),
            _ => Ok(vec![plain]),
        }
    }

    /// Where a name leads; `None` where nothing says that it leads elsewhere than to its registry.
    ///
    /// # Errors
    /// `PermissionDenied` for a registry that is blocked; as of [`to_pull`](Self::to_pull).
    pub(super) fn route(&self, reference: &Reference) -> Result<Option<Route>> {
        let Some(path) = &self.0 else { return Ok(None) };
        Conf::read(path)?.route(reference).map_err(|error| error.context(path.display()))
    }

    /// Whether a registry needs no TLS, nor a certificate that is trusted.
    ///
    /// # Errors
    /// As of [`to_pull`](Self::to_pull), where it is the files that are wrong.
    pub(super) fn is_insecure(&self, host: &str) -> Result<bool> {
        let Some(path) = &self.0 else { return Ok(false) };
        Ok(Conf::read(path)?.is_insecure(host))
    }
}

impl Conf {
    fn read(path: &Path) -> Result<Self> {
        let mut conf = Self::default();
        let mut dir = path.as_os_str().to_owned();
        dir.push(".d");
        let others = drop_ins(Path::new(&dir))?;
        match read(path) {
            // All may be in the directory.
            Err(error) if error.kind() == ErrorKind::NotFound && !others.is_empty() => {}
            text => conf.add(path, text)?,
        }
        others.iter().try_for_each(|path| conf.add(path, read(path)))?;
        Ok(conf)
    }

    fn add(&mut self, path: &Path, text: std::io::Result<String>) -> Result<()> {
        let wrong = |problem: String| Error::precondition(format!("{}: {problem}", path.display()));
        let text = text.map_err(|error| wrong(format!("read: {}", Error::from(error))))?;
        let file = file::File::parse(&text, path).map_err(|error| wrong(error.to_string()))?;
        if let Some(search) = file.search {
            self.search = search;
        }
        self.mode = file.mode.unwrap_or(self.mode);
        for (short, full) in file.aliases {
            match full.is_empty() {
                true => self.aliases.remove(&short),
                false => self.aliases.insert(short, full),
            };
        }
        self.entries.extend(file.entries.into_iter().map(|entry| (entry.prefix.clone(), entry)));
        Ok(())
    }
}

/// The files of a directory that may not be there, in the order of their names.
fn drop_ins(dir: &Path) -> Result<Vec<PathBuf>> {
    let doing = || format!("read {}", dir.display());
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.doing(doing)?,
    };
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>().doing(doing)?;
    let is_conf = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "conf");
    let mut paths: Vec<PathBuf> = paths.into_iter().filter(is_conf).collect();
    if paths.len() > MAX_FILES {
        return Err(Error::new(Kind::FailedPrecondition, format!("{}: more than {MAX_FILES} files", dir.display())));
    }
    paths.sort();
    Ok(paths)
}

fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_FILE + 1).read_to_string(&mut text)?;
    match text.len() as u64 > MAX_FILE {
        true => Err(std::io::Error::new(ErrorKind::InvalidData, format!("larger than {MAX_FILE} bytes"))),
        false => Ok(text),
    }
}

#[cfg(test)]
mod tests;
