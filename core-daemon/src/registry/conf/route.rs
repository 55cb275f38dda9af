//! Where a full name leads.

use rung_spec::reference::Reference;

use super::Conf;
use super::file::{Entry, Takes};
use crate::error::{Error, Kind, Result};

/// Where an image is fetched from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::registry) struct Route {
    /// In the order they are asked; the last is the registry, or what stands in its place.
    pub(in crate::registry) places: Vec<Place>,
    /// The registry of the name itself, to which is pushed, needs no TLS.
    pub(in crate::registry) insecure: bool,
}

/// A repository at a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::registry) struct Place {
    /// The registry, with its port.
    pub(in crate::registry) host: String,
    /// The repository's path there.
    pub(in crate::registry) path: String,
    /// It needs no TLS, nor a certificate that is trusted.
    pub(in crate::registry) insecure: bool,
}

impl Conf {
    /// Where `reference` leads, if an entry is about it.
    pub(super) fn route(&self, reference: &Reference) -> Result<Option<Route>> {
        let by_digest = reference.digest.is_some();
        let name = reference.to_string();
        let Some((entry, matched)) = self.entry(&name) else { return Ok(None) };
        if entry.blocked {
            return Err(Error::new(Kind::PermissionDenied, format!("{}: is blocked", entry.prefix)));
        }
        let rest = &name[matched..];
        let is_asked = |takes| match takes {
            Takes::All => true,
            Takes::Digests => by_digest,
            Takes::Tags => !by_digest,
        };
        let mirrors = entry.mirrors.iter().filter(|mirror| is_asked(mirror.takes));
        let mut places = mirrors
            .map(|mirror| place(&format!("{}{rest}", mirror.location), mirror.insecure))
            .collect::<Result<Vec<_>>>()?;
        places.push(match entry.location.as_str() {
            "" => place(&name, entry.insecure)?,
            location => place(&format!("{location}{rest}"), entry.insecure)?,
        });
        Ok(Some(Route { places, insecure: entry.insecure }))
    }

    /// Whether the registry `host` as a whole is insecure.
    pub(super) fn is_insecure(&self, host: &str) -> bool {
        self.entry(host).is_some_and(|(entry, _)| entry.insecure)
    }

    /// The entry that fits a name best, and how many bytes of it are what the entry is about.
    fn entry(&self, name: &str) -> Option<(&Entry, usize)> {
        let fits = self.entries.values().filter_map(|entry| Some((entry, matched(&entry.prefix, name)?)));
        fits.max_by_key(|(entry, matched)| (*matched, !entry.prefix.starts_with("*."), entry.prefix.len()))
    }
}

/// How many bytes of a name a prefix is about, if it is about the name. It ends where a part of the name ends; a port is part
/// of a host.
fn matched(prefix: &str, name: &str) -> Option<usize> {
    if let Some(domain) = prefix.strip_prefix('*') {
        let host = name.split('/').next().unwrap_or_default();
        return (host.len() > domain.len() && host.ends_with(domain)).then_some(host.len());
    }
    let rest = name.strip_prefix(prefix)?;
    let ends: &[char] = if prefix.contains('/') { &['/', ':', '@'] } else { &['/'] };
    (rest.is_empty() || rest.starts_with(ends)).then_some(prefix.len())
}

fn place(name: &str, insecure: bool) -> Result<Place> {
    let parsed = Reference::parse(name).map_err(|error| Error::invalid(error.to_string()))?;
    Ok(Place { host: parsed.host, path: parsed.repository, insecure })
}
