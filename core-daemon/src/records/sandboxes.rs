//! Sandbox records: groups of containers that share a surrounding, as clients describe them.

use std::time::SystemTime;

use gantry_proto::containerd::types::Sandbox;
use gantry_proto::namespace::{Namespace, check_identifier};

use crate::error::{Error, Result};
use crate::filter::{self, Filter};
use crate::labels;
use crate::metadata::{self, Db};

/// The sandbox records of all namespaces.
#[derive(Clone)]
pub struct Sandboxes {
    db: Db,
}

impl Sandboxes {
    /// Records in `db`.
    pub fn new(db: Db) -> Self {
        Self { db }
    }

    /// One sandbox.
    ///
    /// # Errors
    /// `NotFound` without such a sandbox.
    pub fn get(&self, namespace: &Namespace, id: &str) -> Result<Sandbox> {
        let sandbox = self.db.read(|tx| metadata::sandboxes::get(tx, namespace.as_str(), id))?;
        sandbox.ok_or_else(|| missing(id))
    }

    /// The sandboxes that pass `filter`, by id.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn list(&self, namespace: &Namespace, filter: &Filter) -> Result<Vec<Sandbox>> {
        let mut sandboxes = self.db.read(|tx| metadata::sandboxes::list(tx, namespace.as_str()))?;
        sandboxes.retain(|sandbox| filter.matches(|path| field(sandbox, path)));
        Ok(sandboxes)
    }

    /// Stores a new sandbox.
    ///
    /// # Errors
    /// `InvalidArgument` naming the field that is wrong, `AlreadyExists` when its id is taken.
    pub fn create(&self, namespace: &Namespace, mut sandbox: Sandbox) -> Result<Sandbox> {
        labels::drop_empty(&mut sandbox.labels);
        check(&sandbox)?;
        let now = SystemTime::now().into();
        (sandbox.created_at, sandbox.updated_at) = (Some(now), Some(now));
        self.db.write(|tx| {
            if metadata::sandboxes::get(tx, namespace.as_str(), &sandbox.sandbox_id)?.is_some() {
                return Err(Error::already_exists(format!("sandbox {}: already exists", sandbox.sandbox_id)));
            }
            metadata::sandboxes::put(tx, namespace.as_str(), &sandbox)
        })?;
        Ok(sandbox)
    }

    /// Replaces the fields of a sandbox that `mask` names, or all that may change without a mask.
    ///
    /// # Errors
    /// `NotFound` without such a sandbox, `InvalidArgument` for a field that is wrong or may not change.
    pub fn update(&self, namespace: &Namespace, wanted: &Sandbox, mask: &[String]) -> Result<Sandbox> {
        self.db.write(|tx| {
            let sandbox = metadata::sandboxes::get(tx, namespace.as_str(), &wanted.sandbox_id)?;
            let mut sandbox = sandbox.ok_or_else(|| missing(&wanted.sandbox_id))?;
            apply(&mut sandbox, wanted, mask)?;
            check(&sandbox)?;
            sandbox.updated_at = Some(SystemTime::now().into());
            metadata::sandboxes::put(tx, namespace.as_str(), &sandbox)?;
            Ok(sandbox)
        })
    }

    /// Removes a sandbox.
    ///
    /// # Errors
    /// `NotFound` without such a sandbox.
    pub fn delete(&self, namespace: &Namespace, id: &str) -> Result<()> {
        self.db.write(|tx| match metadata::sandboxes::delete(tx, namespace.as_str(), id)? {
            true => Ok(()),
            false => Err(missing(id)),
        })
    }
}

fn missing(id: &str) -> Error {
    Error::not_found(format!("sandbox {id}: not found"))
}

fn check(sandbox: &Sandbox) -> Result<()> {
    check_identifier(&sandbox.sandbox_id).map_err(|error| Error::invalid(format!("sandbox id: {error}")))?;
    if sandbox.runtime.as_ref().is_none_or(|runtime| runtime.name.is_empty()) {
        return Err(Error::invalid(format!("sandbox {}: runtime.name is required", sandbox.sandbox_id)));
    }
    labels::check(&sandbox.labels)
}

fn apply(sandbox: &mut Sandbox, wanted: &Sandbox, mask: &[String]) -> Result<()> {
    let runtime = |sandbox: &Sandbox| sandbox.runtime.as_ref().map(|runtime| runtime.name.clone());
    // Who names no fields sends the whole sandbox back, in which the runtime is what it was.
    if mask.is_empty() && runtime(sandbox) != runtime(wanted) {
        return Err(Error::invalid(format!("sandbox {}: runtime.name cannot change", wanted.sandbox_id)));
    }
    let rest = |path: &str| !matches!(path, "spec" | "runtime" | "extensions") && !path.starts_with("extensions.");
    labels::update(&mut sandbox.labels, &wanted.labels, mask, |path| match rest(path) {
        true => Err(Error::invalid(format!("sandbox {}: {path} cannot be updated", wanted.sandbox_id))),
        false => Ok(()),
    })?;
    let named = |name: &str| mask.is_empty() || mask.iter().any(|path| path == name);
    if named("spec") {
        sandbox.spec.clone_from(&wanted.spec);
    }
    if named("runtime") {
        sandbox.runtime.clone_from(&wanted.runtime);
    }
    if named("extensions") {
        sandbox.extensions.clone_from(&wanted.extensions);
    }
    for name in mask.iter().filter_map(|path| path.strip_prefix("extensions.")) {
        match wanted.extensions.get(name) {
            Some(value) => drop(sandbox.extensions.insert(name.to_owned(), value.clone())),
            None => drop(sandbox.extensions.remove(name)),
        }
    }
    Ok(())
}

/// A sandbox's fields as filters call them.
fn field(sandbox: &Sandbox, path: &[String]) -> Option<String> {
    match path {
        [name] if name == "id" => Some(sandbox.sandbox_id.clone()),
        [name, rest @ ..] if name == "labels" => filter::label(&sandbox.labels, rest),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use gantry_proto::containerd::types::sandbox::Runtime;

    #[test]
    fn create_update_delete() {
        let dir = tempfile::tempdir().expect("directory");
        let sandboxes = Sandboxes::new(Db::open(&dir.path().join("meta.redb")).expect("database"));
        let namespace = Namespace::parse("n").expect("namespace");
        let runtime = Some(Runtime { name: "io.containerd.rung.v2".into(), options: None });
        let mut pod = Sandbox { sandbox_id: "pod".into(), runtime, ..Sandbox::default() };
        pod.labels.insert("none".into(), String::new());
        assert!(sandboxes.create(&namespace, pod.clone()).expect("create").labels.is_empty());
        assert_eq!(sandboxes.create(&namespace, pod.clone()).expect_err("twice").kind(), Kind::AlreadyExists);
        pod.labels.insert("a".into(), "1".into());
        pod.extensions.insert("x".into(), prost_types::Any::default());
        let updated = sandboxes.update(&namespace, &pod, &["labels.a".into()]).expect("update");
        assert_eq!((updated.labels["a"].as_str(), updated.extensions.len()), ("1", 0));
        assert_eq!(sandboxes.update(&namespace, &pod, &["extensions.x".into()]).expect("update").extensions.len(), 1);
        let refused = sandboxes.update(&namespace, &pod, &["created_at".into()]);
        assert_eq!(refused.expect_err("immutable").kind(), Kind::InvalidArgument);
        let other = Some(Runtime { name: "io.containerd.other.v2".into(), options: None });
        let other = Sandbox { runtime: other, ..pod.clone() };
        assert_eq!(sandboxes.update(&namespace, &other, &[]).expect_err("runtime").kind(), Kind::InvalidArgument);
        sandboxes.update(&namespace, &pod, &[]).expect("the whole of it");
        let filter = Filter::parse(&["labels.a==1".to_owned()]).expect("filter");
        assert_eq!(sandboxes.list(&namespace, &filter).expect("list").len(), 1);
        sandboxes.delete(&namespace, "pod").expect("delete");
        assert_eq!(sandboxes.get(&namespace, "pod").expect_err("gone").kind(), Kind::NotFound);
    }
}
