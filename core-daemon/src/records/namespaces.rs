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

    /// Changes labels as the mask says: all of them without one. A namespace that is not there comes into being.
    ///
    /// # Errors
    /// `InvalidArgument` for the name, a label or a field that cannot change.
    pub fn update(&self, name: &str, wanted: &Labels, mask: &[String]) -> Result<Record> {
        let namespace = parse(name)?;
        let record = self.db.write(|tx| {
            let mut record = table::get(tx, name)?.unwrap_or_else(|| unlabelled(name));
            labels::update(&mut record.labels, wanted, mask, |path| {
                Err(Error::invalid(format!("cannot update field {path:?} of namespace {name}")))
            })?;
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
