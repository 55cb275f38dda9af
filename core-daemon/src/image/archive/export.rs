//! Images put into an archive. The same images give the same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufWriter, Read, Write};

use rung_spec::digest::{Digest, Hasher};
use rung_spec::image::{Descriptor, ImageConfig, Index, Kind as MediaKind, Manifest, media_types};
use rung_spec::platform::Platform;
use rung_spec::reference::Reference;

use super::{DOCKER_FILE, DockerImage, INDEX_FILE, LAYOUT_FILE, LAYOUT_VERSION, Layout};
use crate::blocking::{blocking, with_client};
use crate::content::Content;
use crate::context::Context;
use crate::diff::tar::{Entry, Kind as TarKind, Writer};
use crate::error::{Doing, Error, Kind, Result};
use crate::image::choice::Want;
use crate::image::naming::{ANNOTATION_NAME, ANNOTATION_REF};
use crate::image::push::Stored;
use crate::image::tree::{Found, Tree, manifest_children};
use crate::image::walk::MAX_DOCUMENT;
use crate::image::{Choice, Images, Quiet};
use crate::labels;

/// What goes into an archive.
#[derive(Debug, Clone, Default)]
pub struct ExportOptions {
    /// Which of an index's images.
    pub choice: Choice,
    /// No `manifest.json` for docker.
    pub skip_docker: bool,
    /// No layers that may not be handed on.
    pub skip_foreign: bool,
    /// Of an index, what is here.
    pub what_is_here: bool,
}

/// An image to be exported.
#[derive(Debug, Clone)]
pub struct Exported {
    /// Its name; none for one that is asked for by its id.
    pub name: Option<String>,
    /// What it is.
    pub target: Descriptor,
}

impl Images {
    /// Writes an archive of `images` to `to`.
    ///
    /// # Errors
    /// `NotFound` for what is not here; what writing fails with.
    pub async fn export(
        &self,
        ctx: &Context,
        images: &[Exported],
        options: &ExportOptions,
        to: impl Write + Send + 'static,
    ) -> Result<()> {
        let mut plan = Plan::default();
        for image in images {
            let name = image.name.clone().unwrap_or_else(|| image.target.digest.to_string());
            plan.add(self, ctx, image, options).await.doing(|| format!("export {name}"))?;
        }
        let (content, ctx, skip_docker) = (self.content.clone(), ctx.clone(), options.skip_docker);
        with_client(move || plan.write(&content, &ctx, skip_docker, BufWriter::with_capacity(256 << 10, to))).await
    }
}

/// Everything that goes into the archive, by path.
#[derive(Default)]
struct Plan {
    blobs: BTreeMap<String, Descriptor>,
    entries: Vec<Descriptor>,
    /// By manifest.
    docker: Vec<(Digest, DockerImage)>,
}

impl Plan {
    async fn add(&mut self, images: &Images, ctx: &Context, image: &Exported, options: &ExportOptions) -> Result<()> {
        let stored = Stored { content: &images.content, ctx, progress: &Quiet };
        let is_index = image.target.kind() == MediaKind::Index;
        let mut tree = match options.what_is_here && is_index {
            true => Tree::read_present(&stored, &image.target).await?,
            false => Tree::read(&stored, &image.target, None, &options.choice).await?,
        };
        if is_index {
            tree = complete(images, ctx, tree).await?;
        }
        if let Some(alone) = tree.images.iter().find(|found| found.descriptor.digest == image.target.digest) {
            check_platform(images, ctx, alone, &options.choice)?;
        }
        for doc in &tree.docs {
            self.blob(&doc.descriptor);
        }
        for found in tree.images.iter().filter(|found| found.want == Want::Whole) {
            for child in manifest_children(&found.manifest) {
                let is_foreign = matches!(child.kind(), MediaKind::Layer(layer) if layer.foreign);
                if !(is_foreign && options.skip_foreign) {
                    self.blob(&child);
                }
            }
        }
        self.entries.push(self.entry(images, ctx, image)?);
        if let Some(best) = best(&tree, options) {
            self.docker(&best.descriptor.digest, &best.manifest, image.name.as_deref());
        }
        Ok(())
    }

    fn blob(&mut self, descriptor: &Descriptor) {
        self.blobs.entry(path(&descriptor.digest)).or_insert_with(|| descriptor.clone());
    }

    /// The image's entry in the archive's index.
    fn entry(&self, images: &Images, ctx: &Context, image: &Exported) -> Result<Descriptor> {
        let mut entry = image.target.clone();
        if let Some(name) = &image.name {
            entry.annotations.insert(ANNOTATION_NAME.to_owned(), name.clone());
            entry.annotations.insert(ANNOTATION_REF.to_owned(), reference_name(name));
        }
        let info = images.content.info(ctx, &entry.digest)?;
        let sources = info.labels.into_iter().filter(|(key, _)| key.starts_with(labels::DISTRIBUTION_SOURCE));
        entry.annotations.extend(sources);
        Ok(entry)
    }

    fn docker(&mut self, digest: &Digest, manifest: &Manifest, name: Option<&str>) {
        let known = self.docker.iter_mut().find(|(known, _)| known == digest);
        let tag = name.and_then(|name| Reference::parse(name).ok()).map(|name| name.familiar());
        let image = match known {
            Some((_, image)) => image,
            None => {
                let layers = manifest.layers.iter().map(|layer| path(&layer.digest)).collect();
                let image =
                    DockerImage { config: path(&manifest.config.digest), repo_tags: None, layers: Some(layers) };
                self.docker.push((digest.clone(), image));
                let Some((_, image)) = self.docker.last_mut() else { return };
                image
            }
        };
        if let Some(tag) = tag {
            image.repo_tags.get_or_insert_default().push(tag);
        }
    }

    fn write(self, content: &Content, ctx: &Context, skip_docker: bool, to: impl Write) -> Result<()> {
        let index = Index { media_type: Some(media_types::OCI_INDEX.to_owned()), ..Index::of(self.entries) };
        let layout = Layout { image_layout_version: LAYOUT_VERSION.to_owned() };
        let docker: Vec<DockerImage> = self.docker.into_iter().map(|(_, image)| image).collect();
        let mut tar = Writer::new(to);
        let doing = || "write archive";
        directory(&mut tar, "blobs/").doing(doing)?;
        let algorithms: BTreeSet<&str> = self.blobs.values().map(|blob| blob.digest.algorithm().as_str()).collect();
        for algorithm in algorithms {
            directory(&mut tar, &format!("blobs/{algorithm}/")).doing(doing)?;
        }
        for (path, descriptor) in &self.blobs {
            blob(&mut tar, path, content, ctx, descriptor)?;
        }
        document(&mut tar, INDEX_FILE, 0o644, &index)?;
        if !skip_docker && !docker.is_empty() {
            document(&mut tar, DOCKER_FILE, 0o644, &docker)?;
        }
        document(&mut tar, LAYOUT_FILE, 0o444, &layout)?;
        tar.finish().and_then(|mut to| to.flush()).doing(doing)
    }
}

/// Of what is not wanted for its platform: what is here whole is put in whole, of the rest the manifests.
async fn complete(images: &Images, ctx: &Context, mut tree: Tree) -> Result<Tree> {
    let (content, ctx) = (images.content.clone(), ctx.clone());
    blocking(move || {
        for found in tree.images.iter_mut().filter(|found| found.want == Want::Documents) {
            let mut complete = true;
            for child in manifest_children(&found.manifest) {
                complete &= content.has(&ctx, &child.digest)?;
            }
            found.want = if complete { Want::Whole } else { Want::Documents };
        }
        if !tree.images.iter().any(|found| found.want == Want::Whole) {
            return Err(Error::not_found("none of its images is here whole; pull it again"));
        }
        Ok(tree)
    })
    .await
}

/// Refuses an image without an index that is for another platform than is asked for. Many images for ARM do not say of
/// which variant they are.
fn check_platform(images: &Images, ctx: &Context, image: &Found, choice: &Choice) -> Result<()> {
    if choice.all || choice.platforms.is_empty() {
        return Ok(());
    }
    let bytes = images.content.read(ctx, &image.manifest.config.digest, MAX_DOCUMENT)?;
    // What is no image is for any.
    let Ok(config) = ImageConfig::parse(&bytes) else { return Ok(()) };
    let offered = config.platform.normalised();
    let is_alike = |wanted: &Platform| wanted.os == offered.os && wanted.architecture == offered.architecture;
    if offered.architecture.is_empty() || choice.takes(&offered) || choice.platforms.iter().any(is_alike) {
        return Ok(());
    }
    let wanted: Vec<String> = choice.platforms.iter().map(ToString::to_string).collect();
    Err(Error::not_found(format!("is for {offered}, not {}", wanted.join(" or "))))
}

/// The image that a reader takes who knows no indexes.
fn best<'t>(tree: &'t Tree, options: &ExportOptions) -> Option<&'t Found> {
    let whole = || tree.images.iter().filter(|found| found.want == Want::Whole);
    for platform in options.choice.platforms() {
        let rank = |found: &&Found| found.descriptor.platform.as_ref().map_or(Some(usize::MAX), |it| platform.rank(it));
        if let Some(found) = whole().filter(|found| rank(found).is_some()).min_by_key(|found| rank(found)) {
            return Some(found);
        }
    }
    None
}

fn path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}

/// The tag where a name has one, as the layout's specification wants it; else the name.
fn reference_name(name: &str) -> String {
    match Reference::parse(name) {
        Ok(Reference { tag: Some(tag), digest: None, .. }) if name.ends_with(&format!(":{tag}")) => tag,
        _ => name.to_owned(),
    }
}

fn entry(path: &str, kind: TarKind, mode: u32, size: u64) -> Entry {
    Entry {
        path: path.as_bytes().to_vec(),
        link: Vec::new(),
        kind,
        mode,
        uid: 0,
        gid: 0,
        size,
        mtime: (0, 0),
        device: (0, 0),
        xattrs: Vec::new(),
        pieces: None,
    }
}

fn directory(tar: &mut Writer<impl Write>, path: &str) -> io::Result<()> {
    tar.entry(&entry(path, TarKind::Directory, 0o755, 0), &mut io::empty())
}

fn document(tar: &mut Writer<impl Write>, path: &str, mode: u32, document: &impl serde::Serialize) -> Result<()> {
    let bytes = serde_json::to_vec(document).map_err(|error| Error::internal(error.to_string()))?;
    tar.entry(&entry(path, TarKind::File, mode, bytes.len() as u64), &mut bytes.as_slice()).doing(|| "write archive")
}

fn blob(
    tar: &mut Writer<impl Write>,
    path: &str,
    content: &Content,
    ctx: &Context,
    descriptor: &Descriptor,
) -> Result<()> {
    let blob = content.reader(ctx, &descriptor.digest)?;
    let mut data = Hashed { file: blob.file, hasher: Hasher::new(descriptor.digest.algorithm()) };
    let written = tar.entry(&entry(path, TarKind::File, 0o444, blob.size), &mut data);
    written.doing(|| format!("archive content {}", descriptor.digest))?;
    let found = data.hasher.finish();
    if found != descriptor.digest {
        let text =
            format!("content {}: is damaged: its bytes have digest {found}; pull the image again", descriptor.digest);
        return Err(Error::new(Kind::DataLoss, text));
    }
    Ok(())
}

struct Hashed {
    file: std::fs::File,
    hasher: Hasher,
}

impl Read for Hashed {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(out)?;
        self.hasher.update(&out[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_stands_for_a_name_where_there_is_one() {
        let digest = Digest::of("x");
        for (name, wanted) in [("docker.io/library/a:1", "1"), ("h:5000/a/b:v2", "v2"), ("weird name", "weird name")] {
            assert_eq!(reference_name(name), wanted);
        }
        let by_digest = format!("h/a@{digest}");
        assert_eq!(reference_name(&by_digest), by_digest);
    }
}
