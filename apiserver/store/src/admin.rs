//! What is done to a member's directory while no store runs on it: a cluster made from a snapshot
//! file, or from one member that is left.
//!
//! Either is a new cluster: it has a new id, so members of the old one are refused, and its
//! revisions go on far above the old ones, so that none is ever used twice and every watch begins
//! anew.

use crate::cipher::KeySource;
use crate::codec::{ENTRY_VERSION, Item, Names, Reader, read_entry};
use crate::disk::{Disk, RealDisk};
use crate::error::StoreError;
use crate::files::{self, Begin, Dirs, OpenConfig, Opened};
use crate::lock::DirLock;
use crate::member::{Identity, Member, MemberChange, MemberInfo};
use crate::mix;
use crate::snapshot::{self, Snapshot, stream};
use crate::state::{Remembered, State};
use crate::store::random_bytes;
use raft::eraftpb::{ConfState, Entry, EntryType};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// By how much the revision is raised: more than any cluster writes while a backup is of use, so
/// that it never goes back behind what clients have seen.
pub const REVISIONS_SKIPPED: u64 = 1_000_000_000;
const SEGMENT_BYTES: u64 = 16 << 20;

/// What a snapshot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// The cluster that it is of.
    pub cluster_id: u64,
    /// Index of the last log entry in it.
    pub index: u64,
    /// The last revision in it.
    pub revision: u64,
    /// How many objects it holds.
    pub objects: u64,
    /// The state's running hash.
    pub state_hash: u64,
}

impl SnapshotInfo {
    pub(crate) fn of(snapshot: &Snapshot) -> Self {
        let state = &snapshot.state;
        Self {
            cluster_id: snapshot.identity.cluster_id,
            index: state.applied_index,
            revision: state.root.revision,
            objects: state.root.resources.values().map(|r| r.len() as u64).sum(),
            state_hash: state.hash,
        }
    }
}

/// A whole state on its way out, in chunks that are made as they are asked for.
pub struct SnapshotStream {
    /// What it holds.
    pub info: SnapshotInfo,
    pub(crate) chunks: stream::Chunks,
}

impl Iterator for SnapshotStream {
    type Item = bytes::Bytes;

    fn next(&mut self) -> Option<bytes::Bytes> {
        self.chunks.next()
    }
}

/// Reads a file of [`SnapshotStream`]'s chunks to its end and says what it holds.
///
/// # Errors
/// [`StoreError::Corrupt`] if anything in it is damaged or missing.
pub fn inspect_snapshot(file: &Path) -> Result<SnapshotInfo, StoreError> {
    Ok(SnapshotInfo::of(&read_snapshot(file)?))
}

fn read_snapshot(file: &Path) -> Result<Snapshot, StoreError> {
    let bytes = std::fs::read(file).map_err(|source| StoreError::io("read", file, source))?;
    stream::decode(&bytes, file)
}

/// Whose directory it is; None if no member's. Changes nothing.
///
/// # Errors
/// If there are files that can't be read.
pub fn existing(dir: &Path) -> Result<Option<Identity>, StoreError> {
    files::existing(&RealDisk, dir)
}

/// Makes of a directory without a member a new cluster of one, which has what the snapshot file
/// has. A crash may leave half of it: the caller works beside the place where it is to be.
///
/// # Errors
/// If the file is damaged, or the directory holds a member; nothing is changed then.
pub fn restore(
    file: &Path,
    dir: &Path,
    info: &MemberInfo,
    key: Option<PathBuf>,
) -> Result<Identity, StoreError> {
    let snapshot = read_snapshot(file)?;
    if let Some(member) = existing(dir)? {
        let dir = dir.display();
        return Err(StoreError::Members(format!("{dir} holds {member} already")));
    }
    let identity = fresh_identity();
    let mut state = snapshot.state;
    state.roster = state.roster.alone(0, identity.member_id, Some(info.clone()));
    begin_anew(state, identity, dir, key)?;
    Ok(identity)
}

/// Where a member's log ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEnd {
    /// Whose it is.
    pub identity: Identity,
    /// Of the last entry.
    pub last_index: u64,
    /// Of the last entry.
    pub last_term: u64,
    /// Index of the last entry known to be committed.
    pub commit: u64,
    /// The members as of the last entry.
    pub members: Vec<Member>,
}

/// Reads where the log of a member that does not run ends.
///
/// # Errors
/// If the member runs, or its files are damaged.
pub fn log_end(dir: &Path, key: Option<PathBuf>) -> Result<LogEnd, StoreError> {
    let _lock = DirLock::take(dir)?;
    finish_recovery(dir)?;
    let opened = open(dir, Begin::Existing, key)?;
    let identity = opened.core.identity;
    let state = &opened.core.state;
    let last = opened.core.entries.back();
    let end = LogEnd {
        identity,
        last_index: last.map_or(state.applied_index, |entry| entry.index),
        last_term: last.map_or(state.applied_term, |entry| entry.term),
        commit: opened.core.hard_state.commit,
        members: members_at_end(&opened)?,
    };
    opened.wal.close()?;
    Ok(end)
}

fn members_at_end(opened: &Opened) -> Result<Vec<Member>, StoreError> {
    let (mut state, mut conf_state) = (opened.core.state.clone(), opened.core.conf_state.clone());
    let mut names = Names::default();
    for entry in &opened.core.entries {
        for item in items_of(entry, &mut names)? {
            let Item::Change { change, .. } = item else { continue };
            // It may make no sense, and then it made none when it was applied.
            if state.change_members(&change, &conf_state).is_ok() {
                reassign(&mut conf_state, &change);
            }
        }
    }
    Ok(state.roster.members(&conf_state))
}

/// Who votes and who learns after a change, as Raft has it.
fn reassign(conf_state: &mut ConfState, change: &MemberChange) {
    let mut without = |id: u64| {
        conf_state.voters.retain(|voter| *voter != id);
        conf_state.learners.retain(|learner| *learner != id);
    };
    match change {
        MemberChange::Add { id, .. } => conf_state.learners.push(*id),
        MemberChange::Update { .. } => {}
        MemberChange::Promote(id) => {
            without(*id);
            conf_state.voters.push(*id);
        }
        MemberChange::Remove(id) => without(*id),
    }
}

/// What an entry asks for, be it of its kind or of Raft's.
fn items_of(entry: &Entry, names: &mut Names) -> Result<Vec<Item>, StoreError> {
    let items = match entry.get_entry_type() {
        EntryType::EntryNormal => read_entry(&entry.data, names, ENTRY_VERSION),
        _ if entry.context.is_empty() => Ok(Vec::new()),
        _ => Reader::new(&entry.context).item(names).map(|item| vec![item]),
    };
    items.map_err(|e| StoreError::Entry { index: entry.index, reason: e.to_string() })
}

/// Makes a new cluster of one member of a member's whole log, whatever was committed of it. The old
/// files stay in `before-<cluster id>` below the directory.
///
/// # Errors
/// If the member runs, or its files are damaged; nothing is changed then.
pub fn recover(dir: &Path, key: Option<PathBuf>) -> Result<Identity, StoreError> {
    let _lock = DirLock::take(dir)?;
    finish_recovery(dir)?;
    let opened = open(dir, Begin::Existing, key.clone())?;
    let (old, identity) = (opened.core.identity, fresh_identity());
    let mut state = everything(opened)?;
    state.roster = state.roster.alone(old.member_id, identity.member_id, None);
    let making = dir.join(RECOVERING);
    if making.exists() {
        std::fs::remove_dir_all(&making).map_err(|e| StoreError::io("remove", &making, e))?;
    }
    begin_anew(state, identity, &making, key)?;
    // From here on there is no way back: an open that finds it finishes what is left.
    rename(&making, &dir.join(format!("{RECOVERED}{:x}", old.cluster_id)))?;
    finish_recovery(dir)?;
    Ok(identity)
}

const RECOVERING: &str = "recovering";
const RECOVERED: &str = "recovered-from-";

/// Puts the files of a recovered member where the old ones are, which go aside. Nothing is done if
/// there is nothing to finish.
pub(crate) fn finish_recovery(dir: &Path) -> Result<(), StoreError> {
    let names = RealDisk.list(dir).map_err(|source| StoreError::io("list", dir, source))?;
    let Some(name) = names.iter().find(|name| name.starts_with(RECOVERED)) else {
        return Ok(());
    };
    let (from, old) = (dir.join(name), name.replacen(RECOVERED, "before-", 1));
    let aside = dir.join(old);
    RealDisk
        .create_dir(&aside)
        .map_err(|source| StoreError::io("create directory", &aside, source))?;
    for part in ["key", "snap", "wal"] {
        // What was moved already is not there any more.
        if from.join(part).exists() {
            if dir.join(part).exists() {
                rename(&dir.join(part), &aside.join(part))?;
            }
            rename(&from.join(part), &dir.join(part))?;
        }
    }
    std::fs::remove_dir_all(&from).map_err(|source| StoreError::io("remove", &from, source))
}

/// The state after the last entry of the log.
fn everything(opened: Opened) -> Result<State, StoreError> {
    let (mut state, mut names) = (opened.core.state, Names::default());
    let mut conf_state = opened.core.conf_state;
    for entry in &opened.core.entries {
        state.begin_entry(entry.index, entry.term, opened.core.remember);
        for item in items_of(entry, &mut names)? {
            match item {
                Item::Command { since, command } => drop(state.apply(command, since)),
                Item::Change { change, .. } => {
                    if state.change_members(&change, &conf_state).is_ok() {
                        reassign(&mut conf_state, &change);
                    }
                }
            }
        }
    }
    opened.wal.close()?;
    Ok(state)
}

fn fresh_identity() -> Identity {
    let nonce = rand::random();
    Identity { cluster_id: mix::draw(nonce, 1), member_id: mix::draw(nonce, 2) }
}

/// Writes a member's files with this state as all there is.
fn begin_anew(
    mut state: State,
    identity: Identity,
    dir: &Path,
    key: Option<PathBuf>,
) -> Result<(), StoreError> {
    (state.applied_index, state.applied_term) = (1, 1);
    state.root.revision += REVISIONS_SKIPPED;
    state.remembered = Remembered::default();
    let disk = RealDisk;
    disk.create_dir(dir).map_err(|e| StoreError::io("create directory", dir, e))?;
    // A log first: a snapshot without one would be refused. The next open then finds the snapshot
    // ahead of the log and goes on behind it.
    let opened = open(dir, Begin::Join(identity), key.clone())?;
    let conf_state = ConfState::from((vec![identity.member_id], vec![]));
    let snapshot = Snapshot { state, conf_state, identity };
    snapshot::save(&disk, &Dirs::of(dir).snap, &opened.cipher, &snapshot)?;
    opened.wal.close()?;
    open(dir, Begin::Existing, key)?.wal.close()
}

fn open(dir: &Path, begin: Begin, key: Option<PathBuf>) -> Result<Opened, StoreError> {
    let config = OpenConfig {
        dir,
        begin,
        nonce: rand::random(),
        segment_bytes: SEGMENT_BYTES,
        remember: u64::MAX,
        key: KeySource { file: key, random: random_bytes() },
    };
    files::open(Arc::new(RealDisk), config)
}

fn rename(from: &Path, to: &Path) -> Result<(), StoreError> {
    std::fs::rename(from, to).map_err(|source| StoreError::io("rename", from, source))?;
    let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    RealDisk.sync_dir(parent).map_err(|source| StoreError::io("sync directory", parent, source))
}
