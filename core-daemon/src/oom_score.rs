//! How ready the kernel is to end the daemon, and its containers, when memory runs out.

use std::io::Write as _;
use std::sync::OnceLock;

use crate::error::{Doing as _, Result};

const FILE: &str = "/proc/self/oom_score_adj";

/// Sets the daemon's score; 0 leaves it as it is.
///
/// # Errors
/// When the kernel refuses it.
pub fn set(score: i32) -> Result<()> {
    if score == 0 {
        return Ok(());
    }
    let file = std::fs::OpenOptions::new().write(true).open(FILE);
    file.and_then(|mut file| file.write_all(score.to_string().as_bytes())).doing(|| format!("set oom_score to {score}"))
}

/// The daemon's score, read once: after [`set`] it does not change.
pub fn own() -> i32 {
    static OWN: OnceLock<i32> = OnceLock::new();
    let read = || std::fs::read_to_string(FILE).ok()?.trim().parse().ok();
    *OWN.get_or_init(|| read().unwrap_or(0))
}

/// The score of a container that wants none, below a daemon with the score `own`. It would inherit that, and where the daemon
/// is spared, the kernel would end everything else before the container.
pub fn usual(own: i32) -> Option<i32> {
    (own < 0).then_some(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_are_not_spared_as_the_daemon_is() {
        assert_eq!([usual(-999), usual(0), usual(7)], [Some(0), None, None]);
    }
}
