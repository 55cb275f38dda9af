//! How a transfer goes, told over a stream in containerd's words.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use gantry_proto::containerd::types::transfer as wire;
use rung_spec::digest::Digest;
use rung_spec::image::{Descriptor, Kind as MediaKind};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::grpc::streams::Stream;
use crate::image::{Progress, Step, walk};

/// Messages that wait for a client that reads slowly; from there on only the last of each part of the image does.
const QUEUE: usize = 256;
/// Most parts of an image that are told of, and most messages that wait for a client that does not read at all.
const MAX_JOBS: usize = 4096;
const MAX_WAITING: usize = 2 * MAX_JOBS;
/// Between two messages that only count a blob's bytes.
const INTERVAL: Duration = Duration::from_millis(200);
/// How long a client may take to read what is left when the transfer is over.
const PATIENCE: Duration = Duration::from_secs(10);

/// Tells a client, if it wants to be told.
#[derive(Clone)]
pub(super) struct Reporter {
    sender: Option<Arc<Sender>>,
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

/// What is still to be told.
#[derive(Default)]
struct Waiting {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    messages: VecDeque<wire::Progress>,
    /// Nothing more comes, or nobody wants it.
    ended: bool,
}

impl Waiting {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, message: wire::Progress) {
        let mut state = self.state();
        if state.ended {
            return;
        }
        let messages = &mut state.messages;
        let is_slow = messages.len() >= QUEUE && !message.name.is_empty();
        let before = if is_slow { messages.iter().rposition(|one| one.name == message.name) } else { None };
        match before {
            Some(at) => messages[at] = message,
            None if messages.len() < MAX_WAITING => messages.push_back(message),
            None => {}
        }
        drop(state);
        self.changed.notify_one();
    }

    /// The next message; none once all are told and no more can come.
    async fn next(&self) -> Option<wire::Progress> {
        loop {
            {
                let mut state = self.state();
                let next = state.messages.pop_front();
                if next.is_some() || state.ended {
                    return next;
                }
            }
            self.changed.notified().await;
        }
    }

    fn end(&self) {
        self.state().ended = true;
        self.changed.notify_one();
    }
}

/// Where reporters put what is to be told; with the last of them the end is told.
struct Sender(Arc<Waiting>);

impl Drop for Sender {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// The task that tells; it ends once all reporters are gone and everything is told.
pub(super) struct Telling(Option<(JoinHandle<()>, Arc<Stream>)>);

impl Telling {
    /// Waits until everything is told, or the client has shown that it does not listen.
    pub(super) async fn end(self) {
        self.end_within(PATIENCE).await;
    }

    async fn end_within(self, patience: Duration) {
        let Some((mut task, stream)) = self.0 else { return };
        if tokio::time::timeout(patience, &mut task).await.is_err() {
            task.abort();
            stream.close();
        }
    }
}

/// A reporter on `stream`, whose words are about `root`.
pub(super) fn reporter(stream: Option<Arc<Stream>>, root: &str) -> (Reporter, Telling) {
    let known = Arc::default();
    let (root, begins, event) = (root.to_owned(), Vec::new(), "fetching image content");
    let Some(stream) = stream else { return (Reporter { sender: None, known, root, begins, event }, Telling(None)) };
    let (waiting, to) = (Arc::<Waiting>::default(), stream.clone());
    let sender = Some(Arc::new(Sender(waiting.clone())));
    let task = tokio::spawn(async move {
        while let Some(message) = waiting.next().await {
            if to.send(&message).await.is_err() {
                waiting.end();
                break;
            }
        }
        to.close();
    });
    (Reporter { sender, known, root, begins, event }, Telling(Some((task, stream))))
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
            sender.0.put(message);
        }
    }

    fn jobs(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, Job>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, descriptor: &Descriptor, parents: Vec<String>) {
        let mut jobs = self.jobs();
        if jobs.len() >= MAX_JOBS || jobs.contains_key(&descriptor.digest) {
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
        MediaKind::Layer(_) | MediaKind::Encrypted | MediaKind::Erofs(_) => "layer",
        MediaKind::Other if descriptor.media_type.starts_with("application/vnd.in-toto") => "attestation",
        MediaKind::Other => "unknown",
    };
    format!("{kind}-{}", descriptor.digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(answers: &mut tokio::sync::mpsc::Receiver<Result<prost_types::Any, tonic::Status>>) -> Vec<wire::Progress> {
        std::iter::from_fn(|| answers.try_recv().ok())
            .map(|message| gantry_proto::any::unpack(&message.expect("message")).expect("progress"))
            .collect()
    }

    #[tokio::test]
    async fn everything_is_told_to_who_listens() {
        let (stream, mut answers) = Stream::fake();
        let (report, telling) = reporter(Some(stream), "name");
        for number in 0..10 {
            report.say(number.to_string());
        }
        drop(report);
        telling.end().await;
        let events: Vec<String> = told(&mut answers).into_iter().map(|message| message.event).collect();
        assert_eq!(events, (0..10).map(|number: i32| number.to_string()).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn who_does_not_listen_is_neither_waited_for_nor_remembered() {
        let (stream, mut answers) = Stream::fake();
        let (report, telling) = reporter(Some(stream), "name");
        let target = Descriptor::new("", Digest::of(b"x"), 1);
        for number in 0..2 * MAX_WAITING {
            report.named(&number.to_string(), "one part", &target);
            report.say("a sentence");
        }
        let waiting = report.sender.as_ref().map(|sender| sender.0.state().messages.len());
        assert!(waiting.is_some_and(|waiting| waiting <= MAX_WAITING), "{waiting:?}");
        drop(report);
        telling.end_within(Duration::from_millis(50)).await;
        assert!(told(&mut answers).len() < QUEUE);
        assert!(answers.recv().await.is_none(), "the stream is closed");
    }
}
