//! An ingest: bytes on their way to a blob, one writer at a time, kept over restarts so that it can be resumed.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rung_spec::digest::{Algorithm, Digest, Hasher};
use serde::{Deserialize, Serialize};

use super::blobs::HashWriter;
use super::claims::{Lock, Pending};
use super::{Content, INGEST_RESOURCE};
use crate::context::Context;
use crate::error::{Doing, Error, Result};
use crate::labels::Labels;
use crate::metadata::{content as table, leases};

/// How long an ingest that nobody writes and no lease holds is kept for resuming.
pub(super) const KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// What is written goes on to the disk in pieces of this size, so that flushing all of it does not take long in the end.
const EARLY: u64 = 8 << 20;

/// What is known of an ingest, beside its data.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct About {
    namespace: String,
    reference: String,
    total: u64,
    expected: Option<Digest>,
    /// Nanoseconds since 1970.
    started: u64,
    /// Nobody knows its reference who could go on with it.
    #[serde(default)]
    once: bool,
}

/// An ingest as clients see it.
#[derive(Debug, Clone)]
pub struct Status {
    /// The reference it is written under.
    pub reference: String,
    /// Bytes written.
    pub offset: u64,
    /// Bytes there will be; 0 where not known.
    pub total: u64,
    /// What it will be, where known.
    pub expected: Option<Digest>,
    /// When it was begun.
    pub started: SystemTime,
    /// When it last grew.
    pub updated: SystemTime,
    /// Nobody goes on with it who does not write it now.
    pub(super) once: bool,
}

/// The one writer of an ingest. Dropped, it leaves the data for the next one.
pub struct Ingest {
    content: Content,
    ctx: Context,
    about: About,
    dir: PathBuf,
    _lock: Lock,
    offset: u64,
    data: Data,
}

enum Data {
    /// Bytes in the ingest's file, hashed so far.
    Own { file: File, hasher: Box<Hasher> },
    /// Nothing to write: the bytes are there already, from another namespace whose digest the client knows.
    /// Pending from before it was found, so that no collection takes it meanwhile.
    Shared(Pending),
}

/// Bytes that are what they should be, for [`Content::publish`]. Dropped, they stay an ingest.
pub struct Sealed {
    pending: Pending,
    ingest: Box<Ingest>,
}

impl Ingest {
    pub(super) fn open(
        content: &Content,
        ctx: &Context,
        reference: &str,
        total: u64,
        expected: Option<&Digest>,
        once: bool,
    ) -> Result<Self> {
        if reference.is_empty() {
            return Err(Error::invalid("content: ref must not be empty"));
        }
        if let Some(expected) = expected
            && content.hold(ctx, expected)?
        {
            return Err(Error::already_exists(format!("content {expected}")));
        }
        let name = dir_name(ctx, reference);
        let lock = Lock::take(&content.0, &name, reference)?;
        let dir = content.0.root.join("ingest").join(&name);
        let about = About {
            namespace: ctx.namespace.to_string(),
            reference: reference.to_owned(),
            total,
            expected: expected.cloned(),
            started: nanoseconds(SystemTime::now()),
            once,
        };
        let (about, data, offset) = match shared(content, &about)? {
            Some((pending, size)) => (about, Data::Shared(pending), size),
            None => {
                if ctx.lease.is_some() {
                    content.0.db.write_soon(|tx| leases::hold_for(tx, ctx, INGEST_RESOURCE, reference))?;
                }
                let (about, file, hasher, offset) = begin_or_resume(&dir, about)?;
                (about, Data::Own { file, hasher: Box::new(hasher) }, offset)
            }
        };
        Ok(Self { content: content.clone(), ctx: ctx.clone(), about, dir, _lock: lock, offset, data })
    }

    /// Bytes written so far; writing goes on here.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The expected total; 0 where not known.
    pub fn total(&self) -> u64 {
        self.about.total
    }

    /// The digest of what is written so far.
    pub fn digest(&self) -> Digest {
        match &self.data {
            Data::Own { hasher, .. } => Hasher::clone(hasher).finish(),
            Data::Shared(pending) => pending.digest.clone(),
        }
    }

    /// The bytes written so far, from the beginning.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn written(&self) -> Result<File> {
        let path = match &self.data {
            Data::Own { .. } => self.dir.join("data"),
            Data::Shared(pending) => self.content.0.blob(&pending.digest),
        };
        File::open(&path).doing(|| format!("read {}", path.display()))
    }

    /// How it stands.
    pub fn status(&self) -> Status {
        status(&self.dir, &self.about, self.offset)
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// When the disk cannot be written; what was written before stays and can be resumed.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        if let Data::Shared(pending) = &self.data {
            let blob = self.content.0.blob(&pending.digest);
            self.make_own(&blob)?;
        }
        let Data::Own { file, hasher } = &mut self.data else {
            return Err(Error::internal(format!("ref {}: has no data of its own", self.about.reference)));
        };
        // The kernel's own time of a change is that of its last tick, which may be before the call.
        if let Err(error) = file.write_all(bytes).and_then(|()| file.set_modified(SystemTime::now())) {
            // A part may have been written: the file is what the hash says, or a resume would build on it.
            drop(file.set_len(self.offset));
            drop(file.seek(SeekFrom::Start(self.offset)));
            return Err(error).doing(|| format!("write content {}", self.about.reference));
        }
        hasher.update(bytes);
        self.offset += bytes.len() as u64;
        let (before, piece) = (self.offset - bytes.len() as u64, self.offset / EARLY);
        if piece > before / EARLY {
            rung_sys::writeback::start(file.as_fd(), (piece - 1) * EARLY, EARLY);
        }
        Ok(())
    }

    /// Goes back to `offset`, which only the beginning is supported for.
    ///
    /// # Errors
    /// `InvalidArgument` for another offset; when the disk cannot be written.
    pub fn truncate(&mut self, offset: u64) -> Result<()> {
        if offset != 0 {
            return Err(Error::invalid(format!("ref {}: can only go back to its beginning", self.about.reference)));
        }
        match &mut self.data {
            Data::Own { file, hasher } => {
                file.set_len(0).and_then(|()| file.rewind()).doing(|| format!("truncate {}", self.about.reference))?;
                **hasher = Hasher::new(algorithm(&self.about));
            }
            Data::Shared(_) => {
                let (_, file, hasher, _) = begin_or_resume(&self.dir, self.about.clone())?;
                self.data = Data::Own { file, hasher: Box::new(hasher) };
                self.offset = 0;
                return self.truncate(0);
            }
        }
        self.offset = 0;
        Ok(())
    }

    /// Copies the bytes of a shared blob, to go on from there.
    fn make_own(&mut self, blob: &Path) -> Result<()> {
        let doing = || format!("copy {}", blob.display());
        let mut source = File::open(blob).doing(doing)?;
        self.truncate(0)?;
        let mut buffer = vec![0; 1 << 18];
        loop {
            match source.read(&mut buffer).doing(doing)? {
                0 => return Ok(()),
                count => self.write(&buffer[..count])?,
            }
        }
    }

    /// Makes the bytes a blob and records it, for a client. `size` 0 and no `expected`: not checked.
    ///
    /// # Errors
    /// `FailedPrecondition` where size or digest differ: the ingest stays, to be aborted or mended; `AlreadyExists`
    /// where the namespace has the blob, which the call's lease then holds, and which keeps its labels.
    pub fn commit(self, size: u64, expected: Option<&Digest>, labels: Labels) -> Result<Digest> {
        match self.record(size, expected, labels, false)? {
            (digest, true) => Ok(digest),
            (digest, false) => Err(Error::already_exists(format!("content {digest}"))),
        }
    }

    /// As [`Ingest::commit`], for whom it is no error that the blob is there: it gets these labels, too.
    ///
    /// # Errors
    /// As [`Ingest::commit`], but for `AlreadyExists`.
    pub fn store(self, size: u64, expected: Option<&Digest>, labels: Labels) -> Result<Digest> {
        self.record(size, expected, labels, true).map(|(digest, _)| digest)
    }

    /// The blob's digest, and whether it is new.
    fn record(self, size: u64, expected: Option<&Digest>, labels: Labels, learn: bool) -> Result<(Digest, bool)> {
        crate::labels::check(&labels)?;
        let (content, ctx) = (self.content.clone(), self.ctx.clone());
        let sealed = self.seal(size, expected).map_err(|(_, error)| error)?;
        if let Data::Own { file, .. } = &sealed.ingest.data {
            // What was not written is lost, and no later flush would say so: the client has to send it again.
            file.sync_all()
                .inspect_err(|_| drop(file.set_len(0)))
                .doing(|| format!("store content {}", sealed.digest()))?;
        }
        let digest = sealed.digest().clone();
        let created = content.record(&ctx, vec![(sealed, labels)], learn)?;
        Ok((digest, !created.is_empty()))
    }

    /// Checks that the bytes are what they should be. What is not comes back to be mended or aborted.
    ///
    /// # Errors
    /// `FailedPrecondition` where size or digest differ.
    pub fn seal(self, size: u64, expected: Option<&Digest>) -> Result<Sealed, (Box<Self>, Error)> {
        match self.check(size, expected) {
            Ok(digest) => {
                let pending = Pending::new(&self.content.0, digest);
                Ok(Sealed { pending, ingest: Box::new(self) })
            }
            Err(error) => Err((Box::new(self), error)),
        }
    }

    fn check(&self, size: u64, expected: Option<&Digest>) -> Result<Digest> {
        let reference = &self.about.reference;
        if size != 0 && size != self.offset {
            let problem = format!("{reference:?} failed size validation: {} bytes instead of {size}", self.offset);
            return Err(Error::precondition(problem));
        }
        let digest = match expected {
            // The digest is wanted in another algorithm than what was written was hashed by.
            Some(expected) if expected.algorithm() != self.digest().algorithm() => {
                let hashed = rehash(&mut self.written()?, expected.algorithm());
                hashed.doing(|| format!("hash {reference:?}"))?.0.finish()
            }
            _ => self.digest(),
        };
        if let Some(expected) = expected
            && *expected != digest
        {
            return Err(Error::precondition(format!("{reference:?} has digest {digest} instead of {expected}")));
        }
        Ok(digest)
    }

    /// Throws the bytes away.
    pub fn abort(self) {
        discard(&self.dir, &self.about.reference);
    }
}

impl Sealed {
    /// Its name.
    pub fn digest(&self) -> &Digest {
        &self.pending.digest
    }

    /// Its length.
    pub fn size(&self) -> u64 {
        self.ingest.offset
    }

    /// Its bytes, from the beginning.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn written(&self) -> Result<File> {
        self.ingest.written()
    }

    /// The reference it was written under, and the lease that holds that.
    pub(super) fn reference(&self) -> &str {
        &self.ingest.about.reference
    }

    /// Gives the data, which is flushed, its name. A blob that is there already, and has its full length, stays.
    pub(super) fn place(&self) -> Result<()> {
        let (store, digest) = (&self.ingest.content.0, self.digest());
        let target = store.blob(digest);
        let is_there = std::fs::metadata(&target).is_ok_and(|metadata| metadata.len() == self.size());
        match &self.ingest.data {
            _ if is_there => Ok(()),
            Data::Own { file, .. } => file
                .set_permissions(std::fs::Permissions::from_mode(0o444))
                .and_then(|()| std::fs::rename(self.ingest.dir.join("data"), &target))
                .doing(|| format!("store content {digest}")),
            Data::Shared(_) => Err(Error::unavailable(format!("content {digest}: was removed meanwhile, write it"))),
        }
    }

    /// Removes what is left of the ingest.
    pub(crate) fn discard(self) {
        discard(&self.ingest.dir, &self.ingest.about.reference);
    }
}

impl Content {
    /// The ingest under `reference`.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn status(&self, ctx: &Context, reference: &str) -> Result<Status> {
        let dir = self.0.root.join("ingest").join(dir_name(ctx, reference));
        read_status(&dir)
            .map(|(_, status)| status)
            .ok_or_else(|| Error::not_found(format!("ref {reference}: not found")))
    }

    /// Every ingest of the namespace.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn statuses(&self, ctx: &Context) -> Result<Vec<Status>> {
        let all = self.ingests()?.into_iter();
        Ok(all.filter(|(namespace, _)| namespace == ctx.namespace.as_str()).map(|(_, status)| status).collect())
    }

    /// Every ingest with its namespace.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn ingests(&self) -> Result<Vec<(String, Status)>> {
        let dir = self.0.root.join("ingest");
        let entries = std::fs::read_dir(&dir).doing(|| format!("list {}", dir.display()))?;
        let mut all: Vec<_> = entries.flatten().filter_map(|entry| read_status(&entry.path())).collect();
        all.sort_by(|a, b| a.1.reference.cmp(&b.1.reference));
        Ok(all)
    }

    /// Throws an ingest away.
    ///
    /// # Errors
    /// `NotFound`. Who is still writing it finds out at the commit.
    pub fn abort(&self, ctx: &Context, reference: &str) -> Result<()> {
        let name = dir_name(ctx, reference);
        let dir = self.0.root.join("ingest").join(&name);
        if !dir.exists() {
            return Err(Error::not_found(format!("ingest ref {reference:?}: not found")));
        }
        self.0.db.write_soon(|tx| leases::release_for(tx, ctx, INGEST_RESOURCE, reference))?;
        discard(&dir, reference);
        Ok(())
    }
}

/// Whether the bytes are there from another namespace, for a client that knows their digest. Who names a length as well
/// names theirs.
fn shared(content: &Content, about: &About) -> Result<Option<(Pending, u64)>> {
    let Some(expected) = &about.expected else { return Ok(None) };
    let recorded = content.0.db.read(|tx| table::get(tx, &about.namespace, expected.as_str()))?;
    if recorded.is_some() {
        // Recorded here but not whole, or the caller would have been told: it is to be written again.
        return Ok(None);
    }
    if !content.is_shared(expected)? {
        return Ok(None);
    }
    let pending = Pending::new(&content.0, expected.clone());
    let blob = content.0.open_blob(expected)?;
    Ok(blob.filter(|blob| about.total == 0 || blob.size == about.total).map(|blob| (pending, blob.size)))
}

fn begin_or_resume(dir: &Path, about: About) -> Result<(About, File, Hasher, u64)> {
    let doing = |what: &str| format!("{what} ingest {}", about.reference);
    // Something of another length is something else, which was begun under the same reference.
    let is_same = |status: &Status| about.total == 0 || status.total == 0 || about.total == status.total;
    if let Some((_, status)) = read_status(dir).filter(|(_, status)| is_same(status)) {
        // What it was to be then does not bind whoever goes on with it: a commit says what it is to be.
        let mut resumed = about.clone();
        resumed.total = about.total.max(status.total);
        resumed.started = nanoseconds(status.started);
        let mut file = open_data(dir).doing(|| doing("resume"))?;
        if let Err(error) = rung_sys::writeback::read_back(&file) {
            tracing::warn!(reference = about.reference, %error, "an ingest begins anew, whose bytes the disk has not all");
            file.set_len(0).doing(|| doing("resume"))?;
        }
        let (hasher, offset) = rehash(&mut file, algorithm(&resumed)).doing(|| doing("resume"))?;
        return Ok((resumed, file, hasher, offset));
    }
    // What is not readable as an ingest is what a crash left of one.
    discard(dir, &about.reference);
    DirBuilder::new().mode(0o700).create(dir).doing(|| doing("begin"))?;
    let file = open_data(dir).doing(|| doing("begin"))?;
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_nanos(about.started)).doing(|| doing("begin"))?;
    let json = serde_json::to_vec(&about).map_err(|error| Error::internal(error.to_string()))?;
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(dir.join("ingest.json")).and_then(|mut it| it.write_all(&json)).doing(|| doing("begin"))?;
    let hasher = Hasher::new(algorithm(&about));
    Ok((about, file, hasher, 0))
}

fn open_data(dir: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(dir.join("data"))
}

/// The hash of what is there, with the file at its end.
fn rehash(file: &mut File, algorithm: Algorithm) -> std::io::Result<(Hasher, u64)> {
    let mut hasher = Hasher::new(algorithm);
    file.rewind()?;
    let offset = std::io::copy(file, &mut HashWriter(&mut hasher))?;
    Ok((hasher, offset))
}

pub(super) fn read_status(dir: &Path) -> Option<(String, Status)> {
    let about: About = serde_json::from_slice(&std::fs::read(dir.join("ingest.json")).ok()?).ok()?;
    let offset = std::fs::metadata(dir.join("data")).ok()?.len();
    let status = status(dir, &about, offset);
    Some((about.namespace, status))
}

fn status(dir: &Path, about: &About, offset: u64) -> Status {
    let started = SystemTime::UNIX_EPOCH + Duration::from_nanos(about.started);
    let updated = std::fs::metadata(dir.join("data")).and_then(|metadata| metadata.modified()).unwrap_or(started);
    let (reference, expected) = (about.reference.clone(), about.expected.clone());
    Status { reference, offset, total: about.total, expected, started, updated, once: about.once }
}

pub(super) fn discard(dir: &Path, reference: &str) {
    match rung_sys::beneath::remove(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            tracing::warn!(reference, %error, "left an ingest for the next collection");
        }
        _ => {}
    }
}

fn algorithm(about: &About) -> Algorithm {
    about.expected.as_ref().map_or(Algorithm::Sha256, Digest::algorithm)
}

fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Any text can be a reference, so its hash names the directory.
fn dir_name(ctx: &Context, reference: &str) -> String {
    Digest::of(format!("{}/{reference}", ctx.namespace)).hex().to_owned()
}
