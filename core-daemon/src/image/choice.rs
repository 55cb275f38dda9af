//! Which images of an index are wanted.

use rung_spec::image::{Descriptor, Index, Kind as MediaKind};
use rung_spec::platform::Platform;

/// What is wanted of an index. The default is the one image that this machine runs best.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Choice {
    /// The best image for each of these platforms; for this machine where none is named.
    pub platforms: Vec<Platform>,
    /// What images for this machine may need of it, where no platform is named (`os.features`).
    pub features: Vec<String>,
    /// Every entry instead, and so attestations too.
    pub all: bool,
    /// Of entries that are not wanted the documents nevertheless, so that the index is complete.
    pub documents: bool,
    /// Of entries that are for no platform, such as artifacts, the documents.
    pub unplaced: bool,
    /// At most so many images; 0 for no limit.
    pub limit: usize,
}

/// How much of an entry is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// All of it.
    Whole,
    /// Manifest and configuration.
    Documents,
}

impl Choice {
    /// The best image for one platform, or for this machine.
    pub fn platform(platform: Option<Platform>) -> Self {
        Self { platforms: platform.into_iter().collect(), ..Self::default() }
    }

    /// Everything.
    pub fn everything() -> Self {
        Self { all: true, ..Self::default() }
    }

    /// The platforms, of which there is at least one.
    pub fn platforms(&self) -> Vec<Platform> {
        let host = || Platform { os_features: self.features.clone(), ..Platform::host() };
        if self.platforms.is_empty() { vec![host()] } else { self.platforms.clone() }
    }

    /// The wanted entries in the index's order. Without any that is wanted whole, none.
    pub fn of<'i>(&self, index: &'i Index) -> Vec<(&'i Descriptor, Want)> {
        let is_document = |entry: &&Descriptor| matches!(entry.kind(), MediaKind::Manifest | MediaKind::Index);
        let limit = if self.limit == 0 { usize::MAX } else { self.limit };
        let mut whole: Vec<&Descriptor> = if self.all {
            index.manifests.iter().filter(is_document).collect()
        } else {
            self.platforms().iter().filter_map(|platform| index.select(platform).into_iter().next()).collect()
        };
        whole.truncate(limit);
        if whole.is_empty() {
            return Vec::new();
        }
        let is_whole = |entry: &Descriptor| whole.iter().any(|wanted| std::ptr::eq(*wanted, entry));
        let want = |entry: &'i Descriptor| match is_whole(entry) {
            true => Some((entry, Want::Whole)),
            false if self.documents || (self.unplaced && entry.platform.is_none()) => Some((entry, Want::Documents)),
            false => None,
        };
        index.manifests.iter().filter(is_document).filter_map(want).collect()
    }

    /// Whether an image for `offered` is one of those wanted.
    pub fn takes(&self, offered: &Platform) -> bool {
        self.all || self.platforms().iter().any(|wanted| wanted.rank(offered).is_some())
    }
}

#[cfg(test)]
mod tests {
    use rung_spec::digest::Digest;
    use rung_spec::image::media_types;

    use super::*;

    fn index() -> Index {
        let entry = |os: &str, architecture: &str| {
            let mut entry = Descriptor::new(media_types::OCI_MANIFEST, Digest::of(format!("{os}{architecture}")), 1);
            entry.platform = Some(Platform { os: os.into(), architecture: architecture.into(), ..Default::default() });
            entry
        };
        let mut manifests = vec![entry("linux", "s390x"), entry("linux", "arm64"), entry("unknown", "unknown")];
        manifests.push(Descriptor::new("application/octet-stream", Digest::of("no image"), 1));
        Index::of(manifests)
    }

    fn chosen(choice: &Choice) -> Vec<(String, Want)> {
        let index = index();
        let name = |entry: &Descriptor| entry.platform.as_ref().map(Platform::to_string).unwrap_or_default();
        choice.of(&index).into_iter().map(|(entry, want)| (name(entry), want)).collect()
    }

    #[test]
    fn an_image_that_needs_a_feature_of_the_machine_is_for_those_that_have_it() {
        let entry = |features: &[&str]| {
            let mut entry = Descriptor::new(media_types::OCI_MANIFEST, Digest::of(format!("{features:?}")), 1);
            let os_features = features.iter().map(|it| (*it).to_owned()).collect();
            entry.platform = Some(Platform { os_features, ..Platform::host() });
            entry
        };
        let index = Index::of(vec![entry(&["erofs"]), entry(&["other"]), entry(&[])]);
        let chosen = |choice: &Choice| -> Vec<usize> {
            let place = |it: &Descriptor| index.manifests.iter().position(|entry| entry.digest == it.digest);
            choice.of(&index).into_iter().filter_map(|(entry, _)| place(entry)).collect()
        };
        let able = Choice { features: vec!["erofs".into()], ..Choice::default() };
        assert_eq!((chosen(&Choice::default()), chosen(&able)), (vec![2], vec![0]));
        // Who names a platform says what it has.
        let named = Choice { platforms: vec![Platform::host()], ..able.clone() };
        assert_eq!(chosen(&named), [2]);
        let plain = Index::of(vec![entry(&[])]);
        assert_eq!(able.of(&plain).len(), 1);
    }

    #[test]
    fn platforms_documents_and_limits() {
        let both = ["linux/arm64", "linux/s390x"].map(|text| Platform::parse(text).expect("platform")).to_vec();
        let choice = Choice { platforms: both, ..Choice::default() };
        let (arm, s390x) = (("linux/arm64".to_owned(), Want::Whole), ("linux/s390x".to_owned(), Want::Whole));
        assert_eq!(chosen(&choice), [s390x.clone(), arm.clone()]);
        let limited = Choice { limit: 1, documents: true, ..choice.clone() };
        let rest = |name: &str| (name.to_owned(), Want::Documents);
        assert_eq!(chosen(&limited), [rest("linux/s390x"), arm, rest("unknown/unknown")]);
        assert_eq!(chosen(&Choice::everything()).len(), 3);
        let mut with_artifact = index();
        with_artifact.manifests.push(Descriptor::new(media_types::OCI_MANIFEST, Digest::of("artifact"), 1));
        let unplaced = Choice { limit: 0, unplaced: true, ..choice.clone() };
        let wants: Vec<_> = unplaced.of(&with_artifact).into_iter().map(|(_, want)| want).collect();
        assert_eq!(wants, [Want::Whole, Want::Whole, Want::Documents]);
        let none = Choice { platforms: vec![Platform::new("plan9", "mips", None)], documents: true, ..choice };
        assert!(chosen(&none).is_empty());
    }
}
