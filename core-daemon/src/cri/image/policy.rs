//! Policies of a namespace about images that are here already: another namespace may have pulled them.

use gantry_proto::runtime::v1;
use rung_spec::reference::Reference;

use crate::blocking::blocking;
use crate::cri::Cri;
use crate::error::{Doing as _, Result};
use crate::image::Resolved;

impl Cri {
    /// Finds out whether a pod may have the images that a container is to be made of: its own and those of its volumes.
    ///
    /// # Errors
    /// A refusal of its namespace's policy; `InvalidArgument` where the policy has nothing to go by.
    pub(in crate::cri) async fn check_policies(
        &self,
        pod: Option<&v1::PodSandboxConfig>,
        config: &v1::ContainerConfig,
    ) -> Result<()> {
        let volumes = config.mounts.iter().filter_map(|mount| mount.image.as_ref());
        for wanted in config.image.iter().chain(volumes) {
            self.check_policy(pod, wanted).await.doing(|| format!("image {}", wanted.image))?;
        }
        Ok(())
    }

    /// The same about one.
    pub(in crate::cri) async fn check_policy(
        &self,
        pod: Option<&v1::PodSandboxConfig>,
        wanted: &v1::ImageSpec,
    ) -> Result<()> {
        // Most nodes have none, and containers there start without a look at the disk for it.
        if !self.parts().images.has_tenants() {
            return Ok(());
        }
        let tenant = pod.and_then(|pod| pod.metadata.as_ref()).map_or("", |pod| pod.namespace.as_str());
        let (cri, asked, wanted) = (self.clone(), tenant.to_owned(), wanted.clone());
        let found = blocking(move || match cri.parts().images.has_policy(&asked)? {
            true => cri.named_and_found(&wanted).map(Some),
            false => Ok(None),
        });
        let Some((name, image)) = found.await? else { return Ok(()) };
        self.parts().images.check_policy(tenant, &name, &image.target.digest).await
    }

    /// The name by which a policy is to know an image, and what that is. Kubelets ask for an id, and say beside it what the
    /// pod calls it.
    fn named_and_found(&self, wanted: &v1::ImageSpec) -> Result<(Reference, Resolved)> {
        let image = self.find_image(&wanted.image)?;
        let said = wanted.user_specified_image.as_str();
        if said.is_empty() {
            return Ok((super::parse(&image.name)?, image));
        }
        // A short name may stand for several, and an id may be that of several: the one that has such a name is meant.
        let names: Vec<Reference> = self.parts().images.names_here(said)?.into_iter().map(super::by_digest).collect();
        for name in &names {
            match self.find_image(&name.to_string()) {
                Ok(named) if named.config_digest == image.config_digest => return Ok((name.clone(), named)),
                _ => {}
            }
        }
        match names.into_iter().next() {
            Some(name) => Ok((name, image)),
            None => Ok((super::parse(said)?, image)),
        }
    }
}
