//! What says that it is about an image: signatures, attestations, and other artifacts with a `subject`.
//!
//! Registries that do not keep account of them have an index under a tag made of the subject's digest instead, which
//! whoever pushes such an artifact adds to.

use bytes::Bytes;
use reqwest::{Method, StatusCode, Url};
use rung_spec::digest::Digest;
use rung_spec::image::{Descriptor, Index, media_types};

use super::hosts::Host;
use super::reach::same_origin;
use super::transport::{Ask, body, failure};
use super::{Pusher, Repository};
use crate::error::{Doing, Error, Result};

/// Largest index of referrers.
const MAX_INDEX: u64 = 8 << 20;
/// Most pages of a list, and most entries in all.
const MAX_PAGES: usize = 64;
const MAX_ENTRIES: usize = 10_000;

/// The tag that stands for a subject's referrers.
fn fallback_tag(subject: &Digest) -> String {
    format!("{}-{}", subject.algorithm(), subject.hex())
}

fn is_of(descriptor: &Descriptor, artifact_type: Option<&str>) -> bool {
    artifact_type.is_none_or(|wanted| descriptor.artifact_type.as_deref() == Some(wanted))
}

fn parse(host: &Host, bytes: &[u8]) -> Result<Vec<Descriptor>> {
    let index = Index::parse(media_types::OCI_INDEX, bytes);
    index.map(|index| index.manifests).map_err(|error| Error::invalid(format!("registry {}: {error}", host.name())))
}

impl Repository {
    /// The artifacts that are about `subject`, of one kind or of any.
    ///
    /// # Errors
    /// What the registry says other than that there are none.
    pub async fn referrers(&self, subject: &Digest, artifact_type: Option<&str>) -> Result<Vec<Descriptor>> {
        let all = self.each(0, |host| host.pulls, |host| self.referrers_at(host, subject, artifact_type)).await;
        let mut all = all.doing(|| format!("referrers of {subject}"))?;
        all.retain(|descriptor| is_of(descriptor, artifact_type));
        Ok(all)
    }

    async fn referrers_at(&self, host: Host, subject: &Digest, artifact_type: Option<&str>) -> Result<Vec<Descriptor>> {
        let mut url = self.url(&host, &format!("referrers/{subject}"))?;
        if let Some(artifact_type) = artifact_type {
            url.query_pairs_mut().append_pair("artifactType", artifact_type);
        }
        let mut all = Vec::new();
        for page in 0..MAX_PAGES {
            let ask = Ask::new(Method::GET, url.clone()).header(http::header::ACCEPT, media_types::OCI_INDEX);
            let answer = self.send(&host, &ask, &self.scope(&host)).await?;
            let next = next_page(&url, &answer);
            match answer.status() {
                StatusCode::OK => all.extend(parse(&host, &body(&host, answer, MAX_INDEX).await?)?),
                StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED if page == 0 => {
                    return self.by_tag(&host, subject).await;
                }
                _ => return Err(failure(&host, answer).await),
            }
            if all.len() > MAX_ENTRIES {
                return Err(Error::invalid(format!("registry {}: more than {MAX_ENTRIES} referrers", host.name())));
            }
            match next {
                Some(next) => url = next,
                None => break,
            }
        }
        Ok(all)
    }

    async fn by_tag(&self, host: &Host, subject: &Digest) -> Result<Vec<Descriptor>> {
        let url = self.url(host, &format!("manifests/{}", fallback_tag(subject)))?;
        let ask = Ask::new(Method::GET, url).header(http::header::ACCEPT, media_types::OCI_INDEX);
        let answer = self.send(host, &ask, &self.scope(host)).await?;
        match answer.status() {
            StatusCode::NOT_FOUND => Ok(Vec::new()),
            StatusCode::OK => parse(host, &body(host, answer, MAX_INDEX).await?),
            _ => Err(failure(host, answer).await),
        }
    }
}

impl Pusher {
    /// Enters an artifact under the tag of what it is about, for a registry that keeps no account itself.
    ///
    /// # Errors
    /// What the registry says against it.
    pub async fn refer(&self, subject: &Digest, artifact: &Descriptor) -> Result<()> {
        let doing = || format!("enter {} as a referrer of {subject}", artifact.digest);
        let mut manifests = self.repository.by_tag(&self.host, subject).await.doing(doing)?;
        if manifests.iter().any(|known| known.digest == artifact.digest) {
            return Ok(());
        }
        manifests.push(artifact.clone());
        let media_type = Some(media_types::OCI_INDEX.to_owned());
        let index = Index { media_type, ..Index::of(manifests) };
        let bytes = serde_json::to_vec(&index).map_err(|error| Error::internal(error.to_string())).map(Bytes::from)?;
        let descriptor = Descriptor::new(media_types::OCI_INDEX, Digest::of(&bytes), bytes.len() as u64);
        self.put(&fallback_tag(subject), &descriptor, bytes).await.map(drop).doing(doing)
    }
}

/// Where a list goes on, if it does, and only at the same host.
fn next_page(at: &Url, answer: &reqwest::Response) -> Option<Url> {
    let link = answer.headers().get(http::header::LINK)?.to_str().ok()?;
    let (target, parameters) = link.strip_prefix('<')?.split_once('>')?;
    let is_next = parameters.contains("rel=\"next\"") || parameters.contains("rel=next");
    let next = at.join(target).ok()?;
    (is_next && same_origin(at, &next)).then_some(next)
}
