//! Everything small that a name leads to: indexes, manifests and configurations.

use std::collections::HashSet;

use bytes::Bytes;
use rung_spec::digest::Digest;
use rung_spec::image::{Descriptor, Document, Index, Manifest};

use super::choice::{Choice, Want};
use crate::error::{Doing, Error, Kind, Result};
use crate::labels::{self, Labels};

/// Deepest nesting of indexes, and most documents of one name.
const MAX_DEPTH: usize = 4;
const MAX_DOCUMENTS: usize = 1024;
/// Most bytes of all documents of one name: they are held until everything is here.
const MAX_TOTAL: u64 = 64 << 20;

/// Where documents come from.
#[tonic::async_trait]
pub(super) trait Documents: Sync {
    /// A document's bytes, which are what its digest says.
    async fn document(&self, descriptor: &Descriptor) -> Result<Bytes>;

    /// A document leads to these.
    fn children(&self, _parent: &Descriptor, _children: &[Descriptor]) {}
}

/// A document and what it leads to.
pub(super) struct Doc {
    pub(super) descriptor: Descriptor,
    pub(super) bytes: Bytes,
    pub(super) labels: Labels,
}

/// A manifest among them.
pub(super) struct Found {
    pub(super) descriptor: Descriptor,
    pub(super) manifest: Manifest,
    pub(super) want: Want,
}

/// The documents, each after what it leads to, and the images among them.
#[derive(Default)]
pub(super) struct Tree {
    pub(super) docs: Vec<Doc>,
    pub(super) images: Vec<Found>,
    seen: HashSet<Digest>,
    /// Bytes of all documents so far.
    held: u64,
}

impl Tree {
    /// Reads `target`, and from there what `choice` takes.
    ///
    /// # Errors
    /// `NotFound` where an index has nothing that is wanted; what reading fails with; for what is nested too deep.
    pub(super) async fn read(
        from: &dyn Documents,
        target: &Descriptor,
        bytes: Option<Bytes>,
        choice: &Choice,
    ) -> Result<Self> {
        let mut tree = Self::default();
        tree.add(from, target, bytes, choice, (Want::Whole, MAX_DEPTH)).await?;
        Ok(tree)
    }

    /// Reads `target`, and all documents that are there. None is wanted whole.
    ///
    /// # Errors
    /// `NotFound` for `target`; what reading fails with.
    pub(super) async fn read_present(from: &dyn Documents, target: &Descriptor) -> Result<Self> {
        let mut tree = Self::default();
        tree.add(from, target, None, &Choice::everything(), (Want::Documents, MAX_DEPTH)).await?;
        Ok(tree)
    }

    async fn add(
        &mut self,
        from: &dyn Documents,
        descriptor: &Descriptor,
        bytes: Option<Bytes>,
        choice: &Choice,
        (want, depth): (Want, usize),
    ) -> Result<()> {
        if depth == 0 || self.seen.len() >= MAX_DOCUMENTS {
            return Err(Error::invalid("its index is nested too deep, contains itself, or is too large"));
        }
        // The same image may stand in an index twice.
        if !self.seen.insert(descriptor.digest.clone()) {
            return Ok(());
        }
        let bytes = match bytes {
            Some(bytes) => bytes,
            None => {
                check_total(self.held, descriptor)?;
                from.document(descriptor).await?
            }
        };
        self.held += bytes.len() as u64;
        let parsed =
            Document::parse(&descriptor.media_type, &bytes).map_err(|error| Error::invalid(error.to_string()))?;
        let mut doc = Doc { descriptor: descriptor.clone(), bytes, labels: Labels::new() };
        match parsed {
            Document::Manifest(manifest) => {
                doc.labels = manifest_labels(&manifest);
                from.children(descriptor, &manifest_children(&manifest));
                self.docs.push(doc);
                self.images.push(Found { descriptor: descriptor.clone(), manifest: *manifest, want });
                Ok(())
            }
            Document::Index(index) => {
                doc.labels = index_labels(&index.manifests);
                self.entries(from, descriptor, &index, choice, (want, depth)).await?;
                self.docs.push(doc);
                Ok(())
            }
        }
    }

    async fn entries(
        &mut self,
        from: &dyn Documents,
        descriptor: &Descriptor,
        index: &Index,
        choice: &Choice,
        (want, depth): (Want, usize),
    ) -> Result<()> {
        let chosen = match want {
            Want::Whole => choice.of(index),
            Want::Documents => Choice::everything().of(index),
        };
        if chosen.is_empty() && want == Want::Whole {
            return Err(none_fits(index, choice));
        }
        from.children(descriptor, &chosen.iter().map(|(entry, _)| (*entry).clone()).collect::<Vec<_>>());
        for (entry, wanted) in chosen {
            let wanted = if want == Want::Documents { want } else { wanted };
            let added = Box::pin(self.add(from, entry, None, choice, (wanted, depth - 1))).await;
            match added {
                // What is not wanted itself may be missing: somebody removed it, or never pushed it.
                Err(error) if wanted == Want::Documents && error.kind() == Kind::NotFound => {
                    tracing::debug!(digest = %entry.digest, %error, "an entry of an index is not there");
                }
                other => other.doing(|| format!("manifest {}", entry.digest))?,
            }
        }
        Ok(())
    }
}

/// Checks that there is room for one more document besides those that are held.
pub(super) fn check_total(held: u64, next: &Descriptor) -> Result<()> {
    if held.saturating_add(next.size) > MAX_TOTAL {
        return Err(Error::invalid(format!("its documents have more than {MAX_TOTAL} bytes in all")));
    }
    Ok(())
}

fn none_fits(index: &Index, choice: &Choice) -> Error {
    if choice.all {
        return Error::not_found("its index has no images");
    }
    let wanted: Vec<String> = choice.platforms().iter().map(ToString::to_string).collect();
    let there = match index.platforms().join(", ") {
        none if none.is_empty() => "its index has no images".to_owned(),
        there => format!("there are: {there}"),
    };
    Error::not_found(format!("has no image for {}; {there}", wanted.join(", ")))
}

/// References to all entries, those that are not here among them: they may come later, by another choice.
pub(super) fn index_labels(entries: &[Descriptor]) -> Labels {
    let label = |(number, entry): (usize, &Descriptor)| {
        (format!("{}.m.{number}", labels::GC_REF_CONTENT), entry.digest.to_string())
    };
    entries.iter().enumerate().map(label).collect()
}

/// References to what a manifest leads to, as labels of it.
pub fn manifest_labels(manifest: &Manifest) -> Labels {
    let label = |name: String, digest: &Digest| (format!("{}.{name}", labels::GC_REF_CONTENT), digest.to_string());
    let layers = manifest.layers.iter().enumerate().map(|(number, layer)| label(format!("l.{number}"), &layer.digest));
    layers.chain([label("config".to_owned(), &manifest.config.digest)]).collect()
}

/// What a manifest leads to.
pub(super) fn manifest_children(manifest: &Manifest) -> Vec<Descriptor> {
    std::iter::once(&manifest.config).chain(&manifest.layers).cloned().collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use rung_spec::image::media_types;

    use super::*;

    struct Stored(HashMap<Digest, Bytes>);

    #[tonic::async_trait]
    impl Documents for Stored {
        async fn document(&self, descriptor: &Descriptor) -> Result<Bytes> {
            Ok(self.0[&descriptor.digest].clone())
        }
    }

    #[tokio::test]
    async fn a_document_comes_after_all_that_it_leads_to() {
        let mut stored = Stored(HashMap::new());
        let mut put = |media_type: &str, bytes: Vec<u8>| {
            let descriptor = Descriptor::new(media_type, Digest::of(&bytes), bytes.len() as u64);
            stored.0.insert(descriptor.digest.clone(), bytes.into());
            descriptor
        };
        let index = |manifests: Vec<Descriptor>| serde_json::to_vec(&Index::of(manifests)).expect("index");
        let config = format!(r#"{{"mediaType":"c","digest":"{}","size":1}}"#, Digest::of("c"));
        let manifest = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[]}}"#);
        let manifest = put(media_types::OCI_MANIFEST, manifest.into_bytes());
        // The inner index leads to an image that the outer one has led to before.
        let inner = put(media_types::OCI_INDEX, index(vec![manifest.clone()]));
        let outer = put(media_types::OCI_INDEX, index(vec![manifest.clone(), inner.clone()]));
        let tree = Tree::read(&stored, &outer, None, &Choice::everything()).await.expect("read");
        let order: Vec<_> = tree.docs.into_iter().map(|doc| doc.descriptor.digest).collect();
        assert_eq!(order, [manifest.digest, inner.digest, outer.digest]);
    }
}
