//! When a container that ended is started again: at once the first time, then after 10 s, doubling
//! to 5 min; a container that was up for 10 min starts from the beginning.

use jiff::{SignedDuration, Timestamp};

const FIRST_SECONDS: i64 = 10;
const MOST_SECONDS: i64 = 300;
const HEALTHY_SECONDS: i64 = 600;

/// The restarts of one container so far, and when the next one is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackOff {
    /// Ends since the container was last healthy for long.
    pub ends: u32,
    /// Seconds that the container waits after its last end.
    pub delay_seconds: i64,
    /// The next start is not before this.
    pub due: Timestamp,
}

impl BackOff {
    /// The back-off after one more end of a container that ran for `ran_seconds`.
    pub fn after(previous: Option<BackOff>, ended: Timestamp, ran_seconds: i64) -> BackOff {
        let before = previous.filter(|_| ran_seconds < HEALTHY_SECONDS).map_or(0, |b| b.ends);
        Self::nth(before.saturating_add(1), ended)
    }

    /// The back-off after the `ends`-th end.
    pub fn nth(ends: u32, ended: Timestamp) -> BackOff {
        let delay_seconds = delay(ends);
        let due =
            ended.checked_add(SignedDuration::from_secs(delay_seconds)).unwrap_or(Timestamp::MAX);
        BackOff { ends, delay_seconds, due }
    }
}

/// Seconds to wait after the `n`-th failure of something that is tried again at once the first time.
pub fn delay(n: u32) -> i64 {
    match n {
        0 | 1 => 0,
        n => FIRST_SECONDS.saturating_mul(1 << (n - 2).min(8)).min(MOST_SECONDS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_to_five_minutes() {
        let delays: Vec<i64> = (1..=9).map(delay).collect();
        assert_eq!(delays, [0, 10, 20, 40, 80, 160, 300, 300, 300]);
        assert_eq!(delay(u32::MAX), 300);
    }

    #[test]
    fn ten_minutes_of_health_forgive() {
        let at = Timestamp::from_second(1_000).unwrap();
        let fifth = BackOff::nth(5, at);
        assert_eq!(BackOff::after(Some(fifth), at, 599).ends, 6);
        assert_eq!(BackOff::after(Some(fifth), at, 600), BackOff::nth(1, at));
        assert_eq!(BackOff::after(None, at, 1).due, at);
    }
}
