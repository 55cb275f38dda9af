//! Authorization: nothing, basic, or a bearer token that the registry's challenge says where to get.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use base64::Engine as _;
use reqwest::{Method, Response, StatusCode, Url};
use serde::Deserialize;
use tokio::sync::Mutex;

use super::body::Body;
use super::challenge::{Challenge, parse};
use super::hosts::Host;
use super::reach::same_origin;
use super::transport::{self, Ask, body, failure};
use super::{Credentials, Repository};
use crate::error::{Doing, Error, Kind, Result};

const CLIENT_ID: &str = "gantry";
/// Most `WWW-Authenticate` headers of an answer that are looked at.
const MAX_CHALLENGES: usize = 16;
const MAX_TOKEN: u64 = 1 << 20;
/// Tokens are good for at least this long, and are asked for anew after at most that long, whatever the server says.
const MIN_LIFE: Duration = Duration::from_secs(60);
const MAX_LIFE: Duration = Duration::from_secs(24 * 60 * 60);
/// A token is asked for anew this long before it ends.
const MARGIN: Duration = Duration::from_secs(5);

/// `Authorization` values by host.
#[derive(Default)]
pub(super) struct Tokens {
    known: Mutex<HashMap<String, Token>>,
}

#[derive(Clone)]
struct Token {
    authorization: String,
    until: Option<Instant>,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
    #[serde(default)]
    expires_in: u64,
}

impl Repository {
    /// Sends a request to a host, with what authorization it asks for. An answer that is still 401 or 403 comes back
    /// as an answer.
    pub(super) async fn send(&self, host: &Host, ask: &Ask, scope: &str) -> Result<Response> {
        let known = self.known(host, scope).await;
        let answer = transport::send(host, ask, known.as_deref()).await?;
        self.warnings.take(&host.name(), answer.headers());
        // Only the host itself may ask for its account: not who it redirects to, nor where it wants uploads sent.
        if answer.status() != StatusCode::UNAUTHORIZED || !same_origin(answer.url(), &host.base) {
            return Ok(answer);
        }
        // Either there was no authorization yet, or it ended meanwhile.
        match self.authorize(host, &answer, scope).await? {
            Some(authorization) => {
                let answer = transport::send(host, ask, Some(&authorization)).await?;
                self.warnings.take(&host.name(), answer.headers());
                Ok(answer)
            }
            None => Ok(answer),
        }
    }

    async fn known(&self, host: &Host, scope: &str) -> Option<String> {
        let known = self.tokens.known.lock().await;
        let token = known.get(&key(host, scope))?;
        let good = token.until.is_none_or(|until| until > Instant::now() + MARGIN);
        good.then(|| token.authorization.clone())
    }

    /// What an answer's challenges can be met with.
    async fn authorize(&self, host: &Host, answer: &Response, scope: &str) -> Result<Option<String>> {
        let headers = answer.headers().get_all(http::header::WWW_AUTHENTICATE);
        let texts: Vec<String> =
            headers.iter().filter_map(|value| value.to_str().ok()).map(str::to_owned).take(MAX_CHALLENGES).collect();
        let challenges: Vec<Challenge> = texts.iter().flat_map(|text| parse(text)).collect();
        let account = self.account(host, &texts).await?;
        let token = match (&account, challenges.iter().find(|challenge| challenge.scheme == "bearer")) {
            (Some(Credentials::Header(header)), _) => Some(Token { authorization: header.clone(), until: None }),
            (_, Some(challenge)) => Some(self.bearer(host, challenge, account.as_ref(), scope).await?),
            (Some(Credentials::Password { username, password }), None)
                if challenges.iter().any(|challenge| challenge.scheme == "basic") =>
            {
                Some(Token { authorization: basic(username, password), until: None })
            }
            _ => None,
        };
        let Some(token) = token else { return Ok(None) };
        let authorization = token.authorization.clone();
        self.tokens.known.lock().await.insert(key(host, scope), token);
        Ok(Some(authorization))
    }

    /// The account at `host`. The one given for the registry is for the registry alone: a mirror of it is another host,
    /// and has only the accounts that somebody knows for it.
    pub(super) async fn account(&self, host: &Host, challenges: &[String]) -> Result<Option<Credentials>> {
        if let Some(credentials) = self.credentials.as_ref().filter(|_| host.is_registry) {
            return Ok(Some(credentials.clone()));
        }
        for keyring in self.keyrings.iter() {
            let found = keyring.account(&host.name(), challenges).await;
            if let Some(account) = found.doing(|| format!("registry {}: its account", host.name()))? {
                return Ok(Some(account));
            }
        }
        Ok(None)
    }

    async fn bearer(
        &self,
        host: &Host,
        challenge: &Challenge,
        credentials: Option<&Credentials>,
        scope: &str,
    ) -> Result<Token> {
        let refuse = |problem: &str| {
            Error::new(Kind::PermissionDenied, format!("registry {}: its token service: {problem}", host.name()))
        };
        let realm = challenge.get("realm").ok_or_else(|| refuse("is not named"))?;
        let realm: Url = realm.parse().map_err(|_| refuse("has no valid address"))?;
        host.check_elsewhere(&realm).map_err(refuse)?;
        // The token service stands where it says, so requests to it are its own.
        let service = host.service_at(realm.clone());
        let scopes = scopes(scope, challenge.get("scope").unwrap_or_default());
        let wanted = Wanted { service: challenge.get("service"), scope: &scopes };
        if let Some(account) = credentials
            && let Some(token) = by_post(&service, &realm, &wanted, account).await?
        {
            return Ok(token);
        }
        by_get(&service, &realm, &wanted, credentials).await
    }
}

struct Wanted<'a> {
    service: Option<&'a str>,
    scope: &'a str,
}

fn key(host: &Host, scope: &str) -> String {
    format!("{} {scope}", host.base)
}

fn basic(username: &str, password: &str) -> String {
    let pair = format!("{username}:{password}");
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
}

/// What we want, and what the registry says is wanted: some name their scopes in ways of their own. A scope for pulling
/// and pushing has that for pulling in it.
fn scopes(ours: &str, theirs: &str) -> String {
    let mut all: Vec<&str> = Vec::new();
    for scope in ours.split(' ').chain(theirs.split(' ')).filter(|scope| !scope.is_empty()) {
        let covers = |known: &&str| *known == scope || known.strip_prefix(scope).is_some_and(|rest| rest == ",push");
        if !all.iter().any(covers) {
            all.push(scope);
        }
    }
    all.join(" ")
}

/// Asks as OAuth 2 has it. `None` where the service does not know that way.
async fn by_post(service: &Host, realm: &Url, wanted: &Wanted<'_>, account: &Credentials) -> Result<Option<Token>> {
    let mut form = vec![("client_id", CLIENT_ID), ("scope", wanted.scope)];
    form.extend(wanted.service.map(|service| ("service", service)));
    let with_password = match account {
        Credentials::Identity(token) => {
            form.extend([("grant_type", "refresh_token"), ("refresh_token", token.as_str())]);
            false
        }
        Credentials::Password { username, password } => {
            form.extend([("grant_type", "password"), ("username", username), ("password", password)]);
            form.push(("access_type", "offline"));
            true
        }
        Credentials::Header(_) => return Ok(None),
    };
    let mut encoded = realm.clone();
    encoded.query_pairs_mut().clear().extend_pairs(form);
    let mut ask =
        Ask::new(Method::POST, realm.clone()).header(http::header::CONTENT_TYPE, "application/x-www-form-urlencoded");
    ask.body = Body::Bytes(encoded.query().unwrap_or_default().to_owned().into());
    ask.stays = true;
    let answer = transport::send(service, &ask, None).await?;
    match answer.status().as_u16() {
        200 => token(service, answer).await.map(Some),
        // Services from before OAuth 2 answer with one of these; a wrong password is then told by the other way.
        400 | 401 | 404 | 405 if with_password => Ok(None),
        _ => Err(failure(service, answer).await),
    }
}

async fn by_get(service: &Host, realm: &Url, wanted: &Wanted<'_>, credentials: Option<&Credentials>) -> Result<Token> {
    let mut url = realm.clone();
    {
        let mut query = url.query_pairs_mut();
        if let Some(service) = wanted.service {
            query.append_pair("service", service);
        }
        for scope in wanted.scope.split(' ').filter(|scope| !scope.is_empty()) {
            query.append_pair("scope", scope);
        }
    }
    let authorization = match credentials {
        Some(Credentials::Password { username, password }) => Some(basic(username, password)),
        _ => None,
    };
    let mut ask = Ask::new(Method::GET, url);
    ask.stays = true;
    let answer = transport::send(service, &ask, authorization.as_deref()).await?;
    if !answer.status().is_success() {
        return Err(failure(service, answer).await);
    }
    token(service, answer).await
}

async fn token(service: &Host, answer: Response) -> Result<Token> {
    let bytes = body(service, answer, MAX_TOKEN).await?;
    let invalid = || Error::unavailable(format!("token service {}: its answer has no token", service.name()));
    let answer: Answer = serde_json::from_slice(&bytes).map_err(|_| invalid())?;
    let token = if answer.token.is_empty() { answer.access_token } else { answer.token };
    if token.is_empty() || token.contains(['\r', '\n']) {
        return Err(invalid());
    }
    let life = Duration::from_secs(answer.expires_in).clamp(MIN_LIFE, MAX_LIFE);
    Ok(Token { authorization: format!("Bearer {token}"), until: Some(Instant::now() + life) })
}
