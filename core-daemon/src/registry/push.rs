//! Writing to a repository: blobs, mounted from another repository of the same registry or uploaded, and documents.
//!
//! A blob is sent whole, which every registry takes. Where the connection breaks under a large one it is sent again in
//! pieces, each of which the registry keeps. Where an upload goes is the registry's word, so the rules for redirects
//! hold: no credentials for another host, no private address behind a public registry.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::{Method, Response, StatusCode, Url};
use rung_spec::digest::Digest;
use rung_spec::image::{Descriptor, MANIFEST_ACCEPT};

use super::Repository;
use super::body::{Body, Part, Sent};
use super::hosts::Host;
use super::transport::{Ask, backoff, failure, redirect};
use crate::error::{Doing, Error, Kind, Result};

/// Blobs from this size on are sent in pieces where sending them whole failed.
const IN_PIECES: u64 = 16 << 20;
/// Bytes of such a piece, where the registry does not want more.
const PIECE: u64 = 16 << 20;
/// Tries without any progress between them.
const TRIES: u32 = 5;

/// A repository that is written to. Clones are the same.
#[derive(Clone)]
pub struct Pusher {
    pub(super) repository: Repository,
    pub(super) host: Host,
    pub(super) scope: String,
}

/// What a registry answers who wants to upload a blob.
#[derive(Debug)]
pub enum Room {
    /// It has taken it from the other repository.
    Mounted,
    /// It goes there.
    At(Upload),
}

/// An upload that the registry has room for.
#[derive(Debug)]
pub struct Upload {
    at: Url,
    /// Bytes that a piece must have at least, but the last.
    least: u64,
}

impl Upload {
    fn of(at: Url, answer: &Response) -> Self {
        let header = answer.headers().get("oci-chunk-min-length").and_then(|value| value.to_str().ok());
        Self { at, least: header.and_then(|text| text.trim().parse().ok()).unwrap_or(0) }
    }
}

impl Repository {
    /// The host that takes what is pushed: the first that is configured for it and can be reached.
    ///
    /// # Errors
    /// `Unauthenticated` and `PermissionDenied` where the account may not; `Unavailable` where no host is there.
    pub async fn pusher(&self) -> Result<Pusher> {
        let mut last: Option<Error> = None;
        for host in self.hosts.iter().filter(|host| host.pushes) {
            if host.stands_in && last.as_ref().is_some_and(|error| error.kind() != Kind::Unavailable) {
                continue;
            }
            let scope = format!("repository:{}:pull,push", self.path_at(host));
            let pusher = Pusher { repository: self.clone(), host: host.clone(), scope };
            match pusher.reach().await {
                Ok(()) => return Ok(pusher),
                Err(error) => last = Some(error),
            }
        }
        let none = || Error::not_found(format!("registry {}: no host is configured for pushing", self.host));
        Err(last.unwrap_or_else(none))
    }
}

impl Pusher {
    /// The host, as people know it.
    pub fn host(&self) -> String {
        self.host.name()
    }

    /// The registry as the reference names it.
    pub fn registry(&self) -> &str {
        self.repository.host()
    }

    /// The repository's path.
    pub fn path(&self) -> &str {
        self.repository.path()
    }

    async fn reach(&self) -> Result<()> {
        let answer = self.send(&Ask::new(Method::GET, self.host.base.clone())).await?;
        match answer.status() {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(failure(&self.host, answer).await),
            _ => Ok(()),
        }
    }

    pub(super) async fn send(&self, ask: &Ask) -> Result<Response> {
        self.repository.send(&self.host, ask, &self.scope).await
    }

    pub(super) fn url(&self, rest: &str) -> Result<Url> {
        self.repository.url(&self.host, rest)
    }

    /// Whether the repository has a blob.
    ///
    /// # Errors
    /// What the registry says other than yes or no.
    pub async fn has(&self, blob: &Digest) -> Result<bool> {
        let answer = self.send(&Ask::new(Method::HEAD, self.url(&format!("blobs/{blob}"))?)).await?;
        match answer.status() {
            StatusCode::NOT_FOUND => Ok(false),
            status if status.is_success() => Ok(true),
            _ => Err(failure(&self.host, answer).await).doing(|| format!("look for {blob}")),
        }
    }

    /// Whether the tag or digest `object` stands for this document already.
    ///
    /// # Errors
    /// What the registry says other than yes or no.
    pub async fn stands_for(&self, object: &str, document: &Descriptor) -> Result<bool> {
        let accept = format!("{}, {MANIFEST_ACCEPT}", document.media_type);
        let url = self.url(&format!("manifests/{object}"))?;
        let answer = self.send(&Ask::new(Method::HEAD, url).header(http::header::ACCEPT, &accept)).await?;
        let digest = answer.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
        match answer.status() {
            StatusCode::NOT_FOUND => Ok(false),
            status if status.is_success() => {
                Ok(object == document.digest.as_str() || digest == Some(document.digest.as_str()))
            }
            _ => Err(failure(&self.host, answer).await).doing(|| format!("look for {object}")),
        }
    }

    /// Asks for room for a blob, or that it be taken from the repository `from` of the same registry.
    ///
    /// # Errors
    /// What the registry says against it.
    pub async fn room(&self, blob: &Digest, from: Option<&str>) -> Result<Room> {
        let mut url = self.url("blobs/uploads/")?;
        let mut scope = self.scope.clone();
        if let Some(from) = from {
            url.query_pairs_mut().append_pair("mount", blob.as_str()).append_pair("from", from);
            scope = format!("{scope} repository:{from}:pull");
        }
        let mut ask = Ask::new(Method::POST, url.clone());
        // Room that nobody uses the registry takes back.
        ask.again = true;
        let answer = self.repository.send(&self.host, &ask, &scope).await;
        let answer = match answer {
            Ok(answer) => answer,
            // A token for the other repository may be refused where one for ours would not be.
            Err(error) if from.is_some() && error.kind() != Kind::Unavailable => {
                return Box::pin(self.room(blob, None)).await;
            }
            Err(error) => return Err(error),
        };
        match answer.status() {
            StatusCode::CREATED if from.is_some() => Ok(Room::Mounted),
            StatusCode::ACCEPTED => redirect(&self.host, &url, &answer).map(|at| Room::At(Upload::of(at, &answer))),
            _ if from.is_some() => Box::pin(self.room(blob, None)).await,
            _ => Err(failure(&self.host, answer).await).doing(|| format!("upload {blob}")),
        }
    }

    /// Uploads a blob to `room`, from its file.
    ///
    /// # Errors
    /// What the registry says against it; `Unavailable` where the connection breaks again and again.
    pub async fn upload(&self, room: Upload, blob: &Descriptor, file: &Arc<File>, sent: &Sent) -> Result<()> {
        let mut room = Some(room);
        let mut tried = 0;
        loop {
            let at = match room.take() {
                Some(room) => room,
                None => self.new_room(&blob.digest).await?,
            };
            let outcome = match tried {
                0 => self.whole(at.at, blob, file, sent).await,
                _ if blob.size < IN_PIECES => self.whole(at.at, blob, file, sent).await,
                _ => return self.in_pieces(at, blob, file, sent).await.doing(|| format!("upload {}", blob.digest)),
            };
            tried += 1;
            match outcome {
                Err(error) if tried < TRIES && is_passing(&error) => {
                    tracing::debug!(digest = %blob.digest, %error, "upload is tried again");
                    tokio::time::sleep(backoff(tried)).await;
                }
                other => return other.doing(|| format!("upload {}", blob.digest)),
            }
        }
    }

    async fn new_room(&self, blob: &Digest) -> Result<Upload> {
        match self.room(blob, None).await? {
            Room::At(upload) => Ok(upload),
            Room::Mounted => Err(Error::internal("upload: mounted from nowhere")),
        }
    }

    async fn whole(&self, at: Url, blob: &Descriptor, file: &Arc<File>, sent: &Sent) -> Result<()> {
        let part = Part { file: file.clone(), offset: 0, length: blob.size, sent: sent.clone() };
        self.complete(at, &blob.digest, Body::Part(part)).await
    }

    /// Ends an upload, with what is left of the blob.
    async fn complete(&self, mut at: Url, blob: &Digest, body: Body) -> Result<()> {
        at.query_pairs_mut().append_pair("digest", blob.as_str());
        let mut ask = Ask::new(Method::PUT, at).header(http::header::CONTENT_TYPE, "application/octet-stream");
        ask.body = body;
        let answer = self.send(&ask).await?;
        if !answer.status().is_success() {
            return Err(failure(&self.host, answer).await);
        }
        check_digest(&self.host, &answer, blob)
    }

    /// Sends a blob piece by piece, each again from where the registry says that it is.
    async fn in_pieces(&self, to: Upload, blob: &Descriptor, file: &Arc<File>, sent: &Sent) -> Result<()> {
        let Upload { mut at, least } = to;
        let (mut offset, mut failed, mut lost) = (0, 0, 0);
        while offset < blob.size {
            let before = offset;
            let length = PIECE.max(least).min(blob.size - offset);
            let part = Part { file: file.clone(), offset, length, sent: sent.clone() };
            let range = format!("{offset}-{}", offset + length - 1);
            let mut ask = Ask::new(Method::PATCH, at.clone())
                .header(http::header::CONTENT_TYPE, "application/octet-stream")
                .header(http::header::CONTENT_RANGE, &range);
            ask.body = Body::Part(part);
            let answer = match self.send(&ask).await {
                Ok(answer) if !answer.status().is_success() => Err(failure(&self.host, answer).await),
                other => other,
            };
            match answer {
                Ok(answer) => {
                    (at, offset) = (redirect(&self.host, &at, &answer)?, received(&answer).unwrap_or(offset + length));
                }
                Err(error) if is_passing(&error) || error.kind() == Kind::OutOfRange => {
                    (at, offset) = self.whereabouts(&at).await?;
                }
                Err(error) => return Err(error),
            }
            failed = if offset > before { 0 } else { failed + 1 };
            // One that takes a piece and loses it again would have us send for ever.
            lost += u32::from(offset < before);
            if failed >= TRIES || lost >= TRIES || offset > blob.size {
                let text = format!("registry {}: does not keep what it is sent", self.host.name());
                return Err(Error::unavailable(text));
            }
            tokio::time::sleep(if failed > 0 { backoff(failed) } else { Duration::ZERO }).await;
        }
        self.complete(at, &blob.digest, Body::Bytes(Bytes::new())).await
    }

    /// How far an upload has come, and where it goes on.
    async fn whereabouts(&self, at: &Url) -> Result<(Url, u64)> {
        let answer = self.send(&Ask::new(Method::GET, at.clone())).await?;
        if !answer.status().is_success() {
            return Err(failure(&self.host, answer).await);
        }
        let at = if answer.headers().contains_key(http::header::LOCATION) {
            redirect(&self.host, at, &answer)?
        } else {
            at.clone()
        };
        Ok((at, received(&answer).unwrap_or(0)))
    }

    /// Puts a document under the tag or digest `object`. Answers with whether the registry keeps account of what the
    /// document says it is about.
    ///
    /// # Errors
    /// What the registry says against it.
    pub async fn put(&self, object: &str, document: &Descriptor, bytes: Bytes) -> Result<bool> {
        let url = self.url(&format!("manifests/{object}"))?;
        let mut ask = Ask::new(Method::PUT, url).header(http::header::CONTENT_TYPE, &document.media_type);
        ask.body = Body::Bytes(bytes);
        ask.again = true;
        let answer = self.send(&ask).await?;
        if !answer.status().is_success() {
            return Err(failure(&self.host, answer).await).doing(|| format!("put {object}"));
        }
        check_digest(&self.host, &answer, &document.digest)?;
        Ok(answer.headers().contains_key("oci-subject"))
    }
}

/// Whether the same may well succeed later.
pub(super) fn is_passing(error: &Error) -> bool {
    matches!(error.kind(), Kind::Unavailable | Kind::DeadlineExceeded)
}

/// How many bytes a registry says that it has of an upload.
fn received(answer: &Response) -> Option<u64> {
    let range = answer.headers().get(http::header::RANGE)?.to_str().ok()?;
    let last: u64 = range.trim_start_matches("bytes=").split_once('-')?.1.trim().parse().ok()?;
    // Nothing yet is written as 0-0, as is the first byte.
    Some(if last == 0 { 0 } else { last.saturating_add(1) })
}

fn check_digest(host: &Host, answer: &Response, wanted: &Digest) -> Result<()> {
    let header = answer.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
    match header.and_then(|text| Digest::parse(text).ok()) {
        Some(stored) if stored != *wanted && stored.algorithm() == wanted.algorithm() => {
            Err(Error::new(Kind::DataLoss, format!("registry {}: stored {stored} instead of {wanted}", host.name())))
        }
        _ => Ok(()),
    }
}
