//! The write-ahead log: Raft's entries, hard state and conf state in preallocated files.
//!
//! A write is one `write` and one `sync`, however many entries it has. Each file begins with a
//! head: whose it is, the entry behind which it goes on, and the hard state that holds there, so
//! that older files can be removed once a snapshot has their entries. A file that is full is
//! followed by the next, prepared ahead; the new file states where the old one ends. A snapshot
//! from another member may supersede all of the log: then a new file begins behind it, and its
//! head says so. Invariants: all but the last file are durable to their end; behind the last
//! record there are only zeros; what [`Wal::append`] has returned from survives power loss.

pub(crate) mod record;
mod recover;

pub(crate) use recover::{LogConfig, Recovered, find, fits, identity};

use crate::cipher::{Cipher, SEAL};
use crate::codec::{put_bytes, put_u64};
use crate::disk::{Disk, DiskFile};
use crate::error::StoreError;
use crate::member::Identity;
use protobuf::Message;
use raft::eraftpb::{ConfState, Entry, HardState};
use record::{ENVELOPE, write_record};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const KIND_SEGMENT: u8 = 1;
const KIND_HARD_STATE: u8 = 2;
const KIND_ENTRY: u8 = 3;
const KIND_CONF_STATE: u8 = 4;
const KIND_CLOSED: u8 = 5;
/// The head of a file that begins behind a snapshot: nothing in older files counts any more.
const KIND_RESET: u8 = 6;

/// Room kept free in a file for what is no proposal: hard states, conf states, a leader's first
/// entry. A disk that is full lets it be used to the last byte.
const RESERVE: u64 = 16 << 10;
/// Bytes that an entry takes beside its data, at most.
const ENTRY_OVERHEAD: u64 = (ENVELOPE + SEAL + 56) as u64;

/// What one `Ready` of Raft wants on disk before its messages may go and its entries count.
#[derive(Clone, Debug, Default)]
pub(crate) struct LogWrite {
    /// Raft's number of the `Ready`.
    pub(crate) number: u64,
    /// The log is superseded by a snapshot that is durable already; comes before the entries.
    pub(crate) reset: Option<Box<Reset>>,
    pub(crate) entries: Vec<Entry>,
    pub(crate) hard_state: Option<HardState>,
}

/// The snapshot behind which the log goes on.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Reset {
    /// Of the last entry that the snapshot contains.
    pub(crate) index: u64,
    pub(crate) term: u64,
    /// The members there.
    pub(crate) conf_state: ConfState,
}

/// A place in the log: the entry that was written last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) index: u64,
    pub(crate) term: u64,
}

/// How much the log can take without a new file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    /// Bytes left in the current file.
    pub(crate) current: u64,
    /// The next file is there already.
    pub(crate) spare: bool,
}

impl Room {
    /// True if an entry with this much data surely finds room.
    pub(crate) fn fits(self, data_bytes: usize) -> bool {
        self.spare || data_bytes as u64 + ENTRY_OVERHEAD + RESERVE <= self.current
    }
}

/// The log of one member, open at its end.
pub(crate) struct Wal {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    /// Size of new files.
    segment_bytes: u64,
    /// Size of the current one.
    current_bytes: u64,
    identity: Identity,
    cipher: Arc<Cipher>,
    /// Full files, oldest first.
    full: VecDeque<FullSegment>,
    id: u64,
    file: Box<dyn DiskFile>,
    /// End of the last record; what lies before it is durable.
    offset: u64,
    /// Where the file before this one ends.
    previous_end: u64,
    /// The last entry written, or what the log begins behind.
    last: Position,
    /// The current file begins behind a snapshot.
    reset: bool,
    spare: Option<Box<dyn DiskFile>>,
    hard_state: HardState,
    /// The members that the log began with. Later ones follow from its entries, or stand in the
    /// snapshot behind which it was cut or reset.
    conf_state: ConfState,
    buffer: Vec<u8>,
}

struct FullSegment {
    id: u64,
    last_index: u64,
}

impl Wal {
    /// Writes and syncs; on return all of it survives a power loss. Answers with the bytes
    /// written. After [`StoreError::DiskFull`] the same write may be tried again; any other error
    /// is final, the log must not be used any more.
    pub(crate) fn append(&mut self, write: &LogWrite) -> Result<u64, StoreError> {
        if let Some(reset) = &write.reset {
            self.reset(reset)?;
        }
        let mut written = 0;
        let mut entries = write.entries.as_slice();
        loop {
            let (now, later) = entries.split_at(self.how_many(entries));
            let last = later.is_empty();
            self.find_room(now)?;
            let hard_state = write.hard_state.as_ref().filter(|_| last);
            written += self.append_batch(now, hard_state)?;
            if last {
                return Ok(written);
            }
            entries = later;
        }
    }

    /// Goes on behind a snapshot, in a file of its own.
    fn reset(&mut self, reset: &Reset) -> Result<(), StoreError> {
        self.roll()?;
        for full in &mut self.full {
            full.last_index = full.last_index.min(reset.index);
        }
        self.last = Position { index: reset.index, term: reset.term };
        self.conf_state = reset.conf_state.clone();
        self.reset = true;
        Ok(())
    }

    fn find_room(&mut self, entries: &[Entry]) -> Result<(), StoreError> {
        if self.offset == 0 || self.offset + batch_bytes(entries) <= self.current_bytes {
            return Ok(());
        }
        match self.roll() {
            // Without a next file this is what the reserve is for.
            Err(StoreError::DiskFull { .. })
                if self.offset + least_bytes(entries) <= self.current_bytes =>
            {
                Ok(())
            }
            rolled => rolled,
        }
    }

    /// How many of the entries one file can take: at least one.
    fn how_many(&self, entries: &[Entry]) -> usize {
        let mut bytes = RESERVE;
        let more = |entry: &&Entry| {
            bytes += entry_bytes(entry);
            bytes <= self.segment_bytes
        };
        entries.iter().take_while(more).count().max(1).min(entries.len())
    }

    fn append_batch(
        &mut self,
        entries: &[Entry],
        hard_state: Option<&HardState>,
    ) -> Result<u64, StoreError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        if self.offset == 0 {
            self.encode_head(&mut buffer);
        }
        for entry in entries {
            let place = (self.id, self.offset as u32);
            let cipher = Some(&*self.cipher);
            write_record(&mut buffer, cipher, KIND_ENTRY, place, |out| encode_entry(out, entry));
            self.last = Position { index: entry.index, term: entry.term };
        }
        if let Some(hard_state) = hard_state {
            self.hard_state = hard_state.clone();
            self.record(&mut buffer, KIND_HARD_STATE, |out| encode_hard_state(out, hard_state));
        }
        let written = self.write(&buffer).map(|()| buffer.len() as u64);
        // A large entry should not hold its memory for ever.
        if buffer.capacity() <= 4 << 20 {
            self.buffer = buffer;
        }
        written
    }

    fn record(&self, buffer: &mut Vec<u8>, kind: u8, fill: impl FnOnce(&mut Vec<u8>)) {
        write_record(buffer, None, kind, (self.id, self.offset as u32), fill);
    }

    fn encode_head(&self, buffer: &mut Vec<u8>) {
        let kind = if self.reset { KIND_RESET } else { KIND_SEGMENT };
        self.record(buffer, kind, |out| {
            let Identity { cluster_id, member_id } = self.identity;
            for number in
                [self.previous_end, member_id, cluster_id, self.last.index, self.last.term]
            {
                put_u64(out, number);
            }
            out.extend_from_slice(&self.cipher.check());
        });
        self.record(buffer, KIND_HARD_STATE, |out| encode_hard_state(out, &self.hard_state));
        self.record(buffer, KIND_CONF_STATE, |out| {
            // Writing a message without required fields into memory can't fail.
            let _ = self.conf_state.write_to_vec(out);
        });
    }

    fn write(&mut self, buffer: &[u8]) -> Result<(), StoreError> {
        if buffer.is_empty() {
            return Ok(());
        }
        let path = segment_path(&self.dir, self.id);
        self.file
            .write(buffer, self.offset)
            .map_err(|source| StoreError::io("write", &path, source))?;
        self.file.sync().map_err(|source| StoreError::io("sync", &path, source))?;
        self.offset += buffer.len() as u64;
        Ok(())
    }

    /// Goes on in the next file.
    fn roll(&mut self) -> Result<(), StoreError> {
        if self.offset == 0 {
            return Ok(());
        }
        self.prepare()?;
        let Some(spare) = self.spare.take() else { return Ok(()) };
        self.full.push_back(FullSegment { id: self.id, last_index: self.last.index });
        self.previous_end = self.offset;
        self.file = spare;
        self.current_bytes = self.segment_bytes;
        self.id += 1;
        self.offset = 0;
        self.reset = false;
        Ok(())
    }

    /// Writes the head of a file that has nothing yet.
    fn begin(&mut self) -> Result<(), StoreError> {
        self.append_batch(&[], None).map(drop)
    }

    /// Makes the next file, so that a full disk is known before an entry is on its way. Fails
    /// with [`StoreError::DiskFull`] and may then be tried again.
    pub(crate) fn prepare(&mut self) -> Result<(), StoreError> {
        if self.spare.is_none() {
            self.spare =
                Some(create_segment(&*self.disk, &self.dir, self.id + 1, self.segment_bytes)?);
        }
        Ok(())
    }

    /// True once so little is left that the next file should be prepared.
    pub(crate) fn wants_spare(&self) -> bool {
        self.spare.is_none() && self.offset > self.current_bytes / 2
    }

    pub(crate) fn room(&self) -> Room {
        Room {
            current: self.current_bytes.saturating_sub(self.offset),
            spare: self.spare.is_some(),
        }
    }

    /// Removes the files whose entries a durable snapshot at `index` contains.
    pub(crate) fn cut(&mut self, index: u64) -> Result<(), StoreError> {
        while let Some(segment) = self.full.front().filter(|full| full.last_index <= index) {
            let path = segment_path(&self.dir, segment.id);
            self.disk.remove(&path).map_err(|source| StoreError::io("remove", &path, source))?;
            // One after the other, so that no crash can leave a gap.
            sync_dir(&*self.disk, &self.dir)?;
            self.full.pop_front();
        }
        Ok(())
    }

    /// Marks the end, so that damage to the last record is not taken for a torn tail.
    pub(crate) fn close(mut self) -> Result<(), StoreError> {
        if self.offset == 0 || self.offset + RESERVE > self.current_bytes {
            return Ok(());
        }
        let mut buffer = Vec::with_capacity(ENVELOPE);
        self.record(&mut buffer, KIND_CLOSED, |_| ());
        self.write(&buffer)
    }
}

fn entry_bytes(entry: &Entry) -> u64 {
    (entry.data.len() + entry.context.len()) as u64 + ENTRY_OVERHEAD
}

fn batch_bytes(entries: &[Entry]) -> u64 {
    // Hard state, conf state and a file's head fit into half of the reserve.
    entries.iter().map(entry_bytes).sum::<u64>() + RESERVE / 2
}

/// What a write without a file's head takes at most.
fn least_bytes(entries: &[Entry]) -> u64 {
    entries.iter().map(entry_bytes).sum::<u64>() + ENTRY_OVERHEAD
}

fn encode_entry(out: &mut Vec<u8>, entry: &Entry) {
    use protobuf::ProtobufEnum as _;
    put_u64(out, entry.index);
    put_u64(out, entry.term);
    out.push(entry.get_entry_type().value() as u8);
    put_bytes(out, &entry.context);
    out.extend_from_slice(&entry.data);
}

fn encode_hard_state(out: &mut Vec<u8>, hard_state: &HardState) {
    put_u64(out, hard_state.term);
    put_u64(out, hard_state.vote);
    put_u64(out, hard_state.commit);
}

fn segment_path(dir: &Path, id: u64) -> PathBuf {
    dir.join(format!("{id:016x}.log"))
}

fn create_segment(
    disk: &dyn Disk,
    dir: &Path,
    id: u64,
    bytes: u64,
) -> Result<Box<dyn DiskFile>, StoreError> {
    let path = segment_path(dir, id);
    let full = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            // What was allocated so far would only keep the disk full; a rest is removed at the
            // next start.
            let _ = disk.remove(&path);
            StoreError::DiskFull { dir: dir.to_owned() }
        }
        _ => StoreError::io("create", &path, source),
    };
    let file = disk.create(&path, bytes).map_err(full)?;
    file.sync().map_err(|source| StoreError::io("sync", &path, source))?;
    sync_dir(disk, dir)?;
    Ok(file)
}

fn sync_dir(disk: &dyn Disk, dir: &Path) -> Result<(), StoreError> {
    disk.sync_dir(dir).map_err(|source| StoreError::io("sync directory", dir, source))
}
