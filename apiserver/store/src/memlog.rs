//! Raft's view of the log: the newest entries in memory. What is applied leaves it soon; the
//! files keep it until a snapshot has it.

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Result, Storage, StorageError};
use std::collections::VecDeque;

/// Entries in `(truncated_index, last]`, and the state that Raft begins with.
pub(crate) struct MemLog {
    truncated_index: u64,
    truncated_term: u64,
    entries: VecDeque<Entry>,
    hard_state: HardState,
    conf_state: ConfState,
}

impl MemLog {
    /// A log that begins behind `(index, term)`.
    pub(crate) fn new(
        (truncated_index, truncated_term): (u64, u64),
        entries: VecDeque<Entry>,
        hard_state: HardState,
        conf_state: ConfState,
    ) -> Self {
        Self { truncated_index, truncated_term, entries, hard_state, conf_state }
    }

    /// Adds entries; those at and behind the first one's index are replaced.
    pub(crate) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        while self.entries.pop_back_if(|last| last.index >= first.index).is_some() {}
        self.entries.extend(entries.iter().cloned());
    }

    /// Forgets the entries up to `index`, which must be applied and persisted.
    pub(crate) fn truncate(&mut self, index: u64) {
        while let Some(entry) = self.entries.pop_front_if(|first| first.index <= index) {
            (self.truncated_index, self.truncated_term) = (entry.index, entry.term);
        }
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
        let range = self.entries.range(place(low)..place(high));
        let mut entries: Vec<_> = range.cloned().collect();
        raft::util::limit_size(&mut entries, max_size.into());
        Ok(entries)
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

    /// Snapshots are files, too large for a message: a member that needs one fetches it.
    fn snapshot(&self, _request_index: u64, _to: u64) -> Result<Snapshot> {
        Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}
