//! `kill`.

use rung_sys::signal;

use crate::cli::KillArgs;
use crate::container::{Container, Settings, kill};
use crate::error::{Error, Result};

pub(super) fn run(settings: &Settings, args: &KillArgs) -> Result<()> {
    // As with runc an empty word is none: scripts leave a variable unset.
    let word = if args.signal.is_empty() { "SIGTERM" } else { &args.signal };
    let number = signal::parse(word)
        .ok_or_else(|| Error::invalid(format!("unable to parse signal: unknown signal {:?}", args.signal)));
    super::each(settings, &args.id, args.regex, |id| {
        let container = Container::load(&settings.store, id)?;
        kill::kill(&container, number.clone()?, args.all)
    })
}
