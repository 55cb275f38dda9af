//! Leases, and what they hold: (namespace, id) to `leases.v1.Lease`; (namespace, id NUL type NUL name) to nothing.

use gantry_proto::containerd::services::leases::v1::{Lease, Resource};

use super::schema::{LEASE_RESOURCES, LEASES, join};
use super::{Db, Tx, WriteTx};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::labels;

/// One lease.
///
/// # Errors
/// When the database cannot be read.
pub fn get(tx: &impl Tx, namespace: &str, id: &str) -> Result<Option<Lease>> {
    tx.message(LEASES, namespace, id)
}

/// All leases of a namespace, by id.
///
/// # Errors
/// When the database cannot be read.
pub fn list(tx: &impl Tx, namespace: &str) -> Result<Vec<Lease>> {
    tx.readable_messages(LEASES, namespace)
}

/// Writes a lease under its own id.
///
/// # Errors
/// When the database cannot be written.
pub fn put(tx: &WriteTx, namespace: &str, lease: &Lease) -> Result<()> {
    super::namespaces::touch(tx, namespace)?;
    tx.put_message(LEASES, namespace, &lease.id, lease)
}

/// Removes a lease with all it holds, and says whether there was one.
///
/// # Errors
/// When the database cannot be written.
pub fn delete(tx: &WriteTx, namespace: &str, id: &str) -> Result<bool> {
    tx.delete_prefix(LEASE_RESOURCES, namespace, &join(&[id, ""]))?;
    tx.delete(LEASES, namespace, id)
}

/// Puts a resource under a lease.
///
/// # Errors
/// `NotFound` where there is no such lease.
pub fn hold(tx: &WriteTx, namespace: &str, lease: &str, kind: &str, id: &str) -> Result<()> {
    if tx.get(LEASES, namespace, lease)?.is_none() {
        return Err(Error::not_found(format!("lease {lease:?}: does not exist")));
    }
    tx.put(LEASE_RESOURCES, namespace, &join(&[lease, kind, id]), &[])
}

/// Puts a resource under the lease of the call, if it has one.
///
/// # Errors
/// As [`hold`].
pub fn hold_for(tx: &WriteTx, ctx: &Context, kind: &str, id: &str) -> Result<()> {
    match &ctx.lease {
        Some(lease) => hold(tx, ctx.namespace.as_str(), lease, kind, id),
        None => Ok(()),
    }
}

/// Changes what the call's lease holds, for an answer that counts on it: it is on disk when this returns, unless the lease
/// ends with the daemon anyway.
///
/// # Errors
/// What `f` fails with, or when the database cannot be written.
pub fn change<T>(db: &Db, ctx: &Context, f: impl FnOnce(&WriteTx) -> Result<T>) -> Result<T> {
    let lease = match &ctx.lease {
        Some(lease) => db.read(|tx| get(tx, ctx.namespace.as_str(), lease))?,
        None => None,
    };
    let is_temporary = lease.is_some_and(|lease| lease.labels.contains_key(labels::TEMPORARY));
    if is_temporary { db.write_soon(f) } else { db.write(f) }
}

/// Takes a resource from a lease; what was not held is no error.
///
/// # Errors
/// `NotFound` where there is no such lease.
pub fn release(tx: &WriteTx, namespace: &str, lease: &str, kind: &str, id: &str) -> Result<()> {
    if tx.get(LEASES, namespace, lease)?.is_none() {
        return Err(Error::not_found(format!("lease {lease:?}: does not exist")));
    }
    tx.delete(LEASE_RESOURCES, namespace, &join(&[lease, kind, id]))?;
    Ok(())
}

/// Takes a resource that is gone from the lease of the call, if it has one.
///
/// # Errors
/// When the database cannot be written.
pub fn release_for(tx: &WriteTx, ctx: &Context, kind: &str, id: &str) -> Result<()> {
    if let Some(lease) = &ctx.lease {
        tx.delete(LEASE_RESOURCES, ctx.namespace.as_str(), &join(&[lease, kind, id]))?;
    }
    Ok(())
}

/// What a lease holds.
///
/// # Errors
/// When the database cannot be read.
pub fn resources(tx: &impl Tx, namespace: &str, lease: &str) -> Result<Vec<Resource>> {
    let mut held = Vec::new();
    tx.scan(LEASE_RESOURCES, namespace, &join(&[lease, ""]), &mut |key, _| {
        let mut parts = key.splitn(3, '\0').skip(1);
        if let (Some(kind), Some(id)) = (parts.next(), parts.next()) {
            held.push(Resource { r#type: kind.to_owned(), id: id.to_owned() });
        }
        Ok(true)
    })?;
    Ok(held)
}
