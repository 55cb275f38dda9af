//! What a registry's failure means to a person.

use reqwest::StatusCode;
use rustls::CertificateError;
use serde::Deserialize;

use super::reach::Unresolved;
use crate::error::{Error, Kind, plain};

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
    if let Some(unresolved) = cause::<Unresolved>(error) {
        let remedy = "check the name, this machine's network, and the name servers in /etc/resolv.conf";
        return Error::unavailable(format!("registry {host}: {unresolved}; {remedy}"));
    }
    if error.is_timeout() {
        let cause = root_cause(error);
        return Error::new(Kind::DeadlineExceeded, format!("registry {host}: no answer in time ({cause}); try again"));
    }
    match cause::<rustls::Error>(error) {
        // Not `Unavailable`: trying again does not help, and HTTP in its place would be less safe still.
        Some(rustls::Error::InvalidCertificate(why)) => {
            return Error::precondition(format!("registry {host}: its certificate is {}", untrusted(why)));
        }
        Some(rustls::Error::InvalidMessage(_)) if error.is_connect() => {
            let remedy = "if it is to be reached over HTTP, say --plain-http, or http:// in hosts.toml";
            return Error::unavailable(format!("registry {host}: what answers there speaks no TLS; {remedy}"));
        }
        _ => {}
    }
    let cause = root_cause(error);
    if error.is_connect() {
        let remedy = "check that it is running and that the address and port are right";
        return Error::unavailable(format!("registry {host}: cannot connect: {cause}; {remedy}"));
    }
    Error::unavailable(format!("registry {host}: {cause}"))
}

/// What is wrong with a certificate, and what to do.
fn untrusted(why: &CertificateError) -> String {
    const TRUST: &str = "name its authority in hosts.toml (ca), or do not check it with --insecure";
    match why {
        CertificateError::UnknownIssuer => format!("not trusted: nobody whom this machine trusts has signed it; {TRUST}"),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "not valid any more; have it renewed, and check this machine's clock".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "not valid yet; check this machine's clock".to_owned()
        }
        CertificateError::NotValidForNameContext { presented, .. } if !presented.is_empty() => {
            let names: Vec<&str> = presented.iter().map(|name| bare(name)).collect();
            format!("another host's: {}; use a name that it is for, or do not check it with --insecure", names.join(", "))
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "for no host; make one with subjectAltName, or do not check it with --insecure".to_owned()
        }
        CertificateError::Other(other) if matches!(other.0.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity)) => {
            "an authority's own, which is no server's; make one with basicConstraints CA:FALSE, or do not check it with \
             --insecure"
                .to_owned()
        }
        CertificateError::Other(other) => format!("not trusted ({}); {TRUST}", words(&other.0.to_string())),
        other => format!("not trusted ({}); {TRUST}", words(&other.to_string())),
    }
}

/// `BadSignature` as people write it.
fn words(name: &str) -> String {
    let mut words = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && words.ends_with(char::is_lowercase) {
            words.push(' ');
        }
        words.extend(letter.to_lowercase());
    }
    words
}

/// The name or address in `DnsName("a.example")` and its like.
fn bare(name: &str) -> &str {
    let inside = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
    inside.unwrap_or(name).trim_matches('"')
}

/// Whether the connection was there and broke: the same request may well succeed on another.
pub(super) fn is_broken_off(error: &reqwest::Error) -> bool {
    !error.is_timeout() && !error.is_connect() && !error.is_builder()
}

/// The cause of a type, however deep it is.
fn cause<T: std::error::Error + 'static>(error: &reqwest::Error) -> Option<&T> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // What an error of the system's kind holds is not its source, but itself.
        let held = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = held.map(|held| held as &(dyn std::error::Error + 'static)).or_else(|| error.source());
    }
    None
}

/// The innermost cause, which is the one that says something.
pub(super) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(next) = last.source() {
        last = next;
    }
    plain(&last.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_that_is_refused_says_what_to_do() {
        let for_others = CertificateError::NotValidForNameContext {
            expected: rustls::pki_types::ServerName::try_from("a.io").expect("name"),
            presented: vec!["DnsName(\"b.io\")".to_owned(), "IpAddress(10.0.0.1)".to_owned()],
        };
        let own = rustls::OtherError(std::sync::Arc::new(webpki::Error::CaUsedAsEndEntity));
        for (why, says) in [
            (CertificateError::UnknownIssuer, "not trusted: nobody whom this machine trusts has signed it; name its"),
            (CertificateError::Expired, "not valid any more; have it renewed"),
            (for_others, "another host's: b.io, 10.0.0.1; use"),
            (CertificateError::Other(own), "an authority's own, which is no server's; make one with"),
            (CertificateError::BadSignature, "not trusted (bad signature); "),
        ] {
            assert!(untrusted(&why).starts_with(says), "{}", untrusted(&why));
        }
    }
}
