//! The account of a pull, in the forms in which kubelets hand it over.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use gantry_proto::runtime::v1::AuthConfig;
use rung_spec::reference::Reference;

use crate::error::{Error, Result};
use crate::image::Credentials;

/// The account to use at the registry of `reference`; `None` where there is none, or it is for another registry. One that does
/// not say for which registry it is is for that of `asked`, the name as the kubelet reads it.
///
/// # Errors
/// `InvalidArgument` where it cannot be read. What it contains is not said.
pub(super) fn credentials(
    auth: Option<&AuthConfig>,
    asked: &Reference,
    reference: &Reference,
) -> Result<Option<Credentials>> {
    let Some(auth) = auth else { return Ok(None) };
    let is_for = match auth.server_address.as_str() {
        "" => asked.host.clone(),
        address => host(address),
    };
    if is_for != reference.host {
        return Ok(None);
    }
    if !auth.registry_token.is_empty() {
        return Ok(Some(Credentials::Header(format!("Bearer {}", auth.registry_token))));
    }
    if !auth.identity_token.is_empty() {
        return Ok(Some(Credentials::Identity(auth.identity_token.clone())));
    }
    if !auth.username.is_empty() {
        return Ok(Some(Credentials::password(&auth.username, &auth.password)));
    }
    if !auth.auth.is_empty() {
        return from_pair(&auth.auth).map(Some);
    }
    Ok(None)
}

/// Docker's form: `NAME:PASSWORD` in base64.
fn from_pair(text: &str) -> Result<Credentials> {
    let invalid = || Error::invalid("auth.auth: is not \"NAME:PASSWORD\" in base64");
    let pair = STANDARD.decode(text.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(invalid)?;
    // Some write NUL bytes behind it.
    let (name, password) = pair.trim_end_matches('\0').split_once(':').ok_or_else(invalid)?;
    Ok(Credentials::password(name, password))
}

/// A registry's host out of an address such as `https://index.docker.io/v1/`.
fn host(address: &str) -> String {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    let host = rest.split('/').next().unwrap_or_default();
    match host {
        "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => "docker.io".to_owned(),
        host => host.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(auth: &AuthConfig) -> Result<Option<Credentials>> {
        let name = Reference::parse("alpine").expect("reference");
        credentials(Some(auth), &name, &name)
    }

    #[test]
    fn every_form_is_understood() {
        let account = Some(Credentials::password("me", "a:b"));
        let pair = AuthConfig { auth: STANDARD.encode("me:a:b"), ..AuthConfig::default() };
        assert_eq!(of(&pair).expect("pair"), account);
        let plain = AuthConfig { username: "me".into(), password: "a:b".into(), ..AuthConfig::default() };
        assert_eq!(of(&plain).expect("plain"), account);
        let hub = AuthConfig { server_address: "https://index.docker.io/v1/".into(), ..plain.clone() };
        assert_eq!(of(&hub).expect("hub"), account);
        let other = AuthConfig { server_address: "quay.io".into(), ..plain };
        assert_eq!(of(&other).expect("other"), None);
        let token = AuthConfig { registry_token: "t".into(), ..AuthConfig::default() };
        assert_eq!(of(&token).expect("token"), Some(Credentials::Header("Bearer t".into())));
        of(&AuthConfig { auth: "!".into(), ..AuthConfig::default() }).expect_err("no base64");
        let name = Reference::parse("a").expect("reference");
        assert_eq!(credentials(None, &name, &name).expect("none"), None);
        // What the kubelet has for Docker Hub is not for where a short name leads.
        let other = Reference::parse("r.io/a").expect("reference");
        let auth = AuthConfig { username: "u".into(), ..AuthConfig::default() };
        assert_eq!(credentials(Some(&auth), &name, &other).expect("another's"), None);
        let auth = AuthConfig { server_address: "https://r.io".into(), ..auth };
        assert!(credentials(Some(&auth), &name, &other).expect("its own").is_some());
    }
}
