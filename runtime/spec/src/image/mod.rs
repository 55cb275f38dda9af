//! Image documents, OCI's and Docker schema 2's, as registries really serve them.
//!
//! The types are our own and tolerant: Go programs write `null` for empty lists, leave media types out, and add fields.
//! What decides safety is strict: digests parse, sizes are not negative, a document is an index or a manifest, not both.

mod config;
mod descriptor;
mod index;
mod manifest;
mod media_type;

pub use config::{ContainerConfig, Healthcheck, History, ImageConfig, RootFs, chain_ids};
pub use descriptor::Descriptor;
pub use index::Index;
pub use manifest::Manifest;
pub use media_type::{Compression, Kind, Layer, MANIFEST_ACCEPT, media_types};

use serde::{Deserialize, Deserializer};

/// Why a document is not the image document it was said to be.
#[derive(Debug, thiserror::Error)]
pub enum InvalidDocument {
    /// Not JSON, or a field of the wrong type.
    #[error("{what}: {cause}")]
    Json {
        /// `manifest`, `index` or `image configuration`.
        what: &'static str,
        /// What the parser says.
        cause: serde_json::Error,
    },
    /// A document from before content addressing.
    #[error("manifest: schema version {0} is not supported, only 2; push the image again with a current tool")]
    SchemaVersion(u64),
    /// Fields of both kinds, so that two readers would disagree on what it is.
    #[error("{0}")]
    Ambiguous(&'static str),
    /// Its own media type contradicts how it was fetched.
    #[error("document says it is {inside:?} but was served as {outside:?}")]
    MediaType {
        /// The document's `mediaType`.
        inside: String,
        /// The media type of the descriptor or response.
        outside: String,
    },
    /// A media type that is neither an index nor a manifest.
    #[error("media type {0:?} is neither an image index nor an image manifest")]
    Kind(String),
}

/// What an image name may stand for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// Several images to choose from.
    Index(Box<Index>),
    /// One image.
    Manifest(Box<Manifest>),
}

impl Document {
    /// Parses `bytes` as what `media_type` says; where that says nothing (empty or `application/json`), as what they
    /// say themselves.
    ///
    /// # Errors
    /// Malformed, ambiguous, or of another kind.
    pub fn parse(media_type: &str, bytes: &[u8]) -> Result<Self, InvalidDocument> {
        match Kind::of(media_type) {
            Kind::Index => Index::parse(media_type, bytes).map(|index| Self::Index(Box::new(index))),
            Kind::Manifest => Manifest::parse(media_type, bytes).map(|manifest| Self::Manifest(Box::new(manifest))),
            Kind::Other if matches!(bare(media_type), "" | "application/json" | "application/octet-stream") => {
                let shape = Shape::parse("manifest", bytes)?;
                if shape.manifests {
                    Index::parse("", bytes).map(|index| Self::Index(Box::new(index)))
                } else {
                    Manifest::parse("", bytes).map(|manifest| Self::Manifest(Box::new(manifest)))
                }
            }
            _ if bare(media_type).starts_with("application/vnd.docker.distribution.manifest.v1+") => {
                Err(InvalidDocument::SchemaVersion(1))
            }
            _ => Err(InvalidDocument::Kind(media_type.to_owned())),
        }
    }
}

/// A media type without parameters such as `; charset=utf-8`.
pub fn bare(media_type: &str) -> &str {
    media_type.split(';').next().unwrap_or_default().trim()
}

/// Which fields a document has, before it is taken for one kind.
struct Shape {
    media_type: String,
    manifests: bool,
    layers: bool,
}

impl Shape {
    fn parse(what: &'static str, bytes: &[u8]) -> Result<Self, InvalidDocument> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Fields {
            #[serde(default)]
            schema_version: u64,
            #[serde(default, deserialize_with = "null_is_default")]
            media_type: String,
            manifests: Option<serde::de::IgnoredAny>,
            layers: Option<serde::de::IgnoredAny>,
            config: Option<serde::de::IgnoredAny>,
            fs_layers: Option<serde::de::IgnoredAny>,
        }
        let fields: Fields = serde_json::from_slice(bytes).map_err(|cause| InvalidDocument::Json { what, cause })?;
        if fields.fs_layers.is_some() || fields.schema_version != 2 {
            return Err(InvalidDocument::SchemaVersion(fields.schema_version));
        }
        let (manifests, layers) = (fields.manifests.is_some(), fields.layers.is_some() || fields.config.is_some());
        Ok(Self { media_type: fields.media_type, manifests, layers })
    }

    fn check_media_type(&self, outside: &str) -> Result<(), InvalidDocument> {
        let outside = bare(outside);
        if self.media_type.is_empty() || outside.is_empty() || self.media_type == outside {
            return Ok(());
        }
        Err(InvalidDocument::MediaType { inside: self.media_type.clone(), outside: outside.to_owned() })
    }
}

/// Takes `null` for the default, as Go's encoder writes empty values.
pub(crate) fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

#[cfg(test)]
mod tests;
