//! How fast a blob comes. Who sends a byte now and then never sends nothing, and would be waited for for ever.

use std::time::{Duration, Instant};

/// Bytes of each second that are enough to go on: over a link that is slower no image can be pulled.
const ENOUGH: u64 = 512;
/// Windows in a row in which less may come.
const TRIES: u32 = 5;

/// What has come in the present window of time.
#[derive(Debug)]
pub struct Pace {
    window: Duration,
    since: Instant,
    waited: Duration,
    came: u64,
    slow: u32,
}

impl Pace {
    pub(super) fn new(window: Duration) -> Self {
        Self { window, since: Instant::now(), waited: Duration::ZERO, came: 0, slow: 0 }
    }

    /// Counts bytes that have come, and says whether that is enough: else another try may do better.
    pub fn came(&mut self, bytes: u64) -> bool {
        let waited = self.since.elapsed();
        self.goes_on();
        self.count(waited, bytes)
    }

    /// The time until now was not spent waiting.
    pub fn goes_on(&mut self) {
        self.since = Instant::now();
    }

    /// Whether no try does better.
    pub fn is_hopeless(&self) -> bool {
        self.slow >= TRIES
    }

    fn count(&mut self, waited: Duration, bytes: u64) -> bool {
        (self.waited, self.came) = (self.waited.saturating_add(waited), self.came.saturating_add(bytes));
        if self.waited < self.window {
            return true;
        }
        let is_enough = self.came >= self.waited.as_secs().max(1).saturating_mul(ENOUGH);
        self.slow = if is_enough { 0 } else { self.slow + 1 };
        (self.waited, self.came) = (Duration::ZERO, 0);
        is_enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_comes_too_slowly_for_long_is_hopeless() {
        let mut pace = Pace::new(Duration::from_secs(60));
        let mut minute = |bytes| {
            let all: Vec<bool> = (0..60).map(|_| pace.count(Duration::from_secs(1), bytes)).collect();
            assert!(all[..59].iter().all(|enough| *enough));
            (all[59], pace.is_hopeless())
        };
        assert_eq!(minute(ENOUGH), (true, false));
        assert_eq!([1; 4].map(&mut minute), [(false, false); 4]);
        // A good while in between, and it begins anew.
        assert_eq!(minute(ENOUGH), (true, false));
        assert_eq!([0, 1, 511, 1].map(&mut minute), [(false, false); 4]);
        assert_eq!(minute(1), (false, true));
    }
}
