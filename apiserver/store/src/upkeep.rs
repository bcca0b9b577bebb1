//! What a member's shell decides: when a snapshot is due, and when one that closes may end.

use crate::error::StoreError;
use crate::replica::Replica;
use raft::eraftpb::Entry;

/// How long a member that closes waits for others: for one to take over, or to answer.
const CLOSE_TICKS: u32 = 20;

/// How much log there is behind the last snapshot.
#[derive(Default)]
pub(crate) struct LogBytes {
    pub(crate) since_snapshot: u64,
    /// What `since_snapshot` was when the snapshot in work was begun.
    at_snapshot: u64,
    pub(crate) snapshot_index: u64,
}

impl LogBytes {
    /// Behind a snapshot, with the log's entries since.
    pub(crate) fn new(snapshot_index: u64, since_snapshot: u64) -> Self {
        Self { since_snapshot, at_snapshot: 0, snapshot_index }
    }

    /// Entries are on their way to the log.
    pub(crate) fn grow<'a>(&mut self, entries: impl IntoIterator<Item = &'a Entry>) {
        self.since_snapshot += written_bytes(entries);
    }

    /// True if the log has grown by so much that a snapshot should be taken.
    pub(crate) fn is_due(&self, every: u64) -> bool {
        self.since_snapshot >= every
    }

    /// A snapshot is being taken.
    pub(crate) fn begin(&mut self) {
        self.at_snapshot = self.since_snapshot;
    }

    /// It was taken, at an index, or it failed and is tried again once the log has grown by as
    /// much again.
    pub(crate) fn end(&mut self, taken: &Result<u64, StoreError>) {
        self.since_snapshot = self.since_snapshot.saturating_sub(self.at_snapshot);
        if let Ok(index) = taken {
            self.snapshot_index = self.snapshot_index.max(*index);
        }
    }
}

/// About how many bytes of log the entries take.
pub(crate) fn written_bytes<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> u64 {
    entries.into_iter().map(|entry| entry.data.len() as u64 + 64).sum()
}

/// True if a member that has been closing for so many ticks may end: another leads, and its own
/// are answered; or it has waited long enough. A write on its way is waited for, but not for a disk
/// that is full: there may never be room.
pub(crate) fn may_end<T>(replica: &Replica<T>, ticks: u32, disk_full: bool) -> bool {
    let patient = ticks < CLOSE_TICKS && !replica.core().is_alone();
    let settled = !replica.is_handing_over() && replica.is_idle();
    settled || !patient && (disk_full || !replica.core().is_writing())
}
