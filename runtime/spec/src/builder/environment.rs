//! The variables of a container, and of one more process in it.

use std::collections::BTreeMap;

use super::{InvalidOptions, Options};
use crate::defaults;
use crate::image::ContainerConfig;

/// The image's variables, then the wished ones, then what every process should find.
pub(super) fn environment(image: &ContainerConfig, options: &Options) -> Result<Vec<String>, InvalidOptions> {
    let mut env = Environment::default();
    env.set(defaults::PATH);
    if let Some(hostname) = &options.hostname {
        env.set(&format!("HOSTNAME={hostname}"));
    }
    if options.terminal {
        env.set("TERM=xterm");
    }
    for entry in image.env.iter().chain(&options.env) {
        if entry.is_empty() || entry.starts_with('=') {
            return Err(InvalidOptions::Env(entry.clone()));
        }
        env.set(entry);
    }
    if !env.places.contains_key("HOME") {
        let home = options.user.home.as_deref().unwrap_or(if options.user.uid == 0 { "/root" } else { "/" });
        env.set(&format!("HOME={home}"));
    }
    Ok(env.into_entries())
}

/// The environment of one more process in a container: the container's, then the wished one.
pub fn merge_environment(container: &[String], wished: &[String]) -> Vec<String> {
    let mut env = Environment::default();
    container.iter().chain(wished).for_each(|entry| env.set(entry));
    env.into_entries()
}

/// Variables in the order they first came, each name once. Found by name: there may be tens of thousands.
#[derive(Default)]
struct Environment {
    /// `None` where one was removed.
    entries: Vec<Option<String>>,
    places: BTreeMap<String, usize>,
}

impl Environment {
    /// `KEY=VALUE` replaces or adds; `KEY` alone removes.
    fn set(&mut self, entry: &str) {
        let Some((name, _)) = entry.split_once('=') else {
            if let Some(place) = self.places.remove(entry) {
                self.entries[place] = None;
            }
            return;
        };
        match self.places.get(name) {
            Some(place) => self.entries[*place] = Some(entry.to_owned()),
            None => {
                self.places.insert(name.to_owned(), self.entries.len());
                self.entries.push(Some(entry.to_owned()));
            }
        }
    }

    fn into_entries(self) -> Vec<String> {
        self.entries.into_iter().flatten().collect()
    }
}
