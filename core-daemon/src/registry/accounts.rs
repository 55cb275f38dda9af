//! The daemon's own accounts: a file like docker's `config.json`, of which only `auths` is read. Programs that it may
//! name are not run, because the daemon is root and they are the user's.

use std::collections::HashMap;
use std::path::PathBuf;

use base64::Engine as _;
use serde::Deserialize;

use super::{Credentials, Keyring};
use crate::blocking::blocking;
use crate::error::{Doing, Error, Result};

/// Largest file that is read.
const MAX_SIZE: u64 = 1 << 20;
/// Docker Hub, as its API's host and as `docker login` writes it.
const HUB: (&str, &str) = ("registry-1.docker.io", "index.docker.io");

/// A file of accounts, read anew each time.
#[derive(Debug)]
pub(super) struct AccountsFile(pub(super) PathBuf);

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct File {
    auths: HashMap<String, Entry>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase", default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

#[tonic::async_trait]
impl Keyring for AccountsFile {
    async fn account(&self, host: &str, _challenges: &[String]) -> Result<Option<Credentials>> {
        let (path, host) = (self.0.clone(), host.to_owned());
        blocking(move || {
            let doing = || format!("read {}", path.display());
            if std::fs::metadata(&path).doing(doing)?.len() > MAX_SIZE {
                return Err(Error::invalid(format!("{}: larger than {MAX_SIZE} bytes", path.display())));
            }
            let text = std::fs::read(&path).doing(doing)?;
            let file: File = serde_json::from_slice(&text)
                .map_err(|error| Error::invalid(format!("read {}: {error}", path.display())))?;
            file.find(&host).map(Entry::credentials).transpose().doing(|| format!("{}: {host}", path.display()))
        })
        .await
    }
}

impl File {
    /// The entry for a host, however its URL is written.
    fn find(&self, host: &str) -> Option<&Entry> {
        let host = if host == HUB.0 { HUB.1 } else { host };
        self.auths.iter().find(|(name, _)| host_of(name) == host).map(|(_, entry)| entry)
    }
}

fn host_of(key: &str) -> &str {
    let key = key.split_once("://").map_or(key, |(_, rest)| rest);
    match key.split('/').next().unwrap_or_default() {
        "docker.io" => HUB.1,
        host => host,
    }
}

impl Entry {
    fn credentials(&self) -> Result<Credentials> {
        if !self.registrytoken.is_empty() {
            return Ok(Credentials::Header(format!("Bearer {}", self.registrytoken)));
        }
        if !self.identitytoken.is_empty() {
            return Ok(Credentials::Identity(self.identitytoken.clone()));
        }
        if self.auth.is_empty() {
            return Ok(Credentials::password(&self.username, &self.password));
        }
        let invalid = || Error::invalid("auth is not base64 of user:password");
        let bytes = base64::engine::general_purpose::STANDARD.decode(self.auth.trim()).map_err(|_| invalid())?;
        let text = String::from_utf8(bytes).map_err(|_| invalid())?;
        let (username, password) = text.split_once(':').ok_or_else(invalid)?;
        Ok(Credentials::password(username, password.trim_end_matches('\0')))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn entries_are_found_by_host() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("accounts.json");
        let text = r#"{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"},"m.example:5000":{"identitytoken":"i"},
            "t.example":{"registrytoken":"r"},"bad.example":{"auth":"!"}},"credsStore":"x"}"#;
        std::fs::write(&path, text).expect("write");
        let file = AccountsFile(path);
        let of = async |host: &str| file.account(host, &[]).await;
        assert_eq!(of("registry-1.docker.io").await.expect("hub"), Some(Credentials::password("u", "p")));
        assert_eq!(of("m.example:5000").await.expect("port"), Some(Credentials::Identity("i".into())));
        assert_eq!(of("t.example").await.expect("token"), Some(Credentials::Header("Bearer r".into())));
        assert_eq!(of("m.example").await.expect("none"), None);
        assert!(of("bad.example").await.is_err());
        assert!(AccountsFile("/nonexistent".into()).account("x", &[]).await.is_err());
    }
}
