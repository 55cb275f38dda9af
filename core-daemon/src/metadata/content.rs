//! Blobs as a namespace sees them: (namespace, digest) to `content.v1.Info`. The bytes are shared by all namespaces.

use gantry_proto::containerd::services::content::v1::Info;

use super::schema::CONTENT;
use super::{Tx, WriteTx};
use crate::error::Result;

/// One blob.
///
/// # Errors
/// When the database cannot be read.
pub fn get(tx: &impl Tx, namespace: &str, digest: &str) -> Result<Option<Info>> {
    tx.message(CONTENT, namespace, digest)
}

/// All blobs of a namespace, by digest. One whose record cannot be read is left out: nobody removes what is not in this list.
///
/// # Errors
/// When the database cannot be read.
pub fn list(tx: &impl Tx, namespace: &str) -> Result<Vec<Info>> {
    tx.readable_messages(CONTENT, namespace)
}

/// Writes a blob's record under its digest.
///
/// # Errors
/// When the database cannot be written.
pub fn put(tx: &WriteTx, namespace: &str, info: &Info) -> Result<()> {
    super::namespaces::touch(tx, namespace)?;
    tx.put_message(CONTENT, namespace, &info.digest, info)
}

/// Removes a blob's record and says whether there was one.
///
/// # Errors
/// When the database cannot be written.
pub fn delete(tx: &WriteTx, namespace: &str, digest: &str) -> Result<bool> {
    tx.delete(CONTENT, namespace, digest)
}
