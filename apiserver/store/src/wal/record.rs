//! The envelope of every record in log and snapshot.
//!
//! ```text
//! 0  magic   "rk"
//! 2  version of the record's form
//! 3  kind
//! 4  flags   0; room to say that the payload is encrypted
//! 8  length  of the payload
//! 12 durable how many bytes of this file were durable when the record was written
//! 16 file    the file's number
//! 24 crc     CRC-32 of bytes 0..24 and the payload
//! 28 payload
//! ```
//!
//! `durable` tells a torn tail from damage: a bad record may be cut if no later record of the
//! file says that it had been durable.

use crate::codec::Reader;

/// The newest version of the records that this program writes and reads.
pub(crate) const VERSION: u8 = 1;
/// Length of the envelope in front of the payload.
pub(crate) const ENVELOPE: usize = 28;
const MAGIC: [u8; 2] = *b"rk";
const CRC_AT: usize = 24;

/// What a record says of its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    pub(crate) kind: u8,
    pub(crate) durable: u32,
    pub(crate) file: u64,
    pub(crate) payload: &'a [u8],
}

/// Why there is no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RecordError {
    /// Zeros, cut off, or the sum is wrong.
    Invalid(&'static str),
    /// Whole, but of a newer form, or with flags unknown here.
    Newer(u8),
}

/// Appends a record whose payload `fill` writes.
pub(crate) fn write_record(
    out: &mut Vec<u8>,
    kind: u8,
    file: u64,
    durable: u32,
    fill: impl FnOnce(&mut Vec<u8>),
) {
    let start = out.len();
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[VERSION, kind, 0, 0, 0, 0, 0, 0, 0, 0]);
    out.extend_from_slice(&durable.to_le_bytes());
    out.extend_from_slice(&file.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    fill(out);
    let length = (out.len() - start - ENVELOPE) as u32;
    out[start + 8..start + 12].copy_from_slice(&length.to_le_bytes());
    let crc = checksum(&out[start..start + CRC_AT], &out[start + ENVELOPE..]);
    out[start + CRC_AT..start + ENVELOPE].copy_from_slice(&crc.to_le_bytes());
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
    if head[2] > VERSION || flags != 0 {
        return Err(RecordError::Newer(head[2]));
    }
    let record = Record { kind: head[3], durable, file, payload };
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

    #[test]
    fn every_flipped_bit_is_seen() {
        let mut bytes = Vec::new();
        write_record(&mut bytes, 3, 7, 99, |out| out.extend_from_slice(b"payload"));
        let (record, length) = read_record(&bytes).unwrap();
        assert_eq!(record, Record { kind: 3, durable: 99, file: 7, payload: b"payload" });
        assert_eq!(length, bytes.len());
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
        let mut bytes = Vec::new();
        write_record(&mut bytes, 3, 7, 0, |out| out.push(1));
        make_newer(&mut bytes);
        assert_eq!(read_record(&bytes), Err(RecordError::Newer(VERSION + 1)));
    }

    #[test]
    fn later_records_are_found_behind_damage() {
        let mut bytes = vec![b'x'; 5000];
        bytes.extend_from_slice(&[0; 9000]);
        write_record(&mut bytes, 1, 7, 42, |_| ());
        assert_eq!(latest_durable(&bytes, 7), 42);
        assert_eq!(latest_durable(&bytes, 8), 0);
    }
}
