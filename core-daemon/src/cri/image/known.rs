//! The images there are, by id: what records of names say, with what the content store says of each target.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use gantry_proto::containerd::services::images::v1::Image as Record;
use gantry_proto::runtime::v1;
use rung_spec::reference::Reference;

use crate::context::Context;
use crate::error::{Kind, Result};
use crate::filter::Filter;
use crate::image::{Images, Resolved, walk};

/// The label of records that this interface made, as containerd has it.
pub(super) const MANAGED: (&str, &str) = ("io.cri-containerd.image", "managed");
/// The label of images that a kubelet must not collect.
const PINNED: (&str, &str) = ("io.cri-containerd.pinned", "pinned");

/// What does not change about the image that a digest stands for.
struct Facts {
    id: String,
    size: u64,
    uid: Option<i64>,
    username: String,
    annotations: BTreeMap<String, String>,
}

/// Remembers facts, because finding them takes several documents from the disk.
pub(in crate::cri) struct Known {
    facts: Mutex<HashMap<String, Arc<Facts>>>,
    /// What all images were called when so many changes had been made.
    names: Mutex<Option<(u64, Arc<Names>)>>,
    /// Names of images that stay.
    pinned: BTreeSet<String>,
}

/// An image with all of its names.
pub(super) struct Image {
    pub(super) wire: v1::Image,
    /// The names of its records.
    pub(super) records: Vec<String>,
}

/// What images are called: tags and digests, by the id.
#[derive(Debug, Default)]
pub(in crate::cri) struct Names(BTreeMap<String, (Vec<String>, Vec<String>)>);

impl Names {
    /// The first tag of an image.
    pub(in crate::cri) fn tag(&self, id: &str) -> Option<&String> {
        self.0.get(id)?.0.first()
    }

    /// Its first name with a digest.
    pub(in crate::cri) fn digest(&self, id: &str) -> Option<&String> {
        self.0.get(id)?.1.first()
    }
}

impl FromIterator<Image> for Names {
    fn from_iter<T: IntoIterator<Item = Image>>(images: T) -> Self {
        let names = |image: Image| (image.wire.id, (image.wire.repo_tags, image.wire.repo_digests));
        Self(images.into_iter().map(names).collect())
    }
}

impl Known {
    /// Knows nothing yet but that the images of these names stay.
    pub(in crate::cri) fn new(pinned: &[String]) -> Self {
        let whole = |name: &String| Reference::parse(name).map_or_else(|_| name.clone(), |parsed| parsed.to_string());
        Self { facts: Mutex::default(), names: Mutex::default(), pinned: pinned.iter().map(whole).collect() }
    }

    /// What all images are called, where nothing has changed since that was read.
    pub(super) fn names(&self, images: &Images) -> Option<Arc<Names>> {
        let kept = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        kept.as_ref().filter(|(changes, _)| *changes == images.records.changes()).map(|(_, names)| names.clone())
    }

    /// Reads what all images are called.
    pub(super) fn read_names(&self, images: &Images, context: &Context) -> Result<Arc<Names>> {
        let changes = images.records.changes();
        let names: Arc<Names> = Arc::new(self.all(images, context)?.into_values().collect());
        *self.names.lock().unwrap_or_else(PoisonError::into_inner) = Some((changes, names.clone()));
        Ok(names)
    }

    /// All images, by id. One whose content is not all here is none yet, or none any more.
    pub(super) fn all(&self, images: &Images, context: &Context) -> Result<BTreeMap<String, Image>> {
        let records = images.records.list(context, &Filter::everything())?;
        let mut all = BTreeMap::new();
        let mut current = HashMap::new();
        for record in records {
            let Some(facts) = self.facts_of(images, context, &record)? else { continue };
            if let Some(target) = &record.target {
                current.insert(target.digest.clone(), facts.clone());
            }
            let image = all.entry(facts.id.clone()).or_insert_with(|| Image::new(&facts));
            image.wire.pinned |= self.pinned.contains(&record.name);
            image.add(record);
        }
        // What no record names any more is forgotten.
        *self.facts.lock().unwrap_or_else(PoisonError::into_inner) = current;
        Ok(all)
    }

    /// The id of the image that a record stands for.
    pub(super) fn id_of(&self, images: &Images, context: &Context, record: &Record) -> Result<Option<String>> {
        Ok(self.facts_of(images, context, record)?.map(|facts| facts.id.clone()))
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
        Self {
            id: image.config_digest.to_string(),
            size: image.size,
            uid,
            username,
            annotations: image.manifest.annotations.clone().into_iter().collect(),
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
