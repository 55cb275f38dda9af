//! The client of registries: the distribution protocol over HTTP.
//!
//! ```text
//! Registry ── repository(reference) ──► Repository ── resolve, document, blob
//!                                          │
//!              hosts: in order, the first that answers · auth: a token for each host and scope · transport: one request
//! ```
//!
//! A registry is hostile: what it sends is bounded and checked against digests, where it redirects to gets no
//! credentials of another host, and a public one cannot send us to private addresses.

mod auth;
mod challenge;
mod error;
mod fetch;
mod hosts;
mod hosts_file;
mod transport;

use std::path::PathBuf;
use std::sync::Arc;

use rung_spec::reference::Reference;

pub use fetch::{BlobStream, Resolved};
pub use transport::{USER_AGENT, client};

use crate::error::Result;
use auth::Tokens;
use hosts::Host;

/// An account at a registry.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Credentials {
    /// Name; empty: `secret` is an identity token.
    pub username: String,
    /// Password or identity token.
    pub secret: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// How to speak to a registry.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// Speak HTTP without TLS, wherever it is.
    pub plain_http: bool,
    /// Do not check its certificate.
    pub skip_verify: bool,
    /// The account to use.
    pub credentials: Option<Credentials>,
    /// Headers for every request.
    pub headers: Vec<(String, String)>,
    /// Directory of `HOST/hosts.toml`, in place of the configured one.
    pub config_path: Option<PathBuf>,
}

/// The way to all registries. Clones share connections.
#[derive(Clone)]
pub struct Registry {
    clients: Arc<transport::Clients>,
    config_path: PathBuf,
}

impl Registry {
    /// Reads what is configured of hosts below `config_path`, anew for each image.
    pub fn new(config_path: PathBuf) -> Self {
        Self { clients: Arc::default(), config_path }
    }

    /// The repository of an image.
    ///
    /// # Errors
    /// When what is configured of its host cannot be read.
    pub fn repository(&self, reference: &Reference, access: &Access) -> Result<Repository> {
        let config_path = access.config_path.as_ref().unwrap_or(&self.config_path);
        let hosts = hosts::of(&self.clients, config_path, &reference.host, access)?;
        Ok(Repository {
            hosts: hosts.into(),
            host: reference.host.clone(),
            path: reference.repository.clone(),
            credentials: access.credentials.clone(),
            tokens: Arc::default(),
        })
    }
}

/// One repository, for one image's worth of requests. Clones share tokens.
#[derive(Clone)]
pub struct Repository {
    hosts: Arc<[Host]>,
    /// The registry as the reference names it.
    host: String,
    path: String,
    credentials: Option<Credentials>,
    tokens: Arc<Tokens>,
}

impl Repository {
    /// The registry as the reference names it.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The repository's path in it.
    pub fn path(&self) -> &str {
        &self.path
    }
}

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;
