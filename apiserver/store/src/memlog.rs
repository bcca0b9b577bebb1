//! Raft's view of the log: the newest entries in memory. What is applied leaves it soon, but for
//! what followers that are a little behind may need; the files keep it until a snapshot has it.

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot, SnapshotMetadata};
use raft::{Error, GetEntriesContext, RaftState, Result, Storage, StorageError};
use std::cell::Cell;
use std::collections::VecDeque;

/// Entries in `(truncated_index, last]`, and the state that Raft begins with.
pub(crate) struct MemLog {
    truncated_index: u64,
    truncated_term: u64,
    entries: VecDeque<Entry>,
    /// Of the entries' data.
    bytes: usize,
    hard_state: HardState,
    conf_state: ConfState,
    /// The snapshot that can be sent now.
    prepared: Option<SnapshotMetadata>,
    /// Raft has asked for a snapshot and there was none that would do.
    wanted: Cell<bool>,
}

impl MemLog {
    /// A log that begins behind `(index, term)`.
    pub(crate) fn new(
        (truncated_index, truncated_term): (u64, u64),
        entries: VecDeque<Entry>,
        hard_state: HardState,
        conf_state: ConfState,
    ) -> Self {
        let bytes = entries.iter().map(|entry| entry.data.len()).sum();
        Self {
            truncated_index,
            truncated_term,
            entries,
            bytes,
            hard_state,
            conf_state,
            prepared: None,
            wanted: Cell::new(false),
        }
    }

    /// Adds entries; those at and behind the first one's index are replaced.
    pub(crate) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        while let Some(entry) = self.entries.pop_back_if(|last| last.index >= first.index) {
            self.bytes -= entry.data.len();
        }
        self.bytes += entries.iter().map(|entry| entry.data.len()).sum::<usize>();
        self.entries.extend(entries.iter().cloned());
    }

    /// Begins anew behind a snapshot.
    pub(crate) fn reset(&mut self, index: u64, term: u64) {
        (self.truncated_index, self.truncated_term) = (index, term);
        self.entries.clear();
        self.bytes = 0;
        self.prepared = None;
    }

    /// Forgets the oldest entries up to `index`, which must be applied and persisted, as long as
    /// the rest has more than `keep_bytes` of data.
    pub(crate) fn truncate(&mut self, index: u64, keep_bytes: usize) {
        while let Some(first) = self.entries.front() {
            // The first entry of all may follow a conf state that stands in no entry: nobody can
            // begin with it.
            if first.index > index || (first.index > 1 && self.bytes <= keep_bytes) {
                return;
            }
            (self.truncated_index, self.truncated_term) = (first.index, first.term);
            self.bytes -= first.data.len();
            self.entries.pop_front();
        }
    }

    /// Offers a snapshot to Raft, or none.
    pub(crate) fn prepare(&mut self, snapshot: Option<SnapshotMetadata>) {
        self.prepared = snapshot;
    }

    /// Whether a snapshot was asked for that was not there; once.
    pub(crate) fn take_wanted(&self) -> bool {
        self.wanted.take()
    }

    fn last(&self) -> u64 {
        self.truncated_index + self.entries.len() as u64
    }
}

impl Storage for MemLog {
    fn initial_state(&self) -> Result<RaftState> {
        Ok(RaftState::new(self.hard_state.clone(), self.conf_state.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> Result<Vec<Entry>> {
        if low <= self.truncated_index {
            return Err(Error::Store(StorageError::Compacted));
        }
        if high > self.last() + 1 {
            return Err(Error::Store(StorageError::Unavailable));
        }
        let place = |index: u64| (index - self.truncated_index - 1) as usize;
        let most = max_size.into().unwrap_or(u64::MAX);
        let mut bytes = 0;
        // At least one, however large.
        let fits = |entry: &&Entry| {
            let first = bytes == 0;
            bytes += entry.data.len() as u64 + 32;
            first || bytes <= most
        };
        Ok(self.entries.range(place(low)..place(high)).take_while(fits).cloned().collect())
    }

    fn term(&self, index: u64) -> Result<u64> {
        if index == self.truncated_index {
            return Ok(self.truncated_term);
        }
        let place = index.checked_sub(self.truncated_index + 1);
        let place = place.ok_or(Error::Store(StorageError::Compacted))?;
        let entry = self.entries.get(place as usize);
        entry.map(|entry| entry.term).ok_or(Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> Result<u64> {
        Ok(self.truncated_index + 1)
    }

    fn last_index(&self) -> Result<u64> {
        Ok(self.last())
    }

    /// Only the index, term and members: what a snapshot holds is far too large for a message and
    /// travels in chunks beside it.
    fn snapshot(&self, request_index: u64, _to: u64) -> Result<Snapshot> {
        let fits = |metadata: &&SnapshotMetadata| {
            metadata.index >= request_index && metadata.index >= self.truncated_index
        };
        match self.prepared.as_ref().filter(fits) {
            Some(metadata) => {
                let mut snapshot = Snapshot::default();
                snapshot.set_metadata(metadata.clone());
                Ok(snapshot)
            }
            None => {
                self.wanted.set(true);
                Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable))
            }
        }
    }
}
