//! A bundle: a directory with `config.json` and a root file system.

use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use rung_spec::{config, validate};
use rung_sys::file;

use crate::error::{Doing as _, Error, Kind, Result};
use crate::log;
use crate::subids;

/// A bundle that was read.
#[derive(Debug)]
pub struct Bundle {
    /// Its directory, with links resolved.
    pub path: PathBuf,
    /// The text of its configuration.
    pub text: String,
    /// The configuration.
    pub spec: Spec,
}

impl Bundle {
    /// Reads the bundle at `path`; `config` names another file than the bundle's own.
    pub fn open(path: &Path, config_path: Option<&Path>) -> Result<Self> {
        let path = resolve(path).doing(|| format!("open bundle {}", path.display()))?;
        let config = config_path.map_or_else(|| path.join("config.json"), Path::to_owned);
        let text = match file::read_to_string(&config) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let message = format!("JSON specification file {} not found", config.display());
                return Err(Error::new(Kind::NotFound, message));
            }
            other => other.doing(|| format!("read {}", config.display()))?,
        };
        let spec = parse(&text, &config)?;
        check(&spec).doing(|| format!("check {}", config.display()))?;
        let mut bundle = Self { path, text, spec };
        if !nix::unistd::geteuid().is_root() && !bundle.speaks_of_users() {
            subids::add_user_namespace(&mut bundle)?;
        }
        Ok(bundle)
    }

    /// Whether the configuration has a user namespace, or mappings for one, which then are wrong.
    fn speaks_of_users(&self) -> bool {
        let Some(linux) = self.spec.linux() else { return false };
        let mut namespaces = linux.namespaces().iter().flatten();
        namespaces.any(|namespace| namespace.typ() == LinuxNamespaceType::User)
            || linux.uid_mappings().is_some()
            || linux.gid_mappings().is_some()
    }

    /// The root file system, with links resolved.
    pub fn rootfs(&self) -> Result<PathBuf> {
        let root = self.spec.root().as_ref().ok_or_else(|| Error::invalid("root must be specified"))?;
        if root.path().as_os_str().is_empty() {
            return Err(Error::invalid("root.path: must not be empty"));
        }
        let path = self.path.join(root.path());
        resolve(&path).doing(|| format!("root.path: invalid rootfs: open {}", path.display()))
    }
}

/// Reads a configuration and warns of what was set aside.
pub fn parse(text: &str, file: &Path) -> Result<Spec> {
    let parsed = config::parse(text)
        .map_err(|error| {
            let field = error.path.strip_prefix("linux.memoryPolicy").map(|rest| match rest {
                _ if rest.starts_with(".flags") => "invalid memory policy flag: ",
                _ if rest.starts_with(".nodes") => "invalid memory policy node: ",
                _ => "invalid memory policy mode: ",
            });
            Error::invalid(format!("{}{error}", field.unwrap_or_default()))
        })
        .doing(|| format!("read {}", file.display()))?;
    for (path, name) in &parsed.unknown_capabilities {
        log::warning(&format!("{path}: unknown capability {name} is ignored"));
    }
    Ok(parsed.value)
}

/// A directory's path as the kernel says it: absolute, without links, and of what was really opened.
fn resolve(path: &Path) -> Result<PathBuf> {
    let fd = file::open(path, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
    Ok(std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?)
}

/// Holds the configuration against the rules of the specification; every mistake is named.
fn check(spec: &Spec) -> Result<()> {
    validate::check(spec).map_err(|violations| {
        let all: Vec<String> = violations.iter().map(ToString::to_string).collect();
        Error::invalid(all.join("; "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_configuration_is_named() {
        let directory = tempfile::tempdir().expect("temp");
        let error = Bundle::open(directory.path(), None).expect_err("missing");
        assert_eq!(error.kind(), Kind::NotFound);
        assert!(error.to_string().contains("config.json not found"), "{error}");
        assert!(Bundle::open(&directory.path().join("nope"), None).is_err());
    }
}
