//! One layer between the content store and a snapshot's mounts, as the diff service has it.

use std::io::BufReader;

use rung_spec::image::{Descriptor, media_types};

use super::Images;
use crate::context::Context;
use crate::diff::{self, Target};
use crate::error::{Doing, Error, Result};
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
