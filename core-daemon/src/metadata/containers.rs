//! Container records: (namespace, id) to `containers.v1.Container`.

use gantry_proto::containerd::services::containers::v1::Container;

use super::schema::CONTAINERS;
use super::{Tx, WriteTx};
use crate::error::Result;

/// One container.
///
/// # Errors
/// When the database cannot be read.
pub fn get(tx: &impl Tx, namespace: &str, id: &str) -> Result<Option<Container>> {
    tx.message(CONTAINERS, namespace, id)
}

/// All containers of a namespace, by id.
///
/// # Errors
/// When the database cannot be read.
pub fn list(tx: &impl Tx, namespace: &str) -> Result<Vec<Container>> {
    tx.readable_messages(CONTAINERS, namespace)
}

/// Writes a container under its own id.
///
/// # Errors
/// When the database cannot be written.
pub fn put(tx: &WriteTx, namespace: &str, container: &Container) -> Result<()> {
    super::namespaces::touch(tx, namespace)?;
    tx.put_message(CONTAINERS, namespace, &container.id, container)
}

/// Removes a container and says whether there was one.
///
/// # Errors
/// When the database cannot be written.
pub fn delete(tx: &WriteTx, namespace: &str, id: &str) -> Result<bool> {
    tx.delete(CONTAINERS, namespace, id)
}
