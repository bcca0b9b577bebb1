//! A snapshot on its way to another member: the records of the file, in plain (the connection is
//! encrypted), without a member's id. The receiver checks each as it comes and writes a file of
//! its own, under its own key.

use super::{
    CHUNK_BYTES, Decoder, KIND_HEAD, Records, Snapshot, cipher_for, publish, snapshot_path,
};
use crate::cipher::Cipher;
use crate::codec::Names;
use crate::disk::{Disk, DiskFile};
use crate::error::StoreError;
use crate::member::Identity;
use crate::wal::record::{
    ENVELOPE, RecordError, VERSION, read_record, record_length, write_record,
};
use bytes::Bytes;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Most bytes of one record; an object has less than half a log file.
const RECORD_MOST: u64 = 256 << 20;

/// A snapshot as chunks of about 256 KiB, each made when it is asked for. It holds the state as
/// it was, however long the other side takes.
pub(crate) struct Chunks {
    records: Records,
    payload: Vec<u8>,
}

impl Chunks {
    pub(crate) fn new(snapshot: &Snapshot) -> Self {
        let mut records = Records::new(snapshot);
        records.snapshot.identity.member_id = 0;
        Self { records, payload: Vec::new() }
    }
}

impl Iterator for Chunks {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let index = self.records.snapshot.state.applied_index;
        let mut chunk = Vec::new();
        while chunk.len() < CHUNK_BYTES {
            let Some((kind, number)) = self.records.next(&mut self.payload) else { break };
            write_record(&mut chunk, None, kind, (index, number), |out| {
                out.extend_from_slice(&self.payload);
            });
        }
        (!chunk.is_empty()).then(|| chunk.into())
    }
}

/// Reads a whole stream that was kept in a file.
pub(crate) fn decode(bytes: &[u8], file: &Path) -> Result<Snapshot, StoreError> {
    let (mut decoder, mut names, mut at) = (Decoder::default(), Names::default(), 0);
    let damaged = |at: usize, reason: &str| StoreError::Corrupt {
        file: file.to_owned(),
        offset: at as u64,
        reason: reason.to_owned(),
    };
    while decoder.ended.is_none() {
        let (record, length) = read_record(&bytes[at..]).map_err(|error| match error {
            RecordError::Invalid(reason) => damaged(at, reason),
            RecordError::Newer(found) => {
                StoreError::NewerFormat { file: file.to_owned(), found, known: VERSION }
            }
        })?;
        let payload = record.open(None).map_err(|_| damaged(at, "the record is encrypted"))?;
        let read = decoder.record(&record, &payload, &mut names);
        read.map_err(|reason| damaged(at, &reason))?;
        at += length;
    }
    match decoder.ended {
        Some(snapshot) if at == bytes.len() => Ok(snapshot),
        _ => Err(damaged(at, "the file goes on behind its end")),
    }
}

/// Takes in a snapshot from another member of the cluster. Dropped before its end it leaves
/// nothing.
pub(crate) struct Receiver {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    identity: Identity,
    cipher: Arc<Cipher>,
    names: Names,
    decoder: Decoder,
    /// Bytes of a record whose rest has not come yet.
    rest: Vec<u8>,
    /// How many bytes of records have come.
    received: u64,
    part: Option<PartFile>,
}

struct PartFile {
    path: PathBuf,
    file: Box<dyn DiskFile>,
    at: u64,
}

impl Receiver {
    /// Waits for the first chunk; nothing is written until it comes.
    pub(crate) fn begin(
        disk: Arc<dyn Disk>,
        dir: &Path,
        identity: Identity,
        cipher: Arc<Cipher>,
    ) -> Self {
        Self {
            disk,
            dir: dir.to_owned(),
            identity,
            cipher,
            names: Names::default(),
            decoder: Decoder::default(),
            rest: Vec::new(),
            received: 0,
            part: None,
        }
    }

    /// Checks and writes the next bytes, cut anywhere. After an error the receiver is of no use.
    pub(crate) fn write(&mut self, chunk: &[u8]) -> Result<(), StoreError> {
        let mut bytes = std::mem::take(&mut self.rest);
        bytes.extend_from_slice(chunk);
        let mut at = 0;
        while bytes.len() - at >= ENVELOPE {
            let length = record_length(&bytes[at..at + ENVELOPE]);
            if length > RECORD_MOST {
                return Err(self.damaged("a record is too long"));
            }
            if length > (bytes.len() - at) as u64 {
                break;
            }
            at += self.record(&bytes[at..])?;
        }
        bytes.drain(..at);
        self.rest = bytes;
        Ok(())
    }

    fn record(&mut self, bytes: &[u8]) -> Result<usize, StoreError> {
        let (record, length) = read_record(bytes).map_err(|error| self.refused(error))?;
        let Ok(payload) = record.open(None) else {
            return Err(self.damaged("a record is encrypted"));
        };
        if record.version == 1 || self.decoder.ended.is_some() {
            return Err(self.damaged("the record has no place here"));
        }
        let mut payload = payload.into_owned();
        let read = self.decoder.record(&record, &payload, &mut self.names);
        read.map_err(|reason| self.damaged(&reason))?;
        if record.kind == KIND_HEAD {
            self.check_head()?;
            // The file says whose it is where the stream had nobody.
            payload[..8].copy_from_slice(&self.identity.member_id.to_le_bytes());
        }
        let mut sealed = Vec::with_capacity(payload.len() + 128);
        let cipher = cipher_for(record.kind, &self.cipher);
        write_record(&mut sealed, cipher, record.kind, (record.file, record.durable), |out| {
            out.extend_from_slice(&payload);
        });
        self.keep(&sealed)?;
        self.received += length as u64;
        Ok(length)
    }

    fn check_head(&self) -> Result<(), StoreError> {
        let Some(snapshot) = &self.decoder.snapshot else { return Ok(()) };
        let found = snapshot.identity;
        match found.cluster_id == self.identity.cluster_id {
            true => Ok(()),
            false => {
                let (dir, expected) = (self.dir.clone(), self.identity);
                Err(StoreError::OtherMember { dir, found, expected })
            }
        }
    }

    fn keep(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let part = match &mut self.part {
            Some(part) => part,
            None => {
                let path = snapshot_path(&self.dir, self.decoder.index).with_extension("part");
                let file = self.disk.create(&path, 0);
                let file = file.map_err(|source| StoreError::io("create", &path, source))?;
                self.part.insert(PartFile { path, file, at: 0 })
            }
        };
        let written = part.file.write(bytes, part.at);
        written.map_err(|source| StoreError::io("write", &part.path, source))?;
        part.at += bytes.len() as u64;
        Ok(())
    }

    /// Ends the stream; on return the snapshot is durable under its name.
    pub(crate) fn finish(mut self) -> Result<Snapshot, StoreError> {
        let ended = self.decoder.ended.take().filter(|_| self.rest.is_empty());
        let (Some(mut snapshot), Some(part)) = (ended, &self.part) else {
            return Err(self.damaged("it is cut off"));
        };
        part.file.sync().map_err(|source| StoreError::io("sync", &part.path, source))?;
        let path = snapshot_path(&self.dir, snapshot.state.applied_index);
        publish(&*self.disk, &self.dir, &part.path, &path)?;
        self.part = None;
        snapshot.identity = self.identity;
        Ok(snapshot)
    }

    fn refused(&self, error: RecordError) -> StoreError {
        match error {
            RecordError::Invalid(reason) => self.damaged(reason),
            RecordError::Newer(found) => {
                StoreError::NewerFormat { file: self.place(), found, known: VERSION }
            }
        }
    }

    fn damaged(&self, reason: &str) -> StoreError {
        let reason = format!("a snapshot from another member: {reason}");
        StoreError::Corrupt { file: self.place(), offset: self.received, reason }
    }

    fn place(&self) -> PathBuf {
        self.part.as_ref().map_or_else(|| self.dir.clone(), |part| part.path.clone())
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if let Some(part) = self.part.take() {
            // At worst the next start removes it.
            let _ = self.disk.remove(&part.path);
        }
    }
}
