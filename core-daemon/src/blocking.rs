//! Work that waits for the disk, away from the threads that serve calls.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio::sync::{Semaphore, oneshot};

use crate::error::{Error, Result};

/// Runs `work` on a thread where it may block. It runs to its end even if the caller does not wait for it.
///
/// # Errors
/// What `work` fails with.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::internal(format!("background work: {error}"))),
    }
}

/// Starts `work` on a thread of its own, for what waits for a network or a client as long as these take: it keeps nobody
/// from the threads that wait for the disk. Whoever starts it bounds how many of them there are.
pub fn apart<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> impl Future<Output = Result<T>> + Send {
    let (tell, told) = oneshot::channel();
    let runtime = tokio::runtime::Handle::current();
    let started = std::thread::Builder::new().name("gantryd-stream".to_owned()).spawn(move || {
        let _inside = runtime.enter();
        // Who does not wait for it any more does not miss it.
        drop(tell.send(work()));
    });
    async move {
        started?;
        told.await.unwrap_or_else(|_| Err(Error::internal("background work: ended without a result")))
    }
}

/// Clients that are read from or written to at once; more wait for their turn.
static CLIENTS: Semaphore = Semaphore::const_new(256);

/// As [`blocking`], for work that reads from a client or writes to it.
///
/// # Errors
/// What `work` fails with.
pub async fn with_client<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let place = CLIENTS.acquire().await.map_err(|error| Error::internal(error.to_string()))?;
    apart(move || {
        let _place = place;
        work()
    })
    .await
}

/// Does `work` for all items, as many at once as there are processors, and gives the results in their order. After a failure
/// nothing more is begun.
///
/// # Errors
/// The first that `work` failed with.
pub fn each<T: Sync, R: Send>(items: &[T], work: impl Fn(usize, &T) -> Result<R> + Sync) -> Result<Vec<R>> {
    let next = AtomicUsize::new(0);
    let results: Vec<Mutex<Option<Result<R>>>> = items.iter().map(|_| Mutex::default()).collect();
    let some = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(index) else { return };
            let done = work(index, item);
            if done.is_err() {
                next.store(items.len(), Ordering::Relaxed);
            }
            *results[index].lock().unwrap_or_else(PoisonError::into_inner) = Some(done);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(items.len());
    std::thread::scope(|scope| {
        (1..threads).for_each(|_| drop(scope.spawn(some)));
        some();
    });
    // Without a failure there is one for each.
    results.into_iter().filter_map(|result| result.into_inner().unwrap_or_else(PoisonError::into_inner)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_for_others_keeps_nobody_from_the_disk() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).max_blocking_threads(1).build();
        runtime.expect("runtime").block_on(async {
            let (go, wait) = std::sync::mpsc::channel();
            let wait = std::sync::Arc::new(Mutex::new(wait));
            let slow: Vec<_> = (0..8)
                .map(|number| {
                    let wait = wait.clone();
                    let work = move || {
                        wait.lock().expect("lock").recv().expect("go");
                        Ok(number)
                    };
                    tokio::spawn(with_client(work))
                })
                .collect();
            assert_eq!(blocking(|| Ok(1)).await.expect("disk"), 1);
            (0..8).for_each(|_| go.send(()).expect("waits"));
            for (number, slow) in slow.into_iter().enumerate() {
                assert_eq!(slow.await.expect("task").expect("done"), number);
            }
        });
    }

    #[test]
    fn all_are_done_or_the_first_failure_is_told() {
        let numbers: Vec<usize> = (0..100).collect();
        assert_eq!(
            each(&numbers, |index, number| Ok(index + number)).expect("sums"),
            (0..200).step_by(2).collect::<Vec<_>>()
        );
        let failed =
            each(&numbers, |index, _| if index < 50 { Ok(()) } else { Err(Error::internal(index.to_string())) });
        assert!(failed.expect_err("50").to_string().contains("50"));
        assert!(each(&[], |_, (): &()| Ok(())).expect("nothing").is_empty());
    }
}
