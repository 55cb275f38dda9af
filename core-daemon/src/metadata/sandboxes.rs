//! Sandbox records: (namespace, id) to `types.Sandbox`.

use gantry_proto::containerd::types::Sandbox;

use super::schema::SANDBOXES;
use super::{Tx, WriteTx};
use crate::error::Result;

/// One sandbox.
///
/// # Errors
/// When the database cannot be read.
pub fn get(tx: &impl Tx, namespace: &str, id: &str) -> Result<Option<Sandbox>> {
    tx.message(SANDBOXES, namespace, id)
}

/// All sandboxes of a namespace, by id.
///
/// # Errors
/// When the database cannot be read.
pub fn list(tx: &impl Tx, namespace: &str) -> Result<Vec<Sandbox>> {
    tx.readable_messages(SANDBOXES, namespace)
}

/// Writes a sandbox under its own id.
///
/// # Errors
/// When the database cannot be written.
pub fn put(tx: &WriteTx, namespace: &str, sandbox: &Sandbox) -> Result<()> {
    super::namespaces::touch(tx, namespace)?;
    tx.put_message(SANDBOXES, namespace, &sandbox.sandbox_id, sandbox)
}

/// Removes a sandbox and says whether there was one.
///
/// # Errors
/// When the database cannot be written.
pub fn delete(tx: &WriteTx, namespace: &str, id: &str) -> Result<bool> {
    tx.delete(SANDBOXES, namespace, id)
}
