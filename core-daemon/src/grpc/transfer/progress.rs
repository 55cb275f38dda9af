//! How a transfer goes, told over a stream in containerd's words.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use gantry_proto::containerd::types::transfer as wire;
use rung_spec::digest::Digest;
use rung_spec::image::{Descriptor, Kind as MediaKind};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::grpc::streams::Stream;
use crate::image::{Progress, Step, walk};

/// Messages that wait for a client that does not read; of those that only count bytes, more are left out.
const QUEUE: usize = 256;
/// Between two messages that only count a blob's bytes.
const INTERVAL: Duration = Duration::from_millis(200);

/// Tells a client, if it wants to be told.
#[derive(Clone)]
pub(super) struct Reporter {
    sender: Option<mpsc::UnboundedSender<wire::Progress>>,
    known: Arc<Mutex<HashMap<Digest, Job>>>,
    /// The name that everything belongs to.
    root: String,
    /// What it says first once the name is resolved.
    begins: Vec<String>,
    /// What it calls the target then.
    event: &'static str,
}

struct Job {
    descriptor: Descriptor,
    parents: Vec<String>,
    told: Option<Instant>,
    extracts: bool,
}

/// The task that tells; it ends once all reporters are gone and everything is told.
pub(super) struct Telling(Option<JoinHandle<()>>);

impl Telling {
    /// Waits until everything is told.
    pub(super) async fn end(self) {
        if let Some(task) = self.0 {
            let _ = task.await;
        }
    }
}

/// A reporter on `stream`, whose words are about `root`.
pub(super) fn reporter(stream: Option<Arc<Stream>>, root: &str) -> (Reporter, Telling) {
    let known = Arc::default();
    let (root, begins, event) = (root.to_owned(), Vec::new(), "fetching image content");
    let Some(stream) = stream else { return (Reporter { sender: None, known, root, begins, event }, Telling(None)) };
    // The queue is bounded by what is put into it: see `tell_often`.
    let (sender, mut messages) = mpsc::unbounded_channel::<wire::Progress>();
    let task = tokio::spawn(async move {
        while let Some(message) = messages.recv().await {
            if stream.send(&message).await.is_err() {
                break;
            }
        }
        stream.close();
    });
    (Reporter { sender: Some(sender), known, root, begins, event }, Telling(Some(task)))
}

impl Reporter {
    /// Says so when the name is resolved.
    pub(super) fn beginning(mut self, text: String, event: &'static str) -> Self {
        self.begins.push(text);
        self.event = event;
        self
    }

    /// Says a sentence.
    pub(super) fn say(&self, event: impl Into<String>) {
        self.tell(wire::Progress { event: event.into(), ..wire::Progress::default() });
    }

    /// Says something of a name.
    pub(super) fn named(&self, event: &str, name: &str, target: &Descriptor) {
        let desc = Some(walk::to_wire(target));
        self.tell(wire::Progress { event: event.to_owned(), name: name.to_owned(), desc, ..wire::Progress::default() });
    }

    fn tell(&self, message: wire::Progress) {
        if let Some(sender) = &self.sender {
            let _ = sender.send(message);
        }
    }

    fn jobs(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, Job>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, descriptor: &Descriptor, parents: Vec<String>) {
        let mut jobs = self.jobs();
        if jobs.len() >= QUEUE * QUEUE || jobs.contains_key(&descriptor.digest) {
            return;
        }
        self.tell(message("waiting", descriptor, &parents, 0));
        let job = Job { descriptor: descriptor.clone(), parents, told: None, extracts: false };
        jobs.insert(descriptor.digest.clone(), job);
    }

    /// Says where a blob is, but not too often where only its bytes are counted.
    fn job(&self, digest: &Digest, event: &str, current: u64, counts: bool) {
        let mut jobs = self.jobs();
        let Some(job) = jobs.get_mut(digest) else { return };
        if counts && job.told.is_some_and(|told| told.elapsed() < INTERVAL) {
            return;
        }
        job.told = Some(Instant::now());
        self.tell(message(event, &job.descriptor, &job.parents, current));
    }
}

impl Progress for Reporter {
    fn resolved(&self, target: &Descriptor) {
        for text in &self.begins {
            self.say(text.clone());
        }
        if !self.root.is_empty() {
            self.named(self.event, &self.root, target);
        }
        self.add(target, vec![self.root.clone()]);
    }

    fn children(&self, parent: &Descriptor, children: &[Descriptor]) {
        for child in children {
            self.add(child, vec![reference(parent)]);
        }
    }

    fn document(&self, document: &Descriptor, step: Step) {
        let event = if step == Step::Exists { "already exists" } else { "complete" };
        self.job(&document.digest, event, document.size, false);
    }

    fn layer(&self, digest: &Digest, step: Step, current: u64, total: u64) {
        match step {
            Step::Waiting => {}
            Step::Downloading => self.job(digest, "downloading", current, true),
            Step::Uploading => self.job(digest, "uploading", current, true),
            Step::Extracting => {
                if let Some(job) = self.jobs().get_mut(digest) {
                    job.extracts = true;
                }
                self.job(digest, "extracting", current, true);
            }
            Step::Complete => {
                let extracts = self.jobs().get(digest).is_some_and(|job| job.extracts);
                self.job(digest, if extracts { "extracted" } else { "complete" }, total, false);
            }
            Step::Exists | Step::Mounted => self.job(digest, "already exists", total, false),
        }
    }
}

fn message(event: &str, descriptor: &Descriptor, parents: &[String], current: u64) -> wire::Progress {
    wire::Progress {
        event: event.to_owned(),
        name: reference(descriptor),
        parents: parents.to_vec(),
        progress: i64::try_from(current).unwrap_or(i64::MAX),
        total: i64::try_from(descriptor.size).unwrap_or(i64::MAX),
        desc: Some(walk::to_wire(descriptor)),
    }
}

/// What clients know a part by.
fn reference(descriptor: &Descriptor) -> String {
    let kind = match descriptor.kind() {
        MediaKind::Index => "index",
        MediaKind::Manifest => "manifest",
        MediaKind::Config => "config",
        MediaKind::Layer(_) | MediaKind::Encrypted => "layer",
        MediaKind::Other if descriptor.media_type.starts_with("application/vnd.in-toto") => "attestation",
        MediaKind::Other => "unknown",
    };
    format!("{kind}-{}", descriptor.digest)
}
