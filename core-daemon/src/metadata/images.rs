//! Image records: (namespace, name) to `images.v1.Image`.

use gantry_proto::containerd::services::images::v1::Image;

use super::schema::IMAGES;
use super::{Tx, WriteTx};
use crate::error::Result;

/// One image.
///
/// # Errors
/// When the database cannot be read.
pub fn get(tx: &impl Tx, namespace: &str, name: &str) -> Result<Option<Image>> {
    tx.message(IMAGES, namespace, name)
}

/// All images of a namespace, by name.
///
/// # Errors
/// When the database cannot be read.
pub fn list(tx: &impl Tx, namespace: &str) -> Result<Vec<Image>> {
    tx.readable_messages(IMAGES, namespace)
}

/// Writes an image under its own name.
///
/// # Errors
/// When the database cannot be written.
pub fn put(tx: &WriteTx, namespace: &str, image: &Image) -> Result<()> {
    super::namespaces::touch(tx, namespace)?;
    tx.put_message(IMAGES, namespace, &image.name, image)
}

/// Removes an image and says whether there was one.
///
/// # Errors
/// When the database cannot be written.
pub fn delete(tx: &WriteTx, namespace: &str, name: &str) -> Result<bool> {
    tx.delete(IMAGES, namespace, name)
}
