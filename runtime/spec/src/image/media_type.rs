//! Media types: which documents and layers there are, and how layers are packed.

/// The media types of the OCI image specification and of Docker's schema 2.
pub mod media_types {
    /// OCI image index.
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// OCI image manifest.
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// OCI image configuration.
    pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// OCI layer, not compressed.
    pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    /// OCI layer, gzip.
    pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    /// OCI layer, zstd.
    pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
    /// Docker manifest list.
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// Docker schema 2 manifest.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// Docker image configuration.
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    /// Docker layer, not compressed.
    pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
    /// Docker layer, gzip.
    pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    /// Docker layer, zstd.
    pub const DOCKER_LAYER_ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";
    /// Layer that is an EROFS image and no archive, as containerd 2.2 names it.
    pub const EROFS_LAYER: &str = "application/vnd.erofs.layer.v1";
    /// The same, as the specification of such images names it.
    pub const EROFS: &str = "application/vnd.erofs";
    /// Docker layer that registries may not hand on.
    pub const DOCKER_FOREIGN: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar";
    /// The same, gzip.
    pub const DOCKER_FOREIGN_GZIP: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
}

use media_types as m;

/// What to ask a registry for when resolving a name, in an `Accept` header.
pub const MANIFEST_ACCEPT: &str = "application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.oci.image.index.v1+json, */*";

/// How a layer's tar is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Plain tar.
    None,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
}

impl Compression {
    /// What the first bytes of a stream show. Docker's layer types are not reliable, so this decides.
    pub fn sniff(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, 0x08, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A zstd skippable frame, which seekable zstd streams may begin with.
            [low, 0x2a, 0x4d, 0x18, ..] if low & 0xf0 == 0x50 => Self::Zstd,
            _ => Self::None,
        }
    }
}

/// A layer as its media type describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layer {
    /// As the type says; `None` where it is a plain tar by name. See [`Compression::sniff`].
    pub compression: Compression,
    /// Not in the registry but at the descriptor's `urls`.
    pub foreign: bool,
}

/// What a media type is to an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Several manifests.
    Index,
    /// One image.
    Manifest,
    /// An image's configuration.
    Config,
    /// A file system layer.
    Layer(Layer),
    /// An encrypted layer, which needs a key we have no way to be given.
    Encrypted,
    /// A layer that is an EROFS image, which reads like an archive that ends at once; how it is packed as the type says, if
    /// we know that.
    Erofs(Option<Compression>),
    /// Anything else.
    Other,
}

impl Kind {
    /// Classifies a media type; parameters after `;` do not matter.
    pub fn of(media_type: &str) -> Self {
        let layer = |compression, foreign| Self::Layer(Layer { compression, foreign });
        let media_type = super::bare(media_type);
        match media_type {
            m::OCI_INDEX | m::DOCKER_LIST => Self::Index,
            m::OCI_MANIFEST | m::DOCKER_MANIFEST => Self::Manifest,
            m::OCI_CONFIG | m::DOCKER_CONFIG => Self::Config,
            m::OCI_LAYER | m::DOCKER_LAYER => layer(Compression::None, false),
            m::OCI_LAYER_GZIP | m::DOCKER_LAYER_GZIP => layer(Compression::Gzip, false),
            m::OCI_LAYER_ZSTD | m::DOCKER_LAYER_ZSTD => layer(Compression::Zstd, false),
            m::DOCKER_FOREIGN => layer(Compression::None, true),
            m::DOCKER_FOREIGN_GZIP => layer(Compression::Gzip, true),
            _ => match media_type.strip_prefix("application/vnd.oci.image.layer.nondistributable.v1.tar") {
                Some("") => layer(Compression::None, true),
                Some("+gzip") => layer(Compression::Gzip, true),
                Some("+zstd") => layer(Compression::Zstd, true),
                _ if media_type.ends_with("+encrypted") => Self::Encrypted,
                _ => match media_type.split_once('+').unwrap_or((media_type, "")) {
                    (m::EROFS | m::EROFS_LAYER, "") => Self::Erofs(Some(Compression::None)),
                    (m::EROFS | m::EROFS_LAYER, "gzip") => Self::Erofs(Some(Compression::Gzip)),
                    (m::EROFS | m::EROFS_LAYER, "zstd") => Self::Erofs(Some(Compression::Zstd)),
                    (m::EROFS | m::EROFS_LAYER, _) => Self::Erofs(None),
                    _ => Self::Other,
                },
            },
        }
    }
}
