//! Work that waits for the disk, away from the threads that serve calls.

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
