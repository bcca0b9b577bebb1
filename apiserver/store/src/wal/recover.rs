//! Opening a log: reads what is whole, refuses damage; then cuts a torn tail.
//!
//! [`find`] only looks; whatever it refuses is as it was. [`Found::open`] changes files.

use super::record::{
    ENVELOPE, OpenError, Record, RecordError, VERSION, is_zero, latest_durable, read_record,
};
use super::{
    FullSegment, KIND_CLOSED, KIND_CONF_STATE, KIND_ENTRY, KIND_HARD_STATE, KIND_RESET,
    KIND_SEGMENT, Position, Wal, create_segment, segment_path, sync_dir,
};
use crate::cipher::{self, Cipher, SEAL};
use crate::codec::{CodecError, Reader};
use crate::disk::{Disk, DiskFile};
use crate::error::StoreError;
use crate::member::Identity;
use bytes::Bytes;
use protobuf::{Message, ProtobufEnum};
use raft::eraftpb::{ConfState, Entry, EntryType, HardState};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

/// What the log says.
#[derive(Clone, Default)]
pub(crate) struct Recovered {
    /// None if the log is new. Version 1 knew no clusters: their id is 0.
    pub(crate) identity: Option<Identity>,
    pub(crate) hard_state: HardState,
    pub(crate) conf_state: ConfState,
    /// Behind what the entries go on; the term is 0 if it is unknown. None if the log does not
    /// say, which happens in version 1 if there are no entries either.
    pub(crate) base: Option<Position>,
    /// Without gaps.
    pub(crate) entries: VecDeque<Entry>,
}

/// A log as it lies there, read and not changed.
pub(crate) struct Found {
    segments: Vec<Segment>,
    /// Files at the end in which nothing became durable, oldest first.
    unused: Vec<u64>,
    full: VecDeque<FullSegment>,
    /// Where the records of the last file end.
    offset: u64,
    /// The last file is of version 1.
    old_form: bool,
    pub(crate) recovered: Recovered,
}

/// How a log goes on, or begins.
pub(crate) struct LogConfig<'a> {
    pub(crate) dir: &'a Path,
    pub(crate) identity: Identity,
    pub(crate) cipher: Arc<Cipher>,
    pub(crate) segment_bytes: u64,
}

/// A file as it was found.
struct Segment {
    id: u64,
    file: Box<dyn DiskFile>,
    bytes: Vec<u8>,
}

/// Whose log it is, from the newest head there is; None if there is none.
pub(crate) fn identity(disk: &dyn Disk, dir: &Path) -> Result<Option<Identity>, StoreError> {
    for id in segment_ids(disk, dir)?.into_iter().rev() {
        let path = segment_path(dir, id);
        let io = |source| StoreError::io("read", &path, source);
        let file = disk.open(&path).map_err(io)?;
        let mut bytes = vec![0; (file.len().map_err(io)? as usize).min(HEAD_MOST)];
        file.read_exact(&mut bytes, 0).map_err(io)?;
        match read_record(&bytes) {
            Ok((record, _)) if record.file == id => {
                if let Ok(Some(head)) = Recovered::default().record(&record, None) {
                    return Ok(Some(head.identity));
                }
            }
            Err(RecordError::Newer(found)) => {
                return Err(StoreError::NewerFormat { file: path, found, known: VERSION });
            }
            _ => {}
        }
    }
    Ok(None)
}

/// More than a head has.
const HEAD_MOST: usize = ENVELOPE + SEAL + 128;

/// Reads the log. An encrypted one needs its key.
pub(crate) fn find(disk: &dyn Disk, dir: &Path, key: &cipher::Found) -> Result<Found, StoreError> {
    let mut segments = open_segments(disk, dir)?;
    let unused = split_unused(&mut segments);
    let mut log =
        Reading { dir, key, recovered: Recovered::default(), full: VecDeque::new(), version: 0 };
    let mut previous_end = None;
    for (place, segment) in segments.iter().enumerate() {
        let end = log.segment(segment, previous_end)?;
        previous_end = Some((segment.id, end));
        if place + 1 < segments.len() {
            log.full.push_back(FullSegment { id: segment.id, last_index: log.last().index });
        }
    }
    let offset = previous_end.map_or(0, |(_, end)| end);
    if let Some(last) = segments.last() {
        check_tail(last, dir, offset)?;
    }
    let Reading { recovered, full, version, .. } = log;
    let old_form = version < VERSION && !segments.is_empty();
    Ok(Found { segments, unused, full, offset, old_form, recovered })
}

impl Found {
    /// Removes what is left over and goes on from `recovered`, which may have been changed. On
    /// return the log says in the current form whose it is, durably.
    pub(crate) fn open(
        mut self,
        disk: Arc<dyn Disk>,
        config: LogConfig<'_>,
    ) -> Result<Wal, StoreError> {
        let dir = config.dir;
        for id in self.unused.into_iter().rev() {
            let path = segment_path(dir, id);
            disk.remove(&path).map_err(|source| StoreError::io("remove", &path, source))?;
            sync_dir(&*disk, dir)?;
        }
        let (id, file, current_bytes) = match self.segments.pop() {
            Some(segment) => {
                finish(&segment, dir, self.offset)?;
                (segment.id, segment.file, segment.bytes.len() as u64)
            }
            None => {
                (1, create_segment(&*disk, dir, 1, config.segment_bytes)?, config.segment_bytes)
            }
        };
        let last = self.recovered.last();
        let mut wal = Wal {
            disk,
            dir: dir.to_owned(),
            segment_bytes: config.segment_bytes,
            current_bytes,
            identity: config.identity,
            cipher: config.cipher,
            full: self.full,
            id,
            file,
            offset: self.offset,
            previous_end: 0,
            last,
            reset: false,
            spare: None,
            hard_state: self.recovered.hard_state,
            conf_state: self.recovered.conf_state,
            buffer: Vec::new(),
        };
        if self.old_form {
            wal.roll()?;
        }
        if wal.offset == 0 {
            wal.begin()?;
        }
        Ok(wal)
    }
}

fn segment_ids(disk: &dyn Disk, dir: &Path) -> Result<Vec<u64>, StoreError> {
    let names = disk.list(dir).map_err(|source| StoreError::io("list", dir, source))?;
    let id = |name: &String| u64::from_str_radix(name.strip_suffix(".log")?, 16).ok();
    let mut ids: Vec<_> = names.iter().filter_map(id).collect();
    ids.sort_unstable();
    Ok(ids)
}

fn open_segments(disk: &dyn Disk, dir: &Path) -> Result<Vec<Segment>, StoreError> {
    let ids = segment_ids(disk, dir)?;
    if let Some(gap) = ids.windows(2).find(|pair| pair[0] + 1 != pair[1]) {
        return Err(StoreError::Corrupt {
            file: segment_path(dir, gap[0] + 1),
            offset: 0,
            reason: "the file is missing between two others of the log".into(),
        });
    }
    ids.into_iter().map(|id| open_segment(disk, dir, id)).collect()
}

fn open_segment(disk: &dyn Disk, dir: &Path, id: u64) -> Result<Segment, StoreError> {
    let path = segment_path(dir, id);
    let file = disk.open(&path).map_err(|source| StoreError::io("open", &path, source))?;
    let bytes = file.read(0).map_err(|source| StoreError::io("read", &path, source))?;
    Ok(Segment { id, file, bytes })
}

/// Takes out the files at the end in which nothing became durable: prepared ones, and one whose
/// very first write was torn.
fn split_unused(segments: &mut Vec<Segment>) -> Vec<u64> {
    let unused = |segment: &Segment| {
        is_zero(&segment.bytes)
            || (matches!(read_record(&segment.bytes), Err(RecordError::Invalid(_)))
                && latest_durable(&segment.bytes, segment.id) == 0)
    };
    let used = segments.iter().rposition(|segment| !unused(segment)).map_or(0, |last| last + 1);
    segments.drain(used..).map(|segment| segment.id).collect()
}

/// Refuses the last file if something durable is damaged.
fn check_tail(segment: &Segment, dir: &Path, offset: u64) -> Result<(), StoreError> {
    if u64::from(latest_durable(&segment.bytes[offset as usize..], segment.id)) <= offset {
        return Ok(());
    }
    let file = segment_path(dir, segment.id);
    let reason = "a record is damaged that had been synced".to_owned();
    Err(StoreError::Corrupt { file, offset, reason })
}

/// Cuts what was torn at the end of the last file.
fn finish(segment: &Segment, dir: &Path, offset: u64) -> Result<(), StoreError> {
    let path = segment_path(dir, segment.id);
    let tail = &segment.bytes[offset as usize..];
    if !is_zero(tail) {
        let zeros = vec![0; tail.len()];
        segment.file.write(&zeros, offset).map_err(|e| StoreError::io("write", &path, e))?;
    }
    // A process that died before its sync leaves records that can be read and yet be lost; from
    // here on they count as durable.
    segment.file.sync().map_err(|e| StoreError::io("sync", &path, e))
}

/// Where a reader of a file stands: finds records that were written to another place.
#[derive(Default)]
struct Place {
    /// Where the write began that the last record is of.
    write: u32,
    /// The last entry in it.
    entry: Option<u64>,
}

impl Place {
    /// True if the record can stand at `at`: it says where its write began, and a head stands at
    /// the begin of a file and nowhere else.
    fn fits(&mut self, record: &Record<'_>, at: usize) -> bool {
        let begins = record.durable as usize == at;
        if begins {
            *self = Self { write: record.durable, entry: None };
        }
        let is_head = matches!(record.kind, KIND_SEGMENT | KIND_RESET);
        (begins || record.durable == self.write) && is_head == (at == 0)
    }

    /// True if the entry is the next of its write: only another write may replace entries.
    fn follows(&mut self, index: u64) -> bool {
        self.entry.replace(index).is_none_or(|before| before + 1 == index)
    }
}

struct Reading<'a> {
    dir: &'a Path,
    key: &'a cipher::Found,
    recovered: Recovered,
    full: VecDeque<FullSegment>,
    /// Of the head read last.
    version: u8,
}

impl Reading<'_> {
    fn last(&self) -> Position {
        self.recovered.last()
    }

    /// Reads one file and answers where its records end. `previous` is the file before it and
    /// where that one's records end.
    fn segment(
        &mut self,
        segment: &Segment,
        previous: Option<(u64, u64)>,
    ) -> Result<u64, StoreError> {
        let (mut at, mut place) = (0, Place::default());
        loop {
            let (record, length) = match read_record(&segment.bytes[at..]) {
                Ok(found) => found,
                Err(RecordError::Newer(found)) => {
                    let file = segment_path(self.dir, segment.id);
                    return Err(StoreError::NewerFormat { file, found, known: VERSION });
                }
                Err(RecordError::Invalid(_)) => return Ok(at as u64),
            };
            let corrupt = |log: &Self, reason| log.corrupt(segment.id, at as u64, reason);
            if record.file != segment.id || !place.fits(&record, at) {
                return Err(corrupt(self, "the record belongs elsewhere".into()));
            }
            match self.recovered.record(&record, self.key.cipher.as_deref()) {
                Ok(None) => {}
                Ok(Some(head)) => self.head(&record, &head, previous)?,
                Err(Refusal::Reason(reason)) => return Err(corrupt(self, reason)),
                Err(Refusal::NoKey) => return Err(self.key.refuse()),
            }
            if record.kind == KIND_ENTRY && !place.follows(self.last().index) {
                return Err(corrupt(self, "the write stands here once more".into()));
            }
            at += length;
        }
    }

    fn head(
        &mut self,
        record: &Record<'_>,
        head: &Head,
        previous: Option<(u64, u64)>,
    ) -> Result<(), StoreError> {
        let knows = |cipher: &Arc<Cipher>| cipher.knows(&head.check);
        if record.version > 1 && !self.key.cipher.as_ref().is_some_and(knows) {
            return Err(self.key.refuse());
        }
        self.check_identity(head.identity)?;
        if let Some((id, end)) = previous.filter(|(_, end)| *end != head.previous_end) {
            let reason = format!("the records end here, not at {}", head.previous_end);
            return Err(self.corrupt(id, end, reason));
        }
        self.version = record.version;
        self.recovered.identity = Some(head.identity);
        let Some(begin) = head.begin else { return Ok(()) };
        if record.kind == KIND_RESET {
            for full in &mut self.full {
                full.last_index = full.last_index.min(begin.index);
            }
            self.recovered.entries.clear();
            self.recovered.base = Some(begin);
        } else if previous.is_none() || self.recovered.is_silent() {
            self.recovered.base = Some(begin);
        } else if self.last() != begin {
            let (ends, begins) = (self.last(), begin);
            let reason = format!("the file goes on behind {begins:?}, the log before at {ends:?}");
            return Err(self.corrupt(record.file, 0, reason));
        }
        Ok(())
    }

    fn check_identity(&self, found: Identity) -> Result<(), StoreError> {
        match self.recovered.identity {
            Some(expected) if !fits(expected, found) => {
                Err(StoreError::OtherMember { dir: self.dir.to_owned(), found, expected })
            }
            _ => Ok(()),
        }
    }

    fn corrupt(&self, id: u64, offset: u64, reason: String) -> StoreError {
        StoreError::Corrupt { file: segment_path(self.dir, id), offset, reason }
    }
}

/// True if both are one member, as far as the older one says: version 1 knew no clusters.
pub(crate) fn fits(older: Identity, newer: Identity) -> bool {
    older.member_id == newer.member_id
        && (older.cluster_id == newer.cluster_id || older.cluster_id == 0)
}

/// The first record of a file.
struct Head {
    previous_end: u64,
    identity: Identity,
    /// Unknown in version 1.
    begin: Option<Position>,
    check: Vec<u8>,
}

/// Why a record is no good.
enum Refusal {
    Reason(String),
    NoKey,
}

impl From<CodecError> for Refusal {
    fn from(error: CodecError) -> Self {
        Self::Reason(error.to_string())
    }
}

impl Recovered {
    /// The last entry, or behind what the log begins.
    pub(crate) fn last(&self) -> Position {
        let entry = self.entries.back();
        let last = entry.map(|entry| Position { index: entry.index, term: entry.term });
        last.or(self.base).unwrap_or_default()
    }

    /// The term of an entry that the log has or begins behind; 0 if it is unknown.
    pub(crate) fn term_at(&self, index: u64) -> Option<u64> {
        if let Some(base) = self.base.filter(|base| base.index == index) {
            return Some(base.term);
        }
        let first = self.entries.front()?.index;
        let entry = self.entries.get(index.checked_sub(first)? as usize)?;
        Some(entry.term)
    }

    fn is_silent(&self) -> bool {
        self.base.is_none() && self.entries.is_empty()
    }

    fn record(
        &mut self,
        record: &Record<'_>,
        cipher: Option<&Cipher>,
    ) -> Result<Option<Head>, Refusal> {
        let payload = record.open(cipher).map_err(|error| match error {
            OpenError::NoKey => Refusal::NoKey,
            OpenError::Forged => Refusal::Reason("the record can't be decrypted".into()),
        })?;
        let mut reader = Reader::new(&payload);
        match record.kind {
            KIND_SEGMENT | KIND_RESET => return Ok(Some(read_head(record.version, &mut reader)?)),
            KIND_HARD_STATE => self.hard_state = read_hard_state(&mut reader)?,
            KIND_ENTRY => self.entry(read_entry(&mut reader)?)?,
            KIND_CONF_STATE => {
                let read = ConfState::parse_from_bytes(&payload);
                self.conf_state = read.map_err(|error| Refusal::Reason(error.to_string()))?;
            }
            KIND_CLOSED => {}
            kind => {
                let reason = format!("the kind {kind} of the record is unknown");
                return Err(Refusal::Reason(reason));
            }
        }
        Ok(None)
    }

    /// A new leader's entries replace those at and behind their index; they may reach behind the
    /// begin of the file.
    fn entry(&mut self, entry: Entry) -> Result<(), Refusal> {
        while self.entries.pop_back_if(|last| last.index >= entry.index).is_some() {}
        let before = Position { index: entry.index.saturating_sub(1), term: 0 };
        if self.entries.is_empty() && self.base.is_none_or(|base| base.index > before.index) {
            self.base = Some(before);
        }
        match self.last().index {
            last if last != before.index => {
                Err(Refusal::Reason(format!("entry {} follows entry {last}", entry.index)))
            }
            _ => {
                self.entries.push_back(entry);
                Ok(())
            }
        }
    }
}

fn read_head(version: u8, reader: &mut Reader<'_>) -> Result<Head, CodecError> {
    let previous_end = reader.u64()?;
    let mut identity = Identity { member_id: reader.u64()?, cluster_id: 0 };
    if version == 1 {
        return Ok(Head { previous_end, identity, begin: None, check: Vec::new() });
    }
    identity.cluster_id = reader.u64()?;
    let begin = Some(Position { index: reader.u64()?, term: reader.u64()? });
    Ok(Head { previous_end, identity, begin, check: reader.rest().to_vec() })
}

fn read_hard_state(reader: &mut Reader<'_>) -> Result<HardState, CodecError> {
    Ok(HardState {
        term: reader.u64()?,
        vote: reader.u64()?,
        commit: reader.u64()?,
        ..HardState::default()
    })
}

fn read_entry(reader: &mut Reader<'_>) -> Result<Entry, CodecError> {
    let (index, term) = (reader.u64()?, reader.u64()?);
    let mut entry = Entry { index, term, ..Entry::default() };
    let kind = reader.u8()?;
    entry.set_entry_type(EntryType::from_i32(i32::from(kind)).ok_or(CodecError::Tag(kind))?);
    entry.context = Bytes::copy_from_slice(reader.bytes()?);
    entry.data = Bytes::copy_from_slice(reader.rest());
    Ok(entry)
}
