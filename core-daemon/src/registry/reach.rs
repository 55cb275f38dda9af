//! Where a registry may send us: by the address it spells out, and by what a name turns out to be when it is dialled.
//!
//! A public registry has no business with this machine's own network, and none at all has any with link-local addresses,
//! where clouds answer with the machine's secrets.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::renewed::Renewed;

/// What says how names are looked up.
const NAME_FILES: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];

/// How long a name is looked up: less than a connection may take, of which we would hear only that it took too long.
const LOOK_UP: Duration = Duration::from_secs(12);

/// What addresses a name may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Reach {
    /// The user named it.
    Anywhere,
    /// A registry of our own network named it.
    NotLinkLocal,
    /// A public registry named it.
    Public,
}

impl Reach {
    fn has(self, address: IpAddr) -> bool {
        match self {
            Self::Anywhere => true,
            Self::NotLinkLocal => !is_link_local(address),
            Self::Public => !is_private_address(address),
        }
    }
}

pub(super) fn same_origin(a: &Url, b: &Url) -> bool {
    a.scheme() == b.scheme() && a.host_str() == b.host_str() && a.port_or_known_default() == b.port_or_known_default()
}

/// Whether a registry at `base`, which may be near whatever its name, may send us to `to`.
pub(super) fn check_elsewhere(base: &Url, is_near: bool, to: &Url) -> Result<(), &'static str> {
    if !matches!(to.scheme(), "http" | "https") {
        return Err("not http");
    }
    if same_origin(base, to) {
        return Ok(());
    }
    if to.host_str().and_then(address).is_some_and(is_link_local) {
        return Err("a link-local address, which no registry has business with");
    }
    if is_private(to) && !is_near {
        return Err("a private address, which a public registry has no business with");
    }
    if base.scheme() == "https" && to.scheme() == "http" {
        return Err("from https to http, where anyone could read and change it");
    }
    Ok(())
}

/// The address that a host spells out, if it is no name.
pub(super) fn address(host: &str) -> Option<IpAddr> {
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// Whether a URL leads to this machine, by what it spells out.
pub(super) fn is_loopback(url: &Url) -> bool {
    url.host_str().is_some_and(|host| host == "localhost" || address(host).is_some_and(|address| address.is_loopback()))
}

/// Whether a URL leads to this machine or its own network, by what it spells out.
pub(super) fn is_private(url: &Url) -> bool {
    let Some(host) = url.host_str() else { return true };
    // With a dot at its end a name is the same name.
    let host = host.trim_end_matches('.');
    host == "localhost" || host.ends_with(".localhost") || address(host).is_some_and(is_private_address)
}

pub(super) fn is_private_address(address: IpAddr) -> bool {
    match plain(address) {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            // 0.0.0.0/8 is this machine, 100.64.0.0/10 a provider's or an overlay's own network.
            let is_shared = a == 100 && (64..128).contains(&b);
            v4.is_loopback() || v4.is_private() || v4.is_link_local() || v4.is_broadcast() || a == 0 || is_shared
        }
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unspecified() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match plain(address) {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// The IPv4 address that an IPv6 address stands for: mapped, or behind the well-known prefix of translators.
fn plain(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let segments = v6.segments();
    if segments[..6] == [0x64, 0xff9b, 0, 0, 0, 0] {
        let [a, b, c, d] = [segments[6] >> 8, segments[6] & 0xff, segments[7] >> 8, segments[7] & 0xff]
            .map(|byte| u8::try_from(byte).unwrap_or_default());
        return Ipv4Addr::new(a, b, c, d).into();
    }
    v6.to_ipv4_mapped().map_or(address, IpAddr::V4)
}

/// Resolves names to the addresses that they may have. It is the connection's own look-up, so nothing comes in between.
pub(super) struct Resolver {
    reach: Reach,
    /// Made with the first name, because it wants a runtime.
    names: Arc<Renewed<TokioResolver>>,
}

impl Resolver {
    pub(super) fn new(reach: Reach) -> Arc<Self> {
        Arc::new(Self { reach, names: Arc::default() })
    }
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (reach, names) = (self.reach, self.names.clone());
        Box::pin(async move {
            let resolver = names.get(&NAME_FILES.map(Path::new), look_up)?;
            let found = tokio::time::timeout(LOOK_UP, resolver.lookup_ip(name.as_str())).await;
            let found =
                found.unwrap_or(Err(NetError::Timeout)).map_err(|error| Unresolved::new(name.as_str(), &error))?;
            let found: Vec<IpAddr> = found.iter().collect();
            let allowed = allowed(reach, name.as_str(), &found)?;
            Ok(Box::new(allowed.into_iter().map(|address| SocketAddr::new(address, 0))) as Addrs)
        })
    }
}

/// A name that could not be looked up. What looks it up says why in records and queries; this says it to people.
#[derive(Debug)]
pub(super) struct Unresolved {
    name: String,
    why: String,
}

impl Unresolved {
    fn new(name: &str, error: &NetError) -> Self {
        let why = match error {
            NetError::Dns(DnsError::NoRecordsFound(none)) if none.response_code == ResponseCode::NXDomain => {
                "there is no such name".to_owned()
            }
            NetError::Dns(DnsError::NoRecordsFound(_)) => "the name has no address".to_owned(),
            NetError::Dns(DnsError::ResponseCode(code)) => format!("the name server answers {:?}", code.to_str()),
            NetError::Timeout | NetError::NoConnections | NetError::Busy | NetError::Io(_) => {
                "no name server answers".to_owned()
            }
            other => other.to_string(),
        };
        Self { name: name.to_owned(), why }
    }
}

impl fmt::Display for Unresolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot look up {}: {}", self.name, self.why)
    }
}

impl std::error::Error for Unresolved {}

/// Looks names up as this machine is configured to. Where it is not, it may still know some itself.
fn look_up() -> Result<TokioResolver, NetError> {
    let bare = || TokioResolver::builder_with_config(ResolverConfig::default(), TokioRuntimeProvider::default());
    let mut builder = TokioResolver::builder_tokio().unwrap_or_else(|error| {
        tracing::debug!(%error, "this machine says no name servers");
        bare()
    });
    builder.options_mut().ip_strategy = LookupIpStrategy::Ipv6AndIpv4;
    builder.build()
}

fn allowed(reach: Reach, name: &str, found: &[IpAddr]) -> io::Result<Vec<IpAddr>> {
    // A proxy is whom the user named, and it looks up names itself.
    let reach = if is_proxy(name) { Reach::Anywhere } else { reach };
    let allowed: Vec<IpAddr> = found.iter().copied().filter(|address| reach.has(*address)).collect();
    if allowed.is_empty() && !found.is_empty() {
        return Err(io::Error::other(format!("{name} has a private address, where the registry may not send us")));
    }
    Ok(allowed)
}

fn is_proxy(name: &str) -> bool {
    ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"].iter().any(|variable| {
        let Ok(value) = std::env::var(variable) else { return false };
        let url = if value.contains("://") { value.parse::<Url>() } else { format!("http://{value}").parse() };
        url.is_ok_and(|url| url.host_str() == Some(name))
    })
}

#[cfg(test)]
mod tests {
    use hickory_resolver::net::NoRecords;
    use hickory_resolver::proto::op::Query;

    use super::*;

    #[test]
    fn names_lead_only_where_the_registry_may_send_us() {
        let public: IpAddr = "93.184.216.34".parse().expect("address");
        for (text, near) in [
            ("10.0.0.1", true),
            ("100.64.0.1", true),
            ("fd00::1", true),
            ("127.0.0.1", true),
            ("169.254.169.254", false),
            ("fe80::1", false),
            ("64:ff9b::a9fe:a9fe", false),
        ] {
            let private: IpAddr = text.parse().expect("address");
            assert_eq!(allowed(Reach::Public, "x.io", &[private, public]).expect("one is left"), [public], "{text}");
            assert!(allowed(Reach::Public, "x.io", &[private]).is_err(), "{text}");
            assert_eq!(allowed(Reach::NotLinkLocal, "x.io", &[private]).is_ok(), near, "{text}");
            assert!(allowed(Reach::Anywhere, "x.io", &[private]).is_ok(), "{text}");
        }
    }

    #[test]
    fn a_name_that_is_not_known_is_told_in_words() {
        let none = |code| NetError::from(DnsError::NoRecordsFound(NoRecords::new(Query::default(), code)));
        for (error, says) in [
            (none(ResponseCode::NXDomain), "cannot look up x.io: there is no such name"),
            (none(ResponseCode::NoError), "cannot look up x.io: the name has no address"),
            (
                DnsError::ResponseCode(ResponseCode::Refused).into(),
                "cannot look up x.io: the name server answers \"Query Refused\"",
            ),
            (NetError::NoConnections, "cannot look up x.io: no name server answers"),
        ] {
            assert_eq!(Unresolved::new("x.io", &error).to_string(), says);
        }
    }
}
