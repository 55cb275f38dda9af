//! What a pull has fetched and not recorded yet.

use std::sync::Arc;

use rung_spec::digest::Digest;
use rung_spec::image::{ImageConfig, Manifest};
use tokio::task::JoinSet;

use super::disks::Disks;
use super::fetch::{Fetched, Fetcher, Job};
use super::flights::{Flights, Turn};
use super::origin::Origin;
use super::unpack::Stack;
use crate::blocking::blocking;
use crate::content::{Content, Sealed};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::labels::{self, Labels};

/// Blobs, layers being unpacked, and the turns for both, which last until they are recorded.
pub(super) struct Haul {
    pub(super) fetched: Vec<(Sealed, Labels)>,
    pub(super) stacks: Vec<Stack>,
    /// Images to be unpacked once they are recorded: into a further snapshotter.
    pub(super) later: Vec<Later>,
    /// Something was fetched, even if it is recorded already.
    pub(super) is_new: bool,
    turns: Vec<Turn>,
    disks: Arc<Disks>,
}

/// An image that is unpacked once it is recorded.
pub(super) struct Later {
    pub(super) manifest: Manifest,
    pub(super) config: ImageConfig,
    pub(super) snapshotter: String,
    pub(super) origin: Option<Origin>,
}

/// What layers are fetched with.
pub(super) struct Gear<'a> {
    pub(super) fetcher: &'a Fetcher,
    pub(super) flights: &'a Flights,
    /// The label that says where blobs come from.
    pub(super) source: (String, String),
    /// What another program has as snapshots need not come.
    pub(super) spares: bool,
}

impl Haul {
    /// Nothing yet, to be kept on `disks`.
    pub(super) fn new(disks: Disks) -> Self {
        let (fetched, stacks, later, turns) = Default::default();
        Self { fetched, stacks, later, is_new: false, turns, disks: Arc::new(disks) }
    }

    /// Flushes all of it.
    pub(super) fn flush(&self) -> Result<()> {
        self.disks.flush()
    }

    /// Keeps a turn until everything is recorded.
    pub(super) fn keep(&mut self, turn: Turn) {
        self.turns.push(turn);
    }

    /// Whether the pull keeps others from anything.
    pub(super) fn is_waited_for(&self) -> bool {
        !self.turns.is_empty()
    }

    /// Fetches the layers of an image, all at once as far as nobody else is at it. Those are waited for. Answers with the
    /// layers that are not here and need not be.
    pub(super) async fn layers(
        &mut self,
        gear: &Gear<'_>,
        manifest: &Manifest,
        stack: Option<&Stack>,
    ) -> Result<Vec<Digest>> {
        let room = &gear.fetcher.room;
        let mut all: Vec<Option<Fetched>> = manifest.layers.iter().map(|_| None).collect();
        let (mut ours, mut theirs) = (JoinSet::new(), Vec::new());
        let job = |index: usize| Job {
            layer: manifest.layers[index].clone(),
            apply: stack.and_then(|stack| stack.place(index)),
        };
        let spared = stack.filter(|_| gear.spares).map_or(0, Stack::spared);
        let absent = gear.fetcher.spare(&manifest.layers[..spared]).await?;
        let mut seen = std::collections::HashSet::new();
        for (index, layer) in manifest.layers.iter().enumerate().skip(spared) {
            let turn = gear.flights.try_take(&key(layer)).filter(|_| seen.insert(&layer.digest));
            let Some(turn) = turn else {
                theirs.push(index);
                continue;
            };
            self.turns.push(turn);
            let (fetcher, room, job) = (gear.fetcher.clone(), room.clone(), job(index));
            // Dropped, the set ends what is under way: a failed layer stops the others.
            ours.spawn(async move {
                let _place = room.place().await;
                fetcher.layer(job).await.map(|fetched| (index, fetched))
            });
        }
        collect(ours, &mut all).await?;
        if !theirs.is_empty() {
            self.take_in(gear, &mut all);
            self.publish(&gear.fetcher.content, &gear.fetcher.ctx).await?;
            let mut waiting = JoinSet::new();
            for index in theirs {
                let (fetcher, flights, room, job) =
                    (gear.fetcher.clone(), gear.flights.clone(), room.clone(), job(index));
                let (source, disks) = (gear.source.clone(), self.disks.clone());
                waiting.spawn(async move {
                    let _turn = flights.take(&key(&job.layer)).await;
                    let _place = room.place().await;
                    let mut fetched = fetcher.layer(job).await?;
                    // Recorded before the turn ends, for whoever has the next.
                    if let Some(sealed) = fetched.sealed.take() {
                        let blobs = vec![(sealed, labels_of(&fetched, &source))];
                        publish(disks, &fetcher.content, &fetcher.ctx, blobs).await?;
                    }
                    Ok((index, fetched))
                });
            }
            collect(waiting, &mut all).await?;
        }
        self.take_in(gear, &mut all);
        let applied = all.into_iter().map(|one| one.and_then(|one| one.applied)).collect();
        stack.map_or(Ok(()), |stack| tokio::task::block_in_place(|| stack.settle(applied)))?;
        Ok(absent)
    }

    /// Takes over the blobs of layers that have come.
    fn take_in(&mut self, gear: &Gear<'_>, all: &mut [Option<Fetched>]) {
        for one in all.iter_mut().flatten() {
            if let Some(sealed) = one.sealed.take() {
                self.is_new = true;
                self.fetched.push((sealed, labels_of(one, &gear.source)));
            }
        }
    }

    /// Makes what is fetched last, and ends the turns: nothing is held while somebody else is waited for.
    async fn publish(&mut self, content: &Content, ctx: &Context) -> Result<()> {
        publish(self.disks.clone(), content, ctx, std::mem::take(&mut self.fetched)).await?;
        self.turns.clear();
        Ok(())
    }

    /// Removes what was made room for, after a failure.
    pub(super) async fn discard(self) {
        let removed = blocking(move || {
            self.stacks.iter().for_each(Stack::discard);
            Ok(())
        });
        drop(removed.await);
    }
}

/// What a layer's turn is named.
fn key(layer: &rung_spec::image::Descriptor) -> String {
    format!("layer {}", layer.digest)
}

fn labels_of(fetched: &Fetched, (source, path): &(String, String)) -> Labels {
    let known = fetched.diff_id.as_ref().map(|digest| (labels::UNCOMPRESSED.to_owned(), digest.to_string()));
    known.into_iter().chain([(source.clone(), path.clone())]).collect()
}

async fn publish(disks: Arc<Disks>, content: &Content, ctx: &Context, blobs: Vec<(Sealed, Labels)>) -> Result<()> {
    if blobs.is_empty() {
        return Ok(());
    }
    let (content, ctx) = (content.clone(), ctx.clone());
    blocking(move || {
        disks.flush()?;
        content.publish(&ctx, blobs).map(drop)
    })
    .await
}

async fn collect(mut tasks: JoinSet<Result<(usize, Fetched)>>, all: &mut [Option<Fetched>]) -> Result<()> {
    while let Some(done) = tasks.join_next().await {
        let (index, one) = done.map_err(|error| Error::internal(format!("layer: {error}")))??;
        all[index] = Some(one);
    }
    Ok(())
}
