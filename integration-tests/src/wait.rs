//! Waiting with a deadline. A slow machine (an emulated one) is given more time through `GANTRY_TEST_PATIENCE`.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::bail;

use crate::Result;

/// How many times longer than usual this machine may take: `GANTRY_TEST_PATIENCE`, 1 when unset.
pub fn patience() -> u32 {
    std::env::var("GANTRY_TEST_PATIENCE").ok().and_then(|text| text.parse().ok()).unwrap_or(1).max(1)
}

/// How often a test of chances tries them: `usual` times, or `GANTRY_TEST_ROUNDS` times as often.
pub fn rounds(usual: usize) -> usize {
    let times = std::env::var("GANTRY_TEST_ROUNDS").ok().and_then(|text| text.parse::<usize>().ok());
    usual * times.unwrap_or(1).max(1)
}

/// How much of something a test tries: `usual` of it, or as much of `all` as `GANTRY_TEST_FULL` says in percent, as `make soak`
/// does.
pub fn amount(usual: usize, all: usize) -> usize {
    let percent = std::env::var("GANTRY_TEST_FULL").ok().and_then(|text| text.parse::<usize>().ok());
    percent.map_or(usual, |percent| usual.max(all * percent.min(100) / 100))
}

/// Whether tests try all that they can, and so may take hours.
pub fn is_full() -> bool {
    std::env::var_os("GANTRY_TEST_FULL").is_some()
}

/// `seconds` on an ordinary machine, longer where patience is asked for.
pub fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds) * patience()
}

/// Asks until `probe` gives a value; fails with `what` after twenty (patient) seconds: so long a machine may do something
/// else. Nobody waits that long for what is so.
pub fn until<T>(what: &str, probe: impl FnMut() -> Option<T>) -> Result<T> {
    until_within(seconds(20), what, probe)
}

/// Asks until `probe` gives a value; fails with `what` once `limit` has passed.
pub fn until_within<T>(limit: Duration, what: &str, mut probe: impl FnMut() -> Option<T>) -> Result<T> {
    let begun = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(value) = probe() {
            return Ok(value);
        }
        if begun.elapsed() > limit {
            bail!("{what}: not so after {:.1} s", limit.as_secs_f64());
        }
        sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(25));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_up_with_the_reason() {
        let error = until_within(Duration::from_millis(5), "rain", || None::<()>).unwrap_err();
        assert!(error.to_string().starts_with("rain: not so after"), "{error}");
        assert_eq!(until_within(Duration::ZERO, "sun", || Some(4)).unwrap(), 4);
    }
}
