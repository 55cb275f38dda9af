//! Files and directories of the host in a container: made where they are missing, and taken over from other containers.

use std::path::Path;

use gantry_proto::gantry::engine::v1 as api;
use gantry_proto::gantry::engine::v1::bind::Below;
use oci_spec::runtime::{Mount, Spec};
use rung_spec::builder;
use rung_sys::mount;

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

/// A bind as the container's specification has it.
///
/// # Errors
/// `InvalidArgument` where all below it is to be read-only, and cannot be.
pub(super) fn wished(bind: &api::Bind) -> Result<builder::Bind> {
    let possible = || mount::check_read_only_below().map_err(std::io::Error::from);
    let all_read_only = match bind.below() {
        Below::Shown => bind.read_only && possible().is_ok(),
        Below::Hidden | Below::Writable => false,
        Below::ReadOnly => {
            let refused = |why: &str| Error::invalid(format!("bind {}: all below it read-only: {why}", text(bind)));
            if !bind.read_only {
                return Err(refused("the bind itself is not"));
            }
            if !matches!(bind.propagation.as_str(), "" | "rprivate") {
                return Err(refused("what is mounted later would not be, with another propagation than rprivate"));
            }
            possible().map_err(|error| refused(&error.to_string())).map(|()| true)?
        }
    };
    Ok(builder::Bind {
        source: bind.source.clone(),
        destination: bind.destination.clone(),
        read_only: bind.read_only,
        propagation: bind.propagation.clone(),
        shallow: bind.below() == Below::Hidden,
        all_read_only,
    })
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
                let has = |word: &str| options.iter().any(|option| option == word);
                let below = match (has("bind"), has("ro")) {
                    (true, _) => Below::Hidden,
                    (false, true) => Below::Writable,
                    (false, false) => Below::Shown,
                };
                request.binds.push(api::Bind {
                    source: mount.source().as_ref().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default(),
                    destination,
                    read_only: forced || options.iter().any(|option| is_read_only(option)),
                    propagation: propagation.unwrap_or_default(),
                    make_source: false,
                    below: below.into(),
                });
            }
            request.volumes_from.push(wish);
        }
        Ok(())
    }
}

/// Whether an option of a mount says that it is not to be written through.
pub(super) fn is_read_only(option: &str) -> bool {
    matches!(option, "ro" | "rro")
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
