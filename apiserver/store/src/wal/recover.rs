//! Opening a log: reads what is whole, cuts a torn tail, refuses damage.

use super::record::{RecordError, VERSION, is_zero, latest_durable, read_record};
use super::{
    FullSegment, KIND_CLOSED, KIND_CONF_STATE, KIND_ENTRY, KIND_HARD_STATE, KIND_SEGMENT, Wal,
    create_segment, segment_path, sync_dir,
};
use crate::codec::{CodecError, Reader};
use crate::disk::{Disk, DiskFile};
use crate::error::StoreError;
use bytes::Bytes;
use protobuf::{Message, ProtobufEnum};
use raft::eraftpb::{ConfState, Entry, EntryType, HardState};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

/// What the log says.
#[derive(Default)]
pub(crate) struct Recovered {
    pub(crate) hard_state: HardState,
    /// None if the log is new.
    pub(crate) conf_state: Option<ConfState>,
    /// Without gaps.
    pub(crate) entries: VecDeque<Entry>,
}

/// How to open a log.
pub(crate) struct LogConfig<'a> {
    pub(crate) dir: &'a Path,
    pub(crate) node_id: u64,
    pub(crate) segment_bytes: u64,
    /// The members of a log that is new.
    pub(crate) first_conf_state: ConfState,
}

/// Opens the log, or begins one.
pub(crate) fn recover(
    disk: Arc<dyn Disk>,
    config: LogConfig<'_>,
) -> Result<(Wal, Recovered), StoreError> {
    let dir = config.dir;
    let mut segments = open_segments(&*disk, dir)?;
    remove_unused(&*disk, dir, &mut segments)?;
    let mut log = Reading { dir, node_id: config.node_id, recovered: Recovered::default() };
    let mut full = VecDeque::new();
    let mut previous_end = None;
    for (place, segment) in segments.iter().enumerate() {
        let end = log.segment(segment, previous_end)?;
        previous_end = Some((segment.id, end));
        if place + 1 < segments.len() {
            full.push_back(FullSegment { id: segment.id, last_index: log.last_index() });
        }
    }
    let offset = previous_end.map_or(0, |(_, end)| end);
    let (id, file, current_bytes) = match segments.pop() {
        Some(segment) => {
            finish(&segment, dir, offset)?;
            (segment.id, segment.file, segment.bytes.len() as u64)
        }
        None => (1, create_segment(&*disk, dir, 1, config.segment_bytes)?, config.segment_bytes),
    };
    let last_index = log.last_index();
    let recovered = log.recovered;
    let wal = Wal {
        disk,
        dir: dir.to_owned(),
        segment_bytes: config.segment_bytes,
        current_bytes,
        node_id: config.node_id,
        full,
        id,
        file,
        offset,
        previous_end: 0,
        last_index,
        spare: None,
        hard_state: recovered.hard_state.clone(),
        conf_state: recovered.conf_state.clone().unwrap_or(config.first_conf_state),
        buffer: Vec::new(),
    };
    Ok((wal, recovered))
}

/// A file as it was found.
struct Segment {
    id: u64,
    file: Box<dyn DiskFile>,
    bytes: Vec<u8>,
}

fn open_segments(disk: &dyn Disk, dir: &Path) -> Result<Vec<Segment>, StoreError> {
    let names = disk.list(dir).map_err(|source| StoreError::io("list", dir, source))?;
    let id = |name: &String| u64::from_str_radix(name.strip_suffix(".log")?, 16).ok();
    let mut ids: Vec<_> = names.iter().filter_map(id).collect();
    ids.sort_unstable();
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

/// Drops files at the end in which nothing became durable: prepared ones, and one whose very
/// first write was torn.
fn remove_unused(
    disk: &dyn Disk,
    dir: &Path,
    segments: &mut Vec<Segment>,
) -> Result<(), StoreError> {
    let unused = |segment: &mut Segment| {
        is_zero(&segment.bytes)
            || (matches!(read_record(&segment.bytes), Err(RecordError::Invalid(_)))
                && latest_durable(&segment.bytes, segment.id) == 0)
    };
    while let Some(segment) = segments.pop_if(unused) {
        let path = segment_path(dir, segment.id);
        disk.remove(&path).map_err(|source| StoreError::io("remove", &path, source))?;
        sync_dir(disk, dir)?;
    }
    Ok(())
}

/// Refuses the last file if something durable is damaged, else cuts what was torn.
fn finish(segment: &Segment, dir: &Path, offset: u64) -> Result<(), StoreError> {
    let path = segment_path(dir, segment.id);
    let tail = &segment.bytes[offset as usize..];
    if u64::from(latest_durable(tail, segment.id)) > offset {
        let reason = "a record is damaged that had been synced".to_owned();
        return Err(StoreError::Corrupt { file: path, offset, reason });
    }
    if !is_zero(tail) {
        let zeros = vec![0; tail.len()];
        segment.file.write(&zeros, offset).map_err(|e| StoreError::io("write", &path, e))?;
    }
    // A process that died before its sync leaves records that can be read and yet be lost; from
    // here on they count as durable.
    segment.file.sync().map_err(|e| StoreError::io("sync", &path, e))
}

struct Reading<'a> {
    dir: &'a Path,
    node_id: u64,
    recovered: Recovered,
}

impl Reading<'_> {
    fn last_index(&self) -> u64 {
        self.recovered.entries.back().map_or(0, |entry| entry.index)
    }

    /// Reads one file and answers where its records end. `previous` is the file before it and
    /// where that one's records end.
    fn segment(
        &mut self,
        segment: &Segment,
        previous: Option<(u64, u64)>,
    ) -> Result<u64, StoreError> {
        let mut at = 0;
        loop {
            let (record, length) = match read_record(&segment.bytes[at..]) {
                Ok(found) if found.0.file == segment.id => found,
                Err(RecordError::Newer(found)) => {
                    let file = segment_path(self.dir, segment.id);
                    return Err(StoreError::NewerFormat { file, found, known: VERSION });
                }
                _ => return Ok(at as u64),
            };
            let damaged = |reason: String| self.corrupt(segment.id, at as u64, reason);
            if at == 0 && record.kind != KIND_SEGMENT {
                return Err(damaged("the file does not begin with its head".into()));
            }
            let bytes = record.payload;
            match self.recovered.record(record.kind, bytes) {
                Ok(None) => {}
                Ok(Some(head)) => self.check_head(head, previous)?,
                Err(reason) => return Err(self.corrupt(segment.id, at as u64, reason)),
            }
            at += length;
        }
    }

    fn check_head(&self, head: Head, previous: Option<(u64, u64)>) -> Result<(), StoreError> {
        if head.node_id != self.node_id {
            return Err(StoreError::OtherMember {
                dir: self.dir.to_owned(),
                found: head.node_id,
                expected: self.node_id,
            });
        }
        match previous {
            Some((id, end)) if end != head.previous_end => {
                let reason = format!("the records end here, not at {}", head.previous_end);
                Err(self.corrupt(id, end, reason))
            }
            _ => Ok(()),
        }
    }

    fn corrupt(&self, id: u64, offset: u64, reason: String) -> StoreError {
        StoreError::Corrupt { file: segment_path(self.dir, id), offset, reason }
    }
}

/// The first record of a file.
struct Head {
    previous_end: u64,
    node_id: u64,
}

impl Recovered {
    fn record(&mut self, kind: u8, payload: &[u8]) -> Result<Option<Head>, String> {
        let short = |error: CodecError| error.to_string();
        let mut reader = Reader::new(payload);
        match kind {
            KIND_SEGMENT => {
                let previous_end = reader.u64().map_err(short)?;
                return Ok(Some(Head { previous_end, node_id: reader.u64().map_err(short)? }));
            }
            KIND_HARD_STATE => self.hard_state = read_hard_state(&mut reader).map_err(short)?,
            KIND_ENTRY => self.entry(read_entry(&mut reader).map_err(short)?)?,
            KIND_CONF_STATE => {
                let read = ConfState::parse_from_bytes(payload);
                self.conf_state = Some(read.map_err(|error| error.to_string())?);
            }
            KIND_CLOSED => {}
            kind => return Err(format!("the kind {kind} of the record is unknown")),
        }
        Ok(None)
    }

    /// A new leader's entries replace those at and behind their index.
    fn entry(&mut self, entry: Entry) -> Result<(), String> {
        while self.entries.pop_back_if(|last| last.index >= entry.index).is_some() {}
        match self.entries.back() {
            Some(last) if last.index + 1 != entry.index => {
                Err(format!("entry {} follows entry {}", entry.index, last.index))
            }
            _ => {
                self.entries.push_back(entry);
                Ok(())
            }
        }
    }
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
