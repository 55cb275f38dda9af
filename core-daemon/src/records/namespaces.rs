//! Namespace records.

use gantry_proto::containerd::events::{NamespaceCreate, NamespaceDelete, NamespaceUpdate};
pub use gantry_proto::containerd::services::namespaces::v1::Namespace as Record;
use gantry_proto::namespace::Namespace;

use crate::error::{Error, Result};
use crate::events::Events;
use crate::labels::{self, Labels};
use crate::metadata::{Db, namespaces as table};

/// The namespaces.
#[derive(Clone)]
pub struct Namespaces {
    db: Db,
    events: Events,
}

impl Namespaces {
    /// Records in `db`, announced on `events`.
    pub fn new(db: Db, events: Events) -> Self {
        Self { db, events }
    }

    /// One namespace. One in which nothing is yet has no labels: clients ask for defaults before they make the first thing.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub fn get(&self, name: &str) -> Result<Record> {
        Ok(self.db.read(|tx| table::get(tx, name))?.unwrap_or_else(|| unlabelled(name)))
    }

    /// All namespaces.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub fn list(&self) -> Result<Vec<Record>> {
        self.db.read(table::list)
    }

    /// Makes a namespace.
    ///
    /// # Errors
    /// `AlreadyExists`; `InvalidArgument` for the name or a label.
    pub fn create(&self, record: Record) -> Result<Record> {
        let name = parse(&record.name)?;
        labels::check(&record.labels)?;
        self.db.write(|tx| {
            if table::get(tx, name.as_str())?.is_some() {
                return Err(Error::already_exists(format!("namespace {name}: already exists")));
            }
            table::put(tx, &record)
        })?;
        let event = NamespaceCreate { name: record.name.clone(), labels: record.labels.clone() };
        self.events.announce(&name, "/namespaces/create", &event);
        Ok(record)
    }

    /// Changes labels as the mask says: all of them without one. A label can be the first thing in a namespace, and makes it.
    ///
    /// # Errors
    /// `InvalidArgument` for the name, and for a field that cannot change.
    pub fn update(&self, name: &str, wanted: &Labels, mask: &[String]) -> Result<Record> {
        let namespace = parse(name)?;
        let record = self.db.write(|tx| {
            let refused = |path: &str| Error::invalid(format!("cannot update field {path:?} of namespace {name}"));
            // Here, unlike elsewhere, a mask names single labels only.
            if mask.iter().any(|path| path == "labels") {
                return Err(refused("labels"));
            }
            let mut record = table::get(tx, name)?.unwrap_or_else(|| unlabelled(name));
            labels::update(&mut record.labels, wanted, mask, |path| Err(refused(path)))?;
            table::put(tx, &record)?;
            Ok(record)
        })?;
        let event = NamespaceUpdate { name: record.name.clone(), labels: record.labels.clone() };
        self.events.announce(&namespace, "/namespaces/update", &event);
        Ok(record)
    }

    /// Removes an empty namespace.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` saying what is left in it.
    pub fn delete(&self, name: &str) -> Result<()> {
        let namespace = parse(name)?;
        self.db.write(|tx| {
            table::get(tx, name)?.ok_or_else(|| missing(name))?;
            let left = table::contents(tx, name)?;
            if !left.is_empty() {
                let left = left.join(", ");
                return Err(Error::precondition(format!("namespace {name} must be empty, but it still has {left}")));
            }
            table::delete(tx, name)
        })?;
        self.events.announce(&namespace, "/namespaces/delete", &NamespaceDelete { name: name.to_owned() });
        Ok(())
    }
}

fn parse(name: &str) -> Result<Namespace> {
    Namespace::parse(name).map_err(|error| Error::invalid(format!("namespace: {error}")))
}

fn unlabelled(name: &str) -> Record {
    Record { name: name.to_owned(), ..Record::default() }
}

fn missing(name: &str) -> Error {
    Error::not_found(format!("namespace {name}: not found"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn a_namespace_that_nobody_made_has_no_labels_and_is_made_by_the_first() {
        let dir = tempfile::tempdir().expect("directory");
        let namespaces = Namespaces::new(Db::open(&dir.path().join("meta.redb")).expect("database"), Events::new());
        assert_eq!(namespaces.get("new").expect("get"), unlabelled("new"));
        assert!(namespaces.list().expect("list").is_empty(), "asking made it");
        let wanted = Labels::from([("a".to_owned(), "1".to_owned())]);
        let whole = namespaces.update("new", &wanted, &["labels".to_owned()]).expect_err("the whole of the labels");
        assert_eq!(whole.kind(), Kind::InvalidArgument);
        assert!(namespaces.list().expect("list").is_empty(), "a refused update made it");
        let made = namespaces.update("new", &wanted, &["labels.a".to_owned()]).expect("update");
        assert_eq!((made.name.as_str(), &made.labels), ("new", &wanted));
        assert_eq!(namespaces.get("new").expect("get"), made);
        assert_eq!(namespaces.update("../x", &wanted, &[]).expect_err("malformed").kind(), Kind::InvalidArgument);
        namespaces.delete("new").expect("delete");
        assert_eq!(namespaces.delete("new").expect_err("gone").kind(), Kind::NotFound);
    }
}
