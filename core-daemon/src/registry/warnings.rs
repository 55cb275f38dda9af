//! What a registry wants people to know: `Warning: 299 - "text"` beside an answer.

use std::sync::{Mutex, PoisonError};

use http::HeaderMap;
use http::header::WARNING;

/// Most warnings that are kept of one repository.
const MOST: usize = 8;
/// Longest text of one, in characters.
const LONGEST: usize = 512;

/// The warnings of a repository's hosts, each once.
#[derive(Debug, Default)]
pub(super) struct Warnings(Mutex<Vec<String>>);

impl Warnings {
    /// Takes those of an answer from `host`.
    pub(super) fn take(&self, host: &str, headers: &HeaderMap) {
        for value in headers.get_all(WARNING) {
            let Some(text) = value.to_str().ok().and_then(text_of) else { continue };
            let warning = format!("registry {host}: {text}");
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if all.len() < MOST && !all.contains(&warning) {
                tracing::warn!("{warning}");
                all.push(warning);
            }
        }
    }

    pub(super) fn all(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The text of a warning of the only kind that registries may send: no agent, no date. Control characters are not shown.
fn text_of(value: &str) -> Option<String> {
    let quoted = value.strip_prefix("299 - \"")?.strip_suffix('"')?;
    let mut text = String::new();
    let mut characters = quoted.chars();
    while let Some(character) = characters.next() {
        let plain = match character {
            '\\' => characters.next()?,
            '"' => return None,
            other => other,
        };
        text.push(if plain.is_control() { ' ' } else { plain });
    }
    Some(text.chars().take(LONGEST).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_warning_is_kept_once() {
        let mut headers = HeaderMap::new();
        for value in [r#"299 - "this image is \"old\"""#, r#"299 - "b""#, r#"299 - "b""#, r#"199 - "c""#, "299 - d"] {
            headers.append(WARNING, value.parse().expect("header"));
        }
        let warnings = Warnings::default();
        warnings.take("a.test", &headers);
        warnings.take("a.test", &headers);
        assert_eq!(warnings.all(), ["registry a.test: this image is \"old\"", "registry a.test: b"]);
    }
}
