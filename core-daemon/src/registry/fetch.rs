//! Reading from a repository: what a name stands for, documents, blobs.

use std::sync::atomic::Ordering;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use reqwest::{Method, Response, StatusCode, Url};
use rung_spec::digest::Digest;
use rung_spec::image::{Descriptor, Document, Kind as MediaKind, MANIFEST_ACCEPT};

use super::Repository;
use super::hosts::Host;
use super::pace::Pace;
use super::push::is_passing;
use super::slices::{Question, Slices};
use super::transport::{Ask, backoff, body, failure, in_time, next_piece, send, slow};
use crate::error::{Doing, Error, Kind, Result};

/// Largest manifest or index: what registries take at least, and hardly one takes more.
const MAX_MANIFEST: u64 = 4 << 20;
/// Tries of an answer that breaks off.
const TRIES: u32 = 5;
/// Most addresses of one blob that are tried.
const MAX_URLS: usize = 4;

/// What a name stands for.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// Type, digest and length.
    pub descriptor: Descriptor,
    /// The document itself, where the registry had to be asked for it.
    pub bytes: Option<Bytes>,
}

/// A blob's bytes as they come.
pub struct BlobStream {
    host: Host,
    answer: Response,
    /// Where in the blob they start.
    pub offset: u64,
    /// Where slices of it come from, if they do.
    slices: Option<Slices>,
}

impl BlobStream {
    /// Where slices of the same blob come from, over other connections; none where that is known to fail.
    pub fn slices(&self) -> Option<Slices> {
        self.slices.clone()
    }

    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// `Unavailable` or `DeadlineExceeded` when the connection breaks or stalls: what came so far is good.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        let piece = next_piece(&self.host, &mut self.answer).await;
        piece.inspect_err(|error| self.host.remember(error))
    }

    /// Ends it because too little comes, which is remembered of the host.
    pub fn give_up(self) -> Error {
        let error = slow(&self.host.name());
        self.host.remember(&error);
        error
    }

    async fn whole(mut self, limit: u64) -> Result<Bytes> {
        let host = self.host.clone();
        let read = async {
            let mut bytes = bytes::BytesMut::new();
            while let Some(piece) = self.next().await? {
                if (bytes.len() + piece.len()) as u64 > limit {
                    let text = format!("registry {}: sends more than {limit} bytes", self.host.name());
                    return Err(Error::new(Kind::DataLoss, text));
                }
                bytes.extend_from_slice(&piece);
            }
            Ok(bytes.freeze())
        };
        in_time(&host, read).await
    }
}

impl Repository {
    pub(super) fn scope(&self, host: &Host) -> String {
        format!("repository:{}:pull", self.path_at(host))
    }

    pub(super) fn url(&self, host: &Host, rest: &str) -> Result<Url> {
        let invalid = |error| Error::invalid(format!("registry {}: {error}", host.name()));
        let mut url = host.base.join(&format!("{}/{rest}", self.path_at(host))).map_err(invalid)?;
        if let Some(mirrored) = &host.mirrors {
            url.query_pairs_mut().append_pair("ns", mirrored);
        }
        Ok(url)
    }

    /// What the tag or digest `object` stands for.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable` where no host can be reached; what the last host says otherwise.
    pub async fn resolve(&self, object: &str) -> Result<Resolved> {
        self.each(0, |host| host.resolves, |host| self.resolve_at(host, object)).await
    }

    /// A manifest or index, whose length and digest are checked.
    ///
    /// # Errors
    /// As [`Repository::resolve`]; `DataLoss` where the registry sends something else.
    pub async fn document(&self, descriptor: &Descriptor) -> Result<Bytes> {
        if let Some(bytes) = embedded(descriptor) {
            return Ok(bytes);
        }
        self.each(0, |host| host.pulls, |host| self.document_at(host, descriptor)).await
    }

    /// A small blob whole, of at most `limit` bytes, asked for again where it breaks off.
    ///
    /// # Errors
    /// As [`Repository::resolve`]; `DataLoss` where the registry sends more.
    pub async fn small(&self, descriptor: &Descriptor, limit: u64) -> Result<Bytes> {
        let whole = if embedded(descriptor).is_some() || !descriptor.urls.is_empty() {
            self.blob(descriptor, 0, 0).await?.whole(limit).await
        } else {
            self.each(0, |host| host.pulls, |host| self.small_at(host, descriptor, limit)).await
        };
        whole.doing(|| descriptor.digest.to_string())
    }

    async fn small_at(&self, host: Host, descriptor: &Descriptor, limit: u64) -> Result<Bytes> {
        let mut tried = 0;
        loop {
            tried += 1;
            match self.blob_at(host.clone(), descriptor, 0).await?.whole(limit).await {
                Err(error) if error.kind() == Kind::Unavailable && tried < TRIES && !host.leads_on => {
                    tracing::debug!(digest = %descriptor.digest, %error, "a small blob broke off");
                    tokio::time::sleep(backoff(tried)).await;
                }
                whole => return verified(&host, descriptor, whole?),
            }
        }
    }

    /// What says whether a blob comes fast enough to go on.
    pub fn pace(&self) -> Pace {
        Pace::new(self.hosts.first().map_or(Duration::MAX, |host| host.stall))
    }

    /// Whether other hosts than the registry itself are asked for blobs.
    pub fn has_mirrors(&self) -> bool {
        self.hosts.iter().filter(|host| host.pulls && !host.stands_in).count() > 1
    }

    /// A blob from `offset` on, or from its beginning where the registry cannot give a part. What its descriptor has in
    /// itself is not asked for; where that says that it is elsewhere, it is looked for there first. The first `failed` mirrors
    /// come last: they have it, and break off or send something else.
    ///
    /// # Errors
    /// As [`Repository::resolve`].
    pub async fn blob(&self, descriptor: &Descriptor, offset: u64, failed: usize) -> Result<BlobStream> {
        if let (Some(bytes), Some(host)) = (embedded(descriptor), self.hosts.first()) {
            let answer = http::Response::new(bytes).into();
            return Ok(BlobStream { host: host.clone(), answer, offset: 0, slices: None });
        }
        for url in descriptor.urls.iter().take(MAX_URLS) {
            match self.blob_elsewhere(url, descriptor, offset).await {
                Ok(blob) => return Ok(blob),
                Err(error) => tracing::debug!(url, %error, "blob is not where its descriptor says"),
            }
        }
        self.each(failed, |host| host.pulls, |host| self.blob_at(host, descriptor, offset)).await
    }

    /// Asks each host that is good for it, until one has it. A mirror that fails is not waited for while there are others;
    /// where they all have failed, those are that may do better the next time, and with them the first `failed` ones, which
    /// are known to fail.
    pub(super) async fn each<T, F: Future<Output = Result<T>>>(
        &self,
        failed: usize,
        good: impl Fn(&Host) -> bool,
        mut ask: impl FnMut(Host) -> F,
    ) -> Result<T> {
        let good: Vec<&Host> = self.hosts.iter().filter(|host| good(host)).collect();
        let (mirrors, registry) = good.split_at(good.iter().rposition(|host| !host.stands_in).unwrap_or(0));
        let of_mirrors = match self.first(&mirrors[failed.min(mirrors.len())..], true, &mut ask).await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        match self.first(registry, false, &mut ask).await {
            Err(error) if error.kind() == Kind::NotFound => Err(error),
            Err(_) if of_mirrors.kind() == Kind::NotFound => Err(of_mirrors),
            Err(error) if is_passing(&of_mirrors) || of_mirrors.kind() == Kind::ResourceExhausted => {
                self.first(mirrors, false, &mut ask).await.map_err(|_| error)
            }
            answer => answer,
        }
    }

    /// Asks hosts in turn until one has it. Where none has, the most telling failure counts: not that one was not there, but
    /// that another does not have it.
    async fn first<T, F: Future<Output = Result<T>>>(
        &self,
        hosts: &[&Host],
        leads_on: bool,
        ask: &mut impl FnMut(Host) -> F,
    ) -> Result<T> {
        let mut last: Option<Error> = None;
        // The host before spoke TLS, and said no.
        let mut refused = false;
        for host in hosts {
            if host.stands_in && refused {
                continue;
            }
            refused = false;
            if !host.stands_in && host.is_plain.load(Ordering::Relaxed) {
                continue;
            }
            if leads_on && host.hangs() {
                last.get_or_insert_with(|| slow(&host.name()));
                refused = true;
                continue;
            }
            match ask(host.asked(leads_on)).await {
                Ok(value) => {
                    host.is_plain.store(host.stands_in, Ordering::Relaxed);
                    return Ok(value);
                }
                Err(error) => {
                    tracing::debug!(host = host.name(), %error, "registry host failed");
                    host.remember(&error);
                    refused = error.kind() != Kind::Unavailable;
                    let replaced = last.as_ref().is_none_or(|before| before.kind() != Kind::NotFound);
                    if replaced || error.kind() == Kind::NotFound {
                        last = Some(error);
                    }
                }
            }
        }
        Err(last
            .unwrap_or_else(|| Error::unavailable(format!("registry {}: no host is configured for this", self.host))))
    }

    /// An object as people write it: a tag stands behind a colon, a digest behind an at sign.
    fn called(&self, object: &str) -> String {
        let mark = if object.contains(':') { '@' } else { ':' };
        format!("{}/{}{mark}{object}", self.host, self.path)
    }

    pub(super) async fn resolve_at(&self, host: Host, object: &str) -> Result<Resolved> {
        let url = self.url(&host, &format!("manifests/{object}"))?;
        let ask = Ask::new(Method::HEAD, url).header(http::header::ACCEPT, MANIFEST_ACCEPT);
        let answer = self.send(&host, &ask, &self.scope(&host)).await?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => {
                let (name, remedy) = (self.called(object), "check the name and the tag");
                return Err(Error::not_found(format!("image {name}: not found in the registry; {remedy}")));
            }
            // An answer to HEAD has no body that would say why.
            _ => return self.resolve_by_get(&host, ask, object).await,
        }
        match described(&answer, object) {
            Some(descriptor) => Ok(Resolved { descriptor, bytes: None }),
            None => self.resolve_by_get(&host, ask, object).await,
        }
    }

    async fn resolve_by_get(&self, host: &Host, mut ask: Ask, object: &str) -> Result<Resolved> {
        ask.method = Method::GET;
        let (media_type, bytes) = self.whole(host, &ask).await.doing(|| format!("resolve {}", self.called(object)))?;
        let digest = Digest::of(&bytes);
        if let Ok(expected) = Digest::parse(object) {
            expected.verify(&bytes).map_err(|error| {
                Error::new(Kind::DataLoss, format!("registry {}: sent a wrong document: {error}", host.name()))
            })?;
        }
        if !is_named_document(&media_type) {
            // Else another host may know the name.
            Document::parse(&media_type, &bytes).map_err(|error| {
                Error::invalid(format!("registry {}: sent something that is no manifest: {error}", host.name()))
            })?;
        }
        let descriptor = Descriptor::new(media_type, digest, bytes.len() as u64);
        Ok(Resolved { descriptor, bytes: Some(bytes) })
    }

    async fn document_at(&self, host: Host, descriptor: &Descriptor) -> Result<Bytes> {
        let url = self.url(&host, &format!("manifests/{}", descriptor.digest))?;
        let accept = if descriptor.media_type.is_empty() {
            MANIFEST_ACCEPT.to_owned()
        } else {
            format!("{}, */*", descriptor.media_type)
        };
        let ask = Ask::new(Method::GET, url).header(http::header::ACCEPT, &accept);
        let (_, bytes) = self.whole(&host, &ask).await?;
        verified(&host, descriptor, bytes)
    }

    /// An answer's media type and all of its bytes. It is asked for again where it breaks off.
    async fn whole(&self, host: &Host, ask: &Ask) -> Result<(String, Bytes)> {
        let mut tried = 0;
        loop {
            tried += 1;
            let answer = self.send(host, ask, &self.scope(host)).await?;
            if !answer.status().is_success() {
                return Err(failure(host, answer).await);
            }
            let media_type = media_type(&answer);
            match body(host, answer, MAX_MANIFEST).await {
                Err(error) if error.kind() == Kind::Unavailable && tried < TRIES && !host.leads_on => {
                    tracing::debug!(host = host.name(), url = %ask.url, %error, "a document broke off");
                    tokio::time::sleep(backoff(tried)).await;
                }
                other => return other.map(|bytes| (media_type, bytes)),
            }
        }
    }

    async fn blob_at(&self, host: Host, descriptor: &Descriptor, offset: u64) -> Result<BlobStream> {
        let url = self.url(&host, &format!("blobs/{}", descriptor.digest))?;
        let scope = self.scope(&host);
        let mut answer = self.send(&host, &part(url.clone(), offset), &scope).await?;
        if is_other_part(&answer, offset) {
            answer = self.send(&host, &part(url.clone(), 0), &scope).await?;
        }
        begun(host, self.question(url, Some(scope)), answer, descriptor, offset).await
    }

    /// Asks an address of a descriptor, which gets no account of the registry's.
    async fn blob_elsewhere(&self, url: &str, descriptor: &Descriptor, offset: u64) -> Result<BlobStream> {
        let nobody = || Error::unavailable(format!("registry {}: no host is configured for this", self.host));
        let registry = self.hosts.iter().find(|host| host.pulls).ok_or_else(nobody)?;
        let url: Url = url.parse().map_err(|error| Error::invalid(format!("{url:?}: {error}")))?;
        registry.check_elsewhere(&url).map_err(Error::invalid)?;
        let host = registry.service_at(url.clone());
        let mut answer = send(&host, &part(url.clone(), offset), None).await?;
        if is_other_part(&answer, offset) {
            answer = send(&host, &part(url.clone(), 0), None).await?;
        }
        begun(host, self.question(url, None), answer, descriptor, offset).await
    }

    fn question(&self, url: Url, scope: Option<String>) -> Question {
        Question { repository: self.clone(), ask: part(url, 0), scope }
    }
}

/// What a host has sent, if that is what its descriptor says: else another one may have it.
fn verified(host: &Host, descriptor: &Descriptor, bytes: Bytes) -> Result<Bytes> {
    let wrong = |problem: &dyn std::fmt::Display| {
        Error::new(Kind::DataLoss, format!("registry {}: sent a wrong document: {problem}", host.name()))
    };
    if bytes.len() as u64 != descriptor.size {
        return Err(wrong(&format!("{} bytes in place of {}", bytes.len(), descriptor.size)));
    }
    descriptor.digest.verify(&bytes).map_err(|error| wrong(&error))?;
    Ok(bytes)
}

/// The question for a blob from `offset` on.
fn part(url: Url, offset: u64) -> Ask {
    let ask = Ask::new(Method::GET, url);
    if offset > 0 { ask.header(http::header::RANGE, &format!("bytes={offset}-")) } else { ask }
}

/// Whether something else came than the part that was asked for. The whole is what is left to ask for then: what is
/// stored of it stays, and so would the failure.
fn is_other_part(answer: &Response, offset: u64) -> bool {
    match answer.status() {
        StatusCode::PARTIAL_CONTENT => !starts_at(answer, offset),
        StatusCode::RANGE_NOT_SATISFIABLE => offset > 0,
        _ => false,
    }
}

/// What a descriptor has in itself of its blob, if that is all of it.
fn embedded(descriptor: &Descriptor) -> Option<Bytes> {
    let bytes = STANDARD.decode(Some(&descriptor.data).filter(|data| !data.is_empty())?).ok()?;
    (bytes.len() as u64 == descriptor.size && descriptor.digest.verify(&bytes).is_ok()).then(|| bytes.into())
}

/// A blob whose first bytes may have come.
async fn begun(
    host: Host,
    question: Question,
    answer: Response,
    descriptor: &Descriptor,
    offset: u64,
) -> Result<BlobStream> {
    let offset = match answer.status() {
        StatusCode::OK => 0,
        StatusCode::PARTIAL_CONTENT if starts_at(&answer, offset) => offset,
        _ => return Err(failure(&host, answer).await).doing(|| format!("fetch {}", descriptor.digest)),
    };
    let slices = Slices::of(&host, question, &answer, descriptor.size);
    Ok(BlobStream { host, answer, offset, slices })
}

/// Whether a partial answer begins where it was asked to.
fn starts_at(answer: &Response, offset: u64) -> bool {
    let range = answer.headers().get(http::header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
    range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()) == Some(offset)
}

pub(super) fn media_type(answer: &Response) -> String {
    let header = answer.headers().get(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    header.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_owned()
}

/// The descriptor that an answer's headers give, if they do.
fn described(answer: &Response, object: &str) -> Option<Descriptor> {
    let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
    let digest = header("docker-content-digest").and_then(|text| Digest::parse(text).ok());
    let asked = Digest::parse(object).ok();
    let digest = asked.or(digest)?;
    let size: u64 = header("content-length")?.parse().ok().filter(|size| *size > 0)?;
    let media_type = media_type(answer);
    is_named_document(&media_type).then(|| Descriptor::new(media_type, digest, size))
}

/// Whether a type is one of what a name stands for. Whoever answers in a registry's place sends a page, of another type.
fn is_named_document(media_type: &str) -> bool {
    matches!(MediaKind::of(media_type), MediaKind::Manifest | MediaKind::Index)
}
