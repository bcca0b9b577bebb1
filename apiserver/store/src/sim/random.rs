//! The one source of chance in a run.

/// Numbers that follow from a seed.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        let mut state = seed ^ 0x5DEE_CE66_D1CE_CAFE;
        crate::mix::next(&mut state);
        Self(state)
    }

    pub(super) fn next(&mut self) -> u64 {
        crate::mix::next(&mut self.0)
    }

    /// In `0..n`; 0 if n is.
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    /// In `low..=high`.
    pub(super) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True in so many of a thousand.
    pub(super) fn permille(&mut self, n: u64) -> bool {
        self.below(1000) < n
    }

    /// One of them.
    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        let place = self.below(from.len() as u64) as usize;
        from.get(place).copied()
    }

    /// A time around `mean`: mostly less, seldom up to eight times as much.
    pub(super) fn around(&mut self, mean: u64) -> u64 {
        let spread = if self.permille(30) { 8 * mean } else { mean };
        mean / 2 + self.below(spread + 1)
    }
}
