//! Snapshot records: (namespace, snapshotter NUL name) to [`Record`], and from each parent to its children.

use gantry_proto::containerd::services::snapshots::v1::Info;

use super::schema::{FACTS, SNAPSHOT_CHILDREN, SNAPSHOTS, join};
use super::{Tx, WriteTx};
use crate::error::Result;

/// A snapshot, as it is stored.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Record {
    /// What clients see.
    #[prost(message, required, tag = "1")]
    pub info: Info,
    /// Names its directory; unique in its snapshotter, over all namespaces.
    #[prost(uint64, tag = "2")]
    pub number: u64,
    /// Bytes it takes, once committed.
    #[prost(uint64, tag = "3")]
    pub size: u64,
    /// Inodes it takes, once committed.
    #[prost(uint64, tag = "4")]
    pub inodes: u64,
    /// The lowest number whose directories were not known to be on the disk when this was written; 0 where that is not known.
    #[prost(uint64, tag = "5")]
    pub fresh: u64,
}

/// One snapshot.
///
/// # Errors
/// When the database cannot be read.
pub fn get(tx: &impl Tx, namespace: &str, snapshotter: &str, name: &str) -> Result<Option<Record>> {
    tx.message(SNAPSHOTS, namespace, &join(&[snapshotter, name]))
}

/// All snapshots of a namespace in a snapshotter, by name. One whose record cannot be read is left out: nobody removes what
/// is not in this list.
///
/// # Errors
/// When the database cannot be read.
pub fn list(tx: &impl Tx, namespace: &str, snapshotter: &str) -> Result<Vec<Record>> {
    let mut all = Vec::new();
    tx.scan(SNAPSHOTS, namespace, &join(&[snapshotter, ""]), &mut |key, bytes| {
        match decode(key, bytes) {
            Ok(record) => all.push(record),
            Err(error) => tracing::error!(namespace, %error, "a record is left out"),
        }
        Ok(true)
    })?;
    Ok(all)
}

/// All snapshots of a snapshotter with their namespaces, and none left out: files that no record names are removed.
///
/// # Errors
/// When the database cannot be read.
pub fn list_all(tx: &impl Tx, snapshotter: &str) -> Result<Vec<(String, Record)>> {
    let mut all = Vec::new();
    tx.scan_all(SNAPSHOTS, &mut |namespace, key, bytes| {
        if key.split('\0').next() == Some(snapshotter) {
            all.push((namespace.to_owned(), decode(key, bytes)?));
        }
        Ok(())
    })?;
    Ok(all)
}

/// The highest number of a snapshotter's snapshots, 0 without any, and with their namespaces those whose directories were not
/// known to be on the disk when a record was written last. One whose record cannot be read keeps nobody from the others: its
/// number is taken as long as its files are there.
///
/// # Errors
/// When the database cannot be read.
pub fn recent(tx: &impl Tx, snapshotter: &str) -> Result<(u64, Vec<(String, Record)>)> {
    let (mut highest, mut fresh, mut recent) = (0, 0, Vec::new());
    tx.scan_all(SNAPSHOTS, &mut |namespace, key, bytes| {
        if key.split('\0').next() == Some(snapshotter) {
            match decode(key, bytes) {
                Ok(record) => {
                    highest = highest.max(record.number);
                    // The later a record was written, the higher is what it says: this keeps few at any time.
                    if record.fresh > fresh {
                        fresh = record.fresh;
                        recent.retain(|(_, other): &(String, Record)| other.number >= fresh);
                    }
                    // One that says nothing is from before it was noted, and was flushed first.
                    if record.fresh > 0 && record.number >= fresh {
                        recent.push((namespace.to_owned(), record));
                    }
                }
                Err(error) => tracing::error!(%error, "a record is left out"),
            }
        }
        Ok(())
    })?;
    Ok((highest, recent))
}

/// Writes a snapshot under its own name, and its place among its parent's children.
///
/// # Errors
/// When the database cannot be written.
pub fn put(tx: &WriteTx, namespace: &str, snapshotter: &str, record: &Record) -> Result<()> {
    super::namespaces::touch(tx, namespace)?;
    let info = &record.info;
    if !info.parent.is_empty() {
        tx.put(SNAPSHOT_CHILDREN, namespace, &join(&[snapshotter, &info.parent, &info.name]), &[])?;
    }
    tx.put_message(SNAPSHOTS, namespace, &join(&[snapshotter, &info.name]), record)
}

/// Removes a snapshot and its place among its parent's children.
///
/// # Errors
/// When the database cannot be written.
pub fn delete(tx: &WriteTx, namespace: &str, snapshotter: &str, record: &Record) -> Result<()> {
    let info = &record.info;
    if !info.parent.is_empty() {
        tx.delete(SNAPSHOT_CHILDREN, namespace, &join(&[snapshotter, &info.parent, &info.name]))?;
    }
    tx.delete(SNAPSHOTS, namespace, &join(&[snapshotter, &info.name]))?;
    Ok(())
}

/// Whether any snapshot has `name` as its parent.
///
/// # Errors
/// When the database cannot be read.
pub fn has_children(tx: &impl Tx, namespace: &str, snapshotter: &str, name: &str) -> Result<bool> {
    tx.any(SNAPSHOT_CHILDREN, namespace, &join(&[snapshotter, name, ""]))
}

/// In which boot of the machine a snapshotter was looked after last, if that is known.
///
/// # Errors
/// When the database cannot be read.
pub fn boot(tx: &impl Tx, snapshotter: &str) -> Result<Option<String>> {
    let boot = tx.get(FACTS, "", &join(&["boot", snapshotter]))?;
    Ok(boot.and_then(|bytes| String::from_utf8(bytes).ok()))
}

/// Notes it.
///
/// # Errors
/// When the database cannot be written.
pub fn set_boot(tx: &WriteTx, snapshotter: &str, boot: &str) -> Result<()> {
    tx.put(FACTS, "", &join(&["boot", snapshotter]), boot.as_bytes())
}

fn decode(key: &str, bytes: &[u8]) -> Result<Record> {
    use prost::Message;
    Record::decode(bytes)
        .map_err(|error| crate::error::Error::new(crate::error::Kind::DataLoss, format!("snapshot {key:?}: {error}")))
}
