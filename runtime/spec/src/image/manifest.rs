//! A manifest: one image's configuration and layers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Descriptor, InvalidDocument, Kind, Shape, null_is_default};

/// An OCI image manifest or a Docker schema 2 manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// Its own media type; OCI's may leave it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// Kind of an artifact that is not an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The image's configuration.
    pub config: Descriptor,
    /// File system layers, lowest first.
    #[serde(default, deserialize_with = "null_is_default")]
    pub layers: Vec<Descriptor>,
    /// What this is about, for an artifact that is attached to an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Notes of whoever built it.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Manifest {
    /// Parses a document that was served as `media_type`; empty: not known.
    ///
    /// # Errors
    /// Malformed, of schema 1, or also an index.
    pub fn parse(media_type: &str, bytes: &[u8]) -> Result<Self, InvalidDocument> {
        let shape = Shape::parse("manifest", bytes)?;
        if shape.manifests {
            return Err(InvalidDocument::Ambiguous("manifest: has the fields of an index too"));
        }
        shape.check_media_type(media_type)?;
        serde_json::from_slice(bytes).map_err(|cause| InvalidDocument::Json { what: "manifest", cause })
    }

    /// Whether this is an artifact, whose layers are files and whose configuration says nothing of how to run them: what has
    /// a configuration of another kind than images have, or a kind of its own and a layer that is none of a file system.
    /// Early builders give their images' configurations no type, or none that says anything.
    pub fn is_artifact(&self) -> bool {
        let is_of_image = matches!(self.config.media_type.as_str(), "" | "application/octet-stream")
            || self.config.kind() == Kind::Config;
        let has_kind = self.artifact_type.as_ref().is_some_and(|kind| !kind.is_empty());
        let is_layer = |layer: &Descriptor| matches!(layer.kind(), Kind::Layer(_) | Kind::Encrypted | Kind::Erofs(_));
        !is_of_image || has_kind && !self.layers.iter().all(is_layer)
    }

    /// What kind of artifact this is, for people: its own type, or else that of its configuration.
    pub fn kind_of_artifact(&self) -> &str {
        self.artifact_type.as_deref().filter(|kind| !kind.is_empty()).unwrap_or(&self.config.media_type)
    }

    /// Bytes of the configuration and all layers as they are stored.
    pub fn stored_size(&self) -> u64 {
        self.layers.iter().fold(self.config.size, |sum, layer| sum.saturating_add(layer.size))
    }
}
