//! Snapshots: the whole state at one log index, in one file, written beside the running store.
//!
//! A file is written under another name, synced, renamed, and its directory synced; only then is
//! it one. It holds a head, chunks of objects and an end that counts them, each a record with
//! its own sum, so damage is found before anything is served.

use crate::codec::{Names, Reader, put_count, put_u64, write_object, write_remembered};
use crate::disk::{Disk, DiskFile};
use crate::error::StoreError;
use crate::state::State;
use crate::wal::record::{ENVELOPE, RecordError, VERSION, read_record, write_record};
use protobuf::Message;
use raft::eraftpb::ConfState;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const KIND_HEAD: u8 = 16;
const KIND_OBJECTS: u8 = 17;
const KIND_END: u8 = 18;
/// Objects are collected to chunks of about this size.
const CHUNK_BYTES: usize = 1 << 20;

/// A state to be written, and the members at its index.
pub(crate) struct Snapshot {
    pub(crate) state: State,
    pub(crate) conf_state: ConfState,
    pub(crate) node_id: u64,
}

/// Writes the snapshot; on return it is durable. Answers with its size.
pub(crate) fn save(disk: &dyn Disk, dir: &Path, snapshot: &Snapshot) -> Result<u64, StoreError> {
    let path = snapshot_path(dir, snapshot.state.applied_index);
    let temporary = path.with_extension("tmp");
    let written = write_file(disk, &temporary, snapshot);
    if written.is_err() {
        // A half snapshot would only fill the disk; what is left of it goes at the next start.
        let _ = disk.remove(&temporary);
    }
    let bytes = written?;
    disk.rename(&temporary, &path).map_err(|e| StoreError::io("rename", &temporary, e))?;
    disk.sync_dir(dir).map_err(|e| StoreError::io("sync directory", dir, e))?;
    Ok(bytes)
}

fn write_file(disk: &dyn Disk, path: &Path, snapshot: &Snapshot) -> Result<u64, StoreError> {
    let io = |operation| move |source| StoreError::io(operation, path, source);
    let file = disk.create(path, 0).map_err(io("create"))?;
    let mut out = Out { file: &*file, id: snapshot.state.applied_index, at: 0, buffer: Vec::new() };
    out.write_all(snapshot).map_err(io("write"))?;
    file.sync().map_err(io("sync"))?;
    Ok(out.at)
}

/// Removes all snapshots but the one at `index`, and files left half-written.
pub(crate) fn remove_others(disk: &dyn Disk, dir: &Path, index: u64) -> Result<(), StoreError> {
    let names = disk.list(dir).map_err(|source| StoreError::io("list", dir, source))?;
    for name in names {
        let half = name.ends_with(".tmp");
        if half || snapshot_index(&name).is_some_and(|other| other != index) {
            let path = dir.join(&name);
            disk.remove(&path).map_err(|source| StoreError::io("remove", &path, source))?;
        }
    }
    Ok(())
}

/// The newest snapshot of the directory; None if there is none. A damaged one is refused, for
/// the log before it is gone.
pub(crate) fn load(
    disk: &dyn Disk,
    dir: &Path,
    node_id: u64,
    names: &mut Names,
) -> Result<Option<Snapshot>, StoreError> {
    let found = disk.list(dir).map_err(|source| StoreError::io("list", dir, source))?;
    let Some(index) = found.iter().filter_map(|name| snapshot_index(name)).max() else {
        return Ok(None);
    };
    // Its rename may not have been made durable before the last process died.
    disk.sync_dir(dir).map_err(|source| StoreError::io("sync directory", dir, source))?;
    let path = snapshot_path(dir, index);
    let file = disk.open(&path).map_err(|source| StoreError::io("open", &path, source))?;
    let length = file.len().map_err(|source| StoreError::io("read", &path, source))?;
    let mut input = In { file: &*file, path: &path, id: index, at: 0, length, record: Vec::new() };
    let snapshot = input.read_all(names)?;
    match snapshot.node_id == node_id {
        true => Ok(Some(snapshot)),
        false => Err(StoreError::OtherMember {
            dir: dir.to_owned(),
            found: snapshot.node_id,
            expected: node_id,
        }),
    }
}

fn snapshot_path(dir: &Path, index: u64) -> PathBuf {
    dir.join(format!("{index:016x}.snap"))
}

fn snapshot_index(name: &str) -> Option<u64> {
    u64::from_str_radix(name.strip_suffix(".snap")?, 16).ok()
}

struct Out<'a> {
    file: &'a dyn DiskFile,
    id: u64,
    at: u64,
    buffer: Vec<u8>,
}

impl Out<'_> {
    fn write_all(&mut self, snapshot: &Snapshot) -> std::io::Result<()> {
        self.record(KIND_HEAD, |out| encode_head(out, snapshot))?;
        let mut chunk = Vec::with_capacity(CHUNK_BYTES + (CHUNK_BYTES >> 4));
        let mut count = 0;
        for object in snapshot.state.root.iter() {
            write_object(&mut chunk, &object);
            count += 1;
            if chunk.len() >= CHUNK_BYTES {
                self.record(KIND_OBJECTS, |out| out.extend_from_slice(&chunk))?;
                chunk.clear();
            }
        }
        if !chunk.is_empty() {
            self.record(KIND_OBJECTS, |out| out.extend_from_slice(&chunk))?;
        }
        self.record(KIND_END, |out| put_u64(out, count))
    }

    fn record(&mut self, kind: u8, fill: impl FnOnce(&mut Vec<u8>)) -> std::io::Result<()> {
        self.buffer.clear();
        write_record(&mut self.buffer, kind, self.id, 0, fill);
        self.file.write(&self.buffer, self.at)?;
        self.at += self.buffer.len() as u64;
        Ok(())
    }
}

fn encode_head(out: &mut Vec<u8>, snapshot: &Snapshot) {
    let state = &snapshot.state;
    for number in
        [snapshot.node_id, state.applied_index, state.applied_term, state.root.revision, state.hash]
    {
        put_u64(out, number);
    }
    let remembered: Vec<_> = state.remembered.iter().collect();
    put_count(out, remembered.len());
    for (index, id, answer) in remembered {
        write_remembered(out, index, id, answer);
    }
    // Writing a message without required fields into memory can't fail.
    let _ = snapshot.conf_state.write_to_vec(out);
}

struct In<'a> {
    file: &'a dyn DiskFile,
    path: &'a Path,
    id: u64,
    at: u64,
    length: u64,
    record: Vec<u8>,
}

impl In<'_> {
    fn read_all(&mut self, names: &mut Names) -> Result<Snapshot, StoreError> {
        if self.next()? != KIND_HEAD {
            return Err(self.damaged("the file does not begin with its head"));
        }
        let mut snapshot = decode_head(self.payload()).ok_or_else(|| self.damaged("bad head"))?;
        let mut count = 0;
        loop {
            match self.next()? {
                KIND_OBJECTS => {
                    let mut reader = Reader::new(&self.record[ENVELOPE..]);
                    while !reader.is_empty() {
                        let object = reader
                            .object(names)
                            .map_err(|error| self.damaged(&format!("an object {error}")))?;
                        snapshot.state.root.put(Arc::new(object));
                        count += 1;
                    }
                }
                KIND_END if Reader::new(self.payload()).u64() == Ok(count) => return Ok(snapshot),
                KIND_END => return Err(self.damaged("the number of objects is wrong")),
                _ => return Err(self.damaged("the kind of the record is unknown")),
            }
        }
    }

    /// Reads and checks the next record and answers with its kind.
    fn next(&mut self) -> Result<u8, StoreError> {
        let mut head = [0; ENVELOPE];
        self.fill(&mut head, self.at)?;
        let length = Reader::new(&head[8..]).u32().unwrap_or(0) as u64;
        if self.at + ENVELOPE as u64 + length > self.length {
            return Err(self.damaged("the file is cut off"));
        }
        let mut record = std::mem::take(&mut self.record);
        record.resize(ENVELOPE + length as usize, 0);
        self.fill(&mut record, self.at)?;
        let kind = match read_record(&record) {
            Ok((found, _)) if found.file == self.id => found.kind,
            Ok(_) => return Err(self.damaged("the record belongs to another snapshot")),
            Err(RecordError::Invalid(reason)) => return Err(self.damaged(reason)),
            Err(RecordError::Newer(found)) => {
                let file = self.path.to_owned();
                return Err(StoreError::NewerFormat { file, found, known: VERSION });
            }
        };
        self.at += record.len() as u64;
        self.record = record;
        Ok(kind)
    }

    fn fill(&self, buffer: &mut [u8], at: u64) -> Result<(), StoreError> {
        self.file.read_exact(buffer, at).map_err(|source| match source.kind() {
            std::io::ErrorKind::UnexpectedEof => self.damaged("the file is cut off"),
            _ => StoreError::io("read", self.path, source),
        })
    }

    fn payload(&self) -> &[u8] {
        &self.record[ENVELOPE..]
    }

    fn damaged(&self, reason: &str) -> StoreError {
        StoreError::Corrupt {
            file: self.path.to_owned(),
            offset: self.at,
            reason: reason.to_owned(),
        }
    }
}

fn decode_head(payload: &[u8]) -> Option<Snapshot> {
    let mut reader = Reader::new(payload);
    let node_id = reader.u64().ok()?;
    let mut state = State { applied_index: reader.u64().ok()?, ..State::default() };
    state.applied_term = reader.u64().ok()?;
    state.root.revision = reader.u64().ok()?;
    state.hash = reader.u64().ok()?;
    for _ in 0..reader.count().ok()? {
        let (index, id, answer) = reader.remembered().ok()?;
        state.remembered.add(id, index, answer);
    }
    let conf_state = ConfState::parse_from_bytes(reader.rest()).ok()?;
    Some(Snapshot { state, conf_state, node_id })
}
