//! `hosts.toml`: which addresses stand for a registry, as containerd's users write it.
//!
//! ```toml
//! server = "https://registry-1.docker.io"
//!
//! [host."https://mirror.example"]
//!   capabilities = ["pull", "resolve"]
//!   ca = "mirror.pem"
//! ```
//!
//! Hosts are tried in the order they are written, the server last, and the registry itself where there is none. The file
//! is `HOST/hosts.toml` below the configured directory, where `HOST` may have its port as `host:5000` or `host_5000_`, else
//! `_default/hosts.toml`. A directory without the file may have certificates as docker's users name them: `*.crt` of
//! authorities, and of ours `*.cert` with the key in `*.key`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::transport::Tls;
use crate::error::{Doing, Error, Result};

/// Largest file that is read.
const MAX_SIZE: u64 = 1 << 20;

/// All that is configured for a registry.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Hosts {
    /// What is tried first.
    pub(super) mirrors: Vec<Configured>,
    /// What is tried last. Without a URL it is the registry itself.
    pub(super) server: Configured,
}

/// One address, as the file has it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Configured {
    pub(super) url: String,
    /// Whether the path is the whole path, without `/v2` behind it.
    pub(super) override_path: bool,
    pub(super) resolves: bool,
    pub(super) pulls: bool,
    pub(super) pushes: bool,
    pub(super) headers: Vec<(String, String)>,
    pub(super) tls: Tls,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Block {
    capabilities: Option<Vec<String>>,
    ca: Option<Several<PathBuf>>,
    client: Option<toml::Value>,
    skip_verify: bool,
    header: toml::Table,
    override_path: bool,
    dial_timeout: Option<String>,
    /// What we know nothing of. containerd ignores it too, but it may be a typo.
    #[serde(flatten)]
    others: toml::Table,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Several<T> {
    One(T),
    Many(Vec<T>),
}

/// What is configured for the registry `name`, which is nothing where no directory is about it.
pub(super) fn read(directory: &Path, name: &str) -> Result<Hosts> {
    let candidates = candidates(name).into_iter().map(|candidate| directory.join(candidate));
    let Some(base) = candidates.into_iter().find(|candidate| candidate.is_dir()) else { return Ok(Hosts::default()) };
    let path = base.join("hosts.toml");
    match std::fs::metadata(&path) {
        Ok(metadata) if metadata.len() > MAX_SIZE => {
            return Err(Error::invalid(format!("{}: larger than {MAX_SIZE} bytes", path.display())));
        }
        Ok(metadata) if metadata.len() > 0 => {}
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).doing(|| format!("read {}", path.display()));
        }
        _ => return certificates(&base).doing(|| format!("read {}", base.display())),
    }
    let text = std::fs::read_to_string(&path).doing(|| format!("read {}", path.display()))?;
    parse(&text, &base).doing(|| path.display().to_string())
}

/// The certificates in a directory that says nothing else.
fn certificates(base: &Path) -> Result<Hosts> {
    let entries = std::fs::read_dir(base)?.collect::<std::io::Result<Vec<_>>>()?;
    let mut files: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    files.sort();
    let of_type =
        |wanted: &'static str| files.iter().filter(move |path| path.extension().is_some_and(|is| is == wanted));
    let authorities = of_type("crt").cloned().collect();
    let with_key = |certificate: &PathBuf| {
        let key = certificate.with_extension("key");
        (certificate.clone(), if key.is_file() { key } else { certificate.clone() })
    };
    let identities = of_type("cert").map(with_key).collect();
    let server = Configured { tls: Tls { authorities, identities, ..Tls::default() }, ..Configured::default() };
    Ok(Hosts { mirrors: Vec::new(), server })
}

fn candidates(name: &str) -> Vec<String> {
    let mut candidates = vec![name.to_owned()];
    if let Some((host, port)) = name.rsplit_once(':') {
        candidates.push(format!("{host}_{port}_"));
    }
    candidates.push("_default".to_owned());
    candidates
}

fn parse(text: &str, base: &Path) -> Result<Hosts> {
    let invalid =
        |error: &dyn std::fmt::Display| Error::invalid(error.to_string().replace('\n', " ").trim().to_owned());
    // The order of tables is kept, and is the order hosts are tried in.
    let mut file: toml::Table = text.parse().map_err(|error| invalid(&error))?;
    let hosts = match file.remove("host") {
        Some(toml::Value::Table(hosts)) => hosts,
        Some(_) => return Err(Error::invalid("host must be a table of addresses")),
        None => toml::Table::new(),
    };
    let server = match file.remove("server") {
        Some(toml::Value::String(server)) => server,
        Some(_) => return Err(Error::invalid("server must be a text")),
        None => String::new(),
    };
    let mut mirrors = Vec::new();
    for (url, block) in hosts {
        mirrors.push(configured(url, block.try_into().map_err(|error| invalid(&error))?, base)?);
    }
    let block = toml::Value::Table(file).try_into().map_err(|error| invalid(&error))?;
    let server = configured(server, block, base)?;
    Ok(Hosts { mirrors, server })
}

fn configured(url: String, block: Block, base: &Path) -> Result<Configured> {
    let url = if url.is_empty() || url.contains("://") { url } else { format!("https://{url}") };
    for key in block.others.keys() {
        tracing::warn!(key, host = url, directory = %base.display(), "hosts.toml has a key that is not known, and is ignored");
    }
    // An empty list says as little as none.
    let said = block.capabilities.filter(|all| !all.is_empty());
    let can = |what: &str| said.as_ref().is_none_or(|all| all.iter().any(|one| one == what));
    let (resolves, pulls, pushes) = (can("resolve"), can("pull"), can("push"));
    let authorities = match block.ca {
        Some(Several::One(path)) => vec![base.join(path)],
        Some(Several::Many(paths)) => paths.into_iter().map(|path| base.join(path)).collect(),
        None => Vec::new(),
    };
    let connect = block.dial_timeout.as_deref().map(duration).transpose()?;
    let tls = Tls { skip_verify: block.skip_verify, authorities, identities: identities(block.client, base)?, connect };
    let mut headers = Vec::new();
    for (name, value) in block.header {
        match value {
            toml::Value::String(value) => headers.push((name, value)),
            toml::Value::Array(values) => {
                let texts = values.iter().filter_map(|value| Some((name.clone(), value.as_str()?.to_owned())));
                headers.extend(texts);
            }
            _ => return Err(Error::invalid(format!("header {name:?} must be a text or a list of texts"))),
        }
    }
    Ok(Configured { url, override_path: block.override_path, resolves, pulls, pushes, headers, tls })
}

/// Certificates, each with its key in the same file or in another.
fn identities(client: Option<toml::Value>, base: &Path) -> Result<Vec<(PathBuf, PathBuf)>> {
    let one = |value: toml::Value| match value {
        toml::Value::String(both) => Ok((base.join(&both), base.join(&both))),
        toml::Value::Array(pair) => match &pair[..] {
            [toml::Value::String(certificate), toml::Value::String(key)] => {
                Ok((base.join(certificate), base.join(key)))
            }
            _ => Err(not_client()),
        },
        _ => Err(not_client()),
    };
    match client {
        None => Ok(Vec::new()),
        Some(toml::Value::Array(list)) => list.into_iter().map(one).collect(),
        Some(text @ toml::Value::String(_)) => Ok(vec![one(text)?]),
        Some(_) => Err(not_client()),
    }
}

fn not_client() -> Error {
    Error::invalid("client must be a file, or a list of files and of pairs of certificate and key")
}

/// `500ms`, `30s`, `1m30s`.
fn duration(text: &str) -> Result<Duration> {
    let read = text.parse::<jiff::SignedDuration>().ok().and_then(|duration| Duration::try_from(duration).ok());
    read.ok_or_else(|| Error::invalid(format!("dial_timeout {text:?}: write it as 500ms, 30s or 1m30s")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_come_in_their_order_and_the_server_last() {
        let text = r#"
            # Whatever else names them: "http://a.example:5000/v2/cache" is not the first.
            server = "https://registry-1.docker.io"
            [host."https://z.example"]
              capabilities = ["pull"]
              ca = ["a.pem", "/b.pem"]
              client = [["c.cert", "c.key"], "/both.pem"]
              dial_timeout = "500ms"
              [host."https://z.example".header]
                x-a = ["1", "2"]
            [host."http://a.example:5000/v2/cache"]
              override_path = true
              skip_verify = true
              capabilities = []
              dial_timeout = "1m1.5s"
            [host."https://registry-1.docker.io"]
        "#;
        let Hosts { mirrors: all, server } = parse(text, Path::new("/etc/h")).expect("parse");
        let urls: Vec<&str> = all.iter().map(|host| host.url.as_str()).collect();
        assert_eq!(urls, ["https://z.example", "http://a.example:5000/v2/cache", "https://registry-1.docker.io"]);
        assert_eq!(server.url, "https://registry-1.docker.io");
        assert_eq!(parse("ca = \"a.pem\"", Path::new("/h")).expect("parse").server.tls.authorities.len(), 1);
        assert!(all[0].pulls && !all[0].resolves);
        assert_eq!(all[0].tls.authorities, [PathBuf::from("/etc/h/a.pem"), PathBuf::from("/b.pem")]);
        let two = [("/etc/h/c.cert", "/etc/h/c.key"), ("/both.pem", "/both.pem")];
        assert_eq!(all[0].tls.identities, two.map(|(certificate, key)| (certificate.into(), key.into())));
        assert_eq!(all[0].tls.connect, Some(Duration::from_millis(500)));
        assert_eq!(all[0].headers.len(), 2);
        assert!(all[1].override_path && all[1].tls.skip_verify && all[1].resolves && all[1].pushes);
        assert_eq!(all[1].tls.connect, Some(Duration::from_millis(61_500)));
        // containerd ignores what it does not know.
        assert_eq!(
            parse("serve = \"https://a\"", Path::new("/h")).expect("parse"),
            parse("", Path::new("/h")).expect("parse")
        );
        for bad in ["server = 1", "host = 1", "[host.\"x\"]\ndial_timeout = \"x\"", "[host.\"x\"]\nclient = 1", "]"] {
            assert!(parse(bad, Path::new("/")).is_err(), "{bad}");
        }
        for bad in ["client = [1]", "client = [[\"a\"]]", "client = [[\"a\", \"b\", \"c\"]]"] {
            assert!(parse(bad, Path::new("/")).is_err(), "{bad}");
        }
    }

    #[test]
    fn directories_are_named_after_the_host() {
        let dir = tempfile::tempdir().expect("temporary directory");
        assert_eq!(read(dir.path(), "h.io:5000").expect("none"), Hosts::default());
        for (name, url) in [("_default", "https://d"), ("h.io_5000_", "https://u"), ("h.io:5000", "https://c")] {
            std::fs::create_dir(dir.path().join(name)).expect("directory");
            std::fs::write(dir.path().join(name).join("hosts.toml"), format!("server = \"{url}\"")).expect("file");
            assert_eq!(read(dir.path(), "h.io:5000").expect("read").server.url, url);
        }
    }

    #[test]
    fn a_directory_of_certificates_needs_no_file() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let base = dir.path().join("h.io");
        std::fs::create_dir(&base).expect("directory");
        for file in ["a.crt", "b.crt", "c.cert", "c.key", "other"] {
            std::fs::write(base.join(file), "").expect("file");
        }
        let Hosts { mirrors, server } = read(dir.path(), "h.io").expect("read");
        assert!(mirrors.is_empty() && server.url.is_empty());
        assert_eq!(server.tls.authorities, [base.join("a.crt"), base.join("b.crt")]);
        let first = (base.join("c.cert"), base.join("c.key"));
        assert_eq!(server.tls.identities, std::slice::from_ref(&first));
        // The key may be in the file itself.
        std::fs::write(base.join("d.cert"), "").expect("file");
        let both = (base.join("d.cert"), base.join("d.cert"));
        assert_eq!(read(dir.path(), "h.io").expect("read").server.tls.identities, [first, both]);
    }
}
