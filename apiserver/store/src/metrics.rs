//! Counters that the store's user may publish.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets of [`Metrics::sync`], in microseconds; one more bucket is open.
pub const SYNC_BUCKETS_MICROS: [u64; 12] =
    [100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 51_200, 102_400, 1_000_000];

/// What the store has done since it was opened. All counters only grow.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Commands proposed.
    pub proposals: AtomicU64,
    /// Commands applied, refused ones among them.
    pub applied: AtomicU64,
    /// Commands refused by a precondition or a fence.
    pub refused: AtomicU64,
    /// Log entries that carried commands; `applied / batches` is the mean batch.
    pub batches: AtomicU64,
    /// Bytes written to the log.
    pub log_bytes: AtomicU64,
    /// Syncs of the log by duration, see [`SYNC_BUCKETS_MICROS`].
    pub sync: [AtomicU64; SYNC_BUCKETS_MICROS.len() + 1],
    /// Microseconds spent in syncs of the log.
    pub sync_micros: AtomicU64,
    /// Snapshots written.
    pub snapshots: AtomicU64,
    /// Snapshots that failed; the log grows until one succeeds.
    pub snapshot_failures: AtomicU64,
    /// Old versions of objects that the archive left out because it could not keep up.
    pub archive_skipped: AtomicU64,
}

impl Metrics {
    pub(crate) fn synced(&self, took: Duration) {
        let micros = took.as_micros() as u64;
        let bucket = SYNC_BUCKETS_MICROS.partition_point(|bound| *bound < micros);
        add(&self.sync[bucket], 1);
        add(&self.sync_micros, micros);
    }
}

/// Counters order nothing, so relaxed will do.
pub(crate) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}
