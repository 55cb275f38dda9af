//! A bundle: a directory with `config.json` and a root file system.

use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use oci_spec::runtime::Spec;
use rung_spec::config;

use crate::error::{Doing as _, Error, Kind, Result};
use crate::log;

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
        let file = config_path.map_or_else(|| path.join("config.json"), Path::to_owned);
        let text = match std::fs::read_to_string(&file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let message = format!("JSON specification file {} not found", file.display());
                return Err(Error::new(Kind::NotFound, message));
            }
            other => other.doing(|| format!("read {}", file.display()))?,
        };
        let spec = parse(&text, &file)?;
        check_version(spec.version())?;
        Ok(Self { path, text, spec })
    }

    /// The root file system, with links resolved.
    pub fn rootfs(&self) -> Result<PathBuf> {
        let root = self.spec.root().as_ref().ok_or_else(|| Error::invalid("root: property is required"))?;
        if root.path().as_os_str().is_empty() {
            return Err(Error::invalid("root.path: must not be empty"));
        }
        let path = self.path.join(root.path());
        resolve(&path).doing(|| format!("root.path: invalid rootfs: open {}", path.display()))
    }
}

/// Reads a configuration and warns of what was set aside.
pub fn parse(text: &str, file: &Path) -> Result<Spec> {
    let parsed = config::parse(text.as_bytes())
        .map_err(|error| Error::invalid(error.to_string()))
        .doing(|| format!("read {}", file.display()))?;
    for (path, name) in &parsed.unknown_capabilities {
        log::warning(&format!("{path}: unknown capability {name} is ignored"));
    }
    Ok(parsed.value)
}

/// A directory's path as the kernel says it: absolute, without links, and of what was really opened.
fn resolve(path: &Path) -> Result<PathBuf> {
    let fd = open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    Ok(std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?)
}

fn check_version(version: &str) -> Result<()> {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let core = version.split(['-', '+']).next().unwrap_or_default();
    let parts: Vec<&str> = core.split('.').collect();
    match parts[..] {
        [major, minor, patch] if digits(major) && digits(minor) && digits(patch) => {
            if major == "1" {
                return Ok(());
            }
            Err(Error::invalid(format!("ociVersion: unsupported version {version} (1.x is)")))
        }
        _ => Err(Error::invalid(format!("ociVersion: {version:?} is no version"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for good in ["1.0.0", "1.3.0", "1.2.0-dev", "1.0.2+build"] {
            assert!(check_version(good).is_ok(), "{good}");
        }
        for bad in ["", "1", "2.0.0", "0.9.0", "1.x.0"] {
            assert!(check_version(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_missing_configuration_is_named() {
        let directory = tempfile::tempdir().expect("temp");
        let error = Bundle::open(directory.path(), None).expect_err("missing");
        assert_eq!(error.kind(), Kind::NotFound);
        assert!(error.to_string().contains("config.json not found"), "{error}");
        assert!(Bundle::open(&directory.path().join("nope"), None).is_err());
    }
}
