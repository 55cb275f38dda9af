//! What a registry's failure means to a person.

use reqwest::StatusCode;
use serde::Deserialize;

use crate::error::{Error, Kind};

/// Most of a registry's own words that are shown.
const MAX_SHOWN: usize = 300;

#[derive(Deserialize)]
struct Answer {
    errors: Vec<One>,
}

#[derive(Deserialize)]
struct One {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// The error of an answer that is not the one wanted.
pub(super) fn of_answer(host: &str, status: StatusCode, body: &[u8]) -> Error {
    let said = said(body);
    let told = |kind, text: &str| {
        let said = if said.is_empty() { String::new() } else { format!(": {said}") };
        Error::new(kind, format!("registry {host}: {text}{said}"))
    };
    match status {
        StatusCode::UNAUTHORIZED => {
            let remedy = "log in with `gantry login`";
            told(Kind::Unauthenticated, &format!("wants a user name and password, or refused these; {remedy}"))
        }
        StatusCode::FORBIDDEN => told(Kind::PermissionDenied, "this account may not do that"),
        StatusCode::NOT_FOUND => told(Kind::NotFound, "not found"),
        StatusCode::TOO_MANY_REQUESTS => {
            told(Kind::ResourceExhausted, "too many requests; wait, or log in for a higher limit")
        }
        StatusCode::RANGE_NOT_SATISFIABLE => told(Kind::OutOfRange, "does not have that part"),
        status if status.is_server_error() => told(Kind::Unavailable, &format!("answered {status}; try again later")),
        status => told(Kind::Unknown, &format!("answered {status}")),
    }
}

/// The registry's own words, on one line.
fn said(body: &[u8]) -> String {
    let text = match serde_json::from_slice::<Answer>(body) {
        Ok(answer) => {
            let one = |one: &One| if one.message.is_empty() { one.code.clone() } else { one.message.clone() };
            answer.errors.iter().map(one).collect::<Vec<_>>().join(", ")
        }
        Err(_) => return String::new(),
    };
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_SHOWN).collect()
}

/// The error of a request that got no answer.
pub(super) fn of_transport(host: &str, error: &reqwest::Error) -> Error {
    let cause = root_cause(error);
    if error.is_timeout() {
        return Error::new(Kind::DeadlineExceeded, format!("registry {host}: no answer in time ({cause}); try again"));
    }
    if is_certificate(error) {
        // Not `Unavailable`: trying again does not help, and HTTP in its place would be less safe still.
        let remedy = "name its authority in hosts.toml (ca), or do not check it with --insecure";
        return Error::precondition(format!("registry {host}: its certificate is not trusted ({cause}); {remedy}"));
    }
    if error.is_connect() {
        let remedy = "check that it is running and that the address and port are right";
        return Error::unavailable(format!("registry {host}: cannot connect: {cause}; {remedy}"));
    }
    Error::unavailable(format!("registry {host}: {cause}"))
}

/// Whether the connection was there and broke: the same request may well succeed on another.
pub(super) fn is_broken_off(error: &reqwest::Error) -> bool {
    !error.is_timeout() && !error.is_connect() && !error.is_builder()
}

/// Whether it is for the server's certificate that there is no connection.
fn is_certificate(error: &reqwest::Error) -> bool {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(rustls::Error::InvalidCertificate(_)) = error.downcast_ref() {
            return true;
        }
        // What an error of the system's kind holds is not its source, but itself.
        let held = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = held.map(|held| held as &(dyn std::error::Error + 'static)).or_else(|| error.source());
    }
    false
}

/// The innermost cause, which is the one that says something.
pub(super) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(next) = last.source() {
        last = next;
    }
    let text = last.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut characters = text.chars();
    match characters.next() {
        Some(first) if !text.chars().nth(1).is_some_and(char::is_uppercase) => {
            first.to_lowercase().collect::<String>() + characters.as_str()
        }
        _ => text.to_owned(),
    }
}
