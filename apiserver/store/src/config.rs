//! The store's settings.

use crate::files::Begin;
use crate::member::{Member, MemberInfo, TICK};
use std::path::PathBuf;
use std::time::Duration;

/// How a store is opened. Take the defaults of [`StoreConfig::new`] and change what differs.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Where `wal/`, `snap/` and `history/` lie; made if absent.
    pub dir: PathBuf,
    /// What the member is if the directory is new.
    pub begin: Begin,
    /// The members that one that joins is told of: it knows no others until its first snapshot.
    pub seeds: Vec<Member>,
    /// A file with the key of log and snapshots, 32 bytes in hex; None: `key` in `dir`, made if
    /// the store is new.
    pub encryption_key: Option<PathBuf>,
    /// What this member says of itself; the cluster is told when it is something else than before.
    pub info: MemberInfo,
    /// Most bytes of a snapshot sent to one member in a second.
    pub snapshot_bytes_per_second: usize,
    /// Size of a log file, allocated ahead.
    pub segment_bytes: u64,
    /// A snapshot is taken when the log has grown by this much since the last one.
    pub snapshot_every_bytes: u64,
    /// Most bytes of one log entry, and so of one batch of commands; at most a quarter of
    /// `segment_bytes`.
    pub entry_bytes: usize,
    /// Most bytes that proposals under way may hold; more of them wait.
    pub pending_bytes: usize,
    /// Most bytes of objects kept for watchers to catch up.
    pub history_bytes: usize,
    /// How long events are kept at most.
    pub history_age: Duration,
    /// For how many log entries a request id is remembered; the same on all members.
    pub remember_entries: u64,
    /// Keep old versions of objects in `history/` for exact reads beyond the watch history.
    pub archive: bool,
    /// How many revisions `history/` keeps at least.
    pub archive_revisions: u64,
    /// The archive's cache in bytes.
    pub archive_cache_bytes: u64,
}

impl StoreConfig {
    /// The defaults for a single member.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            begin: Begin::Found,
            seeds: Vec::new(),
            encryption_key: None,
            info: MemberInfo::default(),
            snapshot_bytes_per_second: 100 << 20,
            segment_bytes: 16 << 20,
            snapshot_every_bytes: 48 << 20,
            entry_bytes: 1 << 20,
            pending_bytes: 32 << 20,
            history_bytes: 32 << 20,
            history_age: Duration::from_secs(300),
            remember_entries: 1 << 13,
            archive: true,
            archive_revisions: 100_000,
            archive_cache_bytes: 8 << 20,
        }
    }

    pub(crate) fn snapshot_bytes_per_tick(&self) -> usize {
        self.snapshot_bytes_per_second / (Duration::from_secs(1).div_duration_f64(TICK) as usize)
    }
}
