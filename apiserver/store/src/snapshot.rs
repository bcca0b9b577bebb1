//! Snapshots: the whole state at one log index, in one file, written beside the running store.
//!
//! A file is written under another name, synced, renamed, and its directory synced; only then is
//! it one. It holds a head, requests remembered, chunks of objects and an end that counts them,
//! each a record with its own sum and number, so damage is found before anything is served. The
//! same records, in plain, go to a member that needs the state: see [`stream`].

pub(crate) mod stream;

use crate::cipher::{self, Cipher};
use crate::codec::{Names, Reader, put_bytes, put_u64, write_object, write_remembered};
use crate::disk::{Disk, DiskFile};
use crate::error::StoreError;
use crate::member::Identity;
use crate::object::Object;
use crate::state::State;
use crate::wal::record::{
    ENVELOPE, OpenError, Record, RecordError, VERSION, read_record, record_length, write_record,
};
use protobuf::Message;
use raft::eraftpb::ConfState;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const KIND_HEAD: u8 = 16;
const KIND_OBJECTS: u8 = 17;
const KIND_END: u8 = 18;
const KIND_REMEMBERED: u8 = 19;
/// Objects, and requests remembered, are collected to chunks of about this size.
const CHUNK_BYTES: usize = 256 << 10;

/// A state, the members at its index, and whose it is.
#[derive(Clone)]
pub(crate) struct Snapshot {
    pub(crate) state: State,
    pub(crate) conf_state: ConfState,
    pub(crate) identity: Identity,
}

/// Writes the snapshot; on return it is durable. Answers with its size.
pub(crate) fn save(
    disk: &dyn Disk,
    dir: &Path,
    cipher: &Cipher,
    snapshot: &Snapshot,
) -> Result<u64, StoreError> {
    let path = snapshot_path(dir, snapshot.state.applied_index);
    let temporary = path.with_extension("tmp");
    let written = write_file(disk, &temporary, cipher, snapshot);
    if written.is_err() {
        // A half snapshot would only fill the disk; what is left of it goes at the next start.
        let _ = disk.remove(&temporary);
    }
    let bytes = written?;
    publish(disk, dir, &temporary, &path)?;
    Ok(bytes)
}

fn write_file(
    disk: &dyn Disk,
    path: &Path,
    cipher: &Cipher,
    snapshot: &Snapshot,
) -> Result<u64, StoreError> {
    let io = |operation| move |source| StoreError::io(operation, path, source);
    let file = disk.create(path, 0).map_err(io("create"))?;
    let mut records = Records::new(snapshot);
    let (mut at, mut payload, mut buffer) = (0, Vec::new(), Vec::new());
    while let Some((kind, number)) = records.next(&mut payload) {
        buffer.clear();
        let place = (snapshot.state.applied_index, number);
        write_record(&mut buffer, cipher_for(kind, cipher), kind, place, |out| {
            out.extend_from_slice(&payload);
        });
        file.write(&buffer, at).map_err(io("write"))?;
        at += buffer.len() as u64;
    }
    file.sync().map_err(io("sync"))?;
    Ok(at)
}

/// Heads and ends stay readable without the key.
fn cipher_for(kind: u8, cipher: &Cipher) -> Option<&Cipher> {
    matches!(kind, KIND_OBJECTS | KIND_REMEMBERED).then_some(cipher)
}

/// Gives a file that is durable the name under which it counts.
fn publish(disk: &dyn Disk, dir: &Path, from: &Path, to: &Path) -> Result<(), StoreError> {
    disk.rename(from, to).map_err(|source| StoreError::io("rename", from, source))?;
    disk.sync_dir(dir).map_err(|source| StoreError::io("sync directory", dir, source))
}

/// Removes the snapshots before the one at `index`, which must be durable. A newer one stays: it
/// may have come from another member meanwhile.
pub(crate) fn remove_older(disk: &dyn Disk, dir: &Path, index: u64) -> Result<(), StoreError> {
    remove(disk, dir, |name| snapshot_index(name).is_some_and(|other| other < index))
}

/// Removes files left half-written. Only while nobody writes one.
pub(crate) fn remove_halves(disk: &dyn Disk, dir: &Path) -> Result<(), StoreError> {
    remove(disk, dir, |name| name.ends_with(".tmp") || name.ends_with(".part"))
}

fn remove(disk: &dyn Disk, dir: &Path, which: impl Fn(&str) -> bool) -> Result<(), StoreError> {
    let names = disk.list(dir).map_err(|source| StoreError::io("list", dir, source))?;
    for name in names.iter().filter(|name| which(name)) {
        let path = dir.join(name);
        disk.remove(&path).map_err(|source| StoreError::io("remove", &path, source))?;
    }
    Ok(())
}

/// The newest snapshot of the directory; None if there is none. A damaged one is refused, for
/// the log before it is gone.
pub(crate) fn load(
    disk: &dyn Disk,
    dir: &Path,
    key: &cipher::Found,
    names: &mut Names,
) -> Result<Option<Snapshot>, StoreError> {
    let Some(path) = newest(disk, dir)? else { return Ok(None) };
    // Its rename may not have been made durable before the last process died.
    disk.sync_dir(dir).map_err(|source| StoreError::io("sync directory", dir, source))?;
    let mut input = In::open(disk, &path)?;
    let mut decoder = Decoder::default();
    while decoder.ended.is_none() {
        let bytes = input.next()?;
        let damaged = |reason: &str| input.damaged(reason);
        let (record, length) = read_record(&bytes).map_err(|error| input.refused(error))?;
        let payload = match record.open(key.cipher.as_deref()) {
            Err(OpenError::NoKey) => return Err(key.refuse()),
            Err(OpenError::Forged) => return Err(damaged("the record can't be decrypted")),
            Ok(payload) => payload,
        };
        decoder.record(&record, &payload, names).map_err(|reason| damaged(&reason))?;
        input.at += length as u64;
    }
    if input.at != input.length || snapshot_path(dir, decoder.index) != path {
        return Err(input.damaged("the file is another one, or goes on behind its end"));
    }
    Ok(decoder.ended)
}

/// Whose the newest snapshot is; None if there is none.
pub(crate) fn identity(disk: &dyn Disk, dir: &Path) -> Result<Option<Identity>, StoreError> {
    let Some(path) = newest(disk, dir)? else { return Ok(None) };
    let mut input = In::open(disk, &path)?;
    let bytes = input.next()?;
    let (record, _) = read_record(&bytes).map_err(|error| input.refused(error))?;
    let mut decoder = Decoder::default();
    let payload = record.open(None).map_err(|_| input.damaged("bad head"))?;
    let read = decoder.record(&record, &payload, &mut Names::default());
    read.map_err(|reason| input.damaged(&reason))?;
    Ok(decoder.snapshot.map(|snapshot| snapshot.identity))
}

fn newest(disk: &dyn Disk, dir: &Path) -> Result<Option<PathBuf>, StoreError> {
    let found = disk.list(dir).map_err(|source| StoreError::io("list", dir, source))?;
    let index = found.iter().filter_map(|name| snapshot_index(name)).max();
    Ok(index.map(|index| snapshot_path(dir, index)))
}

fn snapshot_path(dir: &Path, index: u64) -> PathBuf {
    dir.join(format!("{index:016x}.snap"))
}

fn snapshot_index(name: &str) -> Option<u64> {
    u64::from_str_radix(name.strip_suffix(".snap")?, 16).ok()
}

/// What of a snapshot comes next.
enum Part {
    Head,
    /// From this one on.
    Remembered(usize),
    Objects,
    End,
    Nothing,
}

/// The records of a snapshot, made one at a time.
struct Records {
    snapshot: Snapshot,
    objects: Box<dyn Iterator<Item = Arc<Object>> + Send>,
    part: Part,
    number: u32,
    count: u64,
}

impl Records {
    fn new(snapshot: &Snapshot) -> Self {
        let objects = Box::new(snapshot.state.root.clone().into_objects());
        Self { snapshot: snapshot.clone(), objects, part: Part::Head, number: 0, count: 0 }
    }

    /// Replaces `payload` by the next record's; answers with its kind and number.
    fn next(&mut self, payload: &mut Vec<u8>) -> Option<(u8, u32)> {
        payload.clear();
        let kind = loop {
            match self.part {
                Part::Head => {
                    encode_head(payload, &self.snapshot);
                    self.part = Part::Remembered(0);
                    break KIND_HEAD;
                }
                Part::Remembered(from) => match self.remembered(payload, from) {
                    0 => self.part = Part::Objects,
                    more => {
                        self.part = Part::Remembered(from + more);
                        break KIND_REMEMBERED;
                    }
                },
                Part::Objects => match self.objects(payload) {
                    0 => self.part = Part::End,
                    more => {
                        self.count += more;
                        break KIND_OBJECTS;
                    }
                },
                Part::End => {
                    put_u64(payload, self.count);
                    self.part = Part::Nothing;
                    break KIND_END;
                }
                Part::Nothing => return None,
            }
        };
        self.number += 1;
        Some((kind, self.number - 1))
    }

    fn remembered(&self, payload: &mut Vec<u8>, from: usize) -> usize {
        let mut more = 0;
        for (index, id, answer) in self.snapshot.state.remembered.iter().skip(from) {
            if payload.len() >= CHUNK_BYTES {
                break;
            }
            write_remembered(payload, index, id, answer);
            more += 1;
        }
        more
    }

    fn objects(&mut self, payload: &mut Vec<u8>) -> u64 {
        let mut more = 0;
        while payload.len() < CHUNK_BYTES {
            let Some(object) = self.objects.next() else { break };
            write_object(payload, &object);
            more += 1;
        }
        more
    }
}

/// The head begins with whose the snapshot is: see [`stream`].
fn encode_head(out: &mut Vec<u8>, snapshot: &Snapshot) {
    let (state, identity) = (&snapshot.state, snapshot.identity);
    for number in [
        identity.member_id,
        identity.cluster_id,
        state.applied_index,
        state.applied_term,
        state.root.revision,
        state.hash,
    ] {
        put_u64(out, number);
    }
    let mut system = Vec::new();
    state.encode_system(&mut system);
    put_bytes(out, &system);
    // Writing a message without required fields into memory can't fail.
    let _ = snapshot.conf_state.write_to_vec(out);
}

/// Puts a snapshot together from its records.
#[derive(Default)]
struct Decoder {
    /// Of the last log entry that the snapshot contains; 0 before the head.
    index: u64,
    snapshot: Option<Snapshot>,
    number: u32,
    count: u64,
    /// The whole of it.
    ended: Option<Snapshot>,
}

impl Decoder {
    fn record(
        &mut self,
        record: &Record<'_>,
        payload: &[u8],
        names: &mut Names,
    ) -> Result<(), String> {
        let number = if record.version == 1 { 0 } else { self.number };
        if record.durable != number {
            return Err("the record is not the next one".into());
        }
        self.number += 1;
        match (&mut self.snapshot, record.kind) {
            (None, KIND_HEAD) => {
                let snapshot = decode_head(record.version, payload).ok_or("bad head")?;
                self.index = snapshot.state.applied_index;
                self.snapshot = Some(snapshot);
            }
            (None, _) => return Err("the file does not begin with its head".into()),
            (Some(snapshot), KIND_REMEMBERED) => {
                let mut reader = Reader::new(payload);
                while !reader.is_empty() {
                    let (index, id, answer) = reader
                        .remembered()
                        .map_err(|error| format!("a remembered request {error}"))?;
                    snapshot.state.remembered.add(id, index, answer);
                }
            }
            (Some(snapshot), KIND_OBJECTS) => {
                let mut reader = Reader::new(payload);
                while !reader.is_empty() {
                    let object =
                        reader.object(names).map_err(|error| format!("an object {error}"))?;
                    snapshot.state.root.put(Arc::new(object));
                    self.count += 1;
                }
            }
            (Some(_), KIND_END) => match Reader::new(payload).u64() {
                Ok(count) if count == self.count => self.ended = self.snapshot.take(),
                _ => return Err("the number of objects is wrong".into()),
            },
            (Some(_), _) => return Err("the kind of the record is unknown".into()),
        }
        match record.file == self.index {
            true => Ok(()),
            false => Err("the record belongs to another snapshot".into()),
        }
    }
}

fn decode_head(version: u8, payload: &[u8]) -> Option<Snapshot> {
    let mut reader = Reader::new(payload);
    let member_id = reader.u64().ok()?;
    let cluster_id = if version == 1 { 0 } else { reader.u64().ok()? };
    let mut state = State { applied_index: reader.u64().ok()?, ..State::default() };
    state.applied_term = reader.u64().ok()?;
    state.root.revision = reader.u64().ok()?;
    state.hash = reader.u64().ok()?;
    if version == 1 {
        for _ in 0..reader.count().ok()? {
            let (index, id, answer) = reader.remembered().ok()?;
            state.remembered.add(id, index, answer);
        }
    } else {
        state.decode_system(reader.bytes().ok()?)?;
    }
    let conf_state = ConfState::parse_from_bytes(reader.rest()).ok()?;
    Some(Snapshot { state, conf_state, identity: Identity { cluster_id, member_id } })
}

/// A file that is read record by record.
struct In<'a> {
    file: Box<dyn DiskFile>,
    path: &'a Path,
    at: u64,
    length: u64,
}

impl<'a> In<'a> {
    fn open(disk: &dyn Disk, path: &'a Path) -> Result<Self, StoreError> {
        let file = disk.open(path).map_err(|source| StoreError::io("open", path, source))?;
        let length = file.len().map_err(|source| StoreError::io("read", path, source))?;
        Ok(Self { file, path, at: 0, length })
    }

    /// The bytes of the next record, as far as its length can be trusted.
    fn next(&mut self) -> Result<Vec<u8>, StoreError> {
        let mut envelope = [0; ENVELOPE];
        self.fill(&mut envelope)?;
        let length = record_length(&envelope);
        if length > self.length - self.at {
            return Err(self.damaged("the file is cut off"));
        }
        let mut record = vec![0; length as usize];
        self.fill(&mut record)?;
        Ok(record)
    }

    fn fill(&self, buffer: &mut [u8]) -> Result<(), StoreError> {
        self.file.read_exact(buffer, self.at).map_err(|source| match source.kind() {
            std::io::ErrorKind::UnexpectedEof => self.damaged("the file is cut off"),
            _ => StoreError::io("read", self.path, source),
        })
    }

    fn refused(&self, error: RecordError) -> StoreError {
        match error {
            RecordError::Invalid(reason) => self.damaged(reason),
            RecordError::Newer(found) => {
                StoreError::NewerFormat { file: self.path.to_owned(), found, known: VERSION }
            }
        }
    }

    fn damaged(&self, reason: &str) -> StoreError {
        StoreError::Corrupt {
            file: self.path.to_owned(),
            offset: self.at,
            reason: reason.to_owned(),
        }
    }
}
