//! Image names: docker's short forms and their full meaning.
//!
//! `alpine` means `docker.io/library/alpine:latest`. The first part is a host if it has a dot, a colon or an upper-case
//! letter, or is `localhost`; otherwise the whole is a repository on Docker Hub.

use std::fmt;
use std::str::FromStr;

use crate::digest::{Digest, InvalidDigest};

const HUB: &str = "docker.io";
const OFFICIAL: &str = "library";
const DEFAULT_TAG: &str = "latest";
/// Longest host and repository together, as registries enforce it.
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

/// A full image name: host, repository, and a tag or a digest or both. With both, the digest decides.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    /// Registry host with its port, such as `docker.io` or `localhost:5000`.
    pub host: String,
    /// Path below the host, such as `library/alpine`.
    pub repository: String,
    /// Absent only where there is a digest.
    pub tag: Option<String>,
    /// Names the exact content.
    pub digest: Option<Digest>,
}

/// Why a text is not an image name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid image name {text:?}: {reason}")]
pub struct InvalidReference {
    text: String,
    reason: Reason,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Reason {
    #[error("it is empty")]
    Empty,
    #[error("host {0:?} is malformed")]
    Host(String),
    #[error("repository {0:?} must be lower-case")]
    UpperCase(String),
    #[error(
        "repository {0:?} must be lower-case letters and digits joined by '.', '_', '__' or '-', in parts divided by '/'"
    )]
    Repository(String),
    #[error("name is longer than {MAX_NAME} characters")]
    TooLong,
    #[error("it reads as an image id; put a repository before it")]
    Id,
    #[error(
        "tag {0:?} must start with a letter, digit or '_' and go on with those, '.' or '-', at most {MAX_TAG} in all"
    )]
    Tag(String),
    #[error("{0}")]
    Digest(#[from] InvalidDigest),
}

impl Reference {
    /// Parses and completes a name as people type it.
    ///
    /// # Errors
    /// Says which part is malformed.
    pub fn parse(text: &str) -> Result<Self, InvalidReference> {
        parse(text).map_err(|reason| InvalidReference { text: text.chars().take(300).collect(), reason })
    }

    /// Whether a name leaves out its registry, which is Docker Hub unless something else says so.
    pub fn is_short(text: &str) -> bool {
        named_host(text).is_none()
    }

    /// `host/repository`, without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.host, self.repository)
    }

    /// What a registry's manifest URL ends with: the digest where there is one, else the tag.
    pub fn object(&self) -> &str {
        self.digest.as_ref().map(Digest::as_str).or(self.tag.as_deref()).unwrap_or(DEFAULT_TAG)
    }

    /// The same repository at exactly this content, without a tag.
    #[must_use]
    pub fn at(&self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }

    /// The repository as people write it: `alpine`, `user/app`, `localhost:5000/app`.
    pub fn familiar_name(&self) -> String {
        if self.host != HUB {
            return self.name();
        }
        match self.repository.strip_prefix(OFFICIAL).and_then(|rest| rest.strip_prefix('/')) {
            Some(rest) if !rest.contains('/') => rest.to_owned(),
            _ => self.repository.clone(),
        }
    }

    /// The whole name as people write it: `alpine:latest`.
    pub fn familiar(&self) -> String {
        self.with_suffix(self.familiar_name())
    }

    fn with_suffix(&self, mut name: String) -> String {
        if let Some(tag) = &self.tag {
            name.push(':');
            name.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            name.push('@');
            name.push_str(digest.as_str());
        }
        name
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.with_suffix(self.name()))
    }
}

impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

fn parse(text: &str) -> Result<Reference, Reason> {
    if text.is_empty() {
        return Err(Reason::Empty);
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(Digest::parse(digest)?)),
        None => (text, None),
    };
    // A colon after the last slash starts a tag; one before it belongs to the host's port.
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    };
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let (host, repository) = split_host(name);
    if host == HUB && is_image_id(&repository) {
        return Err(Reason::Id);
    }
    check_host(&host)?;
    check_repository(&repository)?;
    let repository = match (host.as_str(), repository.contains('/')) {
        (HUB, false) => format!("{OFFICIAL}/{repository}"),
        _ => repository,
    };
    if host.len() + 1 + repository.len() > MAX_NAME {
        return Err(Reason::TooLong);
    }
    let tag = match (tag, &digest) {
        (None, None) => Some(DEFAULT_TAG.to_owned()),
        (tag, _) => tag.map(str::to_owned),
    };
    Ok(Reference { host, repository, tag, digest })
}

fn split_host(name: &str) -> (String, String) {
    match named_host(name) {
        Some((host, rest)) => {
            let host = if host == "index.docker.io" { HUB } else { host };
            (host.to_owned(), rest.to_owned())
        }
        None => (HUB.to_owned(), name.to_owned()),
    }
}

/// The host that a name begins with, if it does, and the rest.
fn named_host(name: &str) -> Option<(&str, &str)> {
    let is_host = |first: &str| {
        first == "localhost" || first.contains(['.', ':']) || first.chars().any(|c| c.is_ascii_uppercase())
    };
    name.split_once('/').filter(|(first, _)| is_host(first))
}

/// Sixty-four hex digits would be taken for an image id by everything that takes either.
fn is_image_id(repository: &str) -> bool {
    repository.len() == 64 && repository.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn check_host(host: &str) -> Result<(), Reason> {
    let bad = || Reason::Host(host.to_owned());
    let (name, port) = if host.starts_with('[') {
        let end = host.find(']').ok_or_else(bad)?;
        let address = &host[1..end];
        if address.parse::<std::net::Ipv6Addr>().is_err() {
            return Err(bad());
        }
        ("", host[end + 1..].strip_prefix(':').or_else(|| (end + 1 == host.len()).then_some("0")))
    } else {
        match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, Some("0")),
        }
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let named = host.starts_with('[') || name.split('.').all(label);
    let digits = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
    if named && port.is_some_and(digits) { Ok(()) } else { Err(bad()) }
}

fn check_repository(repository: &str) -> Result<(), Reason> {
    if repository.chars().any(|c| c.is_ascii_uppercase()) {
        return Err(Reason::UpperCase(repository.to_owned()));
    }
    if repository.split('/').all(is_path_part) { Ok(()) } else { Err(Reason::Repository(repository.to_owned())) }
}

/// Runs of `[a-z0-9]+` joined by `.`, `_`, `__` or any number of `-`.
fn is_path_part(part: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bounded = part.starts_with(plain) && part.ends_with(plain);
    let joined = part
        .split(plain)
        .filter(|joint| !joint.is_empty())
        .all(|joint| matches!(joint, "." | "_" | "__") || joint.bytes().all(|byte| byte == b'-'));
    bounded && joined
}

fn check_tag(tag: &str) -> Result<(), Reason> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let good = tag.len() <= MAX_TAG && tag.starts_with(word) && tag.chars().all(|c| word(c) || c == '.' || c == '-');
    if good { Ok(()) } else { Err(Reason::Tag(tag.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn completes_short_names() {
        for (short, full) in [
            ("alpine", "docker.io/library/alpine:latest"),
            ("debian:11", "docker.io/library/debian:11"),
            ("user/app", "docker.io/user/app:latest"),
            ("docker.io/alpine", "docker.io/library/alpine:latest"),
            ("index.docker.io/library/alpine", "docker.io/library/alpine:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/app", "localhost:5000/app:latest"),
            ("localhost:5000/a/b/c:1.0", "localhost:5000/a/b/c:1.0"),
            ("127.0.0.1:5000/app:v1", "127.0.0.1:5000/app:v1"),
            ("[::1]:5000/app", "[::1]:5000/app:latest"),
            ("ghcr.io/a/b__c--d.e", "ghcr.io/a/b__c--d.e:latest"),
            ("Registry/app", "Registry/app:latest"),
        ] {
            assert_eq!(Reference::parse(short).unwrap().to_string(), full, "{short}");
            assert_eq!(Reference::parse(full).unwrap().to_string(), full, "{full}");
            assert_eq!(
                Reference::is_short(short),
                short.split('/').next().is_some_and(|first| { ["alpine", "debian:11", "user"].contains(&first) }),
                "{short}"
            );
            assert!(!Reference::is_short(full), "{full}");
        }
    }

    #[test]
    fn digest_decides_over_tag() {
        let reference = Reference::parse(&format!("alpine:3@{DIGEST}")).unwrap();
        assert_eq!((reference.object(), reference.tag.as_deref()), (DIGEST, Some("3")));
        assert_eq!(reference.familiar(), format!("alpine:3@{DIGEST}"));
        let reference = Reference::parse(&format!("alpine@{DIGEST}")).unwrap();
        assert_eq!(reference.tag, None);
        assert_eq!(reference.to_string(), format!("docker.io/library/alpine@{DIGEST}"));
        assert_eq!(Reference::parse("alpine").unwrap().at(Digest::of("")), reference);
    }

    #[test]
    fn familiar_is_what_people_type() {
        for (text, familiar) in [
            ("docker.io/library/alpine:latest", "alpine:latest"),
            ("docker.io/library/a/b", "library/a/b:latest"),
            ("docker.io/user/app:1", "user/app:1"),
            ("localhost:5000/library/app", "localhost:5000/library/app:latest"),
        ] {
            assert_eq!(Reference::parse(text).unwrap().familiar(), familiar);
        }
    }

    #[test]
    fn refuses_with_a_reason() {
        let long = "a".repeat(256);
        for (bad, reason) in [
            ("", "empty"),
            ("Alpine", "lower-case"),
            ("a//b", "repository"),
            ("/a", "repository"),
            ("a/", "repository"),
            ("../etc", "host"),
            ("a/../b", "repository"),
            ("a___b", "repository"),
            ("-a", "repository"),
            ("alpine:", "tag"),
            ("alpine:-x", "tag"),
            ("a b", "repository"),
            ("alpine@sha256:00", "hex"),
            ("localhost:99999/app", "host"),
            ("localhost:/app", "host"),
            ("-x.y/app", "host"),
            ("[::1/app", "host"),
            ("[zz]:1/app", "host"),
            (&DIGEST[7..], "image id"),
            (&long, "longer"),
        ] {
            let error = Reference::parse(bad).expect_err(bad).to_string();
            assert!(error.contains(reason), "{bad}: {error}");
        }
    }
}
