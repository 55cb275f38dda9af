//! Who we are to a registry: docker's own configuration, `~/.docker/config.json`, and the programs it names.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use gantry_proto::gantry::engine::v1::RegistryOptions;
use rung_spec::reference::Reference;
use serde::Deserialize;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::client::reason;
use crate::error::{Failure, Result};

mod write;

pub use write::{forget, keep};

/// A name and its password.
#[derive(Debug, Clone)]
pub struct Account {
    /// The name.
    pub username: String,
    /// The password.
    pub password: String,
}

/// Docker Hub's name in docker's configuration.
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// A credential program may ask a keyring, but not for ever.
const PROGRAM_DEADLINE: Duration = Duration::from_secs(30);
/// What a credential program says instead of failing where it knows no one.
const UNKNOWN: &str = "credentials not found";

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    auths: HashMap<String, Auth>,
    creds_store: String,
    cred_helpers: HashMap<String, String>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "lowercase", default)]
struct Auth {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

/// Fills `options` with what docker's configuration knows for the registry of `image`.
///
/// # Errors
/// Where the configuration or its credential program is broken; without a configuration, nothing is filled in.
pub async fn fill(options: &mut RegistryOptions, image: &str) -> Result<()> {
    // A malformed name is the daemon's to refuse.
    let (Ok(reference), Some(path)) = (Reference::parse(image), config_path()) else { return Ok(()) };
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(broken(&path, &reason(&error))),
    };
    // As docker has it, an empty file says nothing.
    if text.is_empty() {
        return Ok(());
    }
    let config: Config = serde_json::from_slice(&text).map_err(|error| broken(&path, &error.to_string()))?;
    let key = key_of(&reference.host);
    let helper = config.cred_helpers.get(key).or(Some(&config.creds_store)).filter(|name| !name.is_empty());
    let found = match helper {
        Some(helper) => ask(helper, key).await?,
        None => None,
    };
    if let Some(auth) = found.or_else(|| stored(&config, key)) {
        let (username, password) = decoded(&auth).map_err(|error| broken(&path, &format!("{key}: {error}")))?;
        options.username = username;
        options.password = password;
        options.identity_token = auth.identitytoken;
        options.registry_token = auth.registrytoken;
    }
    Ok(())
}

/// Whether docker's configuration is there.
pub fn are_configured() -> bool {
    config_path().is_some_and(|path| path.exists())
}

fn broken(path: &Path, cause: &str) -> Failure {
    Failure::new(format!("read {}: {cause}", path.display()))
        .hint("correct the file, or name another directory in DOCKER_CONFIG")
}

fn config_path() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let directory = set("DOCKER_CONFIG").or_else(|| Some(set("HOME")?.join(".docker")))?;
    Some(directory.join("config.json"))
}

/// What docker's configuration calls a registry.
fn key_of(host: &str) -> &str {
    if matches!(host, "docker.io" | "index.docker.io" | "registry-1.docker.io") { HUB_KEY } else { host }
}

/// The host in a name of a registry, however that is written.
fn host_of(text: &str) -> &str {
    let text = text.split_once("://").map_or(text, |(_, rest)| rest);
    text.split('/').next().unwrap_or_default()
}

/// The entry for `key`, however its URL is written.
fn stored(config: &Config, key: &str) -> Option<Auth> {
    let exact = config.auths.get(key);
    exact.or_else(|| config.auths.iter().find(|(name, _)| host_of(name) == host_of(key)).map(|(_, auth)| auth)).cloned()
}

/// The program that keeps the account for `key`, if one does.
fn helper_for(document: &serde_json::Value, key: &str) -> Option<String> {
    let named = document["credHelpers"][key].as_str().or(document["credsStore"].as_str());
    named.filter(|name| !name.is_empty()).map(str::to_owned)
}

fn decoded(auth: &Auth) -> Result<(String, String), String> {
    if auth.auth.is_empty() {
        return Ok((auth.username.clone(), auth.password.clone()));
    }
    let bytes = STANDARD.decode(auth.auth.trim()).map_err(|_| "auth is not base64".to_owned())?;
    let text = String::from_utf8(bytes).map_err(|_| "auth is not UTF-8".to_owned())?;
    let (username, password) = text.split_once(':').ok_or("auth is not user:password")?;
    Ok((username.to_owned(), password.trim_end_matches('\0').to_owned()))
}

/// Asks the program `docker-credential-NAME` who we are to `server`.
async fn ask(name: &str, server: &str) -> Result<Option<Auth>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        username: String,
        secret: String,
    }
    let Some(said) = run(name, "get", server).await? else { return Ok(None) };
    let answer: Answer = serde_json::from_slice(&said)
        .map_err(|error| Failure::new(format!("run docker-credential-{name}: {error}")))?;
    // This user name means that the secret is a token, not a password.
    Ok(Some(if answer.username == "<token>" {
        Auth { identitytoken: answer.secret, ..Auth::default() }
    } else {
        Auth { username: answer.username, password: answer.secret, ..Auth::default() }
    }))
}

/// Runs the program `docker-credential-NAME`; none where it knows nobody.
async fn run(name: &str, verb: &str, input: &str) -> Result<Option<Vec<u8>>> {
    let program = format!("docker-credential-{name}");
    if name.contains('/') {
        return Err(Failure::new(format!("credential program {program:?} has a '/' in its name")));
    }
    let failed = |cause: String| Failure::new(format!("run {program}: {cause}"));
    let mut child = Command::new(&program)
        .arg(verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| {
            failed(reason(&error)).hint("docker's config.json names it; install it or correct the file")
        })?;
    let talk = async {
        if let Some(mut stdin) = child.stdin.take() {
            // It may answer without having read what it is asked.
            match stdin.write_all(input.as_bytes()).await {
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
                written => written?,
            }
        }
        child.wait_with_output().await
    };
    let output = match tokio::time::timeout(PROGRAM_DEADLINE, talk).await {
        Ok(output) => output.map_err(|error| failed(reason(&error)))?,
        Err(_) => return Err(failed(format!("no answer in {} s", PROGRAM_DEADLINE.as_secs()))),
    };
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stdout);
        if said.contains(UNKNOWN) {
            return Ok(None);
        }
        return Err(failed(said.trim().chars().take(200).collect()));
    }
    Ok(Some(output.stdout))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_found_by_host() {
        let json = r#"{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"},"http://localhost:5000/v2/":
            {"username":"a","password":"b"}},"unknown":1}"#;
        let config: Config = serde_json::from_str(json).unwrap();
        assert_eq!(decoded(&stored(&config, HUB_KEY).unwrap()), Ok(("u".into(), "p".into())));
        assert_eq!(decoded(&stored(&config, "localhost:5000").unwrap()), Ok(("a".into(), "b".into())));
        assert!(stored(&config, "localhost").is_none());
        for bad in ["!", "dXA=", "/w=="] {
            assert!(decoded(&Auth { auth: bad.into(), ..Auth::default() }).is_err(), "{bad}");
        }
    }
}
