//! Lease records: what must not be collected yet.

use std::borrow::Cow;
use std::time::SystemTime;

pub use gantry_proto::containerd::services::leases::v1::{Lease, Resource};
use prost::Message as _;

use crate::content;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::filter::{Filter, label};
use crate::id;
use crate::labels::{self, Labels};
use crate::metadata::schema::LEASES;
use crate::metadata::{Db, Tx as _, leases as table};
use crate::snapshots::Snapshotters;

/// The leases of all namespaces.
#[derive(Clone)]
pub struct Leases {
    db: Db,
    snapshotters: Snapshotters,
}

impl Leases {
    /// Records in `db`, of resources that include snapshots of `snapshotters`.
    pub fn new(db: Db, snapshotters: Snapshotters) -> Self {
        Self { db, snapshotters }
    }

    /// Makes a lease, of a name nobody else has where none is given.
    ///
    /// # Errors
    /// `AlreadyExists`; `InvalidArgument` for the id or a label.
    pub fn create(&self, ctx: &Context, id: &str, mut labels: Labels) -> Result<Lease> {
        let id = &*if id.is_empty() { Cow::from(id::random::<8>()?) } else { Cow::from(id) };
        check_id(id)?;
        labels::drop_empty(&mut labels);
        labels::check(&labels)?;
        let lease = Lease { id: id.to_owned(), created_at: Some(SystemTime::now().into()), labels };
        self.db.write(|tx| {
            if table::get(tx, ctx.namespace.as_str(), id)?.is_some() {
                return Err(Error::already_exists(format!("lease {id:?}: already exists")));
            }
            table::put(tx, ctx.namespace.as_str(), &lease)
        })?;
        Ok(lease)
    }

    /// Makes a lease of a name nobody else has, which expires after `hours` if the daemon dies before deleting it.
    ///
    /// # Errors
    /// When it cannot be recorded.
    pub fn temporary(&self, ctx: &Context, purpose: &str, hours: i64) -> Result<Lease> {
        let id = format!("gantry-{purpose}-{}", id::random::<8>()?);
        let expire = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(hours);
        let labels = Labels::from([
            (labels::GC_EXPIRE.to_owned(), expire.to_string()),
            (labels::TEMPORARY.to_owned(), "true".to_owned()),
        ]);
        let lease = Lease { id, created_at: Some(SystemTime::now().into()), labels };
        self.db.write_soon(|tx| table::put(tx, ctx.namespace.as_str(), &lease))?;
        Ok(lease)
    }

    /// Deletes a lease that [`Leases::temporary`] made; that it was gone already is no error.
    ///
    /// # Errors
    /// When the records cannot be written.
    pub fn end(&self, ctx: &Context, id: &str) -> Result<()> {
        self.db.write_soon(|tx| table::delete(tx, ctx.namespace.as_str(), id)).map(drop)
    }

    /// Deletes the leases that an earlier daemon worked under when it was killed, or whose end was not on disk yet: what they
    /// hold would stay until they expire.
    ///
    /// # Errors
    /// When the records cannot be written.
    pub fn end_all_temporary(&self) -> Result<()> {
        let mut left = Vec::new();
        self.db.read(|tx| {
            tx.scan_all(LEASES, &mut |namespace, id, bytes| {
                if Lease::decode(bytes).is_ok_and(|lease| lease.labels.contains_key(labels::TEMPORARY)) {
                    left.push((namespace.to_owned(), id.to_owned()));
                }
                Ok(())
            })
        })?;
        if left.is_empty() {
            return Ok(());
        }
        self.db.write(|tx| left.iter().try_for_each(|(namespace, id)| table::delete(tx, namespace, id).map(drop)))
    }

    /// Deletes a lease; what it held may then be collected.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn delete(&self, ctx: &Context, id: &str) -> Result<()> {
        if self.db.write(|tx| table::delete(tx, ctx.namespace.as_str(), id))? { Ok(()) } else { Err(missing(id)) }
    }

    /// The leases that pass `filter`.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub fn list(&self, ctx: &Context, filter: &Filter) -> Result<Vec<Lease>> {
        let mut all = self.db.read(|tx| table::list(tx, ctx.namespace.as_str()))?;
        all.retain(|lease| {
            filter.matches(|path| match path {
                [name] if name == "id" => Some(lease.id.clone()),
                [name, rest @ ..] if name == "labels" => label(&lease.labels, rest),
                _ => None,
            })
        });
        Ok(all)
    }

    /// Puts a resource under a lease.
    ///
    /// # Errors
    /// `NotFound` for the lease; as [`Leases::check`] for the resource.
    pub fn add(&self, ctx: &Context, id: &str, resource: &Resource) -> Result<()> {
        self.check(resource)?;
        self.db.write(|tx| table::hold(tx, ctx.namespace.as_str(), id, &resource.r#type, &resource.id))
    }

    /// Takes a resource from a lease.
    ///
    /// # Errors
    /// As [`Leases::add`].
    pub fn remove(&self, ctx: &Context, id: &str, resource: &Resource) -> Result<()> {
        self.check(resource)?;
        self.db.write(|tx| table::release(tx, ctx.namespace.as_str(), id, &resource.r#type, &resource.id))
    }

    /// What a lease holds.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn resources(&self, ctx: &Context, id: &str) -> Result<Vec<Resource>> {
        self.db.read(|tx| {
            table::get(tx, ctx.namespace.as_str(), id)?.ok_or_else(|| missing(id))?;
            table::resources(tx, ctx.namespace.as_str(), id)
        })
    }

    /// Checks that a resource is of a kind that can be held, and well named.
    fn check(&self, resource: &Resource) -> Result<()> {
        let (kind, id) = (resource.r#type.as_str(), resource.id.as_str());
        if id.is_empty() || id.contains('\0') {
            return Err(Error::invalid(format!("lease resource of type {kind:?}: its id is malformed")));
        }
        match kind.split_once('/') {
            None if kind == content::RESOURCE => content::parse(id).map(drop),
            None if matches!(kind, content::INGEST_RESOURCE | super::images::RESOURCE) => Ok(()),
            None if kind == "snapshots" => Err(Error::invalid("lease resource type snapshots: names no snapshotter")),
            Some(("snapshots", name)) if !name.is_empty() && !name.contains('/') => {
                self.snapshotters.get(name).map(drop)
            }
            Some((content::RESOURCE | content::INGEST_RESOURCE | super::images::RESOURCE | "snapshots", _)) => {
                Err(Error::invalid(format!("lease resource type {kind}: has a part too many or an empty one")))
            }
            _ => Err(Error::unimplemented(format!("resource type {kind} not supported yet"))),
        }
    }
}

/// Clients name leases by random base64, which is not always an identifier.
fn check_id(id: &str) -> Result<()> {
    if id.is_empty() || id.len() > MAX_ID || !id.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Error::invalid(format!("lease {id:?}: its id must be 1 to {MAX_ID} printable characters")));
    }
    Ok(())
}

/// Longest lease id.
const MAX_ID: usize = 1024;

fn missing(id: &str) -> Error {
    Error::not_found(format!("lease {id:?}: not found"))
}
