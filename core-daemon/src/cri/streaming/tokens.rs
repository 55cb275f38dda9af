//! Who has a token may do once what it was given for.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::error::{Error, Kind, Result};

/// How long a token is good for.
const LIFE: Duration = Duration::from_secs(60);
/// Tokens that may wait to be used.
const MAX: usize = 1000;

/// Requests that wait for their streams, by token.
pub(super) struct Tokens<T> {
    waiting: Mutex<HashMap<String, (Instant, T)>>,
    life: Duration,
}

impl<T> Default for Tokens<T> {
    fn default() -> Self {
        Self { waiting: Mutex::default(), life: LIFE }
    }
}

impl<T> Tokens<T> {
    /// Keeps `request` for whoever brings the token.
    ///
    /// # Errors
    /// `ResourceExhausted` while too many wait.
    pub(super) fn give(&self, request: T) -> Result<String> {
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|error| Error::internal(format!("random number: {error}")))?;
        let token = URL_SAFE_NO_PAD.encode(random);
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|_, (given, _)| given.elapsed() < self.life);
        if waiting.len() >= MAX {
            let text = format!("{MAX} streams were asked for and not opened; try again in a minute");
            return Err(Error::new(Kind::ResourceExhausted, text));
        }
        waiting.insert(token.clone(), (Instant::now(), request));
        Ok(token)
    }

    /// The request of a token, which is used up now.
    pub(super) fn take(&self, token: &str) -> Option<T> {
        let (given, request) = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(token)?;
        (given.elapsed() < self.life).then_some(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_once_and_for_a_while() {
        let tokens = Tokens::default();
        let token = tokens.give(7).expect("token");
        assert_eq!(tokens.take("another"), None);
        assert_eq!(tokens.take(&token), Some(7));
        assert_eq!(tokens.take(&token), None);
        let old = Tokens { life: Duration::ZERO, ..Tokens::default() };
        let token = old.give(7).expect("token");
        assert_eq!(old.take(&token), None);
    }

    #[test]
    fn no_more_wait_than_may() {
        let tokens = Tokens::default();
        for number in 0..MAX {
            tokens.give(number).expect("token");
        }
        assert_eq!(tokens.give(0).expect_err("too many").kind(), Kind::ResourceExhausted);
    }
}
