//! Blobs read again in the background, the one longest unread first, slowly and when nobody else wants the disk.
//!
//! A blob is never written again, so the time of its file's last change is free to say when its bytes were last known to
//! be right: when it was written, at first. No record has to be kept of it.

use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use rung_spec::digest::{Digest, Hasher};
use rung_sys::sched;
use tokio_util::sync::CancellationToken;

use super::Content;
use super::blobs::is_lost;
use crate::blocking::blocking;
use crate::error::{Doing as _, Error, Result};

/// `SCHED_IDLE` and `IOPRIO_CLASS_IDLE`.
const IDLE: u32 = 5;
const IO_IDLE: u32 = 3;
/// Bytes read at a time.
const PIECE: usize = 256 << 10;
/// The longest that nothing is looked for, so that what has come meanwhile does not wait.
const LOOK: Duration = Duration::from_secs(60 * 60);

/// How fast and how often blobs are verified.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Bytes a second; 0: never.
    pub rate: u64,
    /// How long a blob is believed to be what it was.
    pub interval: Duration,
}

impl Content {
    /// Verifies blobs whose time has come, until `stop`. Damaged ones are put aside, to be fetched again by whoever needs
    /// them next.
    pub async fn keep_verified(self, pace: Pace, stop: CancellationToken) {
        while pace.rate > 0 && !stop.is_cancelled() {
            let pause = match self.clone().verify_due(pace, stop.clone()).await {
                Ok(next) => next,
                Err(error) => {
                    tracing::warn!(%error, "blobs are not verified");
                    LOOK
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause.clamp(Duration::from_secs(1), LOOK)) => {}
            }
        }
    }

    /// Verifies what is due, and says when the next one is.
    async fn verify_due(self, pace: Pace, stop: CancellationToken) -> Result<Duration> {
        let content = self.clone();
        let (due, next) = blocking(move || content.due(pace.interval)).await?;
        if due.is_empty() {
            return Ok(next);
        }
        let (done, wait) = tokio::sync::oneshot::channel();
        // A thread of its own: its priority is for nothing else.
        let work = move || {
            let mut idle = sched::Attributes::default();
            idle.policy = IDLE;
            if let Err(error) = sched::set(0, &idle).and_then(|()| sched::set_io_priority(0, IO_IDLE, 0)) {
                tracing::debug!(%error, "blobs are verified at the usual priority");
            }
            let mut next = Duration::ZERO;
            for digest in due.iter().take_while(|_| !stop.is_cancelled()) {
                if let Err(error) = self.verify(digest, pace.rate, &stop) {
                    tracing::warn!(%digest, %error, "content cannot be verified");
                    // Nor can it a moment later: its time has come as long as it is not.
                    next = LOOK;
                }
            }
            let _ = done.send(next);
        };
        let thread = std::thread::Builder::new().name("verify".to_owned());
        thread.spawn(work).doing(|| "start a thread that verifies blobs")?;
        wait.await.map_err(|_| Error::internal("the thread that verifies blobs ended"))
    }

    /// The blobs whose time has come, the longest unread first; without any, how long it is until one's comes.
    fn due(&self, interval: Duration) -> Result<(Vec<Digest>, Duration)> {
        let now = SystemTime::now();
        let (mut due, mut next) = (Vec::new(), LOOK.min(interval));
        for digest in self.stored()? {
            // One that is gone meanwhile needs no look.
            let Ok(verified) = std::fs::metadata(self.0.blob(&digest)).and_then(|it| it.modified()) else { continue };
            match interval.checked_sub(now.duration_since(verified).unwrap_or_default()) {
                None | Some(Duration::ZERO) => due.push((verified, digest)),
                Some(left) => next = next.min(left),
            }
        }
        due.sort();
        Ok((due.into_iter().map(|(_, digest)| digest).collect(), next))
    }

    fn verify(&self, digest: &Digest, rate: u64, stop: &CancellationToken) -> Result<()> {
        let Some(blob) = self.0.open_blob(digest)? else { return Ok(()) };
        let Some(is_whole) = read_slowly(&blob.file, digest, rate, stop)? else { return Ok(()) };
        if is_whole {
            return self.mark_verified(&blob.file, digest);
        }
        if self.0.is_stored(digest, &blob.file)? {
            let aside: PathBuf = self.set_aside(&self.0.blob(digest))?;
            tracing::error!(%digest, aside = %aside.display(), "content is damaged: the next pull fetches it again");
        }
        Ok(())
    }

    /// Notes that a blob's bytes have just been found right.
    pub(super) fn mark_verified(&self, file: &File, digest: &Digest) -> Result<()> {
        file.set_modified(SystemTime::now()).doing(|| format!("note that content {digest} is verified"))
    }
}

/// Whether the file is what the digest says; nothing where it was stopped. What it read does not stay in memory.
fn read_slowly(mut file: &File, digest: &Digest, rate: u64, stop: &CancellationToken) -> Result<Option<bool>> {
    let mut hasher = Hasher::new(digest.algorithm());
    let mut piece = vec![0; PIECE];
    let (begun, mut total) = (Instant::now(), 0_u64);
    loop {
        let count = match file.read(&mut piece) {
            Err(error) if is_lost(&error) => return Ok(Some(false)),
            read => read.doing(|| format!("read content {digest}"))?,
        };
        if count == 0 {
            return Ok(Some(hasher.finish() == *digest));
        }
        hasher.update(&piece[..count]);
        let at = i64::try_from(total).unwrap_or(i64::MAX);
        let _ = posix_fadvise(file, at, i64::try_from(count).unwrap_or(0), PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        total += count as u64;
        let planned = Duration::from_nanos(total.saturating_mul(1_000_000_000) / rate.max(1));
        std::thread::sleep(planned.saturating_sub(begun.elapsed()));
        if stop.is_cancelled() {
            return Ok(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{ctx, fixture};
    use super::*;
    use crate::labels::Labels;

    #[tokio::test]
    async fn damaged_blobs_are_found_in_the_background() {
        let it = fixture();
        let put = |bytes: &[u8]| it.content.put(&ctx("a"), bytes, Labels::new()).expect("put");
        let (good, bad) = (put(b"good"), put(b"bad"));
        let path = it.content.0.blob(&bad);
        std::fs::remove_file(&path).and_then(|()| std::fs::write(&path, b"BAD")).expect("damage");
        let long_ago = SystemTime::now() - Duration::from_secs(1000);
        for digest in [&good, &bad] {
            File::open(it.content.0.blob(digest)).and_then(|it| it.set_modified(long_ago)).expect("age");
        }
        assert_eq!(it.content.due(Duration::from_secs(2000)).expect("due").0, []);
        let pace = Pace { rate: 1 << 30, interval: Duration::from_secs(500) };
        it.content.clone().verify_due(pace, CancellationToken::new()).await.expect("verify");
        assert!(!path.exists() && it.content.has(&ctx("a"), &good).expect("has"));
        let (due, next) = it.content.due(pace.interval).expect("due");
        assert!(due.is_empty() && next > Duration::from_secs(400), "{due:?} {next:?}");
        put(b"bad");
        assert_eq!(it.content.read(&ctx("a"), &bad, 10).expect("fetched again"), b"bad");
    }

    #[tokio::test]
    async fn what_cannot_be_put_aside_is_not_read_over_and_over() {
        let it = fixture();
        let bad = it.content.put(&ctx("a"), b"bad", Labels::new()).expect("put");
        let path = it.content.0.blob(&bad);
        std::fs::remove_file(&path).and_then(|()| std::fs::write(&path, b"BAD")).expect("damage");
        std::fs::write(it.content.root().join("damaged"), b"in the way").expect("write");
        let pace = Pace { rate: 1 << 30, interval: Duration::ZERO };
        let next = it.content.clone().verify_due(pace, CancellationToken::new()).await.expect("verify");
        assert_eq!((next, path.exists()), (LOOK, true));
    }
}
