//! Tiny images made in code: layers as tar archives, their compression, a config, a manifest, an index of platforms.

use std::fs;
use std::io::Write;

use anyhow::Context;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::bundle::{APPLETS, busybox};
use crate::tar::Tar;
use crate::{Result, registry::Registry};

/// Media types of what an image consists of.
pub mod media {
    /// An index: one manifest a platform.
    pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// A manifest.
    pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// A config.
    pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// A layer that is not compressed; `+gzip` and `+zstd` follow for those that are.
    pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
}

/// A script for `sh` in busybox, limited to some 24 MiB: a child is killed for want of memory, and the first process ends with
/// 0. The kernel may kill a second time before what the first one held is free: that is not to be the first process.
pub const CHILD_WANTS_MEMORY: &str = "(echo 1000 >/proc/self/oom_score_adj; \
    x=$(head -c 60000000 /dev/zero | tr '\\0' x); echo \"$x$x\" >/dev/null); exit 0";

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// Not at all.
    Plain,
    /// With gzip.
    Gzip,
    /// With zstd.
    Zstd,
}

/// Bytes with their digest and media type.
#[derive(Debug, Clone)]
pub struct Blob {
    /// `sha256:...`
    pub digest: String,
    /// Media type of the descriptor that names it.
    pub media_type: String,
    /// The content.
    pub bytes: Vec<u8>,
}

impl Blob {
    /// A blob from its content.
    pub fn new(media_type: &str, bytes: Vec<u8>) -> Self {
        Self { digest: digest(&bytes), media_type: media_type.to_owned(), bytes }
    }

    /// Its descriptor.
    pub fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len()})
    }
}

/// `sha256:` and the hash of the bytes.
pub fn digest(bytes: &[u8]) -> String {
    let hash: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hash}")
}

/// An image for one platform, built layer by layer.
#[derive(Debug, Clone)]
pub struct Image {
    /// The `config` member of the image config: Entrypoint, Cmd, Env, WorkingDir, User, Labels, ...
    pub settings: Value,
    /// Operating system and architecture.
    pub platform: (String, String),
    features: Vec<String>,
    layers: Vec<Blob>,
    diff_ids: Vec<String>,
}

impl Image {
    /// An image without layers, for this machine's platform.
    pub fn empty() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let settings = json!({"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]});
        let platform = ("linux".into(), architecture.into());
        Self { settings, platform, features: Vec::new(), layers: Vec::new(), diff_ids: Vec::new() }
    }

    /// Busybox and its usual names in a gzip layer; runs `sh`.
    pub fn busybox() -> Result<Self> {
        let program = fs::read(busybox()?).context("read busybox")?;
        let mut tar = Tar::new().dir("bin").dir("etc").dir("proc").dir("sys").dir("dev").dir("tmp").dir("root");
        tar = tar.program("bin/busybox", program);
        for applet in APPLETS {
            tar = tar.symlink(&format!("bin/{applet}"), "busybox");
        }
        tar = tar.file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n");
        tar = tar.file("etc/group", "root:x:0:\nuser:x:1000:\n");
        let mut image = Self::empty().layer(tar, Packing::Gzip)?;
        image.settings["Cmd"] = json!(["sh"]);
        Ok(image)
    }

    /// Adds a layer on top.
    pub fn layer(mut self, tar: Tar, packing: Packing) -> Result<Self> {
        let bytes = tar.finish();
        self.diff_ids.push(digest(&bytes));
        self.layers.push(match packing {
            Packing::Plain => Blob::new(media::LAYER, bytes),
            Packing::Gzip => Blob::new(&format!("{}+gzip", media::LAYER), gzip(&bytes)?),
            Packing::Zstd => Blob::new(&format!("{}+zstd", media::LAYER), zstd::encode_all(bytes.as_slice(), 1)?),
        });
        Ok(self)
    }

    /// Adds a layer of another media type on top, of which `plain` is what becomes.
    pub fn sealed_layer(mut self, plain: &[u8], media_type: &str, stored: Vec<u8>) -> Self {
        self.diff_ids.push(digest(plain));
        self.layers.push(Blob::new(media_type, stored));
        self
    }

    /// Sets a member of the image config's `config`.
    pub fn setting(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.settings[name] = value.into();
        self
    }

    /// Says the image is for another platform.
    pub fn on_platform(mut self, os: &str, architecture: &str) -> Self {
        self.platform = (os.into(), architecture.into());
        self
    }

    /// Says what the image needs of a machine (`os.features`).
    pub fn needing(mut self, feature: &str) -> Self {
        self.features.push(feature.into());
        self
    }

    fn add_features(&self, platform: &mut Value) {
        if !self.features.is_empty() {
            platform["os.features"] = json!(self.features);
        }
    }

    /// The layers, lowest first.
    pub fn layers(&self) -> &[Blob] {
        &self.layers
    }

    /// The image config.
    pub fn config(&self) -> Result<Blob> {
        let mut config = json!({
            "os": self.platform.0,
            "architecture": self.platform.1,
            "config": self.settings,
            "rootfs": {"type": "layers", "diff_ids": self.diff_ids},
        });
        self.add_features(&mut config);
        Ok(Blob::new(media::CONFIG, serde_json::to_vec(&config)?))
    }

    /// The manifest.
    pub fn manifest(&self) -> Result<Blob> {
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media::MANIFEST,
            "config": self.config()?.descriptor(),
            "layers": self.layers.iter().map(Blob::descriptor).collect::<Vec<_>>(),
        });
        Ok(Blob::new(media::MANIFEST, serde_json::to_vec(&manifest)?))
    }

    /// Pushes layers, config and manifest; gives the full reference (`127.0.0.1:5001/name:tag`).
    pub fn push(&self, registry: &Registry, name: &str, tag: &str) -> Result<String> {
        for blob in self.layers.iter().chain([&self.config()?]) {
            registry.put_blob(name, blob)?;
        }
        registry.put_manifest(name, tag, &self.manifest()?)?;
        Ok(format!("{}/{name}:{tag}", registry.host()))
    }
}

/// The index that offers several images, one a platform.
pub fn index(images: &[Image]) -> Result<Blob> {
    let entry = |image: &Image| -> Result<Value> {
        let mut descriptor = image.manifest()?.descriptor();
        descriptor["platform"] = json!({"os": image.platform.0, "architecture": image.platform.1});
        image.add_features(&mut descriptor["platform"]);
        Ok(descriptor)
    };
    let manifests = images.iter().map(entry).collect::<Result<Vec<_>>>()?;
    let index = json!({"schemaVersion": 2, "mediaType": media::INDEX, "manifests": manifests});
    Ok(Blob::new(media::INDEX, serde_json::to_vec(&index)?))
}

/// Pushes several platforms' images and the index over them; gives the full reference.
pub fn push_index(images: &[Image], registry: &Registry, name: &str, tag: &str) -> Result<String> {
    for image in images {
        let digest = image.manifest()?.digest;
        image.push(registry, name, &digest)?;
    }
    registry.put_manifest(name, tag, &index(images)?)?;
    Ok(format!("{}/{name}:{tag}", registry.host()))
}

/// Compresses with gzip, as a layer is.
pub fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}
