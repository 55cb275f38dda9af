//! Artifacts that say that they are about an image: signatures, attestations, lists of parts.

use rung_spec::digest::Digest;
use rung_spec::image::{Descriptor, Document, Index, Manifest};
use rung_spec::reference::Reference;

use super::{Access, Images};
use crate::error::{Doing, Result};

/// What a document says it is about, with the entry that it gets among the referrers of that.
pub(super) fn subject_of(descriptor: &Descriptor, bytes: &[u8]) -> Option<(Digest, Descriptor)> {
    let mut entry = Descriptor::new(&descriptor.media_type, descriptor.digest.clone(), descriptor.size);
    let subject = match Document::parse(&descriptor.media_type, bytes).ok()? {
        Document::Manifest(manifest) => {
            let Manifest { artifact_type, config, subject, annotations, .. } = *manifest;
            entry.artifact_type = artifact_type.or(Some(config.media_type));
            entry.annotations = annotations;
            subject
        }
        Document::Index(index) => {
            let Index { artifact_type, subject, annotations, .. } = *index;
            (entry.artifact_type, entry.annotations) = (artifact_type, annotations);
            subject
        }
    };
    Some((subject?.digest, entry))
}

impl Images {
    /// What a registry has about the image that `reference` names there, of one kind or of any.
    ///
    /// # Errors
    /// What the registry says other than that there is nothing.
    pub async fn referrers(
        &self,
        reference: &Reference,
        artifact_type: Option<&str>,
        access: &Access,
    ) -> Result<(Descriptor, Vec<Descriptor>)> {
        let repository = self.registry.repository(reference, access)?;
        let resolved = repository.resolve(reference.object()).await.doing(|| format!("resolve {reference}"))?;
        let found = repository.referrers(&resolved.descriptor.digest, artifact_type).await?;
        Ok((resolved.descriptor, found))
    }

    /// Finds out whether an account is good at a registry.
    ///
    /// # Errors
    /// `Unauthenticated` where it is not; what connecting fails with.
    pub async fn check_account(&self, host: &str, access: &Access) -> Result<()> {
        self.registry.check_account(host, access).await.doing(|| format!("log in to {host}"))
    }

    /// Which hosts stand for an image's registry, and what each says.
    ///
    /// # Errors
    /// When what is configured of the registry cannot be read.
    pub async fn explain(&self, reference: &Reference, access: &Access) -> Result<Vec<crate::registry::Explained>> {
        Ok(self.registry.repository(reference, access)?.explain(reference.object()).await)
    }
}

#[cfg(test)]
mod tests {
    use rung_spec::image::media_types;

    use super::*;

    #[test]
    fn an_artifact_names_its_subject() {
        let subject = Digest::of("image");
        let text = format!(
            r#"{{"schemaVersion":2,"artifactType":"a/b","config":{{"mediaType":"c","digest":"{subject}","size":1}},
            "layers":[],"subject":{{"mediaType":"m","digest":"{subject}","size":5}},"annotations":{{"k":"v"}}}}"#
        );
        let descriptor = Descriptor::new(media_types::OCI_MANIFEST, Digest::of(&text), text.len() as u64);
        let (found, entry) = subject_of(&descriptor, text.as_bytes()).expect("subject");
        assert_eq!((found, entry.artifact_type.as_deref()), (subject.clone(), Some("a/b")));
        assert_eq!(entry.annotations["k"], "v");
        let index = format!(
            r#"{{"schemaVersion":2,"artifactType":"a/c","manifests":[],
            "subject":{{"mediaType":"m","digest":"{subject}","size":5}},"annotations":{{"k":"w"}}}}"#
        );
        let descriptor = Descriptor::new(media_types::OCI_INDEX, Digest::of(&index), index.len() as u64);
        let (found, entry) = subject_of(&descriptor, index.as_bytes()).expect("subject");
        assert_eq!((found, entry.artifact_type.as_deref()), (subject, Some("a/c")));
        assert_eq!(entry.annotations["k"], "w");
        let bare = br#"{"schemaVersion":2,"manifests":[]}"#;
        assert!(subject_of(&Descriptor::new(media_types::OCI_INDEX, Digest::of(bare), 34), bare).is_none());
    }
}
