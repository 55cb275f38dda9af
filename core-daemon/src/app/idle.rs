//! A daemon without calls gives memory back to the kernel that a burst of work has left it: most of the heap of a pull,
//! and the pages of code that only pulls execute.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::observe::Observer;

/// How long there must have been no call. Memory is given back twice: soon after the last call, and again when the work
/// that the calls have started in the background should be done too.
const QUIET: [Duration; 2] = [Duration::from_secs(3), Duration::from_secs(30)];
/// It is done at least this often, also while calls keep coming and for work that no call has caused.
const INTERVAL: Duration = Duration::from_secs(300);

/// Gives memory back whenever the daemon is quiet, until `stop`.
pub(super) async fn give_back(observer: Observer, stop: CancellationToken) {
    let rounds = async {
        loop {
            let _ = tokio::time::timeout(INTERVAL, observer.call_begun()).await;
            for quiet in QUIET {
                let _ = tokio::time::timeout(INTERVAL, until_quiet(&observer, quiet)).await;
                let given = tokio::task::spawn_blocking(|| {
                    rung_sys::footprint::give_back_heaps();
                    rung_sys::footprint::give_back_code();
                });
                let _ = given.await;
            }
        }
    };
    tokio::select! {
        () = rounds => {}
        () = stop.cancelled() => {}
    }
}

async fn until_quiet(observer: &Observer, quiet: Duration) {
    loop {
        let before = observer.calls();
        tokio::time::sleep(quiet).await;
        if observer.calls() == before {
            return;
        }
    }
}
