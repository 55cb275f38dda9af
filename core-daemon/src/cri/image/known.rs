//! The images there are, by id: what records of names say, with what the content store says of each target.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gantry_proto::containerd::services::images::v1::Image as Record;
use gantry_proto::runtime::v1;
use rung_spec::digest::Digest;
use rung_spec::reference::Reference;

use crate::context::Context;
use crate::error::{Error, Kind, Result};
use crate::filter::Filter;
use crate::image::{Images, Resolved, walk};
use crate::labels::Labels;

/// The label of records that this interface knows of, as containerd has it.
const MANAGED: (&str, &str) = ("io.cri-containerd.image", "managed");
/// The label of images that a kubelet must not collect.
const PINNED: (&str, &str) = ("io.cri-containerd.pinned", "pinned");

/// Fewest characters of an id that stand for an image.
const MIN_PREFIX: usize = 4;

/// What does not change about the image that a digest stands for.
struct Facts {
    id: String,
    size: u64,
    uid: Option<i64>,
    username: String,
    annotations: BTreeMap<String, String>,
    /// Of an artifact, which nothing is unpacked of: its blobs and their sizes.
    blobs: Vec<(Digest, u64)>,
}

/// Remembers facts, because finding them takes several documents from the disk, and all images, because kubelets ask for
/// them all the time and they change seldom.
pub(in crate::cri) struct Known {
    facts: Mutex<HashMap<String, Arc<Facts>>>,
    /// All images, as they were when so many changes had been made.
    catalog: Mutex<Option<(u64, Arc<Catalog>)>>,
    /// Names of images that stay.
    pinned: Mutex<BTreeSet<String>>,
}

/// An image with all of its names.
pub(super) struct Image {
    pub(super) wire: v1::Image,
    /// The names of its records.
    pub(super) records: Vec<String>,
}

/// All images. One whose content is not all here is none yet, or none any more.
#[derive(Default)]
pub(in crate::cri) struct Catalog {
    by_id: BTreeMap<String, Image>,
    /// Ids by the names of records.
    ids: HashMap<String, String>,
    /// The blobs of artifacts, which several may share.
    blobs: HashMap<Digest, u64>,
}

impl Catalog {
    /// The first tag of an image.
    pub(in crate::cri) fn tag(&self, id: &str) -> Option<&String> {
        self.by_id.get(id)?.wire.repo_tags.first()
    }

    /// Its first name with a digest.
    pub(in crate::cri) fn digest(&self, id: &str) -> Option<&String> {
        self.by_id.get(id)?.wire.repo_digests.first()
    }

    /// What artifacts take, whose blobs are their files: bytes, and how many blobs.
    pub(in crate::cri) fn artifacts(&self) -> (u64, u64) {
        (self.blobs.values().fold(0, |sum: u64, size| sum.saturating_add(*size)), self.blobs.len() as u64)
    }

    /// All images, by id.
    pub(super) fn images(&self) -> impl Iterator<Item = &Image> {
        self.by_id.values()
    }

    /// Whether a record is called that.
    pub(super) fn has(&self, text: &str) -> bool {
        self.ids.contains_key(text)
    }

    /// The image that `text` names: an id or the beginning of one, or a name, which stands for one of `names`.
    ///
    /// # Errors
    /// `InvalidArgument` where the beginning fits several ids.
    pub(super) fn find(&self, text: &str, names: &[Reference]) -> Result<Option<&Image>> {
        let whole = || names.iter().find_map(|name| self.ids.get(&name.to_string()));
        if let Some(id) = self.ids.get(text).or_else(whole) {
            return Ok(self.by_id.get(id));
        }
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        if hex.len() < MIN_PREFIX || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(None);
        }
        let fits = |(id, _): &(&String, &Image)| id.strip_prefix("sha256:").is_some_and(|id| id.starts_with(hex));
        let mut found = self.by_id.iter().filter(fits);
        match (found.next(), found.next()) {
            (Some(_), Some(_)) => Err(Error::invalid(format!("image {text:?}: fits several ids; write more of it"))),
            (one, _) => Ok(one.map(|(_, image)| image)),
        }
    }
}

impl Known {
    /// Knows nothing yet but that the images of these names stay.
    pub(in crate::cri) fn new(pinned: &[String]) -> Self {
        let known = Self { facts: Mutex::default(), catalog: Mutex::default(), pinned: Mutex::default() };
        known.pin(pinned);
        known
    }

    /// From now on the images of these names stay. Whoever has another's record with the label of such images keeps it.
    pub(in crate::cri) fn pin(&self, names: &[String]) {
        let whole = |name: &String| Reference::parse(name).map_or_else(|_| name.clone(), |parsed| parsed.to_string());
        let mut pinned = self.pinned();
        *pinned = names.iter().map(whole).collect();
        // What was read of images says which of them stay.
        *self.catalog.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn pinned(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The labels of what a name stands for that this interface knows of.
    pub(super) fn labels_for(&self, name: &str) -> Labels {
        let pinned = self.pinned().contains(name).then_some(PINNED);
        [MANAGED].into_iter().chain(pinned).map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    /// The id of a record's image; none where it is no image that is all here.
    pub(super) fn id_of(&self, images: &Images, context: &Context, record: &Record) -> Result<Option<String>> {
        Ok(self.facts_of(images, context, record)?.map(|facts| facts.id.clone()))
    }

    /// All images, where nothing has changed since they were read.
    pub(super) fn current(&self, images: &Images) -> Option<Arc<Catalog>> {
        let kept = self.catalog.lock().unwrap_or_else(PoisonError::into_inner);
        kept.as_ref().filter(|(changes, _)| *changes == images.records.changes()).map(|(_, catalog)| catalog.clone())
    }

    /// Reads all images.
    pub(super) fn read(&self, images: &Images, context: &Context) -> Result<Arc<Catalog>> {
        // Read first: what changes meanwhile is read again the next time.
        let changes = images.records.changes();
        let pinned = self.pinned().clone();
        let mut catalog = Catalog::default();
        let mut current = HashMap::new();
        for record in images.records.list(context, &Filter::everything())? {
            let Some(facts) = self.facts_of(images, context, &record)? else { continue };
            if let Some(target) = &record.target {
                current.insert(target.digest.clone(), facts.clone());
            }
            catalog.ids.insert(record.name.clone(), facts.id.clone());
            catalog.blobs.extend(facts.blobs.iter().cloned());
            let image = catalog.by_id.entry(facts.id.clone()).or_insert_with(|| Image::new(&facts));
            image.wire.pinned |= pinned.contains(&record.name);
            image.add(record);
        }
        // What no record names any more is forgotten.
        *self.facts.lock().unwrap_or_else(PoisonError::into_inner) = current;
        let catalog = Arc::new(catalog);
        // Other names may have been given meanwhile: then it is read again.
        let now = self.pinned();
        if *now == pinned {
            *self.catalog.lock().unwrap_or_else(PoisonError::into_inner) = Some((changes, catalog.clone()));
        }
        Ok(catalog)
    }

    fn facts_of(&self, images: &Images, context: &Context, record: &Record) -> Result<Option<Arc<Facts>>> {
        let Some(target) = &record.target else { return Ok(None) };
        let known = self.facts.lock().unwrap_or_else(PoisonError::into_inner).get(&target.digest).cloned();
        if known.is_some() {
            return Ok(known);
        }
        let resolved = match images.resolve_target(context, &record.name, walk::descriptor(target)?, None) {
            Ok(resolved) => resolved,
            // Another client's record of something that is no image for this machine, or one whose content is damaged.
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::InvalidArgument | Kind::DataLoss) => {
                tracing::debug!(image = record.name, %error, "is not listed");
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let facts = Arc::new(Facts::of(&resolved));
        let mut all = self.facts.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(target.digest.clone(), facts.clone());
        Ok(Some(facts))
    }
}

impl Facts {
    fn of(image: &Resolved) -> Self {
        let (uid, username) = user(&image.config.config.user);
        let is_artifact = image.manifest.is_artifact();
        let blobs = is_artifact.then(|| image.manifest.layers.iter().map(|layer| (layer.digest.clone(), layer.size)));
        Self {
            id: image.config_digest.to_string(),
            size: image.size,
            // Nobody runs an artifact.
            uid: uid.filter(|_| !is_artifact),
            username,
            annotations: image.manifest.annotations.clone().into_iter().collect(),
            blobs: blobs.into_iter().flatten().collect(),
        }
    }
}

/// The user of an image's configuration: a number, or a name. The group is not asked for.
fn user(text: &str) -> (Option<i64>, String) {
    let user = text.split(':').next().unwrap_or_default();
    match user.parse::<u32>() {
        Ok(uid) => (Some(uid.into()), String::new()),
        Err(_) if user.is_empty() => (Some(0), String::new()),
        Err(_) => (None, user.to_owned()),
    }
}

impl Image {
    fn new(facts: &Facts) -> Self {
        let wire = v1::Image {
            id: facts.id.clone(),
            size: facts.size,
            uid: facts.uid.map(|value| v1::Int64Value { value }),
            username: facts.username.clone(),
            spec: Some(v1::ImageSpec {
                image: facts.id.clone(),
                annotations: facts.annotations.clone(),
                ..v1::ImageSpec::default()
            }),
            ..v1::Image::default()
        };
        Self { wire, records: Vec::new() }
    }

    fn add(&mut self, record: Record) {
        self.wire.pinned |= record.labels.get(PINNED.0).is_some_and(|value| value == PINNED.1);
        // The record of the id would read as a name and a tag.
        if record.name != self.wire.id
            && let Ok(reference) = Reference::parse(&record.name)
        {
            match (&reference.tag, &reference.digest, &record.target) {
                (_, Some(_), _) => self.add_digest(reference.to_string()),
                (Some(_), None, target) => {
                    let digest = target.as_ref().map(|target| target.digest.as_str()).unwrap_or_default();
                    self.add_digest(format!("{}@{digest}", reference.name()));
                    self.wire.repo_tags.push(reference.to_string());
                }
                (None, None, _) => {}
            }
        }
        self.records.push(record.name);
    }

    fn add_digest(&mut self, digest: String) {
        if !self.wire.repo_digests.contains(&digest) {
            self.wire.repo_digests.push(digest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_a_number_or_a_name_and_never_neither() {
        assert_eq!(user(""), (Some(0), String::new()));
        assert_eq!(user("1000"), (Some(1000), String::new()));
        assert_eq!(user("1000:50"), (Some(1000), String::new()));
        assert_eq!(user("www:www"), (None, "www".to_owned()));
        assert_eq!(user("-1"), (None, "-1".to_owned()));
    }
}
