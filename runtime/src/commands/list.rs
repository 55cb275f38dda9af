//! `list`.

use std::fmt::Write as _;
use std::os::unix::fs::MetadataExt as _;

use super::state_json::State;
use crate::cli::ListArgs;
use crate::container::{Container, Settings};
use crate::error::{Error, Kind, Result};
use crate::log;
use crate::subids::{host_text, name_of};

pub(super) fn run(settings: &Settings, args: &ListArgs, explicit_root: bool) -> Result<()> {
    if !matches!(args.format.as_str(), "table" | "json") {
        return Err(Error::invalid("invalid format option"));
    }
    let root = settings.store.root();
    let names = if !root.exists() && !explicit_root { Vec::new() } else { settings.store.names()? };
    let mut containers = Vec::new();
    for id in &names {
        match Container::load(&settings.store, id) {
            Ok(container) => containers.push(container),
            // Deleted since its name was read.
            Err(error) if error.kind() == Kind::NotFound && !root.join(id.as_str()).exists() => {}
            Err(error) => log::warning(&format!("load container {id}: {error}")),
        }
    }
    let states: Vec<State<'_>> = containers.iter().map(|container| State::of(container, owner(container))).collect();
    super::print(&match args.format.as_str() {
        _ if args.quiet => states.iter().fold(String::new(), |text, state| text + state.id + "\n"),
        "json" if states.is_empty() => "null\n".to_owned(),
        "json" => serde_json::to_string(&states).map_err(|error| Error::invalid(error.to_string()))? + "\n",
        _ => table(&states),
    })
}

fn owner(container: &Container) -> String {
    let uid = std::fs::metadata(container.entry.path()).map(|found| found.uid()).unwrap_or(0);
    name_of(&host_text("/etc/passwd"), uid).unwrap_or_else(|| format!("#{uid}"))
}

fn table(states: &[State<'_>]) -> String {
    let header = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
    let row = |state: &State<'_>| {
        [
            state.id.to_owned(),
            state.pid.to_string(),
            state.status.to_owned(),
            state.bundle.display().to_string(),
            state.created.to_owned(),
            state.owner.clone(),
        ]
    };
    let rows: Vec<[String; 6]> = std::iter::once(header).chain(states.iter().map(row)).collect();
    // Tables are parsed by splitting at runs of spaces, at least twelve characters a column as runc has it.
    let width = |column: usize| rows.iter().map(|row| row[column].len() + 3).max().unwrap_or(0).max(12);
    let widths: Vec<usize> = (0..5).map(width).collect();
    rows.iter().fold(String::new(), |mut text, row| {
        for (cell, width) in row.iter().zip(&widths) {
            // Writing to a String cannot fail.
            let _ = write!(text, "{cell:<width$}");
        }
        text + &row[5] + "\n"
    })
}
