//! An index: one name for images of several platforms.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Descriptor, InvalidDocument, Kind, Shape, null_is_default};
use crate::platform::Platform;

/// An OCI image index or a Docker manifest list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// Its own media type; OCI's may leave it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// Kind of an artifact that is not an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The images, in the builder's order of preference.
    #[serde(default, deserialize_with = "null_is_default")]
    pub manifests: Vec<Descriptor>,
    /// What this is about, for an artifact that is attached to an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Notes of whoever built it.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Index {
    /// An index of `manifests` that says nothing else.
    pub fn of(manifests: Vec<Descriptor>) -> Self {
        Self {
            schema_version: 2,
            media_type: None,
            artifact_type: None,
            manifests,
            subject: None,
            annotations: BTreeMap::new(),
        }
    }

    /// Parses a document that was served as `media_type`; empty: not known.
    ///
    /// # Errors
    /// Malformed, or also a manifest.
    pub fn parse(media_type: &str, bytes: &[u8]) -> Result<Self, InvalidDocument> {
        let shape = Shape::parse("index", bytes)?;
        if shape.layers {
            return Err(InvalidDocument::Ambiguous("index: has the fields of a manifest too"));
        }
        shape.check_media_type(media_type)?;
        serde_json::from_slice(bytes).map_err(|cause| InvalidDocument::Json { what: "index", cause })
    }

    /// The entries that a machine of `wanted` can run, best first. Entries without a platform come last, since only
    /// their configuration says what they run on; attestations and other artifacts never come.
    pub fn select(&self, wanted: &Platform) -> Vec<&Descriptor> {
        let mut ranked: Vec<(usize, &Descriptor)> = self
            .manifests
            .iter()
            .filter(|entry| matches!(entry.kind(), Kind::Manifest | Kind::Index))
            .filter_map(|entry| match &entry.platform {
                Some(platform) => Some((wanted.rank(platform)?, entry)),
                None => Some((usize::MAX, entry)),
            })
            .collect();
        ranked.sort_by_key(|(rank, _)| *rank);
        ranked.into_iter().map(|(_, entry)| entry).collect()
    }

    /// The platforms on offer, for an error message.
    pub fn platforms(&self) -> Vec<String> {
        let known = |platform: &&Platform| platform.os != "unknown";
        self.manifests
            .iter()
            .filter_map(|entry| entry.platform.as_ref())
            .filter(known)
            .map(Platform::to_string)
            .collect()
    }
}
