//! One layer, in one pass: network → hash, store and inflate → hash and apply.
//!
//! ```text
//! task: blob stream, resumed ─8─► thread: ingest (stored digest), inflate ─4─► thread: directory
//!                                                                         └4─► thread: diff id
//! ```
//!
//! Bounded queues tie them together, so that a slow disk slows the network and memory stays bounded. The threads
//! are the layer's own: they wait for the network. What is stored of a layer that could not be finished stays, and the next
//! pull goes on from there.

use std::fs::File;
use std::io::{self, BufRead, Read, Take};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use rung_spec::digest::Digest;
use rung_spec::image::Descriptor;
use rung_sys::beneath;
use tokio::sync::mpsc;

use super::layers::{apply_checked, apply_file, apply_stored, is_image};
use super::receive::Way;
use super::room::Room;
use super::{Progress, Step};
use crate::blocking::{apart, blocking};
use crate::content::{Content, Ingest, Sealed};
use crate::context::Context;
use crate::diff::{Applied, Mode, Processors};
use crate::error::{Doing, Error, Kind, Result};
use crate::registry::Repository;

/// Pieces between the network and the thread that stores them, and bytes of one that comes from the disk.
const QUEUE: usize = 8;
pub(super) const PIECE: usize = 256 << 10;
/// Bytes between two reports.
const REPORT: u64 = 1 << 18;

/// A layer to fetch.
#[derive(Clone)]
pub(super) struct Job {
    pub(super) layer: Descriptor,
    /// Where and as what it is applied, if it is.
    pub(super) apply: Option<Place>,
}

impl Job {
    fn diff_id(&self) -> Option<Digest> {
        self.apply.as_ref().map(|place| place.diff_id.clone())
    }
}

/// Where a layer is applied.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) form: Form,
    pub(super) mode: Mode,
    /// What its plain tar must be.
    pub(super) diff_id: Digest,
}

/// What a layer becomes.
#[derive(Debug, Clone)]
pub(super) enum Form {
    /// Files in this directory.
    Directory(PathBuf),
    /// This file, an EROFS image.
    Image(PathBuf),
}

impl Form {
    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        let (Self::Directory(path) | Self::Image(path)) = self;
        path
    }

    /// Takes away all that bytes which were not right have left, what they said of the directory itself too.
    fn begin_anew(&self) -> Result<()> {
        // An image that was begun is thrown away by whoever makes it anew.
        let Self::Directory(path) = self else { return Ok(()) };
        let doing = || format!("empty {}", path.display());
        // The new one is made first: on a full disk a snapshot keeps its directory.
        let other = path.with_extension("anew");
        // One that was cut short may have left its own.
        beneath::remove(&other).doing(doing)?;
        std::fs::create_dir(&other).doing(doing)?;
        std::fs::set_permissions(&other, std::fs::Permissions::from_mode(0o755)).doing(doing)?;
        let exchange = RenameFlags::RENAME_EXCHANGE;
        renameat2(AT_FDCWD, &other, AT_FDCWD, path, exchange).map_err(io::Error::from).doing(doing)?;
        beneath::remove(&other).doing(doing)
    }
}

/// A fetched layer.
pub(super) struct Fetched {
    /// Its bytes, where they were not here before.
    pub(super) sealed: Option<Sealed>,
    /// What applying it came to, and the digest of its plain tar then.
    pub(super) applied: Option<Applied>,
    pub(super) diff_id: Option<Digest>,
}

/// What a layer is fetched with.
#[derive(Clone)]
pub(super) struct Fetcher {
    pub(super) content: Content,
    pub(super) repository: Repository,
    pub(super) ctx: Context,
    pub(super) progress: Arc<dyn Progress>,
    pub(super) processors: Processors,
    pub(super) room: Room,
}

impl Fetcher {
    /// Says of layers that they need not be fetched, and answers with those that are not here. The others stay.
    pub(super) async fn spare(&self, layers: &[Descriptor]) -> Result<Vec<Digest>> {
        layers.iter().for_each(|layer| self.progress.layer(&layer.digest, Step::Exists, layer.size, layer.size));
        let mut absent: Vec<Digest> = layers.iter().map(|layer| layer.digest.clone()).collect();
        let (content, ctx) = (self.content.clone(), self.ctx.clone());
        blocking(move || {
            for index in (0..absent.len()).rev() {
                if content.hold(&ctx, &absent[index])? {
                    absent.remove(index);
                }
            }
            Ok(absent)
        })
        .await
    }

    /// Fetches a layer, and applies it as it comes.
    pub(super) async fn layer(&self, mut job: Job) -> Result<Fetched> {
        let digest = job.layer.digest.clone();
        if let Some(place) = &job.apply {
            is_image(&self.processors, &job.layer, place)?;
        }
        self.progress.layer(&digest, Step::Waiting, 0, job.layer.size);
        let (content, ctx, wanted) = (self.content.clone(), self.ctx.clone(), digest.clone());
        if blocking(move || content.hold(&ctx, &wanted)).await? {
            match self.apply_stored(&job).await {
                // What is stored is not what it should be: it is fetched again.
                Err(error) if error.kind() == Kind::DataLoss && self.mend(&job).await? => {}
                applied => {
                    let applied = applied?;
                    self.progress.layer(&digest, Step::Exists, job.layer.size, job.layer.size);
                    return Ok(Fetched { sealed: None, applied, diff_id: job.diff_id() });
                }
            }
        }
        // What other programs see first they see whole.
        let is_apart = job.apply.is_some() && self.processors.take(&job.layer)?;
        let apart = if is_apart { job.apply.take() } else { None };
        let fetched = self.stream_again(&job).await;
        let mut fetched = fetched.map_err(|failure| failure.into_error(&self.repository, &job.layer))?;
        if let (Some(place), Some(sealed)) = (apart, &fetched.sealed) {
            let (processors, layer, stored) = (self.processors.clone(), job.layer.clone(), sealed.written()?);
            fetched.diff_id = Some(place.diff_id.clone());
            fetched.applied = Some(blocking(move || apply_file(&processors, &layer, &place, stored)).await?);
        }
        self.progress.layer(&digest, Step::Complete, job.layer.size, job.layer.size);
        Ok(fetched)
    }

    async fn apply_stored(&self, job: &Job) -> Result<Option<Applied>> {
        let Some(place) = job.apply.clone() else { return Ok(None) };
        let (content, ctx, layer) = (self.content.clone(), self.ctx.clone(), job.layer.clone());
        self.progress.layer(&layer.digest, Step::Extracting, 0, layer.size);
        let processors = self.processors.clone();
        blocking(move || apply_stored(&content, &processors, &ctx, &layer, &place)).await.map(Some)
    }

    /// Removes a layer's stored bytes if they are damaged, with what has been made of them, and says whether they were.
    async fn mend(&self, job: &Job) -> Result<bool> {
        let (content, job) = (self.content.clone(), job.clone());
        blocking(move || {
            let damaged = content.drop_damaged(&job.layer.digest)?;
            job.apply.filter(|_| damaged).map_or(Ok(()), |place| place.form.begin_anew())?;
            Ok(damaged)
        })
        .await
    }

    async fn begin_anew(&self, job: &Job) -> Result<()> {
        let place = job.apply.clone();
        blocking(move || place.map_or(Ok(()), |place| place.form.begin_anew())).await
    }

    /// Streams the layer, from the beginning once more where that may help.
    async fn stream_again(&self, job: &Job) -> Result<Fetched, Failure> {
        let (mut bad, mut anew, mut way) = (0, false, Way::default());
        loop {
            let result = self.stream(job, bad, &mut way).await;
            match &result {
                // Whoever puts slices together wrongly may well send the whole as it is.
                Err(failure) if failure.is_of_bytes() && way.is_of_slices() => {
                    tracing::debug!(digest = %job.layer.digest, "slices make a wrong layer");
                    way = Way::in_order();
                }
                // Bytes kept from an earlier pull were bad, and anybody's.
                Err(Failure::Stale) if !anew => anew = true,
                // What a mirror has is not always what the registry has.
                Err(failure) if bad == 0 && failure.is_of_bytes() && self.repository.has_mirrors() => {
                    tracing::debug!(digest = %job.layer.digest, "a mirror sent a wrong layer");
                    (bad, anew) = (usize::MAX, false);
                }
                _ => return result,
            }
            self.begin_anew(job).await.map_err(Failure::Other)?;
        }
    }

    /// Streams the layer, asking the first `bad` mirrors last.
    async fn stream(&self, job: &Job, bad: usize, way: &mut Way) -> Result<Fetched, Failure> {
        let (content, ctx, layer) = (self.content.clone(), self.ctx.clone(), job.layer.clone());
        let ingest = blocking(move || open(&content, &ctx, &layer)).await.map_err(Failure::Other)?;
        let offset = ingest.offset();
        let (to, from) = mpsc::channel(QUEUE);
        let (taken, progress) = (job.clone(), self.progress.clone());
        let taking = apart(move || Ok(take(ingest, &taken, from, progress)));
        let network = self.receive(&job.layer, offset, to, bad, way).await;
        let taken = taking.await.map_err(Failure::Other)?;
        // Of several failures the first cause counts, and that is the network's.
        network.map_err(Failure::Other).and(taken)
    }
}

/// Why a layer was not stored.
enum Failure {
    /// What an earlier pull left was not right; it is gone now.
    Stale,
    /// The registry sent something else.
    Wrong(Error),
    /// The other end gave up, for its own reason.
    Closed,
    /// Anything else.
    Other(Error),
}

impl Failure {
    /// Whether what was sent is the cause, or may be.
    fn is_of_bytes(&self) -> bool {
        match self {
            Self::Wrong(_) | Self::Stale => true,
            Self::Other(error) => matches!(error.kind(), Kind::DataLoss | Kind::InvalidArgument),
            Self::Closed => false,
        }
    }

    fn into_error(self, repository: &Repository, layer: &Descriptor) -> Error {
        let told = |problem: &dyn std::fmt::Display| {
            let host = repository.host();
            let remedy = "pull again, and if it stays so the registry's copy or a proxy between is damaged";
            Error::new(
                Kind::DataLoss,
                format!("registry {host}: sent a wrong layer {}: {problem}; {remedy}", layer.digest),
            )
        };
        match self {
            Self::Other(error) => error.context(format!("layer {}", layer.digest)),
            Self::Wrong(error) => told(&error),
            Self::Stale => told(&"twice in a row"),
            Self::Closed => Error::internal(format!("layer {}: was given up", layer.digest)),
        }
    }
}

/// Opens the layer's ingest; one of its own where another pull writes it.
fn open(content: &Content, ctx: &Context, layer: &Descriptor) -> Result<Ingest> {
    let open = |reference: &str| content.writer(ctx, reference, layer.size, Some(&layer.digest));
    let reference = format!("layer-{}", layer.digest);
    match open(&reference) {
        Err(error) if error.kind() == Kind::Unavailable => {
            open(&format!("{reference}-{}", ctx.lease.as_deref().unwrap_or("alone")))
        }
        Ok(mut ingest) if ingest.offset() > layer.size => {
            ingest.truncate(0)?;
            Ok(ingest)
        }
        other => other,
    }
}

/// Stores what comes, applies it as it comes, and checks the whole. Of several failures wrong bytes count before what they
/// made of the tar.
fn take(
    ingest: Ingest,
    job: &Job,
    from: mpsc::Receiver<Bytes>,
    progress: Arc<dyn Progress>,
) -> Result<Fetched, Failure> {
    let (layer, resumed) = (&job.layer, ingest.offset());
    let mut incoming = Incoming::new(ingest, layer, from, progress).map_err(Failure::Other)?;
    let applied = match &job.apply {
        // What follows the compressed tar is no part of it, but of the blob.
        Some(place) => apply_checked(layer, place, &mut incoming).map(Some),
        None => Ok(None),
    };
    let applied = applied.and_then(|applied| incoming.drain().doing(|| "read layer").map(|()| applied));
    let Incoming { ingest, failed, is_over, .. } = incoming;
    if let Some(error) = failed {
        return Err(Failure::Other(error));
    }
    if ingest.offset() < layer.size {
        return match applied {
            // What came so far makes no layer. The next pull must not go on from there.
            Err(error) if !is_over && error.kind() != Kind::ResourceExhausted => {
                ingest.abort();
                Err(if resumed > 0 { Failure::Stale } else { Failure::Other(error) })
            }
            applied => Err(applied.err().map_or(Failure::Closed, Failure::Other)),
        };
    }
    match ingest.seal(layer.size, Some(&layer.digest)) {
        Ok(sealed) => {
            let fetched = |applied| Fetched { sealed: Some(sealed), applied, diff_id: job.diff_id() };
            applied.map(fetched).map_err(Failure::Other)
        }
        Err((ingest, error)) => {
            ingest.abort();
            Err(if resumed > 0 { Failure::Stale } else { Failure::Wrong(error) })
        }
    }
}

/// A blob as it comes, read as one stream: first what an earlier pull has stored of it, then what the network brings, which
/// is stored before it is handed out. It ends where the blob does, and breaks where nothing comes any more.
struct Incoming {
    ingest: Ingest,
    layer: Descriptor,
    earlier: Take<File>,
    from: mpsc::Receiver<Bytes>,
    now: Bytes,
    progress: Arc<dyn Progress>,
    reported: u64,
    /// Why it cannot be stored.
    failed: Option<Error>,
    /// The network brings no more.
    is_over: bool,
}

impl Incoming {
    fn new(
        ingest: Ingest,
        layer: &Descriptor,
        from: mpsc::Receiver<Bytes>,
        progress: Arc<dyn Progress>,
    ) -> Result<Self> {
        let earlier = ingest.written()?.take(ingest.offset());
        let layer = layer.clone();
        Ok(Self {
            ingest,
            layer,
            earlier,
            from,
            now: Bytes::new(),
            progress,
            reported: 0,
            failed: None,
            is_over: false,
        })
    }

    /// The next piece; empty at the end.
    fn next(&mut self) -> io::Result<Bytes> {
        if self.earlier.limit() > 0 {
            let mut piece = vec![0; PIECE];
            let length = self.earlier.read(&mut piece)?;
            piece.truncate(length);
            return if length > 0 { Ok(piece.into()) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
        let (offset, size) = (self.ingest.offset(), self.layer.size);
        if offset == size {
            return Ok(Bytes::new());
        }
        let Some(piece) = self.from.blocking_recv() else {
            self.is_over = true;
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        if let Err(error) = self.ingest.write(&piece) {
            let told = io::Error::other(error.to_string());
            self.failed = Some(error);
            return Err(told);
        }
        let offset = self.ingest.offset();
        if offset == size {
            self.progress.layer(&self.layer.digest, Step::Extracting, size, size);
        } else if offset >= self.reported + REPORT {
            self.reported = offset;
            self.progress.layer(&self.layer.digest, Step::Downloading, offset, size);
        }
        Ok(piece)
    }

    fn drain(&mut self) -> io::Result<()> {
        loop {
            let length = self.fill_buf()?.len();
            if length == 0 {
                return Ok(());
            }
            self.consume(length);
        }
    }
}

impl BufRead for Incoming {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.now.is_empty() {
            self.now = self.next()?;
        }
        Ok(&self.now)
    }

    fn consume(&mut self, count: usize) {
        self.now.advance(count);
    }
}

impl Read for Incoming {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let length = self.fill_buf()?.read(out)?;
        self.consume(length);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_beginning_left_does_not_keep_the_next() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("fs");
        std::fs::create_dir(&path).expect("layer");
        std::fs::write(path.join("half"), "").expect("file");
        std::fs::create_dir_all(dir.path().join("fs.anew/left")).expect("left");
        Form::Directory(path.clone()).begin_anew().expect("anew");
        assert_eq!(std::fs::read_dir(&path).expect("layer").count(), 0);
        assert_eq!(std::fs::read_dir(dir.path()).expect("directory").count(), 1);
    }
}
