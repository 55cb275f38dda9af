//! One layer between the content store and a snapshot's mounts, as the diff service has it.

use std::io::{BufRead, BufReader};

use rung_spec::image::{Descriptor, media_types};
use rung_sys::beneath::Root;

use super::Images;
use super::fetch::Place;
use crate::content::Content;
use crate::context::Context;
use crate::diff::{self, Applied, Target};
use crate::error::{Doing, Error, Kind, Result};
use crate::labels::{self, Labels};
use crate::snapshots::Mount;

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
pub(super) fn apply_stored(content: &Content, ctx: &Context, layer: &Descriptor, place: &Place) -> Result<Applied> {
    let blob = content.reader(ctx, &layer.digest)?;
    apply_checked(layer, place, BufReader::with_capacity(256 << 10, blob.file))
}

/// Applies a stored layer and checks that its plain tar is what the configuration says.
pub(super) fn apply_checked(layer: &Descriptor, place: &Place, stored: impl BufRead + Send) -> Result<Applied> {
    let doing = || format!("unpack layer {}", layer.digest);
    let (plain, _) = diff::decompress(stored).doing(doing)?;
    let root = Root::open(&place.directory).doing(doing)?;
    let applied = diff::apply(root, plain, place.mode, unpacked_limit(layer.size)).doing(doing)?;
    if applied.digest != place.diff_id {
        let (is, should) = (&applied.digest, &place.diff_id);
        let text = format!("layer {} unpacks to {is}, but the image's configuration says {should}", layer.digest);
        return Err(Error::new(Kind::DataLoss, format!("{text}; the image was built or pushed wrongly")));
    }
    Ok(applied)
}

impl Images {
    /// Applies a stored layer to what `mounts` show; with `sync`, it is on disk then. Answers with the plain tar's
    /// descriptor.
    ///
    /// # Errors
    /// `NotFound` for the layer; what applying it fails with.
    pub fn apply(&self, ctx: &Context, layer: &Descriptor, mounts: &[Mount], sync: bool) -> Result<Descriptor> {
        let blob = self.content.reader(ctx, &layer.digest)?;
        let limit = unpacked_limit(blob.size);
        let (plain, _) = diff::decompress(BufReader::with_capacity(256 << 10, blob.file))?;
        let target = Target::of(mounts)?;
        let doing = || format!("apply layer {}", layer.digest);
        let applied = diff::apply(target.open()?, plain, target.mode, limit).doing(doing)?;
        diff::settle(&target.open()?, &target.lowers, applied.deferred).doing(doing)?;
        if sync {
            nix::unistd::syncfs(target.open()?).map_err(std::io::Error::from).doing(doing)?;
        }
        target.close().doing(doing)?;
        let known = Labels::from([(labels::UNCOMPRESSED.to_owned(), applied.digest.to_string())]);
        self.content.add_labels(ctx, &[(layer.digest.clone(), known)])?;
        Ok(Descriptor::new(media_types::OCI_LAYER, applied.digest, applied.size))
    }

    /// Makes a layer of the difference between what two sets of mounts show.
    ///
    /// # Errors
    /// Not offered yet.
    pub fn diff(&self, _ctx: &Context, _left: &[Mount], _right: &[Mount]) -> Result<Descriptor> {
        Err(Error::unimplemented("diff: making layers is not in this build yet"))
    }
}
