//! The content store: blobs named by their digest, and the ingests that become blobs.
//!
//! ```text
//! <root>/blobs/sha256/<hex>         complete, verified, flushed, never written again
//!       /ingest/<hash of namespace and ref>/{data,ingest.json}   being written; survives a restart and is resumed
//!       /damaged/<name>.<seconds>   taken out of the way by a check; kept a week
//! ```
//!
//! The bytes of a blob are shared by all namespaces, its record is not: a namespace sees only what it has a record of.
//! A blob is on disk before a record says so. Removing a record leaves the bytes to the collection, which removes those
//! that no namespace records any more. Calls block on the disk.

mod blobs;
mod claims;
mod ingest;
mod inspect;
mod verify;
mod writer;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use gantry_proto::containerd::events::{ContentCreate, ContentDelete};
pub use gantry_proto::containerd::services::content::v1::Info;
use rung_spec::digest::{Algorithm, Digest};
use rung_spec::image::Descriptor;

pub use ingest::{Ingest, Sealed, Status};
pub use inspect::Damage;
pub use verify::Pace;
pub use writer::IngestWriter;

use crate::context::Context;
use crate::error::{Doing, Error, Kind, Result};
use crate::events::Events;
use crate::id;
use crate::labels;
use crate::metadata::{Db, content as table, leases, namespaces};

/// What a lease calls a blob it holds.
pub const RESOURCE: &str = "content";
/// What a lease calls an ingest it holds.
pub const INGEST_RESOURCE: &str = "ingests";

/// The content store. Clones are the same store.
#[derive(Clone)]
pub struct Content(Arc<Store>);

struct Store {
    root: PathBuf,
    db: Db,
    events: Events,
    /// A namespace gets a blob that another has only by proving that it has the bytes.
    isolated: AtomicBool,
    /// Ingests that have a writer, by directory.
    writing: Mutex<HashSet<String>>,
    /// The file system has no files that the kernel checks.
    without_verity: AtomicBool,
    /// Blobs that are on disk for a record about to be written: not for collection.
    pending: Mutex<HashMap<Digest, usize>>,
}

/// An open blob.
#[derive(Debug)]
pub struct Blob {
    /// Its bytes, at the start.
    pub file: File,
    /// How many there are.
    pub size: u64,
}

impl Content {
    /// Keeps blobs below `root`, which is made.
    ///
    /// # Errors
    /// When the directories cannot be made.
    pub fn open(root: &Path, db: Db, events: Events) -> Result<Self> {
        for dir in ["blobs/sha256", "blobs/sha512", "ingest"] {
            let path = root.join(dir);
            let mut builder = std::fs::DirBuilder::new();
            builder.recursive(true).mode(0o700).create(&path).doing(|| format!("make {}", path.display()))?;
        }
        let (writing, pending) = (Mutex::default(), Mutex::default());
        let (isolated, without_verity) = (AtomicBool::new(false), AtomicBool::new(false));
        Ok(Self(Arc::new(Store { root: root.to_owned(), db, events, isolated, writing, without_verity, pending })))
    }

    /// The same store, in which a namespace gets a blob that another has only by writing it too.
    #[must_use]
    pub fn isolated(self, isolated: bool) -> Self {
        self.0.isolated.store(isolated, Ordering::Relaxed);
        self
    }

    /// Whether any namespace may have a blob that is here for the asking.
    fn is_shared(&self, digest: &Digest) -> Result<bool> {
        if !self.0.isolated.load(Ordering::Relaxed) {
            return Ok(true);
        }
        self.0.db.read(|tx| {
            for namespace in namespaces::list(tx)? {
                if namespace.labels.get(labels::SHAREABLE).is_some_and(|value| value == "true")
                    && table::get(tx, &namespace.name, digest.as_str())?.is_some()
                {
                    return Ok(true);
                }
            }
            Ok(false)
        })
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.0.root
    }

    /// What the namespace knows of a blob.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn info(&self, ctx: &Context, digest: &Digest) -> Result<Info> {
        self.0.db.read(|tx| table::get(tx, ctx.namespace.as_str(), digest.as_str()))?.ok_or_else(|| missing(digest))
    }

    /// Every blob of the namespace, by digest.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub fn list(&self, ctx: &Context) -> Result<Vec<Info>> {
        self.0.db.read(|tx| table::list(tx, ctx.namespace.as_str()))
    }

    /// Changes labels as the mask says, and answers with the result.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` for a field that cannot change.
    pub fn update(&self, ctx: &Context, wanted: &Info, mask: &[String]) -> Result<Info> {
        self.0.db.write(|tx| {
            let digest = parse(&wanted.digest)?;
            let mut info = table::get(tx, ctx.namespace.as_str(), digest.as_str())?.ok_or_else(|| missing(&digest))?;
            labels::update(&mut info.labels, &wanted.labels, mask, |path| {
                Err(Error::invalid(format!("cannot update field {path:?} of content {digest}")))
            })?;
            info.updated_at = Some(SystemTime::now().into());
            table::put(tx, ctx.namespace.as_str(), &info)?;
            Ok(info)
        })
    }

    /// Adds labels to several blobs in one transaction. One that is not there is skipped.
    ///
    /// # Errors
    /// When the records cannot be written.
    pub fn add_labels(&self, ctx: &Context, added: &[(Digest, labels::Labels)]) -> Result<()> {
        self.0.db.write(|tx| {
            for (digest, labels) in added {
                let Some(mut info) = table::get(tx, ctx.namespace.as_str(), digest.as_str())? else { continue };
                labels::learn(&mut info.labels, labels);
                labels::drop_empty(&mut info.labels);
                labels::check(&info.labels)?;
                info.updated_at = Some(SystemTime::now().into());
                table::put(tx, ctx.namespace.as_str(), &info)?;
            }
            Ok(())
        })
    }

    /// Takes a blob from the namespace.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn delete(&self, ctx: &Context, digest: &Digest) -> Result<()> {
        self.0.db.write(|tx| {
            if !table::delete(tx, ctx.namespace.as_str(), digest.as_str())? {
                return Err(missing(digest));
            }
            leases::release_for(tx, ctx, RESOURCE, digest.as_str())
        })?;
        self.0.events.announce(&ctx.namespace, "/content/delete", &ContentDelete { digest: digest.to_string() });
        Ok(())
    }

    /// Opens a blob of the namespace.
    ///
    /// # Errors
    /// `NotFound`; `DataLoss` where its file is gone or has another size.
    pub fn reader(&self, ctx: &Context, digest: &Digest) -> Result<Blob> {
        let info = self.info(ctx, digest)?;
        let size = u64::try_from(info.size).unwrap_or(0);
        match self.0.open_blob(digest)? {
            Some(blob) if blob.size == size => Ok(blob),
            Some(blob) => Err(damaged(digest, &format!("it has {} bytes instead of {size}", blob.size))),
            None => Err(damaged(digest, "its file is gone")),
        }
    }

    /// Reads a whole small blob, such as a manifest.
    ///
    /// # Errors
    /// As [`Content::reader`]; `ResourceExhausted` where it is larger than `limit`; `DataLoss` where the bytes are not
    /// what the digest says.
    pub fn read(&self, ctx: &Context, digest: &Digest, limit: u64) -> Result<Vec<u8>> {
        use std::io::Read;
        let mut blob = self.reader(ctx, digest)?;
        if blob.size > limit {
            let problem =
                format!("content {digest}: {} bytes, more than the {limit} that such a document may have", blob.size);
            return Err(Error::new(Kind::ResourceExhausted, problem));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(blob.size).unwrap_or(0));
        blob.file.read_to_end(&mut bytes).doing(|| format!("read content {digest}"))?;
        digest.verify(&bytes).map_err(|error| damaged(digest, &error.to_string()))?;
        Ok(bytes)
    }

    /// Whether the namespace has the blob whole: recorded, and on disk in its full length.
    ///
    /// # Errors
    /// When the records or the disk cannot be read.
    pub fn has(&self, ctx: &Context, digest: &Digest) -> Result<bool> {
        match self.reader(ctx, digest) {
            Ok(_) => Ok(true),
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::DataLoss) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Starts or resumes writing under `reference`. `total` 0 and no `expected`: not known yet.
    ///
    /// # Errors
    /// `AlreadyExists` where the namespace has what is expected, which the call's lease then holds; `Unavailable` while
    /// another writes under the same reference; `InvalidArgument` for an empty reference.
    pub fn writer(&self, ctx: &Context, reference: &str, total: u64, expected: Option<&Digest>) -> Result<Ingest> {
        Ingest::open(self, ctx, reference, total, expected, false)
    }

    /// Begins an ingest of its own for `what`, which is of no use to anybody else, and not kept once nobody writes it.
    ///
    /// # Errors
    /// As [`Content::writer`].
    pub fn writer_once(&self, ctx: &Context, what: &str, total: u64, expected: Option<&Digest>) -> Result<Ingest> {
        Ingest::open(self, ctx, &format!("{what}-{}", id::random::<8>()?), total, expected, true)
    }

    /// Stores `bytes` whole, and answers with their digest. What is already there is only put under the call's lease.
    ///
    /// # Errors
    /// When the disk or the records cannot be written.
    pub fn put(&self, ctx: &Context, bytes: &[u8], labels: labels::Labels) -> Result<Digest> {
        let digest = Digest::of(bytes);
        let size = bytes.len() as u64;
        let result = self.writer_once(ctx, &format!("put-{digest}"), size, Some(&digest)).and_then(|mut ingest| {
            if ingest.offset() != size {
                ingest.write(bytes)?;
            }
            ingest.store(size, Some(&digest), labels).map(drop)
        });
        match result {
            Err(error) if error.kind() != Kind::AlreadyExists => Err(error),
            _ => Ok(digest),
        }
    }

    /// Makes sealed ingests blobs, whose bytes the caller has flushed, and records all of them in one transaction;
    /// answers with those that are new. Those the namespace already has keep their labels, add these, and are put under
    /// the call's lease.
    ///
    /// # Errors
    /// When the disk or the records cannot be written: then nothing is recorded.
    pub fn publish(&self, ctx: &Context, sealed: Vec<(Sealed, labels::Labels)>) -> Result<Vec<Digest>> {
        self.record(ctx, sealed, true)
    }

    /// As [`Content::publish`]; those the namespace already has stay as they are unless they `learn` their labels.
    fn record(&self, ctx: &Context, sealed: Vec<(Sealed, labels::Labels)>, learn: bool) -> Result<Vec<Digest>> {
        let namespace = ctx.namespace.as_str();
        for (it, _) in &sealed {
            it.place()?;
        }
        for algorithm in sealed.iter().map(|(it, _)| it.digest().algorithm()).collect::<BTreeSet<_>>() {
            let synced = rung_sys::atomic_file::sync_directory(&self.0.blobs(algorithm));
            synced.map_err(std::io::Error::from).doing(|| "store content")?;
        }
        let mut created = Vec::new();
        self.0.db.write(|tx| {
            for (it, wanted) in &sealed {
                leases::hold_for(tx, ctx, RESOURCE, it.digest().as_str())?;
                if let Some(lease) = &ctx.lease {
                    leases::release(tx, namespace, lease, INGEST_RESOURCE, it.reference())?;
                }
                let known = table::get(tx, namespace, it.digest().as_str())?;
                if known.is_some() && !learn {
                    continue;
                }
                let mut info = known.clone().map_or_else(|| new_info(it), Ok)?;
                labels::learn(&mut info.labels, wanted);
                labels::drop_empty(&mut info.labels);
                labels::check(&info.labels)?;
                table::put(tx, namespace, &info)?;
                if known.is_none() {
                    created.push((it.digest().clone(), it.size()));
                }
            }
            Ok(())
        })?;
        let placed: Vec<Digest> = sealed.iter().map(|(it, _)| it.digest().clone()).collect();
        sealed.into_iter().for_each(|(it, _)| it.discard());
        // Nobody has them open for writing any more.
        placed.iter().for_each(|digest| self.0.seal_for_good(digest));
        for (digest, size) in &created {
            let size = i64::try_from(*size).unwrap_or(i64::MAX);
            let event = ContentCreate { digest: digest.to_string(), size, ..ContentCreate::default() };
            self.0.events.announce(&ctx.namespace, "/content/create", &event);
        }
        Ok(created.into_iter().map(|(digest, _)| digest).collect())
    }

    /// Writes a small blob whole, to be flushed and published with others; `None` where the namespace has it, which is
    /// then put under the call's lease.
    ///
    /// # Errors
    /// `InvalidArgument` where the bytes are not what the descriptor says; when the disk cannot be written.
    pub fn seal(&self, ctx: &Context, descriptor: &Descriptor, bytes: &[u8]) -> Result<Option<Sealed>> {
        let (digest, size) = (&descriptor.digest, bytes.len() as u64);
        let mut ingest = match self.writer_once(ctx, &format!("put-{digest}"), size, Some(digest)) {
            Err(error) if error.kind() == Kind::AlreadyExists => return Ok(None),
            other => other?,
        };
        if ingest.offset() != size {
            ingest.write(bytes)?;
        }
        match ingest.seal(size, Some(digest)) {
            Ok(sealed) => Ok(Some(sealed)),
            Err((ingest, error)) => {
                ingest.abort();
                Err(error)
            }
        }
    }

    /// Puts a blob that the namespace has under the call's lease, and says whether it has it whole.
    ///
    /// # Errors
    /// When the records cannot be written.
    pub fn hold(&self, ctx: &Context, digest: &Digest) -> Result<bool> {
        if !self.has(ctx, digest)? {
            return Ok(false);
        }
        if ctx.lease.is_none() {
            return Ok(true);
        }
        leases::change(&self.0.db, ctx, |tx| {
            // Between the look and the hold a collection may have taken the record.
            let there = table::get(tx, ctx.namespace.as_str(), digest.as_str())?.is_some();
            if there {
                leases::hold_for(tx, ctx, RESOURCE, digest.as_str())?;
            }
            Ok(there)
        })
    }
}

impl Store {
    fn pending(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, usize>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn blobs(&self, algorithm: Algorithm) -> PathBuf {
        self.root.join("blobs").join(algorithm.as_str())
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs(digest.algorithm()).join(digest.hex())
    }
}

fn new_info(it: &Sealed) -> Result<Info> {
    let now = Some(SystemTime::now().into());
    let size = i64::try_from(it.size()).map_err(|_| Error::invalid("content is larger than 2^63 bytes"))?;
    Ok(Info { digest: it.digest().to_string(), size, created_at: now, updated_at: now, labels: labels::Labels::new() })
}

/// Parses a digest that a client sent.
///
/// # Errors
/// `InvalidArgument`.
pub fn parse(digest: &str) -> Result<Digest> {
    Digest::parse(digest).map_err(|error| Error::invalid(error.to_string()))
}

fn missing(digest: &Digest) -> Error {
    Error::not_found(format!("content digest {digest}: not found"))
}

fn damaged(digest: &Digest, problem: &str) -> Error {
    Error::new(Kind::DataLoss, format!("content {digest} is damaged: {problem}; pull the image again to mend it"))
}

#[cfg(test)]
mod tests;
