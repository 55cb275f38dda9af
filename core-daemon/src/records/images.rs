//! Image records: a name for a descriptor.

use std::sync::Arc;
use std::time::SystemTime;

pub use gantry_proto::containerd::services::images::v1::Image;
use gantry_proto::containerd::services::images::v1::{ImageCreate, ImageDelete, ImageUpdate};
use gantry_proto::containerd::types::Descriptor;
use tokio::sync::Notify;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::events::Events;
use crate::filter::{Filter, label};
use crate::labels;
use crate::metadata::{Db, WriteTx, images as table, leases};

/// What a lease calls an image it holds.
pub const RESOURCE: &str = "images";
/// Longest image name.
const MAX_NAME: usize = 4096;

/// The image records of all namespaces.
#[derive(Clone)]
pub struct ImageRecords {
    db: Db,
    events: Events,
    written: Arc<Notify>,
}

impl ImageRecords {
    /// Records in `db`, announced on `events`.
    pub fn new(db: Db, events: Events) -> Self {
        Self { db, events, written: Arc::default() }
    }

    /// How often images, or the content they are made of, were changed: what was read since the last change is as it was.
    pub fn changes(&self) -> u64 {
        self.db.image_changes()
    }

    /// Waits until a record is written, for the one who follows that. One that was written before counts, once.
    pub async fn written(&self) {
        self.written.notified().await;
    }

    /// One image.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn get(&self, ctx: &Context, name: &str) -> Result<Image> {
        self.db.read(|tx| table::get(tx, ctx.namespace.as_str(), name))?.ok_or_else(|| missing(name))
    }

    /// The images that pass `filter`, by name.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub fn list(&self, ctx: &Context, filter: &Filter) -> Result<Vec<Image>> {
        let mut images = self.db.read(|tx| table::list(tx, ctx.namespace.as_str()))?;
        images.retain(|image| filter.matches(|path| field(image, path)));
        Ok(images)
    }

    /// Stores a new image and announces it.
    ///
    /// # Errors
    /// `AlreadyExists`; `InvalidArgument` naming the field that is wrong.
    pub fn create(&self, ctx: &Context, mut image: Image) -> Result<Image> {
        labels::drop_empty(&mut image.labels);
        check(&image)?;
        let now = SystemTime::now().into();
        image.created_at = Some(image.created_at.unwrap_or(now));
        image.updated_at = Some(image.updated_at.unwrap_or(now));
        self.db.write(|tx| {
            if table::get(tx, ctx.namespace.as_str(), &image.name)?.is_some() {
                return Err(Error::already_exists(format!("image {:?}: already exists", image.name)));
            }
            hold(tx, ctx, &image)?;
            table::put(tx, ctx.namespace.as_str(), &image)
        })?;
        self.written.notify_one();
        let event = ImageCreate { name: image.name.clone(), labels: image.labels.clone() };
        self.events.announce(&ctx.namespace, "/images/create", &event);
        Ok(image)
    }

    /// Changes the fields that `mask` names, or all that may change without a mask.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` for a field that is wrong or cannot change.
    pub fn update(&self, ctx: &Context, wanted: &Image, mask: &[String]) -> Result<Image> {
        if wanted.name.is_empty() {
            return Err(Error::invalid("image name is required for update"));
        }
        let image = self.db.write(|tx| {
            let mut image =
                table::get(tx, ctx.namespace.as_str(), &wanted.name)?.ok_or_else(|| missing(&wanted.name))?;
            if mask.is_empty() {
                image.target.clone_from(&wanted.target);
            }
            let mut target = image.target.clone();
            labels::update(&mut image.labels, &wanted.labels, mask, |path| change(&mut target, wanted, path))?;
            image.target = target;
            image.updated_at = Some(wanted.updated_at.unwrap_or_else(|| SystemTime::now().into()));
            check(&image)?;
            table::put(tx, ctx.namespace.as_str(), &image)?;
            Ok(image)
        })?;
        self.written.notify_one();
        let event = ImageUpdate { name: image.name.clone(), labels: image.labels.clone() };
        self.events.announce(&ctx.namespace, "/images/update", &event);
        Ok(image)
    }

    /// Makes the name stand for `image`, whether or not there was one, and says what it stood for. Labels that it had
    /// stay.
    ///
    /// # Errors
    /// `InvalidArgument` naming the field that is wrong.
    pub fn set(&self, ctx: &Context, image: Image) -> Result<Option<Image>> {
        self.write(ctx, image, true)
    }

    /// As [`ImageRecords::set`], with just the labels of `image`.
    ///
    /// # Errors
    /// As [`ImageRecords::set`].
    pub fn replace(&self, ctx: &Context, image: Image) -> Result<Option<Image>> {
        self.write(ctx, image, false)
    }

    fn write(&self, ctx: &Context, mut image: Image, keep_labels: bool) -> Result<Option<Image>> {
        labels::drop_empty(&mut image.labels);
        check(&image)?;
        let now = Some(SystemTime::now().into());
        let before = self.db.write(|tx| {
            let before = table::get(tx, ctx.namespace.as_str(), &image.name)?;
            image.created_at = before.as_ref().and_then(|before| before.created_at).or(now);
            image.updated_at = now;
            if let Some(before) = before.as_ref().filter(|_| keep_labels) {
                let mut labels = before.labels.clone();
                labels.append(&mut image.labels);
                image.labels = labels;
            }
            hold(tx, ctx, &image)?;
            table::put(tx, ctx.namespace.as_str(), &image)?;
            Ok(before)
        })?;
        self.written.notify_one();
        let (name, labels) = (image.name, image.labels);
        match &before {
            Some(_) => self.events.announce(&ctx.namespace, "/images/update", &ImageUpdate { name, labels }),
            None => self.events.announce(&ctx.namespace, "/images/create", &ImageCreate { name, labels }),
        }
        Ok(before)
    }

    /// Removes an image; with `target`, only while it stands for that.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn delete(&self, ctx: &Context, name: &str, target: Option<&Descriptor>) -> Result<()> {
        self.db.write(|tx| {
            let image = table::get(tx, ctx.namespace.as_str(), name)?.ok_or_else(|| missing(name))?;
            let digest = |descriptor: &Descriptor| descriptor.digest.clone();
            if let Some(target) = target
                && image.target.as_ref().map(digest) != Some(digest(target))
            {
                return Err(Error::not_found(format!("image {name:?} has another target than {}", target.digest)));
            }
            leases::release_for(tx, ctx, RESOURCE, name)?;
            table::delete(tx, ctx.namespace.as_str(), name)
        })?;
        self.events.announce(&ctx.namespace, "/images/delete", &ImageDelete { name: name.to_owned() });
        Ok(())
    }
}

fn missing(name: &str) -> Error {
    Error::not_found(format!("image {name:?}: not found"))
}

fn change(target: &mut Option<Descriptor>, wanted: &Image, path: &str) -> Result<()> {
    let annotations = |descriptor: &Option<Descriptor>| descriptor.as_ref().map(|it| it.annotations.clone());
    match (path, target.as_mut()) {
        ("target", _) => target.clone_from(&wanted.target),
        ("annotations", Some(target)) => target.annotations = annotations(&wanted.target).unwrap_or_default(),
        (path, Some(target)) if path.starts_with("annotations.") => {
            let name = path.trim_start_matches("annotations.");
            match annotations(&wanted.target).and_then(|mut all| all.remove(name)) {
                Some(value) => drop(target.annotations.insert(name.to_owned(), value)),
                None => drop(target.annotations.remove(name)),
            }
        }
        _ => return Err(Error::invalid(format!("cannot update field {path:?} of image {:?}", wanted.name))),
    }
    Ok(())
}

/// Puts an image that expires under the call's lease; any other stays without, even where the lease has ended.
fn hold(tx: &WriteTx, ctx: &Context, image: &Image) -> Result<()> {
    if image.labels.contains_key(labels::GC_EXPIRE) { leases::hold_for(tx, ctx, RESOURCE, &image.name) } else { Ok(()) }
}

fn check(image: &Image) -> Result<()> {
    let invalid = |problem: &str| Error::invalid(format!("image {:?}: {problem}", image.name));
    if image.name.is_empty() || image.name.len() > MAX_NAME || image.name.contains('\0') {
        return Err(Error::invalid("image name must have 1 to 4096 bytes without NUL"));
    }
    labels::check(&image.labels)?;
    let target = image.target.as_ref().ok_or_else(|| invalid("its target is missing"))?;
    rung_spec::digest::Digest::parse(&target.digest).map_err(|error| invalid(&format!("its target: {error}")))?;
    if target.size <= 0 {
        return Err(invalid("the size of its target must be greater than zero"));
    }
    if target.media_type.is_empty() {
        return Err(invalid("the media type of its target is missing"));
    }
    Ok(())
}

fn field(image: &Image, path: &[String]) -> Option<String> {
    let target = image.target.as_ref();
    match path {
        [name] if name == "name" => Some(image.name.clone()),
        [first, second] if first == "target" && second == "digest" => target.map(|it| it.digest.clone()),
        [first, second] if first == "target" && second == "mediatype" => target.map(|it| it.media_type.clone()),
        [name, rest @ ..] if name == "labels" => label(&image.labels, rest),
        [name, rest @ ..] if name == "annotations" => label(&target?.annotations, rest),
        _ => None,
    }
}
