//! `state`.

use super::state_json::State;
use crate::cli::OneContainer;
use crate::container::id::ContainerId;
use crate::container::{Container, Settings};
use crate::error::Result;

pub(super) fn run(settings: &Settings, args: &OneContainer) -> Result<()> {
    let container = Container::load(&settings.store, &ContainerId::parse(&args.id)?)?;
    super::print(&super::to_json(&State::of(&container, String::new()))?)
}
