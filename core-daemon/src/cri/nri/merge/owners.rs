//! Which plugin has set what: two that set the same are an error, unless the later one has said that the earlier one's goes.

use gantry_proto::nri::pkg::api::v1alpha1 as api;
use gantry_proto::nri::pkg::api::v1alpha1::Field;

use super::super::apply::marked;
use crate::error::{Error, Result};

/// What plugins have set, of all containers that one request is about. Validators are told the same.
#[derive(Debug, Default, Clone)]
pub(super) struct Owners(api::OwningPlugins);

impl Owners {
    fn of(&mut self, container: &str) -> &mut api::FieldOwners {
        self.0.owners.entry(container.to_owned()).or_default()
    }

    /// A field is the plugin's from now on.
    ///
    /// # Errors
    /// `FailedPrecondition` naming both plugins and the field where it is another's.
    pub(super) fn claim(&mut self, container: &str, field: Field, plugin: &str) -> Result<()> {
        let owners = &mut self.of(container).simple;
        free(owners.get(&field.into()), field, None, plugin)?;
        owners.insert(field.into(), plugin.to_owned());
        Ok(())
    }

    /// The same of one entry of a field that has several.
    ///
    /// # Errors
    /// Likewise.
    pub(super) fn claim_entry(&mut self, container: &str, field: Field, entry: &str, plugin: &str) -> Result<()> {
        let owners = &mut self.of(container).compound.entry(field.into()).or_default().owners;
        free(owners.get(entry), field, Some(entry), plugin)?;
        owners.insert(entry.to_owned(), plugin.to_owned());
        Ok(())
    }

    /// Whatever another plugin has set goes; only this one may set it again.
    pub(super) fn clear(&mut self, container: &str, field: Field, plugin: &str) {
        self.of(container).simple.insert(field.into(), format!("-{plugin}"));
    }

    /// The same of one entry.
    pub(super) fn clear_entry(&mut self, container: &str, field: Field, entry: &str, plugin: &str) {
        let owners = &mut self.of(container).compound.entry(field.into()).or_default().owners;
        owners.insert(entry.to_owned(), format!("-{plugin}"));
    }

    /// One of several plugins that may add to a field.
    pub(super) fn share(&mut self, container: &str, field: Field, plugin: &str) {
        let owners = &mut self.of(container).simple;
        owners
            .entry(field.into())
            .and_modify(|all| *all = format!("{all},{plugin}"))
            .or_insert_with(|| plugin.to_owned());
    }

    pub(super) fn told(self) -> api::OwningPlugins {
        self.0
    }
}

fn free(owner: Option<&String>, field: Field, entry: Option<&str>, plugin: &str) -> Result<()> {
    let Some(owner) = owner else { return Ok(()) };
    let other = marked(owner);
    if owner == plugin || other == Some(plugin) {
        return Ok(());
    }
    let (other, field) = (other.unwrap_or(owner), field.as_str_name());
    let entry = entry.map(|entry| format!(" {entry}")).unwrap_or_default();
    Err(Error::precondition(format!("plugins {other:?} and {plugin:?} both set {field}{entry}")))
}
