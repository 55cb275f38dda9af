//! From a name's descriptor to the manifest and configuration of one platform.

use std::collections::{HashMap, HashSet};

use gantry_proto::containerd::services::images::v1::Image;
use rung_spec::digest::Digest;
use rung_spec::image::{Descriptor, Document, ImageConfig, Kind as MediaKind, Manifest, chain_ids};
use rung_spec::platform::Platform;

use super::{EROFS, Images, Resolved};
use crate::content::Content;
use crate::context::Context;
use crate::error::{Doing, Error, Kind, Result};
use crate::filter::Filter;
use crate::labels::{GC_REF_CONTENT, Labels};

/// Largest index, manifest or configuration that is read.
pub const MAX_DOCUMENT: u64 = 8 << 20;
/// Deepest nesting of indexes.
const MAX_DEPTH: usize = 8;
/// Most layers of an image.
pub const MAX_LAYERS: usize = 1000;

/// A descriptor as the rest of the image code uses it.
///
/// # Errors
/// `InvalidArgument` for a malformed digest or a negative size.
pub fn descriptor(wire: &gantry_proto::containerd::types::Descriptor) -> Result<Descriptor> {
    let size =
        u64::try_from(wire.size).map_err(|_| Error::invalid(format!("content {}: negative size", wire.digest)))?;
    let mut descriptor = Descriptor::new(&wire.media_type, crate::content::parse(&wire.digest)?, size);
    descriptor.annotations.clone_from(&wire.annotations);
    Ok(descriptor)
}

/// A descriptor as records and services have it.
pub fn to_wire(descriptor: &Descriptor) -> gantry_proto::containerd::types::Descriptor {
    gantry_proto::containerd::types::Descriptor {
        media_type: descriptor.media_type.clone(),
        digest: descriptor.digest.to_string(),
        size: i64::try_from(descriptor.size).unwrap_or(i64::MAX),
        annotations: descriptor.annotations.clone(),
    }
}

impl Images {
    /// The names from which labels lead to a digest that `fits`: of a target, a manifest, a configuration or anything else.
    /// Only records are read, however many images there are.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub fn leading_to(&self, ctx: &Context, fits: impl Fn(&str) -> bool) -> Result<Vec<String>> {
        let stored: HashMap<String, Labels> =
            self.content.list(ctx)?.into_iter().map(|info| (info.digest, info.labels)).collect();
        let leads = |record: &Image| {
            let target = record.target.as_ref().map(|target| target.digest.as_str());
            let (mut waiting, mut seen) = (Vec::from_iter(target), HashSet::new());
            while let Some(digest) = waiting.pop() {
                if fits(digest) {
                    return true;
                }
                if seen.insert(digest) {
                    let labels = stored.get(digest).into_iter().flatten();
                    waiting
                        .extend(labels.filter(|(key, _)| key.starts_with(GC_REF_CONTENT)).map(|(_, to)| to.as_str()));
                }
            }
            false
        };
        let records = self.records.list(ctx, &Filter::everything())?;
        Ok(records.into_iter().filter(leads).map(|record| record.name).collect())
    }

    /// As [`Images::resolve`], of what a name stands for.
    ///
    /// # Errors
    /// As [`Images::resolve`].
    pub fn resolve_target(
        &self,
        ctx: &Context,
        name: &str,
        target: Descriptor,
        platform: Option<&Platform>,
    ) -> Result<Resolved> {
        let found = match platform {
            Some(platform) => find(&self.content, ctx, &target, platform),
            None => self.find_own(ctx, &target),
        };
        let (manifest_descriptor, manifest) = found.doing(|| format!("image {name}"))?;
        let (config, config_digest) = self.config_of(ctx, &manifest_descriptor, &manifest, name)?;
        let chain_id = chain_ids(&config.rootfs.diff_ids).pop();
        let size = manifest.stored_size();
        Ok(Resolved {
            name: name.to_owned(),
            target,
            manifest,
            manifest_descriptor,
            config,
            config_digest,
            chain_id,
            size,
        })
    }

    /// The best manifest for this machine that is here. One that was pulled when it could use more is still better than none:
    /// it may be unpacked by now.
    fn find_own(&self, ctx: &Context, target: &Descriptor) -> Result<(Descriptor, Manifest)> {
        let able = |features: &[String]| Platform { os_features: features.to_vec(), ..Platform::host() };
        let found = find(&self.content, ctx, target, &able(&self.features()));
        let any = || find(&self.content, ctx, target, &able(&[EROFS.to_owned()]));
        found.or_else(|error| if error.kind() == Kind::NotFound { any().map_err(|_| error) } else { Err(error) })
    }

    /// The configuration, and the image's id. What an artifact has for a configuration is its own affair, but is to be here.
    fn config_of(
        &self,
        ctx: &Context,
        descriptor: &Descriptor,
        manifest: &Manifest,
        name: &str,
    ) -> Result<(ImageConfig, Digest)> {
        let digest = &manifest.config.digest;
        let doing = || format!("image {name}: configuration");
        if manifest.is_artifact() {
            check_layers(manifest).doing(|| format!("image {name}"))?;
            self.content.info(ctx, digest).doing(doing)?;
            return Ok((ImageConfig::default(), descriptor.digest.clone()));
        }
        let bytes = self.content.read(ctx, digest, MAX_DOCUMENT).doing(doing)?;
        let config = parse_config(manifest, &bytes).doing(|| format!("image {name}"))?;
        Ok((config, digest.clone()))
    }
}

/// Parses a configuration and checks that it has a layer for each of the manifest's.
///
/// # Errors
/// `InvalidArgument` where not.
pub fn parse_config(manifest: &Manifest, bytes: &[u8]) -> Result<ImageConfig> {
    let config = ImageConfig::parse(bytes).map_err(|error| Error::invalid(error.to_string()))?;
    let (ids, layers) = (config.rootfs.diff_ids.len(), manifest.layers.len());
    if ids != unpacked(manifest, &config).len() {
        return Err(Error::invalid(format!("its configuration has {ids} layers, its manifest {layers}")));
    }
    check_layers(manifest)?;
    Ok(config)
}

/// Checks that a manifest has no more layers than anybody handles.
///
/// # Errors
/// `InvalidArgument` where it has.
pub(super) fn check_layers(manifest: &Manifest) -> Result<()> {
    let layers = manifest.layers.len();
    if layers > MAX_LAYERS {
        return Err(Error::invalid(format!("it has {layers} layers, more than {MAX_LAYERS}")));
    }
    Ok(())
}

/// Which of a manifest's layers the configuration speaks of: all where it has as many, else those that are said to be
/// layers. What else is among them is fetched, and not unpacked.
pub(super) fn unpacked(manifest: &Manifest, config: &ImageConfig) -> Vec<usize> {
    let is_all = config.rootfs.diff_ids.len() == manifest.layers.len();
    let is_layer =
        |layer: &Descriptor| matches!(layer.kind(), MediaKind::Layer(_) | MediaKind::Encrypted | MediaKind::Erofs(_));
    (0..manifest.layers.len()).filter(|index| is_all || is_layer(&manifest.layers[*index])).collect()
}

/// Checks that a document, whose digest is right, is as long as what leads to it says.
///
/// # Errors
/// `InvalidArgument` where not.
pub(super) fn check_size(descriptor: &Descriptor, bytes: &[u8]) -> Result<()> {
    if bytes.len() as u64 == descriptor.size {
        return Ok(());
    }
    let Descriptor { digest, size, .. } = descriptor;
    Err(Error::invalid(format!(
        "document {digest}: has {} bytes, not the {size} that its descriptor says",
        bytes.len()
    )))
}

/// The best manifest for `platform` that the content store has.
fn find(content: &Content, ctx: &Context, target: &Descriptor, platform: &Platform) -> Result<(Descriptor, Manifest)> {
    let mut seen = HashSet::new();
    let mut best = None;
    find_in(content, ctx, target, platform, &mut seen, MAX_DEPTH, &mut best)?;
    match best {
        Some(Ok(found)) => Ok(found),
        Some(Err(error)) => Err(error),
        None => Err(Error::not_found(format!("has no image for {platform}"))),
    }
}

type Found = Option<Result<(Descriptor, Manifest)>>;

fn find_in(
    content: &Content,
    ctx: &Context,
    at: &Descriptor,
    platform: &Platform,
    seen: &mut HashSet<Digest>,
    depth: usize,
    best: &mut Found,
) -> Result<()> {
    if depth == 0 || !seen.insert(at.digest.clone()) {
        return Err(Error::invalid(format!("index {}: contains itself or is nested too deep", at.digest)));
    }
    let bytes = match content.read(ctx, &at.digest, MAX_DOCUMENT) {
        // The first choice that is not here is told of only where no other is here.
        Err(error) if error.kind() == Kind::NotFound => {
            best.get_or_insert(Err(error));
            return Ok(());
        }
        other => other?,
    };
    match Document::parse(&at.media_type, &bytes).map_err(|error| Error::invalid(error.to_string()))? {
        Document::Manifest(manifest) => *best = Some(Ok((at.clone(), *manifest))),
        Document::Index(index) => {
            for entry in index.select(platform) {
                find_in(content, ctx, entry, platform, seen, depth - 1, best)?;
                if matches!(best, Some(Ok(_))) {
                    break;
                }
            }
        }
    }
    Ok(())
}
