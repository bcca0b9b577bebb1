//! What can go wrong in the store, in words that name the operation and the thing.

use crate::member::Identity;
use std::path::PathBuf;
use std::sync::Arc;

/// Why a store operation failed. Cheap to clone: one failure answers many callers.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process holds the data directory.
    #[error("the data directory {dir} is in use by process {pid}")]
    Locked {
        /// The store's directory.
        dir: PathBuf,
        /// Whose lock file it is, as far as it could be read.
        pid: String,
    },
    /// The files can't be what this program wrote: nothing was changed.
    #[error("{file} is damaged at offset {offset}: {reason}")]
    Corrupt {
        /// The damaged file.
        file: PathBuf,
        /// Where the damage begins.
        offset: u64,
        /// What is wrong there.
        reason: String,
    },
    /// The files were written by a newer program.
    #[error("{file} has format version {found}; this program knows versions up to {known}")]
    NewerFormat {
        /// The file.
        file: PathBuf,
        /// Its version.
        found: u8,
        /// The newest version known here.
        known: u8,
    },
    /// The directory belongs to another member, or its files to several: nothing was changed.
    #[error(
        "{dir} belongs to {found}, not to {expected}; a member whose disk was wiped or exchanged \
         needs a new id: remove the old member from the cluster and join anew"
    )]
    OtherMember {
        /// The store's directory.
        dir: PathBuf,
        /// Who the files say they belong to.
        found: Identity,
        /// Who was expected.
        expected: Identity,
    },
    /// The key does not open the files: nothing was changed.
    #[error("the store's key {file}: {reason}; nothing was changed")]
    Key {
        /// The key file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file operation failed. From a sync or a write of the log this is final: the store has
    /// stopped and the process must end.
    #[error("{operation} {path}: {source}")]
    Io {
        /// `open`, `write`, `sync`, …
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's word.
        source: Arc<std::io::Error>,
    },
    /// No room for the log: this write was refused, nothing before it is lost. It may be tried
    /// again when there is room.
    #[error("no space left for the log in {dir}")]
    DiskFull {
        /// The log's directory.
        dir: PathBuf,
    },
    /// The command is larger than a log entry may be.
    #[error("the command has {bytes} bytes, more than the {limit} that a log entry may have")]
    TooLarge {
        /// Its encoded size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The store has stopped after a fatal error; the process must end.
    #[error("the store has stopped: {0}")]
    Failed(Arc<StoreError>),
    /// The store was shut down.
    #[error("the store is shut down")]
    Closed,
    /// No leader was found in time: nothing was asked of anybody. Who is missing is in the text.
    #[error("no quorum: {reason}")]
    NoQuorum {
        /// Who is missing, for people.
        reason: String,
    },
    /// Nothing was heard of the write in time, or it was asked for so long ago that nobody knows:
    /// it may have been applied, or may yet be.
    #[error("the request timed out; whether it was applied is unknown")]
    Unknown,
    /// The change of members is refused.
    #[error("{0}")]
    Members(String),
    /// This member was removed from its cluster and must stop.
    #[error("this member was removed from the cluster")]
    Removed,
    /// A Raft operation was refused.
    #[error("raft {operation}: {reason}")]
    Raft {
        /// What was asked.
        operation: &'static str,
        /// What Raft said.
        reason: String,
    },
    /// An entry of the log can't be decoded: applying on would diverge, so the store stops.
    #[error("log entry {index}: {reason}")]
    Entry {
        /// Its index.
        index: u64,
        /// What is wrong.
        reason: String,
    },
}

impl StoreError {
    /// An [`StoreError::Io`] of this operation.
    pub(crate) fn io(
        operation: &'static str,
        path: impl Into<PathBuf>,
        source: std::io::Error,
    ) -> Self {
        Self::Io { operation, path: path.into(), source: Arc::new(source) }
    }

    /// True if the cause is a full disk.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::DiskFull { .. } => true,
            Self::Io { source, .. } => source.kind() == std::io::ErrorKind::StorageFull,
            Self::Failed(cause) => cause.is_disk_full(),
            _ => false,
        }
    }
}

/// The asked revision is older than what is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("revision {asked} has been compacted; the oldest available is {oldest}")]
pub struct Compacted {
    /// The revision asked for.
    pub asked: u64,
    /// The oldest revision that can still be had.
    pub oldest: u64,
}

/// Why a reader at a revision can't be had.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ViewError {
    /// Older than what is kept.
    #[error(transparent)]
    Compacted(#[from] Compacted),
    /// Newer than what was applied here.
    #[error("revision {asked} is in the future; the current one is {current}")]
    Future {
        /// The revision asked for.
        asked: u64,
        /// The current revision.
        current: u64,
    },
}

/// Why a watch can't begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// Events after the asked revision are no longer kept.
    #[error("the history before revision {oldest} has been compacted")]
    Compacted {
        /// The oldest revision a watch of this resource can start from.
        oldest: u64,
    },
    /// The asked revision is newer than what was applied here.
    #[error("the revision is in the future; the current one is {current}")]
    Future {
        /// The current revision.
        current: u64,
    },
}

/// The watcher was slower than the history is long: it has missed events, so its stream must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the watch fell behind: it stands at revision {at}, the history begins after {oldest}")]
pub struct Lagged {
    /// Up to where everything was delivered.
    pub at: u64,
    /// The oldest revision a new watch could start from.
    pub oldest: u64,
}
