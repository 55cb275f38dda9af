//! The files of `/etc` that say who and where a container is. They are bound into it and written anew at each start, so
//! they follow the host and need not outlive a power cut.

use std::path::{Path, PathBuf};

use gantry_proto::gantry::engine::v1 as api;
use rung_spec::builder::Bind;
use serde::{Deserialize, Serialize};

use super::start::make_parents;
use crate::error::{Doing, Error, Result};

/// What every hosts file begins with.
const LOCAL_HOSTS: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\n\
                           ff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n";

/// The paths of these files, in a container as on the host. In the container's directory they have the same file names.
pub(super) const PLACES: [&str; 3] = [HOSTS, HOSTNAME, RESOLV_CONF];
const HOSTS: &str = "/etc/hosts";
const HOSTNAME: &str = "/etc/hostname";
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Which of these files a container gets, and what is to be in them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Etc {
    /// Those of [`PLACES`] that no bind of the container covers.
    places: Vec<String>,
    hostname: String,
    /// `NAME:ADDRESS`.
    extra_hosts: Vec<String>,
    host_network: bool,
    dns: Dns,
}

/// Lines of `/etc/resolv.conf` that take the place of the host's of the same kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Dns {
    servers: Vec<String>,
    search: Vec<String>,
    options: Vec<String>,
}

impl Etc {
    /// What the request wants of it, for a container of this name in its network.
    ///
    /// # Errors
    /// `InvalidArgument` for a host that is none.
    pub(super) fn of(request: &api::CreateRequest, hostname: &str) -> Result<Self> {
        for line in &request.extra_hosts {
            host(line)?;
        }
        let dns = Dns::of(request.dns.clone().unwrap_or_default())?;
        let host_network = request.network() == api::Network::Host;
        let own = request.binds.iter().map(|bind| &bind.destination);
        let own: Vec<&String> = own.chain(request.tmpfs.iter().map(|tmpfs| &tmpfs.destination)).collect();
        let is_free = |place: &&str| !own.iter().any(|own| Path::new(place).starts_with(own));
        // With loopback alone there is no name server to reach, unless the request names one.
        let has_dns = host_network || dns != Dns::default();
        let places = PLACES.into_iter().filter(|place| has_dns || *place != RESOLV_CONF);
        Ok(Self {
            places: places.filter(is_free).map(str::to_owned).collect(),
            hostname: hostname.to_owned(),
            extra_hosts: request.extra_hosts.clone(),
            host_network,
            dns,
        })
    }

    /// Whether one of them is at this place.
    pub(super) fn has(&self, place: &Path) -> bool {
        self.places.iter().any(|own| Path::new(own) == place)
    }

    /// Where they are, in the words of `docker inspect`.
    pub(super) fn files(&self, directory: &Path) -> impl Iterator<Item = (String, serde_json::Value)> {
        let names = [(HOSTS, "HostsPath"), (HOSTNAME, "HostnamePath"), (RESOLV_CONF, "ResolvConfPath")];
        names.into_iter().map(move |(place, name)| {
            let path = if self.has(Path::new(place)) { file(directory, place) } else { PathBuf::new() };
            (name.to_owned(), path.to_string_lossy().into())
        })
    }

    /// The binds of them, from the container's directory.
    pub(super) fn binds(&self, directory: &Path, read_only: bool) -> Vec<Bind> {
        let bind = |place: &String| Bind {
            source: file(directory, place).to_string_lossy().into_owned(),
            destination: place.clone(),
            read_only,
            ..Bind::default()
        };
        self.places.iter().map(bind).collect()
    }

    /// Writes them into the container's directory.
    ///
    /// # Errors
    /// When a file of the host cannot be read, or one of the container's not be written.
    pub(super) fn write(&self, directory: &Path) -> Result<()> {
        for place in &self.places {
            let text = match place.as_str() {
                HOSTNAME => format!("{}\n", self.hostname).into_bytes(),
                HOSTS => self.hosts()?.into_bytes(),
                _ => self.dns.over(of_host(place)?),
            };
            let path = file(directory, place);
            make_parents(&path)?;
            let written = rung_sys::atomic_file::write_volatile(&path, &text, 0o644);
            written.map_err(std::io::Error::from).doing(|| format!("write {}", path.display()))?;
        }
        Ok(())
    }

    fn hosts(&self) -> Result<String> {
        let mut text = match self.host_network {
            true => String::from_utf8_lossy(&of_host(HOSTS)?).into_owned(),
            false => format!("{LOCAL_HOSTS}127.0.1.1\t{}\n", self.hostname),
        };
        if !text.ends_with('\n') {
            text.push('\n');
        }
        for line in &self.extra_hosts {
            let (name, address) = host(line)?;
            text.push_str(&format!("{address}\t{name}\n"));
        }
        Ok(text)
    }
}

impl Dns {
    fn of(wished: api::Dns) -> Result<Self> {
        for server in &wished.servers {
            let parsed: Result<std::net::IpAddr, _> = server.parse();
            parsed.map_err(|_| Error::invalid(format!("dns {server:?}: is not an address")))?;
        }
        for (what, words) in [("search", &wished.search), ("option", &wished.options)] {
            let is_word = |word: &String| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_graphic());
            if let Some(word) = words.iter().find(|word| !is_word(word)) {
                return Err(Error::invalid(format!("dns {what} {word:?}: is not one word")));
            }
        }
        let api::Dns { servers, search, options } = wished;
        Ok(Self { servers, search, options })
    }

    /// The host's lines, with these in place of those of the same kind.
    fn over(&self, host: Vec<u8>) -> Vec<u8> {
        if *self == Self::default() {
            return host;
        }
        let host = String::from_utf8_lossy(&host).into_owned();
        let is_replaced = |line: &str| match line.split_whitespace().next() {
            Some("nameserver") => !self.servers.is_empty(),
            Some("search" | "domain") => !self.search.is_empty(),
            Some("options") => !self.options.is_empty(),
            _ => false,
        };
        let mut lines: Vec<String> = self.servers.iter().map(|server| format!("nameserver {server}")).collect();
        // A single dot means that there is to be no such line.
        for (word, words) in [("search", &self.search), ("options", &self.options)] {
            if !words.is_empty() && words != &["."] {
                lines.push(format!("{word} {}", words.join(" ")));
            }
        }
        lines.extend(host.lines().filter(|line| !is_replaced(line)).map(str::to_owned));
        lines.iter().map(|line| format!("{line}\n")).collect::<String>().into_bytes()
    }
}

fn file(directory: &Path, place: &str) -> PathBuf {
    directory.join(place.rsplit('/').next().unwrap_or(place))
}

/// A file of the host; empty where it has none.
fn of_host(place: &str) -> Result<Vec<u8>> {
    match std::fs::read(place) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read.doing(|| format!("read {place}")),
    }
}

/// `NAME:ADDRESS`.
fn host(line: &str) -> Result<(&str, std::net::IpAddr)> {
    let invalid = || Error::invalid(format!("host {line:?}: is not NAME:ADDRESS"));
    let (name, address) = line.split_once(':').ok_or_else(invalid)?;
    let address = address.trim_matches(['[', ']']).parse().map_err(|_| invalid())?;
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)) {
        return Err(invalid());
    }
    Ok((name, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_binds_go_before() {
        let bind = |destination: &str| api::Bind { destination: destination.into(), ..api::Bind::default() };
        let of = |binds, network: api::Network| {
            let request = api::CreateRequest { binds, network: network.into(), ..api::CreateRequest::default() };
            Etc::of(&request, "box").expect("etc").places
        };
        assert_eq!(of(vec![], api::Network::Host), PLACES);
        let dns = api::Dns { servers: vec!["1.1.1.1".into()], ..api::Dns::default() };
        let request = api::CreateRequest { dns: Some(dns), ..api::CreateRequest::default() };
        assert_eq!(Etc::of(&request, "box").expect("etc").places, PLACES);
        assert_eq!(of(vec![bind("/etc/hosts/")], api::Network::Private), [HOSTNAME]);
        assert!(of(vec![bind("/etc")], api::Network::Host).is_empty());
    }

    #[test]
    fn wished_resolvers_take_the_place_of_the_hosts() {
        let host = b"# by hand\nnameserver 9.9.9.9\nsearch lan\noptions ndots:5\n".to_vec();
        let over = |servers: &[&str], search: &[&str]| {
            let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
            let dns = Dns::of(api::Dns { servers: words(servers), search: words(search), options: Vec::new() });
            String::from_utf8(dns.expect("dns").over(host.clone())).expect("text")
        };
        assert_eq!(over(&[], &[]).as_bytes(), host);
        assert_eq!(over(&["1.1.1.1"], &[]), "nameserver 1.1.1.1\n# by hand\nsearch lan\noptions ndots:5\n");
        assert_eq!(over(&[], &["a", "b"]), "search a b\n# by hand\nnameserver 9.9.9.9\noptions ndots:5\n");
        assert_eq!(over(&[], &["."]), "# by hand\nnameserver 9.9.9.9\noptions ndots:5\n");
        for (servers, search) in [("x", "a"), ("1.1.1.1\nnameserver 2.2.2.2", "a"), ("1.1.1.1", "a b")] {
            let dns = api::Dns { servers: vec![servers.into()], search: vec![search.into()], options: Vec::new() };
            assert!(Dns::of(dns).is_err(), "{servers} {search}");
        }
    }

    #[test]
    fn hosts_have_the_own_name_and_those_that_were_wished() {
        let wishing = |line: &str| {
            let request = api::CreateRequest { extra_hosts: vec![line.into()], ..api::CreateRequest::default() };
            Etc::of(&request, "box")
        };
        let text = wishing("db:[fd00::1]").and_then(|etc| etc.hosts()).expect("hosts");
        assert!(
            text.starts_with("127.0.0.1\tlocalhost\n") && text.ends_with("127.0.1.1\tbox\nfd00::1\tdb\n"),
            "{text}"
        );
        for bad in ["db", "db:x", ":1.2.3.4", "d b:1.2.3.4"] {
            assert!(wishing(bad).is_err(), "{bad}");
        }
    }
}
