//! The envelope of every record in log and snapshot.
//!
//! ```text
//! 0  magic   "rk"
//! 2  version of the record's form
//! 3  kind
//! 4  flags   1: the payload is encrypted, with bytes 0..24 as associated data
//! 8  length  of the payload
//! 12 durable how many bytes of this file were durable when the record was written
//! 16 file    the file's number
//! 24 crc     CRC-32 of bytes 0..24 and the payload as it lies there
//! 28 payload
//! ```
//!
//! `durable` tells a torn tail from damage: a bad record may be cut if no later record of the
//! file says that it had been durable. The sum is found wrong without the key.

use crate::cipher::Cipher;
use crate::codec::Reader;
use std::borrow::Cow;

/// The newest version of the records that this program writes and reads. Version 1 knew neither
/// clusters nor encryption.
pub(crate) const VERSION: u8 = 2;
/// Length of the envelope in front of the payload.
pub(crate) const ENVELOPE: usize = 28;
const MAGIC: [u8; 2] = *b"rk";
const LENGTH_AT: usize = 8;
const CRC_AT: usize = 24;
const SEALED: u32 = 1;

/// What a record says of its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    pub(crate) version: u8,
    pub(crate) kind: u8,
    pub(crate) durable: u32,
    pub(crate) file: u64,
    sealed: bool,
    head: &'a [u8],
    payload: &'a [u8],
}

/// Why there is no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RecordError {
    /// Zeros, cut off, or the sum is wrong.
    Invalid(&'static str),
    /// Whole, but of a newer form, or with flags unknown here.
    Newer(u8),
}

/// Why a whole record's payload can't be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OpenError {
    /// It is encrypted and there is no key.
    NoKey,
    /// The key does not fit, or somebody has changed both the record and its sum.
    Forged,
}

impl<'a> Record<'a> {
    /// The payload in plain.
    pub(crate) fn open(&self, cipher: Option<&Cipher>) -> Result<Cow<'a, [u8]>, OpenError> {
        if !self.sealed {
            return Ok(Cow::Borrowed(self.payload));
        }
        let cipher = cipher.ok_or(OpenError::NoKey)?;
        cipher.open(self.payload, self.head).map(Cow::Owned).ok_or(OpenError::Forged)
    }
}

/// Appends a record whose payload `fill` writes, encrypted if there is a cipher.
pub(crate) fn write_record(
    out: &mut Vec<u8>,
    cipher: Option<&Cipher>,
    kind: u8,
    (file, durable): (u64, u32),
    fill: impl FnOnce(&mut Vec<u8>),
) {
    let start = out.len();
    let flags = if cipher.is_some() { SEALED } else { 0 };
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[VERSION, kind]);
    out.extend_from_slice(&flags.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&durable.to_le_bytes());
    out.extend_from_slice(&file.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    let set_length = |out: &mut [u8], length: usize| {
        let place = start + LENGTH_AT;
        out[place..place + 4].copy_from_slice(&(length as u32).to_le_bytes());
    };
    match cipher {
        Some(cipher) => cipher.seal(out, fill, |before, length| {
            set_length(before, length);
            before[start..start + CRC_AT].to_vec()
        }),
        None => {
            fill(out);
            let length = out.len() - start - ENVELOPE;
            set_length(out, length);
        }
    }
    let crc = checksum(&out[start..start + CRC_AT], &out[start + ENVELOPE..]);
    out[start + CRC_AT..start + ENVELOPE].copy_from_slice(&crc.to_le_bytes());
}

/// The length of the whole record that begins with these [`ENVELOPE`] bytes, as it says itself.
pub(crate) fn record_length(envelope: &[u8]) -> u64 {
    let length = envelope.get(LENGTH_AT..).and_then(|rest| Reader::new(rest).u32().ok());
    ENVELOPE as u64 + u64::from(length.unwrap_or(0))
}

/// The record at the beginning of `bytes` and its whole length.
pub(crate) fn read_record(bytes: &[u8]) -> Result<(Record<'_>, usize), RecordError> {
    let short = |_| RecordError::Invalid("the record is cut off");
    let mut reader = Reader::new(bytes);
    let head = reader.take(CRC_AT).map_err(short)?;
    let crc = reader.u32().map_err(short)?;
    if head[..2] != MAGIC {
        return Err(RecordError::Invalid("there is no record"));
    }
    let mut fields = Reader::new(&head[4..]);
    let flags = fields.u32().map_err(short)?;
    let length = fields.u32().map_err(short)?;
    let durable = fields.u32().map_err(short)?;
    let file = fields.u64().map_err(short)?;
    let payload = reader.take(length as usize).map_err(short)?;
    if checksum(head, payload) != crc {
        return Err(RecordError::Invalid("the checksum is wrong"));
    }
    let (version, kind) = (head[2], head[3]);
    if version > VERSION || flags & !SEALED != 0 {
        return Err(RecordError::Newer(version));
    }
    let sealed = flags & SEALED != 0;
    let record = Record { version, kind, durable, file, sealed, head, payload };
    Ok((record, ENVELOPE + payload.len()))
}

/// The largest `durable` that any whole record of this file states in `bytes`.
pub(crate) fn latest_durable(bytes: &[u8], file: u64) -> u32 {
    let mut latest = 0;
    let mut at = 0;
    while let Some(found) = find_magic(&bytes[at..]) {
        at += found;
        at += match read_record(&bytes[at..]) {
            Ok((record, length)) if record.file == file => {
                latest = latest.max(record.durable);
                length
            }
            _ => 1,
        };
    }
    latest
}

fn find_magic(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    // Most of a file's end is zeros: skip them a block at a time.
    while at < bytes.len() {
        let block = &bytes[at..bytes.len().min(at + ZEROS.len())];
        if is_zero(block) {
            at += block.len();
            continue;
        }
        // One byte further than the block, for a magic across its end.
        let end = bytes.len().min(at + block.len() + 1);
        if let Some(found) = bytes[at..end].windows(2).position(|pair| pair == MAGIC) {
            return Some(at + found);
        }
        at += block.len();
    }
    None
}

static ZEROS: [u8; 4096] = [0; 4096];

/// True if there is nothing but zeros.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(ZEROS.len()).all(|block| *block == ZEROS[..block.len()])
}

fn checksum(head: &[u8], payload: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(head);
    crc.update(payload);
    crc.finalize()
}

/// Makes the record at the beginning of `bytes` one of the next version, whole otherwise.
#[cfg(test)]
pub(crate) fn make_newer(bytes: &mut [u8]) {
    let length = read_record(bytes).unwrap().1;
    bytes[2] = VERSION + 1;
    let crc = checksum(&bytes[..CRC_AT], &bytes[ENVELOPE..length]);
    bytes[CRC_AT..ENVELOPE].copy_from_slice(&crc.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cipher::tests::source;
    use crate::disk::sim::SimDisk;
    use std::path::Path;

    #[test]
    fn every_flipped_bit_is_seen() {
        let disk = SimDisk::default();
        let cipher = source(1).make(&disk, Path::new("/")).unwrap();
        for cipher in [None, Some(&*cipher)] {
            every_flipped_bit_is_seen_in(cipher);
        }
    }

    fn every_flipped_bit_is_seen_in(cipher: Option<&Cipher>) {
        let mut bytes = b"before".to_vec();
        write_record(&mut bytes, cipher, 3, (7, 99), |out| out.extend_from_slice(b"payload"));
        let mut bytes = bytes.split_off(6);
        let (record, length) = read_record(&bytes).unwrap();
        assert_eq!((record.kind, record.durable, record.file), (3, 99, 7));
        assert_eq!(record.open(cipher).as_deref(), Ok(&b"payload"[..]));
        assert_eq!(record.sealed, cipher.is_some());
        assert_eq!(record.open(None).is_ok(), cipher.is_none());
        assert_eq!((length, record_length(&bytes)), (bytes.len(), bytes.len() as u64));
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(read_record(&bytes).is_err(), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        for cut in 0..bytes.len() {
            assert!(read_record(&bytes[..cut]).is_err(), "cut {cut}");
        }
    }

    #[test]
    fn a_newer_form_is_told_from_damage() {
        let mut bytes = Vec::<u8>::new();
        write_record(&mut bytes, None, 3, (7, 0), |out| out.push(1));
        make_newer(&mut bytes);
        assert_eq!(read_record(&bytes), Err(RecordError::Newer(VERSION + 1)));
    }

    #[test]
    fn later_records_are_found_behind_damage() {
        let mut bytes = vec![b'x'; 5000];
        bytes.extend_from_slice(&[0; 9000]);
        write_record(&mut bytes, None, 1, (7, 42), |_| ());
        assert_eq!(latest_durable(&bytes, 7), 42);
        assert_eq!(latest_durable(&bytes, 8), 0);
    }
    #[test]
    fn what_is_sealed_belongs_to_its_place() {
        let disk = SimDisk::default();
        let cipher = source(1).make(&disk, Path::new("/")).unwrap();
        let mut bytes = Vec::<u8>::new();
        write_record(&mut bytes, Some(&cipher), 3, (7, 0), |out| out.push(1));
        bytes[16] = 8;
        let crc = checksum(&bytes[..CRC_AT], &bytes[ENVELOPE..]);
        bytes[CRC_AT..ENVELOPE].copy_from_slice(&crc.to_le_bytes());
        let (record, _) = read_record(&bytes).unwrap();
        assert_eq!(record.open(Some(&cipher)), Err(OpenError::Forged));
    }
}
