//! Layers become a chain of snapshots.
//!
//! Where the snapshotter takes layers apart from each other, each has a directory from the start and all are filled at
//! once; in the end they are settled in order, flushed together and committed in one transaction. Otherwise each is
//! applied onto the one below, one after the other.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rung_spec::digest::Digest;
use rung_spec::image::{Descriptor, ImageConfig, Manifest, chain_ids};
use rung_spec::platform::Platform;
use rung_sys::beneath::Root;

use super::disks::Disks;
use super::fetch::{Form, Place};
use super::origin::{Origin, labels_of};
use super::{Images, layers, walk};
use crate::blocking::each;
use crate::context::Context;
use crate::diff::{self, Applied, Mode, Target, Unfinished};
use crate::error::{Doing, Error, Kind, Result};
use crate::id;
use crate::labels::{self, Labels};
use crate::snapshots::{Applying, Layer, Mount, Snapshotter, Unpacking};

/// An image's layers on their way into a snapshotter.
pub(super) struct Stack {
    name: String,
    snapshotter: Arc<dyn Snapshotter>,
    ctx: Context,
    layers: Vec<Descriptor>,
    /// Where each of them is in the manifest.
    indices: Vec<usize>,
    diff_ids: Vec<Digest>,
    chain: Vec<Digest>,
    /// How many of the lowest layers are there already.
    present: usize,
    /// Where they are not stacked: where each of the others is.
    places: Vec<(String, Place)>,
    /// Whose layers they are, for snapshotters that fetch them by themselves.
    origin: Option<Origin>,
    /// Of such a snapshotter: where the lowest that it does not have goes.
    begun: Option<(String, Vec<Mount>)>,
    /// Keeps clients from unpacking the same.
    _unpacks: Applying,
}

impl Stack {
    /// Looks which layers are there, and makes room for the others.
    pub(super) fn begin(
        images: &Images,
        ctx: &Context,
        name: &str,
        manifest: &Manifest,
        config: &ImageConfig,
        origin: Option<Origin>,
    ) -> Result<Self> {
        let snapshotter = images.snapshotters.get(name)?;
        let diff_ids = config.rootfs.diff_ids.clone();
        let chain = chain_ids(&diff_ids);
        let indices = walk::unpacked(manifest, config);
        let present = present(ctx, snapshotter.as_ref(), &chain)?;
        let name = images.snapshotters.name_or_default(name).to_owned();
        let missing = chain[present..].iter().map(ToString::to_string);
        let mut stack = Self {
            _unpacks: images.snapshotters.unpacks().own(&ctx.namespace, &name, missing),
            name,
            snapshotter,
            ctx: ctx.clone(),
            layers: indices.iter().map(|index| manifest.layers[*index].clone()).collect(),
            indices,
            diff_ids,
            chain,
            present,
            places: Vec::new(),
            origin,
            begun: None,
        };
        match stack.snapshotter.unpacking() {
            Unpacking::Foreign => stack.take_present()?,
            Unpacking::Stacked => {}
            Unpacking::Apart | Unpacking::Converted => stack.make_places()?,
        }
        Ok(stack)
    }

    fn make_places(&mut self) -> Result<()> {
        for index in self.present..self.chain.len() {
            let key = format!("extract-{} {}", id::random::<8>()?, self.chain[index]);
            let mounts = self.snapshotter.prepare_layer(&self.ctx, &key, "")?;
            let [mount] = &mounts[..] else {
                return Err(Error::internal(format!("snapshotter {}: gives no plain directory", self.name)));
            };
            let mode = if index == 0 { Mode::Lowest } else { Mode::Overlay };
            let path = PathBuf::from(&mount.source);
            let form = if mount.kind == "erofs" { Form::Image(path) } else { Form::Directory(path) };
            let place = Place { form, mode, diff_id: self.diff_ids[index].clone() };
            self.places.push((key, place));
        }
        Ok(())
    }

    /// Asks a program that may have layers from elsewhere for them, lowest first, until it lacks one.
    fn take_present(&mut self) -> Result<()> {
        while self.present < self.chain.len() && self.begun.is_none() {
            self.begun = self.prepare(self.present)?;
            self.present += usize::from(self.begun.is_none());
        }
        Ok(())
    }

    /// Makes room for a layer on those below it; none where the snapshotter has it meanwhile.
    fn prepare(&self, index: usize) -> Result<Option<(String, Vec<Mount>)>> {
        let key = format!("extract-{} {}", id::random::<8>()?, self.chain[index]);
        let parent = index.checked_sub(1).map(|below| self.chain[below].to_string()).unwrap_or_default();
        let target = self.chain[index].to_string();
        let mut labels = self.labels(index);
        // Where it is there it stands on files that are made anew, or these are its own: it is to be made.
        if self.snapshotter.stat(&self.ctx, &target).is_err() {
            labels.insert(labels::SNAPSHOT_REF.to_owned(), target);
        }
        match self.snapshotter.prepare(&self.ctx, &key, &parent, labels) {
            // It came from elsewhere meanwhile, or the snapshotter fetches it itself.
            Err(error) if error.kind() == Kind::AlreadyExists => Ok(None),
            prepared => Ok(Some((key, prepared?))),
        }
    }

    /// What another program is told of a layer. A snapshotter of ours would not know what to do with it.
    fn labels(&self, index: usize) -> Labels {
        match self.snapshotter.unpacking() {
            Unpacking::Foreign => labels_of(self.origin.as_ref(), &self.layers[index..]),
            _ => Labels::new(),
        }
    }

    /// How many of the manifest's first layers nobody has to fetch, because another program has them.
    pub(super) fn spared(&self) -> usize {
        let present = if self.snapshotter.unpacking() == Unpacking::Foreign { self.present } else { 0 };
        self.indices.iter().take(present).enumerate().take_while(|(number, index)| number == *index).count()
    }

    /// The snapshot that holds the whole image.
    pub(super) fn chain_id(&self) -> Option<&Digest> {
        self.chain.last()
    }

    /// The snapshotter's name.
    pub(super) fn snapshotter(&self) -> &str {
        &self.name
    }

    /// Whether nothing is to be done.
    pub(super) fn is_complete(&self) -> bool {
        self.present == self.chain.len()
    }

    /// Where one of the manifest's layers is applied while it is fetched, if it is.
    pub(super) fn place(&self, index: usize) -> Option<Place> {
        let number = self.indices.iter().position(|known| *known == index)?;
        self.places.get(number.checked_sub(self.present)?).map(|(_, place)| place.clone())
    }

    /// Makes the layers fit those below them, from what applying each of the manifest's has come to.
    pub(super) fn settle(&self, mut applied: Vec<Option<Applied>>) -> Result<()> {
        let applied: Vec<Option<Applied>> = self.indices.iter().map(|index| applied[*index].take()).collect();
        let is_open = |applied: &Applied| {
            !applied.deferred.is_empty() || applied.image.as_ref().is_some_and(Unfinished::needs_lowers)
        };
        let last_open = applied.iter().rposition(|applied| applied.as_ref().is_some_and(is_open));
        let base = if last_open.is_some() && self.present > 0 { self.base_directories()? } else { Vec::new() };
        let mut lowers = base;
        // Images of this image's own layers, mounted as long as a layer above has something to look up in them.
        let mut mounted = Vec::new();
        for (index, applied) in applied.into_iter().enumerate().skip(self.present) {
            let Some((_, place)) = self.places.get(index - self.present) else { break };
            match (&place.form, applied) {
                (Form::Directory(path), Some(applied)) => {
                    let root = Root::open(path).doing(|| "open a layer")?;
                    diff::settle(&root, &lowers, applied.deferred)?;
                }
                (Form::Image(_), Some(Applied { image: Some(image), .. })) => image.finish(&lowers)?,
                _ => {}
            }
            if last_open.is_some_and(|last| last > index) {
                let shown = match &place.form {
                    Form::Directory(path) => path.clone(),
                    Form::Image(path) => {
                        let target = Target::to_read(&[image_mount(path)])?;
                        let shown = target.path.clone();
                        mounted.push(target);
                        shown
                    }
                };
                lowers.insert(0, shown);
            }
        }
        drop(mounted);
        Ok(())
    }

    /// The directories of the layers that were there, newest first: a view of them says.
    fn base_directories(&self) -> Result<Vec<PathBuf>> {
        let key = format!("settle-{}", id::random::<8>()?);
        let mounts = self.snapshotter.view(&self.ctx, &key, self.chain[self.present - 1].as_str(), Labels::new())?;
        let directories = Target::directories(&mounts);
        self.snapshotter.remove(&self.ctx, &key)?;
        Ok(directories)
    }

    /// Commits what was applied apart, whose files are flushed.
    pub(super) fn commit(&self) -> Result<()> {
        let layer = |(offset, (key, _)): (usize, &(String, Place))| {
            let index = self.present + offset;
            let parent = index.checked_sub(1).map(|below| self.chain[below].to_string()).unwrap_or_default();
            Layer { name: self.chain[index].to_string(), key: key.clone(), parent, labels: Labels::new() }
        };
        let layers: Vec<Layer> = self.places.iter().enumerate().map(layer).collect();
        if layers.is_empty() { Ok(()) } else { self.snapshotter.commit_layers(&self.ctx, &layers) }
    }

    /// Where layers are stacked: applies them, which are in the content store, one onto the other.
    pub(super) fn apply_stacked(&self, images: &Images) -> Result<()> {
        if !self.snapshotter.unpacking().is_stacked() {
            return Ok(());
        }
        for index in self.present..self.chain.len() {
            let parent = index.checked_sub(1).map(|below| self.chain[below].to_string()).unwrap_or_default();
            let prepared = match &self.begun {
                Some(begun) if index == self.present => Some(begun.clone()),
                _ => self.prepare(index)?,
            };
            let Some((key, mounts)) = prepared else { continue };
            let layer = &self.layers[index];
            let applied = images.apply(&self.ctx, layer, &mounts, &diff::own_payloads(layer), true)?;
            if applied.digest != self.diff_ids[index] {
                let (is, should) = (&applied.digest, &self.diff_ids[index]);
                let text = format!("layer {} unpacks to {is} instead of {should}", layer.digest);
                return Err(Error::new(Kind::DataLoss, text));
            }
            let layer = Layer { name: self.chain[index].to_string(), key, parent, labels: self.labels(index) };
            self.snapshotter.commit_layers(&self.ctx, &[layer])?;
        }
        Ok(())
    }

    /// Removes what was made room for, after a failure.
    pub(super) fn discard(&self) {
        // Files first: on a full disk their space is what lets the records change.
        for (_, place) in &self.places {
            if let Err(error) = rung_sys::beneath::remove(place.form.path()) {
                tracing::debug!(%error, "left a layer's files for the collection");
            }
        }
        for key in self.places.iter().map(|(key, _)| key).chain(self.begun.iter().map(|(key, _)| key)) {
            if let Err(error) = self.snapshotter.remove(&self.ctx, key) {
                tracing::debug!(key, %error, "left a layer for the collection");
            }
        }
    }
}

/// How many of the lowest layers are there, which the call's lease then holds: the image that they came with may be removed
/// before this one is recorded.
fn present(ctx: &Context, snapshotter: &dyn Snapshotter, chain: &[Digest]) -> Result<usize> {
    loop {
        let mut present = 0;
        while present < chain.len() && snapshotter.is_whole(ctx, chain[present].as_str())? {
            present += 1;
        }
        // What has gone since is to be unpacked, too.
        if present == 0 || snapshotter.hold(ctx, chain[present - 1].as_str())? {
            return Ok(present);
        }
    }
}

/// The mount of a layer's image.
pub(super) fn image_mount(path: &Path) -> Mount {
    let source = path.to_string_lossy().into_owned();
    Mount { kind: "erofs".into(), source, target: String::new(), options: vec!["ro".into(), "nodev".into()] }
}

impl Images {
    /// Unpacks an image that is here, for a platform or this machine, into a snapshotter, and answers with its topmost
    /// snapshot.
    ///
    /// # Errors
    /// `NotFound` for the image or a layer that is not here; what unpacking fails with.
    pub fn unpack(
        &self,
        ctx: &Context,
        name: &str,
        platform: Option<&Platform>,
        snapshotter: &str,
    ) -> Result<Option<Digest>> {
        let image = self.resolve(ctx, name, platform)?;
        let lease = self.leases.temporary(ctx, "unpack", 24)?;
        let held = ctx.clone().with_lease(&lease.id);
        let origin = Origin::of(name, &image.manifest_descriptor.digest);
        let unpacked = self.unpack_held(&held, &image.manifest, &image.config, snapshotter, origin);
        self.leases.end(ctx, &lease.id)?;
        unpacked.doing(|| format!("unpack {name}"))
    }

    /// Unpacks an image that was made here into the default snapshotter, under the call's lease.
    ///
    /// # Errors
    /// What unpacking fails with.
    pub fn unpack_made(&self, ctx: &Context, manifest: &Manifest, config: &ImageConfig) -> Result<()> {
        self.unpack_held(ctx, manifest, config, "", None).map(drop)
    }

    /// Unpacks under the call's lease, and says on the configuration that it is.
    pub(super) fn unpack_held(
        &self,
        ctx: &Context,
        manifest: &Manifest,
        config: &ImageConfig,
        snapshotter: &str,
        origin: Option<Origin>,
    ) -> Result<Option<Digest>> {
        let disks = self.disks()?;
        let stack = Stack::begin(self, ctx, snapshotter, manifest, config, origin)?;
        if let Err(error) = self.fill(ctx, manifest, &stack, &disks) {
            stack.discard();
            return Err(error);
        }
        let Some(chain_id) = stack.chain_id() else { return Ok(None) };
        let label = (format!("{}{}", labels::GC_REF_SNAPSHOT, stack.snapshotter()), chain_id.to_string());
        self.content.add_labels(ctx, &[(manifest.config.digest.clone(), Labels::from([label]))])?;
        Ok(Some(chain_id.clone()))
    }

    fn fill(&self, ctx: &Context, manifest: &Manifest, stack: &Stack, disks: &Disks) -> Result<()> {
        let applied = self.apply_all(ctx, manifest, stack)?;
        stack.settle(applied)?;
        stack.apply_stacked(self)?;
        disks.flush()?;
        stack.commit()
    }

    /// Applies every layer that has a place.
    fn apply_all(&self, ctx: &Context, manifest: &Manifest, stack: &Stack) -> Result<Vec<Option<Applied>>> {
        each(&manifest.layers, |index, layer| {
            let apply = |place| layers::apply_stored(&self.content, &self.processors, ctx, layer, &place);
            stack.place(index).map(apply).transpose()
        })
    }
}
