//! A daemon that is quiet gives back what a burst of work has left it: most of the heap of a pull, and the code that only
//! pulls execute.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::observe::Observer;

/// How long no call must have come. The second time is for what the calls have set going.
const QUIET: [Duration; 2] = [Duration::from_secs(3), Duration::from_secs(30)];
/// It is done at least this often while calls keep coming, and after what comes of itself.
const INTERVAL: Duration = Duration::from_secs(300);

/// Does so until `stop`.
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
