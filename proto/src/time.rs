//! Timestamps and durations of the wire as the standard library's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prost_types::Timestamp;

/// `time` on the wire.
pub fn timestamp(time: SystemTime) -> Timestamp {
    Timestamp::from(time)
}

/// The present on the wire.
pub fn now() -> Timestamp {
    timestamp(SystemTime::now())
}

/// A time of the wire. Times outside the range of `SystemTime` and malformed ones are the epoch: they come from a peer,
/// and no peer may stop us with one.
pub fn system_time(timestamp: &Timestamp) -> SystemTime {
    SystemTime::try_from(*timestamp).unwrap_or(UNIX_EPOCH)
}

/// A duration in the nanoseconds that ttrpc carries; the longest ones are cut at what fits.
pub fn nanoseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// A duration of ttrpc's nanoseconds; none where the number is not positive.
pub fn duration(nanoseconds: i64) -> Option<Duration> {
    u64::try_from(nanoseconds).ok().filter(|nanoseconds| *nanoseconds > 0).map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_timestamps_do_no_harm() {
        let time = SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 5);
        assert_eq!(system_time(&timestamp(time)), time);
        for (seconds, nanos) in [(i64::MAX, i32::MAX), (i64::MIN, i32::MIN), (0, i32::MIN), (i64::MAX, -1)] {
            system_time(&Timestamp { seconds, nanos });
        }
    }

    #[test]
    fn durations() {
        assert_eq!(duration(nanoseconds(Duration::from_secs(3))), Some(Duration::from_secs(3)));
        assert_eq!(nanoseconds(Duration::MAX), i64::MAX);
        assert_eq!(duration(0), None);
        assert_eq!(duration(-1), None);
    }
}
