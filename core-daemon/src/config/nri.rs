//! The part of the configuration that is about plugins of the node resource interface.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::MAX_SOCKET_PATH;
use crate::error::{Error, Result};

/// Most seconds that a plugin may be given for anything: calls about pods wait for it.
const LONGEST: u64 = 3600;

/// Plugins of the node resource interface, which see pods and containers come and go, and may change containers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Nri {
    /// Plugins are spoken to.
    pub enable: bool,
    /// Plugins that somebody else starts may connect.
    pub external: bool,
    /// Where they connect.
    pub socket: PathBuf,
    /// Directory of plugins that the daemon starts: programs called `NN-name`, where `NN` is their place in the order.
    pub plugin_dir: PathBuf,
    /// Directory of these plugins' own configurations: `NN-name.conf`, or else `name.conf`.
    pub config_dir: PathBuf,
    /// Seconds that a plugin may take to register, and to take note of all pods and containers.
    pub registration_timeout: u64,
    /// Seconds that a plugin may take for a request; one that takes longer is dropped.
    pub request_timeout: u64,
    /// What plugins may not do.
    pub validator: NriValidator,
}

/// What plugins may not do. With `enable`, a container is not made whose plugins did it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NriValidator {
    /// The rest of this section counts.
    pub enable: bool,
    /// Plugins may not add hooks.
    pub reject_hooks: bool,
    /// Plugins may not change the filter of system calls of containers that have the usual one.
    pub reject_default_seccomp: bool,
    /// The same of containers that have none.
    pub reject_unconfined_seccomp: bool,
    /// The same of containers that have one of their own.
    pub reject_custom_seccomp: bool,
    /// Plugins may not change namespaces.
    pub reject_namespaces: bool,
    /// Plugins may not change kernel parameters.
    pub reject_sysctls: bool,
    /// Plugins without which no container is made, as `name` or `NN-name`.
    pub required_plugins: Vec<String>,
    /// Annotation by which a pod says that its containers can do without them; empty: none.
    pub tolerate_missing_annotation: String,
}

impl Default for Nri {
    fn default() -> Self {
        Self {
            enable: true,
            external: true,
            socket: "/var/run/nri/nri.sock".into(),
            plugin_dir: "/opt/nri/plugins".into(),
            config_dir: "/etc/nri/conf.d".into(),
            registration_timeout: 5,
            request_timeout: 2,
            validator: NriValidator::default(),
        }
    }
}

impl Nri {
    pub(super) fn check(&self) -> Result<()> {
        let paths = [("socket", &self.socket), ("plugin_dir", &self.plugin_dir), ("config_dir", &self.config_dir)];
        for (key, path) in paths {
            if !path.is_absolute() {
                return Err(Error::invalid(format!("cri.nri.{key}: {}: path must be absolute", path.display())));
            }
        }
        if self.socket.as_os_str().len() > MAX_SOCKET_PATH {
            let path = self.socket.display();
            return Err(Error::invalid(format!("cri.nri.socket: {path}: longer than {MAX_SOCKET_PATH} bytes")));
        }
        let timeouts = [("registration_timeout", self.registration_timeout), ("request_timeout", self.request_timeout)];
        match timeouts.into_iter().find(|(_, seconds)| !(1..=LONGEST).contains(seconds)) {
            Some((key, seconds)) => {
                Err(Error::invalid(format!("cri.nri.{key}: {seconds} is not between 1 and {LONGEST}")))
            }
            None => Ok(()),
        }
    }
}
