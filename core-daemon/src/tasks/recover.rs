//! Shims whose bundles are damaged or gone: they run, and so do their containers. They are found among the processes, and
//! their bundles are made again.

use std::collections::HashMap;
use std::path::Path;

use gantry_proto::namespace::Namespace;

use super::{Bundle, Key, Tasks};
use crate::blocking::blocking;
use crate::error::{Doing, Result};
use crate::filter::Filter;
use crate::id::ContainerId;
use crate::shims::{Address, Running, running};

type Found = (Namespace, ContainerId, Bundle);

impl Tasks {
    /// Writes down anew what bundles do not say any more of shims that run, and adds the bundles that are gone.
    pub(super) async fn recover(&self, bundles: &mut Vec<Found>) {
        let address = self.launcher().grpc_address.clone();
        let shims = blocking(move || running(&address)).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "shims without a bundle are not found");
            Vec::new()
        });
        let mut shims: HashMap<Key, Running> =
            shims.into_iter().map(|shim| ((shim.namespace.clone(), shim.id.clone()), shim)).collect();
        for (namespace, id, bundle) in bundles.iter() {
            if bundle.shim_program().is_some() && matches!(Address::load(bundle.path()), Ok(Some(_))) {
                continue;
            }
            let mended = match shims.get(&(namespace.clone(), id.clone())) {
                Some(own) => mend(bundle, &own.program, || own.address()),
                None => self.mend_by_sandbox(namespace, id, bundle, &shims),
            };
            match mended {
                Ok(true) => tracing::warn!(%namespace, %id, "bundle was damaged, but its shim runs"),
                Ok(false) => {}
                Err(error) => tracing::warn!(%namespace, %id, %error, "mend a bundle"),
            }
        }
        for (namespace, id, _) in bundles.iter() {
            shims.remove(&(namespace.clone(), id.clone()));
        }
        for (key, shim) in &shims {
            match self.recreate(key, shim) {
                Ok(found) => bundles.extend(found),
                Err(error) => tracing::warn!(namespace = %key.0, id = %key.1, %error, "make a bundle again"),
            }
        }
    }

    /// A container of a sandbox is in the sandbox's shim, which the command line of no process says.
    fn mend_by_sandbox(
        &self,
        namespace: &Namespace,
        id: &ContainerId,
        bundle: &Bundle,
        shims: &HashMap<Key, Running>,
    ) -> Result<bool> {
        let noted = || ContainerId::parse(&self.parts().containers.get(namespace, id).ok()?.sandbox).ok();
        let Some(sandbox) = bundle.sandbox().or_else(noted).filter(|sandbox| sandbox != id) else { return Ok(false) };
        let of_sandbox = self.parts().bundles.of(namespace, &sandbox);
        if let Some(shim) = shims.get(&(namespace.clone(), sandbox)) {
            return mend(bundle, &shim.program, || shim.address());
        }
        match (of_sandbox.shim_program(), Address::load(of_sandbox.path())?) {
            (Some(program), Some(address)) => mend(bundle, &program, || Ok(address)),
            _ => Ok(false),
        }
    }

    /// Makes the bundles of a shim that has none: a container's own; else a sandbox's, and those of the sandbox's
    /// containers.
    fn recreate(&self, key: &Key, shim: &Running) -> Result<Vec<Found>> {
        let (namespace, id) = key;
        let (containers, bundles) = (&self.parts().containers, &self.parts().bundles);
        let address = shim.address()?;
        tracing::warn!(%namespace, %id, "shim runs without a bundle; making it again");
        let bundle = bundles.of(namespace, id);
        let own = containers.get(namespace, id).ok();
        bundle
            .create(own.as_ref().and_then(|own| own.spec.as_ref()).map(|spec| spec.value.as_slice()), &shim.program)?;
        bundle.record(&address)?;
        let mut found = vec![(namespace.clone(), id.clone(), bundle.clone())];
        if own.is_some() {
            return Ok(found);
        }
        bundle.mark_sandbox(id.as_str())?;
        for container in containers.list(namespace, &Filter::everything())? {
            if container.sandbox != id.as_str() {
                continue;
            }
            let (id, spec) = (ContainerId::parse(&container.id)?, container.spec.unwrap_or_default());
            let bundle = bundles.of(namespace, &id);
            if bundle.has_config() {
                continue;
            }
            bundle.create(Some(&spec.value), &shim.program).doing(|| format!("container {id}"))?;
            bundle.mark_sandbox(&container.sandbox)?;
            bundle.record(&address)?;
            found.push((namespace.clone(), id, bundle));
        }
        Ok(found)
    }
}

fn mend(bundle: &Bundle, program: &Path, address: impl FnOnce() -> Result<Address>) -> Result<bool> {
    bundle.name_program(program)?;
    bundle.record(&address()?)?;
    Ok(true)
}
