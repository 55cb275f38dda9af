//! Archives of images: OCI layouts in a tar, and what `docker save` writes, which may be both in one.
//!
//! ```text
//! oci-layout                  {"imageLayoutVersion": "1.0.0"}
//! index.json                  an index; annotations name its entries
//! blobs/sha256/<hex>          everything else
//! manifest.json               docker's: [{Config, RepoTags, Layers}], paths in the same tar
//! ```
//!
//! An archive is hostile: its paths are only looked up, never opened; what is called by a digest must have it; documents
//! are bounded; and nothing it says is kept before everything is here.

mod export;
mod import;
mod layers;
mod read;

pub use export::{ExportOptions, Exported};
pub use import::{ImportOptions, Imported};

use serde::{Deserialize, Serialize};

const LAYOUT_FILE: &str = "oci-layout";
const LAYOUT_VERSION: &str = "1.0.0";
const INDEX_FILE: &str = "index.json";
const DOCKER_FILE: &str = "manifest.json";

/// The file `oci-layout`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layout {
    image_layout_version: String,
}

/// One image in docker's `manifest.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    /// `null` for none.
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// An empty content store for tests, in a directory that ends with the first value.
#[cfg(test)]
fn store() -> (tempfile::TempDir, crate::content::Content, crate::context::Context) {
    let dir = tempfile::tempdir().expect("directory");
    let db = crate::metadata::Db::open(&dir.path().join("meta.redb")).expect("metadata");
    let content = crate::content::Content::open(&dir.path().join("content"), db, crate::events::Events::new());
    let namespace = gantry_proto::namespace::Namespace::parse("a").expect("namespace");
    (dir, content.expect("content"), crate::context::Context::new(namespace))
}
