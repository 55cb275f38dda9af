//! Images taken from an archive: read → index → documents → unpack → names, all under a lease.

use std::io::Read;
use std::sync::Arc;

use rung_spec::image::{Descriptor, ImageConfig, Index, Kind as MediaKind, media_types};
use rung_spec::platform::Platform;
use rung_spec::reference::Reference;
use serde::Serialize;

use super::read::{self, Files};
use super::{DockerImage, LAYOUT_VERSION, Layout, layers};
use crate::blocking::{blocking, with_client};
use crate::content::Content;
use crate::context::Context;
use crate::error::{Doing, Error, Kind, Result};
use crate::image::choice::Want;
use crate::image::naming::{ANNOTATION_NAME, ANNOTATION_REF};
use crate::image::pull::Lease;
use crate::image::push::Stored;
use crate::image::tree::{Found, Tree, index_labels, manifest_children};
use crate::image::walk::{MAX_DOCUMENT, parse_config};
use crate::image::{Choice, Images, Names, Progress, Unpack};
use crate::labels::Labels;
use crate::records::images::Image;

/// Most images of an archive.
const MAX_IMAGES: usize = 1000;

/// How to take images from an archive.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// Which images.
    pub choice: Choice,
    /// Their names.
    pub names: Names,
    /// A repository under which an image that nothing names is recorded by its digest; none: it is left.
    pub nameless: Option<String>,
    /// Where layers are unpacked.
    pub unpacks: Vec<Unpack>,
    /// Compress plain layers of docker's archives.
    pub compress: bool,
}

/// An image that was taken.
#[derive(Debug, Clone)]
pub struct Imported {
    /// Its record.
    pub name: String,
    /// What it is.
    pub target: Descriptor,
}

impl Images {
    /// Takes the images of an archive, which may be packed with gzip or zstd.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no archive of images, or says wrong things of itself; `NotFound` where it has
    /// nothing that is wanted, or lacks a part.
    pub async fn import(
        &self,
        ctx: &Context,
        archive: impl Read + Send + 'static,
        options: ImportOptions,
        progress: Arc<dyn Progress>,
    ) -> Result<Vec<Imported>> {
        let (held, lease) = Lease::of(self, ctx, "import").await?;
        let (content, under, compress) = (self.content.clone(), held.clone(), options.compress);
        let (index, entries) = with_client(move || {
            let files = read::read(&content, &under, archive)?;
            index_of(&content, &under, &files, compress)
        })
        .await
        .doing(|| "import")?;
        progress.resolved(&index);
        let mut taken = Vec::new();
        let stored = Stored { content: &self.content, ctx: &held, progress: progress.as_ref() };
        for entry in &entries {
            if entry.kind() == MediaKind::Manifest
                && entry.platform.as_ref().is_some_and(|offered| !options.choice.takes(offered))
            {
                continue;
            }
            let tree = Tree::read(&stored, entry, None, &options.choice).await;
            let tree = tree.doing(|| format!("import {}", shown(entry)))?;
            self.take(&held, entry, tree, &options).await.doing(|| format!("import {}", shown(entry)))?;
            taken.push(entry.clone());
        }
        if taken.is_empty() {
            return Err(Error::not_found("import: the archive has no image for the platform that is wanted"));
        }
        let (images, ctx) = (self.clone(), ctx.clone());
        blocking(move || {
            // What gets its names here is held until it has them, be the client gone.
            let _lease = lease;
            images.name_all(&ctx, &index, &taken, &options)
        })
        .await
    }

    /// Checks that an image is whole, says what it leads to, and unpacks it.
    async fn take(&self, ctx: &Context, entry: &Descriptor, tree: Tree, options: &ImportOptions) -> Result<()> {
        let (images, ctx, unpacks) = (self.clone(), ctx.clone(), options.unpacks.clone());
        let entry = entry.clone();
        blocking(move || {
            for found in tree.images.iter().filter(|found| found.want == Want::Whole) {
                for part in manifest_children(&found.manifest) {
                    let is_foreign = matches!(part.kind(), MediaKind::Layer(layer) if layer.foreign);
                    if !is_foreign && !images.content.hold(&ctx, &part.digest)? {
                        return Err(Error::not_found(format!("content {} is not in the archive", part.digest)));
                    }
                }
            }
            let labelled: Vec<_> =
                tree.docs.iter().map(|doc| (doc.descriptor.digest.clone(), doc.labels.clone())).collect();
            images.content.add_labels(&ctx, &labelled)?;
            for found in tree.images.iter().filter(|found| found.want == Want::Whole) {
                let unpacked = images.unpack_found(&ctx, found, entry.platform.as_ref(), &unpacks);
                unpacked.doing(|| format!("unpack {}", found.descriptor.digest))?;
            }
            Ok(())
        })
        .await
    }

    fn unpack_found(&self, ctx: &Context, found: &Found, offered: Option<&Platform>, unpacks: &[Unpack]) -> Result<()> {
        if found.manifest.config.kind() != MediaKind::Config || unpacks.is_empty() {
            return Ok(());
        }
        let bytes = self.content.read(ctx, &found.manifest.config.digest, MAX_DOCUMENT)?;
        let config = parse_config(&found.manifest, &bytes)?;
        let offered = found.descriptor.platform.as_ref().or(offered).unwrap_or(&config.platform).clone();
        for unpack in unpacks {
            if offered.os.is_empty() || unpack.platform.rank(&offered).is_some() {
                self.unpack_held(ctx, &found.manifest, &config, &unpack.snapshotter, None)?;
            }
        }
        Ok(())
    }

    fn name_all(
        &self,
        ctx: &Context,
        index: &Descriptor,
        taken: &[Descriptor],
        options: &ImportOptions,
    ) -> Result<Vec<Imported>> {
        let mut records: Vec<(Image, &Descriptor)> = Vec::new();
        let of_index = options.names.records(index);
        if !of_index.is_empty() {
            let labels = index_labels(taken);
            self.content.add_labels(ctx, &[(index.digest.clone(), labels)])?;
        }
        records.extend(of_index.into_iter().map(|record| (record, index)));
        for entry in taken {
            let mut named = options.names.records_of_entry(entry);
            if let (true, Some(repository)) = (named.is_empty(), &options.nameless) {
                named = Names::one(format!("{repository}@{}", entry.digest), Labels::new()).records(entry);
            }
            records.extend(named.into_iter().map(|record| (record, entry)));
        }
        let mut imported = Vec::new();
        for (record, target) in records {
            imported.push(Imported { name: record.name.clone(), target: target.clone() });
            self.records.replace(ctx, record)?;
        }
        Ok(imported)
    }
}

/// The archive's own index as a blob, and its entries. Docker's description becomes one.
fn index_of(content: &Content, ctx: &Context, files: &Files, compress: bool) -> Result<(Descriptor, Vec<Descriptor>)> {
    let bytes = match (&files.layout, &files.index, &files.docker) {
        (Some(layout), index, _) => {
            let layout: Layout = parse("oci-layout", layout)?;
            if layout.image_layout_version != LAYOUT_VERSION {
                let version = layout.image_layout_version;
                return Err(Error::invalid(format!(
                    "layout version {version:?} is not supported, only {LAYOUT_VERSION}"
                )));
            }
            index.clone().ok_or_else(|| Error::invalid("its layout has no index.json"))?
        }
        (None, _, Some(docker)) => {
            let images: Vec<DockerImage> = parse("manifest.json", docker)?;
            let index = docker_index(content, ctx, files, &images, compress)?;
            encode(&index)?
        }
        (None, _, None) => {
            return Err(Error::invalid("it is no archive of images: it has neither oci-layout nor manifest.json"));
        }
    };
    let index = Index::parse(media_types::OCI_INDEX, &bytes).map_err(|error| Error::invalid(error.to_string()))?;
    if index.manifests.len() > MAX_IMAGES {
        return Err(too_many());
    }
    let digest = content.put(ctx, &bytes, Labels::new())?;
    Ok((Descriptor::new(media_types::OCI_INDEX, digest, bytes.len() as u64), index.manifests))
}

fn docker_index(
    content: &Content,
    ctx: &Context,
    files: &Files,
    images: &[DockerImage],
    compress: bool,
) -> Result<Index> {
    let mut manifests = Vec::new();
    for image in images.iter().take(MAX_IMAGES + 1) {
        let missing = || Error::invalid(format!("configuration {:?} is not in the archive", image.config));
        let mut config = files.find(&image.config).ok_or_else(missing)?.clone();
        media_types::DOCKER_CONFIG.clone_into(&mut config.media_type);
        let parsed = content.read(ctx, &config.digest, MAX_DOCUMENT)?;
        let parsed = ImageConfig::parse(&parsed).map_err(|error| Error::invalid(error.to_string()))?;
        let layers = layers::resolve(content, ctx, files, image.layers.as_deref().unwrap_or_default(), compress)?;
        let bytes = encode(&DockerManifest {
            schema_version: 2,
            media_type: media_types::DOCKER_MANIFEST,
            config: &config,
            layers: &layers,
        })?;
        let digest = content.put(ctx, &bytes, Labels::new())?;
        let mut manifest = Descriptor::new(media_types::DOCKER_MANIFEST, digest, bytes.len() as u64);
        manifest.platform = Some(parsed.platform.normalised()).filter(|platform| !platform.os.is_empty());
        let tags = image.repo_tags.as_deref().unwrap_or_default();
        // A short name becomes a long entry.
        if manifests.len() + tags.len() > MAX_IMAGES {
            return Err(too_many());
        }
        if tags.is_empty() {
            manifests.push(manifest.clone());
        }
        for tag in tags {
            let name = Reference::parse(tag).map_err(|error| Error::invalid(error.to_string()))?;
            let mut named = manifest.clone();
            named.annotations.insert(ANNOTATION_NAME.to_owned(), name.to_string());
            named.annotations.insert(ANNOTATION_REF.to_owned(), name.tag.clone().unwrap_or_else(|| name.to_string()));
            manifests.push(named);
        }
    }
    Ok(Index::of(manifests))
}

fn too_many() -> Error {
    Error::invalid(format!("it has more than {MAX_IMAGES} images"))
}

/// A manifest with its fields in the order that everybody writes them, so that digests agree.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DockerManifest<'a> {
    schema_version: u32,
    media_type: &'a str,
    config: &'a Descriptor,
    layers: &'a [Descriptor],
}

fn parse<'a, T: serde::Deserialize<'a>>(name: &str, bytes: &'a [u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| Error::invalid(format!("{name}: {error}")))
}

fn encode(document: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(document).map_err(|error| Error::new(Kind::Internal, error.to_string()))
}

/// What an entry is called, for an error.
fn shown(entry: &Descriptor) -> &str {
    let named = [ANNOTATION_NAME, ANNOTATION_REF].iter().find_map(|name| entry.annotations.get(*name));
    named.map_or(entry.digest.as_str(), String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded_before_anything_is_made_of_them() {
        let (_dir, content, ctx) = super::super::store();
        let digest = content.put(&ctx, br#"{"rootfs":{"type":"layers","diff_ids":[]}}"#, Labels::new()).expect("put");
        let mut files = Files::default();
        files.blobs.insert("config".into(), Descriptor::new("", digest, 43));
        let index = |names: usize, last: &str| {
            let tags = (0..names).map(|number| format!("a:{number}")).chain([last.to_owned()]).collect();
            let image = DockerImage { config: "config".into(), repo_tags: Some(tags), layers: None };
            docker_index(&content, &ctx, &files, &[image], false).map_err(|error| error.to_string())
        };
        assert_eq!(index(MAX_IMAGES - 1, "b").expect("as many as there may be").manifests.len(), MAX_IMAGES);
        let refused = index(MAX_IMAGES, "no name!").expect_err("one too many");
        assert!(refused.contains("more than 1000"), "{refused}");
    }
}
