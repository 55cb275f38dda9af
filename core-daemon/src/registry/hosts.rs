//! The hosts that stand for a registry, in the order they are tried.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::conf::Route;
use super::hosts_file::{self, Configured};
use super::reach::{self, Reach, is_private, same_origin};
use super::transport::{Clients, Tls};
use super::{Access, Wiretap};
use crate::error::{Error, Kind, Result};

/// One address of a registry.
#[derive(Clone)]
pub(super) struct Host {
    /// Scheme, host, port and path up to and with `/v2`.
    pub(super) base: reqwest::Url,
    clients: Arc<Clients>,
    tls: Tls,
    /// What the client of the daemon lets pass of certificates, wherever they are met.
    skip_verify: bool,
    /// Where its own name may lead.
    reach: Reach,
    /// It was met at a private address, so it may send us to others.
    pub(super) is_near: Arc<AtomicBool>,
    pub(super) headers: http::HeaderMap,
    /// Stands for another registry, which it is told.
    pub(super) mirrors: Option<String>,
    /// Is the registry that the reference names, for which the client's account is.
    pub(super) is_registry: bool,
    /// The repository's path there, where registries.conf says so.
    pub(super) path: Option<String>,
    pub(super) resolves: bool,
    pub(super) pulls: bool,
    pub(super) pushes: bool,
    /// The same registry without TLS, for when nobody speaks TLS there.
    pub(super) stands_in: bool,
    /// It has answered in the other's place, which is not asked any more. The two have this in common.
    pub(super) is_plain: Arc<AtomicBool>,
    /// It kept us waiting for nothing once, and so is not waited for again while there are others.
    hangs: Arc<AtomicBool>,
    /// How long it may send nothing.
    pub(super) stall: Duration,
    /// Another is asked where it fails, so it is not asked again.
    pub(super) leads_on: bool,
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

    /// The same, which is not asked again where it fails if `leads_on`.
    pub(super) fn asked(&self, leads_on: bool) -> Self {
        Self { leads_on, ..self.clone() }
    }

    /// Remembers that it hangs, where that is how it failed.
    pub(super) fn remember(&self, error: &Error) {
        self.hangs.fetch_or(error.kind() == Kind::DeadlineExceeded, Ordering::Relaxed);
    }

    /// Whether it has kept us waiting for nothing.
    pub(super) fn hangs(&self) -> bool {
        self.hangs.load(Ordering::Relaxed)
    }

    /// The client for an address, of this host or where it sends us.
    pub(super) fn client_for(&self, url: &reqwest::Url) -> Result<reqwest::Client> {
        let reach = if same_origin(url, &self.base) { self.reach } else { self.elsewhere() };
        self.clients.get(&self.tls_for(url), reach, url)
    }

    /// What holds for another machine that it sends us to: the authorities that are trusted, but neither our certificate
    /// nor that its own may be anybody's.
    fn tls_for(&self, url: &reqwest::Url) -> Tls {
        if url.host_str() == self.base.host_str() {
            return self.tls.clone();
        }
        Tls { skip_verify: self.skip_verify, identities: Vec::new(), ..self.tls.clone() }
    }

    /// Whether it may send us to `to`.
    pub(super) fn check_elsewhere(&self, to: &reqwest::Url) -> Result<(), &'static str> {
        reach::check_elsewhere(&self.base, self.is_near.load(Ordering::Relaxed), to)
    }

    /// Whether requests to `url` go to it without anybody between.
    pub(super) fn is_reached_directly(&self, url: &reqwest::Url) -> bool {
        !self.clients.proxies.intercept(url)
    }

    fn elsewhere(&self) -> Reach {
        if self.is_near.load(Ordering::Relaxed) { Reach::NotLinkLocal } else { Reach::Public }
    }

    /// The token service that it names: no further from it than a redirect may lead.
    pub(super) fn service_at(&self, realm: reqwest::Url) -> Self {
        let reach = if same_origin(&realm, &self.base) { self.reach } else { self.elsewhere() };
        let tls = self.tls_for(&realm);
        Self { base: realm, headers: http::HeaderMap::new(), tls, reach, is_near: Arc::default(), ..self.clone() }
    }
}

/// The hosts of the registry `name`. One that is `insecure` needs no TLS, nor a certificate that is trusted.
pub(super) fn of(
    clients: &Arc<Clients>,
    config_path: &Path,
    (name, insecure): (&str, bool),
    access: &Access,
) -> Result<Vec<Host>> {
    let hosts_file::Hosts { mirrors, mut server } = hosts_file::read(config_path, name)?;
    server.tls.skip_verify |= insecure;
    let is_twice = mirrors.iter().any(|host| host.url == server.url);
    let mut hosts = Vec::new();
    for host in mirrors {
        hosts.push(configured_host(clients, host, name, access)?);
    }
    // Who names a server means it in place of the registry. One that stands among the others already is not needed.
    match server {
        _ if is_twice => {}
        server if !server.url.is_empty() => hosts.push(configured_host(clients, server, name, access)?),
        server if !hosts.iter().any(|host| host.mirrors.is_none()) => {
            hosts.extend(own(clients, (name, insecure), access, server)?);
        }
        _ => {}
    }
    Ok(hosts)
}

/// The hosts that a name leads to: those of each place in its turn. What is pushed goes to the registry `name` itself.
pub(super) fn along(
    clients: &Arc<Clients>,
    config_path: &Path,
    (name, path): (&str, &str),
    route: &Route,
    access: &Access,
) -> Result<Vec<Host>> {
    let mut hosts = Vec::new();
    for place in &route.places {
        let is_named = place.host == name && place.path == path;
        for host in of(clients, config_path, (&place.host, place.insecure), access)? {
            let (is_registry, pushes) = (host.is_registry && place.host == name, host.pushes && is_named);
            hosts.push(Host { is_registry, pushes, path: Some(place.path.clone()), ..host });
        }
    }
    if !hosts.iter().any(|host| host.pushes) {
        let only_pushes = |host| Host { resolves: false, pulls: false, ..host };
        hosts.extend(of(clients, config_path, (name, route.insecure), access)?.into_iter().map(only_pushes));
    }
    Ok(hosts)
}

fn authority(name: &str) -> &str {
    if name == "docker.io" { "registry-1.docker.io" } else { name }
}

fn configured_host(clients: &Arc<Clients>, host: Configured, name: &str, access: &Access) -> Result<Host> {
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
    let base = Base { base, mirrors, stands_in: false, can: (host.resolves, host.pulls, host.pushes) };
    host_at(clients, base, tls, headers(&all)?, access)
}

/// What differs between the hosts of one registry.
struct Base {
    base: reqwest::Url,
    mirrors: Option<String>,
    stands_in: bool,
    /// Resolve, pull, push.
    can: (bool, bool, bool),
}

fn host_at(clients: &Arc<Clients>, at: Base, tls: Tls, headers: http::HeaderMap, access: &Access) -> Result<Host> {
    // Its files are read now, so that an error in them is the first thing that is told.
    clients.get(&tls, Reach::Anywhere, &at.base)?;
    let (resolves, pulls, pushes) = at.can;
    Ok(Host {
        is_near: Arc::new(AtomicBool::new(is_private(&at.base))),
        base: at.base,
        clients: clients.clone(),
        tls,
        skip_verify: access.skip_verify,
        reach: Reach::Anywhere,
        headers,
        is_registry: at.mirrors.is_none(),
        mirrors: at.mirrors,
        path: None,
        resolves,
        pulls,
        pushes,
        stands_in: at.stands_in,
        is_plain: Arc::default(),
        hangs: Arc::default(),
        stall: clients.patience,
        leads_on: false,
        wiretap: access.wiretap.clone(),
    })
}

/// The registry itself, with what is configured for it.
fn own(
    clients: &Arc<Clients>,
    (name, insecure): (&str, bool),
    access: &Access,
    configured: Configured,
) -> Result<Vec<Host>> {
    let mut all = access.headers.clone();
    all.extend(configured.headers);
    let headers = headers(&all)?;
    let authority = authority(name);
    let is_loopback = format!("http://{authority}/").parse().is_ok_and(|url: reqwest::Url| reach::is_loopback(&url));
    let is_plain = access.plain_http || is_loopback && authority.ends_with(":80");
    let mut tls = configured.tls;
    // On this machine itself nobody listens in on HTTP without TLS, and a registry for trying things has a certificate
    // that it made itself.
    tls.skip_verify |= access.skip_verify || is_loopback;
    let schemes: &[&str] = match (is_plain, is_loopback || insecure) {
        (true, _) => &["http"],
        (false, true) => &["https", "http"],
        (false, false) => &["https"],
    };
    let found = Arc::new(AtomicBool::new(false));
    let host = |scheme: &&str| {
        let base = format!("{scheme}://{authority}/v2/");
        let base = base.parse().map_err(|error| Error::invalid(format!("registry {name}: {error}")))?;
        let base = Base { base, mirrors: None, stands_in: *scheme != schemes[0], can: (true, true, true) };
        let host = host_at(clients, base, tls.clone(), headers.clone(), access)?;
        Ok(Host { is_plain: found.clone(), ..host })
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

#[cfg(test)]
mod tests {
    use super::super::conf::Place;
    use super::*;

    #[test]
    fn what_is_configured_for_a_host_is_not_for_where_it_sends_us() {
        let dir = tempfile::tempdir().expect("temporary directory");
        std::fs::create_dir(dir.path().join("r.io")).expect("directory");
        let text = "server = \"http://r.io\"\nskip_verify = true\n";
        std::fs::write(dir.path().join("r.io/hosts.toml"), text).expect("file");
        let host = |access: &Access| {
            let mut host = of(&Arc::default(), dir.path(), ("r.io", false), access).expect("hosts").remove(0);
            host.tls.identities = vec![("c".into(), "k".into())];
            host.tls.authorities = vec!["a".into()];
            host
        };
        let url = |text: &str| text.parse::<reqwest::Url>().expect("url");
        let is_lax = |host: &Host, at: &str| {
            let (tls, service) = (host.tls_for(&url(at)), host.service_at(url(at)).tls);
            assert_eq!(tls, service, "{at}");
            assert_eq!(tls.authorities, host.tls.authorities, "{at}");
            (tls.skip_verify, !tls.identities.is_empty())
        };
        let configured = host(&Access::default());
        assert_eq!(is_lax(&configured, "https://r.io:5001/token"), (true, true));
        assert_eq!(is_lax(&configured, "https://cdn.io/blob"), (false, false));
        let asked = host(&Access { skip_verify: true, ..Access::default() });
        assert_eq!(is_lax(&asked, "https://cdn.io/blob"), (true, false));
    }

    #[test]
    fn a_registry_of_this_machine_needs_no_certificate() {
        let hosts = |name| of(&Arc::default(), Path::new("/nonexistent"), name, &Access::default()).expect("hosts");
        let shown = |name| {
            hosts((name, name == "insecure.io"))
                .iter()
                .map(|host| (host.base.scheme().to_owned(), host.tls.skip_verify))
                .collect()
        };
        let (https, http) = ("https".to_owned(), "http".to_owned());
        let cases: [(_, Vec<_>); 5] = [
            ("localhost:5000", vec![(https.clone(), true), (http.clone(), true)]),
            ("127.0.0.1:5000", vec![(https.clone(), true), (http.clone(), true)]),
            ("insecure.io", vec![(https.clone(), true), (http.clone(), true)]),
            ("localhost:80", vec![(http, true)]),
            ("r.io", vec![(https, false)]),
        ];
        for (name, wanted) in cases {
            let all: Vec<_> = shown(name);
            assert_eq!(all, wanted, "{name}");
        }
    }

    #[test]
    fn a_route_leads_to_its_places_and_pushes_to_the_registry() {
        let dir = tempfile::tempdir().expect("temporary directory");
        std::fs::create_dir(dir.path().join("m.io")).expect("directory");
        std::fs::write(dir.path().join("m.io/hosts.toml"), "[host.\"https://near.io\"]\n").expect("file");
        let place = |host: &str, path: &str, insecure| Place { host: host.into(), path: path.into(), insecure };
        let shown = |last: Place| {
            let route = Route { insecure: last.insecure, places: vec![place("m.io", "cache/x", false), last] };
            let hosts = along(&Arc::default(), dir.path(), ("r.io", "x"), &route, &Access::default()).expect("hosts");
            let shown = |host: &Host| {
                let path = host.path.as_deref().unwrap_or("itself");
                let can = [(host.pulls, "pulls"), (host.pushes, "pushes"), (host.is_registry, "account")];
                let can: Vec<&str> = can.into_iter().filter(|(can, _)| *can).map(|(_, what)| what).collect();
                format!("{}://{} {path} {}", host.base.scheme(), host.name(), can.join(" "))
            };
            hosts.iter().map(shown).collect::<Vec<_>>()
        };
        let mirrors = ["https://near.io cache/x pulls", "https://m.io cache/x pulls"];
        let own = ["https://r.io x pulls pushes account", "http://r.io x pulls pushes account"];
        assert_eq!(shown(place("r.io", "x", true)), [&mirrors[..], &own[..]].concat());
        let other = ["https://o.io y pulls", "https://r.io itself pushes account"];
        assert_eq!(shown(place("o.io", "y", false)), [&mirrors[..], &other[..]].concat());
    }
}
