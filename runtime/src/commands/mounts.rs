//! `mounts add` and `mounts remove`.

use std::path::Path;

use oci_spec::runtime::Mount;

use crate::cli::{MountsArgs, MountsVerb};
use crate::container::id::ContainerId;
use crate::container::{Container, Settings, mounts};
use crate::error::{Doing as _, Error, Result};

pub(super) fn run(settings: &Settings, args: &MountsArgs) -> Result<()> {
    let (MountsVerb::Add { id, file } | MountsVerb::Remove { id, file }) = &args.verb;
    let container = Container::load(&settings.store, &ContainerId::parse(id)?)?;
    container.require_alive()?;
    let list = read(file)?;
    match &args.verb {
        MountsVerb::Add { .. } => mounts::add(&container, list),
        MountsVerb::Remove { .. } => mounts::remove(&container, list),
    }
}

fn read(file: &Path) -> Result<Vec<Mount>> {
    let text = std::fs::read(file).doing(|| format!("read {}", file.display()))?;
    serde_json::from_slice(&text)
        .map_err(|error| Error::invalid(error.to_string()))
        .doing(|| format!("read {}", file.display()))
}
