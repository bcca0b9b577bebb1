//! Opening a member's files: log and snapshot together give the state to go on from.

use crate::codec::Names;
use crate::core::CoreConfig;
use crate::disk::Disk;
use crate::error::StoreError;
use crate::snapshot::{self, Snapshot};
use crate::state::State;
use crate::wal::{self, LogConfig, Recovered, Wal};
use raft::eraftpb::ConfState;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where a member's files lie.
#[derive(Clone)]
pub(crate) struct Dirs {
    pub(crate) wal: PathBuf,
    pub(crate) snap: PathBuf,
    pub(crate) history: PathBuf,
}

impl Dirs {
    pub(crate) fn of(dir: &Path) -> Self {
        Self { wal: dir.join("wal"), snap: dir.join("snap"), history: dir.join("history") }
    }
}

/// A member as its files have it.
pub(crate) struct Opened {
    pub(crate) wal: Wal,
    pub(crate) core: CoreConfig,
    pub(crate) snapshot_index: u64,
}

/// How to open.
pub(crate) struct OpenConfig<'a> {
    pub(crate) dir: &'a Path,
    pub(crate) node_id: u64,
    pub(crate) nonce: u64,
    pub(crate) segment_bytes: u64,
    pub(crate) remember: u64,
    /// The members of a store that is new.
    pub(crate) voters: Vec<u64>,
}

/// Reads snapshot and log, makes directories that are missing, and checks that the two fit.
pub(crate) fn open(disk: Arc<dyn Disk>, config: OpenConfig<'_>) -> Result<Opened, StoreError> {
    let dirs = Dirs::of(config.dir);
    make_dirs(&*disk, config.dir, &dirs)?;
    let snapshot = snapshot::load(&*disk, &dirs.snap, config.node_id, &mut Names::default())?;
    let first_conf_state = ConfState::from((config.voters, vec![]));
    let log = LogConfig {
        dir: &dirs.wal,
        node_id: config.node_id,
        segment_bytes: config.segment_bytes,
        first_conf_state: first_conf_state.clone(),
    };
    let (wal, recovered) = wal::recover(disk.clone(), log)?;
    let Snapshot { state, conf_state, .. } = match snapshot {
        Some(snapshot) => snapshot,
        None => Snapshot {
            state: State::default(),
            conf_state: recovered.conf_state.clone().unwrap_or(first_conf_state),
            node_id: config.node_id,
        },
    };
    let snapshot_index = state.applied_index;
    check(&dirs, &recovered, snapshot_index)?;
    snapshot::remove_others(&*disk, &dirs.snap, snapshot_index)?;
    let mut entries = recovered.entries;
    while entries.pop_front_if(|entry| entry.index <= snapshot_index).is_some() {}
    let core = CoreConfig {
        node_id: config.node_id,
        nonce: config.nonce,
        remember: config.remember,
        state,
        conf_state,
        hard_state: recovered.hard_state,
        entries,
    };
    Ok(Opened { wal, core, snapshot_index })
}

fn make_dirs(disk: &dyn Disk, dir: &Path, dirs: &Dirs) -> Result<(), StoreError> {
    for made in [&dirs.wal, &dirs.snap] {
        disk.create_dir(made).map_err(|e| StoreError::io("create directory", made, e))?;
    }
    disk.sync_dir(dir).map_err(|e| StoreError::io("sync directory", dir, e))
}

/// Log and snapshot must meet, and what is known to be committed must be there.
fn check(dirs: &Dirs, log: &Recovered, snapshot_index: u64) -> Result<(), StoreError> {
    let refuse =
        |reason: String| Err(StoreError::Corrupt { file: dirs.wal.clone(), offset: 0, reason });
    if log.conf_state.is_none() && snapshot_index > 0 {
        return refuse(format!("the log is missing beside a snapshot at entry {snapshot_index}"));
    }
    match log.entries.front() {
        Some(first) if first.index > snapshot_index + 1 => refuse(format!(
            "the log begins at entry {} and the snapshot ends at {snapshot_index}",
            first.index
        )),
        _ => {
            let last = log.entries.back().map_or(0, |entry| entry.index).max(snapshot_index);
            match log.hard_state.commit > last {
                true => refuse(format!(
                    "entry {} was committed, but the log ends at {last}",
                    log.hard_state.commit
                )),
                false => Ok(()),
            }
        }
    }
}
