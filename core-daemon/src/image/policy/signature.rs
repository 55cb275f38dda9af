//! Signatures of sigstore as registries keep them: an image under a tag made of the digest, each layer a statement that its
//! annotation signs.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use rung_spec::digest::Digest;
use rung_spec::image::{Descriptor, Manifest};
use serde::Deserialize;

use super::keys::Key;
use crate::error::{Doing, Error, Kind, Result};
use crate::registry::Repository;

/// Media type of a statement.
const STATEMENT: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// Annotation with the signature of a statement, in base64.
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
/// What a statement says of itself.
const TYPE: &str = "cosign container image signature";
/// Most signatures of one image that are looked at, and the largest statement, in bytes.
const MOST: usize = 64;
const LARGEST: u64 = 64 << 10;

/// A statement and who says so.
pub(super) struct Signature {
    /// Or why there is none: somebody else's bad one keeps nobody from a good one.
    statement: std::result::Result<Bytes, String>,
    signature: String,
}

/// What is stated: an image, by its name and its digest. What else it may say is ignored.
#[derive(Deserialize)]
struct Statement {
    critical: Critical,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Critical {
    identity: Identity,
    image: Image,
    r#type: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Identity {
    docker_reference: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Image {
    docker_manifest_digest: String,
}

/// The tag below which the signatures of a digest are.
pub(super) fn tag(digest: &Digest) -> String {
    format!("{}-{}.sig", digest.algorithm(), digest.hex())
}

/// The signatures of what has this digest, the first [`MOST`]; none where the registry has none.
///
/// # Errors
/// What keeps the registry from answering; a refusal of what is there but is no image.
pub(super) async fn all(at: &Repository, digest: &Digest) -> Result<Vec<Signature>> {
    let tag = tag(digest);
    let doing = || format!("signatures {tag}");
    let found = match at.resolve(&tag).await {
        Err(error) if error.kind() == Kind::NotFound => return Ok(Vec::new()),
        found => found.doing(doing)?,
    };
    let bytes = match found.bytes {
        Some(bytes) => bytes,
        None => at.document(&found.descriptor).await.doing(doing)?,
    };
    let manifest = Manifest::parse(&found.descriptor.media_type, &bytes);
    let manifest = manifest.map_err(|error| Error::refused(error.to_string())).doing(doing)?;
    let mut all = Vec::new();
    for layer in manifest.layers.into_iter().filter(|layer| layer.media_type == STATEMENT) {
        let Some(signature) = layer.annotations.get(SIGNATURE).cloned() else { continue };
        if all.len() == MOST {
            break;
        }
        all.push(Signature { statement: fetch(at, layer).await.doing(doing)?, signature });
    }
    Ok(all)
}

/// A statement, or what is wrong with it.
async fn fetch(at: &Repository, layer: Descriptor) -> Result<std::result::Result<Bytes, String>> {
    if layer.size > LARGEST {
        return Ok(Err(format!("one is larger than {LARGEST} bytes")));
    }
    // Nobody has said yet that other places may be asked.
    let layer = Descriptor { urls: Vec::new(), ..layer };
    match at.small(&layer, LARGEST).await {
        Ok(bytes) => Ok(Ok(bytes)),
        Err(error) if matches!(error.kind(), Kind::Unavailable | Kind::DeadlineExceeded | Kind::Canceled) => Err(error),
        Err(error) => Ok(Err(format!("one cannot be had: {error}"))),
    }
}

impl Signature {
    /// The name that it gives the image, where one of `keys` has signed that it is about `digest`; else why it is not good.
    pub(super) fn check(&self, keys: &[Key], digest: &Digest) -> std::result::Result<String, String> {
        let statement = self.statement.as_ref().map_err(Clone::clone)?;
        let signature = STANDARD.decode(&self.signature).map_err(|error| format!("one is not base64: {error}"))?;
        if !keys.iter().any(|key| key.has_signed(statement, &signature)) {
            return Err("one is not of a key that is trusted".to_owned());
        }
        // Only now, as anybody may have written what nobody trusted has signed.
        let Statement { critical } =
            serde_json::from_slice(statement).map_err(|error| format!("what one signs is malformed: {error}"))?;
        if critical.r#type != TYPE {
            return Err(format!("what one signs is of the type {:?}, not {TYPE:?}", critical.r#type));
        }
        let of = critical.image.docker_manifest_digest;
        if of != digest.as_str() {
            return Err(format!("one is of {of:?}"));
        }
        Ok(critical.identity.docker_reference)
    }

    #[cfg(test)]
    pub(super) fn new(statement: &str, signature: &str) -> Self {
        Self { statement: Ok(statement.to_owned().into()), signature: signature.to_owned() }
    }
}
