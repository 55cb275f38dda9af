//! Files and directories of the host in a container: made where they are missing, and taken over from other containers.

use std::path::Path;

use gantry_proto::gantry::engine::v1 as api;
use oci_spec::runtime::{Mount, Spec};

use super::{Engine, Known};
use crate::context::Context;
use crate::error::{Doing, Error, Result};

/// Makes the directories that docker makes where a bind's source is not there.
pub(super) fn make_sources(binds: &[api::Bind]) -> Result<()> {
    for bind in binds.iter().filter(|bind| bind.make_source && bind.source.starts_with('/')) {
        std::fs::create_dir_all(&bind.source)
            .or_else(|error| {
                // A file at that path is a source too.
                if error.kind() == std::io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) }
            })
            .doing(|| format!("make {}", bind.source))?;
    }
    Ok(())
}

/// A bind as it is written on a command line.
pub(super) fn text(bind: &api::Bind) -> String {
    let mode = if bind.read_only { ":ro" } else { "" };
    format!("{}:{}{mode}", bind.source, bind.destination)
}

/// The binds among a container's mounts that somebody wished for.
pub(super) fn of<'a>(known: &'a Known, spec: &'a Spec) -> impl Iterator<Item = &'a Mount> {
    let binds = spec.mounts().iter().flatten().filter(|mount| mount.typ().as_deref() == Some("bind"));
    binds.filter(|mount| {
        let place = mount.destination();
        !known.record.etc.has(place) && place != Path::new(super::create::INIT)
    })
}

impl Engine {
    /// Adds the binds of the containers that a request names to its own, which go before them.
    ///
    /// # Errors
    /// `NotFound` for such a container, `InvalidArgument` for a mode that is none.
    pub(super) fn take_over_binds(&self, context: &Context, request: &mut api::CreateRequest) -> Result<()> {
        for wish in std::mem::take(&mut request.volumes_from) {
            let (name, mode) = wish.split_once(':').unwrap_or((&wish, "rw"));
            let known = self.find(context, name).doing(|| format!("volumes from {name}"))?;
            let forced = match mode {
                "ro" => true,
                "rw" => false,
                _ => return Err(Error::invalid(format!("volumes from {wish}: the mode is neither ro nor rw"))),
            };
            for mount in of(&known, &spec_of(&known)?) {
                let destination = mount.destination().to_string_lossy().into_owned();
                if request.binds.iter().any(|own| Path::new(&own.destination) == mount.destination()) {
                    continue;
                }
                let options = mount.options().as_deref().unwrap_or_default();
                let propagation = options.iter().find(|option| is_propagation(option)).cloned();
                request.binds.push(api::Bind {
                    source: mount.source().as_ref().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default(),
                    destination,
                    read_only: forced || options.iter().any(|option| option == "ro"),
                    propagation: propagation.unwrap_or_default(),
                    make_source: false,
                });
            }
            request.volumes_from.push(wish);
        }
        Ok(())
    }
}

/// Whether an option of a mount says how later mounts pass.
pub(super) fn is_propagation(option: &str) -> bool {
    ["private", "shared", "slave"].iter().any(|end| option.ends_with(end))
}

/// The runtime configuration that a container was made with.
pub(super) fn spec_of(known: &Known) -> Result<Spec> {
    let spec = known.container.spec.as_ref().map(|spec| spec.value.as_slice()).unwrap_or_default();
    serde_json::from_slice(spec)
        .map_err(|error| Error::internal(error.to_string()))
        .doing(|| format!("specification of container {}", known.record.name))
}
