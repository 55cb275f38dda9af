//! Namespaces and their labels: ("", name) to `namespaces.v1.Namespace`.

use std::collections::BTreeSet;

use gantry_proto::containerd::services::namespaces::v1::Namespace;

use super::schema::{self, NAMESPACES};
use super::{Tx, WriteTx};
use crate::error::Result;

/// One namespace.
///
/// # Errors
/// When the database cannot be read.
pub fn get(tx: &impl Tx, name: &str) -> Result<Option<Namespace>> {
    tx.message(NAMESPACES, "", name)
}

/// All namespaces with their labels, by name. One whose record cannot be read is left out: to show them, or to grant what a
/// label grants. What is in a namespace is there whatever its labels are, so whoever looks for that asks for [`names`].
///
/// # Errors
/// When the database cannot be read.
pub fn list(tx: &impl Tx) -> Result<Vec<Namespace>> {
    tx.readable_messages(NAMESPACES, "")
}

/// The names of all namespaces, also of those whose records cannot be read: a blob of theirs that were taken for nobody's
/// would be removed.
///
/// # Errors
/// When the database cannot be read.
pub fn names(tx: &impl Tx) -> Result<Vec<String>> {
    let mut names = Vec::new();
    tx.scan(NAMESPACES, "", "", &mut |name, _| {
        names.push(name.to_owned());
        Ok(true)
    })?;
    Ok(names)
}

/// Writes a namespace under its own name.
///
/// # Errors
/// When the database cannot be written.
pub fn put(tx: &WriteTx, namespace: &Namespace) -> Result<()> {
    tx.put_message(NAMESPACES, "", &namespace.name, namespace)
}

/// Makes the namespace where nobody has yet: it comes into being with the first thing in it.
///
/// # Errors
/// When the database cannot be written.
pub fn touch(tx: &WriteTx, name: &str) -> Result<()> {
    if tx.get(NAMESPACES, "", name)?.is_none() {
        put(tx, &Namespace { name: name.to_owned(), ..Namespace::default() })?;
    }
    Ok(())
}

/// Removes a namespace, with what is nothing by itself in it, and says whether there was one. The caller has checked that
/// it is empty.
///
/// # Errors
/// When the database cannot be written.
pub fn delete(tx: &WriteTx, name: &str) -> Result<bool> {
    for table in [schema::LEASES, schema::LEASE_RESOURCES, schema::SANDBOXES] {
        tx.delete_prefix(table, name, "")?;
    }
    tx.delete(NAMESPACES, "", name)
}

/// The kinds of things that are left in a namespace, in containerd's words. Leases and sandboxes go with it.
///
/// # Errors
/// When the database cannot be read.
pub fn contents(tx: &impl Tx, name: &str) -> Result<Vec<String>> {
    let kinds = [(schema::IMAGES, "images"), (schema::CONTENT, "blobs"), (schema::CONTAINERS, "containers")];
    let mut left = Vec::new();
    for (table, kind) in kinds {
        if tx.any(table, name, "")? {
            left.push(kind.to_owned());
        }
    }
    let mut snapshotters = BTreeSet::new();
    tx.scan(schema::SNAPSHOTS, name, "", &mut |key, _| {
        snapshotters.extend(key.split('\0').next().map(str::to_owned));
        Ok(true)
    })?;
    left.extend(snapshotters.into_iter().map(|name| format!("snapshots on {name:?} snapshotter")));
    Ok(left)
}
