//! Under which names an image is recorded, where a client says more than one name: as containerd's transfer service has
//! it.

use rung_spec::image::Descriptor;

use super::walk;
use crate::labels::{self, Labels};
use crate::records::images::Image;

/// On an entry of an archive's index: the image's full name.
pub const ANNOTATION_NAME: &str = "io.containerd.image.name";
/// On an entry of an archive's index: the tag, or the full name.
pub const ANNOTATION_REF: &str = "org.opencontainers.image.ref.name";

/// The names that an image gets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    /// Its name; empty for none of its own.
    pub name: String,
    /// Labels of every record.
    pub labels: Labels,
    /// Further names.
    pub more: Vec<MoreName>,
}

/// A further name, or a beginning of names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MoreName {
    /// The name, or what names begin with.
    pub name: String,
    /// It is a repository, to which a tag or digest is added.
    pub is_prefix: bool,
    /// A full name in an archive counts even if it begins otherwise.
    pub allow_overwrite: bool,
    /// The digest is added to it.
    pub add_digest: bool,
    /// No name by digest for what has another name.
    pub skip_named_digest: bool,
}

impl Names {
    /// Just that name.
    pub fn one(name: impl Into<String>, labels: Labels) -> Self {
        Self { name: name.into(), labels, more: Vec::new() }
    }

    /// The records of `target`.
    pub fn records(&self, target: &Descriptor) -> Vec<Image> {
        let mut records = Vec::new();
        if !self.name.is_empty() {
            records.push(record(&self.name, target, self.labels.clone()));
        }
        // A repository alone names nothing.
        for more in self.more.iter().filter(|more| !more.is_prefix || more.add_digest) {
            let name = if more.add_digest { by_digest(&more.name, target) } else { more.name.clone() };
            records.push(record(&name, target, self.further_labels()));
        }
        records
    }

    /// The records of an entry of an archive's index, which its annotations name. None for one that no name fits.
    pub fn records_of_entry(&self, entry: &Descriptor) -> Vec<Image> {
        let mut records = Vec::new();
        for more in self.more.iter().filter(|more| more.is_prefix) {
            let named = more.name_of(entry);
            let digest_too = more.add_digest && (named.is_none() || !more.skip_named_digest);
            records.extend(named.map(|name| record(&name, entry, self.further_labels())));
            if digest_too {
                records.push(record(&by_digest(&more.name, entry), entry, self.further_labels()));
            }
        }
        records
    }

    /// What has a main name beside it goes with that.
    fn further_labels(&self) -> Labels {
        let mut all = self.labels.clone();
        if !self.name.is_empty() {
            all.insert(format!("{}image", labels::GC_BACK_REF), self.name.clone());
            all.insert(labels::GC_EXPIRE.to_owned(), jiff::Timestamp::now().to_string());
        }
        all
    }
}

impl MoreName {
    fn name_of(&self, entry: &Descriptor) -> Option<String> {
        let annotation = |name: &str| entry.annotations.get(name).filter(|value| !value.is_empty());
        if let Some(full) = annotation(ANNOTATION_NAME) {
            // What is called a full name counts only as it is.
            return self.complete(full).filter(|name| name == full);
        }
        annotation(ANNOTATION_REF).and_then(|text| self.complete(text))
    }

    /// A full name where it may stand, or the repository with a tag.
    fn complete(&self, text: &str) -> Option<String> {
        if !text.contains(['/', ':', '@']) {
            // A tag of nothing names nothing.
            return (!self.name.is_empty()).then(|| format!("{}:{text}", self.name));
        }
        let rest = text.strip_prefix(&self.name);
        let begins = rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', ':', '@']));
        (self.allow_overwrite || begins).then(|| text.to_owned())
    }
}

fn by_digest(name: &str, target: &Descriptor) -> String {
    format!("{name}@{}", target.digest)
}

fn record(name: &str, target: &Descriptor, labels: Labels) -> Image {
    Image { name: name.to_owned(), labels, target: Some(walk::to_wire(target)), ..Image::default() }
}

#[cfg(test)]
mod tests {
    use rung_spec::digest::Digest;

    use super::*;

    fn entry(annotations: &[(&str, &str)]) -> Descriptor {
        let mut entry = Descriptor::new("m", Digest::of("x"), 1);
        entry.annotations = annotations.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        entry
    }

    fn prefix(name: &str) -> MoreName {
        MoreName { name: name.into(), is_prefix: true, ..MoreName::default() }
    }

    fn names(more: MoreName, entry: &Descriptor) -> Vec<String> {
        let names = Names { more: vec![more], ..Names::default() };
        names.records_of_entry(entry).into_iter().map(|record| record.name).collect()
    }

    #[test]
    fn entries_are_named_by_their_annotations() {
        let tagged = entry(&[(ANNOTATION_REF, "1.0")]);
        let full = entry(&[(ANNOTATION_NAME, "docker.io/a/b:1"), (ANNOTATION_REF, "1")]);
        let bare = entry(&[]);
        assert_eq!(names(prefix("x/y"), &tagged), ["x/y:1.0"]);
        assert_eq!(names(prefix("x/y"), &full), [""; 0]);
        assert_eq!(names(MoreName { allow_overwrite: true, ..prefix("x/y") }, &full), ["docker.io/a/b:1"]);
        assert_eq!(names(prefix("docker.io/a"), &full), ["docker.io/a/b:1"]);
        assert_eq!(names(prefix("docker.io/a/"), &full), [""; 0]);
        let digest = format!("x/y@{}", bare.digest);
        let with_digest = MoreName { add_digest: true, ..prefix("x/y") };
        assert_eq!(names(with_digest.clone(), &bare), std::slice::from_ref(&digest));
        assert_eq!(names(with_digest.clone(), &tagged), ["x/y:1.0".to_owned(), digest]);
        assert_eq!(names(MoreName { skip_named_digest: true, ..with_digest }, &tagged), ["x/y:1.0"]);
        assert_eq!(names(prefix("x/y"), &bare), [""; 0]);
    }

    #[test]
    fn further_names_go_with_the_first() {
        let digested = MoreName { add_digest: true, ..prefix("x/y") };
        let plain = MoreName { name: "other".into(), ..MoreName::default() };
        let names = Names { name: "main".into(), more: vec![digested, plain, prefix("z")], ..Names::default() };
        let target = entry(&[]);
        let records = names.records(&target);
        let found: Vec<&str> = records.iter().map(|record| record.name.as_str()).collect();
        assert_eq!(found, ["main", &format!("x/y@{}", target.digest), "other"]);
        assert!(records[0].labels.is_empty());
        assert_eq!(records[1].labels["containerd.io/gc.bref.image"], "main");
        assert!(records[2].labels.contains_key(labels::GC_EXPIRE));
    }
}
