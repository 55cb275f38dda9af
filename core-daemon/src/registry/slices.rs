//! Slices of a blob, over further connections beside that of the answer which brings it in order.
//!
//! Each is asked for like the blob itself: of the same host, with what authorization that host wants, and along its
//! redirects, which get none of it. Only the very bytes that were asked for count, of a blob that is as long as its
//! descriptor says, and unchanged as far as the host tells. All else is an error, and the blob comes in order as before.

use std::ops::Range;

use bytes::Bytes;
use http::HeaderValue;
use http::header::{ACCEPT_RANGES, CONTENT_ENCODING, CONTENT_RANGE, ETAG, RANGE};
use reqwest::{Response, StatusCode};

use super::Repository;
use super::hosts::Host;
use super::pace::Pace;
use super::transport::{self, Ask, backoff, failure, next_piece, slow};
use crate::error::{Error, Kind, Result};

/// Tries without any progress between them.
const TRIES: u32 = 5;

/// How a blob was asked for.
#[derive(Clone)]
pub(super) struct Question {
    pub(super) repository: Repository,
    /// For the whole of it.
    pub(super) ask: Ask,
    /// It is the repository's own host, which may want authorization for this.
    pub(super) scope: Option<String>,
}

/// Where slices of a blob come from.
#[derive(Clone)]
pub struct Slices {
    host: Host,
    question: Question,
    size: u64,
    /// What tells this very blob from what else may take its place.
    etag: Option<HeaderValue>,
}

impl Slices {
    /// The slices of the blob of `size` bytes that `answer` brings, or the rest of; none where it is of another length, packed
    /// on its way, or the host says that it gives no slices.
    pub(super) fn of(host: &Host, question: Question, answer: &Response, size: u64) -> Option<Self> {
        let header = |name| answer.headers().get(name);
        let length = match answer.status() {
            StatusCode::OK => answer.content_length(),
            _ => header(CONTENT_RANGE).and_then(|range| range.to_str().ok()?.rsplit('/').next()?.parse().ok()),
        };
        let refuses = header(ACCEPT_RANGES).is_some_and(|ranges| ranges.as_bytes().eq_ignore_ascii_case(b"none"));
        if length != Some(size) || refuses || header(CONTENT_ENCODING).is_some() {
            return None;
        }
        let etag = header(ETAG).filter(|etag| !etag.as_bytes().starts_with(b"W/")).cloned();
        Some(Self { host: host.clone(), question, size, etag })
    }

    /// Fetches one slice, from where it broke off where it does. Of a host that has not given any yet it is asked for only
    /// once (`first`).
    ///
    /// # Errors
    /// `FailedPrecondition` where something else comes than was asked for; else as [`Repository::blob`].
    pub async fn fetch(&self, slice: Range<u64>, first: bool) -> Result<Bytes> {
        let length = usize::try_from(slice.end - slice.start).unwrap_or(usize::MAX);
        let (mut bytes, mut failed, mut pace) = (Vec::with_capacity(length), 0, self.question.repository.pace());
        loop {
            let before = bytes.len();
            match self.fetch_some(&slice, &mut bytes, &mut pace, first).await {
                Ok(()) if bytes.len() == length => return Ok(bytes.into()),
                Ok(()) => {}
                Err(error) if first || !matches!(error.kind(), Kind::Unavailable | Kind::DeadlineExceeded) => {
                    return Err(error);
                }
                Err(error) => tracing::debug!(host = self.host.name(), ?slice, %error, "a slice broke off"),
            }
            failed = if bytes.len() > before { 0 } else { failed + 1 };
            if first || failed >= TRIES || pace.is_hopeless() {
                return Err(Error::unavailable(format!("registry {}: sends slices incompletely", self.host.name())));
            }
            tokio::time::sleep(backoff(failed)).await;
        }
    }

    /// Adds what one answer brings of a slice to what has come of it.
    async fn fetch_some(&self, slice: &Range<u64>, bytes: &mut Vec<u8>, pace: &mut Pace, first: bool) -> Result<()> {
        let wanted = slice.start + bytes.len() as u64..slice.end;
        let ask = self.question.ask.clone();
        let ask = ask.header(RANGE, &format!("bytes={}-{}", wanted.start, wanted.end - 1));
        // Who is not known to give slices is not waited for.
        let host = if first { self.host.asked(true) } else { self.host.clone() };
        let mut answer = match &self.question.scope {
            Some(scope) => self.question.repository.send(&host, &ask, scope).await?,
            None => transport::send(&host, &ask, None).await?,
        };
        let status = answer.status();
        if !status.is_success() {
            return Err(failure(&host, answer).await);
        }
        if let Some(what) = self.wrong(&answer, &wanted) {
            let text = format!("registry {}: answers {what} to who asks for a slice", host.name());
            return Err(Error::precondition(text));
        }
        while let Some(piece) = next_piece(&host, &mut answer).await? {
            let room = usize::try_from(slice.end - slice.start).unwrap_or(0) - bytes.len();
            if piece.len() > room {
                let text = format!("registry {}: sends more than the slice that it was asked for", host.name());
                return Err(Error::precondition(text));
            }
            bytes.extend_from_slice(&piece);
            if !pace.came(piece.len() as u64) {
                return Err(slow(&host.name()));
            }
        }
        Ok(())
    }

    /// What is not as it should be of a successful answer, if something is not.
    fn wrong(&self, answer: &Response, wanted: &Range<u64>) -> Option<String> {
        if answer.status() != StatusCode::PARTIAL_CONTENT {
            return Some(format!("status {}", answer.status().as_u16()));
        }
        let header = |name| answer.headers().get(name);
        let range = header(CONTENT_RANGE).and_then(|range| range.to_str().ok()).unwrap_or_default();
        if range.trim() != format!("bytes {}-{}/{}", wanted.start, wanted.end - 1, self.size) {
            return Some(format!("with {range:?}"));
        }
        if header(CONTENT_ENCODING).is_some() {
            return Some("something packed".to_owned());
        }
        let is_other = self.etag.is_some() && header(ETAG).is_some_and(|etag| Some(etag) != self.etag.as_ref());
        is_other.then(|| "something that has changed".to_owned())
    }
}
