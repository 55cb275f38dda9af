//! A layer's bytes, from the network to the thread that stores them: in their order, over one connection or several.
//!
//! ```text
//! one answer, from an offset to the end ─────────────────┬─► pass: hash, store, inflate, apply
//! slices further on, each over a connection of its own ──┘
//! ```
//!
//! A layer begins with one answer. If the pass has to wait for the network, and the layer is large, slices of what is still
//! to come are asked for beside it. Once the answer has come to where the first of them begins, and that is here, the
//! answer is let go and slices alone follow. Until then nothing depends on them: a host that gives no slices, or lets wait
//! for them, has the rest of its answer read. Later it is asked for the rest from where the slices ended.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use rung_spec::image::Descriptor;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinHandle;

use super::fetch::{Fetcher, PIECE};
use super::room::{Room, SLICE};
use crate::error::{Error, Kind, Result};
use crate::registry::{BlobStream, Pace, Slices};

/// Tries without any progress between them.
const TRIES: usize = 5;
/// How long it is looked whether the pass waits for the network.
const SPAN: Duration = Duration::from_millis(250);

/// How often slices may break off until no more are asked for.
const BREAKS: usize = 3;

/// How a layer comes.
#[derive(Debug, Default)]
pub(super) struct Way {
    /// Slices are not asked for.
    in_order: bool,
    /// Slices have been a part of it.
    used: bool,
    /// How often they broke off.
    broken: usize,
}

impl Way {
    /// Over one connection.
    pub(super) fn in_order() -> Self {
        Self { in_order: true, ..Self::default() }
    }

    /// Slices have ended with an error: those that break off may do better the next time.
    fn ended(&mut self, error: &Error) {
        tracing::debug!(%error, "slices of a layer end, and it goes on over one connection");
        self.broken += 1;
        let passes = matches!(error.kind(), Kind::Unavailable | Kind::DeadlineExceeded);
        self.in_order |= !passes || self.broken >= BREAKS;
    }

    /// Whether slices were a part of what came.
    pub(super) fn is_of_slices(&self) -> bool {
        self.used
    }
}

impl Fetcher {
    /// Receives the blob from `offset` on, again where the connection breaks, as long as that gets further: from a mirror
    /// less with each try that does not.
    pub(super) async fn receive(
        &self,
        layer: &Descriptor,
        offset: u64,
        to: mpsc::Sender<Bytes>,
        bad: usize,
        way: &mut Way,
    ) -> Result<()> {
        let (mut failed, mut pace): (usize, _) = (0, self.repository.pace());
        let mut line = Line { layer, host: self.repository.host(), offset, to };
        while line.offset < layer.size {
            let before = line.offset;
            match self.receive_some(&mut line, &mut pace, bad.saturating_add(failed), way).await {
                Ok(true) if line.offset == layer.size => break,
                Ok(true) => {}
                // The store gave up, and says why.
                Ok(false) => return Ok(()),
                Err(error) if !matches!(error.kind(), Kind::Unavailable | Kind::DeadlineExceeded) => return Err(error),
                Err(error) if failed + 1 >= TRIES && line.offset == before || pace.is_hopeless() => return Err(error),
                Err(error) => {
                    tracing::debug!(digest = %layer.digest, offset = line.offset, %error, "layer is resumed");
                }
            }
            failed = if line.offset > before { 0 } else { failed + 1 };
            if failed >= TRIES {
                let text = format!("registry {}: sends {} incompletely", line.host, layer.digest);
                return Err(Error::unavailable(text));
            }
            tokio::time::sleep(Duration::from_millis(100) * (1 << failed)).await;
        }
        Ok(())
    }

    /// Receives one answer, and slices beside it; false where nobody takes it any more.
    async fn receive_some(&self, line: &mut Line<'_>, pace: &mut Pace, bad: usize, way: &mut Way) -> Result<bool> {
        let mut blob = self.repository.blob(line.layer, line.offset, bad).await?;
        // A registry that cannot give a part gives the whole again.
        let mut known = line.offset.saturating_sub(blob.offset);
        let slices = blob.slices().filter(|_| !way.in_order && self.room.is_large(line.layer.size));
        let (mut watch, mut ahead) = (Watch::new(), None::<Ahead>);
        loop {
            if let Some(slices) = &mut ahead {
                if slices.arrived(line.offset) {
                    drop(blob);
                    way.used = true;
                    let followed = slices.follow(line).await;
                    // They were waited for apart.
                    pace.goes_on();
                    return followed.or_else(|error| {
                        way.ended(&error);
                        Ok(true)
                    });
                }
                if !slices.pass(line.offset) {
                    (ahead, way.in_order) = (None, true);
                }
            }
            let asked = Instant::now();
            let piece = match next(&mut blob, ahead.as_mut()).await {
                Next::Piece(piece) => piece?,
                Next::Slice(Ok(())) => continue,
                Next::Slice(Err(error)) => {
                    way.ended(&error);
                    ahead = None;
                    continue;
                }
            };
            let Some(mut piece) = piece else { return Ok(true) };
            if !pace.came(piece.len() as u64) {
                return Err(blob.give_up());
            }
            watch.came(piece.len(), if line.is_empty() { asked.elapsed() } else { Duration::ZERO });
            let skipped = known.min(piece.len() as u64);
            piece.advance(usize::try_from(skipped).unwrap_or(0));
            known -= skipped;
            if !line.hand(piece).await? {
                return Ok(false);
            }
            // For a slow disk the registry was not waited for.
            pace.goes_on();
            if let (Some(seen), Some(slices), None, false) = (watch.seen(), &slices, &ahead, way.in_order) {
                // What comes until others can be connected to, and have sent something.
                let lead = SLICE.max(seen.came.saturating_mul(2));
                let from = line.offset.saturating_add(lead);
                ahead = seen.waits().then(|| Ahead::begin(slices, &self.room, from, line.layer.size)).flatten();
            }
        }
    }
}

/// What comes first.
enum Next {
    Piece(Result<Option<Bytes>>),
    Slice(Result<()>),
}

async fn next(blob: &mut BlobStream, ahead: Option<&mut Ahead>) -> Next {
    match ahead {
        Some(ahead) if ahead.is_coming() => tokio::select! {
            piece = blob.next() => Next::Piece(piece),
            slice = ahead.arrive() => Next::Slice(slice),
        },
        _ => Next::Piece(blob.next().await),
    }
}

/// Where bytes are handed on in their order.
struct Line<'a> {
    layer: &'a Descriptor,
    host: &'a str,
    /// How many have been.
    offset: u64,
    to: mpsc::Sender<Bytes>,
}

impl Line<'_> {
    /// Hands on the next bytes; false where nobody takes them any more.
    async fn hand(&mut self, bytes: Bytes) -> Result<bool> {
        if bytes.is_empty() {
            return Ok(true);
        }
        self.offset += bytes.len() as u64;
        if self.offset > self.layer.size {
            let text = format!("registry {}: sends more than {} bytes", self.host, self.layer.size);
            return Err(Error::new(Kind::DataLoss, format!("{text} of {}", self.layer.digest)));
        }
        Ok(self.to.send(bytes).await.is_ok())
    }

    /// Whether all has been taken: who takes it has nothing to do, or next to nothing.
    fn is_empty(&self) -> bool {
        self.to.capacity() == self.to.max_capacity()
    }
}

/// Looks whether the pass waits for the network.
struct Watch {
    since: Instant,
    waited: Duration,
    came: usize,
}

impl Watch {
    fn new() -> Self {
        Self { since: Instant::now(), waited: Duration::ZERO, came: 0 }
    }

    /// Counts bytes that the pass has waited for.
    fn came(&mut self, bytes: usize, waited: Duration) {
        (self.came, self.waited) = (self.came + bytes, self.waited + waited);
    }

    /// What a span of time has shown, when it is over.
    fn seen(&mut self) -> Option<Seen> {
        let span = self.since.elapsed();
        if span < SPAN {
            return None;
        }
        let seen = Seen { span, waited: self.waited, came: self.came as u64 };
        *self = Self::new();
        Some(seen)
    }
}

/// What a span of time has shown.
struct Seen {
    span: Duration,
    waited: Duration,
    came: u64,
}

impl Seen {
    /// Whether the pass has mostly waited for the network.
    fn waits(&self) -> bool {
        self.waited * 2 >= self.span
    }

    /// Whether it has had enough to do.
    fn works(&self) -> bool {
        self.waited * 10 < self.span
    }
}

/// Slices that follow each other, on their way.
struct Ahead {
    slices: Slices,
    room: Room,
    queue: VecDeque<Slice>,
    /// Where the next one begins, and where the blob ends.
    next: u64,
    end: u64,
    /// For each connection beside that of the answer.
    places: Vec<OwnedSemaphorePermit>,
    /// The answer is let go: its connection is for slices, too.
    alone: bool,
}

struct Slice {
    range: Range<u64>,
    task: Task,
    bytes: Option<Bytes>,
    _room: OwnedSemaphorePermit,
}

/// A task that ends where nobody waits for it.
struct Task(JoinHandle<Result<Bytes>>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Task {
    async fn done(&mut self) -> Result<Bytes> {
        (&mut self.0).await.unwrap_or_else(|error| Err(Error::internal(format!("slice: {error}"))))
    }
}

impl Ahead {
    /// Asks for slices from `from` on, over as many connections as there is room for; none where there is none, or not enough
    /// to come.
    fn begin(slices: &Slices, room: &Room, from: u64, end: u64) -> Option<Self> {
        if from.saturating_add(2 * SLICE) > end {
            return None;
        }
        let (queue, places) = (VecDeque::new(), Vec::new());
        let mut it = Self { slices: slices.clone(), room: room.clone(), queue, next: from, end, places, alone: false };
        while let Some(place) = it.room.connection(1 + it.places.len()) {
            it.places.push(place);
        }
        it.fill();
        (!it.queue.is_empty()).then_some(it)
    }

    /// Asks for as many slices as may be on their way.
    fn fill(&mut self) {
        while self.next < self.end && self.queue.len() < self.places.len() + usize::from(self.alone) {
            let Some(room) = self.room.slice() else { return };
            let range = self.next..self.end.min(self.next + SLICE);
            self.next = range.end;
            let (slices, wanted, first) = (self.slices.clone(), range.clone(), !self.alone);
            let task = Task(tokio::spawn(async move { slices.fetch(wanted, first).await }));
            self.queue.push_back(Slice { range, task, bytes: None, _room: room });
        }
    }

    fn is_coming(&self) -> bool {
        self.queue.front().is_some_and(|slice| slice.bytes.is_none())
    }

    /// Waits for the first slice. Who stops waiting may begin again.
    async fn arrive(&mut self) -> Result<()> {
        if let Some(slice) = self.queue.front_mut() {
            slice.bytes = Some(slice.task.done().await?);
        }
        Ok(())
    }

    /// Whether the first slice is here, and it is its turn.
    fn arrived(&self, offset: u64) -> bool {
        self.queue.front().is_some_and(|slice| slice.bytes.is_some() && slice.range.start <= offset)
    }

    /// Forgets slices that the answer has come past before they were here; false where none is left.
    fn pass(&mut self, offset: u64) -> bool {
        while self.queue.front().is_some_and(|slice| slice.range.end <= offset) {
            self.queue.pop_front();
        }
        !self.queue.is_empty()
    }

    /// Hands on one slice after the other, as long as there is room for any; false where nobody takes them any more.
    async fn follow(&mut self, line: &mut Line<'_>) -> Result<bool> {
        self.alone = true;
        self.fill();
        let mut watch = Watch::new();
        while let Some(mut slice) = self.queue.pop_front() {
            let asked = Instant::now();
            let bytes = match slice.bytes.take() {
                Some(bytes) => bytes,
                None => slice.task.done().await?,
            };
            watch.came(bytes.len(), if line.is_empty() { asked.elapsed() } else { Duration::ZERO });
            match watch.seen() {
                Some(seen) if seen.waits() => self.places.extend(self.room.connection(1 + self.places.len())),
                Some(seen) if seen.works() => drop(self.places.pop()),
                _ => {}
            }
            self.fill();
            let mut bytes = bytes.slice(usize::try_from(line.offset - slice.range.start).unwrap_or(0)..);
            while !bytes.is_empty() {
                if !line.hand(bytes.split_to(bytes.len().min(PIECE))).await? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}
