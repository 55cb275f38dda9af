//! Names of pods and containers while they are made.
//!
//! A name is held by the work that makes its owner, and by nothing else: when the work ends, however it ends, the name is
//! free or belongs to what was made. A repeat of the request joins the work. When nobody waits for it any more, the work
//! is told so and undoes itself at the next step.

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Kind, Result};

/// Work under way, by name.
#[derive(Clone, Default)]
pub(super) struct Flights {
    table: Arc<Mutex<HashMap<String, Flight>>>,
}

#[derive(Clone)]
struct Flight {
    /// What was asked, to know a repeat.
    asked: Arc<[u8]>,
    stage: Stage,
    answer: watch::Receiver<Option<Result<String>>>,
    /// How many wait; changed under the table's lock.
    waiting: Arc<AtomicUsize>,
}

/// How far the work is. What takes long looks whether anybody still waits.
#[derive(Clone)]
pub(super) struct Stage {
    name: Arc<Mutex<&'static str>>,
    since: Instant,
    cancel: CancellationToken,
}

impl Stage {
    fn new() -> Self {
        Self { name: Arc::new(Mutex::new("begin")), since: Instant::now(), cancel: CancellationToken::new() }
    }

    /// The next step begins.
    ///
    /// # Errors
    /// `Canceled` where nobody waits any more.
    pub(super) fn enter(&self, name: &'static str) -> Result<()> {
        *lock(&self.name) = name;
        if self.cancel.is_cancelled() { Err(self.cancelled()) } else { Ok(()) }
    }

    /// Ends when nobody waits any more.
    pub(super) fn given_up(&self) -> &CancellationToken {
        &self.cancel
    }

    /// Does something that may take long and leaves nothing, unless nobody waits any more.
    ///
    /// # Errors
    /// `Canceled` where that is so.
    pub(super) async fn unless_cancelled<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            done = work => done,
            () = self.cancel.cancelled() => Err(self.cancelled()),
        }
    }

    fn cancelled(&self) -> Error {
        Error::new(Kind::Canceled, format!("{}: the client is gone", lock(&self.name)))
    }

    fn describe(&self) -> String {
        format!("at {:?}, {} s old", *lock(&self.name), self.since.elapsed().as_secs())
    }
}

impl Flights {
    /// Does the work under `name`, or joins it where it is done already for the same question, and returns its answer.
    ///
    /// # Errors
    /// `FailedPrecondition` where another question is being answered under the name, saying how far that is; else what the
    /// work fails with.
    pub(super) async fn join<F>(&self, name: &str, asked: &[u8], work: impl FnOnce(Stage) -> F) -> Result<String>
    where
        F: Future<Output = Result<String>> + Send + 'static,
    {
        let (mut flight, _interest) = loop {
            let (mut flight, interest, mine) = self.find_or_begin(name, asked);
            if let Some(sender) = mine {
                self.spawn(name, work(flight.stage.clone()), sender);
                break (flight, interest);
            }
            if flight.stage.cancel.is_cancelled() {
                // It undoes itself; then this is the first.
                let _ = flight.answer.wait_for(Option::is_some).await;
                continue;
            }
            if *flight.asked != *asked {
                let described = flight.stage.describe();
                return Err(Error::precondition(format!("name {name}: is being made by another request, {described}")));
            }
            break (flight, interest);
        };
        let answer = flight.answer.wait_for(Option::is_some).await;
        let answer = answer.ok().and_then(|answer| answer.clone());
        answer.unwrap_or_else(|| Err(Error::internal(format!("name {name}: the work panicked"))))
    }

    /// The work under `name`, and where it is new, how its answer is told.
    fn find_or_begin(
        &self,
        name: &str,
        asked: &[u8],
    ) -> (Flight, Interest, Option<watch::Sender<Option<Result<String>>>>) {
        let mut table = self.lock();
        if let Some(flight) = table.get(name) {
            return (flight.clone(), self.interest(flight), None);
        }
        let (sender, answer) = watch::channel(None);
        let flight = Flight { asked: asked.into(), stage: Stage::new(), answer, waiting: Arc::default() };
        table.insert(name.to_owned(), flight.clone());
        (flight.clone(), self.interest(&flight), Some(sender))
    }

    fn spawn<F>(&self, name: &str, work: F, sender: watch::Sender<Option<Result<String>>>)
    where
        F: Future<Output = Result<String>> + Send + 'static,
    {
        let end = End { flights: self.clone(), name: name.to_owned() };
        tokio::spawn(async move {
            let answer = work.await;
            // The name is free before anybody hears of it.
            drop(end);
            sender.send_replace(Some(answer));
        });
    }

    fn interest(&self, flight: &Flight) -> Interest {
        flight.waiting.fetch_add(1, Ordering::Relaxed);
        Interest { flights: self.clone(), waiting: flight.waiting.clone(), cancel: flight.stage.cancel.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Flight>> {
        lock(&self.table)
    }
}

/// Frees the name, also where the work panicked.
struct End {
    flights: Flights,
    name: String,
}

impl Drop for End {
    fn drop(&mut self) {
        self.flights.lock().remove(&self.name);
    }
}

/// Somebody waits. With the last of them, the work is told.
struct Interest {
    flights: Flights,
    waiting: Arc<AtomicUsize>,
    cancel: CancellationToken,
}

impl Drop for Interest {
    fn drop(&mut self) {
        let _table = self.flights.lock();
        if self.waiting.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.cancel.cancel();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_repeat_joins_and_another_question_is_refused() {
        let flights = Flights::default();
        let gate = CancellationToken::new();
        let opened = gate.clone();
        let first = flights.join("a", b"x", |_| async move {
            opened.cancelled().await;
            Ok("made".to_owned())
        });
        let other = async {
            tokio::task::yield_now().await;
            let refused = flights.join("a", b"y", |_| async { Ok(String::new()) }).await.expect_err("other question");
            assert_eq!(refused.kind(), Kind::FailedPrecondition);
            let joined = flights.join("a", b"x", |_| async { Ok("twice".to_owned()) });
            let (joined, ()) = tokio::join!(joined, async { gate.cancel() });
            joined
        };
        let (first, joined) = tokio::join!(first, other);
        assert_eq!((first.expect("first"), joined.expect("joined")), ("made".to_owned(), "made".to_owned()));
        assert!(flights.lock().is_empty());
    }

    #[tokio::test]
    async fn work_that_nobody_waits_for_is_told_and_the_name_is_free() {
        let flights = Flights::default();
        let stuck =
            |stage: Stage| async move { stage.unless_cancelled(std::future::pending::<Result<String>>()).await };
        let call = flights.join("a", b"x", stuck);
        tokio::time::timeout(std::time::Duration::from_millis(20), call).await.expect_err("stuck");
        let again = flights.join("a", b"y", |_| async { Ok("new".to_owned()) }).await;
        assert_eq!(again.expect("again"), "new");
    }

    #[tokio::test]
    async fn a_panic_frees_the_name() {
        let flights = Flights::default();
        let work = |_| async { if true { panic!("work") } else { Ok(String::new()) } };
        assert_eq!(flights.join("a", b"x", work).await.expect_err("panic").kind(), Kind::Internal);
        assert!(flights.join("a", b"x", |_| async { Ok("b".to_owned()) }).await.is_ok());
    }
}
