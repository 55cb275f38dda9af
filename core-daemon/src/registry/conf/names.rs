//! Which full names a short one stands for.

use std::path::Path;

use rung_spec::reference::Reference;

use super::Conf;
use super::file::Mode;
use crate::error::{Error, Result};

impl Conf {
    /// What to pull for `text`, which docker would read as `plain`.
    pub(super) fn to_pull(&self, text: &str, plain: Reference, path: &Path) -> Result<Vec<Reference>> {
        let meant = self.meant(text, &plain);
        let path = path.display();
        match &meant[..] {
            [] => Err(Error::invalid(format!(
                "image {text:?}: is a short name, for which {path} has neither an alias nor unqualified-search-registries; \
                 write the full name"
            ))),
            [_, _, ..] if self.mode == Mode::Enforcing => Err(Error::invalid(format!(
                "image {text:?}: is a short name, which may be of {}: write the full name, or give it an alias in {path}, or \
                 have the first that has it taken with short-name-mode = \"permissive\"",
                self.search.join(", ")
            ))),
            _ => Ok(meant),
        }
    }

    /// What an image that is here may be called: as docker calls it too, since another client may have brought it.
    pub(super) fn here(&self, text: &str, plain: Reference) -> Vec<Reference> {
        let mut meant = self.meant(text, &plain);
        if !meant.contains(&plain) {
            meant.push(plain);
        }
        meant
    }

    fn meant(&self, text: &str, plain: &Reference) -> Vec<Reference> {
        // Without a registry there is no port, so that a colon is a tag's.
        let name = text.split(['@', ':']).next().unwrap_or_default();
        let full = match self.aliases.get(name) {
            Some(full) => vec![full.clone()],
            None => self.search.iter().map(|registry| format!("{}/{name}", registry.trim_end_matches('/'))).collect(),
        };
        let with_object = |full: &String| {
            let place = Reference::parse(full).ok()?;
            Some(Reference { tag: plain.tag.clone(), digest: plain.digest.clone(), ..place })
        };
        // One that is too long is no name at any registry.
        full.iter().filter_map(with_object).collect()
    }
}
