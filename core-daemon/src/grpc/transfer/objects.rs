//! What can be transferred from and to, as messages have it.

use std::path::PathBuf;
use std::sync::Arc;

use gantry_proto::any;
use gantry_proto::containerd::types as common;
use gantry_proto::containerd::types::transfer as wire;
use prost_types::Any;
use rung_spec::platform::Platform;
use rung_spec::reference::Reference;

use super::accounts::{AskClient, Listener};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::grpc::streams::{Stream, Streams};
use crate::image::naming::MoreName;
use crate::image::{Access, Choice, Names, Unpack};
use crate::registry::{Keyring, Wiretap};
use crate::snapshots::Snapshotters;

/// Packages of the types that may be named without being anything that images are transferred from or to.
const OURS: &str = "containerd.types.transfer.";

/// A source or a destination.
pub(super) enum Object {
    Registry(OciRegistry),
    Store(Box<wire::ImageStore>),
    Import { from: Arc<Stream>, media_type: String, compress: bool },
    Export { to: Arc<Stream>, message: Box<wire::ImageExportStream> },
    Other(String),
}

/// A repository in a registry, and how to speak to it.
pub(super) struct OciRegistry {
    pub(super) text: String,
    pub(super) access: Access,
}

impl OciRegistry {
    /// What it names.
    pub(super) fn reference(&self) -> Result<Reference> {
        Reference::parse(&self.text).map_err(|error| Error::invalid(error.to_string()))
    }

    /// As containerd calls it in sentences.
    pub(super) fn shown(&self) -> String {
        format!("OCI Registry ({})", self.text)
    }
}

impl Object {
    /// Reads an object, and finds the streams that it names.
    pub(super) fn of(streams: &Streams, ctx: &Context, any: Option<&Any>) -> Result<Self> {
        let any = any.ok_or_else(|| Error::invalid("transfer: source and destination are required"))?;
        let malformed = |error: any::Mismatch| Error::invalid(format!("transfer: {error}"));
        if any::is::<wire::OciRegistry>(any) {
            let message: wire::OciRegistry = any::unpack(any).map_err(malformed)?;
            return registry(streams, ctx, message).map(Self::Registry);
        }
        if any::is::<wire::ImageStore>(any) {
            return any::unpack(any).map(|store| Self::Store(Box::new(store))).map_err(malformed);
        }
        if any::is::<wire::ImageImportStream>(any) {
            let message: wire::ImageImportStream = any::unpack(any).map_err(malformed)?;
            let from = streams.get(ctx, &message.stream)?;
            return Ok(Self::Import { from, media_type: message.media_type, compress: message.force_compress });
        }
        if any::is::<wire::ImageExportStream>(any) {
            let message: wire::ImageExportStream = any::unpack(any).map_err(malformed)?;
            return Ok(Self::Export { to: streams.get(ctx, &message.stream)?, message: Box::new(message) });
        }
        let name = any.type_url.rsplit('/').next().unwrap_or_default();
        if name.starts_with(OURS) {
            return Ok(Self::Other(name.to_owned()));
        }
        Err(Error::not_found(format!("transfer: type {:?} is not known", any.type_url)))
    }

    /// The type's name, for a refusal.
    pub(super) fn kind(&self) -> &str {
        match self {
            Self::Registry(_) => "containerd.types.transfer.OCIRegistry",
            Self::Store(_) => "containerd.types.transfer.ImageStore",
            Self::Import { .. } => "containerd.types.transfer.ImageImportStream",
            Self::Export { .. } => "containerd.types.transfer.ImageExportStream",
            Self::Other(name) => name,
        }
    }
}

fn registry(streams: &Streams, ctx: &Context, message: wire::OciRegistry) -> Result<OciRegistry> {
    let resolver = message.resolver.unwrap_or_default();
    let stream = |id: &str| (!id.is_empty()).then(|| streams.get(ctx, id)).transpose();
    let asked = stream(&resolver.auth_stream)?;
    let keyring = asked.map(|stream| Arc::new(AskClient::new(&message.reference, stream)) as Arc<dyn Keyring>);
    let wiretap = match resolver.http_debug() {
        wire::HttpDebug::Disabled => None,
        _ => Some(Arc::new(Listener::new(stream(&resolver.logs_stream)?)) as Arc<dyn Wiretap>),
    };
    let plain_http = match resolver.default_scheme.as_str() {
        "http" => true,
        "" | "https" => false,
        other => return Err(Error::invalid(format!("transfer: scheme {other:?} is neither http nor https"))),
    };
    let access = Access {
        plain_http,
        keyring,
        wiretap,
        headers: resolver.headers.into_iter().collect(),
        config_path: Some(resolver.host_dir).filter(|dir| !dir.is_empty()).map(PathBuf::from),
        ..Access::default()
    };
    Ok(OciRegistry { text: message.reference, access })
}

/// A platform as messages have it.
pub(super) fn platform(wire: &common::Platform) -> Platform {
    let mut platform = Platform::new(
        &wire.os,
        &wire.architecture,
        Some(&wire.variant).filter(|it| !it.is_empty()).map(|it| it.as_str()),
    );
    platform.os_version = Some(wire.os_version.clone()).filter(|version| !version.is_empty());
    platform.os_features.clone_from(&wire.os_features);
    platform
}

/// What an image store wants of an index. Without platforms that is everything.
pub(super) fn choice(store: &wire::ImageStore) -> Choice {
    Choice {
        platforms: store.platforms.iter().map(platform).collect(),
        features: Vec::new(),
        all: store.platforms.is_empty(),
        documents: store.all_metadata,
        unplaced: false,
        limit: usize::try_from(store.manifest_limit).unwrap_or(usize::MAX),
    }
}

/// The names that an image store gives.
pub(super) fn names(store: &wire::ImageStore) -> Names {
    let more = |it: &wire::ImageReference| MoreName {
        name: it.name.clone(),
        is_prefix: it.is_prefix,
        allow_overwrite: it.allow_overwrite,
        add_digest: it.add_digest,
        skip_named_digest: it.skip_named_digest,
    };
    Names {
        name: store.name.clone(),
        labels: store.labels.clone().into_iter().collect(),
        more: store.extra_references.iter().map(more).collect(),
    }
}

/// Where an image store wants layers unpacked, as far as that is possible: what is not is left out, as containerd does.
///
/// # Errors
/// `InvalidArgument` where none of what it wants is possible: the image would be there without what was asked for.
pub(super) fn unpacks(store: &wire::ImageStore, snapshotters: &Snapshotters) -> Result<Vec<Unpack>> {
    let mut problem = None;
    let unpack = |it: &wire::UnpackConfiguration| {
        let platform = it.platform.as_ref().map_or_else(Platform::host, platform);
        if let Err(error) = snapshotters.get(&it.snapshotter) {
            tracing::warn!(snapshotter = it.snapshotter, %platform, %error, "image is not unpacked");
            problem = Some(error);
            return None;
        }
        Some(Unpack { platform, snapshotter: it.snapshotter.clone() })
    };
    let possible: Vec<Unpack> = store.unpacks.iter().filter_map(unpack).collect();
    match problem {
        Some(error) if possible.is_empty() => Err(error),
        _ => Ok(possible),
    }
}
