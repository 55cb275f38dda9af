//! Container records: what a container is, whether or not it runs.

use std::time::SystemTime;

use gantry_proto::containerd::events::{ContainerCreate, ContainerDelete, ContainerUpdate, container_create};
use gantry_proto::containerd::services::containers::v1::Container;
use gantry_proto::namespace::Namespace;

use crate::error::{Error, Result};
use crate::events::Events;
use crate::filter::{self, Filter};
use crate::id::ContainerId;
use crate::labels;
use crate::metadata::{self, Db, WriteTx};

/// The container records of all namespaces.
#[derive(Clone)]
pub struct Containers {
    db: Db,
    events: Events,
}

impl Containers {
    /// Records in `db`, announced on `events`.
    pub fn new(db: Db, events: Events) -> Self {
        Self { db, events }
    }

    /// One container.
    ///
    /// # Errors
    /// `NotFound` without such a container.
    pub fn get(&self, namespace: &Namespace, id: &ContainerId) -> Result<Container> {
        let container = self.db.read(|tx| metadata::containers::get(tx, namespace.as_str(), id.as_str()))?;
        container.ok_or_else(|| missing(id))
    }

    /// The containers that pass `filter`, by id.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn list(&self, namespace: &Namespace, filter: &Filter) -> Result<Vec<Container>> {
        let mut containers = self.db.read(|tx| metadata::containers::list(tx, namespace.as_str()))?;
        containers.retain(|container| passes(container, filter));
        Ok(containers)
    }

    /// Another number once any record may have changed.
    pub fn changes(&self) -> u64 {
        self.db.changes()
    }

    /// The namespaces that there are.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn namespaces(&self) -> Result<Vec<Namespace>> {
        let names = self.db.read(metadata::namespaces::names)?;
        Ok(names.iter().filter_map(|name| Namespace::parse(name).ok()).collect())
    }

    /// Stores a new container and announces it.
    ///
    /// # Errors
    /// `InvalidArgument` naming the field that is wrong, `AlreadyExists` when its id is taken.
    pub fn create(&self, namespace: &Namespace, mut container: Container) -> Result<Container> {
        let id = ContainerId::parse(&container.id)?;
        check(&container)?;
        let now = SystemTime::now().into();
        container.created_at = Some(now);
        container.updated_at = Some(now);
        self.db.write(|tx| {
            if metadata::containers::get(tx, namespace.as_str(), id.as_str())?.is_some() {
                return Err(Error::already_exists(format!("container {id}: already exists")));
            }
            metadata::containers::put(tx, namespace.as_str(), &container)
        })?;
        let runtime = container.runtime.clone();
        let message = ContainerCreate {
            id: container.id.clone(),
            image: container.image.clone(),
            runtime: runtime.map(|runtime| container_create::Runtime { name: runtime.name, options: runtime.options }),
        };
        self.events.announce(namespace, "/containers/create", &message);
        Ok(container)
    }

    /// Replaces the fields of a container that `mask` names, or all that may change without a mask.
    ///
    /// # Errors
    /// `NotFound` without such a container, `InvalidArgument` for a field that is wrong or may not change.
    pub fn update(&self, namespace: &Namespace, wanted: &Container, mask: &[String]) -> Result<Container> {
        let id = match wanted.id.as_str() {
            "" => ContainerId::parse("")?,
            id => ContainerId::known(id)?,
        };
        self.edit(namespace, &id, |container| apply(container, wanted, mask))
    }

    /// Lets `edit` change a container, and announces the change.
    ///
    /// # Errors
    /// `NotFound` without such a container, and what `edit` fails with.
    pub fn edit(
        &self,
        namespace: &Namespace,
        id: &ContainerId,
        edit: impl FnOnce(&mut Container) -> Result<()>,
    ) -> Result<Container> {
        let container = self.db.write(|tx| {
            let container = metadata::containers::get(tx, namespace.as_str(), id.as_str())?;
            let mut container = container.ok_or_else(|| missing(id))?;
            edit(&mut container)?;
            check(&container)?;
            container.updated_at = Some(SystemTime::now().into());
            metadata::containers::put(tx, namespace.as_str(), &container)?;
            Ok(container)
        })?;
        let message = ContainerUpdate {
            id: container.id.clone(),
            image: container.image.clone(),
            labels: container.labels.clone(),
            snapshot_key: container.snapshot_key.clone(),
        };
        self.events.announce(namespace, "/containers/update", &message);
        Ok(container)
    }

    /// Removes a container and announces it.
    ///
    /// # Errors
    /// `NotFound` without such a container.
    pub fn delete(&self, namespace: &Namespace, id: &ContainerId) -> Result<()> {
        self.db.write(|tx| Self::delete_in(tx, namespace, id))?;
        self.announce_deleted(namespace, id);
        Ok(())
    }

    /// What [`Containers::flush`] wants to know from before a change.
    pub fn undone(&self) -> u64 {
        self.db.undone()
    }

    /// Has changes on disk that were made without waiting for that.
    ///
    /// # Errors
    /// As [`crate::metadata::Db::flush`].
    pub fn flush(&self, before: u64) -> Result<()> {
        self.db.flush(before)
    }

    /// Removes a container in a transaction that does more; it is to be announced when that is done.
    ///
    /// # Errors
    /// As [`Containers::delete`].
    pub fn delete_in(tx: &WriteTx, namespace: &Namespace, id: &ContainerId) -> Result<()> {
        let was = metadata::containers::delete(tx, namespace.as_str(), id.as_str())?;
        if was { Ok(()) } else { Err(missing(id)) }
    }

    /// Tells that a container was removed.
    pub fn announce_deleted(&self, namespace: &Namespace, id: &ContainerId) {
        self.events.announce(namespace, "/containers/delete", &ContainerDelete { id: id.to_string() });
    }
}

fn missing(id: &ContainerId) -> Error {
    Error::not_found(format!("container {id}: not found"))
}

/// Whether a container passes a filter.
pub fn passes(container: &Container, filter: &Filter) -> bool {
    filter.matches(|path| field(container, path))
}

/// A container's fields as filters call them.
fn field(container: &Container, path: &[String]) -> Option<String> {
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    let present = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    match path.as_slice() {
        ["id"] => present(&container.id),
        ["image"] => present(&container.image),
        ["runtime", "name"] => present(&container.runtime.as_ref()?.name),
        ["labels", rest @ ..] => {
            let rest: Vec<String> = rest.iter().map(|part| (*part).to_owned()).collect();
            filter::label(&container.labels, &rest)
        }
        _ => None,
    }
}

fn check(container: &Container) -> Result<()> {
    let invalid = |problem: &str| Err(Error::invalid(format!("container {}: {problem}", container.id)));
    if container.runtime.as_ref().is_none_or(|runtime| runtime.name.is_empty()) {
        return invalid("runtime.name is required");
    }
    if !container.snapshot_key.is_empty() && container.snapshotter.is_empty() {
        return invalid("snapshotter is required with a snapshot_key");
    }
    if container.extensions.contains_key("") {
        return invalid("extension needs a name");
    }
    labels::check(&container.labels)
}

fn apply(container: &mut Container, wanted: &Container, mask: &[String]) -> Result<()> {
    if mask.is_empty() {
        let immutable = |field: &str| Err(Error::invalid(format!("container {}: {field} cannot change", wanted.id)));
        if container.snapshotter != wanted.snapshotter {
            return immutable("snapshotter");
        }
        let name = |container: &Container| container.runtime.as_ref().map(|runtime| runtime.name.clone());
        if name(container) != name(wanted) {
            return immutable("runtime.name");
        }
        container.labels.clone_from(&wanted.labels);
        container.spec.clone_from(&wanted.spec);
        container.extensions.clone_from(&wanted.extensions);
        container.image.clone_from(&wanted.image);
        container.snapshot_key.clone_from(&wanted.snapshot_key);
        return Ok(());
    }
    for path in mask {
        apply_one(container, wanted, path)?;
    }
    Ok(())
}

fn apply_one(container: &mut Container, wanted: &Container, path: &str) -> Result<()> {
    if let Some(name) = path.strip_prefix("labels.") {
        match wanted.labels.get(name).filter(|value| !value.is_empty()) {
            Some(value) => container.labels.insert(name.to_owned(), value.clone()),
            None => container.labels.remove(name),
        };
        return Ok(());
    }
    if let Some(name) = path.strip_prefix("extensions.") {
        match wanted.extensions.get(name) {
            Some(value) => container.extensions.insert(name.to_owned(), value.clone()),
            None => container.extensions.remove(name),
        };
        return Ok(());
    }
    match path {
        "labels" => container.labels.clone_from(&wanted.labels),
        "extensions" => container.extensions.clone_from(&wanted.extensions),
        "spec" => container.spec.clone_from(&wanted.spec),
        "image" => container.image.clone_from(&wanted.image),
        "snapshotkey" | "snapshot_key" => container.snapshot_key.clone_from(&wanted.snapshot_key),
        _ => return Err(Error::invalid(format!("container {}: {path} cannot be updated", wanted.id))),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use gantry_proto::containerd::services::containers::v1::container::Runtime;

    fn container(id: &str) -> Container {
        Container {
            id: id.into(),
            runtime: Some(Runtime { name: "io.containerd.rung.v2".into(), options: None }),
            spec: Some(prost_types::Any::default()),
            ..Container::default()
        }
    }

    fn records() -> (tempfile::TempDir, Containers, Namespace) {
        let dir = tempfile::tempdir().expect("directory");
        let db = Db::open(&dir.path().join("meta.redb")).expect("database");
        (dir, Containers::new(db, Events::new()), Namespace::parse("n").expect("namespace"))
    }

    #[test]
    fn create_get_delete() {
        let (_dir, records, namespace) = records();
        let made = records.create(&namespace, container("a")).expect("create");
        assert!(made.created_at.is_some());
        let id = ContainerId::parse("a").expect("id");
        assert_eq!(records.get(&namespace, &id).expect("get"), made);
        assert_eq!(records.create(&namespace, container("a")).expect_err("twice").kind(), Kind::AlreadyExists);
        records.delete(&namespace, &id).expect("delete");
        assert_eq!(records.get(&namespace, &id).expect_err("gone").kind(), Kind::NotFound);
        assert_eq!(records.delete(&namespace, &id).expect_err("gone").kind(), Kind::NotFound);
    }

    #[test]
    fn updates_follow_their_mask() {
        let (_dir, records, namespace) = records();
        records.create(&namespace, container("a")).expect("create");
        let mut wanted = container("a");
        wanted.image = "other".into();
        wanted.labels.insert("x.y".into(), "1".into());
        let updated = records.update(&namespace, &wanted, &["labels.x.y".into()]).expect("update");
        assert_eq!((updated.image.as_str(), updated.labels["x.y"].as_str()), ("", "1"));
        wanted.snapshotter = "native".into();
        assert_eq!(records.update(&namespace, &wanted, &[]).expect_err("immutable").kind(), Kind::InvalidArgument);
        assert_eq!(
            records.update(&namespace, &wanted, &["created_at".into()]).expect_err("unknown").kind(),
            Kind::InvalidArgument
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        let (_dir, records, namespace) = records();
        let error = records.create(&namespace, Container { runtime: None, ..container("a") }).expect_err("no runtime");
        assert!(error.to_string().contains("runtime.name"), "{error}");
        assert!(records.create(&namespace, container("../a")).is_err());
        let with = |name: &str| {
            let extensions = [(name.to_owned(), prost_types::Any::default())].into_iter().collect();
            records.create(&namespace, Container { extensions, ..container("a") })
        };
        assert!(with("").is_err());
        with("untyped").expect("the type of an extension is its own affair");
    }
}
