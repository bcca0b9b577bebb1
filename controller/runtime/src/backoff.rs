//! Exponential delays.

use kube::runtime::utils::Backoff;
use std::time::Duration;

/// A delay that doubles with every failure, from `base` to `max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exponential {
    /// After the first failure.
    pub base: Duration,
    /// Never longer than this.
    pub max: Duration,
}

/// How a work queue's keys back off: 5 ms, doubling, to 1,000 s, as in Kubernetes' controllers.
pub const PER_KEY: Exponential =
    Exponential { base: Duration::from_millis(5), max: Duration::from_secs(1000) };

/// How a broken watch or a fallen task is taken up again.
pub const RECONNECT: Exponential =
    Exponential { base: Duration::from_millis(100), max: Duration::from_secs(10) };

impl Exponential {
    /// The delay after `failures` failures (1 or more) in a row.
    pub fn delay(&self, failures: u32) -> Duration {
        let factor = 1u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
        self.base.checked_mul(factor).map_or(self.max, |d| d.min(self.max))
    }
}

/// [`Exponential`] with the count of failures kept, in the form that watches want.
#[derive(Clone, Debug)]
pub struct Counting {
    policy: Exponential,
    failures: u32,
}

impl Counting {
    /// No failures yet.
    pub fn new(policy: Exponential) -> Self {
        Counting { policy, failures: 0 }
    }
}

impl Iterator for Counting {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.failures = self.failures.saturating_add(1);
        Some(self.policy.delay(self.failures))
    }
}

impl Backoff for Counting {
    fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_from_base_to_max() {
        let delays: Vec<_> = [1, 2, 3, 18, 19, 33, u32::MAX].map(|n| PER_KEY.delay(n)).to_vec();
        let ms = Duration::from_millis;
        let max = Duration::from_secs(1000);
        assert_eq!(delays, [ms(5), ms(10), ms(20), ms(655_360), max, max, max]);
    }
}
