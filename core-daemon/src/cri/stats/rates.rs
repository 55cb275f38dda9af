//! How much processor time is used now: the difference of two looks.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Looks closer together than this are one: the difference would be noise.
const MIN_NANOSECONDS: u64 = 500_000_000;
const NANOSECONDS: u128 = 1_000_000_000;

/// The last look at each container or pod.
#[derive(Default)]
pub(super) struct Rates {
    seen: Mutex<HashMap<String, Look>>,
}

#[derive(Clone, Copy)]
struct Look {
    at: u64,
    usage: u64,
    rate: u64,
}

impl Rates {
    /// Nanoseconds of processor time in a second, between the look before and this one; at the first look, since `begun`.
    pub(super) fn rate(&self, id: &str, at: u64, usage: u64, begun: u64) -> u64 {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let before = seen.get(id).copied().unwrap_or(Look { at: begun, usage: 0, rate: 0 });
        let passed = at.saturating_sub(before.at);
        if passed < MIN_NANOSECONDS || usage < before.usage {
            if usage < before.usage {
                // It was started anew.
                seen.insert(id.to_owned(), Look { at, usage, rate: 0 });
                return 0;
            }
            return before.rate;
        }
        let rate = u128::from(usage - before.usage) * NANOSECONDS / u128::from(passed);
        let rate = u64::try_from(rate).unwrap_or(u64::MAX);
        seen.insert(id.to_owned(), Look { at, usage, rate });
        rate
    }

    /// Forgets everything that is not kept.
    pub(super) fn keep(&self, keep: impl Fn(&str) -> bool) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).retain(|id, _| keep(id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_of_the_time_between_looks() {
        let (rates, second) = (Rates::default(), 1_000_000_000);
        assert_eq!(rates.rate("a", 10 * second, 5 * second, 0), second / 2, "since it began");
        assert_eq!(rates.rate("a", 10 * second + 1000, 6 * second, 0), second / 2, "too soon");
        assert_eq!(rates.rate("a", 12 * second, 9 * second, 0), 2 * second);
        assert_eq!(rates.rate("a", 13 * second, second, 0), 0, "started anew");
        rates.keep(|_| false);
        assert!(rates.seen.lock().expect("lock").is_empty());
    }
}
