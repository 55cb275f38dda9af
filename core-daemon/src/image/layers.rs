//! One layer between the content store and a snapshot's mounts, as the diff service has it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};

use rung_spec::digest::{Algorithm, Digest, Hasher};
use rung_spec::image::{Compression, Descriptor, Kind as MediaKind, media_types};
use rung_sys::beneath::Root;
use rung_sys::writeback::FileSystems;

use super::Images;
use super::fetch::{Form, Place};
use super::unpack::image_mount;
use crate::content::{Content, Ingest, IngestWriter};
use crate::context::Context;
use crate::diff::{self, Applied, Changes, Deferred, Payloads, Processors, Target, Wanted};
use crate::erofs;
use crate::error::{Doing, Error, Kind, Result};
use crate::id;
use crate::labels::{self, Labels};
use crate::snapshots::{Mount, Snapshotter};

/// On a layer that is an EROFS image: what it is for, and the one thing that it can be for here, which goes without saying.
const ROLE: &str = "org.erofs.role";
const LOWER: &str = "overlay-lower";
/// How much larger than its stored form a layer may be: more than gzip can compress anything.
const MAX_RATIO: u64 = 1100;
/// What any layer may unpack to, however small it is stored.
const MIN_LIMIT: u64 = 1 << 30;
/// What no layer unpacks to.
const MAX_LIMIT: u64 = 1 << 40;

/// The most bytes that a layer of `stored` bytes may unpack to.
pub fn unpacked_limit(stored: u64) -> u64 {
    stored.saturating_mul(MAX_RATIO).clamp(MIN_LIMIT, MAX_LIMIT)
}

/// Applies a layer that is in the content store to a directory of its own, and checks what it unpacks to.
pub(super) fn apply_stored(
    content: &Content,
    processors: &Processors,
    ctx: &Context,
    layer: &Descriptor,
    place: &Place,
) -> Result<Applied> {
    let blob = content.reader(ctx, &layer.digest)?;
    apply_file(processors, layer, place, blob.file)
}

/// Applies a layer from its file, as [`apply_checked`].
pub(super) fn apply_file(processors: &Processors, layer: &Descriptor, place: &Place, stored: File) -> Result<Applied> {
    if is_image(processors, layer, place)? {
        return apply_image(layer, place, BufReader::with_capacity(256 << 10, stored));
    }
    let plain = processors.plain(layer, stored, &diff::own_payloads(layer));
    apply_plain(layer, place, plain.doing(|| format!("unpack layer {}", layer.digest))?)
}

/// Applies a stored layer and checks that its plain tar is what the configuration says.
pub(super) fn apply_checked(layer: &Descriptor, place: &Place, stored: impl BufRead + Send) -> Result<Applied> {
    if let MediaKind::Erofs(_) = layer.kind() {
        return apply_image(layer, place, stored);
    }
    let doing = || format!("unpack layer {}", layer.digest);
    let (plain, _) = diff::decompress(stored).doing(doing)?;
    apply_plain(layer, place, plain)
}

/// Whether a layer is an EROFS image that is taken as it is.
///
/// # Errors
/// `Unimplemented` where it is one that cannot be.
pub(super) fn is_image(processors: &Processors, layer: &Descriptor, place: &Place) -> Result<bool> {
    let MediaKind::Erofs(packing) = layer.kind() else { return Ok(false) };
    if processors.take(layer)? {
        return Ok(false);
    }
    let role = layer.annotations.get(ROLE).map(String::as_str);
    let problem = match (&place.form, packing, role) {
        (Form::Directory(_), ..) => diff::ONLY_EROFS.to_owned(),
        (_, None, _) => "is packed in a way that is not known".to_owned(),
        (.., Some(role)) if role != LOWER => format!("has the role {role:?}; only {LOWER:?} is supported"),
        _ => return Ok(true),
    };
    Err(Error::unimplemented(format!("layer {} of type {}: {problem}", layer.digest, layer.media_type)))
}

/// Keeps a layer that is an EROFS image as it is. The kernel sees it once it is known to be the one that the image's
/// configuration names, and only then a pull goes on with it.
fn apply_image(layer: &Descriptor, place: &Place, stored: impl BufRead + Send) -> Result<Applied> {
    let doing = || format!("layer {}", layer.digest);
    let (MediaKind::Erofs(Some(packing)), Form::Image(path)) = (layer.kind(), &place.form) else {
        return Err(Error::unimplemented(format!("{}: {}", doing(), diff::ONLY_EROFS)));
    };
    let plain = diff::decompress_as(stored, packing).doing(doing)?;
    let taken = diff::read_ahead(plain, |plain| {
        // What a broken connection left of it was to be thrown away.
        rung_sys::beneath::remove(path)?;
        let size = erofs::store(path, plain, unpacked_limit(layer.size))?;
        Ok::<_, Error>((size, plain.digest()?))
    });
    let (size, is) = taken.doing(doing)?;
    check_plain(layer, place, &is)?;
    Target::to_read(&[image_mount(path)]).map_err(|error| Error::invalid(error.to_string())).doing(doing)?;
    Ok(Applied { size, deferred: Deferred::default(), image: None })
}

fn apply_plain(layer: &Descriptor, place: &Place, plain: impl Read + Send) -> Result<Applied> {
    let doing = || format!("unpack layer {}", layer.digest);
    let limit = unpacked_limit(layer.size);
    let applied = diff::read_ahead(plain, |plain| {
        let applied = match &place.form {
            Form::Directory(path) => diff::apply(Root::open(path)?, &mut *plain, place.mode, limit),
            Form::Image(path) => {
                // What a broken connection left of it was to be thrown away.
                rung_sys::beneath::remove(path)?;
                diff::convert(path, &mut *plain, place.mode, limit)
            }
        };
        Ok::<_, Error>((applied?, plain.digest()?))
    });
    let (applied, is) = applied.doing(doing)?;
    check_plain(layer, place, &is)?;
    Ok(applied)
}

/// Checks that what a layer is without its packing is what the configuration says.
fn check_plain(layer: &Descriptor, place: &Place, is: &Digest) -> Result<()> {
    let should = &place.diff_id;
    if is == should {
        return Ok(());
    }
    let text = format!("layer {} unpacks to {is}, but the image's configuration says {should}", layer.digest);
    Err(Error::new(Kind::DataLoss, format!("{text}; the image was built or pushed wrongly")))
}

impl Images {
    /// Applies a stored layer to what `mounts` show, through the programs that its media type asks for, which are sent
    /// their `payloads`; with `sync`, it is on disk then. Answers with the plain tar's descriptor.
    ///
    /// # Errors
    /// `NotFound` for the layer; what applying it fails with.
    pub fn apply(
        &self,
        ctx: &Context,
        layer: &Descriptor,
        mounts: &[Mount],
        payloads: &Payloads,
        sync: bool,
    ) -> Result<Descriptor> {
        let blob = self.content.reader(ctx, &layer.digest)?;
        let limit = unpacked_limit(blob.size);
        let plain = self.processors.plain(layer, blob.file, payloads)?;
        let target = Target::of(mounts)?;
        let doing = || format!("apply layer {}", layer.digest);
        let (root, disk) = (target.open()?, FileSystems::of([target.path.as_path()]).doing(doing)?);
        let applied = diff::read_ahead(plain, |plain| {
            let applied = diff::apply(root, &mut *plain, target.mode, limit)?;
            Ok::<_, Error>((applied, plain.digest()?))
        });
        let (applied, digest) = applied.doing(doing)?;
        diff::settle(&target.open()?, &target.lowers, applied.deferred).doing(doing)?;
        if sync {
            disk.flush().doing(doing)?;
        }
        let known = Labels::from([(labels::UNCOMPRESSED.to_owned(), digest.to_string())]);
        self.content.add_labels(ctx, &[(layer.digest.clone(), known)])?;
        Ok(Descriptor::new(media_types::OCI_LAYER, digest, applied.size))
    }

    /// Whether a client may have this applied: it is said to be a layer, or a program makes one of it.
    ///
    /// # Errors
    /// `Unimplemented` where not; `FailedPrecondition` for an encrypted layer that no program takes.
    pub fn check_layer(&self, layer: &Descriptor) -> Result<()> {
        if self.processors.take(layer)? || matches!(layer.kind(), MediaKind::Layer(_)) {
            return Ok(());
        }
        let problem = format!("no processor for media type {:?}, which is no layer's", layer.media_type);
        Err(Error::unimplemented(format!("apply {}: {problem}", layer.digest)))
    }

    /// Makes a layer of the difference between what two sets of mounts show, and stores it.
    ///
    /// # Errors
    /// `Unimplemented` for a media type that is no layer's; what reading and storing fail with.
    pub fn diff(&self, ctx: &Context, left: &[Mount], right: &[Mount], wanted: &NewLayer) -> Result<Descriptor> {
        let media_type = if wanted.media_type.is_empty() { media_types::OCI_LAYER_GZIP } else { &wanted.media_type };
        let MediaKind::Layer(kind) = MediaKind::of(media_type) else {
            return Err(Error::unimplemented(format!("diff: media type {media_type:?} is no layer's")));
        };
        let mut ingest = match wanted.reference.as_str() {
            "" => self.content.writer_once(ctx, "diff", 0, None)?,
            given => self.content.writer(ctx, given, 0, None)?,
        };
        ingest.truncate(0)?;
        let made = write_changes(&mut ingest, left, right, kind.compression, wanted.files());
        let plain = match made {
            Ok(plain) => plain,
            Err(error) => {
                ingest.abort();
                return Err(error.context("diff"));
            }
        };
        let size = ingest.offset();
        let mut labels = wanted.labels.clone();
        labels.insert(labels::UNCOMPRESSED.to_owned(), plain.to_string());
        let digest = ingest.store(size, None, labels)?;
        Ok(Descriptor::new(media_type, digest, size))
    }
}

/// A layer to be made.
#[derive(Debug, Clone, Default)]
pub struct NewLayer {
    /// What it is to be; gzip where nothing is said.
    pub media_type: String,
    /// The reference it is written under.
    pub reference: String,
    /// Labels of the blob.
    pub labels: Labels,
    /// The latest time in it, in seconds.
    pub latest: Option<i64>,
    /// As [`diff::Wanted::mounted_on`].
    pub mounted_on: &'static [&'static str],
}

impl NewLayer {
    fn files(&self) -> Wanted<'_> {
        Wanted { latest: self.latest, mounted_on: self.mounted_on }
    }
}

/// Shows `work` what a snapshot was made of, and the snapshot. What is made for that is held by the lease in `ctx`.
///
/// # Errors
/// `NotFound` for the snapshot; what `work` fails with.
pub fn compare<T>(
    ctx: &Context,
    snapshotter: &dyn Snapshotter,
    key: &str,
    work: impl FnOnce(&[Mount], &[Mount]) -> Result<T>,
) -> Result<T> {
    let right = snapshotter.mounts(ctx, key)?;
    let parent = snapshotter.stat(ctx, key)?.parent;
    if parent.is_empty() {
        return work(&[], &right);
    }
    let view = format!("compare-{}", id::random::<8>()?);
    let left = snapshotter.view(ctx, &view, &parent, Labels::new())?;
    let done = work(&left, &right);
    snapshotter.remove(ctx, &view)?;
    done
}

/// Writes what a snapshot changes as a layer that is not compressed, as [`compare`] finds it.
///
/// # Errors
/// What reading the files or writing fails with.
pub fn write_changes_of(ctx: &Context, snapshotter: &dyn Snapshotter, key: &str, to: impl Write) -> Result<()> {
    compare(ctx, snapshotter, key, |left, right| changes(left, right, Wanted::default(), to).map(drop))
}

/// Writes the changes, compressed, and answers with the digest of the plain tar.
fn write_changes(
    ingest: &mut Ingest,
    left: &[Mount],
    right: &[Mount],
    compression: Compression,
    wanted: Wanted<'_>,
) -> Result<Digest> {
    let stored = BufWriter::with_capacity(256 << 10, IngestWriter(ingest));
    match compression {
        Compression::None => changes(left, right, wanted, stored).map(|(digest, _)| digest),
        Compression::Gzip => {
            let encoder = flate2::write::GzEncoder::new(stored, flate2::Compression::default());
            let (digest, encoder) = changes(left, right, wanted, encoder)?;
            encoder.finish()?.flush()?;
            Ok(digest)
        }
        Compression::Zstd => {
            let encoder = zstd::stream::write::Encoder::new(stored, 3)?;
            let (digest, encoder) = changes(left, right, wanted, encoder)?;
            encoder.finish()?.flush()?;
            Ok(digest)
        }
    }
}

fn changes<W: Write>(left: &[Mount], right: &[Mount], wanted: Wanted<'_>, to: W) -> Result<(Digest, W)> {
    let to = Hashing { inner: to, hasher: Hasher::new(Algorithm::Sha256) };
    let mut to = match Target::changes(left, right) {
        Some(upper) => diff::create(&Changes::Upper(&Root::open(&upper)?), wanted, to)?,
        None if left.is_empty() => {
            let after = Target::to_read(right)?;
            diff::create(&Changes::All(&after.open()?), wanted, to)?
        }
        None => {
            let (before, after) = (Target::to_read(left)?, Target::to_read(right)?);
            diff::create(&Changes::Between(&before.open()?, &after.open()?), wanted, to)?
        }
    };
    to.flush()?;
    Ok((to.hasher.finish(), to.inner))
}

struct Hashing<W> {
    inner: W,
    hasher: Hasher,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
