//! The hosts that stand for a registry, in the order they are tried.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::hosts_file::{self, Configured};
use super::transport::{Clients, STALL, Tls};
use super::{Access, Wiretap};
use crate::error::{Error, Result};

/// One address of a registry.
#[derive(Clone)]
pub(super) struct Host {
    /// Scheme, host, port and path up to and with `/v2`.
    pub(super) base: reqwest::Url,
    pub(super) client: reqwest::Client,
    pub(super) headers: http::HeaderMap,
    /// Stands for another registry, which it is told.
    pub(super) mirrors: Option<String>,
    pub(super) resolves: bool,
    pub(super) pulls: bool,
    pub(super) pushes: bool,
    /// The same registry without TLS, for when nobody speaks TLS there.
    pub(super) stands_in: bool,
    /// How long it may send nothing.
    pub(super) stall: Duration,
    pub(super) wiretap: Option<Arc<dyn Wiretap>>,
}

impl Host {
    /// As people know it.
    pub(super) fn name(&self) -> String {
        match (self.base.host_str(), self.base.port()) {
            (Some(host), Some(port)) => format!("{host}:{port}"),
            (Some(host), None) => host.to_owned(),
            (None, _) => self.base.to_string(),
        }
    }
}

/// The hosts of the registry `name`.
pub(super) fn of(clients: &Arc<Clients>, config_path: &Path, name: &str, access: &Access) -> Result<Vec<Host>> {
    let configured = hosts_file::read(config_path, name)?.unwrap_or_default();
    let mut hosts = Vec::new();
    for host in configured {
        hosts.push(configured_host(clients, host, name, access)?);
    }
    // A file without a server names only what comes before the registry itself.
    if !hosts.iter().any(|host| host.mirrors.is_none()) {
        hosts.extend(own(clients, name, access)?);
    }
    Ok(hosts)
}

fn authority(name: &str) -> &str {
    if name == "docker.io" { "registry-1.docker.io" } else { name }
}

fn configured_host(clients: &Clients, host: Configured, name: &str, access: &Access) -> Result<Host> {
    let invalid =
        |problem: &dyn std::fmt::Display| Error::invalid(format!("hosts.toml of {name}: {}: {problem}", host.url));
    let mut base: reqwest::Url = host.url.parse().map_err(|error| invalid(&error))?;
    if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() {
        return Err(invalid(&"is no address of http or https"));
    }
    let path = base.path().trim_end_matches('/').to_owned();
    let ends = host.override_path || path.ends_with("/v2");
    base.set_path(&if ends { format!("{path}/") } else { format!("{path}/v2/") });
    let mut tls = host.tls;
    tls.skip_verify |= access.skip_verify;
    let mut all = access.headers.clone();
    all.extend(host.headers);
    let port = base.port().map(|port| format!(":{port}")).unwrap_or_default();
    let is_own = format!("{}{port}", base.host_str().unwrap_or_default()) == authority(name);
    let mirrors = (!is_own).then(|| name.to_owned());
    let (client, headers) = (clients.get(&tls)?, headers(&all)?);
    let (resolves, pulls, pushes) = (host.resolves, host.pulls, host.pushes);
    let wiretap = access.wiretap.clone();
    Ok(Host { base, client, headers, mirrors, resolves, pulls, pushes, stands_in: false, stall: STALL, wiretap })
}

/// The registry itself.
fn own(clients: &Clients, name: &str, access: &Access) -> Result<Vec<Host>> {
    let headers = headers(&access.headers)?;
    let tls = Tls { skip_verify: access.skip_verify, ..Tls::default() };
    let client = clients.get(&tls)?;
    let authority = authority(name);
    let schemes: &[&str] = match (access.plain_http, is_loopback(authority)) {
        (true, _) => &["http"],
        (false, true) => &["https", "http"],
        (false, false) => &["https"],
    };
    let host = |scheme: &&str| {
        let base = format!("{scheme}://{authority}/v2/");
        let base = base.parse().map_err(|error| Error::invalid(format!("registry {name}: {error}")))?;
        Ok(Host {
            base,
            client: client.clone(),
            headers: headers.clone(),
            mirrors: None,
            resolves: true,
            pulls: true,
            pushes: true,
            stands_in: *scheme != schemes[0],
            stall: STALL,
            wiretap: access.wiretap.clone(),
        })
    };
    schemes.iter().map(host).collect()
}

pub(super) fn headers(pairs: &[(String, String)]) -> Result<http::HeaderMap> {
    let mut headers = http::HeaderMap::new();
    for (name, value) in pairs {
        let invalid = || Error::invalid(format!("registry header {name:?} is malformed"));
        let name = http::HeaderName::from_bytes(name.as_bytes()).map_err(|_| invalid())?;
        headers.append(name, http::HeaderValue::from_str(value).map_err(|_| invalid())?);
    }
    Ok(headers)
}

/// Whether a name with or without port is this machine's own, for which HTTP without TLS hides nothing.
fn is_loopback(authority: &str) -> bool {
    let Ok(url) = format!("http://{authority}/").parse::<reqwest::Url>() else { return false };
    url.host_str().is_some_and(|host| host == "localhost" || address(host).is_some_and(|address| address.is_loopback()))
}

pub(super) fn address(host: &str) -> Option<IpAddr> {
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// Whether a URL leads to this machine or its own network, by the address it spells out.
pub(super) fn is_private(url: &reqwest::Url) -> bool {
    let Some(host) = url.host_str() else { return true };
    if host == "localhost" || host.ends_with(".localhost") {
        return true;
    }
    match address(host) {
        Some(IpAddr::V4(v4)) => is_private_v4(v4),
        Some(IpAddr::V6(v6)) => match v6.to_ipv4_mapped() {
            Some(v4) => is_private_v4(v4),
            None => v6.is_loopback() || v6.is_unspecified() || v6.is_unique_local() || v6.is_unicast_link_local(),
        },
        None => false,
    }
}

fn is_private_v4(v4: std::net::Ipv4Addr) -> bool {
    v4.is_loopback() || v4.is_private() || v4.is_link_local() || v4.is_unspecified() || v4.is_broadcast()
}
