//! The client of registries: the distribution protocol over HTTP.
//!
//! ```text
//! Registry ── repository(reference) ──► Repository ── resolve, document, blob, referrers
//!                                          │      └── pusher ──► Pusher ── has, mount, upload, put
//!              hosts: in order, the first that answers · auth: a token for each host and scope · transport: one request
//! ```
//!
//! A registry is hostile: what it sends is bounded and checked against digests, where it redirects to gets no
//! credentials of another host, and a public one cannot send us to private addresses.

mod accounts;
mod auth;
mod body;
pub mod challenge;
mod conf;
mod error;
mod explain;
mod fetch;
mod hosts;
mod hosts_file;
mod identity;
mod pace;
mod proxies;
mod push;
mod reach;
mod referrers;
mod renewed;
mod slices;
mod transport;
mod warnings;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rung_spec::reference::Reference;

pub use body::Sent;
pub use explain::Explained;
pub use fetch::{BlobStream, Resolved};
pub use pace::Pace;
pub use push::{Pusher, Room, Upload};
pub use slices::Slices;
pub use transport::{USER_AGENT, client};

use crate::error::Result;
use accounts::AccountsFile;
use auth::Tokens;
use conf::{RegistriesConf, Route};
use hosts::Host;
use warnings::Warnings;

/// An account at a registry.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Credentials {
    /// A name and its password.
    Password {
        /// The name.
        username: String,
        /// The password.
        password: String,
    },
    /// A token that tokens are given for: docker's identity token.
    Identity(String),
    /// A whole `Authorization` header, such as `Bearer ...`.
    Header(String),
}

impl Credentials {
    /// A name and its password.
    pub fn password(username: impl Into<String>, password: impl Into<String>) -> Self {
        Self::Password { username: username.into(), password: password.into() }
    }

    /// What may be shown of it.
    pub fn shown(&self) -> String {
        match self {
            Self::Password { username, .. } => format!("user {username}"),
            Self::Identity(_) => "an identity token".to_owned(),
            Self::Header(_) => "an authorization header".to_owned(),
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({})", self.shown())
    }
}

/// Whoever knows accounts. It is asked only for a host that answered and wants one.
#[tonic::async_trait]
pub trait Keyring: fmt::Debug + Send + Sync {
    /// The account at `host`, which may have a port; `challenges` is what it answered with.
    ///
    /// # Errors
    /// When it cannot be known whether there is an account.
    async fn account(&self, host: &str, challenges: &[String]) -> Result<Option<Credentials>>;
}

/// Is told of every request to a registry, without its credentials, and of the answer.
pub trait Wiretap: fmt::Debug + Send + Sync {
    /// Some lines of a request or an answer.
    fn heard(&self, text: &str);
}

/// How to speak to a registry.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// Speak HTTP without TLS, wherever it is.
    pub plain_http: bool,
    /// Do not check its certificate.
    pub skip_verify: bool,
    /// The account at the host that the reference names; no other host gets it.
    pub credentials: Option<Credentials>,
    /// Who knows further accounts, those of mirrors among them.
    pub keyring: Option<Arc<dyn Keyring>>,
    /// Headers for every request.
    pub headers: Vec<(String, String)>,
    /// Directory of `HOST/hosts.toml`, in place of the configured one.
    pub config_path: Option<PathBuf>,
    /// Hears what is said.
    pub wiretap: Option<Arc<dyn Wiretap>>,
}

/// The way to all registries. Clones share connections.
#[derive(Clone)]
pub struct Registry {
    clients: Arc<transport::Clients>,
    config_path: PathBuf,
    accounts: Option<PathBuf>,
    names: RegistriesConf,
}

impl Registry {
    /// Reads what is configured of hosts below `config_path`, anew for each image.
    pub fn new(config_path: PathBuf) -> Self {
        Self { clients: Arc::default(), config_path, accounts: None, names: RegistriesConf::default() }
    }

    /// With the daemon's own accounts, in a file like docker's `config.json`, for hosts at which the caller has none.
    #[must_use]
    pub fn with_accounts(self, file: Option<PathBuf>) -> Self {
        Self { accounts: file, ..self }
    }

    /// With what a file like podman's registries.conf says of names.
    #[must_use]
    pub fn with_registries_conf(self, file: Option<PathBuf>) -> Self {
        Self { names: RegistriesConf::new(file), ..self }
    }

    /// With this for how long a host may send nothing.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { clients: Arc::new(transport::Clients::with_patience(patience)), ..self }
    }

    /// Whether registries.conf may give a name without a registry another meaning than docker's.
    pub fn has_short_names(&self) -> bool {
        self.names.is_configured()
    }

    /// The full names that a name as people type it stands for, of which the first that there is is to be pulled. It waits
    /// for the disk.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no name, or for a short one of which it is not known what it stands for;
    /// `FailedPrecondition` where registries.conf cannot be read or has an error.
    pub fn names_to_pull(&self, text: &str) -> Result<Vec<Reference>> {
        self.names.to_pull(text)
    }

    /// The full names that an image may have here of which `text` is typed; none for what is no name. It waits for the disk.
    ///
    /// # Errors
    /// `FailedPrecondition` where registries.conf cannot be read or has an error.
    pub fn names_here(&self, text: &str) -> Result<Vec<Reference>> {
        self.names.here(text)
    }

    /// The repository of an image.
    ///
    /// # Errors
    /// When what is configured of its host cannot be read; `PermissionDenied` where that is blocked.
    pub fn repository(&self, reference: &Reference, access: &Access) -> Result<Repository> {
        // Who has hosts of its own has no use for those of others.
        let route = match &access.config_path {
            Some(_) => None,
            None => self.names.route(reference)?,
        };
        self.of(&reference.host, &reference.repository, route.as_ref(), access)
    }

    fn of(&self, host: &str, path: &str, route: Option<&Route>, access: &Access) -> Result<Repository> {
        let config_path = access.config_path.as_ref().unwrap_or(&self.config_path);
        let hosts = match route {
            Some(route) => hosts::along(&self.clients, config_path, (host, path), route, access)?,
            None => hosts::of(&self.clients, config_path, (host, self.names.is_insecure(host)?), access)?,
        };
        Ok(Repository {
            hosts: hosts.into(),
            host: host.to_owned(),
            path: path.to_owned(),
            credentials: access.credentials.clone(),
            keyrings: self.keyrings(access),
            tokens: Arc::default(),
            warnings: Arc::default(),
        })
    }

    /// Who is asked for accounts, in order.
    fn keyrings(&self, access: &Access) -> Arc<[Arc<dyn Keyring>]> {
        let own = self.accounts.clone().map(|file| Arc::new(AccountsFile(file)) as Arc<dyn Keyring>);
        access.keyring.clone().into_iter().chain(own).collect()
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
    keyrings: Arc<[Arc<dyn Keyring>]>,
    tokens: Arc<Tokens>,
    warnings: Arc<Warnings>,
}

impl Repository {
    /// The registry as the reference names it.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// What its hosts wanted people to know so far.
    pub fn warnings(&self) -> Vec<String> {
        self.warnings.all()
    }

    /// The repository's path in it.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The repository's path at one of its hosts.
    fn path_at<'a>(&'a self, host: &'a Host) -> &'a str {
        host.path.as_deref().unwrap_or(&self.path)
    }
}

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;
