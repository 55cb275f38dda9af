//! `-v` and `-info`: what the shim and its runtime are.

use std::process::Command;
use std::time::Duration;

use gantry_proto::any;
use gantry_proto::containerd::types::{RuntimeInfo, RuntimeVersion};
use prost::Message;
use prost_types::Any;

use crate::options::Options;
use crate::rung::run_alone;
use crate::{Doing, Error, Result, args};

/// The annotation that lists the types of mounts, besides the usual ones, that this shim makes itself. Daemons make all
/// others for it.
const ALLOWED_MOUNTS: &str = "containerd.io/runtime-allow-mounts";

/// How long the runtime may take to describe itself.
const DEADLINE: Duration = Duration::from_secs(10);

/// The version for people.
///
/// # Errors
/// None; the type is that of the other actions.
pub fn version() -> Result<Vec<u8>> {
    Ok(format!("containerd-shim-rung-v2:\n  Version:  {}\n\n", env!("CARGO_PKG_VERSION")).into_bytes())
}

/// The runtime's description, encoded. Options come on standard input; they choose the runtime that is described.
///
/// # Errors
/// Where the options are malformed. A runtime that does not describe itself is described by its name.
pub fn describe() -> Result<Vec<u8>> {
    let input = args::read_input().doing(|| "read the runtime options")?;
    let given = Any::decode(input.as_slice()).map_err(|error| Error::invalid(format!("runtime options: {error}")))?;
    let options = Options::from_any(Some(&given))?;
    let mut command = Command::new(options.program());
    command.arg("features");
    let features = run_alone(command, DEADLINE).ok().filter(|finished| finished.success);
    let info = RuntimeInfo {
        name: "io.containerd.rung.v2".to_owned(),
        version: Some(RuntimeVersion { version: env!("CARGO_PKG_VERSION").to_owned(), revision: String::new() }),
        options: (!given.type_url.is_empty()).then_some(given),
        features: features.map(|features| any::json(any::FEATURES, features.output)),
        annotations: [(ALLOWED_MOUNTS.to_owned(), "erofs".to_owned())].into(),
    };
    Ok(info.encode_to_vec())
}
