//! What several plugins want of one container, taken together in their order.
//!
//! Each plugin is shown the container as those before it have changed it. A later plugin may remove what an earlier one has
//! added, by a name with a mark, and may then set it itself; to set it without that is an error that names both.

mod linux;
mod owners;
mod resources;

use std::collections::{BTreeMap, BTreeSet};

use gantry_proto::nri::pkg::api::v1alpha1 as api;
use gantry_proto::nri::pkg::api::v1alpha1::Field;

use super::apply::marked;
use crate::error::{Error, Result};
use owners::Owners;

/// The changes of a container that is being made, and those of others that come with them.
#[derive(Debug)]
pub(super) struct Creation {
    /// What the next plugin is shown.
    pub(super) shown: api::CreateContainerRequest,
    adjust: api::ContainerAdjustment,
    others: Updates,
}

/// Changes of limits of several containers.
#[derive(Debug, Default)]
pub(super) struct Updates {
    owners: Owners,
    all: Vec<api::ContainerUpdate>,
    evictions: Vec<api::ContainerEviction>,
}

/// What all plugins together want.
#[derive(Debug)]
pub(super) struct Created {
    pub(super) adjust: api::ContainerAdjustment,
    pub(super) updates: Vec<api::ContainerUpdate>,
    pub(super) evictions: Vec<api::ContainerEviction>,
    pub(super) owners: api::OwningPlugins,
}

impl Creation {
    pub(super) fn new(shown: api::CreateContainerRequest) -> Self {
        Self { shown, adjust: api::ContainerAdjustment::default(), others: Updates::default() }
    }

    /// Takes in what the next plugin wants.
    ///
    /// # Errors
    /// `FailedPrecondition` where an earlier one has set the same.
    pub(super) fn add(&mut self, answer: api::CreateContainerResponse, plugin: &str) -> Result<()> {
        if let Some(wanted) = answer.adjust {
            self.adjust(wanted, plugin)?;
        }
        let own = self.shown.container.as_ref().map(|container| container.id.as_str()).unwrap_or_default();
        if answer.update.iter().any(|update| update.container_id == own) {
            return Err(Error::invalid(format!("plugin {plugin:?} updates a container that is being made")));
        }
        for update in answer.update {
            self.others.add(update, plugin)?;
        }
        self.others.evictions.extend(answer.evict);
        Ok(())
    }

    pub(super) fn done(self) -> Created {
        let Updates { owners, all, evictions } = self.others;
        Created { adjust: self.adjust, updates: all, evictions, owners: owners.told() }
    }

    fn adjust(&mut self, wanted: api::ContainerAdjustment, plugin: &str) -> Result<()> {
        let shown = self.shown.container.get_or_insert_default();
        let mut one = One { id: shown.id.clone(), plugin, owners: &mut self.others.owners };
        let adjust = &mut self.adjust;
        one.map(Field::Annotations, wanted.annotations, &mut shown.annotations, &mut adjust.annotations, String::new)?;
        let places = |mount: &api::Mount| mount.destination.clone();
        one.list(Field::Mounts, wanted.mounts, &mut shown.mounts, &mut adjust.mounts, places)?;
        one.environment(wanted.env, &mut shown.env, &mut adjust.env)?;
        one.args(wanted.args, &mut shown.args, &mut adjust.args)?;
        if let Some(hooks) = wanted.hooks.filter(|hooks| *hooks != api::Hooks::default()) {
            one.owners.share(&one.id, Field::OciHooks, plugin);
            extend_hooks(shown.hooks.get_or_insert_default(), &hooks);
            extend_hooks(adjust.hooks.get_or_insert_default(), &hooks);
        }
        for limit in wanted.rlimits {
            one.owners.claim_entry(&one.id, Field::Rlimits, &limit.r#type, plugin)?;
            shown.rlimits.retain(|old| old.r#type != limit.r#type);
            shown.rlimits.push(limit.clone());
            adjust.rlimits.push(limit);
        }
        for device in wanted.cdi_devices {
            one.owners.claim_entry(&one.id, Field::CdiDevices, &device.name, plugin)?;
            adjust.cdi_devices.push(device);
        }
        match wanted.linux {
            Some(linux) => one.linux(linux, shown.linux.get_or_insert_default(), adjust.linux.get_or_insert_default()),
            None => Ok(()),
        }
    }
}

/// The changes of one container by one plugin.
struct One<'a> {
    id: String,
    plugin: &'a str,
    owners: &'a mut Owners,
}

impl One<'_> {
    /// Entries by name; `none` is what stands for one that is to go.
    fn map<T: Clone>(
        &mut self,
        field: Field,
        wanted: BTreeMap<String, T>,
        shown: &mut BTreeMap<String, T>,
        adjust: &mut BTreeMap<String, T>,
        none: impl Fn() -> T,
    ) -> Result<()> {
        for name in wanted.keys().filter_map(|key| marked(key)) {
            self.owners.clear_entry(&self.id, field, name, self.plugin);
            shown.remove(name);
            adjust.remove(name);
            adjust.insert(format!("-{name}"), none());
        }
        for (name, value) in wanted.into_iter().filter(|(key, _)| marked(key).is_none()) {
            self.owners.claim_entry(&self.id, field, &name, self.plugin)?;
            shown.insert(name.clone(), value.clone());
            adjust.insert(name, value);
        }
        Ok(())
    }

    /// Entries in a list, which have names too.
    fn list<T: Clone>(
        &mut self,
        field: Field,
        wanted: Vec<T>,
        shown: &mut Vec<T>,
        adjust: &mut Vec<T>,
        name: impl Fn(&T) -> String,
    ) -> Result<()> {
        let names: BTreeSet<String> = wanted.iter().map(&name).collect();
        for gone in names.iter().filter_map(|name| marked(name)) {
            self.owners.clear_entry(&self.id, field, gone, self.plugin);
        }
        // What is named goes from where it was, be it removed or put in another's place.
        let is_named = |one: &T| names.contains(&name(one)) || names.contains(&format!("-{}", name(one)));
        shown.retain(|one| !is_named(one));
        adjust.retain(|one| !names.contains(&format!("-{}", name(one))));
        let (gone, new): (Vec<T>, Vec<T>) = wanted.into_iter().partition(|one| marked(&name(one)).is_some());
        for one in &new {
            self.owners.claim_entry(&self.id, field, &name(one), self.plugin)?;
        }
        shown.extend(new.iter().cloned());
        // Removals come first, so that what is set again stays.
        adjust.splice(0..0, gone);
        adjust.extend(new);
        Ok(())
    }

    fn environment(
        &mut self,
        wanted: Vec<api::KeyValue>,
        shown: &mut Vec<String>,
        adjust: &mut Vec<api::KeyValue>,
    ) -> Result<()> {
        let split = |variable: &String| {
            let (key, value) = variable.split_once('=').unwrap_or((variable, ""));
            api::KeyValue { key: key.to_owned(), value: value.to_owned() }
        };
        if wanted.is_empty() {
            return Ok(());
        }
        let mut variables: Vec<api::KeyValue> = shown.iter().map(split).collect();
        self.list(Field::Env, wanted, &mut variables, adjust, |variable| variable.key.clone())?;
        *shown = variables.iter().map(|variable| format!("{}={}", variable.key, variable.value)).collect();
        Ok(())
    }

    fn args(&mut self, mut wanted: Vec<String>, shown: &mut Vec<String>, adjust: &mut Vec<String>) -> Result<()> {
        if wanted.is_empty() {
            return Ok(());
        }
        if wanted[0].is_empty() {
            self.owners.clear(&self.id, Field::Args, self.plugin);
            wanted.remove(0);
        }
        self.owners.claim(&self.id, Field::Args, self.plugin)?;
        shown.clone_from(&wanted);
        *adjust = wanted;
        Ok(())
    }
}

fn extend_hooks(all: &mut api::Hooks, more: &api::Hooks) {
    all.prestart.extend(more.prestart.iter().cloned());
    all.create_runtime.extend(more.create_runtime.iter().cloned());
    all.create_container.extend(more.create_container.iter().cloned());
    all.start_container.extend(more.start_container.iter().cloned());
    all.poststart.extend(more.poststart.iter().cloned());
    all.poststop.extend(more.poststop.iter().cloned());
}

impl Updates {
    /// Takes in a change of a container's limits.
    ///
    /// # Errors
    /// `FailedPrecondition` where an earlier plugin has set the same and the change does not say that this is all right.
    pub(super) fn add(&mut self, update: api::ContainerUpdate, plugin: &str) -> Result<()> {
        let wanted = update.linux.and_then(|linux| linux.resources).unwrap_or_default();
        // All of it or nothing.
        let mut owners = self.owners.clone();
        match resources::claim(&mut owners, &update.container_id, &wanted, plugin) {
            Ok(()) => self.owners = owners,
            Err(_) if update.ignore_failure => return Ok(()),
            Err(error) => return Err(error.context(format!("update of container {}", update.container_id))),
        }
        let there = self.all.iter_mut().find(|known| known.container_id == update.container_id);
        match there {
            Some(there) => {
                there.ignore_failure &= update.ignore_failure;
                let limits = there.linux.get_or_insert_default().resources.get_or_insert_default();
                resources::lay_over(limits, &wanted);
            }
            None => self.all.push(api::ContainerUpdate {
                container_id: update.container_id,
                linux: Some(api::LinuxContainerUpdate { resources: Some(wanted) }),
                ignore_failure: update.ignore_failure,
            }),
        }
        Ok(())
    }

    /// Containers that are to end.
    pub(super) fn evict(&mut self, evictions: Vec<api::ContainerEviction>) {
        self.evictions.extend(evictions);
    }

    /// What is wanted of the container `id` itself, so far.
    pub(super) fn of(&self, id: &str) -> Option<&api::LinuxResources> {
        let own = self.all.iter().find(|update| update.container_id == id)?;
        own.linux.as_ref()?.resources.as_ref()
    }

    /// What is wanted of all containers but `id`.
    pub(super) fn of_others(mut self, id: &str) -> (Vec<api::ContainerUpdate>, Vec<api::ContainerEviction>) {
        self.all.retain(|update| update.container_id != id);
        (self.all, self.evictions)
    }
}

/// Puts limits over limits.
pub(super) fn lay_over(all: &mut api::LinuxResources, wanted: &api::LinuxResources) {
    resources::lay_over(all, wanted);
}

#[cfg(test)]
mod tests;
