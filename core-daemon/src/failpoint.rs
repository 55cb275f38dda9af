//! Places where a test may have the daemon die, as a power cut or an operator's SIGKILL would.
//!
//! `GANTRYD_FAILPOINT=name` kills the daemon the moment it reaches `name`; `name:N` at the N-th time. Only debug builds
//! have them.

/// Dies here if this is the place that was asked for.
#[cfg(debug_assertions)]
pub fn hit(name: &str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    static WANTED: OnceLock<Option<(String, u32)>> = OnceLock::new();
    static SEEN: AtomicU32 = AtomicU32::new(0);
    let wanted = WANTED.get_or_init(|| {
        let text = std::env::var("GANTRYD_FAILPOINT").ok()?;
        Some(match text.split_once(':') {
            Some((name, times)) => (name.to_owned(), times.parse().ok()?),
            None => (text, 1),
        })
    });
    if let Some((wanted, times)) = wanted
        && wanted == name
        && SEEN.fetch_add(1, Ordering::SeqCst) + 1 == *times
    {
        tracing::error!(name, "failpoint");
        // Nothing is cleaned up, which is the point.
        let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
    }
}

/// Release builds have no failpoints.
#[cfg(not(debug_assertions))]
pub fn hit(_name: &str) {}
