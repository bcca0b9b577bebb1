//! Opening a member's files: log and snapshot together give the state to go on from.
//!
//! First everything is read and judged; what is refused is left as it was. Then what is missing
//! is made: the key, a new log, a log of the current form, a log that goes on behind a snapshot
//! that had come from another member when the last process died.

use crate::cipher::{Cipher, KeySource};
use crate::codec::Names;
use crate::core::CoreConfig;
use crate::disk::Disk;
use crate::error::StoreError;
use crate::member::Identity;
use crate::mix;
use crate::snapshot::{self, Snapshot};
use crate::state::State;
use crate::wal::{self, LogConfig, LogWrite, Position, Recovered, Reset, Wal};
use raft::eraftpb::{ConfState, HardState};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where the log of a founder begins. It must not be 0: the first members stand in no entry, so
/// whoever joins has to get them in a snapshot, and a log that begins at 0 would be sent instead.
const FOUNDED: Position = Position { index: 1, term: 1 };

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
    /// Of the last entry that the newest snapshot contains, 0 without one.
    pub(crate) snapshot_index: u64,
    /// For snapshots and the archive.
    pub(crate) cipher: Arc<Cipher>,
}

/// What a directory without a member becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// The first member of a new cluster; both ids are drawn.
    Found,
    /// This member of a cluster that is there. It knows nobody until a snapshot comes.
    Join(Identity),
    /// Nothing: the open fails.
    Existing,
}

/// How to open.
pub(crate) struct OpenConfig<'a> {
    pub(crate) dir: &'a Path,
    pub(crate) begin: Begin,
    /// Different at each open; ids are drawn from it.
    pub(crate) nonce: u64,
    pub(crate) segment_bytes: u64,
    pub(crate) remember: u64,
    pub(crate) key: KeySource,
}

/// Whose directory it is, None if nobody's yet. Changes nothing. A member of version 1 has the
/// cluster id 0 until it is opened.
pub(crate) fn existing(disk: &dyn Disk, dir: &Path) -> Result<Option<Identity>, StoreError> {
    let dirs = Dirs::of(dir);
    let log = there(wal::identity(disk, &dirs.wal))?;
    match log {
        Some(identity) => Ok(Some(identity)),
        None => there(snapshot::identity(disk, &dirs.snap)),
    }
}

fn there<T>(found: Result<Option<T>, StoreError>) -> Result<Option<T>, StoreError> {
    match found {
        Err(StoreError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
        found => found,
    }
}

/// Reads snapshot and log, checks that the two fit, and makes what is missing.
pub(crate) fn open(disk: Arc<dyn Disk>, config: OpenConfig<'_>) -> Result<Opened, StoreError> {
    let dirs = Dirs::of(config.dir);
    make_dirs(&*disk, config.dir, &dirs)?;
    let key = config.key.find(&*disk, config.dir)?;
    let mut log = wal::find(&*disk, &dirs.wal, &key)?;
    let snapshot = snapshot::load(&*disk, &dirs.snap, &key, &mut Names::default())?;
    let (fit, identity) = judge(&config, &log.recovered, snapshot.as_ref())?;
    let cipher = match key.cipher {
        Some(cipher) => cipher,
        None => config.key.make(&*disk, config.dir)?,
    };

    let snapshot_index = snapshot.as_ref().map_or(0, |snapshot| snapshot.state.applied_index);
    fit.prepare(&mut log.recovered, identity, config.begin);
    let recovered = log.recovered.clone();
    let segment_bytes = config.segment_bytes;
    let log_config = LogConfig { dir: &dirs.wal, identity, cipher: cipher.clone(), segment_bytes };
    let mut wal = log.open(disk.clone(), log_config)?;
    if let Fit::Reset(reset) = fit {
        let hard_state = Some(recovered.hard_state.clone());
        let reset = Some(Box::new(reset));
        wal.append(&LogWrite { reset, hard_state, ..LogWrite::default() })?;
    }
    snapshot::remove_halves(&*disk, &dirs.snap)?;
    snapshot::remove_older(&*disk, &dirs.snap, snapshot_index)?;
    let core = core_config(&config, identity, recovered, snapshot);
    Ok(Opened { wal, core, snapshot_index, cipher })
}

fn make_dirs(disk: &dyn Disk, dir: &Path, dirs: &Dirs) -> Result<(), StoreError> {
    for made in [&dirs.wal, &dirs.snap] {
        disk.create_dir(made).map_err(|e| StoreError::io("create directory", made, e))?;
    }
    disk.sync_dir(dir).map_err(|e| StoreError::io("sync directory", dir, e))
}

/// How the log goes on.
enum Fit {
    /// There is none yet.
    New,
    /// Behind its last entry; those that the snapshot contains are not needed.
    Keep(Position),
    /// Behind the snapshot: the log ends before it, or is another one there.
    Reset(Reset),
}

/// Whether log and snapshot are one member's and meet, and how to go on.
fn judge(
    config: &OpenConfig<'_>,
    log: &Recovered,
    snapshot: Option<&Snapshot>,
) -> Result<(Fit, Identity), StoreError> {
    let wal = Dirs::of(config.dir).wal;
    let fit = fit(log, snapshot).map_err(|reason| StoreError::Corrupt {
        file: wal,
        offset: 0,
        reason,
    })?;
    let Some(found) = log.identity else { return Ok((fit, first_identity(config)?)) };
    let other =
        |found, expected| StoreError::OtherMember { dir: config.dir.to_owned(), found, expected };
    if let Some(snapshot) = snapshot.filter(|snapshot| !wal::fits(snapshot.identity, found)) {
        return Err(other(snapshot.identity, found));
    }
    match config.begin {
        Begin::Join(expected) if expected != found => Err(other(found, expected)),
        _ if found.cluster_id == 0 => {
            Ok((fit, Identity { cluster_id: mix::draw(config.nonce, 1), ..found }))
        }
        _ => Ok((fit, found)),
    }
}

fn first_identity(config: &OpenConfig<'_>) -> Result<Identity, StoreError> {
    match config.begin {
        Begin::Found => {
            let (cluster_id, member_id) = (mix::draw(config.nonce, 1), mix::draw(config.nonce, 2));
            Ok(Identity { cluster_id, member_id })
        }
        Begin::Join(identity) => Ok(identity),
        Begin::Existing => {
            Err(StoreError::io("open store", config.dir, ErrorKind::NotFound.into()))
        }
    }
}

/// Log and snapshot must meet, and what is known to be committed must be there. Adopting a
/// snapshot is always safe, even one that nobody had told Raft of: it holds committed entries
/// only, so a log that differs at its index holds nothing behind it that could be committed.
fn fit(log: &Recovered, snapshot: Option<&Snapshot>) -> Result<Fit, String> {
    let at = snapshot.map(|snapshot| Position {
        index: snapshot.state.applied_index,
        term: snapshot.state.applied_term,
    });
    if log.identity.is_none() {
        return match at {
            None => Ok(Fit::New),
            Some(at) => Err(format!("the log is missing beside a snapshot at entry {}", at.index)),
        };
    }
    // Without a snapshot the state is the one that a log begins with.
    let begin = log.base.filter(|base| *base == FOUNDED).unwrap_or_default();
    let begins = log.base.unwrap_or(at.unwrap_or_default()).index;
    let at_index = at.unwrap_or(begin).index;
    if begins > at_index {
        return Err(format!(
            "the log begins behind entry {begins} and the snapshot ends at {at_index}"
        ));
    }
    let kept = match at {
        Some(at) => log.term_at(at.index).is_some_and(|term| term == at.term || term == 0),
        None => true,
    };
    let last = if kept { log.last().index.max(at_index) } else { at_index };
    if log.hard_state.commit > last {
        let commit = log.hard_state.commit;
        return Err(format!("entry {commit} was committed, but the log ends at {last}"));
    }
    Ok(match (snapshot, at) {
        (Some(snapshot), Some(Position { index, term })) if !kept => {
            Fit::Reset(Reset { index, term, conf_state: snapshot.conf_state.clone() })
        }
        _ => Fit::Keep(at.unwrap_or(begin)),
    })
}

impl Fit {
    /// Makes of what the log says what the member goes on from.
    fn prepare(&self, log: &mut Recovered, identity: Identity, begin: Begin) {
        let at = match self {
            Self::New if begin == Begin::Found => {
                log.conf_state = ConfState::from((vec![identity.member_id], vec![]));
                FOUNDED
            }
            Self::New => Position::default(),
            Self::Keep(at) => {
                while log.entries.pop_front_if(|entry| entry.index <= at.index).is_some() {}
                *at
            }
            Self::Reset(reset) => {
                log.entries.clear();
                Position { index: reset.index, term: reset.term }
            }
        };
        log.base = Some(at);
        raise(&mut log.hard_state, at);
    }
}

/// A state that is there was committed, in its term or before.
fn raise(hard_state: &mut HardState, at: Position) {
    if hard_state.term < at.term {
        (hard_state.term, hard_state.vote) = (at.term, 0);
    }
    hard_state.commit = hard_state.commit.max(at.index);
}

fn core_config(
    config: &OpenConfig<'_>,
    identity: Identity,
    log: Recovered,
    snapshot: Option<Snapshot>,
) -> CoreConfig {
    let Position { index, term } = log.base.unwrap_or_default();
    let (state, conf_state) = match snapshot {
        Some(Snapshot { state, conf_state, .. }) => (state, conf_state),
        None => {
            let state = State { applied_index: index, applied_term: term, ..State::default() };
            (state, log.conf_state)
        }
    };
    CoreConfig {
        identity,
        nonce: config.nonce,
        remember: config.remember,
        state,
        conf_state,
        hard_state: log.hard_state,
        entries: log.entries,
    }
}
