//! Filters of system calls that come as OCI artifacts, which annotations name as CRI-O has them: of the pod for one of its
//! containers or for all, or of the container's image.
//!
//! Whoever may make a pod may name an artifact that way, and whoever builds an image: so a handler has to allow it, a filter
//! that the pod asks for by its proper field is never replaced, and an image replaces none that is configured for all.

use std::collections::BTreeMap;

use gantry_proto::gantry::cri::v1::SandboxRecord;
use gantry_proto::runtime::v1;

use crate::blocking::blocking;
use crate::config::{self, Annotation, SECCOMP_PROFILE as NAMES};
use crate::cri::spec::{self, Room};
use crate::cri::{Cri, granted};
use crate::error::{Doing as _, Error, Kind, Result};
use crate::image::Resolved;

/// What follows a name where a pod means all of its containers.
const ALL: &str = "POD";
/// Largest profile that is read, in bytes.
const MAX_PROFILE: u64 = 1 << 20;

type Annotations = BTreeMap<String, String>;

impl Cri {
    /// The profile that annotations name for a container, if they name one and it counts.
    pub(super) async fn annotated_profile(
        &self,
        record: &SandboxRecord,
        config: &v1::ContainerConfig,
        image: &Resolved,
    ) -> Result<Option<String>> {
        let settings = self.config();
        let none = Annotations::new();
        let of_pod = record.config.as_ref().map_or(&none, |pod| &pod.annotations);
        if !allows(&settings, &record.runtime_handler, of_pod)? {
            return Ok(None);
        }
        let context = config.linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default();
        let of_image = Annotations::from_iter(image.manifest.annotations.clone());
        let name = config.metadata.as_ref().map_or("", |metadata| metadata.name.as_str());
        let named = match spec::room_for_profile(&context, &settings)? {
            Room::None => None,
            Room::ForPods => by_pod(of_pod, name),
            Room::ForImages => by_pod(of_pod, name).or_else(|| by_image(&of_image, name)),
        };
        let Some((key, reference)) = named else { return Ok(None) };
        let profile = self.profile_of_artifact(reference, &record.runtime_handler, record.config.as_ref()).await;
        profile.map(Some).doing(|| format!("annotation {key}"))
    }

    /// The profile that annotations name for all of a pod, and so for its own process.
    pub(in crate::cri) async fn annotated_profile_of_pod(
        &self,
        handler: &str,
        pod: &v1::PodSandboxConfig,
    ) -> Result<Option<String>> {
        let Some((key, reference)) = self.named_by_pod(handler, pod)? else { return Ok(None) };
        let profile = self.profile_of_artifact(reference, handler, Some(pod)).await;
        profile.map(Some).doing(|| format!("annotation {key}"))
    }

    /// The same where it is here. It waits for the disk.
    pub(in crate::cri) fn profile_of_pod_here(
        &self,
        handler: &str,
        pod: &v1::PodSandboxConfig,
    ) -> Result<Option<String>> {
        self.named_by_pod(handler, pod)?.map(|(_, reference)| self.profile_here(reference)).transpose()
    }

    fn named_by_pod<'a>(&self, handler: &str, pod: &'a v1::PodSandboxConfig) -> Result<Option<(String, &'a str)>> {
        let settings = self.config();
        let context = pod.linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default();
        if !allows(&settings, handler, &pod.annotations)?
            || spec::room_for_profile(&spec::as_container(&context), &settings)? == Room::None
        {
            return Ok(None);
        }
        Ok(by_pod(&pod.annotations, ALL))
    }

    /// The text of the profile that an artifact is, which is pulled if it is not here.
    async fn profile_of_artifact(
        &self,
        reference: &str,
        handler: &str,
        pod: Option<&v1::PodSandboxConfig>,
    ) -> Result<String> {
        let find = || {
            let (cri, text) = (self.clone(), reference.to_owned());
            blocking(move || cri.profile_here(&text))
        };
        match find().await {
            Err(error) if error.kind() == Kind::NotFound => {
                let tenant = pod.and_then(|pod| pod.metadata.as_ref()).map(|pod| pod.namespace.clone());
                self.pull_as(reference, None, handler, tenant.unwrap_or_default()).await?;
                find().await
            }
            Ok(profile) => {
                let named = v1::ImageSpec { image: reference.to_owned(), ..Default::default() };
                self.check_policy(pod, &named).await.doing(|| format!("seccomp profile {reference}"))?;
                Ok(profile)
            }
            found => found,
        }
    }

    fn profile_here(&self, text: &str) -> Result<String> {
        let image = self.find_image(text)?;
        let doing = || format!("seccomp profile {text}");
        if !image.manifest.is_artifact() {
            return Err(Error::invalid("is an image; an artifact is wanted, whose first layer is the profile"))
                .doing(doing);
        }
        let layer = image.manifest.layers.first().ok_or_else(|| Error::invalid("has no layer")).doing(doing)?;
        let bytes = self.parts().images.content.read(self.context(), &layer.digest, MAX_PROFILE).doing(doing)?;
        String::from_utf8(bytes).map_err(|_| Error::invalid("is not text")).doing(doing)
    }
}

/// Whether annotations of such a pod, and of images in it, may name profiles.
fn allows(settings: &config::Cri, handler: &str, of_pod: &Annotations) -> Result<bool> {
    Ok(granted::allowed(settings, settings.handler(handler)?, of_pod)?.contains(&Annotation::SeccompProfile))
}

/// The key and the value of what a pod's annotations say of the container `name`.
fn by_pod<'a>(annotations: &'a Annotations, name: &str) -> Option<(String, &'a str)> {
    let keys = [name, ALL].into_iter().flat_map(|of| NAMES.map(|annotation| format!("{annotation}/{of}")));
    first(annotations, keys)
}

/// The same of an image, which may also speak of whatever is made of it.
fn by_image<'a>(annotations: &'a Annotations, name: &str) -> Option<(String, &'a str)> {
    first(annotations, NAMES.map(str::to_owned)).or_else(|| by_pod(annotations, name))
}

fn first(annotations: &Annotations, keys: impl IntoIterator<Item = String>) -> Option<(String, &str)> {
    let value = |key: &String| annotations.get(key).map(String::as_str).filter(|value| !value.is_empty());
    keys.into_iter().find_map(|key| value(&key).map(|value| (key.clone(), value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearer_annotation_counts() {
        let of = |keys: &[&str]| Annotations::from_iter(keys.iter().map(|key| ((*key).to_owned(), format!("v {key}"))));
        let (web, all) = ("seccomp-profile.crio.io/web", "seccomp-profile.crio.io/POD");
        let older = "seccomp-profile.kubernetes.cri-o.io/web";
        let key = |found: Option<(String, &str)>| found.map(|(key, _)| key);
        assert_eq!(by_pod(&of(&[all, older, web]), "web"), Some((web.to_owned(), "v seccomp-profile.crio.io/web")));
        assert_eq!(key(by_pod(&of(&[all, older]), "web")).as_deref(), Some(older));
        assert_eq!(key(by_pod(&of(&[all, older, web]), "db")).as_deref(), Some(all));
        assert_eq!(by_pod(&of(&[older, NAMES[0]]), "db"), None);
        assert_eq!(key(by_image(&of(&[web, all, NAMES[1]]), "web")).as_deref(), Some(NAMES[1]));
        assert_eq!(key(by_image(&of(&[web, all]), "web")).as_deref(), Some(web));
        assert_eq!(by_pod(&Annotations::from([(all.to_owned(), String::new())]), "web"), None);
    }
}
